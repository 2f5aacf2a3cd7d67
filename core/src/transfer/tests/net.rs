//! A few workers, the lines between them, the pages they own, and a scheduler that is as simple as can be.
//!
//! Each pair of workers shares a connection with a number; each end believes in one, or in none. A message arrives if
//! the receiver believes in the connection that it was sent on, and so does a write: when a worker is told that a peer
//! is torn down, that peer's writes cannot land any more. Writes of a process that died may, until then.
//!
//! What goes wrong is written down in `faults`, so that a test can show that it would be seen.

use std::collections::{BTreeMap, VecDeque};
use std::format;
use std::string::String;
use std::vec::Vec;

use crate::config::{Mode, TransferConfig};
use crate::cost::Cost;
use crate::cx::{Cx, Ops};
use crate::id::{Epoch, GpuPage, OpId, PageKey, RequestId, Room, Token, WorkerId};
use crate::kv::Lease;
use crate::machine::Outbox;
use crate::message::{AbortReason, Layout, Message};
use crate::metrics::Metrics;
use crate::mutant::{Mutant, Mutation};
use crate::op::{Command, Output, Prompt, Push};
use crate::rng::{Rng, Stream};
use crate::time::Instant;
use crate::transfer::{Transfer, TransferEvent};

pub(super) const PAGE_SIZE: u32 = 4;
pub(super) const ROOT: PageKey = PageKey(77);
pub(super) const D: WorkerId = WorkerId(1);
pub(super) const P: WorkerId = WorkerId(2);
pub(super) const Q: WorkerId = WorkerId(3);

/// A request that is handed over by this worker.
#[derive(Debug)]
pub(super) struct SourceLeg {
    pub(super) room: Room,
    pub(super) length: u32,
    pub(super) pushed: u32,
    pub(super) is_handed: bool,
}

/// A request that this worker takes over.
#[derive(Debug)]
pub(super) struct SinkLeg {
    pub(super) room: Room,
    pub(super) prompt: Prompt,
    pub(super) have: u32,
    pub(super) lease: Option<Lease>,
    pub(super) deadline: Option<Instant>,
}

/// How a leg ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Sent,
    SourceFailed(AbortReason),
    Landed(Token),
    SinkFailed(AbortReason),
    Aborted,
}

pub(super) struct Node {
    pub(super) transfer: Transfer,
    pub(super) epoch: Epoch,
    pub(super) metrics: Metrics,
    mode: Mode,
    config: TransferConfig,
    pub(super) ops: Ops,
    rng: Rng,
    out: Outbox<Output>,
    pub(super) sources: BTreeMap<RequestId, SourceLeg>,
    pub(super) sinks: BTreeMap<RequestId, SinkLeg>,
    pub(super) ends: Vec<(RequestId, End)>,
    /// Free pages; the last one given back is the first one taken again.
    pub(super) free: Vec<GpuPage>,
    pub(super) owner: BTreeMap<GpuPage, RequestId>,
    pub(super) content: BTreeMap<GpuPage, (RequestId, u32)>,
}

/// A push on its way.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) from: WorkerId,
    /// `None` when the process that started it is gone.
    pub(super) op: Option<OpId>,
    pub(super) push: Push,
    pub(super) request: RequestId,
    connection: Option<u32>,
}

pub(super) struct Net {
    pub(super) now: Instant,
    pub(super) nodes: BTreeMap<WorkerId, Node>,
    pub(super) lines: BTreeMap<(WorkerId, WorkerId), VecDeque<(u32, Message)>>,
    /// Which connection the first worker believes to have with the second.
    pub(super) views: BTreeMap<(WorkerId, WorkerId), u32>,
    pub(super) flights: Vec<Flight>,
    pub(super) faults: Vec<String>,
    pub(super) mutation: Mutation,
    pub(super) connections: u32,
}

pub(super) fn layout() -> Layout {
    Layout { page_size: PAGE_SIZE, dtype: "bf16".into(), layers: 2, kv_heads: 8, head_dim: 8, page_bytes: 4096, tp: 1 }
}

pub(super) fn config() -> TransferConfig {
    TransferConfig { layout: layout(), retries_max: 1, rooms_max: 64, ..TransferConfig::default() }
}

pub(super) fn prompt(request: RequestId, length: u32) -> Prompt {
    let keys = (0..length / PAGE_SIZE).map(|page| PageKey(u128::from(request.0) << 64 | u128::from(page))).collect();
    let tokens = (0..length % PAGE_SIZE).map(Token).collect();
    Prompt { root: ROOT, length, keys, tokens }
}

impl Net {
    /// A decode worker and two prefill workers, connected and acquainted.
    pub(super) fn new() -> Self {
        let mut net = Self::strangers(&[(D, Mode::Decode), (P, Mode::Prefill), (Q, Mode::Prefill)], &config());
        net.connect(D, P);
        net.connect(D, Q);
        net.deliver_all();
        net
    }

    pub(super) fn strangers(workers: &[(WorkerId, Mode)], config: &TransferConfig) -> Self {
        let mut net = Self {
            now: Instant::ZERO,
            nodes: BTreeMap::new(),
            lines: BTreeMap::new(),
            views: BTreeMap::new(),
            flights: Vec::new(),
            faults: Vec::new(),
            mutation: Mutation::default(),
            connections: 0,
        };
        for (id, mode) in workers {
            net.start(*id, *mode, config.clone(), Epoch(1));
        }
        net
    }

    pub(super) fn start(&mut self, id: WorkerId, mode: Mode, config: TransferConfig, epoch: Epoch) {
        let config = TransferConfig { mutation: self.mutation, ..config };
        let transfer = Transfer::new(config.clone(), mode, epoch, ROOT);
        let node = Node {
            transfer,
            epoch,
            metrics: Metrics::default(),
            mode,
            config,
            ops: Ops::new(epoch),
            rng: Rng::new(1, Stream::Schedule, 1),
            out: Outbox::default(),
            sources: BTreeMap::new(),
            sinks: BTreeMap::new(),
            ends: Vec::new(),
            free: (0..64).map(GpuPage).collect(),
            owner: BTreeMap::new(),
            content: BTreeMap::new(),
        };
        self.nodes.insert(id, node);
    }

    /// The process dies and comes back. Peers learn of it later.
    pub(super) fn restart(&mut self, id: WorkerId) {
        let (mode, config, epoch) = {
            let node = &self.nodes[&id];
            (node.mode, node.config.clone(), Epoch(node.epoch.0 + 1))
        };
        self.start(id, mode, config, epoch);
        for flight in self.flights.iter_mut().filter(|flight| flight.from == id) {
            flight.op = None;
        }
        self.views.retain(|(of, _), _| *of != id);
    }

    pub(super) fn mutate(&mut self, mutant: Mutant) {
        self.mutation = Mutation::of(mutant);
        for node in self.nodes.values_mut() {
            node.transfer.mutate(self.mutation);
        }
    }

    pub(super) fn node(&self, id: WorkerId) -> &Node {
        &self.nodes[&id]
    }

    /// One step of a worker: an input, then settle, then the scheduler.
    pub(super) fn step<R>(
        &mut self,
        id: WorkerId,
        input: impl FnOnce(&mut Transfer, &mut Cx<'_>, &mut Vec<TransferEvent>) -> R,
    ) -> R {
        let node = self.nodes.get_mut(&id).expect("a worker of the net");
        let cost = Cost::fixed(2_000_000, 20_000, 10_000_000, 1 << 30);
        let mut cx = Cx {
            now: self.now,
            cost: &cost,
            rng: &mut node.rng,
            metrics: &mut node.metrics,
            ops: &mut node.ops,
            out: &mut node.out,
        };
        let mut events = Vec::new();
        let result = input(&mut node.transfer, &mut cx, &mut events);
        events.extend(node.transfer.settle(&mut cx));
        self.flush(id);
        for event in events {
            self.react(id, event);
        }
        self.nodes[&id].transfer.check();
        result
    }

    fn flush(&mut self, id: WorkerId) {
        let node = self.nodes.get_mut(&id).expect("a worker of the net");
        let outputs: Vec<Output> = node.out.drain().collect();
        for output in outputs {
            match output {
                Output::Send { to, message } => {
                    if let Some(view) = self.views.get(&(id, to)) {
                        self.lines.entry((id, to)).or_default().push_back((*view, message));
                    }
                }
                Output::Start { op, after: _, command: Command::Push(push) } => {
                    let connection = self.views.get(&(id, push.to)).copied();
                    let owner = self.nodes[&id].sources.iter().find(|(_, leg)| leg.room == push.room);
                    let request = *owner.expect("a push of a leg").0;
                    self.flights.push(Flight { from: id, op: Some(op), push: *push, request, connection });
                }
                Output::Start { .. } | Output::Emit { .. } | Output::Publish(_) => panic!("not a matter of hand-offs"),
            }
        }
    }

    /// The scheduler.
    fn react(&mut self, id: WorkerId, event: TransferEvent) {
        match event {
            TransferEvent::Wanted { request } => {
                self.expect(self.nodes[&id].sources.contains_key(&request), format!("{request} was not offered"));
            }
            TransferEvent::Asked { from: _, want } => {
                let prompt = want.prompt.expect("asked with the prompt");
                let offered = self.offer(id, want.request, want.room, prompt.length, None);
                self.expect(offered.is_ok(), format!("{offered:?} for what was asked"));
            }
            TransferEvent::Sent { request } => self.end_source(id, request, End::Sent),
            TransferEvent::SourceFailed { request, reason } => {
                self.end_source(id, request, End::SourceFailed(reason));
            }
            TransferEvent::Landed { request, token, .. } => self.on_landed(id, request, token),
            TransferEvent::Retry { request, prefill } => self.on_retry(id, request, prefill),
            TransferEvent::SinkFailed { request, reason } => self.end_sink(id, request, End::SinkFailed(reason)),
            TransferEvent::Fenced { lease } => self.on_fenced(id, &lease),
        }
    }

    fn end_source(&mut self, id: WorkerId, request: RequestId, end: End) {
        let reads = |it: &Flight| it.from == id && it.op.is_some() && it.request == request;
        self.expect(!self.flights.iter().any(reads), format!("{request}: source pages given back while read"));
        let node = self.nodes.get_mut(&id).expect("a worker of the net");
        let known = node.sources.remove(&request).is_some();
        node.ends.push((request, end));
        self.expect(known, format!("{request} ended twice at its source: {end:?}"));
    }

    fn on_landed(&mut self, id: WorkerId, request: RequestId, token: Token) {
        let leg = self.nodes[&id].sinks.get(&request);
        let table = leg.and_then(|leg| leg.lease.as_ref()).map(|lease| lease.table().to_vec());
        let Some(table) = table else { return self.expect(false, format!("{request} landed and is not open")) };
        let have = leg.map_or(0, |leg| leg.have);
        for (index, page) in table.iter().enumerate().skip(have as usize) {
            let held = self.nodes[&id].content.get(page).copied();
            self.expect(held == Some((request, index as u32)), format!("{request}: page {index} holds {held:?}"));
        }
        self.expect(!self.is_written(id, &table), format!("{request}: landed while written"));
        let node = self.nodes.get_mut(&id).expect("a worker of the net");
        node.sinks.remove(&request);
        node.ends.push((request, End::Landed(token)));
        self.give_back(id, &table);
    }

    fn on_retry(&mut self, id: WorkerId, request: RequestId, prefill: WorkerId) {
        let lease = self.nodes.get_mut(&id).and_then(|node| node.sinks.get_mut(&request)?.lease.take());
        let lease = lease.expect("the lease of the attempt");
        let pages = lease.table().len();
        self.quarantine(id, lease);
        if self.nodes[&id].free.len() < pages {
            self.abort(id, request, AbortReason::Refused);
        } else {
            self.want_again(id, request, prefill);
        }
    }

    pub(super) fn end_sink(&mut self, id: WorkerId, request: RequestId, end: End) {
        let node = self.nodes.get_mut(&id).expect("a worker of the net");
        node.ends.push((request, end));
        let leg = node.sinks.remove(&request);
        self.expect(leg.is_some(), format!("{request} ended twice at its sink: {end:?}"));
        if let Some(lease) = leg.and_then(|leg| leg.lease) {
            self.quarantine(id, lease);
        }
    }

    fn quarantine(&mut self, id: WorkerId, lease: Lease) {
        self.step(id, |transfer, cx, events| events.extend(transfer.quarantine(cx, lease)));
    }

    fn on_fenced(&mut self, id: WorkerId, lease: &Lease) {
        let is_written = self.is_written(id, lease.table());
        self.expect(!is_written, format!("{}: pages released while written", lease.request()));
        self.give_back(id, lease.table());
    }

    /// True if a push in flight that names one of the pages can still land.
    fn is_written(&self, id: WorkerId, pages: &[GpuPage]) -> bool {
        let names = |it: &Flight| it.push.pages.iter().any(|(_, to)| pages.contains(to));
        self.flights.iter().any(|flight| self.can_land(flight) && flight.push.to == id && names(flight))
    }

    pub(super) fn can_land(&self, flight: &Flight) -> bool {
        let view = self.views.get(&(flight.push.to, flight.from)).copied();
        view.is_some() && view == flight.connection && self.nodes[&flight.push.to].epoch == flight.push.epoch
    }

    pub(super) fn take_pages(&mut self, id: WorkerId, request: RequestId, count: u32) -> Vec<GpuPage> {
        let node = self.nodes.get_mut(&id).expect("a worker of the net");
        let pages: Vec<GpuPage> = (0..count).map(|_| node.free.pop().expect("enough pages")).collect();
        for page in &pages {
            node.owner.insert(*page, request);
        }
        pages
    }

    fn give_back(&mut self, id: WorkerId, pages: &[GpuPage]) {
        let node = self.nodes.get_mut(&id).expect("a worker of the net");
        for page in pages {
            node.owner.remove(page);
            node.content.remove(page);
            node.free.push(*page);
        }
    }

    pub(super) fn expect(&mut self, holds: bool, fault: String) {
        if !holds {
            self.faults.push(fault);
        }
    }
}

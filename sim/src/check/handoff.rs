//! A request has one owner, and a write lands only in pages that were leased for it.
//!
//! Two books are kept of each attempt (sink, its life, generation): the sink's, from the want that it sends until it may
//! know that no write can land any more, and the source's, from the want that it receives until it has said its last word.
//!
//! 1. A source pushes only into pages that a want of the present lives of both ends named, hands over once, and only
//!    when all pushes have landed and the pages hold what they should.
//! 2. It acknowledges an abort in the step that ends its last push, not before and not after.
//! 3. A sink lets nobody use a page into which a push is under way, and keeps the pages of an ended attempt until it may
//!    know.
//! 4. A sink takes the hand-off of its present attempt and of no other; a source takes a want once.
//! 5. The router gives each room once.

use std::collections::{BTreeMap, BTreeSet};

use pd_core::batch::Batch;
use pd_core::event::Event;
use pd_core::id::{Epoch, Generation, GpuPage, RequestId, Room};
use pd_core::message::{AbortReason, End, Message};
use pd_core::op::Push;
use pd_core::router::RouterOutput;

use super::{About, Checker, Log};
use crate::lane::Fabric;

/// Sink, its life, generation: the name of an attempt.
type Key = (u32, Epoch, Generation);

/// An attempt as its sink knows it.
#[derive(Debug)]
struct Asked {
    room: Room,
    request: RequestId,
    source: u32,
    source_epoch: Epoch,
    pages: Vec<GpuPage>,
    is_over: bool,
}

/// An attempt as its source knows it.
#[derive(Debug)]
struct Taken {
    request: RequestId,
    length: u32,
    have: u32,
    pages: Vec<GpuPage>,
    in_flight: u32,
    owes_ack: bool,
    /// It names another life of one of the ends.
    is_void: bool,
}

/// What a sink hears of a hand-off that is not that of its present attempt.
#[derive(Debug)]
struct Stray {
    requests: [Option<RequestId>; 2],
    checker: Checker,
}

/// Everything about hand-offs.
#[derive(Debug)]
pub(super) struct Handoffs {
    asked: BTreeMap<Key, Asked>,
    current: BTreeMap<(u32, Room), Key>,
    /// Attempts in `asked` that are over, by sink.
    over: Vec<u32>,
    taken: BTreeMap<(u32, Key), Taken>,
    /// The newest generation of a want that a source has had of a life of a sink.
    newest: BTreeMap<(u32, u32, Epoch), Generation>,
    /// The life of each peer as far as a worker was told.
    peers: Vec<BTreeMap<u32, Epoch>>,
    /// The latest life of each peer that it was told of.
    latest: Vec<BTreeMap<u32, Epoch>>,
    /// By sink and page: pushes under way into it.
    busy: Vec<Vec<u32>>,
    lives: Vec<Option<Epoch>>,
    rooms: BTreeSet<Room>,
    // Of the present step:
    ack_due: Option<Key>,
    copy: Option<Key>,
    stray: Option<Stray>,
    landed: Option<Key>,
}

impl Handoffs {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            asked: BTreeMap::new(),
            current: BTreeMap::new(),
            over: vec![0; workers],
            taken: BTreeMap::new(),
            newest: BTreeMap::new(),
            peers: vec![BTreeMap::new(); workers],
            latest: vec![BTreeMap::new(); workers],
            busy: vec![Vec::new(); workers],
            lives: vec![None; workers],
            rooms: BTreeSet::new(),
            ack_due: None,
            copy: None,
            stray: None,
            landed: None,
        }
    }

    /// A worker begins a life with pools of its own, or ends one.
    pub(super) fn on_life(&mut self, worker: u32, life: Option<(Epoch, u32)>) {
        let index = worker as usize;
        self.lives[index] = life.map(|(epoch, _)| epoch);
        self.busy[index].clear();
        self.busy[index].resize(life.map_or(0, |(_, pages)| pages as usize), 0);
        self.peers[index].clear();
        self.latest[index].clear();
        self.over[index] = 0;
        self.asked.retain(|(sink, _, _), _| *sink != worker);
        self.current.retain(|(sink, _), _| *sink != worker);
        self.taken.retain(|(source, _), _| *source != worker);
        self.newest.retain(|(source, _, _), _| *source != worker);
    }

    #[inline]
    pub(super) fn begin(&mut self) {
        (self.ack_due, self.copy, self.stray, self.landed) = (None, None, None, None);
    }

    /// A worker is told of the connection to a peer: nothing of another life of it can be written any more.
    pub(super) fn peer(&mut self, worker: u32, peer: u32, up: Option<Epoch>) {
        let latest = self.latest[worker as usize].entry(peer).or_default();
        if up.is_some_and(|up| up < *latest) {
            return;
        }
        *latest = up.unwrap_or(*latest);
        match up {
            Some(up) => _ = self.peers[worker as usize].insert(peer, up),
            None => _ = self.peers[worker as usize].remove(&peer),
        }
        let over = &mut self.over[worker as usize];
        self.asked.retain(|(sink, _, _), asked| {
            let stays = *sink != worker || asked.source != peer || up == Some(asked.source_epoch);
            *over -= u32::from(!stays && asked.is_over);
            stays
        });
        self.taken.retain(|(source, (sink, epoch, _)), _| *source != worker || *sink != peer || up == Some(*epoch));
    }

    /// A worker of life `own` gets a message. Returns the request that it is about.
    pub(super) fn received(&mut self, worker: u32, own: Epoch, from: u32, message: &Message) -> Option<RequestId> {
        let life = self.peers[worker as usize].get(&from).copied()?;
        match message {
            Message::Want(want) => {
                let key = (from, want.epoch, want.generation);
                let is_void = want.source != own || want.epoch != life;
                let newest = self.newest.entry((worker, from, life)).or_default();
                // Of another life its generation says nothing.
                if !is_void && want.generation <= *newest {
                    self.copy = Some(key);
                    return None;
                }
                if !is_void {
                    *newest = want.generation;
                }
                let taken = Taken {
                    request: want.request,
                    length: want.length,
                    have: want.have,
                    pages: want.pages.clone(),
                    in_flight: 0,
                    owes_ack: false,
                    is_void,
                };
                self.taken.insert((worker, key), taken);
                Some(want.request)
            }
            Message::Handoff(handoff) => {
                let current = self.current.get(&(worker, handoff.room)).copied();
                let key = (worker, handoff.epoch, handoff.generation);
                let is_alive = handoff.epoch == own && handoff.source == life;
                let fits =
                    |asked: &&Asked| asked.source == from && asked.source_epoch == handoff.source && !asked.is_over;
                if is_alive && current == Some(key) && self.asked.get(&key).filter(fits).is_some() {
                    self.landed = Some(key);
                } else {
                    let present = current.and_then(|key| self.asked.get(&key)).map(|asked| asked.request);
                    let checker = if is_alive { Checker::Handoff } else { Checker::Epoch };
                    self.stray = Some(Stray { requests: [Some(handoff.request), present], checker });
                }
                // A hand-off that crossed the sink's abort says as well that nothing is in flight.
                if is_alive && self.asked.get(&key).is_some_and(|asked| asked.is_over && asked.source == from) {
                    self.forget(key);
                }
                Some(handoff.request)
            }
            Message::Abort { generation, epoch, source, by, .. } => match by {
                End::Sink => {
                    let key = (from, *epoch, *generation);
                    if *source == own && *epoch == life {
                        if let Some(taken) = self.taken.get_mut(&(worker, key)) {
                            taken.owes_ack = true;
                        }
                        self.ack_due = Some(key);
                    }
                    None
                }
                End::Source => {
                    if *epoch == own && *source == life {
                        self.end((worker, *epoch, *generation), from, *source);
                    }
                    None
                }
            },
            Message::AbortAck { generation, epoch, source, .. } => {
                let key = (worker, *epoch, *generation);
                let is_ours = |asked: &Asked| asked.source == from && asked.source_epoch == *source;
                if *epoch == own && *source == life && self.asked.get(&key).is_some_and(is_ours) {
                    self.forget(key);
                }
                None
            }
            Message::Hello(hello) => {
                // Wants up to this one are of an earlier connection.
                if hello.epoch == life {
                    let newest = self.newest.entry((worker, from, life)).or_default();
                    *newest = hello.generation.max(*newest);
                }
                None
            }
            Message::Incompatible(_) | Message::Ping { .. } | Message::Pong { .. } => None,
        }
    }

    /// A worker sends a message.
    pub(super) fn sent(&mut self, log: &mut Log, worker: u32, to: u32, message: &Message, fabric: &mut Fabric) {
        match message {
            Message::Want(want) => {
                let about = About::leg(worker, want.request);
                let key = (worker, want.epoch, want.generation);
                self.uses(log, worker, want.pages.iter().copied(), "offers");
                // A hand-off ends its attempt, also one that offers what was not asked for.
                if let Some(former) = self.current.insert((worker, want.room), key)
                    && self.landed != Some(former)
                    && self.asked.get(&former).is_some_and(|asked| !asked.is_over)
                {
                    log.report(Checker::Handoff, about, "asks again while an attempt is open");
                }
                let asked = Asked {
                    room: want.room,
                    request: want.request,
                    source: to,
                    source_epoch: want.source,
                    pages: want.pages.clone(),
                    is_over: false,
                };
                if self.asked.insert(key, asked).is_some() {
                    log.report(Checker::Handoff, about, format!("gives generation {} twice", want.generation));
                }
            }
            Message::Handoff(handoff) => {
                let about = About::leg(worker, handoff.request);
                let key = (to, handoff.epoch, handoff.generation);
                let Some(taken) = self.taken.remove(&(worker, key)) else {
                    return log.report(Checker::Handoff, about, "hands over what nobody asked for, or twice");
                };
                if taken.is_void {
                    log.report(Checker::Epoch, about, "hands over to another life");
                }
                if taken.in_flight > 0 {
                    let what = format!("hands over while {} pushes are in flight", taken.in_flight);
                    log.report(Checker::Handoff, about, what);
                }
                let Taken { request, length, have, pages, .. } = &taken;
                if self.lives[to as usize] == Some(handoff.epoch)
                    && let Some(memory) = &mut fabric.memory
                {
                    memory.handed_over(log.now, to, *request, *length, *have, pages);
                }
            }
            Message::Abort { generation, epoch, source, by, reason, .. } => match by {
                End::Sink => self.end((worker, *epoch, *generation), to, *source),
                End::Source => {
                    let key = (to, *epoch, *generation);
                    if self.copy == Some(key) && matches!(reason, AbortReason::Duplicate | AbortReason::Unknown) {
                        log.report(Checker::Handoff, About::worker(worker), "takes a want twice");
                    }
                    if self.taken.get(&(worker, key)).is_some_and(|taken| taken.is_void) {
                        log.report(Checker::Epoch, About::worker(worker), "answers a want of another life");
                    }
                }
            },
            Message::AbortAck { generation, epoch, source, .. } => {
                let key = (to, *epoch, *generation);
                if self.ack_due == Some(key) {
                    self.ack_due = None;
                }
                if self.lives[worker as usize] == Some(*source)
                    && let Some(taken) = self.taken.remove(&(worker, key))
                    && taken.in_flight > 0
                {
                    let what = format!("says that nothing is in flight, and {} pushes are", taken.in_flight);
                    log.report(Checker::Handoff, About::leg(worker, taken.request), what);
                }
            }
            Message::Hello(_) | Message::Incompatible(_) | Message::Ping { .. } | Message::Pong { .. } => {}
        }
    }

    /// A push leaves.
    pub(super) fn pushed(&mut self, log: &mut Log, worker: u32, push: &Push) {
        let key = (push.to.0, push.epoch, push.generation);
        let about = About::worker(worker);
        match self.taken.get_mut(&(worker, key)) {
            None => log.report(Checker::Handoff, about, format!("pushes into {} unasked", push.to)),
            Some(taken) => {
                let about = About::leg(worker, taken.request);
                taken.in_flight += 1;
                if taken.is_void || self.peers[worker as usize].get(&push.to.0) != Some(&push.epoch) {
                    log.report(Checker::Epoch, about, format!("pushes into another life of {}", push.to));
                }
                if !is_part(&taken.pages, push) {
                    log.report(Checker::Handoff, about, "pushes into pages that were not offered");
                }
            }
        }
        if self.lives[push.to.0 as usize] != Some(push.epoch) {
            return;
        }
        let busy = &mut self.busy[push.to.0 as usize];
        for (_, page) in &push.pages {
            let Some(writers) = busy.get_mut(page.0 as usize) else {
                log.report(Checker::Handoff, about, format!("pushes into page {page}, which there is not"));
                continue;
            };
            *writers += 1;
            if *writers > 1 {
                log.report(Checker::Handoff, about, format!("pushes into page {page}, and another push does, too"));
            }
        }
    }

    /// A push has ended, or its source has.
    pub(super) fn push_ended(&mut self, worker: u32, push: &Push) {
        let key = (push.to.0, push.epoch, push.generation);
        if let Some(taken) = self.taken.get_mut(&(worker, key)) {
            taken.in_flight -= 1;
            if taken.owes_ack && taken.in_flight == 0 {
                self.ack_due = Some(key);
            }
        }
        if self.lives[push.to.0 as usize] == Some(push.epoch) {
            for (_, page) in &push.pages {
                if let Some(writers) = self.busy[push.to.0 as usize].get_mut(page.0 as usize) {
                    *writers -= 1;
                }
            }
        }
    }

    /// A worker tells the device of pages of sequences.
    pub(super) fn forward(&self, log: &mut Log, worker: u32, batch: &Batch) {
        for run in batch.runs().iter().filter(|run| run.pages_count() > 0) {
            self.uses(log, worker, batch.pages(run).iter().copied(), "computes over");
        }
    }

    /// A worker uses pages: none of them may be the destination of a push under way.
    pub(super) fn uses(&self, log: &mut Log, worker: u32, pages: impl Iterator<Item = GpuPage>, what: &str) {
        let busy = &self.busy[worker as usize];
        for page in pages {
            if busy.get(page.0 as usize).is_some_and(|writers| *writers > 0) {
                let what = format!("{what} page {page}, into which a push is under way");
                log.report(Checker::Handoff, About::worker(worker), what);
            }
        }
    }

    /// A worker tells a client something.
    #[inline]
    pub(super) fn emitted(&self, log: &mut Log, worker: u32, request: RequestId, event: &Event) {
        let Some(stray) = &self.stray else { return };
        // Not its admission: the pages that the stray gives back may be what its prompt waits for to be computed here.
        if matches!(event, Event::Token(_)) && stray.requests.contains(&Some(request)) {
            let what = "goes on after a hand-off that is not that of its attempt";
            log.report(stray.checker, About::leg(worker, request), what);
        }
    }

    /// A step of a worker is over; `holds` tells whether a page is not free.
    #[inline]
    pub(super) fn settle(&mut self, log: &mut Log, worker: u32, holds: impl Fn(GpuPage) -> bool) {
        if let Some(key) = self.ack_due.take() {
            let is_busy = self.taken.get(&(worker, key)).is_some_and(|taken| taken.in_flight > 0);
            if !is_busy && self.peers[worker as usize].get(&key.0) == Some(&key.1) {
                let what = format!("does not tell {} that nothing is in flight any more", key.0);
                log.report(Checker::Handoff, About::worker(worker), what);
            }
        }
        if let Some(key) = self.landed.take() {
            self.forget(key);
        }
        if self.over[worker as usize] == 0 {
            return;
        }
        let range = (worker, Epoch(0), Generation(0))..=(worker, Epoch(u32::MAX), Generation(u32::MAX));
        let is_lost = |asked: &Asked| asked.is_over && asked.pages.iter().any(|page| !holds(*page));
        let lost: Vec<Key> = self.asked.range(range).filter(|(_, asked)| is_lost(asked)).map(|(key, _)| *key).collect();
        for key in lost {
            let request = self.asked[&key].request;
            let what = "gives pages back that its prefill worker may still write";
            log.report(Checker::Handoff, About::leg(worker, request), what);
            self.forget(key);
        }
    }

    /// The router has decided.
    pub(super) fn routed(&mut self, log: &mut Log, outputs: &[RouterOutput]) {
        for output in outputs {
            if let RouterOutput::Route(route) = output
                && !self.rooms.insert(route.room)
            {
                let what = format!("is given room {}, which another one had", route.room);
                log.report(Checker::Handoff, About::request(route.request), what);
            }
        }
    }

    /// The attempt is over at its sink, and writes of it may still land.
    fn end(&mut self, key: Key, source: u32, source_epoch: Epoch) {
        let is_it = |asked: &&mut Asked| asked.source == source && asked.source_epoch == source_epoch && !asked.is_over;
        if let Some(asked) = self.asked.get_mut(&key).filter(is_it) {
            asked.is_over = true;
            self.over[key.0 as usize] += 1;
        }
    }

    /// No write of the attempt can land any more.
    fn forget(&mut self, key: Key) {
        if let Some(asked) = self.asked.remove(&key) {
            self.over[key.0 as usize] -= u32::from(asked.is_over);
            if self.current.get(&(key.0, asked.room)) == Some(&key) {
                self.current.remove(&(key.0, asked.room));
            }
        }
    }
}

/// True if a push goes into pages that were offered.
fn is_part(offered: &[GpuPage], push: &Push) -> bool {
    let Some((_, first)) = push.pages.first() else { return true };
    let Some(at) = offered.iter().position(|page| page == first) else { return false };
    let goes_on = offered[at..].iter().zip(&push.pages).take_while(|(page, (_, into))| *page == into).count();
    // What is pushed again after a fault need not be in one piece.
    goes_on == push.pages.len() || push.pages.iter().all(|(_, into)| offered.contains(into))
}

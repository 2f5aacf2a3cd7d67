//! The world: workers, router, clients and hardware in virtual time.
//!
//! Owns the loop and nothing else: what happens next is the earliest of the event queue, the links and the disks; ties
//! go to links, then disks, then the queue, where the earlier push wins. Each thing that a machine asks for is done by a
//! lane, posted to a peer or noted for a client.
//!
//! ```text
//!   loads --> client --Ask--> router --Route--> client --Submit--> worker --Start--> lanes
//!               ^---------------- Emit ---------------------------/    ^---- Done ----/
//! ```
//!
//! 1. Nothing iterates a hash map; nothing reads a clock; equal setups give equal hashes.
//! 2. A letter is for one life of its receiver; later lives never see it.
//! 3. At most one tick per worker is in the queue that has any effect.

mod checked;
mod client;
mod coast;
mod devices;
mod life;
mod look;
mod mail;
mod shell;
#[cfg(test)]
mod strays;
#[cfg(test)]
mod tests;
mod watch;

use pd_core::config::TransferBackend;
use pd_core::event::Event;
use pd_core::op::{Command, Input, Output};
use pd_core::router::RouterInput;
use pd_core::time::{Instant, nanos};
use pd_core::worker::Worker;

use self::client::Clients;
pub(crate) use self::coast::Coasting;
use self::shell::{RouterNode, note_at};
use crate::check::Checks;
use crate::disk::{Disk, JobId};
use crate::fault::{Class, Faults, ROUTER};
use crate::lane::{Depot, Fabric, LaneSpec, Letter, Mark, Place, Way, WireEnd};
use crate::link::{FlowId, LinkId};
use crate::memory::Memory;
use crate::node::{Node, Serve};
use crate::observe::Observer;
use crate::record::{Idle, Outcome, StoreRecord};
use crate::setup::{Action, LinkSetup, Setup, WorkerSetup};
use crate::store::Store;

/// A deployment of real workers and its clients.
pub type World = WorldOf<Worker>;

/// A deployment and its clients.
#[derive(Debug)]
pub struct WorldOf<M: Serve> {
    pub(crate) now: Instant,
    events: u64,
    pub(crate) nodes: Vec<Node<M>>,
    pub(crate) fabric: Fabric,
    pub(crate) router: Option<RouterNode>,
    pub(crate) clients: Clients,
    pub(crate) script: Vec<(Instant, Action)>,
    /// The state of the faults that last.
    pub(crate) faults: Faults,
    /// Names of links, for the script.
    pub(crate) link_names: Vec<String>,
    /// When the first life of each worker begins.
    starts: Vec<Instant>,
    pub(crate) rng: pd_core::rng::Rng,
    until: Option<Instant>,
    linger_ns: u64,
    report_ns: u64,
    /// Nobody wants to see single steps.
    may_coast: bool,
    /// The step just taken did nothing but hand on tokens and start a forward.
    is_plain: bool,
    is_over: bool,
    lost_letters: u64,
    pub(crate) checks: Option<Box<Checks>>,
    observers: Vec<Box<dyn Observer>>,
    flows_done: Vec<FlowId>,
    jobs_done: Vec<JobId>,
    /// The earliest that any disk wants.
    pub(crate) disks_next: Option<Instant>,
}

impl<M: Serve> WorldOf<M> {
    /// Puts everything in place; time has not begun.
    ///
    /// # Panics
    /// If the setup makes no sense: ids that do not count from 0, a store that is not there, no router and not exactly
    /// one worker, a router configuration out of range.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        assert!(setup.router.is_some() || setup.workers.len() == 1, "only a single worker does without a router");
        let checks = setup.check.then(|| Box::new(Checks::new(&setup)));
        let mut fabric = Fabric::new(setup.answers.clone());
        let mut link_names = Vec::new();
        for store in &setup.stores {
            let disk = Disk::new(store.disk);
            fabric.depots.push(Depot::new(store.name.clone(), disk, Store::new(store.bytes_max), store.query_ns));
        }
        // A fake hand-off moves nothing: there is no content to check.
        let is_fake = |worker: &WorkerSetup| worker.config.transfer.backend == TransferBackend::Fake;
        if setup.check && !setup.workers.iter().any(is_fake) {
            fabric.memory = Some(Memory::new(setup.answers.clone()));
        }
        let mut nodes: Vec<Node<M>> = Vec::new();
        let count = setup.workers.len();
        let starts = setup.workers.iter().map(|worker| worker.start).collect();
        let asks_registry =
            |(_, action): &(Instant, Action)| matches!(action, Action::BootstrapLate(_) | Action::BootstrapRestart(_));
        let faults = Faults::new(setup.seed, setup.script.iter().any(asks_registry));
        for (index, worker) in (0_u32..).zip(setup.workers) {
            assert!(worker.config.worker.0 == index, "worker {} is at place {index}", worker.config.worker);
            assert!(worker.layers > 0, "a model has layers");
            assert!(worker.store.is_none_or(|store| (store as usize) < fabric.depots.len()), "there is such a store");
            let mut path = |links: &[LinkSetup]| fabric.path(&mut link_names, links);
            let near = Way { out: path(&worker.near.out), into: path(&worker.near.into), cost: worker.near.cost };
            let far = Way { out: path(&worker.far.out), into: path(&worker.far.into), cost: worker.far.cost };
            let spec = LaneSpec {
                node: index,
                cost: worker.cost.clone(),
                step: worker.step,
                layers: u64::from(worker.layers),
                page_bytes: worker.config.kv.page_bytes,
                copy_in: (path(&worker.copy_in.links), worker.copy_in.cost),
                copy_out: (path(&worker.copy_out.links), worker.copy_out.cost),
                store: worker.store,
                root: worker.config.kv.root,
            };
            fabric.wires.push(WireEnd { host: worker.host, near, far });
            fabric.lives.push(None);
            nodes.push(Node::new(worker.config, worker.cost, spec, worker.control_latency_ns, count));
        }
        let router = setup.router.map(|(config, cost)| RouterNode::new(config, cost, setup.router_latency_ns));
        Self {
            now: Instant::ZERO,
            events: 0,
            nodes,
            fabric,
            clients: Clients::new(setup.loads, setup.answers, router.is_some()),
            router,
            script: setup.script,
            faults,
            link_names,
            starts,
            rng: pd_core::rng::Rng::new(setup.seed, pd_core::rng::Stream::Fault, 0),
            until: setup.until,
            linger_ns: nanos(setup.linger),
            report_ns: nanos(setup.load_report),
            may_coast: false,
            is_plain: false,
            is_over: false,
            lost_letters: 0,
            checks,
            observers: Vec::new(),
            flows_done: Vec::new(),
            jobs_done: Vec::new(),
            disks_next: None,
        }
    }

    /// Runs until all requests have ended (and for the time of lingering), or `until`.
    #[must_use]
    pub fn run(&mut self) -> Outcome {
        self.run_with(&mut |_, _, _| {})
    }

    /// Like [`run`](Self::run), and tells from time to time how many requests have ended, of how many that are known,
    /// and what time it is in there.
    #[must_use]
    pub fn run_with(&mut self, progress: &mut dyn FnMut(u64, u64, Instant)) -> Outcome {
        let is_calm = self.script.iter().all(|(_, action)| action.is_between_steps());
        self.may_coast = is_calm && self.checks.is_none() && self.observers.is_empty();
        self.begin();
        while self.turn() {
            if self.events.is_multiple_of(EVENTS_PER_REPORT) {
                let (ended, known) = self.clients.progress();
                progress(ended, known, self.now);
            }
        }
        self.finish()
    }

    /// Starts all workers and puts the script and the first arrivals into the queue.
    pub fn begin(&mut self) {
        self.tell_router();
        for node in 0..self.nodes.len() as u32 {
            let (at, epoch) = (self.starts[node as usize], self.nodes[node as usize].config.epoch);
            if at > Instant::ZERO {
                self.fabric.heap.push(at, Mark::Start { node, epoch });
            } else {
                self.start(node);
            }
        }
        for (index, (at, action)) in (0..).zip(&self.script) {
            self.fabric.heap.push(*at, Mark::Script { index });
            if let Some(request) = action.pages_of() {
                self.clients.keep(request);
            }
        }
        if self.report_ns > 0 && self.router.is_some() {
            self.fabric.heap.push(Instant(self.report_ns), Mark::Report);
        }
        self.arm_arrival();
        self.end_if_idle();
    }

    /// Handles what is next; false at the end.
    pub fn turn(&mut self) -> bool {
        if std::mem::take(&mut self.fabric.has_disk_jobs) {
            self.disks_next = self.fabric.depots.iter().filter_map(|depot| depot.disk.next()).min();
        }
        let links = self.fabric.links.next();
        let disks = self.disks_next;
        let queue = self.fabric.heap.peek_time();
        let earlier = |one: Option<Instant>, other: Option<Instant>| match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let Some(at) = earlier(earlier(links, disks), queue)
            .filter(|at| !self.is_over && self.until.is_none_or(|until| *at <= until))
        else {
            return false;
        };
        assert!(at >= self.now, "time does not go back from {} to {at}", self.now);
        self.now = at;
        self.events += 1;
        if links == Some(at) {
            self.advance_links();
        } else if disks == Some(at) {
            self.advance_disks();
        } else {
            let (_, mark) = self.fabric.heap.pop().expect("the queue has an event");
            self.handle(mark);
        }
        true
    }

    /// The present.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// A worker's machine; none while it is down.
    #[must_use]
    pub fn machine(&self, node: u32) -> Option<&M> {
        self.nodes[node as usize].pump.as_ref().map(|pump| &pump.machine)
    }

    /// Ends the run and adds up.
    #[must_use]
    pub fn finish(&mut self) -> Outcome {
        self.now = self.land_all(self.until.unwrap_or(self.now));
        let mut violations = self.end_checks();
        let workers: Vec<_> = std::mem::take(&mut self.nodes).into_iter().map(Node::into_record).collect();
        let Self { now, fabric, clients, .. } = self;
        let now = *now;
        if let Some(memory) = &fabric.memory {
            violations.extend_from_slice(memory.violations());
        }
        violations.sort_by_key(|violation| violation.at);
        let links = (0..fabric.links.links_count()).map(LinkId);
        let links = links.map(|id| (fabric.links.name(id).to_owned(), fabric.links.link_use(now, id))).collect();
        let stores = fabric.depots.iter().map(|depot| StoreRecord {
            name: depot.name.clone(),
            disk: depot.disk.disk_use(),
            objects: depot.store.count(),
            bytes: depot.store.bytes(),
        });
        let stores = stores.collect();
        Outcome {
            ended: now,
            events: self.events,
            hash: Outcome::fold(&workers, &clients.records, &violations, now),
            requests: std::mem::take(&mut clients.records),
            itl: std::mem::take(&mut clients.itl),
            workers,
            router: self.router.as_ref().map(RouterNode::metrics),
            idle: (0..)
                .zip(&self.script)
                .filter(|(line, _)| fabric.hits.of(*line) == 0)
                .map(|(_, (at, action))| Idle { at: *at, what: action.name() })
                .collect(),
            stores,
            transfers: std::mem::take(&mut fabric.transfers),
            links,
            violations,
            lost_letters: self.lost_letters,
        }
    }

    #[inline]
    fn handle(&mut self, mark: Mark) {
        match mark {
            Mark::Forward(place) => self.end_forward(place),
            Mark::Coast { node, plan } => self.end_coast(node, plan),
            Mark::Timer(place) => {
                self.land(place.node);
                let node = &mut self.nodes[place.node as usize];
                if node.config.epoch == place.epoch && node.pump.is_some() {
                    node.lanes.on_timer(self.now, place.seq, &mut self.fabric);
                    self.drain(place.node);
                }
            }
            Mark::Tick { node } => self.tick(node),
            Mark::Letter(letter) => self.deliver(*letter),
            Mark::Note(input) => self.take_note(input),
            Mark::RouterTick => self.tick_router(),
            Mark::Arrival => self.arrive(),
            Mark::Report => self.report_loads(),
            Mark::Script { index } => self.act(index),
            Mark::Over { line } => self.script[line as usize].1.clone().end(self, line),
            Mark::Again { line, turn } => self.script[line as usize].1.clone().again(self, line, turn),
            Mark::Register { node, epoch } => self.register(node, epoch),
            Mark::Emit { node, epoch, request, event } => self.emit(node, epoch, request, *event),
            Mark::Start { node, epoch } => {
                if self.nodes[node as usize].config.epoch == epoch {
                    self.start(node);
                }
            }
            Mark::Stop => self.is_over = self.clients.is_idle(),
        }
    }

    /// A forward has ended.
    fn end_forward(&mut self, place: Place) {
        let node = &mut self.nodes[place.node as usize];
        if node.config.epoch != place.epoch || node.pump.is_none() {
            return;
        }
        if node.coasting.is_on() {
            // Set before the plan that covers it.
            self.events -= 1;
            return;
        }
        self.is_plain = false;
        node.lanes.on_timer(self.now, place.seq, &mut self.fabric);
        self.drain(place.node);
        if self.may_coast && self.is_plain {
            self.take_off(place.node);
        }
    }

    /// Feeds one input to a worker and carries out what it asks for.
    pub(crate) fn feed(&mut self, node: u32, input: Input) {
        self.step(node, input);
        self.drain(node);
    }

    /// Tells a worker about all commands that have ended.
    #[inline]
    pub(crate) fn drain(&mut self, node: u32) {
        while let Some((op, outcome)) = self.nodes[node as usize].lanes.finished() {
            self.tell_activities();
            self.step(node, Input::Done { op, outcome });
        }
        self.arm_tick(node);
    }

    fn step(&mut self, index: u32, input: Input) {
        let now = self.now;
        let there = self.nodes[index as usize].tell_time(now);
        let Node { pump: Some(pump), lanes, seen, latency_ns, config, .. } = &mut self.nodes[index as usize] else {
            return;
        };
        let mut has_ended = false;
        // Whether all messages take their usual way; if not, each is looked at.
        let is_quiet = self.faults.post.is_quiet(now);
        if let Some(checks) = &mut self.checks {
            checks.before(now, there, index, &input, &self.fabric);
        }
        if self.observers.is_empty() {
            pump.step(there, input);
        } else {
            let told = input.clone();
            for observer in &mut self.observers {
                if let Some(worker) = pump.machine.as_worker() {
                    observer.before_worker(now, index, &told, worker);
                }
            }
            pump.step(there, input);
            for observer in &mut self.observers {
                observer.on_worker(now, index, &told, pump.outputs());
                if let Some(worker) = pump.machine.as_worker() {
                    observer.after_worker(now, index, worker);
                }
            }
            let gauge = pump.machine.gauge();
            for observer in &mut self.observers {
                observer.on_gauge(now, index, &gauge);
            }
        }
        let mut forwards = 0;
        let mut others = 0;
        if let Some(checks) = &mut self.checks {
            checks.after(index, pump.outputs(), &pump.machine, lanes, &mut self.fabric);
        }
        for output in pump.drain() {
            match &output {
                Output::Start { command: Command::Forward(_), .. } => forwards += 1,
                Output::Emit { event: Event::Token(_), .. } => {}
                Output::Start { .. } | Output::Emit { .. } | Output::Send { .. } | Output::Publish(_) => others += 1,
            }
            match output {
                Output::Start { op, after, command } => {
                    let peer = if let Command::Push(push) = &command { Some(push.to.0) } else { None };
                    lanes.start(now, op, &after, command, &mut self.fabric);
                    // A push over a connection that has broken, of which the worker has not heard so far.
                    if let Some(to) = peer
                        && seen[to as usize].is_some_and(|(_, number)| number != self.faults.wires.number(index, to))
                    {
                        lanes.revoke(now, to, &mut self.fabric);
                    }
                }
                Output::Emit { request, event } if !is_quiet => {
                    let at = self.faults.post.fate(now, index, ROUTER, Class::Stream, &mut self.fabric.hits).at;
                    let event = Box::new(event);
                    let mark = Mark::Emit { node: index, epoch: config.epoch, request, event };
                    self.fabric.heap.push(at.unwrap_or(now), mark);
                }
                Output::Emit { request, event } => {
                    let note = self.clients.on_event(now, index, request, event);
                    has_ended |= self.clients.has_ended();
                    if let (Some(note), Some(router)) = (note, &self.router) {
                        self.fabric.heap.push(now.after_ns(router.latency_ns), Mark::Note(Box::new(note)));
                    }
                }
                Output::Send { to, message } => match seen.get(to.0 as usize).copied().flatten() {
                    Some((epoch, number)) => {
                        let input = Input::Recv { from: config.worker, message };
                        let letter = Letter { to: to.0, epoch, sender: Some((config.epoch, number)), input };
                        let at = now.after_ns(*latency_ns);
                        let is_sent = mail::send(&mut self.faults, &mut self.fabric, at, index, letter);
                        self.lost_letters += u64::from(!is_sent);
                    }
                    None => self.lost_letters += 1,
                },
                Output::Publish(changes) => {
                    if let Some(router) = &self.router {
                        let note = RouterInput::Changes { worker: config.worker, changes };
                        let at = now.after_ns(router.latency_ns);
                        note_at(&mut self.faults, &mut self.fabric, at, note);
                    }
                }
            }
        }
        self.is_plain = forwards == 1 && others == 0;
        if has_ended {
            self.tell_ends();
            self.arm_arrival();
            self.end_if_idle();
        }
    }

    /// Sees to it that a tick comes when the machine wants one.
    #[inline]
    pub(crate) fn arm_tick(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        let at = node.tick_due().map(|(at, _)| at.max(self.now));
        if let Some(checks) = &mut self.checks {
            checks.expect_tick(index, at);
        }
        let Some(at) = at else { return };
        if node.tick_at.is_none_or(|tick_at| at < tick_at) {
            node.tick_at = Some(at);
            self.fabric.heap.push(at, Mark::Tick { node: index });
        }
    }

    fn tick(&mut self, index: u32) {
        self.land(index);
        let node = &mut self.nodes[index as usize];
        if node.tick_at != Some(self.now) {
            return;
        }
        node.tick_at = None;
        let Some((at, why)) = node.tick_due() else { return };
        if at > self.now {
            self.arm_tick(index);
            return;
        }
        self.feed(index, Input::Tick);
        let node = &mut self.nodes[index as usize];
        node.ticks = if node.tick_at == Some(self.now) { node.ticks + 1 } else { 0 };
        assert!(node.ticks < TICKS_MAX, "worker {index} at {} asks for ticks without end: {why}", self.now);
    }
}

/// Events between two calls of a progress report.
const EVENTS_PER_REPORT: u64 = 65_536;
/// Ticks in a row at one instant beyond which a machine counts as stuck.
const TICKS_MAX: u32 = 1_000_000;

//! The checkers: what must never happen, noticed in the step in which it does.
//!
//! A world with `check` tells them of every input and every output of each worker and of the router, and of lives. They
//! keep books of their own, made from what can be seen from outside, and hold the machines against them. They change
//! nothing: a run with checkers has the hash of the run without.
//!
//! | checker | says that |
//! |---|---|
//! | content | a page is read, copied, pushed or stored as something that it is not; lives in `memory` |
//! | conservation | pages, objects of L3 or copies that are not written down are lost, or are there twice |
//! | lifecycle | a client is told something wrong, twice, in the wrong order or too late |
//! | handoff | two workers own a request, or a write can land in pages that are somebody else's |
//! | progress | a request waits for nothing that can happen |
//! | epoch | something of an earlier life or attempt has an effect |
//! | work | the device idles while a request could run |
//! | time | time goes back, or a deadline passes unnoticed |
//!
//! Work per step is in proportion to the step, not to the state. Recounts of all state (`Machine::check`) are spaced; see
//! [`Recounts`]. Checkers know nothing of the faults that a script or a swarm injects, and need not: every rule is about
//! what a worker does with what it was told.

mod conservation;
mod epoch;
mod handoff;
mod lifecycle;
mod progress;
mod recount;
#[cfg(test)]
mod tests;
mod time;

use std::collections::BTreeMap;
use std::fmt;

use pd_core::config::{TransferBackend, WorkerConfig};
use pd_core::event::Event;
use pd_core::id::{Epoch, PageKey, RequestId};
use pd_core::message::Message;
use pd_core::op::{Command, Input, Outcome, Output, Push};
use pd_core::router::{RouterInput, RouterOutput};
use pd_core::time::Instant;
use pd_core::worker::Waits;

use self::conservation::Conservation;
use self::epoch::Epochs;
use self::handoff::Handoffs;
use self::lifecycle::Lifecycle;
use self::progress::Progress;
pub use self::recount::Recounts;
use self::time::Time;
use crate::lane::{Fabric, Lanes};
use crate::node::Serve;
use crate::setup::Setup;

/// Who noticed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Checker {
    /// What pages hold.
    Content,
    /// Nothing is lost and nothing is there twice.
    Conservation,
    /// What clients are told.
    Lifecycle,
    /// Who owns a request and who may write where.
    Handoff,
    /// Everybody waits for something that can happen.
    Progress,
    /// Lives and attempts.
    Epoch,
    /// The device works if it can.
    Work,
    /// Deadlines.
    Time,
}

/// Something that must never happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Who noticed.
    pub checker: Checker,
    /// When.
    pub at: Instant,
    /// Index of the worker; none for the router and for clients.
    pub worker: Option<u32>,
    /// Whose request, if one is concerned.
    pub request: Option<RequestId>,
    /// Page of the sequence or, without a request, of the pool.
    pub page: Option<u32>,
    /// What is wrong.
    pub what: String,
}

impl Checker {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Content,
        Self::Conservation,
        Self::Lifecycle,
        Self::Handoff,
        Self::Progress,
        Self::Epoch,
        Self::Work,
        Self::Time,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Conservation => "conservation",
            Self::Lifecycle => "lifecycle",
            Self::Handoff => "handoff",
            Self::Progress => "progress",
            Self::Epoch => "epoch",
            Self::Work => "work",
            Self::Time => "time",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.checker.name(), self.at)?;
        if let Some(worker) = self.worker {
            write!(f, ", worker {worker}")?;
        }
        if let Some(request) = self.request {
            write!(f, ", request {request}")?;
        }
        if let Some(page) = self.page {
            write!(f, ", page {page}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Violations kept; the first ones are those that tell.
const VIOLATIONS_MAX: usize = 1000;

/// What was found so far.
#[derive(Debug, Default)]
pub(crate) struct Log {
    now: Instant,
    violations: Vec<Violation>,
}

/// About whom something is found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About {
    worker: Option<u32>,
    request: Option<RequestId>,
}

impl About {
    const fn worker(worker: u32) -> Self {
        Self { worker: Some(worker), request: None }
    }

    const fn leg(worker: u32, request: RequestId) -> Self {
        Self { worker: Some(worker), request: Some(request) }
    }

    const fn request(request: RequestId) -> Self {
        Self { worker: None, request: Some(request) }
    }
}

impl Log {
    fn report(&mut self, checker: Checker, about: About, what: impl Into<String>) {
        if self.violations.len() < VIOLATIONS_MAX {
            let About { worker, request } = about;
            self.violations.push(Violation { checker, at: self.now, worker, request, page: None, what: what.into() });
        }
    }
}

/// What checkers have to know of a worker.
#[derive(Debug)]
struct Watched {
    config: WorkerConfig,
    /// The namespace of each of its lives.
    roots: BTreeMap<Epoch, PageKey>,
    /// Commands in flight, by number.
    ops: BTreeMap<u64, Flying>,
    forwards: u32,
    recounts: Recounts,
}

/// A command in flight, as far as a checker is interested in its end.
#[derive(Debug)]
enum Flying {
    Forward,
    Push(Box<Push>),
    Storage(Command),
    Other,
}

/// All checkers of a world.
#[derive(Debug)]
pub(crate) struct Checks {
    log: Log,
    workers: Vec<Watched>,
    conservation: Conservation,
    lifecycle: Lifecycle,
    handoff: Handoffs,
    epoch: Epochs,
    progress: Progress,
    time: Time,
    /// The request that the present input is about.
    touched: Option<RequestId>,
}

impl Checks {
    /// Nothing has happened yet.
    pub(crate) fn new(setup: &Setup) -> Self {
        let configs = || setup.workers.iter().map(|worker| &worker.config);
        let is_fake = configs().any(|config| config.transfer.backend == TransferBackend::Fake);
        let count = setup.workers.len();
        let watched = |config: &WorkerConfig| Watched {
            config: config.clone(),
            roots: BTreeMap::from([(config.epoch, config.kv.root)]),
            ops: BTreeMap::new(),
            forwards: 0,
            recounts: Recounts::new(&config.kv),
        };
        Self {
            log: Log::default(),
            workers: configs().map(watched).collect(),
            conservation: Conservation::new(count),
            lifecycle: Lifecycle::new(count, !is_fake),
            handoff: Handoffs::new(count),
            epoch: Epochs::default(),
            progress: Progress::new(count),
            time: Time::new(count),
            touched: None,
        }
    }

    /// When a worker is to get its next tick, in the time of the world.
    #[inline]
    pub(crate) fn expect_tick(&mut self, worker: u32, due: Option<Instant>) {
        self.time.expect_tick(worker, due);
    }

    /// The router begins a new life and has forgotten everything.
    pub(crate) fn on_router_life(&mut self) {
        self.epoch = Epochs::default();
        self.lifecycle.on_router_life();
    }

    /// What was found, in order of time.
    pub(crate) fn into_violations(self) -> Vec<Violation> {
        self.log.violations
    }

    /// A worker begins a life with this configuration, or ends one.
    pub(crate) fn on_life(&mut self, now: Instant, worker: u32, config: Option<&WorkerConfig>) {
        self.log.now = now;
        let watched = &mut self.workers[worker as usize];
        for flying in std::mem::take(&mut watched.ops).into_values() {
            if let Flying::Push(push) = flying {
                self.handoff.push_ended(worker, &push);
            }
        }
        watched.forwards = 0;
        self.conservation.on_life(worker);
        self.lifecycle.on_life(worker);
        self.handoff.on_life(worker, config.map(|config| (config.epoch, config.kv.gpu_pages)));
        self.progress.on_life(worker);
        self.time.on_life(worker);
        if let Some(config) = config {
            self.epoch.on_life(&mut self.log, worker, watched.config.epoch, config.epoch, watched.recounts.steps() > 0);
            watched.recounts = Recounts::new(&config.kv);
            watched.roots.insert(config.epoch, config.kv.root);
            watched.config = config.clone();
        }
    }

    /// A worker is about to take an input; its own clock shows `there`.
    pub(crate) fn before(&mut self, now: Instant, there: Instant, worker: u32, input: &Input, fabric: &Fabric) {
        let log = &mut self.log;
        self.time.on_event(log, now, worker);
        let there = self.time.shows(worker, there);
        log.now = now;
        self.touched = None;
        self.handoff.begin();
        self.lifecycle.begin();
        match input {
            Input::Tick => self.progress.on_tick(log, now, worker),
            Input::Submit(submit) => {
                self.touched = Some(submit.request);
                let deadline =
                    self.lifecycle.submit(log, there, worker, submit, fabric, &self.workers[worker as usize].config);
                if let Some(deadline) = deadline {
                    self.time.expect_end(deadline, worker, submit.request);
                }
            }
            Input::Cancel { request } => {
                self.touched = Some(*request);
                self.lifecycle.cancel(worker, *request);
            }
            Input::Peer { id, up } => self.handoff.peer(worker, id.0, *up),
            Input::Recv { from, message } => {
                let epoch = self.workers[worker as usize].config.epoch;
                self.touched = self.handoff.received(worker, epoch, from.0, message);
                // A copy, or one of an earlier connection, asks for nothing.
                if let Message::Want(want) = message
                    && want.prompt.is_some()
                    && self.touched.is_some()
                {
                    self.lifecycle.asked(worker, want);
                }
            }
            Input::Done { op, outcome } => self.done(worker, op.epoch, op.seq, outcome),
            Input::Control(control) => self.conservation.control(worker, *control),
        }
    }

    fn done(&mut self, worker: u32, epoch: Epoch, seq: u64, outcome: &Outcome) {
        let watched = &mut self.workers[worker as usize];
        if epoch != watched.config.epoch {
            return;
        }
        match watched.ops.remove(&seq) {
            Some(Flying::Forward) => {
                watched.forwards -= 1;
                self.progress.on_forward(worker, !matches!(outcome, Outcome::Failed(_)));
            }
            Some(Flying::Push(push)) => self.handoff.push_ended(worker, &push),
            Some(Flying::Storage(command)) => self.conservation.storage_ended(worker, &command, outcome),
            Some(Flying::Other) => {}
            None => {
                self.log.report(Checker::Conservation, About::worker(worker), format!("command {seq} has ended twice"))
            }
        }
    }

    /// A worker has taken the input and asks for these outputs.
    pub(crate) fn after<M: Serve>(
        &mut self,
        worker: u32,
        outputs: &[Output],
        machine: &M,
        lanes: &Lanes,
        fabric: &mut Fabric,
    ) {
        for output in outputs {
            match output {
                Output::Start { op, after: _, command } => {
                    if let (Command::Forward(batch), Some(memory)) = (command, &mut fabric.memory) {
                        for run in batch.runs().iter().filter(|run| run.table_from == 0) {
                            memory.begin(worker, run.request, lanes.names(run.request));
                        }
                    }
                    self.started(worker, op.epoch, op.seq, command);
                }
                Output::Send { to, message } => {
                    let sender = &self.workers[worker as usize].config;
                    self.epoch.sent(&mut self.log, worker, sender.epoch, message);
                    self.handoff.sent(&mut self.log, worker, to.0, message, fabric);
                }
                Output::Emit { request, event } => {
                    self.progress.on_event(worker, event);
                    self.handoff.emitted(&mut self.log, worker, *request, event);
                    let is_last = self.lifecycle.event(&mut self.log, worker, *request, event, fabric);
                    if is_last {
                        self.time.over(worker, *request);
                    }
                    if (is_last || matches!(event, Event::Retracted))
                        && let Some(memory) = &mut fabric.memory
                    {
                        memory.forget(worker, *request, lanes.names(*request));
                    }
                }
                Output::Publish(changes) => {
                    let watched = &self.workers[worker as usize];
                    self.conservation.changed(&mut self.log, worker, &watched.config.kv, changes, machine.metrics());
                }
            }
        }
        self.settle(worker, outputs, machine);
    }

    fn started(&mut self, worker: u32, epoch: Epoch, seq: u64, command: &Command) {
        let watched = &mut self.workers[worker as usize];
        let log = &mut self.log;
        self.epoch.started(log, worker, watched.config.epoch, epoch);
        let flying = match command {
            Command::Forward(batch) => {
                watched.forwards += 1;
                self.handoff.forward(log, worker, batch);
                Flying::Forward
            }
            Command::LoadBack(pages) => {
                self.handoff.uses(log, worker, pages.iter().map(|(_, gpu)| *gpu), "loads back into");
                Flying::Other
            }
            Command::Backup(pages) => {
                self.handoff.uses(log, worker, pages.iter().map(|(gpu, _)| *gpu), "copies from");
                Flying::Other
            }
            Command::Push(push) => {
                // A push names the life that leased the pages, and lands in no other; its source may not have heard yet
                // that there is a next one.
                let own = self.workers[worker as usize].config.kv.root;
                if self.workers[push.to.0 as usize].roots.get(&push.epoch).is_some_and(|root| *root != own) {
                    log.report(Checker::Content, About::worker(worker), "pushes KV to a worker of another namespace");
                }
                self.handoff.pushed(log, worker, push);
                Flying::Push(push.clone())
            }
            Command::Query(_)
            | Command::Prefetch(_)
            | Command::Persist(_)
            | Command::Discard(_)
            | Command::Scan { .. }
            | Command::Wipe => {
                self.conservation.storage_started(log, worker, command);
                Flying::Storage(command.clone())
            }
            Command::Touch(_) => Flying::Other,
        };
        self.workers[worker as usize].ops.insert(seq, flying);
    }

    /// What must hold between two steps of a worker.
    fn settle<M: Serve>(&mut self, worker: u32, outputs: &[Output], machine: &M) {
        let log = &mut self.log;
        let deadline = machine.deadline();
        self.time.settle(log, worker);
        self.lifecycle.settle(log, worker, |request| machine.waits(request).is_some());
        self.handoff.settle(log, worker, |page| machine.holds(page));
        let Some(census) = machine.census() else { return };
        let watched = &mut self.workers[worker as usize];
        let has_deadline = deadline.is_some();
        if watched.forwards == 0
            && census.requests > 0
            && let Some(request) = machine.runnable()
        {
            log.report(Checker::Work, About::leg(worker, request), "could run, and the device idles");
        }
        if watched.ops.len() != census.ops as usize {
            let what = format!("{} commands are in flight and {} are accounted for", watched.ops.len(), census.ops);
            log.report(Checker::Conservation, About::worker(worker), what);
        }
        self.lifecycle.count(log, worker, census.requests);
        let is_at_rest = census.requests == 0 && census.ops == 0 && !has_deadline;
        self.conservation.settle(log, worker, &census, is_at_rest);
        self.progress.settle(log, worker, &watched.config, &census, has_deadline, outputs.is_empty());
        if let Some(request) = self.touched {
            self.progress.waits(log, worker, request, machine.waits(request));
        }
        if watched.recounts.is_due() {
            let is_rare = watched.recounts.is_rare();
            self.recount(worker, machine, is_rare);
        }
    }

    /// Looks at all of a worker's state, and at what it knows of L3.
    fn recount<M: Serve>(&mut self, worker: u32, machine: &M, with_storage: bool) {
        machine.check();
        if with_storage {
            self.conservation.believes(&mut self.log, worker, &machine.stored_keys());
        }
        for request in self.lifecycle.open(worker) {
            self.progress.waits(&mut self.log, worker, request, machine.waits(request));
        }
    }

    /// The router has taken an input and asks for these outputs.
    pub(crate) fn on_router(&mut self, now: Instant, input: &RouterInput, outputs: &[RouterOutput]) {
        self.time.router(&mut self.log, now);
        self.log.now = now;
        self.epoch.routed(&mut self.log, input, outputs);
        self.lifecycle.routed(&mut self.log, input, outputs);
        self.handoff.routed(&mut self.log, outputs);
    }

    /// The run is over for a worker that is up.
    pub(crate) fn on_end<M: Serve>(&mut self, now: Instant, worker: u32, machine: &M) {
        self.time.on_event(&mut self.log, now, worker);
        self.log.now = now;
        self.recount(worker, machine, true);
        let Some(census) = machine.census() else { return };
        if census.requests == 0 && census.ops == 0 && machine.deadline().is_none() {
            machine.check_rest();
        }
    }

    /// The run is over, not because its time was, and a request has not ended.
    pub(crate) fn unfinished(&mut self, request: RequestId, where_: &[(u32, Option<Waits>)]) {
        self.progress.unfinished(&mut self.log, request, where_);
    }
}

//! Who watches a run: what each machine was told and what it asked for, and what happened to it.
//!
//! Observers see values and cannot change anything: a run with observers has the hash of the run without. They are told
//! after a step and before its outputs are carried out. What lanes and links tell (activities, rates, gauges) is gathered
//! only while somebody watches.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use pd_core::config::WorkerConfig;
use pd_core::cost::Cost;
use pd_core::id::{Epoch, OpId, RequestId};
use pd_core::kv::Occupancy;
use pd_core::op::{Input, LaneKind, Output};
use pd_core::router::{Router, RouterConfig, RouterInput, RouterOutput};
use pd_core::time::Instant;
use pd_core::worker::Worker;

use crate::record::Record;
use crate::setup::Action;

/// When a command was on its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Activity {
    /// Index of the worker.
    pub worker: u32,
    /// The command; what it was to do is in the [`Output::Start`] of this name.
    pub op: OpId,
    /// The lane.
    pub lane: LaneKind,
    /// Bytes of one page in this life of the worker.
    pub page_bytes: u64,
    /// When the device began with it: the GPU, the copy engine, the disk, the wire. None if it never came to that.
    pub began: Option<Instant>,
    /// When it ended.
    pub ended: Instant,
    /// How.
    pub ending: Ending,
}

/// How a command ended on its device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ending {
    /// All of it was carried out.
    Done,
    /// A part of it failed.
    Partly,
    /// It failed.
    Failed,
    /// The life that asked for it ended before it.
    Cut,
}

/// How full and how busy a worker is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gauge {
    /// Its tiers.
    pub pages: Occupancy,
    /// Requests that are admitted.
    pub running: u32,
    /// Requests that are not admitted.
    pub waiting: u32,
}

/// How fast a link carries from an instant on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkRate {
    /// Index of the link, as in [`crate::record::Outcome::links`].
    pub link: u32,
    /// All flows on it together.
    pub bytes_per_second: u64,
    /// What it could carry.
    pub capacity: u64,
}

/// Watches a world.
pub trait Observer: fmt::Debug {
    /// A client has sent a request.
    fn on_arrival(&mut self, now: Instant, request: RequestId, record: &Record) {
        let _ = (now, request, record);
    }
    /// A client has its whole answer, or knows that it will not get it.
    fn on_end(&mut self, now: Instant, request: RequestId, record: &Record) {
        let _ = (now, request, record);
    }
    /// A worker took an input and asks for these outputs.
    fn on_worker(&mut self, now: Instant, worker: u32, input: &Input, outputs: &[Output]) {
        let _ = (now, worker, input, outputs);
    }
    /// The router took an input and asks for these outputs.
    fn on_router(&mut self, now: Instant, input: &RouterInput, outputs: &[RouterOutput]) {
        let _ = (now, input, outputs);
    }
    /// A life of a worker begins (its epoch) or ends (none).
    fn on_life(&mut self, now: Instant, worker: u32, epoch: Option<Epoch>) {
        let _ = (now, worker, epoch);
    }
    /// The script does something.
    fn on_action(&mut self, now: Instant, action: &Action) {
        let _ = (now, action);
    }
    /// A command has ended on its device. Told before the machine learns of it.
    fn on_activity(&mut self, activity: &Activity) {
        let _ = activity;
    }
    /// The rate of a link changes; links are at rest in the beginning.
    fn on_link(&mut self, now: Instant, rate: LinkRate) {
        let _ = (now, rate);
    }
    /// How full and how busy a worker is after a step.
    fn on_gauge(&mut self, now: Instant, worker: u32, gauge: &Gauge) {
        let _ = (now, worker, gauge);
    }
    /// A machine is about to begin a life; what makes another one that answers the same.
    fn on_launch(&mut self, now: Instant, launch: Launch<'_>) {
        let _ = (now, launch);
    }
    /// A worker is about to take an input. Not told of machines that are no workers (toys in tests).
    fn before_worker(&mut self, now: Instant, worker: u32, input: &Input, machine: &Worker) {
        let _ = (now, worker, input, machine);
    }
    /// A worker has taken an input; comes behind [`on_worker`](Self::on_worker).
    fn after_worker(&mut self, now: Instant, worker: u32, machine: &Worker) {
        let _ = (now, worker, machine);
    }
    /// The router is about to take an input.
    fn before_router(&mut self, now: Instant, input: &RouterInput, router: &Router) {
        let _ = (now, input, router);
    }
}

/// What a machine is made of.
#[derive(Clone, Copy, Debug)]
pub enum Launch<'a> {
    /// A life of a worker.
    Worker {
        /// Index of the worker.
        worker: u32,
        /// What it is told.
        config: &'a WorkerConfig,
        /// What it believes that things cost.
        cost: &'a Cost,
    },
    /// The router, at the start of the run.
    Router {
        /// What it is told.
        config: &'a RouterConfig,
        /// What it believes that things cost.
        cost: &'a Cost,
    },
}

/// Lets a caller keep what a world watches with: give the world one handle and read the other after the run.
impl<T: Observer> Observer for Rc<RefCell<T>> {
    fn on_arrival(&mut self, now: Instant, request: RequestId, record: &Record) {
        self.borrow_mut().on_arrival(now, request, record);
    }
    fn on_end(&mut self, now: Instant, request: RequestId, record: &Record) {
        self.borrow_mut().on_end(now, request, record);
    }
    fn on_worker(&mut self, now: Instant, worker: u32, input: &Input, outputs: &[Output]) {
        self.borrow_mut().on_worker(now, worker, input, outputs);
    }
    fn on_router(&mut self, now: Instant, input: &RouterInput, outputs: &[RouterOutput]) {
        self.borrow_mut().on_router(now, input, outputs);
    }
    fn on_life(&mut self, now: Instant, worker: u32, epoch: Option<Epoch>) {
        self.borrow_mut().on_life(now, worker, epoch);
    }
    fn on_action(&mut self, now: Instant, action: &Action) {
        self.borrow_mut().on_action(now, action);
    }
    fn on_activity(&mut self, activity: &Activity) {
        self.borrow_mut().on_activity(activity);
    }
    fn on_link(&mut self, now: Instant, rate: LinkRate) {
        self.borrow_mut().on_link(now, rate);
    }
    fn on_gauge(&mut self, now: Instant, worker: u32, gauge: &Gauge) {
        self.borrow_mut().on_gauge(now, worker, gauge);
    }
    fn on_launch(&mut self, now: Instant, launch: Launch<'_>) {
        self.borrow_mut().on_launch(now, launch);
    }
    fn before_worker(&mut self, now: Instant, worker: u32, input: &Input, machine: &Worker) {
        self.borrow_mut().before_worker(now, worker, input, machine);
    }
    fn after_worker(&mut self, now: Instant, worker: u32, machine: &Worker) {
        self.borrow_mut().after_worker(now, worker, machine);
    }
    fn before_router(&mut self, now: Instant, input: &RouterInput, router: &Router) {
        self.borrow_mut().before_router(now, input, router);
    }
}

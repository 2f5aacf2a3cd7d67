//! One worker in the world: the pump of its present life, its lanes, and what it has been told of its peers.
//!
//! A restart drops the pump and the lanes; the store, the links and the records are the world's and stay.

use pd_core::config::WorkerConfig;
use pd_core::cost::Cost;
use pd_core::digest::Digest;
use pd_core::id::{Epoch, GpuPage, PageKey, RequestId, Token};
use pd_core::machine::Machine;
use pd_core::metrics::Metrics;
use pd_core::op::{Input, Output};
use pd_core::pump::{NoTap, Pump};
use pd_core::router::LoadReport;
use pd_core::time::Instant;
use pd_core::worker::{Census, Waits, Worker};

use crate::fault::{Clock, Speed};
use crate::lane::{LaneSpec, LaneUse, Lanes};
use crate::observe::Gauge;
use crate::record::WorkerRecord;
use crate::world::Coasting;

/// A machine that a world can drive: the worker, or a toy in tests.
pub trait Serve: Machine<Input = Input, Output = Output> + Sized {
    /// The first state of a life.
    fn launch(config: WorkerConfig, cost: Cost) -> Self;
    /// Its counters.
    fn metrics(&self) -> &Metrics;
    /// How busy it is.
    fn load(&self) -> LoadReport;
    /// See [`Worker::coast_steps`]. A machine that cannot coast says 0.
    fn coast_steps(&self) -> u32 {
        0
    }
    /// See [`Worker::coast_outputs`].
    fn coast_outputs(&self, outputs: &mut Vec<Output>) {
        let _ = outputs;
    }
    /// See [`Worker::coast`].
    fn coast(&mut self, steps: u32, tokens: &[Token]) {
        let _ = (steps, tokens);
    }
    /// How full and how busy it is, for observers.
    fn gauge(&self) -> Gauge {
        Gauge::default()
    }
    /// What it holds; none for a machine that keeps no such books.
    fn census(&self) -> Option<Census> {
        None
    }
    /// What a request waits for; none if it is not here.
    fn waits(&self, request: RequestId) -> Option<Waits> {
        let _ = request;
        None
    }
    /// A request that could run while the device idles.
    fn runnable(&self) -> Option<RequestId> {
        None
    }
    /// True if a device page is not free.
    fn holds(&self, page: GpuPage) -> bool {
        let _ = page;
        true
    }
    /// Objects that it believes to be in L3.
    fn stored_keys(&self) -> Vec<PageKey> {
        Vec::new()
    }
    /// Panics if anything is left of what has ended, in a machine at rest.
    fn check_rest(&self) {}
    /// The worker itself, for those who ask it; none for a toy.
    fn as_worker(&self) -> Option<&Worker> {
        None
    }
}

impl Serve for Worker {
    fn coast_steps(&self) -> u32 {
        self.coast_steps()
    }
    fn coast_outputs(&self, outputs: &mut Vec<Output>) {
        self.coast_outputs(outputs);
    }
    fn coast(&mut self, steps: u32, tokens: &[Token]) {
        self.coast(steps, tokens);
    }
    /// # Panics
    /// If the configuration is out of range.
    fn launch(config: WorkerConfig, cost: Cost) -> Self {
        Self::new(config, cost).expect("the configuration of a worker is in range")
    }
    fn metrics(&self) -> &Metrics {
        self.metrics()
    }
    fn load(&self) -> LoadReport {
        let load = self.load();
        LoadReport {
            running: load.running,
            waiting: load.waiting,
            waiting_tokens: load.waiting_tokens,
            running_tokens: load.running_tokens,
        }
    }
    fn gauge(&self) -> Gauge {
        let (running, waiting) = self.counts();
        Gauge { pages: self.kv().occupancy(), running, waiting }
    }
    fn census(&self) -> Option<Census> {
        Some(self.census())
    }
    fn waits(&self, request: RequestId) -> Option<Waits> {
        self.waits(request)
    }
    fn runnable(&self) -> Option<RequestId> {
        self.runnable()
    }
    fn holds(&self, page: GpuPage) -> bool {
        self.holds(page)
    }
    fn stored_keys(&self) -> Vec<PageKey> {
        self.stored_keys()
    }
    fn check_rest(&self) {
        self.check_rest();
    }
    fn as_worker(&self) -> Option<&Worker> {
        Some(self)
    }
}

/// One worker of a world.
#[derive(Debug)]
pub struct Node<M: Serve> {
    pub(crate) config: WorkerConfig,
    pub(crate) cost: Cost,
    pub(crate) spec: LaneSpec,
    pub(crate) latency_ns: u64,
    /// None while it is down.
    pub(crate) pump: Option<Pump<M, NoTap>>,
    pub(crate) lanes: Lanes,
    /// The earliest tick in the event queue.
    pub(crate) tick_at: Option<Instant>,
    /// Ticks in a row at the same instant.
    pub(crate) ticks: u32,
    /// The life of each worker as far as this one has been told, and which connection to it.
    pub(crate) seen: Vec<Option<(Epoch, u32)>>,
    /// What time it is there.
    pub(crate) clock: Clock,
    /// The latest time that this life has been told.
    told: Instant,
    /// What slows its device down.
    pub(crate) slow: Vec<(u32, Speed)>,
    /// What it has planned, if it only decodes.
    pub(crate) coasting: Coasting,
    /// What earlier lives did.
    past: WorkerRecord,
    digest: Digest,
}

impl<M: Serve> Node<M> {
    /// A worker that is down.
    pub(crate) fn new(config: WorkerConfig, cost: Cost, spec: LaneSpec, latency_ns: u64, workers: usize) -> Self {
        let lanes = Lanes::new(spec.clone(), config.epoch);
        Self {
            config,
            cost,
            spec,
            latency_ns,
            pump: None,
            lanes,
            tick_at: None,
            ticks: 0,
            seen: vec![None; workers],
            clock: Clock::default(),
            told: Instant::ZERO,
            slow: Vec::new(),
            coasting: Coasting::default(),
            past: WorkerRecord::default(),
            digest: Digest::new(),
        }
    }

    /// Starts a life.
    pub(crate) fn start(&mut self) {
        assert!(self.pump.is_none(), "a worker lives once at a time");
        self.pump = Some(Pump::new(M::launch(self.config.clone(), self.cost.clone()), NoTap));
        self.lanes = Lanes::new(self.spec.clone(), self.config.epoch);
        self.lanes.set_slow(&self.slow);
        self.seen.fill(None);
        self.told = Instant::ZERO;
        self.past.lives += 1;
    }

    /// The time of a step there. A clock that was set back stands still until it has caught up.
    #[inline]
    pub(crate) fn tell_time(&mut self, now: Instant) -> Instant {
        self.told = self.told.max(self.clock.shows(now));
        self.told
    }

    /// When the machine wants a tick, in the time of the world.
    #[inline]
    pub(crate) fn tick_due(&self) -> Option<(Instant, &'static str)> {
        let (at, why) = self.pump.as_ref()?.deadline()?;
        let due = if at <= self.told { Instant::ZERO } else { self.clock.when(at) };
        Some((due, why))
    }

    /// Ends a life and keeps what it did; false if there was none.
    pub(crate) fn stop(&mut self) -> bool {
        let Some(pump) = self.pump.take() else { return false };
        self.past.metrics.merge(pump.machine.metrics());
        self.past.lanes = sum(self.past.lanes, self.lanes.lane_use());
        self.past.steps += pump.steps();
        self.digest.word(pump.fingerprint());
        self.past.fingerprint = self.digest.finish();
        true
    }

    /// What all lives did; ends the present one.
    pub(crate) fn into_record(mut self) -> WorkerRecord {
        self.stop();
        self.past
    }
}

fn sum(a: LaneUse, b: LaneUse) -> LaneUse {
    LaneUse {
        forwards: a.forwards + b.forwards,
        forward_busy_ns: a.forward_busy_ns + b.forward_busy_ns,
        forward_stall_ns: a.forward_stall_ns + b.forward_stall_ns,
        commands: a.commands + b.commands,
    }
}

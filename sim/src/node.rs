//! One worker in the world: the pump of its present life, its lanes, and what it has been told of its peers.
//!
//! A restart drops the pump and the lanes; the store, the links and the records are the world's and stay.

use pd_core::config::WorkerConfig;
use pd_core::cost::Cost;
use pd_core::digest::Digest;
use pd_core::id::{Epoch, Token};
use pd_core::machine::Machine;
use pd_core::metrics::Metrics;
use pd_core::op::{Input, Output};
use pd_core::pump::{Pump, Step, Tap};
use pd_core::router::LoadReport;
use pd_core::time::Instant;
use pd_core::worker::Worker;

use crate::lane::{LaneSpec, LaneUse, Lanes};
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
    fn as_worker(&self) -> Option<&Worker> {
        Some(self)
    }
}

/// What a world attaches to each worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// Recount the machine's invariants after each step.
    pub is_checking: bool,
}

impl<M: Machine> Tap<M> for Watch {
    #[inline]
    fn after(&mut self, machine: &M, _step: Step) {
        if self.is_checking {
            machine.check();
        }
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
    pub(crate) pump: Option<Pump<M, Watch>>,
    pub(crate) lanes: Lanes,
    /// The earliest tick in the event queue.
    pub(crate) tick_at: Option<Instant>,
    /// Ticks in a row at the same instant.
    pub(crate) ticks: u32,
    /// The life of each worker as far as this one has been told.
    pub(crate) seen: Vec<Option<Epoch>>,
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
            coasting: Coasting::default(),
            past: WorkerRecord::default(),
            digest: Digest::new(),
        }
    }

    /// Starts a life.
    pub(crate) fn start(&mut self, is_checking: bool) {
        assert!(self.pump.is_none(), "a worker lives once at a time");
        let watch = Watch { is_checking };
        self.pump = Some(Pump::new(M::launch(self.config.clone(), self.cost.clone()), watch));
        self.lanes = Lanes::new(self.spec.clone(), self.config.epoch);
        self.seen.fill(None);
        self.past.lives += 1;
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

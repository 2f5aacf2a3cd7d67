//! One worker in the world: the pump of its present life, its lanes, and what it has been told of its peers.
//!
//! A restart drops the pump and the lanes; the store, the links and the records are the world's and stay.

use pd_core::config::WorkerConfig;
use pd_core::cost::Cost;
use pd_core::digest::Digest;
use pd_core::id::Epoch;
use pd_core::machine::Machine;
use pd_core::metrics::Metrics;
use pd_core::op::{Input, Output};
use pd_core::pump::Pump;
use pd_core::router::LoadReport;
use pd_core::time::Instant;
use pd_core::worker::Worker;

use crate::fault::{Clock, Speed};
use crate::journal::{Journal, Watch};
use crate::lane::{LaneSpec, LaneUse, Lanes};
use crate::record::WorkerRecord;

/// A machine that a world can drive: the worker, or a toy in tests.
pub trait Serve: Machine<Input = Input, Output = Output> + Sized {
    /// The first state of a life.
    fn launch(config: WorkerConfig, cost: Cost) -> Self;
    /// Its counters.
    fn metrics(&self) -> &Metrics;
    /// How busy it is.
    fn load(&self) -> LoadReport;
}

impl Serve for Worker {
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
    /// The life of each worker as far as this one has been told, and which connection to it.
    pub(crate) seen: Vec<Option<(Epoch, u32)>>,
    /// What time it is there.
    pub(crate) clock: Clock,
    /// What slows its device down.
    pub(crate) slow: Vec<(u32, Speed)>,
    /// What earlier lives did.
    past: WorkerRecord,
    digest: Digest,
    has_journal: bool,
}

impl<M: Serve> Node<M> {
    /// A worker that is down.
    pub(crate) fn new(
        config: WorkerConfig,
        cost: Cost,
        spec: LaneSpec,
        latency_ns: u64,
        workers: usize,
        has_journal: bool,
    ) -> Self {
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
            slow: Vec::new(),
            past: WorkerRecord::default(),
            digest: Digest::new(),
            has_journal,
        }
    }

    /// Starts a life.
    pub(crate) fn start(&mut self, is_checking: bool) {
        assert!(self.pump.is_none(), "a worker lives once at a time");
        let watch = Watch { is_checking, journal: self.has_journal.then(Journal::default) };
        self.pump = Some(Pump::new(M::launch(self.config.clone(), self.cost.clone()), watch));
        self.lanes = Lanes::new(self.spec.clone(), self.config.epoch);
        self.lanes.set_slow(&self.slow);
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
        self.past.journals.extend(pump.tap.journal);
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

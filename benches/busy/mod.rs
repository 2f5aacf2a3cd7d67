//! A scheduler with 256 running sequences and 10,000 waiting requests, for the bench of its step and the test that a
//! warm step allocates nothing.

use std::time::{Duration, Instant as Clock};

use pd_core::batch::{Batch, Sampled};
use pd_core::config::{KvConfig, SchedConfig, SchedulePolicy, WorkerConfig};
use pd_core::cost::Cost;
use pd_core::cx::{Cx, Ops};
use pd_core::id::{Epoch, OpId, PageKey, RequestId, Token, WorkerId};
use pd_core::kv::Kv;
use pd_core::machine::Outbox;
use pd_core::metrics::Metrics;
use pd_core::op::{Command, Leg, Outcome, Output, Prompt, Submit};
use pd_core::rng::{Rng, Stream};
use pd_core::sched::Sched;
use pd_core::time::Instant;
use pd_core::transfer::Transfer;

pub(crate) const RUNNING: u64 = 256;
pub(crate) const WAITING: u64 = 10_000;
pub(crate) const LIMIT: u32 = 4000;

pub(crate) struct World {
    sched: Sched,
    kv: Kv,
    transfer: Transfer,
    cost: Cost,
    rng: Rng,
    metrics: Metrics,
    ops: Ops,
    out: Outbox<Output>,
    now: Instant,
    forwards: std::collections::VecDeque<(OpId, Box<Batch>)>,
    pub(crate) steps: u32,
}

macro_rules! cx {
    ($world:ident) => {
        Cx {
            now: $world.now,
            cost: &$world.cost,
            rng: &mut $world.rng,
            metrics: &mut $world.metrics,
            ops: &mut $world.ops,
            out: &mut $world.out,
        }
    };
}

impl World {
    pub(crate) fn new(policy: SchedulePolicy, places: u32) -> Self {
        let pages = (64 + LIMIT).div_ceil(16);
        let config = WorkerConfig {
            worker: WorkerId(1),
            epoch: Epoch(0),
            mode: pd_core::config::Mode::Unified,
            seed: 1,
            // All that is left when 256 sequences have what they are guaranteed is less than another one needs.
            kv: KvConfig { gpu_pages: pages * RUNNING as u32 + 64, ..KvConfig::default() },
            sched: SchedConfig { policy, max_running_requests: places, reserve_steps: LIMIT, ..SchedConfig::default() },
            transfer: pd_core::config::TransferConfig::default(),
        };
        let mut world = Self {
            sched: Sched::new(&config),
            kv: Kv::new(config.kv.clone()),
            transfer: Transfer::new(config.transfer.clone(), config.mode, config.epoch, config.kv.root),
            cost: Cost::fixed(2_000_000, 20_000, 5_000_000, 1 << 20),
            rng: Rng::new(1, Stream::Schedule, 0),
            metrics: Metrics::default(),
            ops: Ops::new(Epoch(0)),
            out: Outbox::default(),
            now: Instant::ZERO,
            forwards: std::collections::VecDeque::new(),
            steps: 0,
        };
        for request in 0..RUNNING {
            world.submit(request);
        }
        while world.sched.load().waiting > 0 {
            world.step();
        }
        for request in 0..WAITING {
            world.now = Instant(world.now.0 + 1000);
            world.submit(RUNNING + request);
        }
        for _ in 0..8 {
            world.step();
        }
        assert_eq!(world.sched.load().running, RUNNING as u32);
        assert_eq!(world.sched.load().waiting, WAITING as u32);
        assert!(world.forwards.iter().all(|(_, batch)| batch.samples() == RUNNING as usize));
        world.steps = 16;
        world
    }

    fn submit(&mut self, request: u64) {
        let keys = (0..4).map(|page| PageKey(u128::from(request) << 32 | page)).collect();
        let prompt = Prompt { root: PageKey(0), length: 64, keys, tokens: Vec::new() };
        let submit = Submit {
            request: RequestId(request),
            prompt,
            limit: LIMIT,
            stop: vec![Token(1), Token(2)],
            priority: (request * 7919 % 100) as i32,
            deadline: Some(Instant(u64::MAX - request)),
            leg: Leg::Whole,
        };
        self.sched.submit(&mut cx!(self), &mut self.kv, &mut self.transfer, submit);
        self.sched.settle(&mut cx!(self), &mut self.kv, &mut self.transfer);
        self.drain();
    }

    /// The machine's share of one step, on the wall clock.
    pub(crate) fn step(&mut self) -> Duration {
        self.now = Instant(self.now.0 + 5_000_000);
        self.steps += 1;
        let Some((op, mut batch)) = self.forwards.pop_front() else { panic!("a forward is in flight") };
        batch.sample(|_| Token(9));
        let begin = Clock::now();
        let _ = self.ops.finish(op);
        let outcome = Outcome::Sampled(Sampled(batch));
        self.sched.on_forward(&mut cx!(self), &mut self.kv, &mut self.transfer, op, outcome);
        self.sched.settle(&mut cx!(self), &mut self.kv, &mut self.transfer);
        let spent = begin.elapsed();
        self.drain();
        spent
    }

    fn drain(&mut self) {
        for output in self.out.drain() {
            if let Output::Start { op, command: Command::Forward(batch), .. } = output {
                self.forwards.push_back((op, batch));
            }
        }
    }
}

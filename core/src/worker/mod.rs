//! One worker: scheduler, cache and hand-off behind one [`Machine`].
//!
//! The parent routes and lends; the components never hold each other. A step has two parts: the handler of the input
//! records facts, then each component settles once, in a fixed order. Nothing loops until quiet: what is left over is
//! covered by a deadline or by an operation in flight.
//!
//! ```text
//!   input ──▶ handler ──▶ transfer.settle ──▶ sched.settle ──▶ kv.settle ──▶ outbox
//! ```

mod account;
mod coast;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use crate::config::{ConfigError, WorkerConfig};
use crate::cost::Cost;
use crate::cx::{Cx, Ops, Owner};
use crate::digest::Digest;
use crate::event::{Control, Finish};
use crate::id::{OpId, RequestId};
use crate::kv::{Kv, Prospect};
use crate::machine::{Machine, Outbox};
use crate::metrics::Metrics;
use crate::op::{Input, Outcome, Output, Prompt};
use crate::rng::{Rng, Stream};
use crate::sched::{Load, Sched, Standing, Wait};
use crate::time::{Instant, earlier};
use crate::transfer::{Transfer, TransferEvent};

pub use self::account::{Census, Waits};

/// A prefill, decode or unified worker. With tensor parallelism, the leader of the group: ranks carry out commands.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    cost: Cost,
    sched: Sched,
    kv: Kv,
    transfer: Transfer,
    ops: Ops,
    rng: Rng,
    metrics: Metrics,
}

/// Lends the worker's common parts to a component, beside the component itself.
macro_rules! cx {
    ($worker:ident, $now:expr, $out:expr) => {
        Cx {
            now: $now,
            cost: &$worker.cost,
            rng: &mut $worker.rng,
            metrics: &mut $worker.metrics,
            ops: &mut $worker.ops,
            out: $out,
        }
    };
}

impl Worker {
    /// A worker at the start of a life, with empty L1 and L2.
    ///
    /// # Errors
    /// The first key of the configuration that is out of range.
    pub fn new(config: WorkerConfig, cost: Cost) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            sched: Sched::new(&config),
            kv: Kv::new(config.kv.clone()),
            transfer: Transfer::new(config.transfer.clone(), config.mode, config.epoch, config.kv.root),
            ops: Ops::new(config.epoch),
            rng: Rng::new(config.seed, Stream::Schedule, u64::from(config.worker.0)),
            metrics: Metrics::default(),
            cost,
            config,
        })
    }

    /// Its configuration.
    #[must_use]
    pub const fn config(&self) -> &WorkerConfig {
        &self.config
    }

    /// What has happened in this life.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Its cache.
    #[must_use]
    pub const fn kv(&self) -> &Kv {
        &self.kv
    }

    /// How much it has to do.
    #[must_use]
    pub fn load(&self) -> Load {
        self.sched.load()
    }

    /// Requests that are admitted, and requests that are not.
    #[must_use]
    pub fn counts(&self) -> (u32, u32) {
        self.sched.counts()
    }

    /// What a live request waits for; `None` for one that is not live here.
    #[must_use]
    pub fn waiting_on(&self, request: RequestId) -> Option<Wait> {
        self.sched.waiting_on(request)
    }

    /// What things cost on this machine.
    #[must_use]
    pub const fn cost(&self) -> &Cost {
        &self.cost
    }

    /// Where a live request stands; `None` for one that is not live here.
    #[must_use]
    pub fn standing(&self, request: RequestId) -> Option<Standing> {
        self.sched.standing(&self.kv, request)
    }

    /// Where all live requests stand, by name.
    pub fn standings(&self) -> impl Iterator<Item = Standing> + '_ {
        self.sched.standings(&self.kv)
    }

    /// What the tiers would have for this prompt if it came now. Looking changes nothing.
    #[must_use]
    pub fn prospect(&self, prompt: &Prompt) -> Prospect {
        self.kv.prospect(&self.cost, prompt)
    }

    /// Its hand-offs.
    #[must_use]
    pub const fn transfer(&self) -> &Transfer {
        &self.transfer
    }

    /// Commands in flight.
    #[must_use]
    pub const fn ops_in_flight(&self) -> usize {
        self.ops.live()
    }

    fn on_done(&mut self, now: Instant, op: OpId, outcome: Outcome, out: &mut Outbox<Output>) {
        let owner = self.ops.finish(op);
        let cx = &mut cx!(self, now, out);
        match owner {
            // An earlier life, or a driver that says it twice: dropped and counted.
            None => cx.metrics.stale_inputs += 1,
            Some(Owner::Sched) => self.sched.on_forward(cx, &mut self.kv, &mut self.transfer, op, outcome),
            Some(Owner::Kv) => {
                for event in self.kv.on_done(cx, op, outcome) {
                    self.sched.on_kv(cx, &mut self.kv, &mut self.transfer, event);
                }
            }
            Some(Owner::Transfer) => {
                let events = self.transfer.on_done(cx, op, outcome);
                self.on_transfer(now, events, out);
            }
        }
    }

    fn on_transfer(&mut self, now: Instant, events: Vec<TransferEvent>, out: &mut Outbox<Output>) {
        let cx = &mut cx!(self, now, out);
        for event in events {
            self.sched.on_transfer(cx, &mut self.kv, &mut self.transfer, event);
        }
    }

    fn settle(&mut self, now: Instant, out: &mut Outbox<Output>) {
        let events = self.transfer.settle(&mut cx!(self, now, out));
        self.on_transfer(now, events, out);
        let cx = &mut cx!(self, now, out);
        self.sched.settle(cx, &mut self.kv, &mut self.transfer);
        self.kv.settle(cx);
    }
}

impl Machine for Worker {
    type Input = Input;
    type Output = Output;

    fn step(&mut self, now: Instant, input: Input, out: &mut Outbox<Output>) {
        let cx = &mut cx!(self, now, out);
        match input {
            Input::Tick => {}
            Input::Submit(submit) => self.sched.submit(cx, &mut self.kv, &mut self.transfer, *submit),
            Input::Cancel { request } => {
                self.sched.cancel(cx, &mut self.kv, &mut self.transfer, request, Finish::Cancelled);
            }
            Input::Peer { id, up } => {
                let events = self.transfer.on_peer(cx, id, up);
                self.on_transfer(now, events, out);
            }
            Input::Recv { from, message } => {
                let events = self.transfer.on_message(cx, from, message);
                self.on_transfer(now, events, out);
            }
            Input::Done { op, outcome } => self.on_done(now, op, outcome, out),
            Input::Control(control) => match control {
                Control::Drain => self.sched.control(cx, &mut self.kv, &mut self.transfer, control),
                Control::Flush | Control::AttachStorage | Control::DetachStorage | Control::ClearStorage => {
                    self.kv.control(cx, control);
                }
            },
        }
        self.settle(now, out);
    }

    fn deadline(&self) -> Option<(Instant, &'static str)> {
        earlier(earlier(self.transfer.deadline(), self.kv.deadline()), self.sched.deadline())
    }

    fn digest(&self, digest: &mut Digest) {
        self.sched.digest(digest);
        self.kv.digest(digest);
        self.transfer.digest(digest);
        self.ops.digest(digest);
        digest.word(self.rng.position() as u64);
    }

    fn check(&self) {
        self.sched.check();
        self.transfer.check();
        self.kv.check(self.sched.leases().chain(self.transfer.quarantined()));
    }
}

//! What a worker lends to its components for one step: the time, the outbox, the operations in flight.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::cost::Cost;
use crate::digest::Digest;
use crate::event::Event;
use crate::id::{Epoch, OpId, RequestId, WorkerId};
use crate::machine::Outbox;
use crate::message::Message;
use crate::metrics::Metrics;
use crate::op::{Command, Output};
use crate::rng::Rng;
use crate::time::Instant;

/// Which component started a command and is told when it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The scheduler: forwards.
    Sched,
    /// The cache: everything between tiers.
    Kv,
    /// The hand-off: pushes.
    Transfer,
}

/// The operations in flight of one life.
#[derive(Debug)]
pub struct Ops {
    epoch: Epoch,
    /// Sequence number of `ring[0]`.
    base: u64,
    ring: VecDeque<Option<Owner>>,
    live: usize,
}

impl Ops {
    /// No operations yet.
    #[must_use]
    pub const fn new(epoch: Epoch) -> Self {
        Self { epoch, base: 0, ring: VecDeque::new(), live: 0 }
    }

    /// Names a new operation.
    pub fn start(&mut self, owner: Owner) -> OpId {
        let op = self.next();
        self.ring.push_back(Some(owner));
        self.live += 1;
        op
    }

    /// The name that the next operation will have.
    #[must_use]
    pub fn next(&self) -> OpId {
        OpId { epoch: self.epoch, seq: self.base + self.ring.len() as u64 }
    }

    /// Closes an operation; `None` for one of another life, an unknown one or one closed before.
    pub fn finish(&mut self, op: OpId) -> Option<Owner> {
        if op.epoch != self.epoch {
            return None;
        }
        let index = usize::try_from(op.seq.checked_sub(self.base)?).ok()?;
        let owner = self.ring.get_mut(index)?.take()?;
        self.live -= 1;
        while let Some(None) = self.ring.front() {
            self.ring.pop_front();
            self.base += 1;
        }
        Some(owner)
    }

    /// Names `count` operations that have ended already.
    pub fn pass(&mut self, count: usize) {
        if self.ring.is_empty() {
            self.base += count as u64;
        } else {
            self.ring.resize(self.ring.len() + count, None);
        }
    }

    /// True while the operation has not ended.
    #[must_use]
    pub fn is_live(&self, op: OpId) -> bool {
        op.epoch == self.epoch
            && op.seq.checked_sub(self.base).is_some_and(|index| {
                usize::try_from(index).is_ok_and(|index| self.ring.get(index).is_some_and(Option::is_some))
            })
    }

    /// Operations in flight.
    #[must_use]
    pub const fn live(&self) -> usize {
        self.live
    }

    /// Feeds the state.
    pub fn digest(&self, digest: &mut Digest) {
        digest.word(self.base);
        digest.word(self.live as u64);
        for owner in &self.ring {
            digest.word(owner.map_or(0, |owner| owner as u64 + 1));
        }
    }
}

/// Lent by the worker to a component for the length of one call.
#[derive(Debug)]
pub struct Cx<'a> {
    /// The time of this step.
    pub now: Instant,
    /// What things cost on this machine.
    pub cost: &'a Cost,
    /// The scheduler's randomness.
    pub rng: &'a mut Rng,
    /// Counters.
    pub metrics: &'a mut Metrics,
    /// Operations in flight.
    pub ops: &'a mut Ops,
    /// Outputs of this step.
    pub out: &'a mut Outbox<Output>,
}

impl Cx<'_> {
    /// Starts a command once those in `after` are far enough.
    pub fn start(&mut self, owner: Owner, after: Vec<OpId>, command: Command) -> OpId {
        let op = self.ops.start(owner);
        self.out.push(Output::Start { op, after, command });
        op
    }

    /// Tells a peer.
    pub fn send(&mut self, to: WorkerId, message: Message) {
        self.out.push(Output::Send { to, message });
    }

    /// Tells the client of a request.
    pub fn emit(&mut self, request: RequestId, event: Event) {
        self.out.push(Output::Emit { request, event });
    }

    /// Notes that a named rare branch was taken.
    pub fn mark(&mut self, name: &'static str) {
        self.metrics.mark(name);
    }
}

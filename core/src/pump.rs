//! The only caller of [`Machine::step`], in the simulator and in production.
//!
//! Both drivers feed inputs through a pump; taps see each input and a fingerprint of the outputs. A run that was
//! recorded through a tap is replayed by feeding the same inputs to a machine of the same build and configuration and
//! comparing the fingerprints.

use crate::codec::Codec;
use crate::digest::Digest;
use crate::machine::{Machine, Outbox};
use crate::time::Instant;

/// One step as the taps see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Counts steps of this pump from 0.
    pub number: u64,
    /// When it happened, after clamping.
    pub at: Instant,
    /// Fingerprint over the codec form of the step's outputs.
    pub outputs: u64,
}

crate::codec!(struct Step { number, at, outputs });

/// Watches a pump.
pub trait Tap<M: Machine> {
    /// Sees an input before the machine takes it.
    fn before(&mut self, at: Instant, input: &M::Input) {
        let _ = (at, input);
    }
    /// Sees the machine after the step.
    fn after(&mut self, machine: &M, step: Step) {
        let _ = (machine, step);
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTap;

impl<M: Machine> Tap<M> for NoTap {}

impl<M: Machine, T: Tap<M>> Tap<M> for Option<T> {
    fn before(&mut self, at: Instant, input: &M::Input) {
        if let Some(tap) = self {
            tap.before(at, input);
        }
    }
    fn after(&mut self, machine: &M, step: Step) {
        if let Some(tap) = self {
            tap.after(machine, step);
        }
    }
}

/// A machine, its outbox, and what watches it.
#[derive(Debug)]
pub struct Pump<M: Machine, T> {
    /// The machine.
    pub machine: M,
    /// The watcher.
    pub tap: T,
    outbox: Outbox<M::Output>,
    last: Instant,
    number: u64,
    digest: Digest,
}

impl<M: Machine, T: Tap<M>> Pump<M, T>
where
    M::Output: Codec,
{
    /// A pump at time zero.
    pub fn new(machine: M, tap: T) -> Self {
        Self { machine, tap, outbox: Outbox::default(), last: Instant::ZERO, number: 0, digest: Digest::new() }
    }

    /// Feeds one input and hands out what the machine asks for. A `now` before the previous one counts as that.
    #[must_use = "outputs that are not carried out are lost"]
    pub fn feed(&mut self, now: Instant, input: M::Input) -> impl Iterator<Item = M::Output> + '_ {
        self.step(now, input);
        self.drain()
    }

    /// Feeds one input; what the machine asks for waits in [`outputs`](Self::outputs) until it is drained.
    ///
    /// # Panics
    /// If the outputs of the step before were not drained: they would count for this one.
    pub fn step(&mut self, now: Instant, input: M::Input) {
        assert!(self.outbox.as_slice().is_empty(), "the outputs of the step before were carried out");
        self.last = self.last.max(now);
        self.tap.before(self.last, &input);
        self.machine.step(self.last, input, &mut self.outbox);
        let mut outputs = Digest::new();
        for output in self.outbox.as_slice() {
            output.encode(&mut outputs);
        }
        let step = Step { number: self.number, at: self.last, outputs: outputs.finish() };
        self.number += 1;
        self.digest.word(step.at.0);
        self.digest.word(step.outputs);
        self.tap.after(&self.machine, step);
    }

    /// Counts a step that was lived otherwise, by what it would have asked for.
    #[inline]
    pub fn count(&mut self, at: Instant, outputs: &[M::Output]) {
        self.last = self.last.max(at);
        let mut digest = Digest::new();
        for output in outputs {
            output.encode(&mut digest);
        }
        self.number += 1;
        self.digest.word(self.last.0);
        self.digest.word(digest.finish());
    }

    /// What the last step asked for and nobody has drained.
    #[must_use]
    pub fn outputs(&self) -> &[M::Output] {
        self.outbox.as_slice()
    }

    /// Hands out what the machine asks for.
    pub fn drain(&mut self) -> impl Iterator<Item = M::Output> + '_ {
        self.outbox.drain()
    }

    /// When the machine wants a tick, and why.
    #[must_use]
    pub fn deadline(&self) -> Option<(Instant, &'static str)> {
        self.machine.deadline()
    }

    /// Steps fed so far.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.number
    }

    /// Fingerprint over the times and outputs of all steps so far.
    #[must_use]
    pub const fn fingerprint(&self) -> u64 {
        self.digest.finish()
    }
}

//! What all state machines of pd have in common.

use alloc::vec::Vec;

use crate::digest::Digest;
use crate::time::Instant;

/// A pure state machine: values in, values out.
///
/// Nothing happens between two steps, and a step is atomic. Whatever the machine learns arrives as an input;
/// whatever it wants done leaves through the outbox of the step that decided it.
pub trait Machine {
    /// Everything the machine can ever learn.
    type Input;
    /// Everything it can ever ask for.
    type Output;

    /// Takes one input at `now`. `now` never goes backwards.
    fn step(&mut self, now: Instant, input: Self::Input, out: &mut Outbox<Self::Output>);
    /// When the machine wants a tick, and why; `None` if only an input can move it.
    fn deadline(&self) -> Option<(Instant, &'static str)>;
    /// Feeds all state that can change the future.
    fn digest(&self, digest: &mut Digest);
    /// Panics if an invariant is broken. Costs time in proportion to the state.
    fn check(&self);
}

/// The outputs of one step, in the order in which they were decided.
#[derive(Debug)]
pub struct Outbox<O>(Vec<O>);

impl<O> Default for Outbox<O> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<O> Outbox<O> {
    /// Appends an output.
    #[inline]
    pub fn push(&mut self, output: O) {
        self.0.push(output);
    }

    /// The outputs so far.
    #[must_use]
    pub fn as_slice(&self) -> &[O] {
        &self.0
    }

    /// Hands the outputs over and keeps the memory.
    pub fn drain(&mut self) -> impl Iterator<Item = O> + '_ {
        self.0.drain(..)
    }
}

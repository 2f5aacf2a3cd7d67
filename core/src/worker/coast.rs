//! See [`crate::sched::Sched::coast_steps`]; for drivers of virtual time.

use alloc::vec::Vec;

use super::Worker;
use crate::id::Token;
use crate::op::Output;

impl Worker {
    /// For how many ends of forwards the worker will do nothing but hand on tokens and start the next forward of the
    /// same sequences, as long as it is told nothing else and its deadline has not come. The driver has seen the
    /// worker do just that in the step before: then its cache has nothing left to settle, either.
    #[must_use]
    pub fn coast_steps(&self) -> u32 {
        self.sched.coast_steps()
    }

    /// Appends what the next such step asks for: a token for each sequence, which is to be filled in, and the next
    /// forward. Those of later steps differ in the number of the command and in where the runs start.
    pub fn coast_outputs(&self, outputs: &mut Vec<Output>) {
        self.sched.coast_outputs(self.ops.next(), outputs);
    }

    /// Lives `count` such steps; `tokens` holds those of the first step in the order of its outputs, then those of the
    /// second, and so on.
    ///
    /// # Panics
    /// If the tokens are not as many.
    pub fn coast(&mut self, count: u32, tokens: &[Token]) {
        self.sched.coast(&mut self.metrics, &mut self.ops, count, tokens);
    }
}

//! What one life of a worker was told, and what it answered: enough to live it again, bit for bit.
//!
//! A journal holds each input with its time and the fingerprint of the step's outputs, in the codec's form. [`replay`]
//! feeds the inputs to a fresh machine and stops at the first step that answers differently.

use pd_core::codec::{Codec, DecodeError, Source};
use pd_core::machine::Machine;
use pd_core::op::{Input, Output};
use pd_core::pump::{Pump, Step, Tap};
use pd_core::time::Instant;
use thiserror::Error;

/// All inputs of one life.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Journal {
    bytes: Vec<u8>,
    steps: u64,
}

/// One step of a journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// When.
    pub at: Instant,
    /// What the machine was told.
    pub input: Input,
    /// What it answered.
    pub step: Step,
}

pd_core::codec!(struct Entry { at, input, step });

/// Where a replay left its journal.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Divergence {
    /// A step answered differently.
    #[error("step {} at {}: outputs {replayed:016x} instead of {:016x} after {input:?}", .recorded.number, .recorded.at, .recorded.outputs)]
    Step {
        /// As it was.
        recorded: Step,
        /// The fingerprint of the outputs of the replay.
        replayed: u64,
        /// What the machine was told.
        input: Box<Input>,
    },
    /// The journal is cut off or damaged.
    #[error("the journal cannot be read: {0}")]
    Journal(#[from] DecodeError),
}

impl Journal {
    /// Steps in it.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// The codec form: entries one after the other.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The entries in order.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, DecodeError>> + '_ {
        let mut source = Source::new(&self.bytes);
        std::iter::from_fn(move || (source.rest() > 0).then(|| Entry::decode(&mut source)))
    }

    fn before(&mut self, at: Instant, input: &Input) {
        at.encode(&mut self.bytes);
        input.encode(&mut self.bytes);
    }

    fn after(&mut self, step: Step) {
        step.encode(&mut self.bytes);
        self.steps += 1;
    }
}

/// Feeds a journal to a fresh machine of the same build and configuration; returns the steps that agreed.
///
/// # Errors
/// At the first step that answers differently, or if the journal is damaged.
pub fn replay<M>(machine: M, journal: &Journal) -> Result<u64, Divergence>
where
    M: Machine<Input = Input, Output = Output>,
{
    let mut pump = Pump::new(machine, Last::default());
    let mut steps = 0;
    for entry in journal.entries() {
        let Entry { at, input, step } = entry?;
        drop(pump.feed(at, input.clone()));
        if pump.tap.0 != Some(step) {
            let replayed = pump.tap.0.map_or(0, |step| step.outputs);
            return Err(Divergence::Step { recorded: step, replayed, input: Box::new(input) });
        }
        steps += 1;
    }
    Ok(steps)
}

/// What a world attaches to each worker.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Keep what it is told.
    pub journal: Option<Journal>,
}

impl<M: Machine<Input = Input>> Tap<M> for Watch {
    #[inline]
    fn before(&mut self, at: Instant, input: &Input) {
        if let Some(journal) = &mut self.journal {
            journal.before(at, input);
        }
    }

    #[inline]
    fn after(&mut self, _: &M, step: Step) {
        if let Some(journal) = &mut self.journal {
            journal.after(step);
        }
    }
}

/// Keeps the last step.
#[derive(Debug, Default)]
struct Last(Option<Step>);

impl<M: Machine> Tap<M> for Last {
    fn after(&mut self, _machine: &M, step: Step) {
        self.0 = Some(step);
    }
}

//! How much may be promised: the guarantee (exact, in pages) and the estimate (a share of what running sequences may
//! still ask for).
//!
//! The guarantee keeps decoding from running dry within the next steps; the estimate keeps admission from filling the
//! pool with sequences that would retract each other soon after. Both are compared with what the cache can free now.

use crate::config::SchedConfig;

/// The share of their remaining limit that running sequences are expected to use; decays linearly while all goes well.
#[derive(Clone, Debug)]
pub(super) struct Ratio {
    init: u32,
    min: u32,
    step: u32,
    /// In parts per million: a step of the decay is less than one per mille.
    now: u32,
}

impl Ratio {
    pub(super) fn new(config: &SchedConfig) -> Self {
        let init = config.new_token_ratio_init_per_mille * 1000;
        let min = config.new_token_ratio_min_per_mille * 1000;
        let step = ((init - min) / config.new_token_ratio_decay_steps.max(1)).max(1);
        Self { init, min, step, now: init }
    }

    /// A decode step was launched.
    pub(super) fn decay(&mut self) {
        self.now = self.now.saturating_sub(self.step).max(self.min);
    }

    /// That many decode steps were launched.
    pub(super) fn decay_by(&mut self, count: u32) {
        self.now = self.now.saturating_sub(self.step.saturating_mul(count)).max(self.min);
    }

    /// Nothing runs and nothing waits.
    pub(super) fn reset(&mut self) {
        self.now = self.init;
    }

    /// After a retraction: what the survivors have produced, and [`RETRACT_STEPS`] more steps, of what they may.
    pub(super) fn raise(&mut self, produced: u64, limits: u64, running: u64) {
        let ratio = (produced + RETRACT_STEPS * running) * 1_000_000 / (limits + 1);
        self.now = (ratio.min(1_000_000) as u32).max(self.min);
    }

    /// The share of `tokens`, rounded up.
    pub(super) fn of(&self, tokens: u64) -> u64 {
        (tokens * u64::from(self.now)).div_ceil(1_000_000)
    }

    pub(super) const fn ppm(&self) -> u32 {
        self.now
    }
}

/// What admitted sequences have been promised beyond the pages that they hold, during one pass of admission.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Room {
    /// Pages for the next steps of each admitted sequence.
    pub(super) promised: u64,
    /// Pages that they are expected to use until they end.
    pub(super) expected: u64,
}

/// Steps that survivors of a retraction are expected to run at least (SGLang's `RETRACT_DECODE_STEPS`).
const RETRACT_STEPS: u64 = 20;

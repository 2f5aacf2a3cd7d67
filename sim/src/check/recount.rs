//! When all state of a worker is counted again.
//!
//! A recount costs time in proportion to the state, about 20 ns a page. So it is spaced such that it costs each step a
//! constant: once every `pages / PAGES_PER_STEP` steps, `pages` being those of L1 and L2. Besides, a worker of at most
//! [`PAGES_SMALL`] pages is counted after each of its first [`STEPS_EACH`] steps, a larger one after steps 1, 2, 4, 8, ...,
//! and every one when the run ends. What a step touches is checked in every step, whatever the size.

use pd_core::config::KvConfig;

/// Counts steps of one life.
#[derive(Clone, Copy, Debug)]
pub struct Recounts {
    steps: u64,
    pages: u64,
}

impl Recounts {
    /// A life begins.
    #[must_use]
    pub fn new(config: &KvConfig) -> Self {
        Self { steps: 0, pages: u64::from(config.gpu_pages) + u64::from(config.host_pages) }
    }

    /// A step has been taken: true if all is to be counted.
    pub fn is_due(&mut self) -> bool {
        self.steps += 1;
        self.is_rare() || self.steps.is_multiple_of((self.pages / PAGES_PER_STEP).max(1))
    }

    /// True in the first steps of a small worker and in ever fewer later ones: for what may cost more than the pages do,
    /// since L3 is larger than any memory.
    #[must_use]
    pub const fn is_rare(&self) -> bool {
        self.pages <= PAGES_SMALL && self.steps <= STEPS_EACH || self.steps.is_power_of_two()
    }

    /// Steps taken.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }
}

/// Pages of L1 and L2 up to which a worker is counted after each of its first steps.
const PAGES_SMALL: u64 = 4096;
/// How many those are.
const STEPS_EACH: u64 = 512;
/// Pages that a step pays for.
const PAGES_PER_STEP: u64 = 4;

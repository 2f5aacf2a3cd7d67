//! Draws of a plan: small numbers often, large ones sometimes.

use pd_core::rng::{Rng, Stream};

/// A stream of draws about one thing, so that a draw more about one thing moves no other.
#[derive(Debug)]
pub(super) struct Dice(Rng);

impl Dice {
    pub(super) fn new(seed: u64, topic: u64) -> Self {
        Self(Rng::new(seed, Stream::Swarm, topic))
    }

    /// True `per_mille` times in a thousand.
    pub(super) fn chance(&mut self, per_mille: u32) -> bool {
        self.0.chance(per_mille)
    }

    /// One of these.
    pub(super) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.0.below(items.len() as u64) as usize]
    }

    /// A number from `low` to `high`, all alike.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.below(high - low + 1)
    }

    /// A number from `low` to `high`, log-uniform above `low`: each doubling is equally likely.
    pub(super) fn log(&mut self, low: u64, high: u64) -> u64 {
        let room = high - low;
        let bits = u64::from(u64::BITS - room.leading_zeros());
        let width = self.0.below(bits + 1) as u32;
        let above = 1_u64.checked_shl(width).map_or(u64::MAX, |end| end - 1).min(room);
        low + self.0.below(above.saturating_add(1))
    }

    /// A time that is log-uniform from a microsecond's thousandth of `high` on, cut to whole microseconds.
    pub(super) fn span(&mut self, low_ns: u64, high_ns: u64) -> u64 {
        let doublings = u64::from((high_ns / low_ns).ilog2());
        let base = low_ns << self.0.below(doublings + 1);
        let ns = base + self.0.below(base);
        let unit = if ns >= 10_000_000 { 1_000_000 } else { 1_000 };
        (ns - ns % unit).clamp(low_ns, high_ns)
    }
}

//! The clock of a worker is off: set wrong, and too fast or too slow. Machines never compare times of two of them, so
//! nothing but the length of their own waits may change.
//!
//! A clock that is set back does not run backwards for a machine: it stands still until it has caught up (the pump sees
//! to it), and what it waits for is that much later.

use std::time::Duration;

use pd_core::time::Instant;
use serde::{Deserialize, Serialize};

use super::Fault;
use super::places::{Places, Wrong};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A wrong clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockSkew {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// By how much it is ahead of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<Span>,
    /// By how much it is behind the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<Span>,
    /// By how many millionths it is too fast (or, below 0, too slow).
    #[serde(default)]
    pub ppm: i32,
    /// Until it is set right; never if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

/// What the clock of a worker shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Clock {
    since: Instant,
    offset_ns: i64,
    ppm: i32,
}

impl Clock {
    /// What it shows.
    #[inline]
    pub(crate) fn shows(&self, now: Instant) -> Instant {
        if self.offset_ns == 0 && self.ppm == 0 {
            return now;
        }
        let drift = i128::from(now.ns_since(self.since)) * i128::from(self.ppm) / MILLION;
        let shown = i128::from(now.0) + i128::from(self.offset_ns) + drift;
        Instant(shown.clamp(0, i128::from(u64::MAX)) as u64)
    }

    /// When it will show at least this.
    #[inline]
    pub(crate) fn when(&self, shown: Instant) -> Instant {
        if self.offset_ns == 0 && self.ppm == 0 {
            return shown;
        }
        let since = i128::from(self.since.0);
        let ahead = i128::from(shown.0) - i128::from(self.offset_ns) - since;
        let elapsed = (ahead * MILLION).div_euclid(MILLION + i128::from(self.ppm));
        // The drift is rounded towards zero, so the quotient may be a nanosecond or two off.
        let mut when = Instant((since + elapsed - 2).clamp(0, i128::from(u64::MAX)) as u64);
        while self.shows(when) < shown && when.0 < u64::MAX {
            when = when.after_ns(1);
        }
        when
    }
}

const MILLION: i128 = 1_000_000;

impl Fault for ClockSkew {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.worker(self.worker)?;
        if self.ahead.is_some() && self.behind.is_some() {
            return Err(Wrong::new("behind", "a clock is ahead or behind; keep one"));
        }
        if self.ahead.or(self.behind).is_none_or(|span| span.ns() == 0) && self.ppm == 0 {
            return Err(Wrong::new("do", "how wrong is the clock? Say ahead = \"3s\", behind = \"3s\" or ppm = 200"));
        }
        if !(-PPM_MAX..=PPM_MAX).contains(&self.ppm) {
            return Err(Wrong::new("ppm", format!("ppm is {}; it must be from -{PPM_MAX} to {PPM_MAX}", self.ppm)));
        }
        Ok(())
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let ns = |span: Option<Span>| i64::try_from(span.map_or(0, Span::ns)).unwrap_or(i64::MAX);
        let clock = Clock { since: world.now, offset_ns: ns(self.ahead) - ns(self.behind), ppm: self.ppm };
        set(world, self.worker, clock);
        world.fabric.hits.add(line, 1);
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let _ = line;
        set(world, self.worker, Clock::default());
    }
}

/// A clock is set; what the worker waits for is at other times now.
fn set<M: Serve>(world: &mut WorldOf<M>, worker: u32, clock: Clock) {
    let node = &mut world.nodes[worker as usize];
    node.clock = clock;
    node.tick_at = None;
    world.arm_tick(worker);
}

/// A tenth: far worse than any quartz.
const PPM_MAX: i32 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_comes_when_the_clock_first_shows_it() {
        for ppm in [-100_000, -200, -1, 1, 37, 100_000] {
            for offset_ns in [-5_000, 0, 3_000_000_000] {
                let clock = Clock { since: Instant(1_000_000), offset_ns, ppm };
                for shown in (2_000_000..2_001_000).chain([77_777_777_777, 9_999_999_999_999]) {
                    let shown = Instant(shown + offset_ns.unsigned_abs());
                    let when = clock.when(shown);
                    assert!(clock.shows(when) >= shown, "{clock:?} {shown}");
                    assert!(when.0 == 0 || clock.shows(Instant(when.0 - 1)) < shown, "{clock:?} {shown}");
                }
            }
        }
    }

    #[test]
    fn a_right_clock_changes_nothing() {
        let clock = Clock::default();
        assert_eq!((clock.shows(Instant(5)), clock.when(Instant(5))), (Instant(5), Instant(5)));
    }
}

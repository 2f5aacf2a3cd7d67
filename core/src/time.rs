//! Virtual or real time as a value: nanoseconds since the start of the run.
//!
//! Core never asks what time it is; `now` arrives with each input. Times of two machines are never compared.

use core::fmt;
use core::ops::{Add, Sub};
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::{Codec, DecodeError, Sink, Source};

/// A point in time, in nanoseconds since the start of the run. Arithmetic saturates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instant(pub u64);

impl Instant {
    /// The start of the run.
    pub const ZERO: Self = Self(0);
    /// Later than everything.
    pub const MAX: Self = Self(u64::MAX);

    /// This point moved by `ns` nanoseconds.
    #[inline]
    #[must_use]
    pub const fn after_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// Nanoseconds from `older` to this point, 0 if `older` is the later one.
    #[inline]
    #[must_use]
    pub const fn ns_since(self, older: Self) -> u64 {
        self.0.saturating_sub(older.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        self.after_ns(nanos(span))
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, older: Self) -> Duration {
        Duration::from_nanos(self.ns_since(older))
    }
}

impl Codec for Instant {
    #[inline]
    fn encode<S: Sink>(&self, sink: &mut S) {
        sink.u64(self.0);
    }
    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        Ok(Self(source.u64()?))
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The earlier of two deadlines, each with its reason; the first one at a tie.
#[must_use]
#[inline]
pub fn earlier(
    one: Option<(Instant, &'static str)>,
    other: Option<(Instant, &'static str)>,
) -> Option<(Instant, &'static str)> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.0 < one.0 { other } else { one }),
        (one, None) => one,
        (None, other) => other,
    }
}

/// The nanoseconds of a span; spans beyond 584 years are as long as that.
#[must_use]
pub fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

//! Values that several faults have keys for: shares, speeds, and who is at the other end.

use std::fmt;

use pd_core::rng::Rng;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A share of what happens, from 0 to 1, in millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Share(u32);

/// How fast something still is, from 0 (stopped) to 1 (as ever), in millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Speed(u32);

/// The other end of what a worker says and hears: a worker by its index, or `"router"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Peer {
    /// A worker.
    Worker(u32),
    /// The router and, through it, the clients.
    Router,
}

const MILLION: u32 = 1_000_000;

impl Share {
    /// All of it.
    pub const ALL: Self = Self(MILLION);

    /// From a fraction; none if it is not from 0 to 1.
    #[must_use]
    pub fn new(fraction: f64) -> Option<Self> {
        millionths(fraction).map(Self)
    }

    /// Draws: true as often as the share says.
    pub(crate) fn draw(self, rng: &mut Rng) -> bool {
        rng.below(u64::from(MILLION)) < u64::from(self.0)
    }
}

/// All of it.
impl Default for Share {
    fn default() -> Self {
        Self::ALL
    }
}

impl Speed {
    /// Nothing moves.
    pub const STOPPED: Self = Self(0);

    /// From a fraction; none if it is not from 0 to 1.
    #[must_use]
    pub fn new(fraction: f64) -> Option<Self> {
        millionths(fraction).map(Self)
    }

    /// True if nothing moves.
    #[must_use]
    pub const fn is_stopped(self) -> bool {
        self.0 == 0
    }

    /// A rate at this speed, rounded down.
    pub(crate) fn rate(self, full: u64) -> u64 {
        (u128::from(full) * u128::from(self.0) / u128::from(MILLION)) as u64
    }

    /// A duration at this speed.
    ///
    /// # Panics
    /// If it is stopped.
    pub(crate) fn time(self, full: u64) -> u64 {
        assert!(!self.is_stopped(), "what is stopped takes for ever");
        u64::try_from(u128::from(full) * u128::from(MILLION) / u128::from(self.0)).unwrap_or(u64::MAX)
    }
}

fn millionths(fraction: f64) -> Option<u32> {
    let parts = (0.0..=1.0).contains(&fraction).then(|| (fraction * f64::from(MILLION)).round() as u32)?;
    // What is not nothing does not become nothing.
    Some(if fraction > 0.0 { parts.max(1) } else { parts })
}

struct Fraction(&'static str);

impl Visitor<'_> for Fraction {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {} from 0 to 1, such as 0.25", self.0)
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<u32, E> {
        millionths(value).ok_or_else(|| E::invalid_value(de::Unexpected::Float(value), &self))
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<u32, E> {
        millionths(value as f64).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(value), &self))
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<u32, E> {
        millionths(value as f64).ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(value), &self))
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Fraction("share")).map(Self)
    }
}

impl<'de> Deserialize<'de> for Speed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Fraction("speed")).map(Self)
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / f64::from(MILLION))
    }
}

impl Serialize for Speed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / f64::from(MILLION))
    }
}

impl<'de> Deserialize<'de> for Peer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Peer;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the index of a worker, or \"router\"")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Peer, E> {
                let index = u32::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))?;
                Ok(Peer::Worker(index))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Peer, E> {
                let index =
                    u32::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))?;
                Ok(Peer::Worker(index))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Peer, E> {
                if value == "router" {
                    Ok(Peer::Router)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(value), &self))
                }
            }
        }
        deserializer.deserialize_any(Name)
    }
}

impl Serialize for Peer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Worker(index) => serializer.serialize_u32(*index),
            Self::Router => serializer.serialize_str("router"),
        }
    }
}

#[cfg(test)]
mod tests {
    use pd_core::rng::Stream;

    use super::*;

    #[test]
    fn a_share_is_drawn_about_as_often_as_it_says_and_the_ends_exactly() {
        let mut rng = Rng::new(1, Stream::Fault, 0);
        let mut count = |share: f64| {
            let share = Share::new(share).expect("from 0 to 1");
            (0..10_000).filter(|_| share.draw(&mut rng)).count()
        };
        assert_eq!((count(0.0), count(1.0)), (0, 10_000));
        assert!((2_300..2_700).contains(&count(0.25)));
    }

    #[test]
    fn speeds_slow_rates_and_stretch_times() {
        let tenth = Speed::new(0.1).expect("from 0 to 1");
        assert_eq!((tenth.rate(1_000), tenth.time(1_000)), (100, 10_000));
        assert!(Speed::new(0.0).expect("from 0 to 1").is_stopped());
        assert_eq!(Speed::new(1.5), None);
        assert!(!Speed::new(1e-9).expect("from 0 to 1").is_stopped());
    }
}

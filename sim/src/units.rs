//! Quantities as people write them in a scenario: "250ms", "64GiB", "400Gb/s", "3.4/s", "328k".
//!
//! Owns parsing and nothing else. A quantity is a decimal number and a unit without a space between (one space is
//! forgiven). All arithmetic is on integers: "1.1s" is 1,100,000,000 ns, and what does not come out as a whole number
//! is an error, not a rounded value.

use core::fmt;
use core::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Serialize, Serializer};
use thiserror::Error;

use pd_core::time::nanos;

/// Why a text is not a quantity.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum UnitError {
    /// No number in front.
    #[error("\"{text}\" does not start with a number; write one like {example}")]
    Number {
        /// What was written.
        text: String,
        /// What would be right.
        example: &'static str,
    },
    /// No unit, or one of another quantity.
    #[error("\"{text}\": {found}; {quantity} takes one of {accepted}")]
    Unit {
        /// What was written.
        text: String,
        /// What is wrong with the unit.
        found: String,
        /// Which quantity was expected.
        quantity: &'static str,
        /// The units it may have.
        accepted: String,
    },
    /// A fraction of the smallest thing that is counted.
    #[error("\"{text}\" is not a whole number of {smallest}")]
    Fraction {
        /// What was written.
        text: String,
        /// What is counted.
        smallest: &'static str,
    },
    /// Too large for 64 bits, or zero where that means nothing.
    #[error("\"{text}\" is out of range for {quantity}")]
    Range {
        /// What was written.
        text: String,
        /// Which quantity was expected.
        quantity: &'static str,
    },
}

/// A length of time: `ns`, `us`, `ms`, `s`, `m` (or `min`), `h`, `d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Span(pub Duration);

/// An amount of memory: `B`, `kB`, `MB`, `GB`, `TB` (powers of 1000), `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Bytes(pub u64);

/// A speed of transfer, in bytes a second: bytes as `7GB/s`, bits as `400Gb/s` (or `400Gbit/s`, `400Gbps`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct BytesPerSecond(pub u64);

/// How many of something: plain, or with `k`, `M`, `G` (powers of 1000) or `Ki`, `Mi`, `Gi` (powers of 1024).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Count(pub u64);

/// How often something happens: `count` times in `span_ns`, kept as written so that 3.4/s is exact.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Events; more than 0.
    pub count: u64,
    /// In how many nanoseconds; more than 0.
    pub span_ns: u64,
}

impl Span {
    /// A span of whole seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The span in nanoseconds.
    #[must_use]
    pub fn ns(self) -> u64 {
        nanos(self.0)
    }
}

/// As it is read: in the largest unit that makes it a whole number.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.ns();
        let units = [("h", 3_600_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];
        match units.into_iter().find(|(_, unit)| ns > 0 && ns.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", ns / unit),
            None => write!(f, "{ns}ns"),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// As it is read: whole bytes.
impl Serialize for BytesPerSecond {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}B/s", self.0))
    }
}

impl Rate {
    /// Mean time between two events in nanoseconds, with 32 more bits behind the point.
    #[must_use]
    pub fn interval_q32(self) -> u128 {
        (u128::from(self.span_ns) << 32) / u128::from(self.count)
    }
}

/// Reads a length of time.
///
/// # Errors
/// As [`UnitError`] says.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    DURATION.whole(text).map(Duration::from_nanos)
}

/// Reads an amount of memory.
///
/// # Errors
/// As [`UnitError`] says.
pub fn bytes(text: &str) -> Result<u64, UnitError> {
    BYTES.whole(text)
}

/// Reads a speed of transfer as bytes a second.
///
/// # Errors
/// As [`UnitError`] says.
pub fn bytes_per_second(text: &str) -> Result<u64, UnitError> {
    let bits = SPEED.whole(text)?;
    match bits % 8 {
        0 => Ok(bits / 8),
        _ => Err(UnitError::Fraction { text: text.into(), smallest: SPEED.smallest }),
    }
}

/// Reads a count.
///
/// # Errors
/// As [`UnitError`] says.
pub fn count(text: &str) -> Result<u64, UnitError> {
    COUNT.whole(text)
}

/// Reads how often something happens: "3.4/s", "90/min", "5k/h".
///
/// # Errors
/// As [`UnitError`] says.
pub fn rate(text: &str) -> Result<Rate, UnitError> {
    let (number, unit_ns) = RATE.parts(text)?;
    let range = || UnitError::Range { text: text.into(), quantity: RATE.quantity };
    let span = number.below.checked_mul(unit_ns).ok_or_else(range)?;
    let divisor = greatest_common_divisor(number.above, span);
    if number.above == 0 {
        return Err(range());
    }
    let count = u64::try_from(number.above / divisor).map_err(|_| range())?;
    let span_ns = u64::try_from(span / divisor).map_err(|_| range())?;
    // More often than every nanosecond, or less often than every ten days, is a slip of the pen; the bounds also keep
    // `interval_q32` and the arithmetic of load::dice in 128 bits.
    if u128::from(count) > u128::from(span_ns) || u128::from(span_ns) / u128::from(count) > 1 << 50 {
        return Err(range());
    }
    Ok(Rate { count, span_ns })
}

/// A decimal number as `above / below`, `below` a power of ten.
struct Decimal {
    above: u128,
    below: u128,
}

/// One kind of quantity and what its units are worth in the smallest thing counted.
struct Quantity {
    quantity: &'static str,
    smallest: &'static str,
    example: &'static str,
    units: &'static [(&'static str, u128)],
}

impl Quantity {
    /// The number and the worth of its unit.
    fn parts(&self, text: &str) -> Result<(Decimal, u128), UnitError> {
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(end);
        let number = decimal(number).ok_or_else(|| UnitError::Number { text: text.into(), example: self.example })?;
        let unit = unit.trim_start();
        let Some(&(_, worth)) = self.units.iter().find(|(name, _)| *name == unit) else {
            let names: Vec<&str> = self.units.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
            let found = if unit.is_empty() { "the unit is missing".into() } else { format!("no unit \"{unit}\"") };
            return Err(UnitError::Unit {
                text: text.into(),
                found,
                quantity: self.quantity,
                accepted: names.join(", "),
            });
        };
        Ok((number, worth))
    }

    fn whole(&self, text: &str) -> Result<u64, UnitError> {
        let (number, worth) = self.parts(text)?;
        let range = || UnitError::Range { text: text.into(), quantity: self.quantity };
        let product = number.above.checked_mul(worth).ok_or_else(range)?;
        if product % number.below != 0 {
            return Err(UnitError::Fraction { text: text.into(), smallest: self.smallest });
        }
        u64::try_from(product / number.below).map_err(|_| range())
    }
}

fn decimal(text: &str) -> Option<Decimal> {
    let mut number = Decimal { above: 0, below: 1 };
    let mut digits = 0;
    let mut behind_point = false;
    for character in text.chars() {
        match character {
            '_' => {}
            '.' if !behind_point => behind_point = true,
            _ => {
                let digit = character.to_digit(10)?;
                digits += 1;
                // 24 digits keep every product below 2^128 that `checked_mul` does not catch anyway.
                if digits > 24 {
                    return None;
                }
                number.above = number.above * 10 + u128::from(digit);
                number.below *= if behind_point { 10 } else { 1 };
            }
        }
    }
    (digits > 0).then_some(number)
}

fn greatest_common_divisor(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

const DURATION: Quantity = Quantity {
    quantity: "a duration",
    smallest: "nanoseconds",
    example: "\"250ms\" or \"1.5s\"",
    units: &[
        ("ns", 1),
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("min", 60_000_000_000),
        ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
    ],
};

const BYTES: Quantity = Quantity {
    quantity: "an amount of memory",
    smallest: "bytes",
    example: "\"256GB\" or \"64GiB\"",
    units: &[
        ("B", 1),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
    ],
};

/// In bits, so that both kinds share a table.
const SPEED: Quantity = Quantity {
    quantity: "a speed",
    smallest: "bytes a second",
    example: "\"400Gb/s\" or \"7GB/s\"",
    units: &[
        ("B/s", 8),
        ("kB/s", 8_000),
        ("MB/s", 8_000_000),
        ("GB/s", 8_000_000_000),
        ("TB/s", 8_000_000_000_000),
        ("KiB/s", 8 << 10),
        ("MiB/s", 8 << 20),
        ("GiB/s", 8 << 30),
        ("TiB/s", 8 << 40),
        ("kb/s", 1_000),
        ("Mb/s", 1_000_000),
        ("Gb/s", 1_000_000_000),
        ("Tb/s", 1_000_000_000_000),
        ("Mbit/s", 1_000_000),
        ("Gbit/s", 1_000_000_000),
        ("Mbps", 1_000_000),
        ("Gbps", 1_000_000_000),
    ],
};

const COUNT: Quantity = Quantity {
    quantity: "a count",
    smallest: "units",
    example: "\"328k\" or \"1M\"",
    units: &[
        ("", 1),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
    ],
};

const RATE: Quantity = Quantity {
    quantity: "a rate",
    smallest: "events",
    example: "\"3.4/s\" or \"90/min\"",
    units: &[
        ("/s", 1_000_000_000),
        ("/m", 60_000_000_000),
        ("/min", 60_000_000_000),
        ("/h", 3_600_000_000_000),
        ("/d", 86_400_000_000_000),
    ],
};

/// What serde calls with a text or, where `plain` allows it, a bare integer.
struct Reader<T> {
    expected: &'static str,
    text: fn(&str) -> Result<T, UnitError>,
    plain: Option<fn(u64) -> T>,
}

impl<T> Visitor<'_> for Reader<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.text)(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        match self.plain {
            Some(plain) => Ok(plain(value)),
            None => Err(E::invalid_type(de::Unexpected::Unsigned(value), &self)),
        }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => Err(E::invalid_value(de::Unexpected::Signed(value), &self)),
        }
    }
}

macro_rules! quantity {
    ($name:ident, $expected:literal, $text:expr, $plain:expr) => {
        impl<'de> de::Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
                source.deserialize_any(Reader { expected: $expected, text: $text, plain: $plain })
            }
        }
    };
}
quantity!(Span, "a duration like \"250ms\", \"1.5s\" or \"2m\"", |text| duration(text).map(Span), None);
quantity!(Bytes, "an amount of memory like \"256GB\" or \"64GiB\"", |text| bytes(text).map(Bytes), None);
quantity!(
    BytesPerSecond,
    "a speed like \"400Gb/s\" or \"7GB/s\"",
    |text| bytes_per_second(text).map(BytesPerSecond),
    None
);
quantity!(Count, "a count like 1000, \"328k\" or \"1M\"", |text| count(text).map(Count), Some(Count));
quantity!(Rate, "a rate like \"3.4/s\" or \"90/min\"", rate, None);

#[cfg(test)]
mod tests;

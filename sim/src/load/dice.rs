//! Random lengths and gaps, computed with integers so that every platform draws the same.
//!
//! The library functions `ln` and `exp` differ in their last bits between platforms; one bit in one gap is another
//! run. Here both are series on 128-bit fixed point: -ln is right to 1e-15 relative over its whole range, 2^x to 1e-9.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use pd_core::rng::Rng;

use crate::trace::TOKENS_MAX;
use crate::units::{Count, Span, count};

/// How a number of tokens is drawn.
///
/// ```toml
/// prompt_tokens = 200                                                      # always; "8k" is 8000
/// prompt_tokens = { uniform = [128, 2048] }                                # both ends included
/// prompt_tokens = { exponential = { mean = 500, max = 4000 } }
/// prompt_tokens = { log_normal = { p50 = 1000, p90 = 4000, max = 32000 } } # six sigma are the end
/// prompt_tokens = { quantiles = [1, 800, 2000, 9000] }                     # equally likely between neighbours
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lengths(Shape);

/// How a pause is drawn: `"2s"`, `{ exponential = "2s" }` (its mean) or `{ uniform = ["1s", "3s"] }`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pause(PauseShape);

#[derive(Clone, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Shape {
    #[serde(skip)]
    Constant(u32),
    Uniform([Count; 2]),
    Exponential(Exponential),
    LogNormal(LogNormal),
    Quantiles(Vec<Count>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Exponential {
    mean: Count,
    max: Option<Count>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct LogNormal {
    p50: Count,
    p90: Count,
    max: Option<Count>,
}

#[derive(Clone, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum PauseShape {
    #[serde(skip)]
    Constant(Span),
    Exponential(Span),
    Uniform([Span; 2]),
}

impl Lengths {
    /// Always this many.
    ///
    /// # Panics
    /// If `tokens` is 0 or above [`TOKENS_MAX`].
    #[must_use]
    pub fn constant(tokens: u32) -> Self {
        assert!((1..=TOKENS_MAX).contains(&tokens), "a length is 1 to {TOKENS_MAX}");
        Self(Shape::Constant(tokens))
    }

    /// Draws a length, at least 1.
    pub fn draw(&self, rng: &mut Rng) -> u32 {
        let limit = u64::from(self.max());
        let length = match &self.0 {
            Shape::Constant(tokens) => u64::from(*tokens),
            Shape::Uniform([low, high]) => low.0 + rng.below(high.0 - low.0 + 1),
            Shape::Exponential(Exponential { mean, .. }) => {
                let tokens_q48 = (neg_ln_q96(rng.next()) >> 48) * u128::from(mean.0);
                let tokens = (tokens_q48 + (1 << 47)) >> 48;
                u64::try_from(tokens).unwrap_or(limit)
            }
            Shape::LogNormal(LogNormal { p50, p90, .. }) => log_normal(p50.0, p90.0, rng),
            Shape::Quantiles(points) => {
                let place = u128::from(rng.next()) * (points.len() as u128 - 1);
                let (index, part) = ((place >> 64) as usize, place as u64);
                let (low, high) = (points[index].0, points[index + 1].0);
                low + ((u128::from(high - low + 1) * u128::from(part)) >> 64) as u64
            }
        };
        length.clamp(1, limit) as u32
    }

    /// The longest that can be drawn.
    #[must_use]
    pub fn max(&self) -> u32 {
        let max = match &self.0 {
            Shape::Constant(tokens) => u64::from(*tokens),
            Shape::Uniform([_, high]) => high.0,
            Shape::Exponential(Exponential { mean, max }) => max.map_or(mean.0.saturating_mul(45), |max| max.0),
            Shape::LogNormal(LogNormal { max, .. }) => max.map_or(u64::MAX, |max| max.0),
            Shape::Quantiles(points) => points.last().map_or(1, |last| last.0),
        };
        max.min(u64::from(TOKENS_MAX)) as u32
    }

    /// The error in a shape, if there is one.
    fn flaw(&self) -> Option<String> {
        let outside = |Count(value): &Count| !(1..=u64::from(TOKENS_MAX)).contains(value);
        let (values, rising): (Vec<Count>, _) = match &self.0 {
            Shape::Constant(tokens) => (vec![Count(u64::from(*tokens))], "a length"),
            Shape::Uniform(ends) => (ends.to_vec(), "uniform = [smallest, largest]"),
            Shape::Exponential(Exponential { mean, max }) => {
                ([Some(*mean), *max].into_iter().flatten().collect(), "exponential = { mean, max }")
            }
            Shape::LogNormal(LogNormal { p50, p90, max }) => {
                ([Some(*p50), Some(*p90), *max].into_iter().flatten().collect(), "log_normal = { p50, p90, max }")
            }
            Shape::Quantiles(points) => (points.clone(), "quantiles = [smallest, ..., largest]"),
        };
        if let Some(Count(value)) = values.iter().find(|value| outside(value)) {
            return Some(format!("{value} is not a length; expected 1 to {TOKENS_MAX} tokens"));
        }
        let few = matches!(&self.0, Shape::Quantiles(points) if points.len() < 2);
        (few || !values.is_sorted()).then(|| format!("the numbers of {rising} must be at least two, and rise"))
    }
}

impl Pause {
    /// Draws a pause in nanoseconds.
    pub fn draw_ns(&self, rng: &mut Rng) -> u64 {
        match &self.0 {
            PauseShape::Constant(span) => span.ns(),
            PauseShape::Exponential(mean) => {
                let ns = exponential_q32(u128::from(mean.ns()) << 32, rng) >> 32;
                u64::try_from(ns).unwrap_or(u64::MAX)
            }
            PauseShape::Uniform([low, high]) => low.ns() + rng.below(high.ns() - low.ns() + 1),
        }
    }

    fn flaw(&self) -> Option<String> {
        let (longest, sorted) = match &self.0 {
            PauseShape::Constant(span) | PauseShape::Exponential(span) => (*span, true),
            PauseShape::Uniform([low, high]) => (*high, low <= high),
        };
        // Keeps `exponential_q32` in 128 bits, and times far from the end of `u64`.
        let long = longest.ns() > 1 << 50;
        (long || !sorted).then(|| "a pause is at most 13 days, and uniform = [shortest, longest]".into())
    }
}

impl Default for Pause {
    fn default() -> Self {
        Self(PauseShape::Constant(Span::default()))
    }
}

/// An exponentially distributed gap, as nanoseconds with 32 more bits behind the point like its mean (below 2^82).
pub(super) fn exponential_q32(mean_q32: u128, rng: &mut Rng) -> u128 {
    // 46 bits of -ln(u) times 82 bits.
    ((neg_ln_q96(rng.next()) >> 56) * mean_q32) >> 40
}

/// -ln((draw + 1) / 2^64) with 96 bits behind the point.
///
/// u = m / 2^k with m in [1/sqrt 2, sqrt 2), and ln m = 2 atanh((m - 1) / (m + 1)). The quotient is below 0.172, so 14
/// terms of the series leave less than 2^-70 of it, and near u = 1 it is exact in the small difference 1 - u.
pub(super) fn neg_ln_q96(draw: u64) -> u128 {
    let value = u128::from(draw) + 1;
    // One more doubling takes [1/2, 1/sqrt 2) to [1, sqrt 2).
    let to_half = value.leading_zeros().saturating_sub(64);
    let doublings = if value << to_half < SQRT_HALF { to_half + 1 } else { to_half };
    let m = value << doublings;
    let (difference, sum) = (m.abs_diff(1 << 64), m + (1 << 64));
    // The quotient in two steps of a long division: 64 bits, then 32.
    let first = (difference << 64) / sum;
    let rest = (difference << 64) % sum;
    let quotient_q96 = (first << 32) | ((rest << 32) / sum);
    let square_q64 = (first * first) >> 64;
    // 1/3 z^2 + 1/5 z^4 + ...
    let mut series_q64 = 0_u128;
    for odd in (3..=29_u128).rev().step_by(2) {
        series_q64 = ((series_q64 + (1 << 64) / odd) * square_q64) >> 64;
    }
    let ln_q96 = 2 * (quotient_q96 + (((quotient_q96 >> 32) * series_q64) >> 32));
    let base = u128::from(doublings) * LN_2_Q96;
    if m >= 1 << 64 { base - ln_q96 } else { base + ln_q96 }
}

/// median * (p90 / median) ^ (z / z90), z from the sum of twelve uniform draws, whose variance is 1.
fn log_normal(p50: u64, p90: u64, rng: &mut Rng) -> u64 {
    let sum: u64 = (0..6).map(|_| rng.next()).map(|draw| (draw >> 32) + (draw & 0xffff_ffff)).sum();
    let z_q32 = i128::from(sum) - (6_i128 << 32);
    let below_one = (u128::from(p50) << 64) / u128::from(p90);
    let spread_q32 = match u64::try_from(below_one) {
        Ok(ratio) => (neg_ln_q96(ratio.saturating_sub(1)) >> 64) as i128,
        Err(_) => 0,
    };
    let power_q32 = z_q32 * spread_q32 / Z90_LN_2_Q32;
    let (whole, part) = (power_q32 >> 32, (power_q32 & 0xffff_ffff) as u64);
    let scaled_q62 = u128::from(exp2_q62(part)) * u128::from(p50);
    match u32::try_from(whole.unsigned_abs()) {
        Ok(shift) if whole < 0 => scaled_q62.checked_shr(62 + shift).unwrap_or(0) as u64,
        Ok(shift) if shift <= 40 => u64::try_from(scaled_q62 >> (62 - shift)).unwrap_or(u64::MAX),
        Ok(_) | Err(_) => u64::MAX,
    }
}

/// 2^(part / 2^32) with 62 bits behind the point, by the series of e^x.
fn exp2_q62(part_q32: u64) -> u64 {
    let x_q62 = (u128::from(part_q32) * LN_2_Q62) >> 32;
    let (mut term, mut sum) = (1_u128 << 62, 1_u128 << 62);
    for n in 1..=16 {
        term = ((term * x_q62) >> 62) / n;
        sum += term;
    }
    sum as u64
}

/// 2^64 / sqrt 2.
const SQRT_HALF: u128 = 13_043_817_825_332_782_212;
/// ln 2.
const LN_2_Q96: u128 = 0xb172_17f7_d1cf_79ab_c9e3_b398;
const LN_2_Q62: u128 = 0x2c5c_85fd_f473_de6a;
/// The 90 % quantile of the normal distribution, times ln 2.
const Z90_LN_2_Q32: i128 = 3_815_236_003;

/// What serde calls with a bare value or a table of one key.
struct Reader<T> {
    expected: &'static str,
    number: fn(u64) -> Option<T>,
    text: fn(&str) -> Result<T, String>,
    flaw: fn(&T) -> Option<String>,
}

trait FromTable: Sized {
    fn from_table<'de, A: MapAccess<'de>>(table: A) -> Result<Self, A::Error>;
}

impl FromTable for Lengths {
    fn from_table<'de, A: MapAccess<'de>>(table: A) -> Result<Self, A::Error> {
        Shape::deserialize(MapAccessDeserializer::new(table)).map(Self)
    }
}

impl FromTable for Pause {
    fn from_table<'de, A: MapAccess<'de>>(table: A) -> Result<Self, A::Error> {
        PauseShape::deserialize(MapAccessDeserializer::new(table)).map(Self)
    }
}

impl<T> Reader<T> {
    fn checked<E: de::Error>(&self, value: T) -> Result<T, E> {
        (self.flaw)(&value).map_or(Ok(value), |flaw| Err(E::custom(flaw)))
    }
}

impl<'de, T: FromTable> Visitor<'de> for Reader<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        match (self.number)(value) {
            Some(checked) => self.checked(checked),
            None => Err(E::invalid_value(de::Unexpected::Unsigned(value), &self)),
        }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => Err(E::invalid_value(de::Unexpected::Signed(value), &self)),
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let value = (self.text)(text).map_err(E::custom)?;
        self.checked(value)
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<T, A::Error> {
        let value = T::from_table(table)?;
        self.checked(value)
    }
}

impl<'de> Deserialize<'de> for Lengths {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        fn tokens(value: u64) -> Option<Lengths> {
            u32::try_from(value).ok().map(|tokens| Lengths(Shape::Constant(tokens)))
        }
        source.deserialize_any(Reader {
            expected: "a length like 200, or one of { uniform = [1, 9] }, { exponential = { mean = 5 } }, \
                       { log_normal = { p50 = 5, p90 = 9 } }, { quantiles = [1, 5, 9] }",
            number: tokens,
            text: |text| {
                let value = count(text).map_err(|error| error.to_string())?;
                tokens(value).ok_or_else(|| format!("{value} is not a length; expected 1 to {TOKENS_MAX} tokens"))
            },
            flaw: Self::flaw,
        })
    }
}

impl<'de> Deserialize<'de> for Pause {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        source.deserialize_any(Reader {
            expected: "a pause like \"2s\", { exponential = \"2s\" } or { uniform = [\"1s\", \"3s\"] }",
            number: |_| None,
            text: |text| {
                let span = crate::units::duration(text).map_err(|error| error.to_string())?;
                Ok(Self(PauseShape::Constant(Span(span))))
            },
            flaw: Self::flaw,
        })
    }
}

#[cfg(test)]
mod tests;

//! Integer logarithm, exponential, power mean and rates.
//!
//! Owns the arithmetic that floating point would do elsewhere; knows nothing of GPUs. All of it is integer, so every
//! platform and build computes the same bits.
//!
//! 1. `log2` and `exp2` are linear between 257 exact points: absolute error of `log2` below 2.8e-6, relative error of
//!    `exp2` below 1e-6. Both never decrease.
//! 2. [`power_mean`] is within 1e-5 of the real value and never decreases by more than its 2^-32 resolution.
//! 3. Nothing overflows: products are u128, results saturate.

/// `(a^q + b^q)^(1/q)` with q in per mille: the smooth maximum by which kernels blend two bounds.
///
/// q = 1,000 is the sum; a large q is the maximum. q below 1,000 counts as 1,000.
#[must_use]
pub fn power_mean(a: u64, b: u64, q_per_mille: u32) -> u64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == 0 {
        return high;
    }
    if q_per_mille <= 1_000 {
        return high.saturating_add(low);
    }
    let q = u64::from(q_per_mille.min(Q_PER_MILLE_MAX));
    // high * (1 + (low / high)^q)^(1/q), with the bracket in logarithms; 38 bits of logarithm times 16 bits of q.
    let ratio = exp2_minus((log2(high) - log2(low)) * q / 1_000);
    let bracket = log2(ONE + ratio) - (FRACTION_BITS << FRACTION_BITS);
    let factor = exp2(bracket * 1_000 / q);
    saturate((u128::from(high) * u128::from(factor)) >> FRACTION_BITS)
}

/// The binary logarithm in 32.32 fixed point; 0 for 0.
#[must_use]
pub fn log2(value: u64) -> u64 {
    if value == 0 {
        return 0;
    }
    let zeros = value.leading_zeros();
    // The mantissa without its leading one, as a 32-bit fraction.
    let fraction = (value << zeros << 1) >> 32;
    (u64::from(63 - zeros) << FRACTION_BITS) + between(&LOG2, fraction)
}

/// Two to the power of a 32.32 fixed point number in [0, 1], in 32.32.
#[must_use]
pub fn exp2(power: u64) -> u64 {
    between(&EXP2, power.min(ONE))
}

/// Two to the power of minus a 32.32 fixed point number, in 32.32.
#[must_use]
pub fn exp2_minus(power: u64) -> u64 {
    let whole = power >> FRACTION_BITS;
    let fraction = power & (ONE - 1);
    if whole >= 33 { 0 } else { between(&EXP2, ONE - fraction) >> (whole + 1) }
}

/// Picoseconds per unit as a 24.40 fixed point factor: a rate per second without a division on the hot path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// The rate of `units` a second, scaled by an efficiency; a rate of 0 takes forever.
    #[must_use]
    pub fn per_second(units: u128, efficiency_per_mille: u64) -> Self {
        let effective = units.saturating_mul(u128::from(efficiency_per_mille));
        let ps = ((PS_PER_SECOND * 1_000) << RATE_BITS).checked_div(effective);
        Self(ps.map_or(u64::MAX, saturate))
    }

    /// Picoseconds for `units`, rounded down.
    #[must_use]
    #[inline]
    pub fn ps(self, units: u64) -> u64 {
        saturate((u128::from(units) * u128::from(self.0)) >> RATE_BITS)
    }

    /// The rate of things that are `count` units each.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self(self.0.saturating_mul(count))
    }
}

/// Narrows, u64::MAX for everything larger.
#[must_use]
#[inline]
pub fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// `a * b / c`, rounded down. A 128-bit division costs ten times a 64-bit one, and hardly ever is one needed.
///
/// # Panics
/// If `c` is 0.
#[must_use]
#[inline]
pub fn mul_div(a: u64, b: u64, c: u64) -> u64 {
    match a.checked_mul(b) {
        Some(product) => product / c,
        None => saturate(u128::from(a) * u128::from(b) / u128::from(c)),
    }
}

/// Nearest nanosecond.
#[must_use]
#[inline]
pub fn ns_of_ps(ps: u64) -> u64 {
    ps / 1_000 + u64::from(ps % 1_000 >= 500)
}

/// The point at `fraction` (0 to 1 in 32 bits) on a line of 257 equidistant points.
#[inline]
fn between(points: &[u64; 257], fraction: u64) -> u64 {
    let index = (fraction >> 24).min(255);
    let rest = fraction - (index << 24);
    let index = index as usize;
    points[index] + (((points[index + 1] - points[index]) * rest) >> 24)
}

/// The largest q that is told apart from the maximum; keeps logarithm times q within u64.
pub const Q_PER_MILLE_MAX: u32 = 64_000;

const FRACTION_BITS: u64 = 32;
const ONE: u64 = 1 << FRACTION_BITS;
const RATE_BITS: u32 = 40;
const PS_PER_SECOND: u128 = 1_000_000_000_000;

/// log2(1 + i/256), bit by bit: squaring a number in [1, 2) doubles its logarithm.
const LOG2: [u64; 257] = {
    let mut points = [0; 257];
    let mut i = 0;
    while i < 256 {
        let mut mantissa: u128 = (1 << 62) + ((i as u128) << 54);
        let mut logarithm = 0;
        let mut bit = 0;
        while bit < 33 {
            mantissa = (mantissa * mantissa) >> 62;
            logarithm <<= 1;
            if mantissa >= 1 << 63 {
                mantissa >>= 1;
                logarithm |= 1;
            }
            bit += 1;
        }
        points[i] = (logarithm + 1) >> 1;
        i += 1;
    }
    points[256] = ONE;
    points
};

/// 2^(i/256): a product of the square roots 2^(1/2), 2^(1/4), ...
const EXP2: [u64; 257] = {
    let mut points = [0; 257];
    let mut i = 0;
    while i < 257 {
        let mut value: u128 = 1 << 60;
        let mut root: u128 = 2 << 60;
        let mut bit = 256;
        while bit > 0 {
            if i & bit != 0 {
                value = (value * root) >> 60;
            }
            root = (root << 60).isqrt();
            bit >>= 1;
        }
        points[i] = ((value + (1 << 27)) >> 28) as u64;
        i += 1;
    }
    points
};

//! What is computed element by element. Only additions, products and comparisons that the compiler never fuses or
//! reorders, so that vectorised or not, on any machine, the bits are the same; `exp` is our own for this reason.

use super::lanes::sum_lanes;

/// e to the `x`: within 2 units in the last place between -87 and 88, clamped outside, NaN for NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons instead of `clamp` or `max`, which would hide a NaN.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    // Adding 1.5 * 2^23 rounds to an integer in the low bits.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let whole = shifted - 12_582_912.0;
    let rest = x - whole * 0.693_359_4 - whole * -2.121_944_4e-4;
    let mut sum = 1.987_569_1e-4;
    sum = sum * rest + 1.398_199_9e-3;
    sum = sum * rest + 8.333_452e-3;
    sum = sum * rest + 4.166_579_6e-2;
    sum = sum * rest + 1.666_666_5e-1;
    sum = sum * rest + 0.5;
    sum = sum * rest * rest + rest + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(12_582_912.0_f32.to_bits()).wrapping_add(127) << 23;
    sum * f32::from_bits(exponent)
}

/// Turns scores `[from, to)` of a row into weights that have still to be divided by the returned sum; all others are 0.
#[inline(always)]
pub(super) fn softmax(row: &mut [f32], from: usize, to: usize) -> f32 {
    row[..from].fill(0.0);
    row[to..].fill(0.0);
    let mut largest = f32::NEG_INFINITY;
    for &score in &row[from..to] {
        if score > largest {
            largest = score;
        }
    }
    for score in &mut row[from..to] {
        *score = exp(*score - largest);
    }
    // Token j is summed in lane j mod 16, wherever a row ends: zeros behind it change nothing.
    let mut lanes = [0.0_f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            *lane += weight;
        }
    }
    for (lane, weight) in lanes.iter_mut().zip(rest) {
        *lane += weight;
    }
    sum_lanes(&lanes)
}

/// `gate / (1 + exp(-gate)) * up`, where a row is gate and up, one behind the other.
#[inline(always)]
pub(super) fn silu(both: &[f32], out: &mut [f32]) {
    let (gate, up) = both.split_at(out.len());
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

/// `x / sqrt(mean of squares + eps) * weight`.
#[inline(always)]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mut lanes = [0.0_f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value * value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value * value;
    }
    let scale = 1.0 / (sum_lanes(&lanes) / x.len() as f32 + eps).sqrt();
    for ((out, value), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = value * scale * weight;
    }
}

/// Rotates a head: element `i` with element `i + half`, as Hugging Face's checkpoints are made for.
#[inline(always)]
pub(in crate::cpu) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (left, right) = head.split_at_mut(cos.len());
    for (((left, right), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
        let (a, b) = (*left, *right);
        *left = a * cos - b * sin;
        *right = b * cos + a * sin;
    }
}

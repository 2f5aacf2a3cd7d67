//! The loops that take the time, written once over [`Lanes`]; `mod.rs` makes a version for each instruction set.
//!
//! ```text
//!   tile     ROWS x 32 outputs   out[r][c] = sum over k, ascending, of x[r][k] * w[k][c]      one chain per output
//!   scores   ROWS x KEYS         16 chains over the elements of a head, then their sum        one result per pair
//!   mix      ROWS x 16 * WIDE    out[r][d] = sum over tokens, ascending, of p[r][j] * v[j][d] one chain per output
//! ```
//! How many rows share a call changes what is loaded how often, never the order in which one result is summed. This is
//! what makes results independent of batch, chunk and thread count.

use super::lanes::Lanes;

/// Columns of a panel of packed weights.
pub(in crate::cpu) const PANEL: usize = 32;

/// How far ahead weights are asked for, in bytes. With several rows a panel passes too slowly for the processor to look
/// ahead far enough by itself: measured, steps of eight sequences became a fifth to a third faster.
const AHEAD: usize = 3072;

/// `ROWS` rows of `x` (`stride` elements apart) times one panel of weights (`k` rows of [`PANEL`] elements).
///
/// # Safety
/// All of that has to be readable; `out` has room for `ROWS` rows of [`PANEL`]; the instruction set of `L` is enabled.
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes, const ROWS: usize, const BF16: bool>(
    x: *const f32,
    stride: usize,
    w: *const u8,
    k: usize,
    out: *mut f32,
) {
    // SAFETY: `row < ROWS`, `index < k`, and the panel has `k` rows of 32 elements.
    unsafe {
        let mut sums = [[L::zero(); 2]; ROWS];
        for index in 0..k {
            let line = w.wrapping_add(index * PANEL * if BF16 { 2 } else { 4 });
            L::prefetch(line.wrapping_add(AHEAD));
            if !BF16 {
                L::prefetch(line.wrapping_add(AHEAD + 64));
            }
            let left = L::load_as::<BF16>(w, index * PANEL);
            let right = L::load_as::<BF16>(w, index * PANEL + 16);
            for (row, sum) in sums.iter_mut().enumerate() {
                let x = L::splat(*x.add(row * stride + index));
                sum[0] = sum[0].fma(x, left);
                sum[1] = sum[1].fma(x, right);
            }
        }
        for (row, sum) in sums.into_iter().enumerate() {
            sum[0].store(out.add(row * PANEL));
            sum[1].store(out.add(row * PANEL + 16));
        }
    }
}

/// Products of `ROWS` queries (`dim` elements each, one behind the other) with `KEYS` keys.
///
/// # Safety
/// Each of `keys` has `dim` elements, a multiple of 16, behind `offset` bytes; `out` has rows of `stride`.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes, const ROWS: usize, const KEYS: usize, const BF16: bool>(
    queries: *const f32,
    dim: usize,
    keys: *const *const u8,
    offset: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: `row < ROWS`, `key < KEYS`, `from + 16 <= dim`.
    unsafe {
        let mut sums = [[L::zero(); KEYS]; ROWS];
        let mut from = 0;
        while from < dim {
            let mut loaded = [L::zero(); KEYS];
            for (key, loaded) in loaded.iter_mut().enumerate() {
                *loaded = L::load_as::<BF16>((*keys.add(key)).add(offset), from);
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let query = L::load(queries.add(row * dim + from));
                for (sum, key) in sums.iter_mut().zip(loaded) {
                    *sum = sum.fma(query, key);
                }
            }
            from += 16;
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (key, sum) in sums.into_iter().enumerate() {
                *out.add(row * stride + key) = sum.sum();
            }
        }
    }
}

/// Sums of `count` values weighted by each of `ROWS` rows of `weights` (`stride` apart), for `16 * WIDE` elements.
///
/// # Safety
/// Each of `values` has these elements behind `offset` bytes; `out` has rows of `dim`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "plain pointers and sizes")]
pub(super) unsafe fn mix<L: Lanes, const ROWS: usize, const WIDE: usize, const BF16: bool>(
    weights: *const f32,
    stride: usize,
    count: usize,
    values: *const *const u8,
    offset: usize,
    from: usize,
    out: *mut f32,
    dim: usize,
) {
    // SAFETY: `row < ROWS`, `index < count`, `from + 16 * WIDE <= dim`.
    unsafe {
        let mut sums = [[L::zero(); WIDE]; ROWS];
        for index in 0..count {
            let value = (*values.add(index)).add(offset);
            let mut loaded = [L::zero(); WIDE];
            for (wide, loaded) in loaded.iter_mut().enumerate() {
                *loaded = L::load_as::<BF16>(value, from + wide * 16);
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let weight = L::splat(*weights.add(row * stride + index));
                for (sum, value) in sums.iter_mut().zip(loaded) {
                    *sum = sum.fma(weight, value);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (wide, sum) in sums.into_iter().enumerate() {
                sum.store(out.add(row * dim + from + wide * 16));
            }
        }
    }
}

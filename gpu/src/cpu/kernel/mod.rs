//! Kernels: the arithmetic of a forward pass, with one fixed order of summation per result.
//!
//! [`Isa`] is what the machine can do, found once. Every choice gives the same bits (see `lanes`), so KV that one machine
//! computed is what any other would have computed; tests compare all that this machine has.

mod body;
mod lanes;
pub(crate) mod math;
#[cfg(test)]
mod tests;

pub(super) use body::PANEL;

/// Rows that [`Isa::tile`] takes at most.
pub(super) const TILE_ROWS: usize = 12;

/// Names the order of summation in page keys: to be raised with every change that changes a bit.
pub(super) const NUMERICS: &str = "cpu1";

/// An instruction set that this machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Isa(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Some rows of f32 that lie one behind the other, `stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) stride: usize,
}

/// Where tokens keep some vector: behind the same offset in the memory of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vectors<'a> {
    /// Each token's own place in its page.
    pub(super) tokens: &'a [*const u8],
    /// From there to the vector.
    pub(super) offset: usize,
    pub(super) bf16: bool,
    /// Its elements; a multiple of 16.
    pub(super) dim: usize,
}

/// Defines a function once for each instruction set, and the method of [`Isa`] that calls the right one.
macro_rules! versions {
    (unsafe fn $name:ident ( $($argument:ident : $type:ty),* $(,)? ) $(-> $result:ty)? = <$lanes:ident> $body:expr) => {
        /// # Safety
        /// As the body says.
        #[inline]
        unsafe fn $name(self, $($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            unsafe fn body<$lanes: lanes::Lanes>($($argument: $type),*) $(-> $result)? {
                $body
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($argument: $type),*) $(-> $result)? {
                // SAFETY: as the caller promises; the instructions are enabled here.
                unsafe { body::<lanes::Avx2>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            unsafe fn avx512($($argument: $type),*) $(-> $result)? {
                // SAFETY: as above.
                unsafe { body::<lanes::Avx512>($($argument),*) }
            }
            match self.0 {
                // SAFETY: as the caller promises; plain lanes need no instructions.
                Kind::Plain => unsafe { body::<lanes::Plain>($($argument),*) },
                // SAFETY: as the caller promises; an `Isa` is only made where its instructions were found.
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => unsafe { avx2($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => unsafe { avx512($($argument),*) },
            }
        }
    };
}

/// Evaluates an expression with the number of rows known to the compiler, under the name that is given.
macro_rules! with_rows {
    ($rows:expr, [$($count:literal)*], $name:ident => $call:expr) => {
        match $rows {
            $($count => {
                const $name: usize = $count;
                $call
            })*
            _ => unreachable!("more rows than the largest tile has"),
        }
    };
}

impl Isa {
    /// The fastest that this machine has.
    #[must_use]
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self(Kind::Plain))
    }

    /// All that this machine has, faster ones later.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut found = vec![Self(Kind::Plain)];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 {
                found.push(Self(Kind::Avx2));
            }
            if avx2 && is_x86_feature_detected!("avx512f") {
                found.push(Self(Kind::Avx512));
            }
        }
        found
    }

    /// Rows of `x` (at most [`TILE_ROWS`], `k` elements of each) times one panel of weights; a row of `out` per row.
    pub(super) fn tile(self, x: Rows<'_>, k: usize, panel: &[u8], bf16: bool, out: &mut [[f32; PANEL]]) {
        assert!(x.rows > 0 && x.rows <= TILE_ROWS && x.rows <= out.len(), "rows of a tile");
        assert!(k <= x.stride && (x.rows - 1) * x.stride + k <= x.data.len(), "elements of these rows");
        assert_eq!(panel.len(), k * PANEL * if bf16 { 2 } else { 4 }, "bytes of a panel");
        // SAFETY: the assertions above are what the body asks for.
        unsafe { self.tile_raw(x, k, panel, bf16, out) };
    }

    /// Products of each of `rows` queries, one behind the other, with the key of each token: `out[row][token]`.
    ///
    /// # Safety
    /// The keys have to be readable, and nobody writes them meanwhile.
    pub(super) unsafe fn scores(self, queries: &[f32], keys: Vectors<'_>, out: &mut [f32]) {
        let rows = queries.len() / keys.dim;
        assert!(keys.dim.is_multiple_of(16) && queries.len() == rows * keys.dim, "whole queries");
        assert_eq!(out.len(), rows * keys.tokens.len(), "a score for each pair");
        // SAFETY: the assertions above and what the caller promises are what the body asks for.
        unsafe { self.scores_raw(queries.as_ptr(), rows, keys, out.as_mut_ptr()) };
    }

    /// Sums of the tokens' values by each row of `weights[row][token]`: `out[row][element]`.
    ///
    /// # Safety
    /// The values have to be readable, and nobody writes them meanwhile.
    pub(super) unsafe fn mix(self, weights: &[f32], values: Vectors<'_>, out: &mut [f32]) {
        let rows = out.len() / values.dim;
        assert!(values.dim.is_multiple_of(16) && out.len() == rows * values.dim, "whole sums");
        assert_eq!(weights.len(), rows * values.tokens.len(), "a weight for each pair");
        // SAFETY: the assertions above and what the caller promises are what the body asks for.
        unsafe { self.mix_raw(weights.as_ptr(), rows, values, out.as_mut_ptr()) };
    }

    /// See [`math::softmax`].
    pub(super) fn softmax(self, row: &mut [f32], from: usize, to: usize) -> f32 {
        // SAFETY: the body asks for nothing.
        unsafe { self.softmax_raw(row, from, to) }
    }

    /// See [`math::silu`].
    pub(super) fn silu(self, both: &[f32], out: &mut [f32]) {
        // SAFETY: the body asks for nothing.
        unsafe { self.silu_raw(both, out) }
    }

    /// See [`math::rms_norm`].
    pub(super) fn rms_norm(self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        // SAFETY: the body asks for nothing.
        unsafe { self.rms_norm_raw(x, weight, eps, out) }
    }

    versions! {
        unsafe fn tile_raw(x: Rows<'_>, k: usize, panel: &[u8], bf16: bool, out: &mut [[f32; PANEL]]) = <L> {
            let (rows, stride, w) = (x.rows, x.stride, panel.as_ptr());
            let mut row = 0;
            while row < rows {
                let now = (rows - row).min(L::ROWS);
                // SAFETY: `row + now <= rows`; the rest as the caller promises.
                unsafe {
                    let (x, out) = (x.data.as_ptr().add(row * stride), out.as_mut_ptr().add(row).cast());
                    if bf16 {
                        with_rows!(now, [1 2 3 4 5 6 7 8 9 10 11 12], N => body::tile::<L, N, true>(x, stride, w, k, out));
                    } else {
                        with_rows!(now, [1 2 3 4 5 6 7 8 9 10 11 12], N => body::tile::<L, N, false>(x, stride, w, k, out));
                    }
                }
                row += now;
            }
        }
    }

    versions! {
        unsafe fn scores_raw(queries: *const f32, rows: usize, keys: Vectors<'_>, out: *mut f32) = <L> {
            let count = keys.tokens.len();
            let mut row = 0;
            while row < rows {
                let now = (rows - row).min(4);
                let mut key = 0;
                while key < count {
                    // SAFETY: `row + now <= rows` and `key < count`; the rest as the caller promises.
                    unsafe {
                        let queries = queries.add(row * keys.dim);
                        let tokens = keys.tokens.as_ptr().add(key);
                        let out = out.add(row * count + key);
                        let (dim, offset) = (keys.dim, keys.offset);
                        match (keys.bf16, count - key >= 4) {
                            (true, true) => with_rows!(now, [1 2 3 4], N => body::scores::<L, N, 4, true>(queries, dim, tokens, offset, out, count)),
                            (true, false) => with_rows!(now, [1 2 3 4], N => body::scores::<L, N, 1, true>(queries, dim, tokens, offset, out, count)),
                            (false, true) => with_rows!(now, [1 2 3 4], N => body::scores::<L, N, 4, false>(queries, dim, tokens, offset, out, count)),
                            (false, false) => with_rows!(now, [1 2 3 4], N => body::scores::<L, N, 1, false>(queries, dim, tokens, offset, out, count)),
                        }
                    }
                    key += if count - key >= 4 { 4 } else { 1 };
                }
                row += now;
            }
        }
    }

    versions! {
        unsafe fn mix_raw(weights: *const f32, rows: usize, values: Vectors<'_>, out: *mut f32) = <L> {
            let (count, dim, offset) = (values.tokens.len(), values.dim, values.offset);
            let tokens = values.tokens.as_ptr();
            let mut row = 0;
            while row < rows {
                let now = (rows - row).min(4);
                let mut from = 0;
                while from < dim {
                    let wide = dim - from >= 64;
                    // SAFETY: `row + now <= rows`, `from + 64 <= dim` if wide, else `from + 16 <= dim`; the rest as the
                    // caller promises.
                    unsafe {
                        let (weights, out) = (weights.add(row * count), out.add(row * dim));
                        match (values.bf16, wide) {
                            (true, true) => with_rows!(now, [1 2 3 4], N => body::mix::<L, N, 4, true>(weights, count, count, tokens, offset, from, out, dim)),
                            (true, false) => with_rows!(now, [1 2 3 4], N => body::mix::<L, N, 1, true>(weights, count, count, tokens, offset, from, out, dim)),
                            (false, true) => with_rows!(now, [1 2 3 4], N => body::mix::<L, N, 4, false>(weights, count, count, tokens, offset, from, out, dim)),
                            (false, false) => with_rows!(now, [1 2 3 4], N => body::mix::<L, N, 1, false>(weights, count, count, tokens, offset, from, out, dim)),
                        }
                    }
                    from += if wide { 64 } else { 16 };
                }
                row += now;
            }
        }
    }

    versions! {
        unsafe fn softmax_raw(row: &mut [f32], from: usize, to: usize) -> f32 = <L> math::softmax(row, from, to)
    }

    versions! {
        unsafe fn silu_raw(both: &[f32], out: &mut [f32]) = <L> math::silu(both, out)
    }

    versions! {
        unsafe fn rms_norm_raw(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = <L> math::rms_norm(x, weight, eps, out)
    }
}

//! Sixteen f32 at once, for three kinds of machine. All give the same bits: every operation is exact per lane, products
//! are fused into sums with one rounding, and the sum over lanes has one fixed order.

use half::bf16;

/// Sixteen numbers.
///
/// # Safety
/// Methods of an implementation for some instruction set may only run where that set is available, inside of functions
/// that enable it.
pub(super) trait Lanes: Copy {
    /// Rows of a tile whose sums fit into registers.
    const ROWS: usize;

    /// All zero.
    unsafe fn zero() -> Self;
    /// All the same.
    unsafe fn splat(value: f32) -> Self;
    /// Sixteen f32 from memory.
    unsafe fn load(from: *const f32) -> Self;
    /// Sixteen bf16 from memory, widened.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Sixteen f32 to memory.
    unsafe fn store(self, to: *mut f32);
    /// `a * b + self`, rounded once.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// The sum of the lanes: halves, quarters, pairs.
    unsafe fn sum(self) -> f32;

    /// Asks for the cache line at an address that will be read soon; any address will do.
    #[inline(always)]
    fn prefetch(at: *const u8) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which never faults; SSE is there on all x86-64.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// Sixteen elements of a type.
    ///
    /// # Safety
    /// They have to be there.
    #[inline(always)]
    unsafe fn load_as<const BF16: bool>(from: *const u8, index: usize) -> Self {
        // SAFETY: as the caller promises; both loads take any alignment.
        unsafe {
            if BF16 {
                Self::load_bf16(from.cast::<u16>().add(index))
            } else {
                Self::load(from.cast::<f32>().add(index))
            }
        }
    }
}

/// Any machine.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 16]);

// SAFETY of all bodies: pointers are good for sixteen elements, as the callers of `load` and `store` promise.
impl Lanes for Plain {
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 16])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 16])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: sixteen f32 are there.
        Self(unsafe { from.cast::<[f32; 16]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: sixteen bf16 are there.
        let raw = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        Self(raw.map(|bits| bf16::from_bits(bits).to_f32()))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: there is room for sixteen f32.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn fma(mut self, a: Self, b: Self) -> Self {
        for (sum, (a, b)) in self.0.iter_mut().zip(a.0.iter().zip(&b.0)) {
            *sum = a.mul_add(*b, *sum);
        }
        self
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        sum_lanes(&self.0)
    }
}

/// The sum of sixteen lanes in the order that all implementations keep.
#[inline(always)]
pub(super) fn sum_lanes(lanes: &[f32; 16]) -> f32 {
    let mut half = [0.0_f32; 8];
    for (index, sum) in half.iter_mut().enumerate() {
        *sum = lanes[index] + lanes[index + 8];
    }
    let quarter = [half[0] + half[4], half[1] + half[5], half[2] + half[6], half[3] + half[7]];
    (quarter[0] + quarter[2]) + (quarter[1] + quarter[3])
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// Two registers of AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256, __m256);

    /// One register of AVX-512.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    /// The sum of eight lanes: quarters, then pairs.
    #[inline(always)]
    unsafe fn sum_eight(half: __m256) -> f32 {
        // SAFETY: AVX is there where either implementation may run.
        unsafe {
            let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        }
    }

    impl Lanes for Avx2 {
        const ROWS: usize = 3;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: AVX2 is there.
            unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: AVX2 is there.
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: sixteen f32 are there; the loads take any alignment.
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            // SAFETY: sixteen bf16 are there; the loads take any alignment.
            unsafe {
                let wide = |at: *const u16| {
                    let raw = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(raw))
                };
                Self(wide(from), wide(from.add(8)))
            }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: there is room for sixteen f32; the stores take any alignment.
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            // SAFETY: FMA is there.
            unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: AVX2 is there.
            unsafe { sum_eight(_mm256_add_ps(self.0, self.1)) }
        }
    }

    impl Lanes for Avx512 {
        const ROWS: usize = 12;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: AVX-512 is there.
            unsafe { Self(_mm512_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: AVX-512 is there.
            unsafe { Self(_mm512_set1_ps(value)) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: sixteen f32 are there; the load takes any alignment.
            unsafe { Self(_mm512_loadu_ps(from)) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            // SAFETY: sixteen bf16 are there; the load takes any alignment.
            unsafe {
                let raw = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(raw)))
            }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: there is room for sixteen f32; the store takes any alignment.
            unsafe { _mm512_storeu_ps(to, self.0) };
        }

        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            // SAFETY: AVX-512 is there.
            unsafe { Self(_mm512_fmadd_ps(a.0, b.0, self.0)) }
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: AVX-512 is there.
            unsafe {
                let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
                sum_eight(_mm256_add_ps(_mm512_castps512_ps256(self.0), upper))
            }
        }
    }
}

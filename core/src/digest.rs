//! A 64-bit fingerprint over what the codec would write.
//!
//! Not `derive(Hash)`: the bytes which that feeds are not a format and change between compilers. Not cryptographic:
//! it tells runs apart, it does not resist an attacker.

use crate::codec::{Codec, Sink};

/// A running fingerprint. Equal sequences of equal values give equal results on every platform.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest(u64);

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const MULTIPLIER: u64 = 0xd6e8_feb8_6659_fd93;

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

impl Digest {
    /// The fingerprint of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(SEED)
    }

    /// Mixes in one word: a 64x64 to 128 bit product folded onto itself (as in wyhash).
    #[inline]
    pub fn word(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word).wrapping_mul(u128::from(MULTIPLIER));
        self.0 = (product as u64 ^ (product >> 64) as u64).wrapping_add(SEED);
    }

    /// Mixes in a value.
    #[inline]
    pub fn value<T: Codec>(&mut self, value: &T) {
        value.encode(self);
    }

    /// The fingerprint so far.
    #[must_use]
    pub const fn finish(self) -> u64 {
        self.0
    }
}

impl Sink for Digest {
    #[inline]
    fn u8(&mut self, value: u8) {
        self.word(u64::from(value));
    }
    #[inline]
    fn u32(&mut self, value: u32) {
        self.word(u64::from(value));
    }
    #[inline]
    fn u64(&mut self, value: u64) {
        self.word(value);
    }
    #[inline]
    fn pair(&mut self, first: u32, second: u32) {
        self.word(u64::from(first) | u64::from(second) << 32);
    }
    fn bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }
}

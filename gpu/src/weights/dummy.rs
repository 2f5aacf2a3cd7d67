//! Weights drawn from a seed. Element `i` of a tensor is word `i` of the ChaCha8 stream named by seed and tensor, so that
//! neither the order of reading nor the number of threads matters.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::Source;
use super::tensors::Wanted;

/// Rules for the elements of one tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drawn {
    key: [u8; 32],
    /// Middle and half width of the interval that elements are drawn from.
    middle: f32,
    width: f32,
}

impl Drawn {
    pub(super) fn new(seed: u64, want: &Wanted) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("pd dummy weights 1");
        hasher.update(&seed.to_le_bytes());
        hasher.update(want.name.as_bytes());
        // Matrices keep the variance of what they are applied to; norms and biases are small changes.
        let (middle, width) = match want.shape.as_slice() {
            [_, inputs] => (0.0, (3.0 / *inputs as f32).sqrt()),
            _ if want.name.ends_with("norm.weight") => (1.0, 0.1),
            _ => (0.0, 0.1),
        };
        Self { key: *hasher.finalize().as_bytes(), middle, width }
    }

    pub(super) fn source<'a>(&self) -> Source<'a> {
        let (words, _) = self.key.as_chunks::<4>();
        let mut key = [0; 8];
        key.iter_mut().zip(words).for_each(|(key, word)| *key = u32::from_le_bytes(*word));
        Source::Drawn { key, middle: self.middle, width: self.width }
    }

    pub(super) fn read(&self, from: usize, out: &mut [f32]) {
        let mut rng = ChaCha8Rng::from_seed(self.key);
        rng.set_word_pos(from as u128);
        for out in out {
            // 24 bits: exact in f32.
            let unit = (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
            *out = self.middle + self.width * unit;
        }
    }
}

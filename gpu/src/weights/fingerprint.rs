//! What tells two models apart: 128 bits over all that decides what their KV holds.
//!
//! Hashed are the configuration as understood (not its text: a comment or another version of transformers changes
//! nothing), and each tensor's name, shape, type and bytes in the order of computation. Of models above
//! [`WHOLE_BYTES`] only blocks are read: the first and the last of each tensor and some in between, at most
//! [`BLOCKS_MAX`] in all, so that the fingerprint of a large model costs well below a second. Two large models that
//! differ in none of these blocks are taken for the same one; fine-tuning changes nearly all of them.

use super::{Store, Weights};

/// Models up to this size are hashed whole.
const WHOLE_BYTES: u64 = 64 << 20;
/// Blocks that are read of larger ones.
const BLOCKS_MAX: usize = 4096;
const BLOCK: usize = 4096;

impl Weights {
    /// The fingerprint, as 32 hex digits.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("pd weights 1");
        let config = serde_json::to_vec(self.config()).expect("a configuration is numbers and names");
        field(&mut hasher, &config);
        let wanted = self.config().tensors();
        match &self.store {
            Store::Dummy { seed } => field(&mut hasher, &seed.to_le_bytes()),
            Store::Shards(shards) => {
                let whole = shards.bytes() <= WHOLE_BYTES;
                let blocks = (BLOCKS_MAX / wanted.len().max(1)).max(2);
                for want in &wanted {
                    let (dtype, bytes) = shards.raw(want).expect("a tensor that was checked to be there");
                    field(&mut hasher, want.name.as_bytes());
                    field(&mut hasher, dtype.as_bytes());
                    field(&mut hasher, &(bytes.len() as u64).to_le_bytes());
                    if whole || bytes.len() <= blocks * BLOCK {
                        hasher.update(bytes);
                    } else {
                        let last = bytes.len() - BLOCK;
                        for block in 0..blocks {
                            let from = (last as u128 * block as u128 / (blocks as u128 - 1)) as usize;
                            hasher.update(&bytes[from..][..BLOCK]);
                        }
                    }
                }
            }
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

fn field(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

//! The shape of a dense decoder: what its `config.json` says, and the bytes that follow from it.
//!
//! Owns sizes only; knows no time and no hardware. A *rank* is one of `tp` GPUs that share every layer: projections
//! and vocabulary are split, norms are copied, and a KV head is copied where there are fewer of them than ranks.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use super::CostError;
use super::fixed::saturate;

/// A dense decoder with grouped-query attention and a gated MLP (Llama, Mistral, Qwen3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The name that scenarios and calibrated tables refer to.
    pub name: String,
    /// `num_hidden_layers`
    pub layers: u32,
    /// `hidden_size`
    pub hidden: u32,
    /// `intermediate_size`
    pub intermediate: u32,
    /// `num_attention_heads`
    pub heads: u32,
    /// `num_key_value_heads`
    pub kv_heads: u32,
    /// `head_dim`, or hidden / heads where the file does not say.
    pub head_dim: u32,
    /// `vocab_size`
    pub vocab: u32,
    /// `max_position_embeddings`
    pub context_tokens_max: u32,
    /// Bytes of a weight. 1 stands for weight-only quantisation: arithmetic and activations stay bf16.
    pub dtype_bytes: u32,
    /// Bytes of an element of the KV cache.
    pub kv_dtype_bytes: u32,
    /// `tie_word_embeddings`: the embedding is the output head.
    pub tied_embeddings: bool,
    /// Q and K have a norm of `head_dim` weights each (Qwen3).
    pub qk_norm: bool,
}

impl Model {
    /// Bytes of K and V of one token over all layers.
    #[must_use]
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.kv_bytes(u64::from(self.kv_heads))
    }

    /// The same on one rank of `tp`. Ranks beyond the KV heads hold copies, so the sum can exceed the model's. A `tp` of 0 counts as 1.
    #[must_use]
    pub fn kv_bytes_per_token_rank(&self, tp: u32) -> u64 {
        self.kv_bytes(self.kv_heads_rank(tp))
    }

    /// Number of weights.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.weights_rank(1)
    }

    /// Bytes of all weights.
    #[must_use]
    pub fn weights_bytes(&self) -> u64 {
        self.weights_bytes_rank(1)
    }

    /// Bytes of the weights on one rank of `tp`.
    #[must_use]
    pub fn weights_bytes_rank(&self, tp: u32) -> u64 {
        self.weights_rank(tp).saturating_mul(u64::from(self.dtype_bytes))
    }

    /// Query heads of one rank.
    pub(super) fn heads_rank(&self, tp: u32) -> u64 {
        u64::from(self.heads / tp)
    }

    /// KV heads of one rank: at least one.
    pub(super) fn kv_heads_rank(&self, tp: u32) -> u64 {
        u64::from((self.kv_heads / tp.max(1)).max(1))
    }

    /// Output columns of the fused Q, K and V projection of one rank.
    pub(super) fn qkv_rank(&self, tp: u32) -> u64 {
        (self.heads_rank(tp) + 2 * self.kv_heads_rank(tp)) * u64::from(self.head_dim)
    }

    /// Whether `tp` ranks can share the model; the error names the size that does not divide.
    pub(super) fn divides(&self, tp: u32) -> Result<(), CostError> {
        for (field, value, maximum) in [
            ("model.layers", self.layers, 4_096),
            ("model.hidden", self.hidden, SIZE_MAX),
            ("model.intermediate", self.intermediate, SIZE_MAX),
            ("model.heads", self.heads, 1_024),
            ("model.kv_heads", self.kv_heads, 1_024),
            ("model.head_dim", self.head_dim, 1_024),
            ("model.vocab", self.vocab, 1 << 24),
            ("model.dtype_bytes", self.dtype_bytes, 4),
            ("model.kv_dtype_bytes", self.kv_dtype_bytes, 4),
        ] {
            CostError::in_range(field, u64::from(value), 1, maximum)?;
        }
        CostError::in_range("tp", u64::from(tp), 1, u64::from(TP_MAX))?;
        CostError::divisible("model.heads", self.heads, "model.kv_heads", self.kv_heads)?;
        CostError::divisible("model.heads", self.heads, "tp", tp)?;
        CostError::divisible("model.intermediate", self.intermediate, "tp", tp)?;
        if tp <= self.kv_heads {
            CostError::divisible("model.kv_heads", self.kv_heads, "tp", tp)
        } else {
            CostError::divisible("tp", tp, "model.kv_heads", self.kv_heads)
        }
    }

    fn weights_rank(&self, tp: u32) -> u64 {
        let tp = tp.max(1);
        let wide = |value: u32| u128::from(value);
        let heads = wide(self.heads / tp) * wide(self.head_dim);
        let kv_heads = u128::from(self.kv_heads_rank(tp)) * wide(self.head_dim);
        let norms = 2 * wide(self.hidden) + if self.qk_norm { 2 * wide(self.head_dim) } else { 0 };
        let columns = 2 * heads + 2 * kv_heads + 3 * wide(self.intermediate / tp);
        let layers = wide(self.layers).saturating_mul(wide(self.hidden) * columns + norms);
        let tables = if self.tied_embeddings { 1 } else { 2 };
        saturate(layers.saturating_add((tables * wide(self.vocab.div_ceil(tp)) + 1) * wide(self.hidden)))
    }

    fn kv_bytes(&self, kv_heads: u64) -> u64 {
        let head = u128::from(self.head_dim) * u128::from(self.kv_dtype_bytes);
        saturate((2 * u128::from(self.layers) * u128::from(kv_heads)).saturating_mul(head))
    }
}

/// Ranks of one tensor-parallel group.
pub const TP_MAX: u32 = 64;
/// No width of a layer is larger; keeps the weights of a layer and the work of a row within u64.
const SIZE_MAX: u64 = 1 << 20;

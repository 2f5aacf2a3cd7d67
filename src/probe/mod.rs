//! What this machine costs, measured: steps of an engine, copies between its tiers, the way to a second GPU, the disk.
//!
//! What is measured is what serves: the engine's own forwards, the lanes that copy, files as the store writes them. From
//! times to constants and tables is [`pd_sim::calibrate`]'s.

pub(crate) mod copies;
pub(crate) mod steps;

use pd_core::cost::Model;
use pd_gpu::{Config, Element};

/// A model's shape as the simulator names it, with weights in bf16.
pub(crate) fn shape(name: &str, config: &Config, kv: Element) -> Model {
    let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Model {
        name: name.to_owned(),
        layers: count(config.layers),
        hidden: count(config.hidden),
        intermediate: count(config.ffn),
        heads: count(config.heads),
        kv_heads: count(config.kv_heads),
        head_dim: count(config.head_dim),
        vocab: count(config.vocab),
        context_tokens_max: count(config.context),
        dtype_bytes: 2,
        kv_dtype_bytes: count(kv.bytes()),
        tied_embeddings: config.tied,
        qk_norm: config.architecture == pd_gpu::weights::Architecture::Qwen3,
    }
}

#[cfg(test)]
mod tests;

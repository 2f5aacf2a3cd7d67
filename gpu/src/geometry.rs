//! What others have to know of a model: how large KV is, how long a sequence may get, what ends one.

use std::fmt;

use serde::{Deserialize, Serialize};

use pd_core::id::Token;

use crate::weights::Config;

/// Element type of stored numbers. Sums are always made in f32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Element {
    /// The upper half of an f32.
    Bf16,
    /// IEEE single precision.
    F32,
}

/// The shape of a model as scheduler, cache and API see it.
///
/// ```text
///   page   [layer][K, V][kv head][token in page][head_dim]      rounded up to whole 64 bytes
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Decoder layers.
    pub layers: u32,
    /// Heads that queries have.
    pub heads: u32,
    /// Heads that keys and values have.
    pub kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Element type of KV.
    pub kv: Element,
    /// Tokens of a page.
    pub page_size: u32,
    /// Logits of a position.
    pub vocab: u32,
    /// Most tokens of a sequence.
    pub context: u32,
    /// Tokens that end an answer, as the model's folder says.
    pub eos: Vec<Token>,
}

impl Element {
    /// Bytes of one.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

impl Geometry {
    /// The shape of a model with KV in pages of `page_size` tokens, for sequences of at most `context` tokens.
    pub(crate) fn of(config: &Config, kv: Element, page_size: u32, context: usize) -> Self {
        Self {
            layers: config.layers as u32,
            heads: config.heads as u32,
            kv_heads: config.kv_heads as u32,
            head_dim: config.head_dim as u32,
            kv,
            page_size,
            vocab: config.vocab as u32,
            context: context as u32,
            eos: config.eos.clone(),
        }
    }

    /// The name of the layout in page keys; see `pd_core::key::Namespace`.
    pub const LAYOUT: &str = "page_first.lkht";

    /// Bytes of KV of one token in all layers.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        2 * self.layers as usize * self.kv_heads as usize * self.head_dim as usize * self.kv.bytes()
    }

    /// Bytes of a page of `page_size` tokens: whole cache lines.
    #[must_use]
    pub fn page_bytes(&self, page_size: u32) -> usize {
        (self.token_bytes() * page_size as usize).next_multiple_of(64)
    }

    /// Where in a page one head of one layer keeps its keys (or values): `page_size` times `head_dim` elements.
    #[must_use]
    pub(crate) fn offset(&self, layer: u32, values: bool, kv_head: u32) -> usize {
        let block = (layer * 2 + u32::from(values)) * self.kv_heads + kv_head;
        block as usize * self.page_size as usize * self.head_dim as usize * self.kv.bytes()
    }
}

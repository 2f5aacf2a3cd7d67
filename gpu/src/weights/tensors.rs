//! Which tensors a model of some shape has. The one list behind loading, checking and fingerprints.

use super::config::Config;

/// One tensor that a configuration asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Its name in the folder.
    pub name: String,
    /// Its shape; matrices are `[outputs, inputs]`.
    pub shape: Vec<usize>,
}

/// The names of a layer's tensors and of the others, as Hugging Face spells them.
#[must_use]
pub(crate) fn layer(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}")
}

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const NORM: &str = "model.norm.weight";
pub(crate) const OUTPUT: &str = "lm_head.weight";

impl Config {
    /// All tensors of the model, in the order of its computation.
    #[must_use]
    pub fn tensors(&self) -> Vec<Wanted> {
        let mut list = Vec::new();
        let mut want = |name: String, shape: &[usize]| list.push(Wanted { name, shape: shape.to_vec() });
        let queries = self.heads * self.head_dim;
        let keys = self.kv_heads * self.head_dim;
        want(EMBEDDING.into(), &[self.vocab, self.hidden]);
        for index in 0..self.layers {
            let mut part = |part: &str, shape: &[usize]| want(layer(index, part), shape);
            part("input_layernorm.weight", &[self.hidden]);
            for (name, rows) in [("q", queries), ("k", keys), ("v", keys)] {
                part(&format!("self_attn.{name}_proj.weight"), &[rows, self.hidden]);
                if self.qkv_bias {
                    part(&format!("self_attn.{name}_proj.bias"), &[rows]);
                }
            }
            if self.has_head_norms() {
                part("self_attn.q_norm.weight", &[self.head_dim]);
                part("self_attn.k_norm.weight", &[self.head_dim]);
            }
            part("self_attn.o_proj.weight", &[self.hidden, queries]);
            if self.out_bias {
                part("self_attn.o_proj.bias", &[self.hidden]);
            }
            part("post_attention_layernorm.weight", &[self.hidden]);
            for (name, rows, columns) in
                [("gate", self.ffn, self.hidden), ("up", self.ffn, self.hidden), ("down", self.hidden, self.ffn)]
            {
                part(&format!("mlp.{name}_proj.weight"), &[rows, columns]);
                if self.mlp_bias {
                    part(&format!("mlp.{name}_proj.bias"), &[rows]);
                }
            }
        }
        want(NORM.into(), &[self.hidden]);
        if !self.tied {
            want(OUTPUT.into(), &[self.vocab, self.hidden]);
        }
        list
    }
}

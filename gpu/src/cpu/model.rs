//! A model's weights, packed.

use super::forward::Row;
use super::kernel::NUMERICS;
use super::matrix::{Matrix, SERIAL};
use crate::geometry::Element;
use crate::weights::{Config, EMBEDDING, LoadError, NORM, OUTPUT, Wanted, Weights, layer};

/// What a forward pass reads.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) config: Config,
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Vec<f32>,
    /// `None` if it is the embedding.
    pub(super) output: Option<Matrix>,
    /// Rotation per position of each pair of elements of a head.
    pub(super) frequencies: Vec<f32>,
    /// Weights and arithmetic: equal names, equal KV.
    pub(super) fingerprint: String,
}

/// One decoder layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) norm: Vec<f32>,
    /// Queries, keys and values, one below the other.
    pub(super) qkv: Linear,
    /// Weights of the norms on heads of queries and keys.
    pub(super) head_norms: Option<(Vec<f32>, Vec<f32>)>,
    pub(super) out: Linear,
    pub(super) ffn_norm: Vec<f32>,
    /// Gate and up, one below the other.
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
    /// Tokens that it looks back, itself included.
    pub(super) window: Option<usize>,
}

/// A matrix and perhaps a bias.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) matrix: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

struct Packer<'a> {
    weights: &'a Weights,
    wanted: Vec<Wanted>,
    element: Element,
}

impl Model {
    /// Packs all weights, as `element` or, if there is none, as they are stored: bf16 stays bf16, all else becomes f32.
    pub(super) fn pack(weights: &Weights, element: Option<Element>) -> Result<Self, LoadError> {
        let config = weights.config().clone();
        let mut wanted = config.tensors();
        let is_bf16 = wanted.iter().filter(|want| want.shape.len() == 2).all(|want| weights.tensor(want).is_bf16());
        let element = element.unwrap_or(if is_bf16 { Element::Bf16 } else { Element::F32 });
        wanted.sort_by(|a, b| a.name.cmp(&b.name));
        let packer = Packer { weights, wanted, element };
        let layers = (0..config.layers).map(|index| packer.layer(&config, index)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            embedding: packer.matrix(&[EMBEDDING.to_owned()])?,
            layers,
            norm: packer.vector(NORM)?,
            output: if config.tied { None } else { Some(packer.matrix(&[OUTPUT.to_owned()])?) },
            frequencies: config.frequencies(),
            fingerprint: format!("{}.{element}.{NUMERICS}", weights.fingerprint()),
            config,
        })
    }

    /// True if some step of a pass over these rows is long enough to be divided among threads.
    pub(super) fn is_worth_threads(&self, rows: &[Row]) -> bool {
        let config = &self.config;
        let width = config.ffn.max(config.heads * config.head_dim) * 2 * config.hidden;
        let products = rows.iter().map(|row| (row.query.position * config.heads * config.head_dim * 2).max(width));
        let sampled = rows.iter().filter(|row| row.sampled).count();
        products.sum::<usize>().max(sampled * config.vocab * config.hidden) >= SERIAL / 2
    }

    pub(super) fn output(&self) -> &Matrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }
}

impl Packer<'_> {
    fn layer(&self, config: &Config, index: usize) -> Result<Layer, LoadError> {
        let name = |part: &str| layer(index, part);
        let linear = |parts: &[&str], bias: bool| {
            let names = |kind: &str| parts.iter().map(|part| name(&format!("{part}_proj.{kind}"))).collect::<Vec<_>>();
            Ok::<_, LoadError>(Linear {
                matrix: self.matrix(&names("weight"))?,
                bias: if bias {
                    let parts = names("bias").iter().map(|name| self.vector(name)).collect::<Result<Vec<_>, _>>()?;
                    Some(parts.concat())
                } else {
                    None
                },
            })
        };
        Ok(Layer {
            norm: self.vector(&name("input_layernorm.weight"))?,
            qkv: linear(&["self_attn.q", "self_attn.k", "self_attn.v"], config.qkv_bias)?,
            head_norms: if config.has_head_norms() {
                Some((self.vector(&name("self_attn.q_norm.weight"))?, self.vector(&name("self_attn.k_norm.weight"))?))
            } else {
                None
            },
            out: linear(&["self_attn.o"], config.out_bias)?,
            ffn_norm: self.vector(&name("post_attention_layernorm.weight"))?,
            gate_up: linear(&["mlp.gate", "mlp.up"], config.mlp_bias)?,
            down: linear(&["mlp.down"], config.mlp_bias)?,
            window: config.windows[index],
        })
    }

    fn matrix(&self, names: &[String]) -> Result<Matrix, LoadError> {
        let parts: Vec<_> = names.iter().map(|name| self.want(name)).collect();
        let inputs = parts[0].shape[1];
        let parts: Vec<_> = parts.into_iter().map(|want| (self.weights.tensor(want), want.shape[0])).collect();
        Matrix::pack(&parts, inputs, self.element)
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let want = self.want(name);
        let mut out = vec![0.0; want.shape[0]];
        self.weights.tensor(want).read(0, &mut out)?;
        Ok(out)
    }

    fn want(&self, name: &str) -> &Wanted {
        let found = self.wanted.binary_search_by(|want| want.name.as_str().cmp(name));
        &self.wanted[found.expect("a tensor of the configuration's list")]
    }
}

//! A model's weights in a GPU's memory, in bf16.

use std::sync::Arc;

use half::bf16;

use super::blas::Form;
use super::driver::{Buffer, Context, Pinned, Result, Stream};
use super::error::CudaError;
use super::kernels::Kernels;
use super::products::Matrix;
use crate::weights::{Config, EMBEDDING, LoadError, NORM, OUTPUT, Source, Wanted, Weights, layer};

/// What a forward pass reads.
pub(super) struct Model {
    pub(super) config: Config,
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Buffer,
    /// `None` if it is the embedding.
    output: Option<Matrix>,
    /// Cosine and sine of each position and pair of elements.
    pub(super) rotation: Buffer,
    /// Bytes in memory.
    pub(super) bytes: u64,
}

/// One decoder layer.
pub(super) struct Layer {
    pub(super) norm: Buffer,
    /// Queries, keys and values, one below the other.
    pub(super) qkv: Matrix,
    pub(super) qkv_bias: Option<Buffer>,
    /// Weights of the norms on heads of queries and keys.
    pub(super) head_norms: Option<(Buffer, Buffer)>,
    pub(super) out: Matrix,
    pub(super) ffn_norm: Buffer,
    /// Gate and up, one below the other.
    pub(super) gate_up: Matrix,
    pub(super) down: Matrix,
    /// Tokens that it looks back, itself included; 0 for all.
    pub(super) window: u32,
}

impl Model {
    /// Brings a model's weights into memory.
    ///
    /// # Errors
    /// [`CudaError::Memory`] with the arithmetic, [`CudaError::Unsupported`] for what the kernels do not do.
    pub(super) fn load(
        context: &Arc<Context>,
        stream: &Stream,
        kernels: &Kernels,
        weights: &Weights,
    ) -> std::result::Result<Self, LoadError> {
        let config = weights.config().clone();
        supported(&config).map_err(|why| LoadError::Engine { why })?;
        let mut wanted = config.tensors();
        let elements: usize = wanted.iter().map(|want| want.shape.iter().product::<usize>()).sum();
        let bytes = elements as u64 * 2;
        let (free, total) = context.memory()?;
        if bytes + LEAST_BESIDE > free {
            let what = format!("a model of {elements} weights in bf16");
            let hint = "take a smaller model or a GPU with more memory";
            return Err(CudaError::Memory { what, wanted: bytes, free, total, hint }.into());
        }
        wanted.sort_by(|a, b| a.name.cmp(&b.name));
        let staging = Staging::new(context)?;
        let mut loader = Loader { context, stream, kernels, weights, wanted, staging };
        let layers =
            (0..config.layers).map(|index| loader.layer(&config, index)).collect::<std::result::Result<_, _>>()?;
        let (hidden, vocab) = (config.hidden, config.vocab);
        let form = Form { n: vocab, k: hidden, adds: false };
        let embedding = loader.matrix(&[EMBEDDING.to_owned()], form)?;
        let output = if config.tied { None } else { Some(loader.matrix(&[OUTPUT.to_owned()], form)?) };
        let norm = loader.vector(&[NORM.to_owned()])?;
        let rotation = rotation(context, &config)?;
        stream.wait()?;
        Ok(Self { embedding, layers, norm, output, rotation, bytes, config })
    }

    pub(super) fn output(&self) -> &Matrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }
}

/// Refuses what the kernels do not do.
fn supported(config: &Config) -> std::result::Result<(), String> {
    if config.mlp_bias || config.out_bias {
        return Err(
            "biases on the output of attention or on the MLP are not supported on a GPU; use --device cpu".into()
        );
    }
    let sizes = [("hidden_size", config.hidden), ("intermediate_size", config.ffn), ("vocab_size", config.vocab)];
    if let Some((name, size)) = sizes.into_iter().find(|(_, size)| !size.is_multiple_of(8)) {
        return Err(format!("{name} is {size}; on a GPU it has to be a multiple of 8; use --device cpu"));
    }
    if !config.head_dim.is_multiple_of(8) || config.head_dim > 256 {
        return Err(format!("head_dim is {}; on a GPU it has to be a multiple of 8, at most 256", config.head_dim));
    }
    if config.hidden > 16_384 {
        return Err(format!("hidden_size is {}; the kernels take at most 16384", config.hidden));
    }
    Ok(())
}

/// The rotation of each position, in the arithmetic of the references: angle in f32, then its cosine and sine.
fn rotation(context: &Arc<Context>, config: &Config) -> Result<Buffer> {
    let frequencies = config.frequencies();
    let mut table = Vec::with_capacity(config.context * frequencies.len());
    for position in 0..config.context {
        table.extend(frequencies.iter().map(|frequency| {
            let (sine, cosine) = (position as f32 * frequency).sin_cos();
            [cosine, sine]
        }));
    }
    Buffer::from_slice(context, &table, "the rotation of each position")
}

struct Loader<'a> {
    context: &'a Arc<Context>,
    stream: &'a Stream,
    kernels: &'a Kernels,
    weights: &'a Weights,
    wanted: Vec<Wanted>,
    staging: Staging,
}

impl Loader<'_> {
    fn layer(&mut self, config: &Config, index: usize) -> std::result::Result<Layer, LoadError> {
        let names = |parts: &[&str], kind: &str| -> Vec<String> {
            parts.iter().map(|part| layer(index, &format!("{part}_proj.{kind}"))).collect()
        };
        let name = |part: &str| [layer(index, part)];
        let (hidden, queries) = (config.hidden, config.heads * config.head_dim);
        let attended = queries + 2 * config.kv_heads * config.head_dim;
        let qkv = ["self_attn.q", "self_attn.k", "self_attn.v"];
        Ok(Layer {
            norm: self.vector(&name("input_layernorm.weight"))?,
            qkv: self.matrix(&names(&qkv, "weight"), Form { n: attended, k: hidden, adds: false })?,
            qkv_bias: if config.qkv_bias { Some(self.vector(&names(&qkv, "bias"))?) } else { None },
            head_norms: if config.has_head_norms() {
                Some((self.vector(&name("self_attn.q_norm.weight"))?, self.vector(&name("self_attn.k_norm.weight"))?))
            } else {
                None
            },
            out: self.matrix(&names(&["self_attn.o"], "weight"), Form { n: hidden, k: queries, adds: true })?,
            ffn_norm: self.vector(&name("post_attention_layernorm.weight"))?,
            gate_up: self.matrix(
                &names(&["mlp.gate", "mlp.up"], "weight"),
                Form { n: 2 * config.ffn, k: hidden, adds: false },
            )?,
            down: self.matrix(&names(&["mlp.down"], "weight"), Form { n: hidden, k: config.ffn, adds: true })?,
            window: config.windows[index].map_or(0, |window| window as u32),
        })
    }

    fn matrix(&mut self, names: &[String], form: Form) -> std::result::Result<Matrix, LoadError> {
        let buffer = self.vector(names)?;
        Ok(Matrix::new(buffer, form)?)
    }

    /// Tensors one behind the other, in bf16.
    fn vector(&mut self, names: &[String]) -> std::result::Result<Buffer, LoadError> {
        let find = |name: &String| {
            let found = self.wanted.binary_search_by(|want| want.name.as_str().cmp(name));
            self.wanted[found.expect("a tensor of the configuration's list")].clone()
        };
        let parts: Vec<Wanted> = names.iter().map(find).collect();
        let sizes = parts.iter().map(|part| part.shape.iter().product::<usize>());
        let buffer = Buffer::new(self.context, sizes.clone().sum::<usize>() * 2, &names[0])?;
        let mut at = 0;
        for (part, elements) in parts.iter().zip(sizes) {
            let tensor = self.weights.tensor(part);
            match tensor.source() {
                Source::Drawn { key, middle, width } => {
                    let to = buffer.at(at);
                    self.kernels.draw_bf16(self.stream, to, elements, key, middle, width)?;
                }
                Source::Bf16(bytes) => self.staging.upload(self.stream, buffer.at(at), bytes)?,
                Source::Other => {
                    let mut values = vec![0.0; elements];
                    tensor.read(0, &mut values)?;
                    let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
                    self.staging.upload(self.stream, buffer.at(at), bytemuck::cast_slice(&values))?;
                }
            }
            at += elements * 2;
        }
        Ok(buffer)
    }
}

/// Pinned memory through which files reach the GPU at the link's speed: one half is filled while the other is copied.
struct Staging {
    halves: [(Pinned, super::driver::Event); 2],
    next: usize,
}

impl Staging {
    fn new(context: &Context) -> Result<Self> {
        let half = || Ok((Pinned::new(context, STAGING_BYTES)?, super::driver::Event::new(context, false)?));
        Ok(Self { halves: [half()?, half()?], next: 0 })
    }

    fn upload(&mut self, stream: &Stream, to: u64, bytes: &[u8]) -> Result<()> {
        for (index, chunk) in bytes.chunks(STAGING_BYTES).enumerate() {
            let (pinned, copied) = &mut self.halves[self.next];
            copied.wait()?;
            pinned.bytes_mut()[..chunk.len()].copy_from_slice(chunk);
            stream.upload(to + (index * STAGING_BYTES) as u64, pinned.as_ptr(), chunk.len())?;
            copied.record(stream)?;
            self.next ^= 1;
        }
        Ok(())
    }
}

const STAGING_BYTES: usize = 16 << 20;
/// What a worker needs beside weights, at the very least.
const LEAST_BESIDE: u64 = 512 << 20;

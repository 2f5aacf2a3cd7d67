//! What a step of a model on a GPU takes: the integer cost model that policies and the simulator share.
//!
//! Owns the composition of a step from its parts. Must not know policies, clocks or files: [`Hardware`] and [`Model`]
//! arrive as values, times leave as nanoseconds. Step by step:
//!
//! ```text
//! gpu = k * ( step + layers(M) + layer count * (prefill attention + decode attention) + head(R) )
//! cpu = base + per_sequence * sequences + per_request * started + per_finished * finished + per_page * pages
//! overlapped = max(gpu, cpu) + sync          synchronous = gpu + cpu
//! ```
//!
//! M is new tokens (a step of decoding only is padded to its captured graph), R rows of logits, k the correction for
//! prefill or decode. A step without a graph lasts at least the launches of all its kernels. The parts are in [`gemm`]
//! and [`attention`]; [`Polynomial`] replaces all of them for queueing oracles. Composition after AIConfigurator (arXiv
//! 2601.06288) and BLIS, whose fits need no more terms for dense GQA models; corrected by two factors and two host
//! constants it met 58 held-out SGLang runs of Qwen3-32B on H100s within 3.5 % (TPOT) and 2.1 % (end to end).
//!
//! 1. Integers only: equal inputs give equal outputs on every platform.
//! 2. More tokens, contexts, sequences or rows never make a step cheaper, measured decode tables excepted.
//! 3. [`Cost::forward`] reads two precomputed curves and takes at most one power mean: tens of nanoseconds.

pub mod attention;
pub mod decodes;
pub mod disk;
pub mod fixed;
pub mod gemm;
pub mod hardware;
pub mod link;
pub mod load;
pub mod polynomial;
pub mod recipe;
pub mod shape;
pub mod table;

use alloc::boxed::Box;
use alloc::vec::Vec;

pub use decodes::Decodes;
pub use disk::Disk;
pub use hardware::Hardware;
pub use link::{Link, LinkCost};
pub use load::{Forward, Load};
pub use polynomial::{DecodePolynomial, Polynomial};
pub use recipe::Recipe;
pub use shape::Model;
pub use table::{Grid, Tables};

use attention::Attention;
use fixed::{mul_div, ns_of_ps, saturate};
use gemm::Dense;
use hardware::Cpu;

/// A model on `tp` GPUs of one kind, ready to be asked.
#[derive(Clone, Debug)]
pub struct Cost {
    form: Form,
    cpu: Cpu,
}

#[derive(Clone, Debug)]
enum Form {
    Kernels(Box<Kernels>),
    Polynomial(Box<Polynomial>),
}

#[derive(Clone, Debug)]
struct Kernels {
    dense: Dense,
    attention: Attention,
    layers: u64,
    /// The batch that a decode-only step of so many sequences is padded to.
    padded: Vec<u32>,
    step_ps: u64,
    launches_ps: u64,
    prefill_per_mille: u64,
    decode_per_mille: u64,
    mixed_per_mille: u64,
    kv_bytes_per_token: u64,
    kv_bytes_per_token_rank: u64,
    hbm_bytes: u64,
    /// Weights and reserve of one rank.
    occupied_bytes: u64,
    made_of: Box<recipe::Gpus>,
}

impl Cost {
    /// Prepares a model on `tp` GPUs; impossible combinations are errors that name field and value.
    pub fn new(hardware: &Hardware, model: &Model, tp: u32) -> Result<Self, CostError> {
        hardware.possible()?;
        model.divides(tp)?;
        let weights_bytes = model.weights_bytes_rank(tp);
        let occupied_bytes = weights_bytes.saturating_add(hardware.reserved_bytes);
        if occupied_bytes >= hardware.hbm_bytes {
            let (reserved_bytes, hbm_bytes) = (hardware.reserved_bytes, hardware.hbm_bytes);
            return Err(CostError::WeightsDoNotFit { weights_bytes, reserved_bytes, hbm_bytes, tp });
        }
        let tables = hardware.tables.iter().find(|tables| tables.tp == tp && tables.models.contains(&model.name));
        let launches = hardware.launch.kernels_per_layer * u64::from(model.layers);
        let kernels = Kernels {
            dense: Dense::new(hardware, model, tp, tables)?,
            attention: Attention::new(hardware, model, tp, tables),
            layers: u64::from(model.layers),
            padded: padded(&hardware.launch.graph_batches),
            step_ps: hardware.launch.step_ns * 1_000,
            launches_ps: launches.saturating_mul(hardware.launch.kernel_ns * 1_000),
            prefill_per_mille: hardware.prefill_per_mille,
            decode_per_mille: hardware.decode_per_mille,
            mixed_per_mille: hardware.prefill_per_mille.max(hardware.decode_per_mille),
            kv_bytes_per_token: model.kv_bytes_per_token_rank(tp) * u64::from(tp),
            kv_bytes_per_token_rank: model.kv_bytes_per_token_rank(tp),
            hbm_bytes: hardware.hbm_bytes,
            occupied_bytes,
            made_of: Box::new(recipe::Gpus { hardware: hardware.clone(), model: model.clone(), tp }),
        };
        Ok(Self { form: Form::Kernels(Box::new(kernels)), cpu: hardware.cpu })
    }

    /// A cost of constants, without host work.
    #[must_use]
    pub fn polynomial(polynomial: Polynomial) -> Self {
        Self { form: Form::Polynomial(Box::new(polynomial)), cpu: Cpu::default() }
    }

    /// A server with constant service times: a prefill takes `request + token * new`, a decode step `decode`.
    #[must_use]
    pub fn fixed(prefill_request_ns: u64, prefill_token_ns: u64, decode_step_ns: u64, kv_tokens: u64) -> Self {
        let decode = DecodePolynomial { step_ps: decode_step_ns.saturating_mul(1_000), ..DecodePolynomial::default() };
        Self::polynomial(Polynomial {
            prefill_request_ps: prefill_request_ns.saturating_mul(1_000),
            prefill_token_ps: prefill_token_ns.saturating_mul(1_000),
            decode_small: decode,
            decode_large: decode,
            large_batch: u64::MAX,
            kv_bytes_per_token: 1,
            kv_tokens,
            ..Polynomial::default()
        })
    }

    /// Replaces the constants of the host, for engines whose host work is measured apart from the GPU.
    #[must_use]
    pub fn with_cpu(self, cpu: Cpu) -> Self {
        Self { cpu, ..self }
    }

    /// What a step takes; nothing for a step without tokens.
    #[must_use]
    #[inline]
    pub fn forward(&self, load: &Load) -> Forward {
        if load.is_empty() {
            return Forward::default();
        }
        let gpu_ps = match &self.form {
            Form::Kernels(kernels) => kernels.ps(load),
            Form::Polynomial(polynomial) => polynomial.ps(load),
        };
        Forward { gpu_ns: ns_of_ps(gpu_ps), cpu_ns: self.cpu_ns(load) }
    }

    /// Nanoseconds of a step whose host work overlaps with the step before it.
    #[must_use]
    pub fn overlapped_ns(&self, load: &Load) -> u64 {
        if load.is_empty() { 0 } else { self.forward(load).overlapped_ns(self.cpu.sync_ns) }
    }

    /// Nanoseconds of a step whose host work and GPU work take turns.
    #[must_use]
    pub fn synchronous_ns(&self, load: &Load) -> u64 {
        self.forward(load).synchronous_ns()
    }

    /// GPU nanoseconds of prefilling `new` tokens behind `cached` ones in a step of its own, up to the first token.
    #[must_use]
    pub fn prefill_ns(&self, cached: u64, new: u64) -> u64 {
        let mut load = Load::new();
        load.prefill(self, cached, new);
        load.logits(1);
        self.forward(&load).gpu_ns
    }

    /// GPU nanoseconds that having `cached` tokens saves a request that goes on with `new` ones: what loading them may
    /// take before recomputing is better.
    #[must_use]
    pub fn saved_ns(&self, cached: u64, new: u64) -> u64 {
        self.prefill_ns(0, cached.saturating_add(new)).saturating_sub(self.prefill_ns(cached, new))
    }

    /// GPU nanoseconds of a decode step of `batch` sequences that read `context_tokens` of KV together.
    #[must_use]
    pub fn decode_step_ns(&self, batch: u64, context_tokens: u64) -> u64 {
        self.forward(&Load { decodes: batch, context_tokens, rows: batch, ..Load::new() }).gpu_ns
    }

    /// Bytes of KV of one token over all ranks, copies of KV heads included.
    #[must_use]
    pub fn kv_bytes_per_token(&self) -> u64 {
        match &self.form {
            Form::Kernels(kernels) => kernels.kv_bytes_per_token,
            Form::Polynomial(polynomial) => polynomial.kv_bytes_per_token,
        }
    }

    /// Tokens of KV that fit: the share of memory the engine may take, less weights and reserve.
    ///
    /// Arithmetic for planning; a real engine's own count replaces it.
    #[must_use]
    pub fn kv_tokens_capacity(&self, memory_fraction_per_mille: u64) -> u64 {
        match &self.form {
            Form::Kernels(kernels) => {
                let usable = u128::from(kernels.hbm_bytes) * u128::from(memory_fraction_per_mille.min(1_000)) / 1_000;
                saturate(usable).saturating_sub(kernels.occupied_bytes) / kernels.kv_bytes_per_token_rank
            }
            Form::Polynomial(polynomial) => polynomial.kv_tokens,
        }
    }

    /// Layers of the model; a fit has one.
    #[must_use]
    pub fn layers(&self) -> u64 {
        match &self.form {
            Form::Kernels(kernels) => kernels.layers,
            Form::Polynomial(_) => 1,
        }
    }

    #[inline]
    pub(super) fn prefill_attention_ps(&self, cached: u64, new: u64) -> u64 {
        match &self.form {
            Form::Kernels(kernels) => kernels.attention.prefill_ps(cached, new),
            Form::Polynomial(_) => 0,
        }
    }

    #[inline]
    fn cpu_ns(&self, load: &Load) -> u64 {
        let cpu = &self.cpu;
        cpu.base_ns
            .saturating_add(cpu.per_sequence_ns.saturating_mul(load.sequences()))
            .saturating_add(cpu.per_request_ns.saturating_mul(load.requests))
            .saturating_add(cpu.per_finished_ns.saturating_mul(load.finished))
            .saturating_add(cpu.per_page_ns.saturating_mul(load.pages))
    }
}

impl Kernels {
    #[inline]
    fn ps(&self, load: &Load) -> u64 {
        // A mixed step pads its decoding part as well: one more prefill token must not be cheaper than none.
        let graph = usize::try_from(load.decodes).ok().and_then(|decodes| self.padded.get(decodes));
        let decodes = graph.map_or(load.decodes, |&padded| u64::from(padded));
        let mut attention_ps = self.attention.decode_ps(load.decodes, load.context_tokens);
        if load.chunks > 0 {
            attention_ps =
                attention_ps.saturating_add(self.attention.prefill_base_ps()).saturating_add(load.prefill_attention_ps);
        }
        let ps = self
            .step_ps
            .saturating_add(self.dense.body_ps(load.new_tokens.saturating_add(decodes)))
            .saturating_add(self.layers.saturating_mul(attention_ps))
            .saturating_add(self.dense.head_ps(load.rows));
        let (per_mille, is_graph) = match (load.chunks > 0, load.decodes > 0) {
            (true, false) => (self.prefill_per_mille, false),
            (true, true) => (self.mixed_per_mille, false),
            (false, _) => (self.decode_per_mille, graph.is_some()),
        };
        let ps = if per_mille == 1_000 { ps } else { mul_div(ps, per_mille, 1_000) };
        if is_graph { ps } else { ps.max(self.launches_ps) }
    }
}

/// For each batch up to the largest captured one, the captured batch that holds it.
fn padded(graph_batches: &[u32]) -> Vec<u32> {
    let mut padded = Vec::new();
    for &batch in graph_batches {
        let fits = batch as usize + 1;
        padded.resize(fits, batch);
    }
    padded
}

/// Why a model cannot be costed on some hardware.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CostError {
    /// A constant that no hardware or model has.
    #[error("{field} is {value}, expected {minimum} to {maximum}")]
    OutOfRange {
        /// The key in its file.
        field: &'static str,
        /// What it says.
        value: u64,
        /// The least it may say.
        minimum: u64,
        /// The most it may say.
        maximum: u64,
    },
    /// A size that its ranks cannot share evenly.
    #[error("{field} is {value}, which {divisor} = {by} does not divide")]
    NotDivisible {
        /// The size that is shared.
        field: &'static str,
        /// Its value.
        value: u32,
        /// What shares it.
        divisor: &'static str,
        /// Its value.
        by: u32,
    },
    /// No room for the model, let alone for KV.
    #[error(
        "weights of {weights_bytes} bytes a GPU (tp = {tp}) and reserved_bytes = {reserved_bytes} leave nothing of \
         hbm_bytes = {hbm_bytes}"
    )]
    WeightsDoNotFit {
        /// On one rank.
        weights_bytes: u64,
        /// What else occupies memory.
        reserved_bytes: u64,
        /// Memory of one GPU.
        hbm_bytes: u64,
        /// GPUs that share the model.
        tp: u32,
    },
    /// The hardware says nothing about groups of this size.
    #[error("all_reduce has no entry for tp = {tp}")]
    NoAllReduce {
        /// GPUs that should share the model.
        tp: u32,
    },
    /// A measured table whose axes or times do not ascend, or whose rows differ in length.
    #[error("{table} does not ascend or has a wrong size at row {row}")]
    Table {
        /// The key in its file.
        table: &'static str,
        /// Counted from 0.
        row: usize,
    },
}

impl CostError {
    fn in_range(field: &'static str, value: u64, minimum: u64, maximum: u64) -> Result<(), Self> {
        if (minimum..=maximum).contains(&value) {
            Ok(())
        } else {
            Err(Self::OutOfRange { field, value, minimum, maximum })
        }
    }

    fn divisible(field: &'static str, value: u32, divisor: &'static str, by: u32) -> Result<(), Self> {
        if by > 0 && value.is_multiple_of(by) { Ok(()) } else { Err(Self::NotDivisible { field, value, divisor, by }) }
    }
}

#[cfg(test)]
mod tests;

//! The constants of a GPU and of the host code that feeds it, as a file says them.
//!
//! Owns names, units and ranges of the constants; the formulas are in [`super::gemm`] and [`super::attention`]. Every key carries its unit;
//! efficiencies are shares of the data sheet in per mille.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::CostError;
use super::fixed::{Q_PER_MILLE_MAX, Rate};
use super::table::Tables;

/// One kind of GPU with what was measured or published about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// The name that scenarios refer to.
    pub name: String,
    /// Dense bf16 rate of the data sheet in GFLOP/s.
    pub bf16_gflops: u64,
    /// Memory of one GPU.
    pub hbm_bytes: u64,
    /// Memory bandwidth of the data sheet.
    pub hbm_bytes_per_second: u64,
    /// Activations, workspaces and the context: neither weights nor KV.
    pub reserved_bytes: u64,
    /// Correction of the GPU time of steps with prefill, fitted to a real engine; 1,000 is none.
    pub prefill_per_mille: u64,
    /// The same for steps without.
    pub decode_per_mille: u64,
    /// Matrix products.
    pub gemm: Gemm,
    /// Attention of prefill chunks.
    pub prefill_attention: PrefillAttention,
    /// Attention of decoding sequences.
    pub decode_attention: DecodeAttention,
    /// Norms, rotary embedding, KV write, activation.
    pub elementwise: Elementwise,
    /// Choosing tokens from logits.
    pub sampling: Sampling,
    /// Launches and graphs.
    pub launch: Launch,
    /// Host work of a step.
    pub cpu: Cpu,
    /// All-reduce by size of the group; a `tp` that is not listed cannot be costed.
    #[serde(default)]
    pub all_reduce: Vec<AllReduce>,
    /// Measured times that replace formulas for the model and `tp` they name.
    #[serde(default)]
    pub tables: Vec<Tables>,
}

/// `t = base + ((flops / compute)^q + ((bytes + pad) / memory)^q)^(1/q)`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gemm {
    /// Time of an empty product.
    pub base_ps: u64,
    /// Reached share of `bf16_gflops`.
    pub compute_per_mille: u64,
    /// Reached share of `hbm_bytes_per_second`.
    pub memory_per_mille: u64,
    /// Bytes added to each product: ramp-up of the memory system.
    pub pad_bytes: u64,
    /// Sharpness of the corner between the two bounds.
    pub q_per_mille: u32,
}

/// `t = base + ((flops (1 + new_overhead/new + context_overhead/(cached+new)) / compute)^q + (bytes / memory)^q)^(1/q)`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillAttention {
    /// Time of an empty launch; once a step, all chunks are one launch.
    pub base_ps: u64,
    /// Reached share of `bf16_gflops`.
    pub compute_per_mille: u64,
    /// Reached share of `hbm_bytes_per_second`.
    pub memory_per_mille: u64,
    /// Too few query tiles to fill the GPU: loss that shrinks with the new tokens.
    pub new_overhead_tokens: u64,
    /// Diagonal tiles and pipeline fill: loss that shrinks with the whole context.
    pub context_overhead_tokens: u64,
    /// Sharpness of the corner between the two bounds.
    pub q_per_mille: u32,
}

/// `t = ((base + per_head * batch * heads)^q + (kv bytes / memory)^q)^(1/q)`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeAttention {
    /// Time of an empty launch, with the combination of split KV.
    pub base_ps: u64,
    /// Per sequence and query head.
    pub per_head_ps: u64,
    /// Reached share of `hbm_bytes_per_second`.
    pub memory_per_mille: u64,
    /// Sharpness of the corner between the two bounds.
    pub q_per_mille: u32,
}

/// `t = kernels_per_layer * kernel + bytes / memory`, a layer
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Elementwise {
    /// Small kernels of a layer.
    pub kernels_per_layer: u64,
    /// The least time of one, inside a graph.
    pub kernel_ps: u64,
    /// Reached share of `hbm_bytes_per_second`.
    pub memory_per_mille: u64,
}

/// `t = base + per_row * rows`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// For any rows at all.
    pub base_ps: u64,
    /// Per row of logits.
    pub per_row_ps: u64,
}

/// Decode-only steps up to the largest captured batch replay a graph; all others launch kernels one by one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// Kernels of a layer, for the bound of launching them one by one.
    pub kernels_per_layer: u64,
    /// Host time of one launch; a step without a graph lasts at least all of them.
    pub kernel_ns: u64,
    /// Fixed start of any step on the GPU.
    pub step_ns: u64,
    /// Captured batch sizes, ascending; a step is padded to the next one. Empty: no graphs.
    #[serde(default)]
    pub graph_batches: Vec<u32>,
}

/// Host work of a step: `base + sequences + requests + finished + pages`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Any step.
    pub base_ns: u64,
    /// Per sequence in the step.
    pub per_sequence_ns: u64,
    /// Per request that starts in the step.
    pub per_request_ns: u64,
    /// Per sequence that finishes in the step.
    pub per_finished_ns: u64,
    /// Per page allocated or freed.
    pub per_page_ns: u64,
    /// What an overlapped step cannot hide: learning the result and handing it on.
    pub sync_ns: u64,
}

/// `t = alpha + 2 (tp - 1) / tp * bytes / bus`, twice a layer
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllReduce {
    /// GPUs in the group.
    pub tp: u32,
    /// Time of an empty call inside a graph.
    pub alpha_ns: u64,
    /// Bus bandwidth as nccl-tests define it.
    pub bus_bytes_per_second: u64,
}

impl Hardware {
    /// Picoseconds per operation at a share of the data sheet.
    pub(super) fn compute(&self, per_mille: u64) -> Rate {
        Rate::per_second(u128::from(self.bf16_gflops) * 1_000_000_000, per_mille)
    }

    /// Picoseconds per byte of memory at a share of the data sheet.
    pub(super) fn memory(&self, per_mille: u64) -> Rate {
        Rate::per_second(u128::from(self.hbm_bytes_per_second), per_mille)
    }

    /// Whether the constants can be computed with; the error names the first that cannot.
    pub(super) fn possible(&self) -> Result<(), CostError> {
        for (field, value, minimum, maximum) in [
            ("bf16_gflops", self.bf16_gflops, 1, 1 << 40),
            ("hbm_bytes", self.hbm_bytes, 1, 1 << 50),
            ("hbm_bytes_per_second", self.hbm_bytes_per_second, 1, 1 << 50),
            ("prefill_per_mille", self.prefill_per_mille, 1, SCALE_MAX),
            ("decode_per_mille", self.decode_per_mille, 1, SCALE_MAX),
            ("gemm.base_ps", self.gemm.base_ps, 0, PS_MAX),
            ("gemm.compute_per_mille", self.gemm.compute_per_mille, 1, 1_000),
            ("gemm.memory_per_mille", self.gemm.memory_per_mille, 1, 1_000),
            ("gemm.pad_bytes", self.gemm.pad_bytes, 0, 1 << 40),
            ("gemm.q_per_mille", u64::from(self.gemm.q_per_mille), 1_000, Q_MAX),
            ("prefill_attention.base_ps", self.prefill_attention.base_ps, 0, PS_MAX),
            ("prefill_attention.compute_per_mille", self.prefill_attention.compute_per_mille, 1, 1_000),
            ("prefill_attention.memory_per_mille", self.prefill_attention.memory_per_mille, 1, 1_000),
            ("prefill_attention.new_overhead_tokens", self.prefill_attention.new_overhead_tokens, 0, 1 << 20),
            ("prefill_attention.context_overhead_tokens", self.prefill_attention.context_overhead_tokens, 0, 1 << 20),
            ("prefill_attention.q_per_mille", u64::from(self.prefill_attention.q_per_mille), 1_000, Q_MAX),
            ("decode_attention.base_ps", self.decode_attention.base_ps, 0, PS_MAX),
            ("decode_attention.per_head_ps", self.decode_attention.per_head_ps, 0, PS_MAX),
            ("decode_attention.memory_per_mille", self.decode_attention.memory_per_mille, 1, 1_000),
            ("decode_attention.q_per_mille", u64::from(self.decode_attention.q_per_mille), 1_000, Q_MAX),
            ("elementwise.kernels_per_layer", self.elementwise.kernels_per_layer, 0, 1_000),
            ("elementwise.kernel_ps", self.elementwise.kernel_ps, 0, PS_MAX),
            ("elementwise.memory_per_mille", self.elementwise.memory_per_mille, 1, 1_000),
            ("sampling.base_ps", self.sampling.base_ps, 0, PS_MAX),
            ("sampling.per_row_ps", self.sampling.per_row_ps, 0, PS_MAX),
            ("launch.kernels_per_layer", self.launch.kernels_per_layer, 0, 1_000),
            ("launch.kernel_ns", self.launch.kernel_ns, 0, PS_MAX / 1_000),
            ("launch.step_ns", self.launch.step_ns, 0, PS_MAX / 1_000),
        ] {
            CostError::in_range(field, value, minimum, maximum)?;
        }
        let mut smaller = 0;
        for &batch in &self.launch.graph_batches {
            CostError::in_range("launch.graph_batches", u64::from(batch), smaller + 1, GRAPH_BATCH_MAX)?;
            smaller = u64::from(batch);
        }
        for all_reduce in &self.all_reduce {
            CostError::in_range("all_reduce.alpha_ns", all_reduce.alpha_ns, 0, PS_MAX / 1_000)?;
            CostError::in_range("all_reduce.bus_bytes_per_second", all_reduce.bus_bytes_per_second, 1, 1 << 50)?;
        }
        self.tables.iter().try_for_each(Tables::possible)
    }
}

/// The largest batch that a graph may be captured for.
pub const GRAPH_BATCH_MAX: u64 = 4_096;
/// One second: no constant of a single kernel is longer.
const PS_MAX: u64 = 1_000_000_000_000;
const SCALE_MAX: u64 = 1_000_000;
const Q_MAX: u64 = Q_PER_MILLE_MAX as u64;

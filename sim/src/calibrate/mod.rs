//! From measured step times of an engine to the file of its hardware.
//!
//! Owns the way back from times to the constants and tables of [`pd_core::cost`]; knows nothing of how they were measured.
//! Both are filled in: tables, which give the measured points back, for the model that was measured, and the constants of
//! the formulas, by least squares over the same points, for other models.
//!
//! With T the time of a step, l layers, and x0 the smallest context measured:
//!
//! ```text
//! head(r)         what r rows of logits add to a step
//! layer(b)        (T(b sequences at x0) - head(b)) / l                  decoding: attention at x0 counts as part of it
//! pair            (T(c cached, m new) - T(0, m)) / (2 c m l)            the largest chunk behind the largest prefix
//! layer(m)        T(0, m) / l - pair m^2                                chunks beyond the largest batch
//! decode(b, x)    (T(b, x) - T(b, x0)) / l
//! prefill(c, m)   T(c, m) / l - layer(m)
//! ```

mod fit;
mod tables;
#[cfg(test)]
mod tests;

use pd_core::cost::hardware::{Cpu, DecodeAttention, Elementwise, Gemm, Hardware, Launch, PrefillAttention, Sampling};
use pd_core::cost::{Cost, CostError, Load, Model};

/// What was measured of an engine.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The name of the hardware.
    pub name: String,
    /// The model that was computed.
    pub model: Model,
    /// Memory of the device.
    pub hbm_bytes: u64,
    /// What of it neither weights nor KV can have.
    pub reserved_bytes: u64,
    /// Numbers of sequences that decode steps are padded to.
    pub graph_batches: Vec<u32>,
    /// Steps that only decode, with logits for each sequence.
    pub decodes: Vec<DecodePoint>,
    /// Steps of one chunk without logits.
    pub prefills: Vec<PrefillPoint>,
    /// `[rows, ns]`: what logits add to a step.
    pub heads: Vec<[u64; 2]>,
    /// `[sequences, ns]`: host work of a decode step.
    pub hosts: Vec<[u64; 2]>,
}

/// A step of so many sequences of so many tokens each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodePoint {
    /// How many.
    pub sequences: u32,
    /// Tokens of each, the new one included.
    pub context: u32,
    /// Of the step.
    pub ns: u64,
}

/// A step of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillPoint {
    /// Tokens before it.
    pub cached: u32,
    /// Its tokens.
    pub new: u32,
    /// Of the step.
    pub ns: u64,
}

/// A step of any kind, to hold a cost against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Tokens of each sequence that decodes, the new one included.
    pub contexts: Vec<u32>,
    /// Cached and new tokens of each chunk, which all end their prompts.
    pub chunks: Vec<[u32; 2]>,
    /// Of the step.
    pub ns: u64,
}

/// Why nothing follows from what was measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalibrateError {
    /// Less than a line can be drawn through.
    #[error("{what}: {count} measured, at least {least} are needed")]
    TooFew {
        /// Points of what.
        what: &'static str,
        /// So many there are.
        count: usize,
        /// So many would do.
        least: usize,
    },
    /// What follows is no hardware.
    #[error(transparent)]
    Cost(#[from] CostError),
}

impl Measured {
    /// The hardware, with tables for the model and constants for others.
    ///
    /// # Errors
    /// [`CalibrateError`].
    pub fn hardware(&self) -> Result<Hardware, CalibrateError> {
        self.enough()?;
        let formulas = fit::constants(self, &self.start())?;
        tables::fill(self, formulas)
    }

    fn enough(&self) -> Result<(), CalibrateError> {
        let chunks = self.prefills.iter().filter(|point| point.cached == 0).count();
        let prefixes = self.prefills.len() - chunks;
        for (what, count, least) in [
            ("decode steps", self.decodes.len(), 2),
            ("chunks without a prefix", chunks, 2),
            ("chunks behind a prefix", prefixes, 1),
            ("rows of logits", self.heads.len(), 1),
            ("host times", self.hosts.len(), 1),
        ] {
            if count < least {
                return Err(CalibrateError::TooFew { what, count, least });
            }
        }
        Ok(())
    }

    /// Where fitting starts: shares of the best that was seen.
    fn start(&self) -> Hardware {
        let flops = |point: &PrefillPoint| {
            2.0 * self.model.weights() as f64 * f64::from(point.new) / (point.ns.max(1) as f64 / 1e9)
        };
        let best_flops = self.prefills.iter().map(flops).fold(1e9, f64::max);
        let bytes = |point: &DecodePoint| {
            let kv = self.model.kv_bytes_per_token() * u64::from(point.sequences) * u64::from(point.context);
            (self.model.weights_bytes() + kv) as f64 / (point.ns.max(1) as f64 / 1e9)
        };
        let best_bytes = self.decodes.iter().map(bytes).fold(1e6, f64::max);
        let (base_ns, per_sequence_ns) = fit::line(&self.hosts);
        let least = self.prefills.iter().map(|point| point.ns).min().unwrap_or(0);
        Hardware {
            name: self.name.clone(),
            bf16_gflops: (best_flops * REFERENCE / 1e9) as u64,
            hbm_bytes: self.hbm_bytes,
            hbm_bytes_per_second: (best_bytes * REFERENCE) as u64,
            reserved_bytes: self.reserved_bytes,
            prefill_per_mille: 1_000,
            decode_per_mille: 1_000,
            gemm: Gemm {
                base_ps: 500_000,
                compute_per_mille: 750,
                memory_per_mille: 750,
                pad_bytes: 8_000_000,
                q_per_mille: 3_000,
            },
            prefill_attention: PrefillAttention {
                base_ps: 8_000_000,
                compute_per_mille: 500,
                memory_per_mille: 750,
                new_overhead_tokens: 16,
                context_overhead_tokens: 1_000,
                q_per_mille: 3_000,
            },
            decode_attention: DecodeAttention {
                base_ps: 6_000_000,
                per_head_ps: 500,
                memory_per_mille: 750,
                q_per_mille: 1_000,
            },
            elementwise: Elementwise { kernels_per_layer: 4, kernel_ps: 1_800_000, memory_per_mille: 750 },
            sampling: Sampling { base_ps: 4_500_000, per_row_ps: 80_000 },
            launch: Launch {
                kernels_per_layer: 1,
                // The smallest chunk takes what starting its kernels one by one takes.
                kernel_ns: least / u64::from(self.model.layers.max(1)),
                step_ns: 0,
                graph_batches: self.graph_batches.clone(),
            },
            cpu: Cpu { base_ns, per_sequence_ns, ..Cpu::default() },
            all_reduce: Vec::new(),
            tables: Vec::new(),
        }
    }
}

impl Step {
    /// How far a cost is off, as a share of what was measured.
    #[must_use]
    pub fn error(&self, cost: &Cost) -> f64 {
        let mut load = Load::new();
        for context in &self.contexts {
            load.decode(u64::from(*context));
        }
        for [cached, new] in &self.chunks {
            load.prefill(cost, u64::from(*cached), u64::from(*new));
        }
        load.logits(self.chunks.len() as u64);
        cost.forward(&load).gpu_ns as f64 / self.ns.max(1) as f64 - 1.0
    }
}

impl DecodePoint {
    fn step(&self) -> Step {
        Step { contexts: vec![self.context; self.sequences as usize], chunks: Vec::new(), ns: self.ns }
    }
}

impl PrefillPoint {
    /// What a cost says of it.
    fn ns_by(&self, cost: &Cost) -> u64 {
        let mut load = Load::new();
        load.prefill(cost, u64::from(self.cached), u64::from(self.new));
        cost.forward(&load).gpu_ns
    }
}

/// What shares refer to, as a multiple of the best that was seen.
const REFERENCE: f64 = 1.25;

//! Everything of a step that depends only on how many tokens it has: projections, output head, small kernels,
//! all-reduce, sampling.
//!
//! Owns these formulas and evaluates them once, into two `Curve`s over tokens and rows; the step then reads them.
//!
//! With M tokens, R rows of logits, and sizes of one rank:
//!
//! ```text
//! layer(M) = G(M, qkv, hidden) + G(M, hidden, q) + G(M, 2 f, hidden) + G(M, hidden, f) + E(M) + 2 A(M)
//! head(R)  = G(R, vocab, hidden) + S(R)
//! G(m, n, k) = base + ( (2 m n k / compute)^q + ((w n k + 2 (m k + m n) + pad) / memory)^q )^(1/q)
//! E(m) = kernels * kernel + 2 m (6 hidden + 3 f + 4 qkv) / memory
//! A(m) = alpha + 2 (tp - 1) / tp * 2 m hidden / bus
//! S(r) = base + per_row r
//! ```
//!
//! Five constants for G are what fits AIConfigurator's measured kernels (Apache-2.0 silicon tables) to 5.7 % on H100,
//! 5.8 % on H200 and 8.1 % on A100; a roofline of data sheet numbers is off by 44 to 55 %, three constants by 12 to
//! 16 %. E counts reads and writes of norms, rotary embedding, KV write and activation.

use super::CostError;
use super::fixed::{Rate, power_mean};
use super::hardware::Hardware;
use super::shape::Model;
use super::table::{Curve, Tables, ps_of_points};

/// The part of a step without attention, over all layers.
#[derive(Clone, Debug)]
pub(super) struct Dense {
    body: Curve,
    head: Curve,
}

impl Dense {
    pub(super) fn new(hardware: &Hardware, model: &Model, tp: u32, tables: Option<&Tables>) -> Result<Self, CostError> {
        let product = Product::new(hardware, model);
        let all_reduce = AllReduceTime::new(hardware, model, tp)?;
        let (hidden, head_dim) = (u64::from(model.hidden), u64::from(model.head_dim));
        let (qkv, q) = (model.qkv_rank(tp), model.heads_rank(tp) * head_dim);
        let intermediate = u64::from(model.intermediate / tp);
        let vocab = u64::from(model.vocab.div_ceil(tp));
        let layers = u64::from(model.layers);
        let elementwise = hardware.elementwise;
        let touched = hardware
            .memory(elementwise.memory_per_mille)
            .times(ACTIVATION_BYTES * (6 * hidden + 3 * intermediate + 4 * qkv));

        let body = Curve::new(|tokens| {
            let projections = match tables.filter(|tables| !tables.layer_gemm_ns.is_empty()) {
                Some(tables) => ps_of_points(&tables.layer_gemm_ns, tokens),
                None => product
                    .ps(tokens, qkv, hidden)
                    .saturating_add(product.ps(tokens, hidden, q))
                    .saturating_add(product.ps(tokens, 2 * intermediate, hidden))
                    .saturating_add(product.ps(tokens, hidden, intermediate)),
            };
            projections
                .saturating_add(elementwise.kernels_per_layer * elementwise.kernel_ps)
                .saturating_add(touched.ps(tokens))
                .saturating_add(all_reduce.ps(tokens).saturating_mul(2))
                .saturating_mul(layers)
        });
        let head = Curve::new(|rows| {
            if rows == 0 {
                return 0;
            }
            let product = match tables.filter(|tables| !tables.head_gemm_ns.is_empty()) {
                Some(tables) => ps_of_points(&tables.head_gemm_ns, rows),
                None => product.ps(rows, vocab, hidden),
            };
            product
                .saturating_add(hardware.sampling.base_ps)
                .saturating_add(hardware.sampling.per_row_ps.saturating_mul(rows))
        });
        Ok(Self { body, head })
    }

    /// Picoseconds of all layers for so many tokens.
    #[inline]
    pub(super) fn body_ps(&self, tokens: u64) -> u64 {
        self.body.ps(tokens)
    }

    /// Picoseconds of logits and sampling for so many rows.
    #[inline]
    pub(super) fn head_ps(&self, rows: u64) -> u64 {
        self.head.ps(rows)
    }
}

/// G of the module documentation.
struct Product {
    base_ps: u64,
    compute: Rate,
    memory: Rate,
    pad_bytes: u64,
    weight_bytes: u64,
    q_per_mille: u32,
}

impl Product {
    fn new(hardware: &Hardware, model: &Model) -> Self {
        let gemm = hardware.gemm;
        Self {
            base_ps: gemm.base_ps,
            compute: hardware.compute(gemm.compute_per_mille),
            memory: hardware.memory(gemm.memory_per_mille),
            pad_bytes: gemm.pad_bytes,
            weight_bytes: u64::from(model.dtype_bytes),
            q_per_mille: gemm.q_per_mille,
        }
    }

    fn ps(&self, m: u64, n: u64, k: u64) -> u64 {
        let compute = self.compute.ps((2 * m * n).saturating_mul(k));
        let bytes = self.weight_bytes * n * k + ACTIVATION_BYTES * (m * k + m * n) + self.pad_bytes;
        self.base_ps.saturating_add(power_mean(compute, self.memory.ps(bytes), self.q_per_mille))
    }
}

/// A of the module documentation.
struct AllReduceTime {
    alpha_ps: u64,
    per_token: Rate,
}

impl AllReduceTime {
    fn new(hardware: &Hardware, model: &Model, tp: u32) -> Result<Self, CostError> {
        if tp == 1 {
            return Ok(Self { alpha_ps: 0, per_token: Rate::default() });
        }
        let found = hardware.all_reduce.iter().find(|all_reduce| all_reduce.tp == tp);
        let Some(all_reduce) = found else { return Err(CostError::NoAllReduce { tp }) };
        // The factor 2 (tp - 1) / tp, its divisor as a faster bus.
        let wire_bytes = ACTIVATION_BYTES * u64::from(model.hidden) * 2 * u64::from(tp - 1);
        let bus = u128::from(all_reduce.bus_bytes_per_second) * u128::from(tp);
        let per_byte = Rate::per_second(bus, 1_000);
        Ok(Self { alpha_ps: all_reduce.alpha_ns * 1_000, per_token: per_byte.times(wire_bytes) })
    }

    fn ps(&self, tokens: u64) -> u64 {
        self.alpha_ps.saturating_add(self.per_token.ps(tokens))
    }
}

/// Activations are bf16 whatever the weights are.
pub(super) const ACTIVATION_BYTES: u64 = 2;

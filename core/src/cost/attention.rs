//! Attention of one layer: prefill chunks over cached and own tokens, decoding sequences over their context.
//!
//! Owns both formulas. With L cached and m new tokens, b decoding sequences, H and K heads of a rank, D head size:
//!
//! ```text
//!  cached L          new m        a row of m attends to all of L and to what is left of itself:
//! |=================|\            L m + m^2 / 2 pairs; doubled, m (2 L + m)
//! |=================|_\
//!
//! prefill(L, m) = ( (4 H D pairs (1 + cn / m + cc / (L + m)) / compute)^q + (bytes / memory)^q )^(1/q)
//! bytes = 2 * 2 m H D + kv * 2 (L + m) K D
//! step = base + sum of prefill(L, m)                         one launch for all chunks
//! decode(b, context) = ( (base + per_head b H)^q + (kv * 2 context K D / memory)^q )^(1/q)
//! ```
//!
//! FlashAttention in AIConfigurator's tables has this prefill form to 6 % for 10^11 operations and more and decode to
//! 8 %. The sum of contexts is enough for uneven batches until one sequence dominates. Of the overheads, `cn` is a
//! grid with too few query tiles (fitted on H100), `cc` the masked diagonal (measured on H200, where `cn` is small).

use super::fixed::{Rate, power_mean, saturate};
use super::gemm::ACTIVATION_BYTES;
use super::hardware::Hardware;
use super::shape::Model;
use super::table::{Cursor, Grid, Tables};

/// Attention of one layer on one rank.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    prefill_base_ps: u64,
    /// Per pair of tokens, doubled.
    pair_compute: Rate,
    prefill_query: Rate,
    prefill_context: Rate,
    new_overhead_tokens: u64,
    context_overhead_tokens: u64,
    prefill_q_per_mille: u32,
    prefill_table: Option<Grid>,
    decode_base_ps: u64,
    decode_sequence_ps: u64,
    decode_context: Rate,
    decode_q_per_mille: u32,
    decode_table: Option<Grid>,
}

impl Attention {
    pub(super) fn new(hardware: &Hardware, model: &Model, tp: u32, tables: Option<&Tables>) -> Self {
        let (prefill, decode) = (hardware.prefill_attention, hardware.decode_attention);
        let (heads, head_dim) = (model.heads_rank(tp), u64::from(model.head_dim));
        let kv_bytes = 2 * model.kv_heads_rank(tp) * head_dim * u64::from(model.kv_dtype_bytes);
        Self {
            prefill_base_ps: prefill.base_ps,
            pair_compute: hardware.compute(prefill.compute_per_mille).times(2 * heads * head_dim),
            prefill_query: hardware.memory(prefill.memory_per_mille).times(2 * ACTIVATION_BYTES * heads * head_dim),
            prefill_context: hardware.memory(prefill.memory_per_mille).times(kv_bytes),
            new_overhead_tokens: prefill.new_overhead_tokens,
            context_overhead_tokens: prefill.context_overhead_tokens,
            prefill_q_per_mille: prefill.q_per_mille,
            prefill_table: tables.and_then(|tables| tables.prefill_attention_ns.clone()),
            decode_base_ps: decode.base_ps,
            decode_sequence_ps: decode.per_head_ps.saturating_mul(heads),
            decode_context: hardware.memory(decode.memory_per_mille).times(kv_bytes),
            decode_q_per_mille: decode.q_per_mille,
            decode_table: tables.and_then(|tables| tables.decode_attention_ns.clone()),
        }
    }

    /// Picoseconds of the launch that all chunks of a step share.
    #[inline]
    pub(super) fn prefill_base_ps(&self) -> u64 {
        if self.prefill_table.is_some() { 0 } else { self.prefill_base_ps }
    }

    /// Picoseconds that one chunk adds; a table's times contain the launch.
    pub(super) fn prefill_ps(&self, cached: u64, new: u64) -> u64 {
        if new == 0 {
            return 0;
        }
        if let Some(table) = &self.prefill_table {
            return table.ps(cached.saturating_mul(Grid::STEPS), new.saturating_mul(Grid::STEPS));
        }
        let (context, doubled) = (cached.saturating_add(new), doubled_pairs(cached, new));
        // doubled pairs * (1 + cn / m + cc / (L + m)), where doubled / m is 2 L + m: one division, none for cn.
        let with_overhead = doubled
            .saturating_add(self.new_overhead_tokens.saturating_mul(context.saturating_add(cached)))
            .saturating_add(saturate(
                u128::from(self.context_overhead_tokens) * u128::from(doubled) / u128::from(context),
            ));
        let compute = self.pair_compute.ps(with_overhead);
        let memory = self.prefill_query.ps(new).saturating_add(self.prefill_context.ps(context));
        power_mean(compute, memory, self.prefill_q_per_mille)
    }

    /// Picoseconds of all decoding sequences together.
    #[inline]
    pub(super) fn decode_ps(&self, batch: u64, context_tokens: u64) -> u64 {
        if batch == 0 {
            return 0;
        }
        if let Some(table) = &self.decode_table {
            let mean = context_tokens.saturating_mul(Grid::STEPS) / batch;
            return table.ps(batch.saturating_mul(Grid::STEPS), mean);
        }
        let fixed = self.decode_base_ps.saturating_add(self.decode_sequence_ps.saturating_mul(batch));
        power_mean(fixed, self.decode_context.ps(context_tokens), self.decode_q_per_mille)
    }

    /// Like [`decode_ps`](Self::decode_ps), for steps of one batch one after the other.
    #[inline]
    pub(super) fn next_decode_ps(&self, batch: u64, context_tokens: u64, cursor: &mut Cursor) -> u64 {
        match &self.decode_table {
            Some(table) if batch > 0 => {
                let mean = context_tokens.saturating_mul(Grid::STEPS) / batch;
                table.next_ps(batch.saturating_mul(Grid::STEPS), mean, cursor)
            }
            Some(_) | None => self.decode_ps(batch, context_tokens),
        }
    }
}

/// Twice the pairs of tokens that attend to each other when `new` tokens follow `cached` ones.
#[inline]
pub(super) fn doubled_pairs(cached: u64, new: u64) -> u64 {
    new.saturating_mul(cached.saturating_mul(2).saturating_add(new))
}

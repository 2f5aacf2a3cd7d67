//! What a forward computes in: room for the largest one, at addresses that recorded graphs keep.

use std::sync::Arc;

use super::driver::{Buffer, Context, Result};
use super::kernels::{Heads, Kernels, SAMPLE_BLOCKS_MAX};
use super::lists::{self, STARTS_MAX};
use super::products::{Inputs, padded_rows};
use crate::weights::Config;

/// How large forwards get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    /// Rows, padded.
    pub(super) rows: usize,
    /// Rows whose logits are wanted, padded.
    pub(super) picks: usize,
    /// Sequences that compute.
    pub(super) slots: u32,
    /// Pages of a sequence.
    pub(super) pages: u32,
}

/// Room for the largest forward.
pub(super) struct Buffers {
    pub(super) residual: Buffer,
    pub(super) normed: Inputs,
    pub(super) qkv: Buffer,
    pub(super) queries: Buffer,
    pub(super) attended: Inputs,
    pub(super) gate_up: Buffer,
    pub(super) activated: Inputs,
    /// Of the rows whose logits are wanted: results of attention, and the residual stream.
    pub(super) picked_attended: Inputs,
    pub(super) picked_residual: Buffer,
    pub(super) picked: Inputs,
    pub(super) logits: Buffer,
    pub(super) leaves: Buffer,
    pub(super) arrived: Buffer,
    pub(super) sample_partial: Buffer,
    pub(super) sample_arrived: Buffer,
    /// Chosen tokens of the picked rows, and behind them whether their logits were finite.
    pub(super) results: Buffer,
    /// Last token of each slot.
    pub(super) last: Buffer,
    /// Pages of each slot.
    pub(super) tables: Buffer,
    pub(super) lists: Buffer,
}

impl Buffers {
    pub(super) fn new(context: &Arc<Context>, config: &Config, heads: Heads, limits: &Limits) -> Result<Self> {
        let Limits { rows, picks, slots, pages, .. } = *limits;
        let (queries, keys) = ((heads.queries * heads.dim) as usize, (heads.kv * heads.dim) as usize);
        let room = |elements: usize, what: &str| Buffer::zeroed(context, elements * 2, what);
        Ok(Self {
            residual: room(rows * config.hidden, "the residual stream")?,
            normed: Inputs::new(context, rows, config.hidden, "normed rows")?,
            qkv: room(rows * (queries + 2 * keys), "queries, keys and values")?,
            queries: room(rows * queries, "rotated queries")?,
            attended: Inputs::new(context, rows, queries, "results of attention")?,
            gate_up: room(rows * 2 * config.ffn, "gates")?,
            activated: Inputs::new(context, rows, config.ffn, "activations")?,
            picked_attended: Inputs::new(context, picks, queries, "rows to sample")?,
            picked_residual: room(picks * config.hidden, "rows to sample")?,
            picked: Inputs::new(context, picks, config.hidden, "rows to sample")?,
            logits: room(picks * config.vocab, "logits")?,
            leaves: Buffer::zeroed(context, LEAVES_MAX * Kernels::leaf_bytes(heads), "partial attention")?,
            arrived: Buffer::zeroed(context, rows * Kernels::decode_units(heads) * 4, "counters")?,
            sample_partial: Buffer::zeroed(context, picks * SAMPLE_BLOCKS_MAX as usize * 8, "partial choices")?,
            sample_arrived: Buffer::zeroed(context, picks * 4, "counters")?,
            results: Buffer::zeroed(context, picks * 8, "chosen tokens")?,
            last: Buffer::zeroed(context, slots as usize * 4, "last tokens")?,
            tables: Buffer::zeroed(context, slots as usize * pages as usize * 4, "page tables")?,
            lists: Buffer::zeroed(context, Self::lists_bytes(heads, limits), "lists of a step")?,
        })
    }

    /// Most bytes of the lists of a step.
    pub(super) fn lists_bytes(heads: Heads, limits: &Limits) -> usize {
        // A cut for each block of threads at the most.
        let pieces = limits.rows * Kernels::decode_units(heads) + STARTS_MAX;
        lists::bytes_max(limits.rows, limits.picks, pieces, UPDATES_MAX, (heads.queries / heads.kv) as usize)
    }
}

impl Limits {
    /// For forwards of up to so many rows, of which so many sample.
    pub(super) fn new(rows: u32, sequences: u32, context: u32, page_size: u32) -> Self {
        let picks = padded_rows(sequences as usize);
        Self {
            rows: padded_rows(rows as usize).max(picks),
            picks,
            slots: sequences + sequences / 2 + 16,
            pages: context.div_ceil(page_size),
        }
    }
}

/// Blocks of context that several blocks of threads may share at a time.
pub(super) const LEAVES_MAX: usize = 8192;
/// Entries of page tables that travel with one step.
pub(super) const UPDATES_MAX: usize = 65_536;

//! What a step holds, as sums, and what it takes.
//!
//! Owns accumulation; the times are the business of [`Cost`]. Sums do not depend on the order of their parts, and a
//! [`Load`] is `Copy`, so a policy tries a chunk on a copy and keeps or drops it.

use super::Cost;
use super::attention::doubled_pairs;

/// The work of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub(super) decodes: u64,
    pub(super) context_tokens: u64,
    pub(super) chunks: u64,
    pub(super) new_tokens: u64,
    pub(super) doubled_pairs: u64,
    pub(super) prefill_attention_ps: u64,
    pub(super) rows: u64,
    pub(super) requests: u64,
    pub(super) finished: u64,
    pub(super) pages: u64,
}

impl Load {
    /// A step without work.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            decodes: 0,
            context_tokens: 0,
            chunks: 0,
            new_tokens: 0,
            doubled_pairs: 0,
            prefill_attention_ps: 0,
            rows: 0,
            requests: 0,
            finished: 0,
            pages: 0,
        }
    }

    /// A step of so many decoding sequences that read `context_tokens` of KV together.
    #[must_use]
    pub const fn decodes(sequences: u64, context_tokens: u64) -> Self {
        Self { decodes: sequences, context_tokens, rows: sequences, ..Self::new() }
    }

    /// Adds a decoding sequence that reads `context_tokens` of KV, and its row of logits.
    #[inline]
    pub fn decode(&mut self, context_tokens: u64) {
        self.decodes += 1;
        self.context_tokens = self.context_tokens.saturating_add(context_tokens);
        self.rows += 1;
    }

    /// The next step of the same decoding sequences: each reads one token more.
    #[inline]
    pub fn next_decode(&mut self) {
        self.context_tokens = self.context_tokens.saturating_add(self.decodes);
    }

    /// Adds a chunk of `new` tokens behind `cached` ones. The load then belongs to `cost`; a chunk that ends its
    /// prompt also needs [`Load::logits`].
    #[inline]
    pub fn prefill(&mut self, cost: &Cost, cached: u64, new: u64) {
        if new == 0 {
            return;
        }
        self.chunks += 1;
        self.new_tokens = self.new_tokens.saturating_add(new);
        self.doubled_pairs = self.doubled_pairs.saturating_add(doubled_pairs(cached, new));
        self.prefill_attention_ps = self.prefill_attention_ps.saturating_add(cost.prefill_attention_ps(cached, new));
    }

    /// Adds rows that need logits: one for each prompt that ends in this step.
    #[inline]
    pub fn logits(&mut self, rows: u64) {
        self.rows = self.rows.saturating_add(rows);
    }

    /// Adds requests that start in this step, which the host has to set up.
    #[inline]
    pub fn starts(&mut self, requests: u64) {
        self.requests = self.requests.saturating_add(requests);
    }

    /// Adds sequences that finish in this step.
    #[inline]
    pub fn finishes(&mut self, sequences: u64) {
        self.finished = self.finished.saturating_add(sequences);
    }

    /// Adds pages that the host allocates or frees.
    #[inline]
    pub fn touches(&mut self, pages: u64) {
        self.pages = self.pages.saturating_add(pages);
    }

    /// Tokens that go through the layers.
    #[must_use]
    #[inline]
    pub fn tokens(&self) -> u64 {
        self.new_tokens.saturating_add(self.decodes)
    }

    /// Decoding sequences and prefill chunks.
    #[must_use]
    #[inline]
    pub fn sequences(&self) -> u64 {
        self.decodes + self.chunks
    }

    /// Whether the step has no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences() == 0
    }
}

/// What a step takes on either side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    /// From the first kernel to the last.
    pub gpu_ns: u64,
    /// Scheduling and output on the host.
    pub cpu_ns: u64,
}

impl Forward {
    /// A step whose host work runs while the GPU works on the step before: the longer side, and what cannot overlap.
    #[must_use]
    pub fn overlapped_ns(self, sync_ns: u64) -> u64 {
        self.gpu_ns.max(self.cpu_ns).saturating_add(sync_ns)
    }

    /// A step whose host work and GPU work take turns.
    #[must_use]
    pub fn synchronous_ns(self) -> u64 {
        self.gpu_ns.saturating_add(self.cpu_ns)
    }
}

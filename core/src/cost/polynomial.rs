//! Step times as fitted polynomials, for queueing oracles and published fits.
//!
//! Owns the form of DistServe (OSDI'24, simulator of the artefact):
//!
//! ```text
//! prefill = step + request * chunks + token * sum new + pair * sum ((cached + new)^2 - cached^2)
//! decode  = step + context_token * sum context + sequence * batch      two fits: small and large batches
//! ```
//!
//! A constant service time, as M/D/1 wants it, is one with only `step` or `request`. A mixed step is the sum of both.

use serde::{Deserialize, Serialize};

use super::load::Load;

/// Picoseconds per unit of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Polynomial {
    /// Any step with prefill.
    pub prefill_step_ps: u64,
    /// Each chunk of it.
    pub prefill_request_ps: u64,
    /// Each new token.
    pub prefill_token_ps: u64,
    /// Each unit of `(cached + new)^2 - cached^2`; without a cache, of the squared prompt length.
    pub prefill_pair_ps: u64,
    /// Decode steps of fewer sequences than `large_batch`.
    pub decode_small: DecodePolynomial,
    /// Decode steps of `large_batch` sequences and more.
    pub decode_large: DecodePolynomial,
    /// The first batch that counts as large; `u64::MAX` for a single fit.
    pub large_batch: u64,
    /// KV of one token.
    pub kv_bytes_per_token: u64,
    /// KV that fits, at any memory fraction.
    pub kv_tokens: u64,
}

/// Picoseconds of a decode step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodePolynomial {
    /// Any step with decoding sequences.
    pub step_ps: u64,
    /// Each token of context.
    pub context_token_ps: u64,
    /// Each sequence.
    pub sequence_ps: u64,
}

impl Polynomial {
    pub(super) fn ps(&self, load: &Load) -> u64 {
        let mut ps = 0_u64;
        if load.chunks > 0 {
            ps = self
                .prefill_step_ps
                .saturating_add(self.prefill_request_ps.saturating_mul(load.chunks))
                .saturating_add(self.prefill_token_ps.saturating_mul(load.new_tokens))
                .saturating_add(self.prefill_pair_ps.saturating_mul(load.doubled_pairs));
        }
        if load.decodes > 0 {
            let fit = if load.decodes < self.large_batch { &self.decode_small } else { &self.decode_large };
            ps = ps
                .saturating_add(fit.step_ps)
                .saturating_add(fit.context_token_ps.saturating_mul(load.context_tokens))
                .saturating_add(fit.sequence_ps.saturating_mul(load.decodes));
        }
        ps
    }
}

//! From logits to a token.
//!
//! The order: repetition, frequency and presence penalties, bias, tokens that may not come yet; then greedy choice, or
//! temperature, the sets of top-k, top-p and min-p (each over the whole distribution, as SGLang takes them together), and
//! a draw. The draw at a position is a function of seed and position alone, so that neither the batch nor a retraction
//! nor another worker changes an answer.

mod params;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use pd_core::id::Token;

use crate::cpu::exp;
pub use params::{Sampling, SamplingError};

/// What the model thought of a token, in natural logarithms, before penalties and temperature.
#[derive(Clone, PartialEq, Debug)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The most probable tokens, most probable first.
    pub top: Vec<(Token, f32)>,
}

/// What is known of the sequence that a token is chosen for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) prompt: &'a [Token],
    /// How often each token of the answer is there; only filled if [`Sampling::counts_tokens`].
    pub(crate) counts: &'a BTreeMap<Token, u32>,
    /// Tokens of the answer before this one.
    pub(crate) output: u32,
    /// The token's index in the sequence.
    pub(crate) position: u32,
}

/// Chooses a token; `None` if the logits are no numbers. Changes the logits.
pub(crate) fn sample(
    sampling: &Sampling,
    context: Context<'_>,
    logits: &mut [f32],
) -> Option<(Token, Option<Logprobs>)> {
    let is_sound = logits.iter().map(|logit| logit * 0.0).sum::<f32>() == 0.0;
    if !is_sound {
        return None;
    }
    let raw = sampling.logprobs.map(|top| (log_sum(logits), most_probable(logits, top as usize)));
    let unchanged = raw.as_ref().map(|_| logits.to_vec());
    sampling.adjust(context, logits);
    let chosen = if sampling.is_greedy() { argmax(logits) } else { draw(sampling, context.position, logits) };
    let logprobs = raw.zip(unchanged).map(|((sum, top), unchanged)| Logprobs {
        chosen: unchanged[chosen] - sum,
        top: top.into_iter().map(|id| (Token(id as u32), unchanged[id] - sum)).collect(),
    });
    Some((Token(chosen as u32), logprobs))
}

impl Sampling {
    fn adjust(&self, context: Context<'_>, logits: &mut [f32]) {
        let mut repeat = |token: Token| {
            let logit = &mut logits[token.0 as usize];
            *logit = if *logit > 0.0 { *logit / self.repetition_penalty } else { *logit * self.repetition_penalty };
        };
        if self.repetition_penalty != 1.0 {
            let mut seen: Vec<Token> = context.prompt.iter().chain(context.counts.keys()).copied().collect();
            seen.sort_unstable();
            seen.dedup();
            seen.into_iter().for_each(&mut repeat);
        }
        if self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 {
            for (token, count) in context.counts {
                logits[token.0 as usize] -= self.frequency_penalty * *count as f32 + self.presence_penalty;
            }
        }
        for (token, bias) in &self.logit_bias {
            logits[*token as usize] += bias;
        }
        if context.output < self.min_tokens {
            for token in &self.stop {
                logits[token.0 as usize] = f32::NEG_INFINITY;
            }
        }
    }
}

/// The largest logit's token, the first of equals.
fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best
}

fn draw(sampling: &Sampling, position: u32, logits: &[f32]) -> usize {
    let largest = logits[argmax(logits)];
    let scale = 1.0 / sampling.temperature;
    let mass = |logit: f32| if logit == f32::NEG_INFINITY { 0.0 } else { exp((logit - largest) * scale) };
    let mut masses: Vec<(f32, usize)> = logits.iter().enumerate().map(|(id, logit)| (mass(*logit), id)).collect();
    let total: f64 = masses.iter().map(|(mass, _)| f64::from(*mass)).sum();
    let limit = usize::try_from(sampling.top_k).map_or(masses.len(), |limit| limit.clamp(1, masses.len()));
    let wanted = f64::from(sampling.top_p) * total;
    if limit < masses.len() || sampling.top_p < 1.0 {
        keep_top(&mut masses, limit, wanted);
    }
    // The most probable token has mass 1.
    masses.retain(|(mass, _)| *mass >= sampling.min_p && *mass > 0.0);

    let kept: f64 = masses.iter().map(|(mass, _)| f64::from(*mass)).sum();
    let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
    rng.set_stream(u64::from(position));
    let unit = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
    let mut left = unit * kept;
    for (mass, id) in &masses {
        left -= f64::from(*mass);
        if left < 0.0 {
            return *id;
        }
    }
    // Rounding may leave a little of the last one's mass.
    masses.last().map_or(0, |(_, id)| *id)
}

/// Keeps the `limit` largest masses, and of these as many as are needed to reach `wanted`, largest first.
fn keep_top(masses: &mut Vec<(f32, usize)>, limit: usize, wanted: f64) {
    let larger_first = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    // Few tokens hold nearly all mass: sorting all of a large vocabulary is seldom needed.
    let mut sorted = 0;
    let mut sum = 0.0;
    let mut block = 64;
    while sorted < limit {
        let next = (sorted + block).min(masses.len());
        if next < masses.len() {
            masses[sorted..].select_nth_unstable_by(next - sorted - 1, larger_first);
        }
        masses[sorted..next].sort_unstable_by(larger_first);
        for index in sorted..next.min(limit) {
            // A token belongs to the set if what stands before it does not reach the wanted mass.
            if sum > wanted {
                masses.truncate(index);
                return;
            }
            sum += f64::from(masses[index].0);
        }
        sorted = next;
        block *= 8;
    }
    masses.truncate(limit);
}

fn log_sum(logits: &[f32]) -> f32 {
    let largest = logits[argmax(logits)];
    let sum: f64 = logits.iter().map(|logit| f64::from(exp(logit - largest))).sum();
    largest + sum.ln() as f32
}

fn most_probable(logits: &[f32], count: usize) -> Vec<usize> {
    let larger_first = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    let count = count.min(ids.len());
    if count > 0 && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, larger_first);
    }
    ids.truncate(count);
    ids.sort_unstable_by(larger_first);
    ids
}

//! What is in a trace: lengths, rate, and how much of it a cache without bounds would hit.
//!
//! Everything is counted in integers; the ratios are for reports.

use std::collections::BTreeSet;

use pd_core::id::{PageKey, Token};
use pd_core::key::page_keys;

use super::{Content, Trace};

/// Statistics of a trace.
#[derive(Clone, PartialEq, Debug)]
pub struct Stats {
    /// Requests.
    pub rows: u64,
    /// From the first arrival to the last.
    pub span_ns: u64,
    /// Lengths of prompts (ISL).
    pub prompt: Spread,
    /// Lengths of answers (OSL).
    pub output: Spread,
    /// What a cache without bounds hits; all zero where content is opaque.
    pub hits: Hits,
}

/// How a length is distributed. Quantiles interpolate linearly between neighbours, as NumPy does by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Spread {
    /// Sum over all rows.
    pub sum: u64,
    /// Mean, rounded.
    pub mean: u32,
    /// Median.
    pub p50: u32,
    /// 90 % are at most this.
    pub p90: u32,
    /// 99 % are at most this.
    pub p99: u32,
    /// The longest.
    pub max: u32,
}

/// Hits in a cache without bounds that serves one request after the other.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Hits {
    /// Blocks looked for, the last of a prompt also if it is partial.
    pub blocks: u64,
    /// Blocks found.
    pub hit_blocks: u64,
    /// Tokens of prompts whose content is known.
    pub tokens: u64,
    /// Tokens found; a block counts with as many as the prompt has in it.
    pub hit_tokens: u64,
    /// Mean over requests of the part of the prompt that was found.
    pub mean_of_requests: f64,
}

impl Stats {
    /// Requests a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rows as f64 * 1e9 / self.span_ns.max(1) as f64
    }
}

/// Takes the statistics of a trace. Contents given as tokens are cached in pages of `page` tokens, answers included;
/// contents given as blocks in those blocks, prompts only (answers have no ids).
///
/// # Panics
/// If `page` is 0.
#[must_use]
pub fn stats(trace: &Trace, page: u32) -> Stats {
    let first = trace.rows.first().map_or(0, |row| row.at_ns);
    let last = trace.rows.last().map_or(0, |row| row.at_ns);
    Stats {
        rows: trace.rows.len() as u64,
        span_ns: last - first,
        prompt: spread(trace.rows.iter().map(|row| row.prompt_tokens).collect()),
        output: spread(trace.rows.iter().map(|row| row.output_tokens).collect()),
        hits: hits(trace, page),
    }
}

fn spread(mut lengths: Vec<u32>) -> Spread {
    lengths.sort_unstable();
    let Some(&max) = lengths.last() else {
        return Spread::default();
    };
    let count = lengths.len() as u64;
    let sum = lengths.iter().map(|length| u64::from(*length)).sum::<u64>();
    let quantile = |per_cent: u64| {
        let position = (count - 1) * per_cent;
        let (index, part) = ((position / 100) as usize, position % 100);
        let (low, high) = (lengths[index], lengths[(index + 1).min(lengths.len() - 1)]);
        low + ((u64::from(high - low) * part + 50) / 100) as u32
    };
    Spread {
        sum,
        mean: ((sum + count / 2) / count) as u32,
        p50: quantile(50),
        p90: quantile(90),
        p99: quantile(99),
        max,
    }
}

fn hits(trace: &Trace, page: u32) -> Hits {
    let mut hits = Hits::default();
    let mut seen = BTreeSet::new();
    let mut ratios = 0.0;
    for row in &trace.rows {
        let (block, looked_for, stored) = match &row.content {
            Content::Blocks { block, ids } => {
                let ids: Vec<u128> = ids.iter().map(|id| u128::from(*id)).collect();
                (*block, ids.len(), ids)
            }
            Content::Tokens { prompt, output } => {
                let all: Vec<Token> = prompt.iter().chain(output).map(|token| Token(*token)).collect();
                let keys = page_keys(PageKey(0), page, &all).iter().map(|key| key.0).collect();
                (page, prompt.len() / page as usize, keys)
            }
            Content::Opaque => continue,
        };
        let hit_blocks = stored[..looked_for].iter().take_while(|id| seen.contains(*id)).count() as u64;
        let hit_tokens = (hit_blocks * u64::from(block)).min(u64::from(row.prompt_tokens));
        seen.extend(stored);
        hits.blocks += looked_for as u64;
        hits.hit_blocks += hit_blocks;
        hits.tokens += u64::from(row.prompt_tokens);
        hits.hit_tokens += hit_tokens;
        ratios += hit_tokens as f64 / f64::from(row.prompt_tokens);
    }
    hits.mean_of_requests = ratios / (trace.rows.len().max(1)) as f64;
    hits
}

//! Recorded workloads, row by row.

use pd_core::id::{PageKey, Token};
use pd_core::key::page_keys;
use pd_core::op::Prompt;
use pd_core::rng::Stream;
use pd_core::time::Instant;

use crate::trace::{Content, Format, Row, Trace};

use super::config::TraceConfig;
use super::content::{Answer, Chain, Source};
use super::{Arrival, Context, LoadError, ordinal};

/// A trace on its way. Prompts are built when they arrive, so that only what waits is in memory.
#[derive(Debug)]
pub(super) struct Replay {
    index: u32,
    root: PageKey,
    page_size: u32,
    start: Instant,
    /// Speed times [`SPEED_UNIT`].
    speed: u64,
    scope: u64,
    pad: bool,
    prompts_only: bool,
    priority: i32,
    issued: u32,
    rows: std::vec::IntoIter<Row>,
}

impl Replay {
    pub(super) fn new(config: &TraceConfig, cx: &Context<'_>) -> Result<Self, LoadError> {
        let speed = (config.speed * SPEED_UNIT as f64).round();
        if !(1.0..=1e15).contains(&speed) {
            return Err(cx.error("speed", format!("is {}; expected 0.000001 to 1000000000", config.speed)));
        }
        if config.block == Some(0) {
            return Err(cx.error("block", "is 0; expected the tokens per block"));
        }
        let mut trace = Trace::read(&cx.directory.join(&config.file), config.format, config.block)?;
        // Only Mooncake's arrivals are quantised; rows without an arrival are all at 0 and would pass for it.
        if config.jitter && config.format == Format::Mooncake {
            trace.jitter(&mut cx.rng(Stream::Trace));
        }
        if let Some(requests) = config.requests {
            trace.rows.truncate(usize::try_from(requests.0).unwrap_or(usize::MAX));
        }
        cx.count("requests", trace.rows.len() as u64)?;
        if config.pad && !trace.rows.iter().all(|row| matches!(row.content, Content::Blocks { .. })) {
            return Err(cx.error("pad", "needs a trace whose contents are blocks"));
        }
        let name = config.file.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self {
            index: cx.index,
            root: cx.namespace.root(),
            page_size: cx.namespace.page_size,
            start: Instant(config.start.ns()),
            speed: speed as u64,
            scope: Source::trace_scope(name.split('.').next().unwrap_or_default()),
            pad: config.pad,
            prompts_only: config.prompts_only,
            priority: config.priority,
            issued: 0,
            rows: trace.rows.into_iter(),
        })
    }

    pub(super) fn next_arrival(&mut self) -> Option<(Instant, Arrival)> {
        let row = self.rows.next()?;
        let at_ns = u128::from(row.at_ns) * u128::from(SPEED_UNIT) / u128::from(self.speed);
        let at = self.start.after_ns(u64::try_from(at_ns).unwrap_or(u64::MAX));
        let ordinal = ordinal(self.index, self.issued);
        let (prompt, answer) = self.prompt(&row);
        self.issued += 1;
        let arrival = Arrival {
            ordinal,
            session: ordinal,
            turn: 0,
            prompt,
            counted_tokens: row.prompt_tokens,
            output_tokens: if self.prompts_only { 1 } else { row.output_tokens.max(1) },
            answer,
            priority: self.priority,
        };
        Some((at, arrival))
    }

    fn prompt(&self, row: &Row) -> (Prompt, Answer) {
        let mut chain = Chain::new(self.root, self.page_size);
        let unique = Source::unique(self.index, u64::from(self.issued));
        match &row.content {
            Content::Blocks { block, ids } if self.pad => {
                let tokens = (ids.len() as u32).saturating_mul(*block);
                chain.reserve(tokens + 1);
                chain.append_blocks(self.scope, *block, ids, tokens);
                chain.append(unique, 1);
            }
            Content::Blocks { block, ids } => {
                chain.reserve(row.prompt_tokens);
                chain.append_blocks(self.scope, *block, ids, row.prompt_tokens);
            }
            Content::Tokens { prompt, output } => return self.known(prompt, output),
            Content::Opaque => {
                chain.reserve(row.prompt_tokens);
                chain.append(unique, row.prompt_tokens);
            }
        }
        let answer = chain.answer();
        (chain.into_prompt(), answer)
    }

    /// A prompt of known tokens carries all of them, and the keys that a server would give it.
    fn known(&self, prompt: &[u32], output: &[u32]) -> (Prompt, Answer) {
        let tokens: Vec<Token> = prompt.iter().copied().map(Token).collect();
        let keys = page_keys(self.root, self.page_size, &tokens);
        let PageKey(digest) = page_keys(self.root, tokens.len() as u32, &tokens)[0];
        let answer = Answer { seed: digest as u64, given: output.iter().copied().map(Token).collect() };
        (Prompt { root: self.root, length: tokens.len() as u32, keys, tokens }, answer)
    }
}

/// Speeds are kept as integers of this fraction.
const SPEED_UNIT: u64 = 1_000_000;

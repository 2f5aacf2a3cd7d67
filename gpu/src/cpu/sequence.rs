//! What an engine knows of one request: its tokens, the pages of its KV, and how to choose what comes next.

use std::collections::BTreeMap;

use pd_core::batch::Run;
use pd_core::id::{GpuPage, RequestId, Token};

use super::EngineError;
use crate::sample::{Context, Logprobs, Sampling, sample};

/// One request's sequence.
#[derive(Debug)]
pub(super) struct Sequence {
    /// Prompt and answer.
    pub(super) tokens: Vec<Token>,
    prompt: usize,
    /// Pages that hold its KV, in order.
    pub(super) table: Vec<u32>,
    pub(super) sampling: Sampling,
    /// How often each token was sampled, in the first `counted` tokens of the answer.
    counts: BTreeMap<Token, u32>,
    counted: usize,
}

impl Sequence {
    pub(super) fn new(prompt: &[Token], sampling: Sampling) -> Self {
        Self {
            tokens: prompt.to_vec(),
            prompt: prompt.len(),
            table: Vec::new(),
            sampling,
            counts: BTreeMap::new(),
            counted: 0,
        }
    }

    /// Learns a token that somebody else sampled. Telling it again changes nothing; the last one may be replaced as long
    /// as nothing follows it.
    pub(super) fn set(&mut self, request: RequestId, position: usize, token: Token) -> Result<(), EngineError> {
        if self.tokens.get(position) == Some(&token) {
            return Ok(());
        }
        if position < self.prompt || position > self.tokens.len() || position + 1 < self.tokens.len() {
            return Err(EngineError::Position { request, position: position as u32, tokens: self.tokens.len() as u32 });
        }
        self.push(position, token);
        Ok(())
    }

    /// Checks that a run can be computed, and how many pages it needs.
    pub(super) fn check(&self, run: &Run, page_size: u32) -> Result<(), EngineError> {
        let request = run.request;
        let end = u64::from(run.start) + u64::from(run.count);
        if run.count == 0 || end > self.tokens.len() as u64 {
            let tokens = self.tokens.len() as u32;
            return Err(EngineError::Range { request, start: run.start, count: run.count, tokens });
        }
        let pages = u64::from(run.table_from) + u64::from(run.pages_count());
        if run.table_from as usize > self.table.len() || pages < end.div_ceil(u64::from(page_size)) {
            return Err(EngineError::Table { request, pages: end.div_ceil(u64::from(page_size)) as u32 });
        }
        Ok(())
    }

    /// Takes over the pages that a run names.
    pub(super) fn extend(&mut self, run: &Run, pages: &[GpuPage]) {
        self.table.truncate(run.table_from as usize);
        self.table.extend(pages.iter().map(|page| page.0));
    }

    /// Chooses the token at `position` and remembers it.
    pub(super) fn sample(&mut self, position: usize, logits: &mut [f32]) -> Option<(Token, Option<Logprobs>)> {
        let output = position - self.prompt;
        if self.sampling.counts_tokens() {
            if self.counted > output {
                self.counts.clear();
                self.counted = 0;
            }
            for token in &self.tokens[self.prompt + self.counted..position] {
                *self.counts.entry(*token).or_default() += 1;
            }
            self.counted = output;
        }
        let context = Context {
            prompt: &self.tokens[..self.prompt],
            counts: &self.counts,
            output: output as u32,
            position: position as u32,
        };
        let (token, logprobs) = sample(&self.sampling, context, logits)?;
        self.push(position, token);
        Some((token, logprobs))
    }

    fn push(&mut self, position: usize, token: Token) {
        // What is forgotten may have been counted.
        if self.prompt + self.counted > position {
            self.counts.clear();
            self.counted = 0;
        }
        self.tokens.truncate(position);
        self.tokens.push(token);
    }

    /// The first token of the answer has this position.
    pub(super) fn prompt(&self) -> usize {
        self.prompt
    }
}

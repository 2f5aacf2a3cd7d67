//! What an engine knows of one request: its tokens, the pages of its KV, and how to choose what comes next.

use std::collections::BTreeMap;

use pd_core::batch::Run;
use pd_core::id::{GpuPage, RequestId, Token};

use crate::engine::EngineError;
use crate::geometry::Geometry;
use crate::sample::{Context, Logprobs, Sampling, sample};

/// One request's sequence.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Prompt and answer.
    pub(crate) tokens: Vec<Token>,
    prompt: usize,
    /// Pages that hold its KV, in order.
    pub(crate) table: Vec<u32>,
    pub(crate) sampling: Sampling,
    /// How often each token was sampled, in the first `counted` tokens of the answer.
    counts: BTreeMap<Token, u32>,
    counted: usize,
}

impl Sequence {
    /// Takes a request in.
    ///
    /// # Errors
    /// [`EngineError::Prompt`] or [`EngineError::Sampling`].
    pub(crate) fn admit(
        geometry: &Geometry,
        request: RequestId,
        prompt: &[Token],
        sampling: Sampling,
    ) -> Result<Self, EngineError> {
        let vocab = geometry.vocab;
        let why = if prompt.is_empty() {
            Some("its prompt is empty".to_owned())
        } else if prompt.len() >= geometry.context as usize {
            Some(format!("its prompt has {} tokens, the context {}", prompt.len(), geometry.context))
        } else {
            let odd = prompt.iter().find(|token| token.0 >= vocab);
            odd.map(|token| format!("its prompt holds token {token}, the vocabulary has {vocab}"))
        };
        if let Some(why) = why {
            return Err(EngineError::Prompt { request, why });
        }
        sampling.check(vocab).map_err(|error| EngineError::Sampling { request, error })?;
        Ok(Self {
            tokens: prompt.to_vec(),
            prompt: prompt.len(),
            table: Vec::new(),
            sampling,
            counts: BTreeMap::new(),
            counted: 0,
        })
    }

    /// Learns a token that somebody else sampled. Telling it again changes nothing; the last one may be replaced as long
    /// as nothing follows it.
    pub(crate) fn set(
        &mut self,
        geometry: &Geometry,
        request: RequestId,
        position: u32,
        token: Token,
    ) -> Result<(), EngineError> {
        if token.0 >= geometry.vocab || position >= geometry.context {
            let why = format!("token {token} at position {position} is outside of vocabulary or context");
            return Err(EngineError::Prompt { request, why });
        }
        let position = position as usize;
        if self.tokens.get(position) == Some(&token) {
            return Ok(());
        }
        if position < self.prompt || position > self.tokens.len() || position + 1 < self.tokens.len() {
            return Err(EngineError::Position { request, position: position as u32, tokens: self.tokens.len() as u32 });
        }
        self.push(position, token);
        Ok(())
    }

    /// Checks that a run can be computed. `ahead` tokens more than are known here will be there when it is.
    pub(crate) fn check(&self, run: &Run, geometry: &Geometry, ahead: usize) -> Result<(), EngineError> {
        let request = run.request;
        let end = u64::from(run.start) + u64::from(run.count);
        if run.count == 0 || end > (self.tokens.len() + ahead) as u64 {
            let tokens = (self.tokens.len() + ahead) as u32;
            return Err(EngineError::Range { request, start: run.start, count: run.count, tokens });
        }
        let page_size = u64::from(geometry.page_size);
        let pages = u64::from(run.table_from) + u64::from(run.pages_count());
        if run.table_from as usize > self.table.len() || pages < end.div_ceil(page_size) {
            return Err(EngineError::Table { request, pages: end.div_ceil(page_size) as u32 });
        }
        // A sampled token stands behind the run's last; it is not computed, so it may be one past the context.
        if run.sample && end < self.prompt as u64 {
            let tokens = self.tokens.len() as u32;
            return Err(EngineError::Range { request, start: run.start, count: run.count, tokens });
        }
        if end > u64::from(geometry.context) {
            let why = format!("its sequence is longer than the context of {}", geometry.context);
            return Err(EngineError::Prompt { request, why });
        }
        Ok(())
    }

    /// Takes over the pages that a run names.
    pub(crate) fn extend(&mut self, run: &Run, pages: &[GpuPage]) {
        self.table.truncate(run.table_from as usize);
        self.table.extend(pages.iter().map(|page| page.0));
    }

    /// Chooses the token at `position` and remembers it.
    pub(crate) fn sample(&mut self, position: usize, logits: &mut [f32]) -> Option<(Token, Option<Logprobs>)> {
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

    /// Takes the token that was chosen for `position`; what stood there and behind it is gone.
    pub(crate) fn push(&mut self, position: usize, token: Token) {
        // What is forgotten may have been counted.
        if self.prompt + self.counted > position {
            self.counts.clear();
            self.counted = 0;
        }
        self.tokens.truncate(position);
        self.tokens.push(token);
    }

    /// The first token of the answer has this position.
    pub(crate) fn prompt(&self) -> usize {
        self.prompt
    }
}

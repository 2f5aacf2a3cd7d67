//! What a request asks of sampling, and what is refused, in SGLang's words.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use pd_core::id::Token;

/// How to choose tokens for one request.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Divides logits; below 1e-6 the most probable token is taken.
    pub temperature: f32,
    /// Only the most probable tokens that together have this probability, in (0, 1].
    pub top_p: f32,
    /// Only this many of the most probable tokens; -1 for all.
    pub top_k: i64,
    /// Only tokens at least this probable relative to the most probable one, in [0, 1].
    pub min_p: f32,
    /// Subtracted from a token's logit for each time that it is in the answer, in [-2, 2].
    pub frequency_penalty: f32,
    /// Subtracted from the logits of tokens that are in the answer, in [-2, 2].
    pub presence_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or answer, in (0, 2]; 1 for none.
    pub repetition_penalty: f32,
    /// Added to logits, by token.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Names the sequence of draws. A client that gives none gets one from whoever fills this in.
    pub seed: u64,
    /// Tokens that the answer has before one of `stop` may come.
    pub min_tokens: u32,
    /// Tokens that end the answer; looked at for `min_tokens` only.
    pub stop: Vec<Token>,
    /// Ask for log-probabilities, with this many of the most probable tokens.
    pub logprobs: Option<u32>,
}

/// What is refused.
#[derive(Clone, PartialEq, Debug, Error)]
pub enum SamplingError {
    /// Negative, infinite or no number.
    #[error("temperature must be a non-negative finite number, got {0}.")]
    Temperature(f32),
    /// Outside of (0, 1].
    #[error("top_p must be in (0, 1], got {0}.")]
    TopP(f32),
    /// 0 or below -1.
    #[error("top_k must be -1 (disable) or at least 1, got {0}.")]
    TopK(i64),
    /// Outside of [0, 1].
    #[error("min_p must be in [0, 1], got {0}.")]
    MinP(f32),
    /// Outside of [-2, 2].
    #[error("frequency_penalty must be in [-2, 2], got {0}.")]
    Frequency(f32),
    /// Outside of [-2, 2].
    #[error("presence_penalty must be in [-2, 2], got {0}.")]
    Presence(f32),
    /// Outside of (0, 2].
    #[error("repetition_penalty must be in (0, 2] (1.0 = no penalty), got {0}.")]
    Repetition(f32),
    /// A key that is no token.
    #[error("logit_bias must has keys in [0, {last}], got {token}.")]
    BiasToken {
        /// The last token of the vocabulary.
        last: u32,
        /// The key.
        token: u32,
    },
    /// A bias that is no number.
    #[error("logit_bias must have finite values, got {bias} for {token}.")]
    Bias {
        /// The key.
        token: u32,
        /// Its value.
        bias: f32,
    },
    /// A stop token that is no token.
    #[error("stop_token_ids must be in [0, {last}], got {token}.")]
    Stop {
        /// The last token of the vocabulary.
        last: u32,
        /// The token.
        token: Token,
    },
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: -1,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
            min_tokens: 0,
            stop: Vec::new(),
            logprobs: None,
        }
    }
}

impl Sampling {
    /// Below this temperature sampling is greedy.
    const GREEDY: f32 = 1e-6;

    /// Always the most probable token.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Refuses what makes no sense for a vocabulary of this size.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, vocab: u32) -> Result<(), SamplingError> {
        let last = vocab.saturating_sub(1);
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return Err(SamplingError::Temperature(self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(SamplingError::TopP(self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(SamplingError::MinP(self.min_p));
        }
        if self.top_k < 1 && self.top_k != -1 {
            return Err(SamplingError::TopK(self.top_k));
        }
        if !(-2.0..=2.0).contains(&self.frequency_penalty) {
            return Err(SamplingError::Frequency(self.frequency_penalty));
        }
        if !(-2.0..=2.0).contains(&self.presence_penalty) {
            return Err(SamplingError::Presence(self.presence_penalty));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty <= 2.0) {
            return Err(SamplingError::Repetition(self.repetition_penalty));
        }
        for (token, bias) in &self.logit_bias {
            if *token >= vocab {
                return Err(SamplingError::BiasToken { last, token: *token });
            }
            if !bias.is_finite() {
                return Err(SamplingError::Bias { token: *token, bias: *bias });
            }
        }
        match self.stop.iter().find(|token| token.0 >= vocab) {
            Some(token) => Err(SamplingError::Stop { last, token: *token }),
            None => Ok(()),
        }
    }

    /// True if nothing is drawn.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature < Self::GREEDY || self.top_k == 1
    }

    /// True if choosing depends on which tokens the answer has.
    #[must_use]
    pub fn counts_tokens(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}

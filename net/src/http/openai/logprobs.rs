//! Log probabilities in the two forms that OpenAI has.

use pd_core::id::Token;
use serde_json::{Map, Value, json};

use crate::http::backend::Scored;
use crate::http::generation::Piece;
use crate::text::Text;

/// The form of chat: one object for each token.
pub(super) fn chat(text: &Text, pieces: &[Piece]) -> Value {
    let one = |token: Token, logprob: f32| json!({ "token": text.text_of(token), "bytes": text.bytes_of(token), "logprob": number(logprob) });
    let content: Vec<Value> = pieces
        .iter()
        .map(|piece| {
            let mut entry = one(piece.token, piece.logprob.unwrap_or(f32::NEG_INFINITY));
            entry["top_logprobs"] = piece.top.iter().map(|&(token, logprob)| one(token, logprob)).collect();
            entry
        })
        .collect();
    json!({ "content": content })
}

/// The form of completions: parallel lists, over prompt (with `echo`) and answer.
#[derive(Debug)]
pub(super) struct Lists {
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<Value>,
    /// Characters before the next token.
    offset: usize,
}

impl Lists {
    /// Starts behind this many characters.
    pub(super) const fn new(offset: usize) -> Self {
        Self { tokens: Vec::new(), logprobs: Vec::new(), top: Vec::new(), offsets: Vec::new(), offset }
    }

    pub(super) fn scored(&mut self, text: &Text, scores: &[Scored]) {
        for scored in scores {
            self.push(text, scored.token, scored.logprob, &scored.top);
        }
    }

    pub(super) fn pieces(&mut self, text: &Text, pieces: &[Piece]) {
        for piece in pieces {
            self.push(text, piece.token, piece.logprob, &piece.top);
        }
    }

    /// Characters before the next token.
    pub(super) const fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn json(self) -> Value {
        json!({
            "tokens": self.tokens, "token_logprobs": self.logprobs, "top_logprobs": self.top, "text_offset": self.offsets,
        })
    }

    fn push(&mut self, text: &Text, token: Token, logprob: Option<f32>, top: &[(Token, f32)]) {
        let word = text.text_of(token);
        self.offsets.push(self.offset.into());
        self.offset += word.chars().count();
        self.tokens.push(word.as_ref().into());
        self.logprobs.push(logprob.map_or(Value::Null, number));
        self.top.push(if logprob.is_none() && top.is_empty() {
            Value::Null
        } else {
            let mut map = Map::new();
            for &(token, logprob) in top {
                // Two tokens can look alike; the likelier one is what readers want.
                map.entry(text.text_of(token).as_ref()).or_insert_with(|| number(logprob));
            }
            Value::Object(map)
        });
    }
}

/// A log probability as JSON, which has no infinity.
pub(in crate::http) fn number(logprob: f32) -> Value {
    let logprob = if logprob.is_finite() { logprob } else { -9999.0 };
    json!(logprob)
}

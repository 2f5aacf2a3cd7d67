//! `POST /v1/completions`: plain prompts, as text or tokens, one or many.
//!
//! With `echo`, the prompt comes before the answer in text and log probabilities; `max_tokens: 0` with `echo` gives the
//! prompt alone. Evaluation tools score texts this way, so the first log probability is null and offsets count characters
//! from the start of the prompt.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use pd_core::id::Token;
use serde_json::{Value, json};

use super::logprobs::Lists;
use super::{Reading, Usage, answered, ask, close, count_logprobs, envelope, legs, name};
use crate::http::Edge;
use crate::http::ask::{Ask, score_prompt};
use crate::http::error::ApiError;
use crate::http::fields::{self, Fields};
use crate::http::generation::{self, Answer, End, Generation, Piece};
use crate::http::sse::{self, Out, Render};
use crate::text::Text;

/// OpenAI's limit for requests that name none.
const LIMIT: u32 = 16;

/// Continues prompts.
pub(in crate::http) async fn post(
    State(edge): State<Arc<Edge>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (ask, shape) = fields::prepare(&edge, headers, body, prepare).await?;
    let id = shape.reading.id.clone();
    let mut generations = generation::start(&edge, &ask)?;
    let response = if shape.reading.is_streamed {
        if let Some(first) = generations.first_mut() {
            first.begin().await?;
        }
        let begun = vec![None; generations.len()];
        sse::response(generations, Chunks { shape, begun, usage: Usage::default() })
    } else {
        let answers = generation::collect(generations).await?;
        let usage = Usage::of(answers.iter().map(|answer| &answer.generation), shape.choices);
        let list = answers.iter().map(|answer| shape.choice(answer)).collect();
        let mut body = envelope(&shape.reading, "text_completion", list);
        body.insert("usage".into(), usage.json());
        Json(body).into_response()
    };
    Ok(answered(&id, response))
}

/// What a body asks for.
fn prepare(edge: &Arc<Edge>, headers: &HeaderMap, bytes: &[u8]) -> Result<(Ask, Shape), ApiError> {
    let map = fields::object(bytes)?;
    let fields = Fields::new(&map, "");
    let (id, is_given) = name(edge, &fields, headers, "cmpl-")?;
    let reading = Reading::new(edge, &fields, id.clone())?;
    let mut ask = ask(edge, &fields, (id, is_given), "completions")?;
    let is_echoed = fields.bool("echo")?;
    let limit = *ask.limit.get_or_insert(LIMIT);
    if limit == 0 && !is_echoed {
        return Err(fields.wrong("max_tokens", "at least 1 (0 goes with echo only)"));
    }
    count_logprobs(edge, &fields, &mut ask.sampling)?;
    if is_echoed && ask.sampling.logprobs.is_some() {
        score_prompt(edge, &mut ask.sampling, 0, "echo with logprobs")?;
    }
    let prompts = prompts(edge, &fields)?;
    let echoes = if is_echoed { prompts.iter().map(|prompt| prompt.text(edge.text())).collect() } else { Vec::new() };
    ask.prompts = prompts.into_iter().map(|prompt| prompt.tokens).collect();
    ask.legs = legs(edge, &fields, &ask)?;
    let has_logprobs = ask.sampling.logprobs.is_some();
    let shape = Shape { text: Arc::clone(edge.text()), reading, choices: ask.choices, has_logprobs, echoes };
    Ok((ask, shape))
}

/// A prompt in the form in which it came.
pub(in crate::http) struct Prompt {
    given: Option<String>,
    pub(in crate::http) tokens: Vec<Token>,
}

impl Prompt {
    pub(in crate::http) fn of_text(edge: &Edge, text: &str) -> Result<Self, ApiError> {
        Ok(Self { given: Some(text.to_owned()), tokens: edge.text().encode(text, true)? })
    }

    pub(in crate::http) const fn of_tokens(tokens: Vec<Token>) -> Self {
        Self { given: None, tokens }
    }

    fn text(&self, text: &Arc<Text>) -> String {
        self.given.clone().unwrap_or_else(|| text.decode(&self.tokens, true))
    }
}

/// `prompt`: a text, texts, tokens, or lists of tokens.
fn prompts(edge: &Edge, fields: &Fields<'_>) -> Result<Vec<Prompt>, ApiError> {
    let must = "a text, a list of texts, a list of tokens, or a list of lists of tokens";
    let vocabulary = edge.text().vocabulary();
    let of_tokens = |list: &[Value]| match fields::tokens(list, vocabulary) {
        Ok(tokens) => Ok(Prompt::of_tokens(tokens)),
        Err(at) => Err(fields.bad_token("prompt", at, &list[at], vocabulary)),
    };
    match fields.get("prompt") {
        Some(Value::String(text)) => Ok(vec![Prompt::of_text(edge, text)?]),
        Some(Value::Array(list)) => match list.first() {
            Some(Value::Number(_)) => Ok(vec![of_tokens(list)?]),
            Some(Value::String(_)) => list
                .iter()
                .map(|item| Prompt::of_text(edge, item.as_str().ok_or_else(|| fields.wrong("prompt", must))?))
                .collect(),
            Some(Value::Array(_)) => list
                .iter()
                .map(|item| of_tokens(item.as_array().ok_or_else(|| fields.wrong("prompt", must))?))
                .collect(),
            None => Err(fields.wrong("prompt", "not empty")),
            Some(Value::Null | Value::Bool(_) | Value::Object(_)) => Err(fields.wrong("prompt", must)),
        },
        None | Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
            Err(fields.wrong("prompt", must))
        }
    }
}

struct Shape {
    text: Arc<Text>,
    reading: Reading,
    choices: u32,
    has_logprobs: bool,
    /// The text of each prompt, to be put before its answers; empty for none.
    echoes: Vec<String>,
}

impl Shape {
    fn echo(&self, generation: &Generation) -> &str {
        self.echoes.get(generation.index / self.choices as usize).map_or("", String::as_str)
    }

    fn choice(&self, answer: &Answer) -> Value {
        let logprobs = if self.has_logprobs {
            let mut lists = Lists::new(0);
            lists.scored(&self.text, &answer.generation.scores);
            lists.pieces(&self.text, &answer.pieces);
            lists.json()
        } else {
            Value::Null
        };
        let text = format!("{}{}", self.echo(&answer.generation), answer.text);
        let mut choice = json!({ "index": answer.generation.index, "text": text, "logprobs": logprobs });
        close(&mut choice, answer, &self.reading);
        choice
    }
}

struct Chunks {
    shape: Shape,
    /// For each sequence that has begun, the characters so far.
    begun: Vec<Option<usize>>,
    usage: Usage,
}

impl Chunks {
    /// Text and log probabilities of the next event of a sequence; those of the prompt come with the first one.
    fn next(&mut self, generation: &Generation, text: &str, pieces: &[Piece]) -> Value {
        let is_first = self.begun[generation.index].is_none();
        let echo = if is_first { self.shape.echo(generation) } else { "" };
        let mut lists = Lists::new(self.begun[generation.index].unwrap_or(0));
        if is_first {
            lists.scored(&self.shape.text, &generation.scores);
        }
        lists.pieces(&self.shape.text, pieces);
        let choice = json!({ "index": generation.index, "text": format!("{echo}{text}"), "finish_reason": null });
        self.begun[generation.index] = Some(lists.offset());
        let mut choice = choice;
        choice["logprobs"] = if self.shape.has_logprobs { lists.json() } else { Value::Null };
        choice
    }

    fn chunk(&self, choice: Value, out: &mut Out) {
        let mut chunk = envelope(&self.shape.reading, "text_completion", vec![choice]);
        if self.shape.reading.is_usage_continuous {
            chunk.insert("usage".into(), self.usage.json());
        }
        out.event(&chunk);
    }
}

impl Render for Chunks {
    fn start(&mut self, generations: &[Generation], _: &mut Out) {
        self.usage = Usage::of(generations, self.shape.choices);
    }

    fn piece(&mut self, generation: &Generation, piece: Piece, out: &mut Out) {
        self.usage.completion += 1;
        let mut choice = self.next(generation, &piece.text, std::slice::from_ref(&piece));
        if self.shape.reading.has_token_ids {
            choice["token_ids"] = json!([piece.token.0]);
        }
        self.chunk(choice, out);
    }

    fn end(&mut self, generation: &Generation, end: End, out: &mut Out) {
        let mut choice = self.next(generation, &end.text, &[]);
        let matched = end.why.matched();
        choice["finish_reason"] = end.why.name().into();
        choice["matched_stop"] = matched.clone();
        choice["stop_reason"] = matched;
        self.chunk(choice, out);
    }

    fn finish(&mut self, generations: &[Generation], out: &mut Out) {
        if self.shape.reading.is_usage_included {
            let mut chunk = envelope(&self.shape.reading, "text_completion", Vec::new());
            chunk.insert("usage".into(), Usage::of(generations, self.shape.choices).json());
            out.event(&chunk);
        }
    }
}

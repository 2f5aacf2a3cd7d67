//! OpenAI's routes: completions and chat, complete and streamed.
//!
//! What both share: names and ids, limits, usage, the parts of a choice that SGLang and vLLM add (`matched_stop`,
//! `stop_reason`).

pub(super) mod chat;
pub(super) mod completions;
mod logprobs;
pub(super) mod models;

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::Edge;
use super::ask::{self, Ask, Dialect, Rids};
use super::backend::{JobLeg, Sampling};
use super::error::ApiError;
use super::fields::Fields;
use super::generation::{Answer, Generation};
use super::rooms;
use crate::text::strftime::unix_seconds;
pub(super) use logprobs::number;

/// What the client wants to read of an answer.
#[derive(Clone, Debug)]
struct Reading {
    id: String,
    created: u64,
    /// As the client named it.
    model: String,
    is_streamed: bool,
    /// One more event with the usage.
    is_usage_included: bool,
    /// Usage on every event.
    is_usage_continuous: bool,
    /// Token ids on every choice.
    has_token_ids: bool,
}

impl Reading {
    fn new(edge: &Edge, fields: &Fields<'_>, id: String) -> Result<Self, ApiError> {
        let model = model(edge, fields)?;
        let is_streamed = fields.bool("stream")?;
        let options = match fields.get("stream_options") {
            None => None,
            Some(Value::Object(map)) => Some(Fields::new(map, "stream_options.")),
            Some(_) => return Err(fields.wrong("stream_options", "an object")),
        };
        let option = |name| options.map_or(Ok(false), |options: Fields<'_>| options.bool(name));
        let is_usage_continuous = option("continuous_usage_stats")?;
        Ok(Self {
            id,
            created: unix_seconds(),
            model,
            is_streamed,
            is_usage_included: option("include_usage")?,
            is_usage_continuous,
            has_token_ids: fields.bool("return_token_ids")?,
        })
    }
}

/// The model that is asked for; it must be the one there is. Routers send `null` or `unknown` when they do not know.
fn model(edge: &Edge, fields: &Fields<'_>) -> Result<String, ApiError> {
    let served = &edge.info().model;
    match fields.text("model")? {
        None | Some("unknown" | "default" | "") => Ok(served.clone()),
        Some(name) if edge.is_model(name) => Ok(name.to_owned()),
        Some(name) => Err(models::not_found(edge, name)),
    }
}

/// The name of a request: the body's, the header's, or a new one.
fn name(edge: &Edge, fields: &Fields<'_>, headers: &HeaderMap, prefix: &str) -> Result<(String, bool), ApiError> {
    for field in ["rid", "request_id"] {
        if let Some(rid) = ask::rid(fields, field)? {
            return Ok((rid, true));
        }
    }
    let header = headers.get("x-request-id").and_then(|value| value.to_str().ok()).filter(|name| ask::is_name(name));
    Ok(match header {
        Some(given) if given.starts_with(prefix) => (given.to_owned(), false),
        Some(given) => (format!("{prefix}{given}"), false),
        None => (format!("{prefix}{}", edge.unique()), false),
    })
}

/// Everything of a request but its prompts and log probabilities.
fn ask(edge: &Arc<Edge>, fields: &Fields<'_>, rid: (String, bool), route: &'static str) -> Result<Ask, ApiError> {
    ask::refuse(fields)?;
    let vocabulary = edge.text().vocabulary();
    let older = fields.u32("max_tokens")?;
    // Routers rewrite one to the other; where both are there, the one that OpenAI has now wins.
    let limit = fields.u32("max_completion_tokens")?.or(older);
    Ok(Ask {
        rids: Rids { names: vec![rid.0], is_given: rid.1 },
        prompts: Vec::new(),
        choices: ask::choices(fields)?,
        sampling: ask::sampling(fields, Dialect::OpenAi, vocabulary)?,
        limit,
        stop: ask::stop(fields, edge.text().eos(), vocabulary)?,
        is_special_skipped: fields.bool_or("skip_special_tokens", true)?,
        priority: fields.i32("priority")?.unwrap_or(0),
        salt: ask::salt(fields)?,
        legs: Vec::new(),
        route,
    })
}

/// The legs of a request whose prompts are known.
fn legs(edge: &Edge, fields: &Fields<'_>, ask: &Ask) -> Result<Vec<JobLeg>, ApiError> {
    let (prompts, choices) = (ask.prompts.len(), ask.choices as usize);
    if prompts.saturating_mul(choices) > ask::SEQUENCES_MAX {
        // Refused with numbers when the limits are worked out.
        return Ok(Vec::new());
    }
    rooms::legs(fields, edge.info().mode, prompts, choices, || edge.fake_room())
}

/// Counts of tokens, as billed: a prompt counts once, however many answers it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Usage {
    prompt: u64,
    completion: u64,
    cached: u64,
}

impl Usage {
    fn of<'a>(generations: impl IntoIterator<Item = &'a Generation>, choices: u32) -> Self {
        let mut usage = Self::default();
        for generation in generations {
            if generation.index % choices as usize == 0 {
                usage.prompt += u64::from(generation.prompt_tokens);
                usage.cached += u64::from(generation.cached_tokens());
            }
            usage.completion += u64::from(generation.output_tokens());
        }
        usage
    }

    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}

/// The object around choices.
fn envelope(reading: &Reading, object: &str, choices: Vec<Value>) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("id".into(), reading.id.as_str().into());
    map.insert("object".into(), object.into());
    map.insert("created".into(), reading.created.into());
    map.insert("model".into(), reading.model.as_str().into());
    map.insert("choices".into(), Value::Array(choices));
    map
}

/// The last part of a complete choice.
fn close(choice: &mut Value, answer: &Answer, reading: &Reading) {
    let matched = answer.why.matched();
    choice["finish_reason"] = answer.why.name().into();
    choice["matched_stop"] = matched.clone();
    choice["stop_reason"] = matched;
    if reading.has_token_ids {
        choice["token_ids"] = answer.generation.tokens.iter().map(|token| token.0).collect::<Vec<_>>().into();
    }
}

/// A JSON answer with the request's name in its headers.
pub(super) fn answered(id: &str, mut response: Response) -> Response {
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().entry("x-request-id").or_insert(value);
    }
    response
}

/// How many alternatives `logprobs` asks for in the form of completions: a number.
fn count_logprobs(edge: &Edge, fields: &Fields<'_>, sampling: &mut Sampling) -> Result<(), ApiError> {
    let count = match fields.get("logprobs") {
        None | Some(Value::Bool(false)) => return Ok(()),
        Some(Value::Bool(true)) => 0,
        Some(_) => fields.u32("logprobs")?.unwrap_or(0),
    };
    sampling.logprobs = Some(ask::logprobs(edge, "logprobs", count)?);
    Ok(())
}

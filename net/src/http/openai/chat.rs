//! `POST /v1/chat/completions`.
//!
//! A conversation goes through the model's chat template; tools are shown to the model by the template and its calls
//! come back as text (there is no parser of tool calls). Streams begin with the role, then have one chunk for each token,
//! then one with the reason of the end for each choice.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use minijinja::value::{Value as Native, ValueKind};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Reading, Usage, answered, ask, close, envelope, legs, logprobs, name};
use crate::http::Edge;
use crate::http::ask::{Ask, logprobs as allowed_logprobs};
use crate::http::error::ApiError;
use crate::http::fields::{self, Fields};
use crate::http::generation::{self, Answer, End, Generation, Piece};
use crate::http::sse::{self, Out, Render};
use crate::text::{Chat, Text};

/// The parts of a body that go to the template, with their keys in the order in which they came.
#[derive(Deserialize)]
struct Conversation {
    #[serde(default)]
    messages: Native,
    #[serde(default)]
    tools: Native,
    #[serde(default)]
    documents: Native,
    #[serde(default)]
    chat_template_kwargs: Native,
    #[serde(default)]
    reasoning_effort: Native,
}

/// Answers a conversation.
pub(in crate::http) async fn post(
    State(edge): State<Arc<Edge>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (ask, reading) = fields::prepare(&edge, headers, body, prepare).await?;
    let id = reading.id.clone();
    answer(&edge, ask, reading).await.map(|response| answered(&id, response))
}

/// What a body asks for.
fn prepare(edge: &Arc<Edge>, headers: &HeaderMap, bytes: &[u8]) -> Result<(Ask, Reading), ApiError> {
    let map = fields::object(bytes)?;
    let fields = Fields::new(&map, "");
    let (id, is_given) = name(edge, &fields, headers, "chatcmpl-")?;
    let reading = Reading::new(edge, &fields, id.clone())?;
    let mut ask = ask(edge, &fields, (id, is_given), "chat")?;
    if ask.limit == Some(0) {
        return Err(fields.wrong(
            if fields.get("max_completion_tokens").is_some() { "max_completion_tokens" } else { "max_tokens" },
            "at least 1",
        ));
    }
    let has_logprobs = fields.bool("logprobs")?;
    let top = fields.u32("top_logprobs")?;
    if has_logprobs {
        ask.sampling.logprobs = Some(allowed_logprobs(edge, "top_logprobs", top.unwrap_or(0))?);
    } else if top.is_some_and(|count| count > 0) {
        return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs: true"));
    }
    let prompt = edge.text().chat(&conversation(&fields, bytes)?)?;
    ask.prompts = vec![edge.text().encode(&prompt, false)?];
    ask.legs = legs(edge, &fields, &ask)?;
    Ok((ask, reading))
}

/// The conversation of a body.
pub(in crate::http) fn conversation(fields: &Fields<'_>, bytes: &[u8]) -> Result<Chat, ApiError> {
    if fields.get("messages").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        return Err(fields.wrong("messages", "a list of at least one message"));
    }
    if fields.get("tools").is_some_and(|tools| !tools.is_array()) {
        return Err(fields.wrong("tools", "a list"));
    }
    let choice = fields.get("tool_choice");
    let is_forced = choice.is_some_and(|choice| !matches!(choice.as_str(), Some("auto" | "none")));
    if is_forced {
        return Err(ApiError::unsupported(
            "tool_choice",
            "tool_choice can be \"auto\" or \"none\": this server has no grammars to force a call with",
        ));
    }
    let invalid =
        |error: serde_json::Error| ApiError::field("messages", format!("the conversation cannot be read: {error}"));
    let mut given: Conversation = serde_json::from_slice(bytes).map_err(invalid)?;
    if choice.and_then(Value::as_str) == Some("none") {
        given.tools = Native::from(());
    }
    let mut variables = BTreeMap::new();
    match given.chat_template_kwargs.kind() {
        ValueKind::Undefined | ValueKind::None => {}
        ValueKind::Map => {
            for key in given.chat_template_kwargs.try_iter().into_iter().flatten() {
                let value = given.chat_template_kwargs.get_item(&key).unwrap_or_default();
                variables.insert(key.to_string(), value);
            }
        }
        ValueKind::Bool | ValueKind::Number | ValueKind::String | ValueKind::Bytes | ValueKind::Seq | _ => {
            return Err(fields.wrong("chat_template_kwargs", "an object"));
        }
    }
    for (name, value) in [("documents", given.documents), ("reasoning_effort", given.reasoning_effort)] {
        if !value.is_undefined() && !value.is_none() {
            variables.entry(name.to_owned()).or_insert(value);
        }
    }
    let is_continued = fields.bool("continue_final_message")?;
    Ok(Chat {
        messages: given.messages,
        tools: given.tools,
        variables,
        template: fields.text("chat_template")?.map(str::to_owned),
        is_prompted: fields.bool_or("add_generation_prompt", true)?,
        is_continued,
    })
}

async fn answer(edge: &Arc<Edge>, ask: Ask, reading: Reading) -> Result<Response, ApiError> {
    let choices = ask.choices;
    let has_logprobs = ask.sampling.logprobs.is_some();
    let mut generations = generation::start(edge, &ask)?;
    let text = Arc::clone(edge.text());
    if reading.is_streamed {
        if let Some(first) = generations.first_mut() {
            first.begin().await?;
        }
        return Ok(sse::response(
            generations,
            Chunks { text, reading, choices, has_logprobs, usage: Usage::default() },
        ));
    }
    let answers = generation::collect(generations).await?;
    let usage = Usage::of(answers.iter().map(|answer| &answer.generation), choices);
    let list = answers.iter().map(|answer| choice(&text, answer, has_logprobs, &reading)).collect();
    let mut body = envelope(&reading, "chat.completion", list);
    body.insert("usage".into(), usage.json());
    Ok(Json(body).into_response())
}

fn choice(text: &Text, answer: &Answer, has_logprobs: bool, reading: &Reading) -> Value {
    let mut choice = json!({
        "index": answer.generation.index,
        "message": { "role": "assistant", "content": answer.text },
        "logprobs": if has_logprobs { logprobs::chat(text, &answer.pieces) } else { Value::Null },
    });
    close(&mut choice, answer, reading);
    choice
}

struct Chunks {
    text: Arc<Text>,
    reading: Reading,
    choices: u32,
    has_logprobs: bool,
    usage: Usage,
}

impl Chunks {
    fn chunk(&self, choices: Vec<Value>, out: &mut Out) {
        let mut chunk = envelope(&self.reading, "chat.completion.chunk", choices);
        if self.reading.is_usage_continuous {
            chunk.insert("usage".into(), self.usage.json());
        }
        out.event(&chunk);
    }
}

impl Render for Chunks {
    fn start(&mut self, generations: &[Generation], out: &mut Out) {
        self.usage = Usage::of(generations, self.choices);
        for generation in generations {
            let delta = json!({ "role": "assistant", "content": "" });
            let choice = json!({ "index": generation.index, "delta": delta, "logprobs": null, "finish_reason": null });
            self.chunk(vec![choice], out);
        }
    }

    fn piece(&mut self, generation: &Generation, piece: Piece, out: &mut Out) {
        self.usage.completion += 1;
        let mut choice = json!({ "index": generation.index, "delta": { "content": piece.text }, "logprobs": null, "finish_reason": null });
        if self.reading.has_token_ids {
            choice["token_ids"] = json!([piece.token.0]);
        }
        if self.has_logprobs {
            choice["logprobs"] = logprobs::chat(&self.text, &[piece]);
        }
        self.chunk(vec![choice], out);
    }

    fn end(&mut self, generation: &Generation, end: End, out: &mut Out) {
        let delta = if end.text.is_empty() { json!({}) } else { json!({ "content": end.text }) };
        let matched = end.why.matched();
        let choice = json!({
            "index": generation.index, "delta": delta, "logprobs": null, "finish_reason": end.why.name(),
            "matched_stop": matched, "stop_reason": matched,
        });
        self.chunk(vec![choice], out);
    }

    fn finish(&mut self, generations: &[Generation], out: &mut Out) {
        if self.reading.is_usage_included {
            let mut chunk = envelope(&self.reading, "chat.completion.chunk", Vec::new());
            chunk.insert("usage".into(), Usage::of(generations, self.choices).json());
            out.event(&chunk);
        }
    }
}

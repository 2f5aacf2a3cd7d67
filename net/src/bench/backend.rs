//! The three dialects: what a request looks like, and what the events of its answer say.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::{Backend, BenchConfig};
use super::plan::{Prompt, Turn};

/// What was said in a conversation before the question.
#[derive(Clone, Debug, Default)]
pub(super) struct History(Vec<[String; 2]>);

impl History {
    pub(super) fn push(&mut self, question: &Prompt, answer: String) {
        if let Prompt::Text(text) = question {
            self.0.push([text.clone(), answer]);
        }
    }
}

/// The body of a request.
pub(super) fn body(config: &BenchConfig, model: &str, turn: &Turn, history: &History) -> Bytes {
    let flat = |text: &str| {
        let mut whole: String = history.0.iter().map(|[question, answer]| format!("{question}{answer}\n")).collect();
        whole.push_str(text);
        whole
    };
    let is_stream = !config.disable_stream;
    let ignore_eos = !config.disable_ignore_eos;
    let mut body = match config.backend {
        Backend::OpenaiCompletions => {
            let prompt = match &turn.prompt {
                Prompt::Text(text) => json!(flat(text)),
                Prompt::Ids(ids) => json!(ids),
            };
            json!({
                "model": model, "prompt": prompt, "best_of": 1, "max_tokens": turn.output_tokens, "stream": is_stream,
                "temperature": config.temperature, "ignore_eos": ignore_eos,
            })
        }
        Backend::OpenaiChat => {
            let mut messages: Vec<Value> = Vec::new();
            for [question, answer] in &history.0 {
                messages.push(json!({"role": "user", "content": question}));
                messages.push(json!({"role": "assistant", "content": answer}));
            }
            // A configuration with token ids for a chat does not pass its check.
            let text = if let Prompt::Text(text) = &turn.prompt { text.as_str() } else { "" };
            messages.push(json!({"role": "user", "content": text}));
            json!({
                "model": model, "messages": messages, "max_completion_tokens": turn.output_tokens, "stream": is_stream,
                "temperature": config.temperature, "ignore_eos": ignore_eos,
            })
        }
        Backend::Sglang => {
            let (name, prompt) = match &turn.prompt {
                Prompt::Text(text) => ("text", json!(flat(text))),
                Prompt::Ids(ids) => ("input_ids", json!(ids)),
            };
            json!({
                name: prompt,
                "sampling_params": {
                    "temperature": config.temperature, "max_new_tokens": turn.output_tokens, "ignore_eos": ignore_eos,
                },
                "stream": is_stream, "return_logprob": false, "logprob_start_len": -1,
            })
        }
    };
    if let Some(fields) = body.as_object_mut() {
        if is_stream && config.backend != Backend::Sglang {
            fields.insert("stream_options".into(), json!({"include_usage": true}));
        }
        fields.extend(config.extra_request_body.clone());
    }
    body.to_string().into()
}

/// What an event has told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Said {
    /// Text came, and how many tokens the answer has now, if the server counts.
    pub(super) has_text: bool,
    pub(super) tokens: Option<u32>,
    pub(super) prompt_tokens: Option<u32>,
    pub(super) cached_tokens: Option<u32>,
    pub(super) error: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    meta_info: Option<Meta>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    delta: Option<Map<String, Value>>,
    #[serde(default)]
    message: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u32>,
    #[serde(default)]
    completion_tokens: Option<u32>,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    prompt_tokens: Option<u32>,
    #[serde(default)]
    completion_tokens: Option<u32>,
    #[serde(default)]
    cached_tokens: Option<u32>,
    #[serde(default)]
    finish_reason: Option<Value>,
}

/// Reads an event, or a whole answer, behind one that had this many tokens. `answer` gets the text.
pub(super) fn read(data: &[u8], answer: &mut String, tokens: u32) -> Said {
    if data == b"[DONE]" {
        return Said::default();
    }
    let event: Event = match serde_json::from_slice(data) {
        Ok(event) => event,
        Err(error) => {
            let text: String = String::from_utf8_lossy(data).chars().take(80).collect();
            return Said {
                error: Some(format!("an event is not what was asked for ({error}): {text}")),
                ..Said::default()
            };
        }
    };
    let mut said = Said::default();
    if let Some(error) = event.error.filter(|error| !error.is_null()) {
        let message = error.get("message").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned);
        said.error = Some(message);
    }
    for choice in event.choices.unwrap_or_default() {
        let fields = choice.delta.or(choice.message).unwrap_or_default();
        let spoken = ["reasoning_content", "reasoning", "content"];
        let mut texts: Vec<&str> = spoken.iter().filter_map(|name| fields.get(*name)?.as_str()).collect();
        texts.dedup();
        let has_tools = fields.get("tool_calls").is_some_and(|calls| !calls.is_null());
        for text in choice.text.as_deref().into_iter().chain(texts) {
            said.has_text |= !text.is_empty();
            answer.push_str(text);
        }
        said.has_text |= has_tools;
    }
    if let Some(text) = event.text {
        // SGLang's events hold the whole text so far.
        said.has_text |= text != *answer;
        *answer = text;
    }
    if let Some(usage) = event.usage {
        said.prompt_tokens = usage.prompt_tokens;
        said.tokens = usage.completion_tokens;
        said.cached_tokens = usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
    }
    if let Some(meta) = event.meta_info {
        said.prompt_tokens = meta.prompt_tokens;
        said.tokens = meta.completion_tokens;
        // Tokens that have no text (yet), such as half a character, have come all the same.
        said.has_text |= meta.completion_tokens.is_some_and(|now| now > tokens);
        said.cached_tokens = meta.cached_tokens;
        if let Some(reason) = meta.finish_reason.filter(|reason| reason["type"] == "abort") {
            said.error = Some(reason["message"].as_str().unwrap_or("aborted").to_owned());
        }
    }
    said
}

//! `POST /generate`, SGLang's own route: a text or tokens, one prompt or many, with `meta_info` about each answer.
//!
//! Streamed events are cumulative (each has the whole text so far) unless the server was set to send differences. Beyond
//! SGLang's fields, `meta_info` has `miss_reasons`: why each prompt token that no cache served was computed.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use pd_core::id::Token;
use serde_json::{Map, Value, json};

use super::Edge;
use super::ask::{self, Ask, Dialect, Rids};
use super::error::ApiError;
use super::fields::{self, Fields};
use super::generation::{self, Answer, End, Generation, Matched, Piece, Why};
use super::openai::completions::Prompt;
use super::openai::number;
use super::rooms;
use super::sse::{self, Out, Render};
use crate::text::Text;

/// SGLang's limit for requests that name none.
const LIMIT: u32 = 128;

/// Continues prompts.
pub(super) async fn post(State(edge): State<Arc<Edge>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let (ask, shape) = fields::prepare(&edge, headers, body, prepare).await?;
    let mut generations = generation::start(&edge, &ask)?;
    let id = ask.rids.names[0].clone();
    let response = if shape.is_streamed {
        if let Some(first) = generations.first_mut() {
            first.begin().await?;
        }
        let so_far = generations.iter().map(|_| SoFar::default()).collect();
        sse::response(generations, Events { shape, so_far })
    } else {
        let answers = generation::collect(generations).await?;
        let mut list: Vec<Value> = answers.iter().map(|answer| shape.answer(answer)).collect();
        if shape.is_list { Json(Value::Array(list)).into_response() } else { Json(list.swap_remove(0)).into_response() }
    };
    Ok(super::openai::answered(&id, response))
}

/// What a body asks for.
fn prepare(edge: &Arc<Edge>, headers: &HeaderMap, bytes: &[u8]) -> Result<(Ask, Shape), ApiError> {
    let map = fields::object(bytes)?;
    let fields = Fields::new(&map, "");
    let (prompts, is_batch) = prompts(edge, &fields)?;
    let empty = Map::new();
    let params = match fields.get("sampling_params") {
        None => &empty,
        Some(Value::Object(map)) => map,
        Some(Value::Array(_)) => {
            return Err(
                fields.wrong("sampling_params", "one object for all prompts; send differing prompts one by one")
            );
        }
        Some(_) => return Err(fields.wrong("sampling_params", "an object")),
    };
    ask(edge, &fields, &Fields::new(params, "sampling_params."), headers, prompts, is_batch)
}

fn ask(
    edge: &Arc<Edge>,
    fields: &Fields<'_>,
    params: &Fields<'_>,
    headers: &HeaderMap,
    prompts: Vec<Prompt>,
    is_batch: bool,
) -> Result<(Ask, Shape), ApiError> {
    ask::refuse(fields)?;
    ask::refuse(params)?;
    let vocabulary = edge.text().vocabulary();
    let mut sampling = ask::sampling(params, Dialect::Native, vocabulary)?;
    let has_logprobs = fields.bool("return_logprob")?;
    let has_texts = fields.bool("return_text_in_logprobs")?;
    if has_logprobs {
        let top = fields.u32("top_logprobs_num")?.unwrap_or(0);
        sampling.logprobs = Some(ask::logprobs(edge, "top_logprobs_num", top)?);
        // -1, the default, is the last prompt token: nothing of the prompt.
        if let Some(from) = fields.i32("logprob_start_len")?.and_then(|from| u32::try_from(from).ok()) {
            ask::score_prompt(edge, &mut sampling, from, "logprob_start_len")?;
        }
    }
    let choices = ask::choices(params)?;
    let is_list = is_batch || choices > 1;
    let rids = rids(edge, fields, headers, prompts.len())?;
    let count = prompts.len();
    let ask = Ask {
        rids,
        prompts: prompts.into_iter().map(|prompt| prompt.tokens).collect(),
        choices,
        sampling,
        limit: Some(params.u32("max_new_tokens")?.unwrap_or(LIMIT)),
        stop: ask::stop(params, edge.text().eos(), vocabulary)?,
        is_special_skipped: params.bool_or("skip_special_tokens", true)?,
        priority: fields.i32("priority")?.unwrap_or(0),
        salt: ask::salt(fields)?,
        legs: if count.saturating_mul(choices as usize) > ask::SEQUENCES_MAX {
            Vec::new()
        } else {
            rooms::legs(fields, edge.info().mode, count, choices as usize, || edge.fake_room())?
        },
        route: "generate",
    };
    let shape = Shape {
        text: Arc::clone(edge.text()),
        is_streamed: fields.bool("stream")?,
        is_list,
        has_logprobs,
        has_texts,
        is_incremental: edge.config().is_stream_incremental,
        storage: edge.backend().load().storage.backend,
    };
    Ok((ask, shape))
}

/// `text` or `input_ids`, and whether it was a list of prompts.
fn prompts(edge: &Edge, fields: &Fields<'_>) -> Result<(Vec<Prompt>, bool), ApiError> {
    let vocabulary = edge.text().vocabulary();
    let of_tokens = |list: &[Value]| {
        let tokens =
            fields::tokens(list, vocabulary).map_err(|at| fields.bad_token("input_ids", at, &list[at], vocabulary))?;
        Ok::<_, ApiError>(Prompt::of_tokens(tokens))
    };
    match (fields.get("text"), fields.get("input_ids")) {
        (Some(Value::String(text)), None) => Ok((vec![Prompt::of_text(edge, text)?], false)),
        (Some(Value::Array(list)), None) if !list.is_empty() => {
            let one = |item: &Value| {
                let text = item.as_str().ok_or_else(|| fields.wrong("text", "a text or a list of texts"))?;
                Prompt::of_text(edge, text)
            };
            Ok((list.iter().map(one).collect::<Result<_, _>>()?, true))
        }
        (Some(_), None) => Err(fields.wrong("text", "a text or a list of at least one text")),
        (None, Some(Value::Array(list))) if list.first().is_some_and(Value::is_array) => {
            let must = "a list of tokens or a list of lists of tokens";
            let one = |item: &Value| of_tokens(item.as_array().ok_or_else(|| fields.wrong("input_ids", must))?);
            Ok((list.iter().map(one).collect::<Result<_, _>>()?, true))
        }
        (None, Some(Value::Array(list))) => Ok((vec![of_tokens(list)?], false)),
        (None, Some(_)) => Err(fields.wrong("input_ids", "a list of tokens or a list of lists of tokens")),
        (None, None) => {
            Err(ApiError::field("text", "send the prompt as text (a text) or as input_ids (tokens); both are missing"))
        }
        (Some(_), Some(_)) => Err(ApiError::field("input_ids", "text and input_ids are both given; send one of them")),
    }
}

fn rids(edge: &Edge, fields: &Fields<'_>, headers: &HeaderMap, prompts: usize) -> Result<Rids, ApiError> {
    if let Some(Value::Array(list)) = fields.get("rid") {
        let names: Option<Vec<String>> =
            list.iter().map(|name| name.as_str().filter(|name| ask::is_name(name)).map(str::to_owned)).collect();
        let names = names.filter(|names| names.len() == prompts && prompts > 0);
        let names = names.ok_or_else(|| {
            fields.wrong("rid", &format!("a name, or a list of {prompts} names (one for each prompt)"))
        })?;
        return Ok(Rids { names, is_given: true });
    }
    if let Some(rid) = ask::rid(fields, "rid")? {
        return Ok(Rids { names: vec![rid], is_given: true });
    }
    let header = headers.get("x-request-id").and_then(|value| value.to_str().ok()).filter(|name| ask::is_name(name));
    Ok(Rids { names: vec![header.map_or_else(|| edge.unique(), str::to_owned)], is_given: false })
}

struct Shape {
    text: Arc<Text>,
    is_streamed: bool,
    is_list: bool,
    has_logprobs: bool,
    has_texts: bool,
    is_incremental: bool,
    storage: Option<String>,
}

/// `[logprob, token, text or null]`.
type Row = Value;

impl Shape {
    fn answer(&self, answer: &Answer) -> Value {
        let rows: Vec<Row> = answer.pieces.iter().map(|piece| self.row(piece.token, piece.logprob)).collect();
        let top: Vec<Value> = answer.pieces.iter().map(|piece| self.top(&piece.top)).collect();
        let meta = self.meta(&answer.generation, Some(&answer.why), &rows, &top);
        json!({ "text": answer.text, "output_ids": ids(&answer.generation.tokens), "meta_info": meta })
    }

    fn row(&self, token: Token, logprob: Option<f32>) -> Row {
        let text = self.has_texts.then(|| self.text.text_of(token));
        json!([logprob.map(number), token.0, text])
    }

    fn top(&self, top: &[(Token, f32)]) -> Value {
        if top.is_empty() {
            Value::Null
        } else {
            top.iter().map(|&(token, logprob)| self.row(token, Some(logprob))).collect()
        }
    }

    /// What is known of a sequence; `why` is `None` while it goes on.
    fn meta(&self, generation: &Generation, why: Option<&Why>, rows: &[Row], top: &[Value]) -> Value {
        let completion = generation.output_tokens();
        let mut meta = json!({
            "id": generation.rid,
            "finish_reason": why.map(|why| finish(why, completion)),
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": completion,
            "cached_tokens": generation.cached_tokens(),
            "reasoning_tokens": 0,
            "weight_version": "default",
            "num_retractions": generation.retractions,
            "total_retractions": generation.retractions,
        });
        if let Some(served) = &generation.served {
            meta["cached_tokens_details"] = json!({
                "device": served.device, "host": served.host, "storage": served.storage, "storage_backend": self.storage,
            });
            let mut misses = Map::new();
            for miss in &served.misses {
                let before = misses.get(miss.reason.name()).and_then(Value::as_u64).unwrap_or(0);
                misses.insert(miss.reason.name().into(), (before + u64::from(miss.tokens)).into());
            }
            meta["miss_reasons"] = Value::Object(misses);
        }
        if why.is_some() {
            meta["e2e_latency"] = json!(generation.started.elapsed().as_secs_f64());
            meta["first_token_latency"] = json!(generation.first_token.as_ref().map(Duration::as_secs_f64));
        }
        if self.has_logprobs {
            let scores = &generation.scores;
            meta["input_token_logprobs"] = scores.iter().map(|scored| self.row(scored.token, scored.logprob)).collect();
            meta["output_token_logprobs"] = rows.into();
            meta["input_top_logprobs"] = scores.iter().map(|scored| self.top(&scored.top)).collect();
            meta["output_top_logprobs"] = top.into();
        }
        meta
    }
}

fn finish(why: &Why, completion: u32) -> Value {
    match why {
        Why::Stop(Matched::Token(token)) => json!({ "type": "stop", "matched": token.0 }),
        Why::Stop(Matched::Text(text)) => json!({ "type": "stop", "matched": text }),
        Why::Length => json!({ "type": "length", "length": completion }),
        Why::Abort => {
            json!({ "type": "abort", "message": "aborted on request", "status_code": null, "err_type": null })
        }
        Why::Failed(error) => {
            json!({ "type": "abort", "message": error.message, "status_code": error.status.as_u16(), "err_type": error.code })
        }
    }
}

fn ids(tokens: &[Token]) -> Vec<u32> {
    tokens.iter().map(|token| token.0).collect()
}

/// What was sent of a sequence.
#[derive(Default)]
struct SoFar {
    text: String,
    rows: Vec<Row>,
    top: Vec<Value>,
}

struct Events {
    shape: Shape,
    so_far: Vec<SoFar>,
}

impl Events {
    fn event(&mut self, generation: &Generation, text: &str, token: Option<Token>, why: Option<&Why>, out: &mut Out) {
        let so_far = &mut self.so_far[generation.index];
        let mut event = if self.shape.is_incremental {
            let meta = self.shape.meta(generation, why, &so_far.rows, &so_far.top);
            so_far.rows.clear();
            so_far.top.clear();
            json!({ "text": text, "output_ids": ids(token.as_slice()), "meta_info": meta })
        } else {
            so_far.text.push_str(text);
            let meta = self.shape.meta(generation, why, &so_far.rows, &so_far.top);
            json!({ "text": so_far.text, "output_ids": ids(&generation.tokens), "meta_info": meta })
        };
        if self.shape.is_list {
            event["index"] = generation.index.into();
        }
        out.event(&event);
    }
}

impl Render for Events {
    fn start(&mut self, _: &[Generation], _: &mut Out) {}

    fn piece(&mut self, generation: &Generation, piece: Piece, out: &mut Out) {
        if self.shape.has_logprobs {
            let so_far = &mut self.so_far[generation.index];
            so_far.rows.push(self.shape.row(piece.token, piece.logprob));
            so_far.top.push(self.shape.top(&piece.top));
        }
        self.event(generation, &piece.text, Some(piece.token), None, out);
    }

    fn end(&mut self, generation: &Generation, end: End, out: &mut Out) {
        self.event(generation, &end.text, None, Some(&end.why), out);
    }

    fn finish(&mut self, _: &[Generation], _: &mut Out) {}
}

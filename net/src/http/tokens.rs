//! `/tokenize` and `/detokenize`, in the forms of vLLM and SGLang at once.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::Edge;
use super::error::ApiError;
use super::fields::{self, Fields};
use super::openai::chat::conversation;

/// The tokens of a text, of several, or of a conversation.
pub(super) async fn tokenize(
    State(edge): State<Arc<Edge>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let (bytes, map) = fields::read_object(&edge, &headers, body).await?;
    let fields = Fields::new(&map, "");
    let text = edge.text();
    let is_chat = fields.get("messages").is_some();
    let add_special = fields.bool_or("add_special_tokens", !is_chat)?;
    let has_names = fields.bool("return_token_strs")?;
    let encode = |prompt: &str| text.encode(prompt, add_special).map_err(ApiError::from);
    let max = edge.info().context_length;
    if let Some(Value::Array(list)) = fields.get("prompt") {
        let mut all = Vec::new();
        for item in list {
            let prompt = item.as_str().ok_or_else(|| fields.wrong("prompt", "a text or a list of texts"))?;
            all.push(encode(prompt)?.into_iter().map(|token| token.0).collect::<Vec<_>>());
        }
        let counts: Vec<usize> = all.iter().map(Vec::len).collect();
        return Ok(Json(json!({ "count": counts, "max_model_len": max, "tokens": all })));
    }
    let tokens = if is_chat {
        encode(&text.chat(&conversation(&fields, &bytes)?)?)?
    } else {
        let prompt = fields.text("prompt")?.ok_or_else(|| fields.wrong("prompt", "a text (or send messages)"))?;
        encode(prompt)?
    };
    let names = has_names.then(|| tokens.iter().map(|&token| text.name_of(token)).collect::<Vec<_>>());
    let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
    Ok(Json(json!({ "count": ids.len(), "max_model_len": max, "tokens": ids, "token_strs": names })))
}

/// The text of tokens.
pub(super) async fn detokenize(
    State(edge): State<Arc<Edge>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let (_, map) = fields::read_object(&edge, &headers, body).await?;
    let fields = Fields::new(&map, "");
    let skip_special = fields.bool_or("skip_special_tokens", true)?;
    let text = edge.text();
    let vocabulary = text.vocabulary();
    if let Some(list) =
        fields.get("tokens").and_then(Value::as_array).filter(|list| list.first().is_some_and(Value::is_array))
    {
        let mut texts = Vec::new();
        for item in list {
            let item =
                item.as_array().ok_or_else(|| fields.wrong("tokens", "a list of tokens or a list of such lists"))?;
            let tokens =
                fields::tokens(item, vocabulary).map_err(|at| fields.bad_token("tokens", at, &item[at], vocabulary))?;
            texts.push(text.decode(&tokens, skip_special));
        }
        return Ok(Json(json!({ "prompt": texts, "text": texts })));
    }
    if fields.get("tokens").is_none() {
        return Err(fields.wrong("tokens", "a list of tokens"));
    }
    let decoded = text.decode(&fields.tokens("tokens", vocabulary)?, skip_special);
    Ok(Json(json!({ "prompt": decoded, "text": decoded })))
}

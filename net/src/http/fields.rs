//! Reading request bodies: tolerant of fields that nobody knows, exact about those that count.
//!
//! 1. `null` means absent.
//! 2. A field that is read and does not fit is an error that names it; nothing is clamped or guessed.
//! 3. Fields that would change the answer and cannot be honoured are refused by name, never ignored.

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use pd_core::id::Token;
use serde_json::{Map, Value};

use super::Edge;
use super::error::ApiError;

/// The fields of one JSON object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// Put in front of names in errors: `sampling_params.`.
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) const fn new(map: &'a Map<String, Value>, prefix: &'static str) -> Self {
        Self { map, prefix }
    }

    /// The value of a field, if it is there and not null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// The name of a field in errors.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// An error about a field: what it must be, and what it is.
    pub(super) fn wrong(&self, name: &str, must: &str) -> ApiError {
        let path = self.path(name);
        let is = self.map.get(name).map_or_else(|| "missing".to_owned(), describe);
        let message = format!("{path} must be {must}; it is {is}");
        ApiError::field(path, message)
    }

    pub(super) fn bool(&self, name: &str) -> Result<bool, ApiError> {
        self.get(name).map_or(Ok(false), |value| value.as_bool().ok_or_else(|| self.wrong(name, "true or false")))
    }

    pub(super) fn bool_or(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        if self.get(name).is_none() { Ok(default) } else { self.bool(name) }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.get(name).map(|value| value.as_str().ok_or_else(|| self.wrong(name, "a text"))).transpose()
    }

    pub(super) fn u32(&self, name: &str) -> Result<Option<u32>, ApiError> {
        let read = |value| whole(value).and_then(|number| u32::try_from(number).ok());
        self.get(name)
            .map(|value| read(value).ok_or_else(|| self.wrong(name, "a whole number from 0 to 4294967295")))
            .transpose()
    }

    pub(super) fn i32(&self, name: &str) -> Result<Option<i32>, ApiError> {
        let read = |value| whole(value).and_then(|number| i32::try_from(number).ok());
        self.get(name).map(|value| read(value).ok_or_else(|| self.wrong(name, "a whole number of 32 bits"))).transpose()
    }

    /// Any integer of 64 bits, with or without sign, as its bits.
    pub(super) fn seed(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let read = |value| {
            whole(value).and_then(|n| u64::try_from(n).ok().or_else(|| i64::try_from(n).ok().map(i64::cast_unsigned)))
        };
        self.get(name).map(|value| read(value).ok_or_else(|| self.wrong(name, "a whole number of 64 bits"))).transpose()
    }

    /// A number within bounds, `must` in words.
    pub(super) fn number(
        &self,
        name: &str,
        is_allowed: impl FnOnce(f64) -> bool,
        must: &str,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        #[expect(clippy::cast_possible_truncation, reason = "engines sample in f32")]
        match value.as_f64() {
            Some(number) if is_allowed(number) => Ok(Some(number as f32)),
            Some(_) | None => Err(self.wrong(name, must)),
        }
    }

    /// One text or a list of them.
    pub(super) fn texts(&self, name: &str, most: usize) -> Result<Vec<String>, ApiError> {
        let must = || self.wrong(name, &format!("a text or a list of at most {most} texts"));
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(list)) if list.len() <= most => {
                list.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(must)).collect()
            }
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => Err(must()),
        }
    }

    /// A list of tokens of a vocabulary of `count`.
    pub(super) fn tokens(&self, name: &str, count: u32) -> Result<Vec<Token>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(Vec::new()) };
        if let Some(one) = token(value, count) {
            return Ok(vec![one]);
        }
        let list = value.as_array().ok_or_else(|| self.wrong(name, "a list of tokens"))?;
        tokens(list, count).map_err(|at| self.bad_token(name, at, &list[at], count))
    }

    /// The error of a token that there is not.
    pub(super) fn bad_token(&self, name: &str, at: usize, value: &Value, count: u32) -> ApiError {
        let path = format!("{}[{at}]", self.path(name));
        let message =
            format!("{path} is {}; tokens of this model are whole numbers from 0 to {}", describe(value), count - 1);
        ApiError::field(path, message)
    }

    /// Refuses fields that would have to change the answer.
    pub(super) fn refuse(&self, names: &[(&str, &str)]) -> Result<(), ApiError> {
        for (name, instead) in names {
            let is_asked = match self.get(name) {
                None | Some(Value::Bool(false)) => false,
                Some(Value::Array(list)) => !list.is_empty(),
                Some(Value::Object(map)) => !map.is_empty(),
                Some(Value::String(text)) => !text.is_empty(),
                Some(Value::Null | Value::Bool(true) | Value::Number(_)) => true,
            };
            if is_asked {
                let path = self.path(name);
                let message = format!("{path} is not supported: {instead}");
                return Err(ApiError::unsupported(path, message));
            }
        }
        Ok(())
    }
}

/// All of a list as tokens, or the place of the first that is none.
pub(super) fn tokens(list: &[Value], count: u32) -> Result<Vec<Token>, usize> {
    list.iter().enumerate().map(|(at, value)| token(value, count).ok_or(at)).collect()
}

fn token(value: &Value, count: u32) -> Option<Token> {
    let id = u32::try_from(value.as_u64()?).ok()?;
    (id < count).then_some(Token(id))
}

/// A whole number, also where it is written as 4.0: routers pass numbers through floats.
fn whole(value: &Value) -> Option<i128> {
    if let Some(number) = value.as_u64() {
        return Some(i128::from(number));
    }
    if let Some(number) = value.as_i64() {
        return Some(i128::from(number));
    }
    let number = value.as_f64()?;
    #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
    (number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0).then_some(number as i128)
}

/// A value in few words.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.chars().count() <= 40 => format!("the text {text:?}"),
        Value::String(text) => format!("a text of {} characters", text.chars().count()),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".into(),
    }
}

/// Reads a body, whole, up to a limit.
async fn read(headers: &HeaderMap, body: axum::body::Body, most: usize) -> Result<Bytes, ApiError> {
    let large = || {
        let message = format!("the body is larger than {most} bytes; send less at a time");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let announced =
        headers.get(axum::http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > most as u64) {
        return Err(large());
    }
    match Limited::new(body, most).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(large()),
        Err(error) => {
            let message = format!("the body ended early: {error}");
            Err(ApiError::new(StatusCode::BAD_REQUEST, "body_incomplete", message))
        }
    }
}

/// Bodies from this size on are read and tokenised on a thread of their own: a prompt of 100,000 tokens takes a tenth of
/// a second, for which nobody else's tokens should wait.
const LARGE_BODY: usize = 32 << 10;

/// What a route makes of a body.
type WorkOut<T> = fn(&Arc<Edge>, &HeaderMap, &[u8]) -> Result<T, ApiError>;

/// Reads a JSON body and works out what it asks for.
pub(super) async fn prepare<T: Send + 'static>(
    edge: &Arc<Edge>,
    headers: HeaderMap,
    body: axum::body::Body,
    work_out: WorkOut<T>,
) -> Result<T, ApiError> {
    expect_json(&headers)?;
    let bytes = read(&headers, body, edge.config().body_max).await?;
    if bytes.len() < LARGE_BODY {
        return work_out(edge, &headers, &bytes);
    }
    let edge = Arc::clone(edge);
    let task = tokio::task::spawn_blocking(move || work_out(&edge, &headers, &bytes));
    task.await.unwrap_or_else(|_| Err(ApiError::internal("the request could not be read")))
}

/// Reads a small JSON body; its bytes, and the object that they are.
pub(super) async fn read_object(
    edge: &Edge,
    headers: &HeaderMap,
    body: axum::body::Body,
) -> Result<(Bytes, Map<String, Value>), ApiError> {
    expect_json(headers)?;
    let bytes = read(headers, body, edge.config().body_max).await?;
    let map = object(&bytes)?;
    Ok((bytes, map))
}

/// Refuses bodies that do not claim to be JSON.
fn expect_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(kind) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let kind = kind.to_str().unwrap_or("not a text");
    let main = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if main == "application/json" || main.ends_with("+json") {
        return Ok(());
    }
    let message = format!("the content type is {kind:?}; send JSON with content-type: application/json");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", message))
}

/// Parses a body that must be one JSON object.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let bad = |message: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(bad("the body is empty; send a JSON object".into()));
    }
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| bad(format!("the body is not JSON: {error}").replace(" at line", ", at line")))?;
    let is = describe(&value);
    match value {
        Value::Object(map) => Ok(map),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(bad(format!("the body must be a JSON object; it is {is}")))
        }
    }
}

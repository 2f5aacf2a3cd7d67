//! What clients are told when it is the router that says no.
//!
//! One shape everywhere: OpenAI's nested error, with SGLang's flat fields beside it, so that readers of either find
//! what they look for. `code` is stable; `message` says what was wrong and what to do.

use axum::body::Body;
use axum::response::Response;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{HeaderMap, StatusCode};
use serde_json::json;

/// A refusal, before it is bytes.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    /// Seconds after which it makes sense to come back.
    pub(super) retry_after: Option<u32>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }

    pub(super) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message) }
    }

    /// The body.
    pub(super) fn json(&self) -> String {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            503 => "service_unavailable_error",
            _ => "upstream_error",
        };
        let status = self.status.as_u16();
        json!({
            "object": "error",
            "message": self.message,
            "type": kind,
            "code": status,
            "error": {"message": self.message, "type": kind, "param": null, "code": self.code, "status": status},
        })
        .to_string()
    }

    pub(super) fn response(&self) -> Response {
        let mut response = Response::new(Body::from(self.json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ERROR_CODE, HeaderValue::from_static(self.code));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Takes over what a worker has said of a failure: its status, its body, and when to come back.
pub(super) fn pass_on(status: StatusCode, from: &HeaderMap, body: bytes::Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    for name in [CONTENT_TYPE, RETRY_AFTER] {
        if let Some(value) = from.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response.headers_mut().insert(ERROR_CODE, HeaderValue::from_static("worker_error"));
    response
}

/// Says in one word what was wrong; sglang-router's header.
const ERROR_CODE: HeaderName = HeaderName::from_static("x-smg-error-code");

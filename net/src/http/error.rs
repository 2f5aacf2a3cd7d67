//! Errors as clients see them: one shape for all routes.
//!
//! ```json
//! {"error": {"message": "...", "type": "invalid_request_error", "param": "max_tokens", "code": "invalid_value"},
//!  "object": "error", "message": "...", "type": "...", "param": "...", "code": 400}
//! ```
//!
//! The inner object is OpenAI's; its copies outside are where clients of SGLang look.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use pd_core::event::{Failure, Finish, Refusal};
use serde_json::{Value, json};

use super::backend::{ControlError, Refused};
use crate::text::{TemplateError, TextError};

/// An answer that is not what was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable name of the kind of error.
    pub code: &'static str,
    /// The field at fault.
    pub param: Option<String>,
    /// What is wrong, where, and what to do.
    pub message: String,
    /// Seconds after which it is worth trying again.
    pub retry_after: Option<u32>,
}

impl ApiError {
    /// An error of this status and code.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into(), retry_after: None }
    }

    /// A field whose value cannot be used (400).
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    /// A field that asks for what this server cannot do (400).
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: "unsupported", ..Self::field(param, message) }
    }

    /// A failure of ours (500).
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// OpenAI's word for this status.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body.
    #[must_use]
    pub fn json(&self) -> Value {
        let (kind, message, param) = (self.kind(), &self.message, &self.param);
        json!({
            "error": { "message": message, "type": kind, "param": param, "code": self.code, "status": self.status.as_u16() },
            "object": "error", "message": message, "type": kind, "param": param, "code": self.status.as_u16(),
        })
    }

    /// Why a job was refused.
    pub fn refused(refused: &Refused) -> Self {
        match refused {
            Refused::Machine(refusal) => refusal_error(refusal),
            Refused::Unavailable(why) => Self {
                retry_after: Some(1),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "unavailable",
                    format!("the worker takes no requests: {why}"),
                )
            },
            Refused::Peer(why) => Self {
                param: Some("bootstrap_host".into()),
                ..Self::new(StatusCode::BAD_GATEWAY, "prefill_unreachable", why.clone())
            },
            Refused::Sampling { field, problem } => Self::unsupported(*field, problem.clone()),
        }
    }

    /// Why an answer ended before its end; `None` where it is complete.
    #[must_use]
    pub fn ended(finish: Finish) -> Option<Self> {
        match finish {
            Finish::Stop | Finish::Length | Finish::Cancelled => None,
            Finish::Deadline => Some(Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "deadline",
                "the request's deadline passed before its answer was complete; raise the request timeout or ask for less",
            )),
            Finish::Failed(Failure::Lane(fault)) => Some(Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "device_failed",
                format!("the device failed under this request ({fault:?}); other requests go on"),
            )),
            Finish::Failed(Failure::Memory) => Some(Self {
                retry_after: Some(1),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "kv_memory",
                    "there are not enough KV pages for this request to go on, even alone; ask for fewer tokens",
                )
            }),
            Finish::Failed(Failure::Peer) => Some(Self {
                retry_after: Some(1),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "kv_transfer_failed",
                    "the other half of the hand-off was lost or stayed silent, and its KV could not be computed here",
                )
            }),
        }
    }
}

fn refusal_error(refusal: &Refusal) -> ApiError {
    const BAD: StatusCode = StatusCode::BAD_REQUEST;
    match *refusal {
        Refusal::QueueFull { max } => ApiError {
            retry_after: Some(1),
            ..ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "queue_full",
                format!("{max} requests wait already, which is the most (max_queued_requests); try again later"),
            )
        },
        Refusal::NeverFits { pages, total } => ApiError::new(
            BAD,
            "never_fits",
            format!(
                "prompt and limit need {pages} KV pages and there are {total}; shorten the prompt or lower max_tokens"
            ),
        ),
        Refusal::Malformed => {
            ApiError::new(BAD, "malformed", "the prompt's length, keys and tokens do not fit together")
        }
        Refusal::NoOutput => ApiError {
            param: Some("max_tokens".into()),
            ..ApiError::new(BAD, "no_output", "there is nothing to generate; max_tokens must be at least 1")
        },
        Refusal::DuplicateRequest => ApiError {
            param: Some("rid".into()),
            ..ApiError::new(StatusCode::CONFLICT, "duplicate_request", "a request of this name is being served")
        },
        Refusal::DuplicateRoom => ApiError {
            param: Some("bootstrap_room".into()),
            ..ApiError::new(
                StatusCode::CONFLICT,
                "duplicate_room",
                "this room is in use by another request; take a new one",
            )
        },
        Refusal::WrongMode => ApiError::new(
            BAD,
            "wrong_mode",
            "this worker serves one half of a hand-off and the request does not say which one: send it through a router, \
             or with bootstrap_host, bootstrap_port and bootstrap_room",
        ),
        Refusal::Draining => ApiError {
            retry_after: Some(1),
            ..ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                "the worker is shutting down and takes no requests",
            )
        },
        Refusal::Late => {
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, "deadline", "the request's deadline had passed when it arrived")
        }
        Refusal::PromptTooLong { tokens, max } => ApiError::new(
            BAD,
            "context_length_exceeded",
            format!("the prompt has {tokens} tokens and may have at most {max}; shorten it"),
        ),
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        let param = match &error {
            TemplateError::Missing | TemplateError::Unknown { .. } | TemplateError::Failed(_) => "chat_template",
            TemplateError::Refused(_) | TemplateError::NoMessages => "messages",
            TemplateError::Message { index, .. } => {
                return Self::field(format!("messages[{index}]"), error.to_string());
            }
        };
        Self::field(param, error.to_string())
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        Self::field("prompt", error.to_string())
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Invalid(why) => Self::new(StatusCode::BAD_REQUEST, "invalid_order", why),
            ControlError::Busy(why) => Self::new(StatusCode::CONFLICT, "busy", why),
            ControlError::Failed(why) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "order_failed", why),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.json().to_string();
        let mut response = (self.status, [(CONTENT_TYPE, "application/json")], body).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

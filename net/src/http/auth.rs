//! The API key, and the headers that every answer has.
//!
//! With a key set, all routes need it but those that probes and scrapers use: `/health`, `/health_generate`, `/ready`,
//! `/metrics`, and the empty status page `/`, which asks for the key. It is taken from `Authorization: Bearer KEY` or `x-api-key: KEY`.

use std::hint::black_box;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Edge;
use super::ask::is_name;
use super::error::ApiError;

/// Paths that need no key.
const OPEN: &[&str] = &["/", "/health", "/health_generate", "/ready", "/metrics"];

/// Lets a request through if it may pass, and echoes its name.
pub(super) async fn check(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let name = request.headers().get("x-request-id").filter(|name| name.to_str().is_ok_and(is_name)).cloned();
    let is_allowed = OPEN.contains(&request.uri().path())
        || edge.config().api_key.as_ref().is_none_or(|key| carries(request.headers(), key));
    let mut response = if is_allowed {
        next.run(request).await
    } else {
        let message = "this server needs a key: send Authorization: Bearer KEY (or x-api-key: KEY)";
        let mut response = ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response();
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        response
    };
    if let Some(name) = name {
        response.headers_mut().insert("x-request-id", name);
    }
    response
}

fn carries(headers: &HeaderMap, key: &str) -> bool {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let plain = headers.get("x-api-key").map(HeaderValue::as_bytes);
    [bearer, plain].into_iter().flatten().any(|given| is_equal(given, key.as_bytes()))
}

/// Compares in a time that depends on the length of what was given alone.
fn is_equal(given: &[u8], key: &[u8]) -> bool {
    let mut difference = given.len() ^ key.len();
    for (at, byte) in given.iter().enumerate() {
        difference |= usize::from(byte ^ key.get(at).copied().unwrap_or(0));
    }
    black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::is_equal;

    #[test]
    fn only_the_whole_key_is_the_key() {
        assert!(is_equal(b"secret", b"secret"));
        for wrong in [&b""[..], b"secre", b"secret2", b"secreT", b"\0ecret"] {
            assert!(!is_equal(wrong, b"secret"), "{wrong:?}");
        }
        assert!(!is_equal(b"secret\0", b"secret"));
    }
}

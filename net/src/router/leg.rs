//! One leg of an attempt: a request to one worker, up to the first byte of the answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::response::Parts;
use hyper::{HeaderMap, Method, Request, StatusCode};

use pd_core::id::WorkerId;
use pd_core::router::RouteFault;

use super::App;
use super::members::Member;
use crate::client::reason;

/// A leg that ended badly.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) worker: WorkerId,
    pub(super) fault: RouteFault,
    pub(super) said: Said,
}

/// What is known of a failure.
#[derive(Debug)]
pub(super) enum Said {
    /// The worker has answered.
    Answer { status: StatusCode, headers: HeaderMap, body: Bytes },
    /// It has not; this is what happened.
    Nothing(String),
}

/// An answer whose first bytes are there.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) head: Parts,
    /// `None` if the body is empty.
    pub(super) first: Option<Bytes>,
    pub(super) rest: Incoming,
    pub(super) active: Active,
}

/// Counts a request at a worker as long as it lives.
#[derive(Debug)]
pub(super) struct Active(Arc<Member>);

impl Active {
    fn new(member: &Arc<Member>) -> Self {
        member.active.fetch_add(1, Ordering::Relaxed);
        member.served.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(member))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request to a worker as the client's, but for its body.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    pub(super) method: Method,
    pub(super) path_and_query: String,
    pub(super) headers: HeaderMap,
}

impl App {
    /// Sends a request and waits for the head of the answer, whatever its status.
    pub(super) async fn send(
        &self,
        member: &Member,
        envelope: &Envelope,
        body: Bytes,
    ) -> Result<hyper::Response<Incoming>, Fault> {
        let nothing = |why: String| Fault {
            worker: member.id,
            fault: RouteFault::Connection,
            said: Said::Nothing(format!("{}: {why}", member.spec.target)),
        };
        let Some(uri) = member.spec.target.uri(&envelope.path_and_query) else {
            return Err(nothing("the path makes no address".into()));
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = envelope.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = envelope.headers.clone();
        self.pool.request(request).await.map_err(|error| nothing(reason(&error)))
    }

    /// Sends a leg. `Ok` only if the worker has begun to serve it.
    pub(super) async fn begin(&self, member: &Arc<Member>, envelope: &Envelope, body: Bytes) -> Result<Begun, Fault> {
        let active = Active::new(member);
        let (head, mut rest) = self.send(member, envelope, body).await?.into_parts();
        if !head.status.is_success() {
            let read = tokio::time::timeout(ERROR_TIME_MAX, Limited::new(rest, ERROR_BYTES_MAX).collect()).await;
            let body = read.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let said = Said::Answer { status: head.status, headers: head.headers, body };
            return Err(Fault { worker: member.id, fault: fault_of(head.status), said });
        }
        let first = loop {
            match rest.frame().await {
                None => break None,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => break Some(data),
                    // Trailers, or nothing.
                    Ok(_) | Err(_) => {}
                },
                Some(Err(error)) => {
                    let said = Said::Nothing(format!("{}: {}", member.spec.target, reason(&error)));
                    return Err(Fault { worker: member.id, fault: RouteFault::Connection, said });
                }
            }
        };
        Ok(Begun { head, first, rest, active })
    }

    /// Reads what is left of an answer that has begun; at most as much as a request may have.
    pub(super) async fn rest_of(&self, worker: WorkerId, begun: Begun) -> Result<(Parts, Bytes), Fault> {
        let fail = |why: String| Fault { worker, fault: RouteFault::Connection, said: Said::Nothing(why) };
        let mut whole = Vec::from(begun.first.unwrap_or_default());
        let mut rest = begun.rest;
        while let Some(frame) = rest.frame().await {
            let frame = frame.map_err(|error| fail(reason(&error)))?;
            if let Ok(data) = frame.into_data() {
                if whole.len() + data.len() > self.config.max_payload_size {
                    return Err(fail("the answer is larger than max_payload_size".into()));
                }
                whole.extend_from_slice(&data);
            }
        }
        Ok((begun.head, whole.into()))
    }
}

/// What a status says of the worker that gave it.
fn fault_of(status: StatusCode) -> RouteFault {
    match status.as_u16() {
        429 | 503 => RouteFault::Refused,
        408 | 504 => RouteFault::Timeout,
        400..500 => RouteFault::BadRequest,
        // Also what is neither success nor error: nobody has sent the worker elsewhere.
        _ => RouteFault::Aborted,
    }
}

/// The client's headers that a worker gets: all but those of this connection and this body.
pub(super) fn forwarded(from: &HeaderMap, api_key: Option<&str>, request_id: &str) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(from.len() + 2);
    let named: Vec<&str> = from
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    for (name, value) in from {
        let is_ours = HOP_HEADERS.contains(name)
            || [header::HOST, header::CONTENT_LENGTH, header::ACCEPT_ENCODING, header::EXPECT].contains(name)
            || named.iter().any(|other| other.eq_ignore_ascii_case(name.as_str()));
        if !is_ours {
            headers.append(name.clone(), value.clone());
        }
    }
    if let (Some(key), false) = (api_key, headers.contains_key(header::AUTHORIZATION))
        && let Ok(value) = HeaderValue::from_str(&format!("Bearer {key}"))
    {
        headers.insert(header::AUTHORIZATION, value);
    }
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert(X_REQUEST_ID, value);
    }
    headers
}

/// Takes out of a worker's headers what is about its connection, and the length, which is counted anew.
pub(super) fn strip(headers: &mut HeaderMap) {
    for name in &HOP_HEADERS {
        headers.remove(name);
    }
    headers.remove(header::CONTENT_LENGTH);
}

/// The id of a request, to and from everybody.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const HOP_HEADERS: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const ERROR_BYTES_MAX: usize = 1 << 20;
const ERROR_TIME_MAX: Duration = Duration::from_secs(5);

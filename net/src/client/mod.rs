//! The HTTP client that the router, the load generator and askers of bootstrap servers share: a pool of HTTP/1.1 connections, targets, and events.
//!
//! Owns no policy: it does not retry, does not follow redirects, and never buffers a body.

pub(crate) mod sse;
pub(crate) mod target;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// Connections that are kept alive between requests.
pub(crate) type Pool = Client<HttpConnector, Full<Bytes>>;

/// A pool that gives up on connecting after `connect_timeout` and keeps at most `idle_max` idle connections per host.
pub(crate) fn pool(connect_timeout: Duration, idle_max: usize) -> Pool {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect_timeout));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(idle_max)
        .build(connector)
}

/// An error with all that it was caused by: the outermost one of a client says little.
pub(crate) fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Below the 5 s after which uvicorn, and with it SGLang and vLLM, closes an idle connection: a request that is written
/// into a connection just being closed looks like a dead worker.
const IDLE_MAX: Duration = Duration::from_millis(4_000);

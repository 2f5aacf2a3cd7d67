//! The edge in front of a mock worker.

mod acceptance;
mod bad;
mod chat;
mod completions;
mod conformance;
mod connection;
mod kv_events;
mod native;
mod operators;

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use pd_core::config::Mode;
use pd_core::id::Token;
use serde_json::Value;
use tower::ServiceExt;

use super::backend::Backend;
use super::mock::Mock;
use super::{Edge, EdgeConfig, app};
use crate::text::{Files, Text};

/// The tokenizer of these tests: 377 tokens of bytes, then begin 377, end 378, user 379, assistant 380, system 381.
pub(super) const END: Token = Token(378);

pub(super) fn text() -> Arc<Text> {
    static TEXT: LazyLock<Arc<Text>> = LazyLock::new(read);
    Arc::clone(&TEXT)
}

fn read() -> Arc<Text> {
    let files = Files {
        tokenizer: include_bytes!("../../../tests/data/tiny/tokenizer.json").to_vec(),
        config: Some(include_bytes!("../../../tests/data/tiny/tokenizer_config.json").to_vec()),
        ..Files::default()
    };
    Arc::new(Text::from_files(&files).unwrap())
}

/// A server in front of a mock.
pub(super) struct Server {
    pub(super) mock: Arc<Mock>,
    pub(super) edge: Arc<Edge>,
    pub(super) text: Arc<Text>,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Server {
    pub(super) fn new() -> Self {
        Self::of(Mock::new(Mock::info("tiny-model", Mode::Unified)), EdgeConfig::default())
    }

    pub(super) fn of(mock: Mock, config: EdgeConfig) -> Self {
        let (mock, text) = (Arc::new(mock), text());
        let backend: Arc<dyn Backend> = Arc::<Mock>::clone(&mock);
        Self { edge: Edge::new(backend, Arc::clone(&text), config), mock, text }
    }

    pub(super) fn mode(mode: Mode) -> Self {
        Self::of(Mock::new(Mock::info("tiny-model", mode)), EdgeConfig::default())
    }

    /// A worker that always answers with this text, then stops.
    pub(super) fn saying(said: &str) -> Self {
        let tokens = text().encode(said, false).unwrap();
        Self::of(
            Mock::new(Mock::info("tiny-model", Mode::Unified)).with_answers(move |_| tokens.clone()),
            EdgeConfig::default(),
        )
    }

    pub(super) fn app(&self) -> Router {
        app(Arc::clone(&self.edge))
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.app().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string()).await
    }

    /// The text of an answer, for a task of its own.
    pub(super) fn app_post(&self, path: &str, body: Value) -> impl Future<Output = String> + Send + use<> {
        let request = Request::post(path).body(Body::from(body.to_string())).unwrap();
        let app = self.app();
        async move {
            let bytes = app.oneshot(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
            String::from_utf8(bytes.to_vec()).unwrap()
        }
    }

    /// Waits until the worker has this many jobs.
    pub(super) async fn submitted(&self, count: usize) {
        let mut jobs = self.mock.submissions();
        let wait = jobs.wait_for(|&jobs| jobs >= count);
        tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.unwrap().unwrap();
    }

    pub(super) async fn post_text(&self, path: &str, body: &str) -> Answer {
        let request = Request::post(path).header("content-type", "application/json");
        self.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {:?}", self.text))
    }

    pub(super) fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        self.json()
    }

    /// The events of a stream, which must end with `[DONE]`.
    pub(super) fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        assert_eq!(self.headers["content-type"], "text/event-stream");
        let mut events: Vec<&str> = self.text.split("\n\n").collect();
        assert_eq!(events.pop(), Some(""), "each event ends with an empty line");
        assert_eq!(events.pop(), Some("data: [DONE]"));
        events.into_iter().map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

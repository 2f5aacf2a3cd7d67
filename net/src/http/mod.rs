//! The API edge of a worker: HTTP/1.1 and HTTP/2 on one port, in the dialects of OpenAI and SGLang.
//!
//! Turns bodies into [`backend::Job`]s and the worker's tokens into answers. Knows nothing of scheduling or KV beyond
//! page keys, which are made here because the tokens are here.
//!
//! ```text
//!   socket ── auth ── route ── fields ── ask ──┬─ text (template, tokens)
//!                                              ├─ rooms (which half of a hand-off)
//!                                              └─ generation ── Backend::submit
//!   socket <── sse or JSON <── pieces of text <──────┘ events
//! ```
//!
//! 1. No request can stop the server: bodies have a limit, everything read from them is checked, errors name the field.
//! 2. Whoever stops waiting frees the worker at once: a dropped handler or stream drops its generations, and a dropped
//!    generation cancels itself.
//! 3. What cannot be honoured is refused by name; fields that nobody here knows are ignored.

mod admin;
mod ask;
mod auth;
pub mod backend;
pub mod error;
mod fields;
mod generation;
pub mod kv_events;
mod live;
pub mod mock;
mod native;
mod openai;
mod rooms;
mod sse;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post, put};
use axum::serve::ListenerExt;
use pd_core::id::{RequestId, Room};
use tokio::net::TcpListener;

use crate::text::Text;
use crate::text::strftime::unix_seconds;
use backend::{Backend, Info};
use error::ApiError;
use live::Live;

/// Requests that no hand-off names have this bit; rooms have 63 bits.
const OWN: u64 = 1 << 63;

/// Settings of the edge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EdgeConfig {
    /// The key that requests must carry; `None` for none.
    pub api_key: Option<String>,
    /// Most bytes of a body.
    pub body_max: usize,
    /// Deadline of each request.
    pub request_timeout: Option<Duration>,
    /// Events of `/generate` have what is new, not all there is.
    pub is_stream_incremental: bool,
}

impl Default for EdgeConfig {
    /// No key, bodies up to 64 MiB, no deadline, cumulative events.
    fn default() -> Self {
        Self { api_key: None, body_max: 64 << 20, request_timeout: None, is_stream_incremental: false }
    }
}

/// The edge of one worker.
pub struct Edge {
    backend: Arc<dyn Backend>,
    text: Arc<Text>,
    config: EdgeConfig,
    live: Arc<Live>,
    counter: AtomicU64,
    created: u64,
    started: Instant,
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edge").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Edge {
    /// The edge of `backend`, whose model's text is `text`.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, text: Arc<Text>, config: EdgeConfig) -> Arc<Self> {
        Arc::new(Self {
            backend,
            text,
            config,
            live: Arc::default(),
            counter: AtomicU64::new(0),
            created: unix_seconds(),
            started: Instant::now(),
        })
    }

    /// Sequences that are being served.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.live.count()
    }

    fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    fn info(&self) -> &Info {
        self.backend.info()
    }

    const fn text(&self) -> &Arc<Text> {
        &self.text
    }

    const fn config(&self) -> &EdgeConfig {
        &self.config
    }

    const fn live(&self) -> &Arc<Live> {
        &self.live
    }

    const fn created(&self) -> u64 {
        self.created
    }

    fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn is_model(&self, name: &str) -> bool {
        name == self.info().model || name == self.info().model_path
    }

    /// The worker's name of a request. Both halves of a hand-off make the same one, out of the room.
    fn request_id(&self, room: Option<Room>) -> RequestId {
        match room {
            Some(room) => RequestId(room.0),
            None => RequestId(OWN | u64::from(self.info().epoch) << 40 | self.next() & ((1 << 40) - 1)),
        }
    }

    /// A name that this server gives once.
    fn unique(&self) -> String {
        format!("{:08x}{:04x}{:012x}", self.created & 0xffff_ffff, self.info().epoch & 0xffff, self.next())
    }

    /// A room of a hand-off with nobody.
    fn fake_room(&self) -> Room {
        Room(self.next()).fake()
    }

    fn next(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }
}

/// All routes.
pub fn app(edge: Arc<Edge>) -> Router {
    let storage = put(admin::attach).delete(admin::detach).get(admin::storage);
    Router::new()
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*name}", get(openai::models::one))
        .route("/v1/completions", post(openai::completions::post))
        .route("/v1/chat/completions", post(openai::chat::post))
        .route("/generate", post(native::post).put(native::post))
        .route("/tokenize", post(tokens::tokenize))
        .route("/v1/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/detokenize", post(tokens::detokenize))
        .route("/health", get(admin::health))
        .route("/health_generate", get(admin::health_generate))
        .route("/ready", get(admin::ready))
        .route("/model_info", get(admin::model_info))
        .route("/get_model_info", get(admin::model_info))
        .route("/server_info", get(admin::server_info))
        .route("/get_server_info", get(admin::server_info))
        .route("/get_load", get(admin::get_load))
        .route("/loads", get(admin::loads))
        .route("/v1/loads", get(admin::loads))
        .route("/metrics", get(admin::metrics))
        .route("/kv_events", get(kv_events::get))
        .route("/flush_cache", get(admin::flush_cache).post(admin::flush_cache))
        .route("/abort_request", post(admin::abort))
        .route("/clear_hicache_storage_backend", get(admin::clear_storage).post(admin::clear_storage))
        .route("/hicache/storage-backend", storage)
        .route("/hicache/storage-backend/clear", post(admin::clear_storage))
        .route("/", get(admin::page))
        .route("/status.json", get(admin::status))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&edge), auth::check))
        .with_state(edge)
}

async fn unknown(State(_): State<Arc<Edge>>, method: Method, uri: Uri) -> ApiError {
    let message = format!(
        "there is no {method} {}; see /v1/models, /v1/chat/completions, /v1/completions, /generate",
        uri.path()
    );
    ApiError::new(StatusCode::NOT_FOUND, "unknown_path", message)
}

async fn wrong_method(State(_): State<Arc<Edge>>, method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}; the header allow says what it takes", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Serves until `shutdown` resolves, then until the requests in flight are answered.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    edge: Arc<Edge>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    // Tokens are small writes; without this each would wait for the acknowledgement of the one before it.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's algorithm");
        }
    });
    axum::serve(listener, app(edge)).with_graceful_shutdown(shutdown).await
}

#[cfg(test)]
mod tests;

//! Where a decode worker learns which prefill worker a request means: an HTTP server on the prefill side (port 8998).
//!
//! Two families of routes. SGLang's, so that its routers and tools find what they look for: `PUT|GET /route`,
//! `POST /register_dp_rank`, `POST /query_dp_ranks`, `GET /health`; see [`sglang`]. And ours, under `/pd/`:
//!
//! | route | answer |
//! |---|---|
//! | `POST /pd/register` [`Announcement`] | [`Lease`]: until when, as milliseconds from now; 409 for another KV or an old life |
//! | `POST /pd/renew` `{worker, epoch}` | [`Lease`]; 404 if it has ended: register again |
//! | `POST /pd/leave` `{worker, epoch}` | `{left}` |
//! | `GET /pd/self` | the [`Announcement`] of the worker that this server belongs to; 503 until it has registered |
//! | `GET /pd/workers/{id}` | that of any worker; 404 |
//! | `GET /pd/workers?mode=prefill` | a list; 503 until all that are expected are there |
//!
//! A request names its prefill worker by `bootstrap_host` and `bootstrap_port`: `/pd/self` at that address is the way from
//! there to the worker's id, life, and addresses ([`client::Client::resolve`]). Registrations are leases of
//! [`pd_core::transfer::registry`], told apart by life; geometry is compared when a worker joins. No time of another
//! machine is ever compared: answers say how long from now.

pub mod client;
pub mod sglang;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use pd_core::config::Mode;
use pd_core::id::{Epoch, PageKey, WorkerId};
use pd_core::message::Layout;
use pd_core::transfer::registry::{Registration, Registry, RegistryConfig, RegistryError};
use serde::{Deserialize, Serialize};

use sglang::Routes;

/// The port that SGLang's users expect it on.
pub const PORT: u16 = 8998;
/// Most bytes of a request.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What a worker says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Its name.
    pub worker: WorkerId,
    /// Its life.
    pub epoch: Epoch,
    /// What it serves.
    pub mode: Mode,
    /// Its base namespace, as 32 hexadecimal digits.
    pub root: String,
    /// How its KV is cut.
    pub layout: Layout,
    /// Host and port of its control connections, as peers reach it.
    pub control: String,
    /// Host and port where its pages are pushed to.
    pub wire: String,
}

/// A name and a life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    /// Which worker.
    pub worker: WorkerId,
    /// In which life.
    pub epoch: Epoch,
}

/// How long a registration lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// Milliseconds from now.
    pub lease_ms: u64,
}

/// What a bootstrap server is told at its start.
#[derive(Clone, Debug)]
pub struct BootstrapConfig {
    /// Where to listen.
    pub listen: String,
    /// The worker that it belongs to.
    pub worker: WorkerId,
    /// What writers have to show as bearer token; `None` to let everybody write, for a network that is closed.
    pub token: Option<String>,
    /// The leases.
    pub registry: RegistryConfig,
    /// Most rooms whose rank is remembered, and for how long.
    pub rooms_max: usize,
    /// See [`BootstrapConfig::rooms_max`].
    pub room_lifetime: Duration,
}

impl BootstrapConfig {
    /// Port 8998 of the loopback device, SGLang's 120 s for rooms.
    #[must_use]
    pub fn new(worker: WorkerId) -> Self {
        Self {
            listen: format!("127.0.0.1:{PORT}"),
            worker,
            token: None,
            registry: RegistryConfig::default(),
            rooms_max: 100_000,
            room_lifetime: Duration::from_secs(120),
        }
    }
}

/// A server that runs until it is dropped, or stopped.
#[derive(Debug)]
pub struct Bootstrap {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
    /// Dropped to end it.
    _running: tokio::sync::oneshot::Sender<()>,
}

impl Bootstrap {
    /// Binds and serves.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn start(config: BootstrapConfig) -> io::Result<Self> {
        let listener = tokio::net::TcpListener::bind(&config.listen).await?;
        let address = listener.local_addr()?;
        if !address.ip().is_loopback() && config.token.is_none() {
            tracing::warn!(%address, "whoever reaches this address can register workers: set a token");
        }
        let app = app(config);
        let (running, dropped) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let server = axum::serve(listener, app).with_graceful_shutdown(async move {
                let _ = dropped.await;
            });
            if let Err(error) = server.await {
                tracing::error!(%error, "the bootstrap server ended");
            }
        });
        Ok(Self { address, task, _running: running })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it, and waits until requests at work are answered and its address is free.
    pub async fn stop(self) {
        let Self { task, _running, .. } = self;
        drop(_running);
        let _ = task.await;
    }
}

/// What the handlers share.
struct Shared {
    config: BootstrapConfig,
    registry: Mutex<Registry>,
    routes: Mutex<Routes>,
    start: Instant,
}

impl Shared {
    fn now(&self) -> pd_core::time::Instant {
        pd_core::time::Instant::ZERO + self.start.elapsed()
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses writers that do not show the token.
    fn authorize(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(token) = &self.config.token else { return Ok(()) };
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        // Hashes of equal length, so that the time says nothing about the token.
        let is_it = shown.is_some_and(|shown| digest(shown) == digest(token.as_bytes()));
        if is_it {
            Ok(())
        } else {
            Err(Refusal(StatusCode::UNAUTHORIZED, "a bearer token is required to write".into()))
        }
    }

    fn lease(&self, until: pd_core::time::Instant) -> Json<Lease> {
        let rest = until - self.now();
        Json(Lease { lease_ms: u64::try_from(rest.as_millis()).unwrap_or(u64::MAX) })
    }
}

fn digest(bytes: &[u8]) -> PageKey {
    let tokens: Vec<_> = bytes.iter().map(|byte| pd_core::id::Token(u32::from(*byte))).collect();
    pd_core::key::page_key(PageKey(0), &tokens)
}

/// Why a request was refused, in words.
pub(crate) struct Refusal(pub(crate) StatusCode, pub(crate) String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        Self(StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error.to_string())
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

fn app(config: BootstrapConfig) -> Router {
    let shared = Shared {
        registry: Mutex::new(Registry::new(config.registry.clone())),
        routes: Mutex::new(Routes::new(config.rooms_max, config.room_lifetime)),
        start: Instant::now(),
        config,
    };
    Router::new()
        .route("/health", get(|| async { "OK" }))
        .route("/route", any(sglang::route))
        .route("/register_dp_rank", post(sglang::register_dp_rank))
        .route("/query_dp_ranks", post(sglang::query_dp_ranks))
        .route("/pd/register", post(register))
        .route("/pd/renew", post(renew))
        .route("/pd/leave", post(leave))
        .route("/pd/self", get(itself))
        .route("/pd/workers", get(workers))
        .route("/pd/workers/{id}", get(worker))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::new(shared))
}

type Body<T> = Result<Json<T>, JsonRejection>;

async fn register(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body<Announcement>,
) -> Result<Json<Lease>, Refusal> {
    shared.authorize(&headers)?;
    let registration = registration(body?.0)?;
    let until = shared.registry().register(shared.now(), registration)?;
    Ok(shared.lease(until))
}

async fn renew(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body<Name>,
) -> Result<Json<Lease>, Refusal> {
    shared.authorize(&headers)?;
    let name = body?.0;
    let until = shared.registry().renew(shared.now(), name.worker, name.epoch)?;
    Ok(shared.lease(until))
}

async fn leave(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body<Name>) -> Result<Response, Refusal> {
    shared.authorize(&headers)?;
    let name = body?.0;
    let left = shared.registry().leave(name.worker, name.epoch);
    Ok(Json(serde_json::json!({ "left": left })).into_response())
}

async fn itself(State(shared): State<Arc<Shared>>) -> Result<Json<Announcement>, Refusal> {
    let registry = shared.registry();
    let found = registry.find(shared.now(), shared.config.worker);
    let missing =
        |_| Refusal(StatusCode::SERVICE_UNAVAILABLE, "the worker of this server has not registered yet".into());
    Ok(Json(announcement(found.map_err(missing)?)))
}

async fn worker(State(shared): State<Arc<Shared>>, Path(id): Path<u32>) -> Result<Json<Announcement>, Refusal> {
    Ok(Json(announcement(shared.registry().find(shared.now(), WorkerId(id))?)))
}

#[derive(Deserialize)]
struct Which {
    mode: Mode,
}

async fn workers(
    State(shared): State<Arc<Shared>>,
    Query(which): Query<Which>,
) -> Result<Json<Vec<Announcement>>, Refusal> {
    let registry = shared.registry();
    Ok(Json(registry.discover(shared.now(), which.mode)?.map(announcement).collect()))
}

/// Both addresses travel as the one endpoint of the machine, with a space between.
fn registration(it: Announcement) -> Result<Registration, Refusal> {
    let bad = |what: &str| Refusal(StatusCode::BAD_REQUEST, what.into());
    for address in [&it.control, &it.wire] {
        let port = address
            .rsplit_once(':')
            .and_then(|(host, port)| Some(port.parse::<u16>().ok()?).filter(|_| !host.is_empty()));
        if port.is_none_or(|port| port == 0) || address.contains(char::is_whitespace) {
            return Err(bad("`control` and `wire` are host:port, with a port from 1 to 65535"));
        }
    }
    let root = u128::from_str_radix(&it.root, 16).map_err(|_| bad("`root` has up to 32 hexadecimal digits"))?;
    let endpoint = format!("{} {}", it.control, it.wire);
    let (worker, epoch, mode, layout) = (it.worker, it.epoch, it.mode, it.layout);
    Ok(Registration { worker, epoch, mode, root: PageKey(root), layout, endpoint })
}

fn announcement(it: &Registration) -> Announcement {
    let (control, wire) = it.endpoint.split_once(' ').unwrap_or((&it.endpoint, ""));
    Announcement {
        worker: it.worker,
        epoch: it.epoch,
        mode: it.mode,
        root: it.root.to_string(),
        layout: it.layout.clone(),
        control: control.into(),
        wire: wire.into(),
    }
}

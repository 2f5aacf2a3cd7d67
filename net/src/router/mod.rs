//! `pd router`: one address in front of prefill, decode and unified workers.
//!
//! Speaks SGLang's hand-off contract: the same request goes to a prefill and a decode worker at the same time, with
//! `bootstrap_host`, `bootstrap_port` and `bootstrap_room` added, and the decode worker's answer goes to the client.
//! All decisions (placement, retries, breakers) are those of [`pd_core::router::Router`], which the simulator drives,
//! too; this module is its shell.
//!
//! ```text
//! admin, health ──> members ──┐
//! client ──> proxy ── body ── brain (Pump<Router>) ── leg (prefill, decode) ──> tail ──> client
//! ```
//! Invariants:
//! 1. No hop buffers a stream. Bytes of the decode worker pass in the chunks in which they come; the exceptions are
//!    answers into which the prompt's log-probabilities have to be merged.
//! 2. Nothing is tried again after the first byte of an answer has gone out.
//! 3. What the router does not understand of a request reaches the worker unchanged; see `body`.
//! 4. A client that goes away takes its legs with it: connections are dropped and workers told (`/abort_request`).
//! 5. A refusal is JSON, names what is missing, and 429 stays 429 with its `Retry-After`.

mod admin;
mod body;
mod brain;
mod config;
mod discover;
mod errors;
mod health;
mod keys;
mod leg;
mod listen;
mod logprobs;
mod members;
mod metrics;
mod proxy;
mod tail;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use hyper::{Method, StatusCode, Uri, header};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use pd_core::cost::Cost;
use pd_core::event::KvChange;
use pd_core::id::PageKey;
use pd_core::pump::{Step, Tap};
use pd_core::router::{Router, RouterInput};
use pd_core::time::Instant;

pub use config::{Measured, RouterConfig, RouterConfigError};
pub use discover::DiscoveryError;
pub use keys::{Keyed, Keyer, PromptContent, PromptView, TextKeyer};

use brain::{Abort, Brain};
use config::{LIVES, draw};
use errors::Refusal;
use members::{Members, Origin};
use metrics::Metrics;

use crate::client::{Pool, pool};

/// Why a router does not serve.
#[derive(Debug, Error)]
pub enum RouterError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] RouterConfigError),
    /// The list of workers cannot be read at the start.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// The listener failed.
    #[error("the listener failed: {0}")]
    Listener(#[from] std::io::Error),
}

/// What a caller may bring along.
#[derive(Debug)]
pub struct RouterHooks {
    /// Makes page keys of prompts.
    pub keyer: Arc<dyn Keyer>,
    /// What the machine believes that things cost.
    pub cost: Cost,
    /// Sees what the machine is told.
    pub tap: Option<Box<dyn RouterTap>>,
    /// What workers say of their caches. Only of use with a keyer whose keys are those of the workers.
    pub changes: Option<mpsc::Receiver<WorkerChanges>>,
}

/// Watches the machine of a router; must not block for long, because decisions wait for it.
pub trait RouterTap: Tap<Router> + fmt::Debug + Send {
    /// Called between steps, every now and then.
    fn rest(&mut self);

    /// The router has ended.
    fn finish(self: Box<Self>, at: Instant);
}

impl Tap<Router> for Box<dyn RouterTap> {
    fn before(&mut self, at: Instant, input: &RouterInput) {
        (**self).before(at, input);
    }

    fn after(&mut self, machine: &Router, step: Step) {
        (**self).after(machine, step);
    }
}

/// Changes in the cache of the worker at an address.
#[derive(Clone, Debug)]
pub struct WorkerChanges {
    /// Its address, as `/workers` shows it.
    pub url: String,
    /// What changed, in order.
    pub changes: Vec<KvChange>,
}

impl Default for RouterHooks {
    /// Keys of text, and an 8B model on one H100: 2 ms and 40 µs per token of a prompt, 12 ms per step.
    fn default() -> Self {
        let cost = Cost::fixed(2_000_000, 40_000, 12_000_000, 1 << 30);
        Self { keyer: Arc::new(TextKeyer), cost, tap: None, changes: None }
    }
}

/// How a router ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drained {
    /// Answers that were cut off because the grace period was over.
    pub cut: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    Serving,
    Draining,
    Cut,
}

#[derive(Debug)]
struct App {
    config: RouterConfig,
    members: Members,
    brain: Arc<Brain>,
    pool: Pool,
    metrics: Metrics,
    keyer: Arc<dyn Keyer>,
    /// What page keys of workers are chained from, where that is known.
    root: RwLock<Option<PageKey>>,
    stage: watch::Sender<Stage>,
    tasks: Mutex<JoinSet<()>>,
    ids: AtomicU64,
    ids_salt: u64,
}

/// Serves until `shutdown` is over and the running answers are, or their grace period is.
///
/// # Errors
/// If the configuration or the first look at the discovery file fails, or the listener does.
pub async fn serve(
    config: RouterConfig,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Drained, RouterError> {
    serve_with(config, RouterHooks::default(), listener, shutdown).await
}

/// The same, with a keyer, costs and cache events of the caller's.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(
    config: RouterConfig,
    mut hooks: RouterHooks,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Drained, RouterError> {
    config.check()?;
    let config = config.with_life();
    let (aborts, aborted) = mpsc::unbounded_channel();
    let app = Arc::new(App::new(config, &mut hooks, aborts)?);
    let _guard = StopOnDrop(Arc::clone(&app));
    app.start(aborted, hooks.changes).await?;

    let grace = config::secs(app.config.shutdown_grace_period_secs);
    let mut stage = app.stage.subscribe();
    let draining = async move {
        // The sender lives as long as the app.
        let _ = stage.wait_for(|stage| *stage >= Stage::Draining).await;
        tokio::time::sleep(grace).await;
    };
    let signal = Arc::clone(&app);
    let listener = listener.tap_io(|stream| {
        // Without it small events wait for the acknowledgement of those before them.
        let _ = stream.set_nodelay(true);
    });
    let server = axum::serve(listener, routes(&app)).with_graceful_shutdown(async move {
        shutdown.await;
        signal.stage.send_replace(Stage::Draining);
        tracing::info!(running = signal.brain.live(), "shutting down: no new requests, running ones may finish");
    });
    let mut server = std::pin::pin!(server.into_future());
    let cut = tokio::select! {
        done = &mut server => {
            done?;
            0
        }
        () = draining => {
            let cut = app.brain.live();
            app.stage.send_replace(Stage::Cut);
            // The answers' last events have to get out.
            let _ = tokio::time::timeout(LAST_WORDS, &mut server).await;
            cut
        }
    };
    app.brain.end_tap();
    Ok(Drained { cut })
}

/// Returns once a router has workers to route to (`GET /readiness`).
pub async fn ready(router: SocketAddr) {
    let pool = pool(READY_TIMEOUT, 1);
    let target = Uri::try_from(format!("http://{router}/readiness")).expect("an address makes a URL");
    loop {
        let asked = tokio::time::timeout(READY_TIMEOUT, pool.get(target.clone())).await;
        if matches!(asked, Ok(Ok(answer)) if answer.status().is_success()) {
            return;
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
}

impl App {
    fn new(
        config: RouterConfig,
        hooks: &mut RouterHooks,
        aborts: mpsc::UnboundedSender<Abort>,
    ) -> Result<Self, RouterConfigError> {
        let settings = config.machine();
        let room_epoch = (u64::from(settings.epoch.0) + 1 + draw() % (LIVES - 1)) % LIVES;
        let machine = Router::new(settings, hooks.cost.clone()).map_err(|error| RouterConfigError {
            key: error.key(),
            value: "out of range".into(),
            must: error.to_string(),
        })?;
        Ok(Self {
            members: Members::default(),
            brain: Arc::new(Brain::new(machine, hooks.tap.take(), room_epoch as u32, aborts)),
            pool: pool(config::secs(config.connect_timeout_secs), POOL_IDLE_MAX),
            metrics: Metrics::default(),
            keyer: Arc::clone(&hooks.keyer),
            root: RwLock::new(None),
            stage: watch::Sender::new(Stage::Serving),
            tasks: Mutex::new(JoinSet::new()),
            ids: AtomicU64::new(0),
            ids_salt: draw(),
            config,
        })
    }

    async fn start(
        self: &Arc<Self>,
        mut aborted: mpsc::UnboundedReceiver<Abort>,
        changes: Option<mpsc::Receiver<WorkerChanges>>,
    ) -> Result<(), RouterError> {
        let brain = Arc::clone(&self.brain);
        self.spawn(async move { brain.tick().await });
        let brain = Arc::clone(&self.brain);
        self.spawn(async move { brain.rest_tap(TAP_REST).await });
        let app = Arc::clone(self);
        self.spawn(async move {
            while let Some(abort) = aborted.recv().await {
                let worker = Arc::clone(&app);
                app.spawn(async move { worker.abort(abort).await });
            }
        });
        if let Some(mut changes) = changes {
            let app = Arc::clone(self);
            self.spawn(async move {
                while let Some(WorkerChanges { url, changes }) = changes.recv().await {
                    if let Some(member) = app.members.by_url(&url) {
                        app.brain.feed(RouterInput::Changes { worker: member.id, changes });
                    }
                }
            });
        }
        for spec in self.config.workers()? {
            // The configuration was checked for doubles.
            let _ = self.add_worker(spec, Origin::Config);
        }
        if let Some(path) = self.config.discovery_file.clone() {
            let mut watch = discover::Watch::new(path);
            if let Some(list) = watch.look().await? {
                self.take_list(list);
            }
            let app = Arc::clone(self);
            self.spawn(async move {
                loop {
                    tokio::time::sleep(config::secs(app.config.discovery_interval_secs)).await;
                    match watch.look().await {
                        Ok(Some(list)) => app.take_list(list),
                        Ok(None) => {}
                        Err(error) => {
                            app.metrics.count("pd_router_discovery_errors_total", &[]);
                            tracing::warn!("{error}; the workers stay as they were");
                        }
                    }
                }
            });
        }
        Ok(())
    }

    /// Runs a task that ends with the router.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task)
    }

    /// Tells a worker that nobody waits for an answer. That it does not know the path, or the name, is no matter.
    async fn abort(&self, abort: Abort) {
        let Some(member) = self.members.find(abort.worker) else { return };
        let body = format!("{{\"rid\":{}}}", body::quote(&abort.rid));
        if let Err(why) = self.ask(&member, Method::POST, "/abort_request", body.into()).await {
            tracing::debug!(worker = %member.spec.target, "a worker was not told to abort: {why}");
        }
    }

    fn next_id(&self) -> String {
        let count = self.ids.fetch_add(1, Ordering::Relaxed);
        format!("{:08x}{count:08x}", self.ids_salt as u32)
    }
}

/// Ends the tasks of a router whose future is over, or was dropped.
struct StopOnDrop(Arc<App>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stage.send_replace(Stage::Cut);
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

fn routes(app: &Arc<App>) -> axum::Router {
    let generating = post(proxy::generate).put(proxy::generate);
    let mut routes = axum::Router::new()
        .route("/health", get(admin::health))
        .route("/liveness", get(admin::health))
        .route("/health_generate", get(admin::readiness))
        .route("/readiness", get(admin::readiness))
        .route("/ready", get(admin::readiness))
        .route("/metrics", get(admin::metrics))
        .route("/v1/models", get(admin::models))
        .route("/workers", get(admin::list_workers).post(admin::add_worker))
        .route("/workers/{id}", get(admin::show_worker).delete(admin::remove_worker))
        .route("/get_server_info", get(admin::server_info))
        .route("/server_info", get(admin::server_info))
        .route("/get_loads", get(admin::loads))
        .route("/flush_cache", get(admin::fan_out).post(admin::fan_out))
        .route("/abort_request", post(admin::fan_out));
    for path in GENERATING {
        routes = routes.route(path, generating.clone());
    }
    for path in FORWARDED {
        routes = routes.route(path, get(admin::forward).post(admin::forward));
    }
    routes
        .fallback(admin::unknown)
        .layer(from_fn_with_state(Arc::clone(app), around))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(Arc::clone(app))
}

/// Counts what comes and goes, and asks for the key.
async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = tokio::time::Instant::now();
    let path = label(request.uri().path());
    app.metrics.count("smg_http_requests_total", &[("method", request.method().as_str()), ("path", path)]);
    let is_open = OPEN.contains(&path);
    let response = match &app.config.api_key {
        Some(key) if !is_open && !has_key(&request, key) => Refusal::new(
            StatusCode::UNAUTHORIZED,
            "invalid_api_key",
            "the key is missing or wrong; send it as Authorization: Bearer KEY",
        )
        .response(),
        Some(_) | None => next.run(request).await,
    };
    app.metrics.count("smg_http_responses_total", &[("status_code", response.status().as_str())]);
    app.metrics.observe("smg_http_request_duration_seconds", &[("path", path)], started.elapsed());
    response
}

/// Compares in a time that says nothing of where they differ.
fn has_key(request: &Request, key: &str) -> bool {
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = bearer
        .and_then(|value| value.strip_prefix("Bearer "))
        .or_else(|| request.headers().get("x-api-key").and_then(|value| value.to_str().ok()));
    let given = given.unwrap_or("").as_bytes();
    let differing = given.iter().zip(key.as_bytes()).fold(0, |differing, (one, other)| differing | (one ^ other));
    given.len() == key.len() && differing == 0
}

/// A path as metrics name it: clients must not make series.
fn label(path: &str) -> &'static str {
    let known = GENERATING.iter().chain(&FORWARDED).chain(&OPEN).chain(&OWN);
    known.copied().find(|known| *known == path).unwrap_or(if path.starts_with("/workers/") {
        "/workers/{id}"
    } else {
        "other"
    })
}

/// Paths of requests for text.
const GENERATING: [&str; 5] = ["/v1/chat/completions", "/v1/completions", "/generate", "/v1/responses", "/v1/messages"];
/// Further paths of the router itself.
const OWN: [&str; 8] = [
    "/v1/models",
    "/workers",
    "/health_generate",
    "/get_server_info",
    "/server_info",
    "/get_loads",
    "/flush_cache",
    "/abort_request",
];
/// Paths that are passed to one worker.
const FORWARDED: [&str; 14] = [
    "/tokenize",
    "/detokenize",
    "/v1/tokenize",
    "/v1/detokenize",
    "/tokenizer_info",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/v1/classify",
    "/classify",
    "/model_info",
    "/get_model_info",
    "/version",
];
/// Paths that need no key: probes and scrapers have none.
const OPEN: [&str; 5] = ["/health", "/liveness", "/readiness", "/ready", "/metrics"];
/// Longest time for which a tap hears of no rest.
const TAP_REST: Duration = Duration::from_millis(200);
const POOL_IDLE_MAX: usize = 1024;
const LAST_WORDS: Duration = Duration::from_secs(5);
const READY_TIMEOUT: Duration = Duration::from_secs(1);
const READY_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;

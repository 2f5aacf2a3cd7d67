//! A router over mock workers, all in one process on loopback.

mod admin;
mod drain;
mod faults;
mod files;
mod input;
mod stream;
mod traffic;

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::*;

/// What a mock worker does with requests for text.
#[derive(Clone, Debug)]
enum Behave {
    /// Answers at once: JSON, or three events.
    Well,
    /// Answers with this.
    Say(u16, &'static str),
    /// Sends so many events of a stream, and cuts the connection.
    CutAfter(usize),
    /// Sends so many events; each one after the first, and the end, wait for the gate.
    Gated,
    /// Never answers.
    Silent,
}

#[derive(Clone, Debug)]
struct Seen {
    path: String,
    headers: HeaderMap,
    body: String,
}

impl Seen {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("a worker gets JSON")
    }
}

#[derive(Debug)]
struct Shared {
    name: &'static str,
    /// Taken first to last; the last one stays.
    plan: Mutex<Vec<Behave>>,
    answer: Mutex<Value>,
    info: Mutex<Value>,
    health: AtomicU16,
    /// Paths of another version, which answer 404.
    lacks: Mutex<Vec<&'static str>>,
    seen: Mutex<Vec<Seen>>,
    gate: Notify,
    /// Told when an answer is dropped before its end.
    dropped: mpsc::UnboundedSender<()>,
    changed: Notify,
}

#[derive(Debug)]
struct Mock {
    url: String,
    shared: Arc<Shared>,
    dropped: mpsc::UnboundedReceiver<()>,
    task: JoinHandle<()>,
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct OnDrop(Option<mpsc::UnboundedSender<()>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            let _ = tell.send(());
        }
    }
}

impl Mock {
    async fn start(name: &'static str, plan: Vec<Behave>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (tell, dropped) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            name,
            plan: Mutex::new(plan),
            answer: Mutex::new(json!({"id": name, "choices": [{"index": 0, "text": "hi"}]})),
            info: Mutex::new(json!({"served_model_name": "tiny", "max_total_num_tokens": 4096, "loads": []})),
            health: AtomicU16::new(200),
            lacks: Mutex::default(),
            seen: Mutex::new(Vec::new()),
            gate: Notify::new(),
            dropped: tell,
            changed: Notify::new(),
        });
        let routes = axum::Router::new().fallback(mock).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.expect("serves") });
        Self { url, shared, dropped, task }
    }

    async fn well(name: &'static str) -> Self {
        Self::start(name, vec![Behave::Well]).await
    }

    /// Requests for text so far.
    fn asked(&self) -> Vec<Seen> {
        self.on(|path| GENERATING.contains(&path))
    }

    fn on(&self, wanted: impl Fn(&str) -> bool) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().iter().filter(|seen| wanted(&seen.path)).cloned().collect()
    }

    /// Waits until so many requests to such paths are there.
    async fn until(&self, path: &str, count: usize) -> Vec<Seen> {
        within(async {
            loop {
                let changed = self.shared.changed.notified();
                let seen = self.on(|other| other == path);
                if seen.len() >= count {
                    return seen;
                }
                changed.await;
            }
        })
        .await
    }
}

async fn mock(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path = head.uri.path().to_owned();
    let body = String::from_utf8_lossy(&body).into_owned();
    let is_stream = serde_json::from_str::<Value>(&body).is_ok_and(|body| body["stream"] == true);
    shared.seen.lock().unwrap().push(Seen { path: path.clone(), headers: head.headers, body });
    shared.changed.notify_waiters();
    if shared.lacks.lock().unwrap().contains(&path.as_str()) {
        return plain(404, String::new());
    }
    match path.as_str() {
        "/health" => plain(shared.health.load(Ordering::Relaxed), String::new()),
        "/server_info" | "/model_info" => plain(200, shared.info.lock().unwrap().to_string()),
        "/v1/loads" => plain(200, json!({"loads": shared.info.lock().unwrap()["loads"]}).to_string()),
        "/v1/models" => plain(200, json!({"data": [{"id": "tiny", "max_model_len": 512}]}).to_string()),
        "/flush_cache" | "/abort_request" => plain(200, String::new()),
        "/tokenize" => plain(200, json!({"count": 1}).to_string()),
        path if GENERATING.contains(&path) => {
            let behave = {
                let mut plan = shared.plan.lock().unwrap();
                if plan.len() > 1 { plan.remove(0) } else { plan[0].clone() }
            };
            act(&shared, behave, is_stream).await
        }
        _ => plain(404, String::new()),
    }
}

async fn act(shared: &Arc<Shared>, behave: Behave, is_stream: bool) -> Response {
    let mut watch = OnDrop(Some(shared.dropped.clone()));
    let event = |index: usize| Bytes::from(format!("data: {{\"w\":\"{}\",\"i\":{index}}}\n\n", shared.name));
    match behave {
        Behave::Silent => std::future::pending().await,
        Behave::Say(status, text) => {
            watch.0 = None;
            plain(status, text.to_owned())
        }
        Behave::Well if !is_stream => {
            watch.0 = None;
            plain(200, shared.answer.lock().unwrap().to_string())
        }
        Behave::Well => {
            watch.0 = None;
            let events: Vec<_> =
                (0..3).map(event).chain([Bytes::from("data: [DONE]\n\n")]).map(Ok::<_, String>).collect();
            sse(Body::from_stream(futures_util::stream::iter(events)), is_stream)
        }
        Behave::CutAfter(count) => {
            watch.0 = None;
            let events: Vec<Bytes> = (0..count).map(event).collect();
            let events = futures_util::stream::unfold(events.into_iter(), |mut events| async move {
                match events.next() {
                    Some(event) => Some((Ok(event), events)),
                    None => {
                        // Lets the connection write what it has; an error at once would throw that away.
                        tokio::time::sleep(Duration::from_millis(30)).await;
                        Some((Err("cut".to_owned()), events))
                    }
                }
            });
            sse(Body::from_stream(events), is_stream)
        }
        Behave::Gated => {
            let shared = Arc::clone(shared);
            let events = futures_util::stream::unfold((0, watch), move |(index, mut watch)| {
                let shared = Arc::clone(&shared);
                async move {
                    if index > 0 {
                        shared.gate.notified().await;
                    }
                    if index == 3 {
                        watch.0.take();
                        return None;
                    }
                    let bytes = Bytes::from(format!("data: {{\"w\":\"{}\",\"i\":{index}}}\n\n", shared.name));
                    Some((Ok::<_, String>(bytes), (index + 1, watch)))
                }
            });
            sse(Body::from_stream(events), is_stream)
        }
    }
}

fn plain(status: u16, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    let headers = response.headers_mut();
    headers.insert("content-type", "application/json".parse().expect("valid"));
    headers.insert("x-mock", "yes".parse().expect("valid"));
    if status == 429 {
        headers.insert("retry-after", "7".parse().expect("valid"));
    }
    response
}

fn sse(body: Body, is_stream: bool) -> Response {
    let mut response = Response::new(body);
    let kind = if is_stream { "text/event-stream" } else { "application/json" };
    response.headers_mut().insert("content-type", kind.parse().expect("valid"));
    response
}

/// A router that serves.
struct Served {
    url: String,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<Result<Drained, RouterError>>,
    pool: Pool,
}

struct Got {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

fn quick() -> RouterConfig {
    RouterConfig {
        health_check_interval_secs: 0.02,
        worker_startup_check_interval_secs: 0.02,
        discovery_interval_secs: 0.02,
        health_success_threshold: 1,
        retry_initial_backoff_ms: 1,
        retry_max_retries: 2,
        load_monitor_interval_secs: 0.0,
        policy: pd_core::router::Policy::RoundRobin,
        ..RouterConfig::default()
    }
}

fn pair(prefill: &Mock, decode: &Mock) -> RouterConfig {
    RouterConfig { prefill: vec![format!("{} 8998", prefill.url)], decode: vec![decode.url.clone()], ..quick() }
}

impl Served {
    async fn start(config: RouterConfig) -> Self {
        Self::start_with(config, RouterHooks::default()).await
    }

    async fn start_with(config: RouterConfig, hooks: RouterHooks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (stop, stopped) = oneshot::channel::<()>();
        let done = tokio::spawn(serve_with(config, hooks, listener, async {
            let _ = stopped.await;
        }));
        Self { url, stop: Some(stop), done, pool: pool(Duration::from_secs(5), 8) }
    }

    /// Starts, and waits until so many workers are up.
    async fn ready(config: RouterConfig, workers: u64) -> Self {
        let served = Self::start(config).await;
        served.until_up(workers).await;
        served
    }

    async fn until_up(&self, workers: u64) {
        within(async {
            while self.get("/readiness").await.json()["healthy_workers"] != workers {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    async fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> hyper::Response<Incoming> {
        let mut request = hyper::Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).expect("valid");
        within(self.pool.request(request)).await.expect("the router answers")
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Got {
        let response = self.open(method, path, headers, body).await;
        let (head, body) = response.into_parts();
        let body = within(body.collect()).await.expect("the whole answer").to_bytes();
        Got { status: head.status.as_u16(), headers: head.headers, body: String::from_utf8_lossy(&body).into_owned() }
    }

    async fn get(&self, path: &str) -> Got {
        self.send("GET", path, &[], "").await
    }

    async fn post(&self, path: &str, body: &Value) -> Got {
        self.send("POST", path, &[("content-type", "application/json")], &body.to_string()).await
    }
}

/// Long enough for the slowest machine; a test that hangs fails.
async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.expect("it takes no half minute")
}

fn chat() -> Value {
    json!({"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4})
}

fn streamed(mut body: Value) -> Value {
    body["stream"] = json!(true);
    body
}

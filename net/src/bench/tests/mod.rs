//! The load generator against mock servers with known delays.

mod input;
mod plans;
mod results;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

/// What a mock server sends for a request.
#[derive(Clone, Debug)]
struct Script {
    status: u16,
    /// Each after its pause in milliseconds.
    chunks: Vec<(u64, String)>,
    /// The connection breaks at the end.
    is_cut: bool,
}

#[derive(Debug)]
struct Mock {
    url: String,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
    task: JoinHandle<()>,
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Plan = Arc<dyn Fn(usize, &Value) -> Script + Send + Sync>;

#[derive(Clone)]
struct Shared {
    plan: Plan,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Mock {
    async fn start(plan: impl Fn(usize, &Value) -> Script + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = Shared { plan: Arc::new(plan), seen: Arc::clone(&seen) };
        let routes = axum::Router::new().fallback(answer).with_state(shared);
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.expect("serves") });
        Self { url, seen, task }
    }

    fn bodies(&self) -> Vec<Value> {
        self.seen.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    match head.uri.path() {
        "/v1/models" => return Response::new(Body::from(json!({"data": [{"id": "tiny"}]}).to_string())),
        "/server_info" => return Response::new(Body::from(json!({"version": "1"}).to_string())),
        _ => {}
    }
    let body = body.collect().await.expect("whole").to_bytes();
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    let index = {
        let mut seen = shared.seen.lock().unwrap();
        seen.push((head.uri.path().to_owned(), body.clone()));
        seen.len() - 1
    };
    let Script { status, chunks, is_cut } = (shared.plan)(index, &body);
    let chunks = VecDeque::from(chunks);
    let stream = futures_util::stream::unfold((chunks, is_cut), |(mut chunks, is_cut)| async move {
        match chunks.pop_front() {
            Some((pause, text)) => {
                if pause > 0 {
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                Some((Ok::<_, String>(Bytes::from(text)), (chunks, is_cut)))
            }
            None if is_cut => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Err("cut".to_owned()), (chunks, is_cut)))
            }
            None => None,
        }
    });
    let mut response = Response::new(Body::from_stream(stream));
    *response.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
    response
}

fn text_event(text: &str) -> String {
    format!("data: {}\n\n", json!({"choices": [{"index": 0, "text": text}]}))
}

fn usage_event(prompt: u32, output: u32, cached: u32) -> String {
    let usage = json!({
        "prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached},
    });
    format!("data: {}\n\n", json!({"choices": [], "usage": usage}))
}

/// A completion of `tokens` chunks: the first after `first` ms, the others `gap` ms apart.
fn completion(first: u64, gap: u64, tokens: u32) -> Script {
    let mut chunks: Vec<(u64, String)> =
        (0..tokens).map(|index| (if index == 0 { first } else { gap }, text_event(" x"))).collect();
    chunks.push((0, usage_event(10, tokens, 4)));
    chunks.push((0, "data: [DONE]\n\n".into()));
    Script { status: 200, chunks, is_cut: false }
}

fn quick(mock: &Mock) -> BenchConfig {
    BenchConfig {
        base_url: mock.url.clone(),
        num_prompts: 8,
        random_input_len: 16,
        random_output_len: 4,
        warmup_requests: 0,
        request_timeout_secs: 30.0,
        ..BenchConfig::default()
    }
}

async fn measure(config: BenchConfig) -> BenchReport {
    run(config, BenchInputs::default(), |_| ()).await.expect("it runs")
}

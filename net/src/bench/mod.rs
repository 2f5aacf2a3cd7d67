//! `pd bench`: a load generator with the workloads, the metrics and the result keys of `sglang.bench_serving` and
//! `vllm bench serve`.
//!
//! ```text
//! config, seed, trace rows ──plan──> scripts ──arrivals, max_concurrency──> calls ──> records ──> report
//!                                                                             └──every 5 s──> progress
//! ```
//! Invariants:
//! 1. What is asked and when it arrives is a pure function of configuration, seed and inputs.
//! 2. Time is read when bytes arrive; parsing comes after.
//! 3. A request that fails is counted, its reason kept, and the run's exit code says so. It is in no distribution.
//! 4. Time to first token runs from the moment a request is sent, as the peers have it; what it waited before that for
//!    `max_concurrency` is kept apart.

mod backend;
mod call;
mod config;
mod plan;
mod report;
mod stats;

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::header::{AUTHORIZATION, HeaderValue};
use serde_json::Value;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use call::RequestRecord;
pub use config::{Backend, BenchConfig, BenchConfigError, DatasetName, Slo, SloMetric};
pub use plan::{BenchInputs, Detokenize, PlanError, Prompt, Script, TraceRow, Turn};
pub use report::BenchReport;
pub use stats::Spread;

use backend::History;
use call::Caller;

use crate::client::{Pool, pool};
use crate::text::strftime::{strftime, unix_seconds};

/// Why a benchmark does not run.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] BenchConfigError),
    /// There is nothing to ask.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The model is not named, and the server does not name one.
    #[error("{url}/v1/models names no model ({why}); name it with model")]
    Model {
        /// The server.
        url: String,
        /// What it said.
        why: String,
    },
    /// A request before the measured ones failed.
    #[error("the warm-up failed: {0}")]
    Warmup(String),
}

/// How a run is going.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Progress {
    /// Time since the start of the run.
    pub elapsed: Duration,
    /// Requests whose answer is there.
    pub completed: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Requests in all.
    pub total: usize,
    /// Requests under way.
    pub running: usize,
    /// Requests that are due and wait for `max_concurrency`.
    pub waiting: usize,
    /// Milliseconds to the first token, of the answers that began since the last report.
    pub ttft_ms: Spread,
    /// Tokens per second since the last report.
    pub tokens_per_s: f64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { elapsed, completed, failed, total, running, waiting, ttft_ms, tokens_per_s } = self;
        write!(f, "{:>7.1} s  {completed}/{total} done", elapsed.as_secs_f64())?;
        if *failed > 0 {
            write!(f, ", {failed} failed")?;
        }
        write!(f, "  running {running}  waiting {waiting}  {tokens_per_s:.0} tok/s  ttft ")?;
        if ttft_ms.count == 0 {
            return write!(f, "-");
        }
        write!(f, "mean {:.1} p50 {:.1} p99 {:.1} ms", ttft_ms.mean, ttft_ms.median, ttft_ms.p99)
    }
}

#[derive(Debug)]
struct Live {
    started: Instant,
    running: AtomicUsize,
    waiting: AtomicUsize,
    completed: AtomicUsize,
    failed: AtomicUsize,
    tokens: Arc<AtomicU64>,
    ttfts: Mutex<Vec<f64>>,
    records: Mutex<Vec<RequestRecord>>,
}

/// Now, as `vllm bench serve` writes it into its results: year, month, day, hour, minute, second (UTC).
#[must_use]
pub fn date_now() -> String {
    strftime("%Y%m%d-%H%M%S", unix_seconds()).unwrap_or_default()
}

/// Runs a benchmark, and tells `progress` how it goes.
///
/// # Errors
/// If the configuration or the dataset makes no sense, the server names no model, or the warm-up fails. Requests that
/// fail later are counted in the report.
pub async fn run(
    config: BenchConfig,
    inputs: BenchInputs,
    mut progress: impl FnMut(&Progress) + Send,
) -> Result<BenchReport, BenchError> {
    config.check()?;
    let target = config.target()?;
    let scripts = make_plan(&config, &inputs).await?;
    let pool = pool(CONNECT_TIME, usize::MAX);
    let model = match &config.model {
        Some(model) => model.clone(),
        None => find_model(&pool, &config, &target.to_string()).await?,
    };
    let endpoint = config.endpoint.as_deref().unwrap_or(config.backend.endpoint());
    let uri = target.uri(endpoint).ok_or_else(|| BenchConfigError {
        key: "endpoint",
        value: endpoint.to_owned(),
        must: "it makes no address".into(),
    })?;
    let tokens = Arc::new(AtomicU64::new(0));
    let caller = Arc::new(Caller {
        pool: pool.clone(),
        uri,
        authorization: authorization(&config),
        timeout: secs(config.request_timeout_secs),
        is_stream: !config.disable_stream,
        tokens: Arc::clone(&tokens),
    });
    warm_up(&config, &model, &caller, &scripts).await?;
    tokens.store(0, Ordering::Relaxed);

    let total = scripts.iter().map(|script| script.turns.len()).sum();
    let live = Arc::new(Live {
        started: Instant::now(),
        running: AtomicUsize::new(0),
        waiting: AtomicUsize::new(0),
        completed: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        tokens,
        ttfts: Mutex::new(Vec::new()),
        records: Mutex::new(Vec::new()),
    });
    let config = Arc::new(config);
    {
        let all = drive(Arc::clone(&config), model.clone(), caller, Arc::clone(&live), scripts);
        tokio::pin!(all);
        let pause = secs(config.progress_interval_secs);
        let mut last = (live.started, 0);
        loop {
            tokio::select! {
                () = &mut all => break,
                () = tokio::time::sleep(pause) => progress(&live.progress(&mut last, total)),
            }
        }
    }
    let duration = live.started.elapsed().as_secs_f64();
    let records = std::mem::take(&mut *live.records.lock().unwrap_or_else(PoisonError::into_inner));
    let mut server_info = ask(&pool, &config, &format!("{target}/server_info")).await;
    if server_info.is_err() {
        server_info = ask(&pool, &config, &format!("{target}/get_server_info")).await;
    }
    let server_info = server_info.unwrap_or(Value::Null);
    let config = BenchConfig::clone(&config);
    Ok(BenchReport::new(config, model, server_info, duration, records))
}

/// What would be asked, and when, without asking.
///
/// # Errors
/// If the configuration or the dataset makes no sense.
pub async fn make_plan(config: &BenchConfig, inputs: &BenchInputs) -> Result<Vec<Script>, BenchError> {
    config.check()?;
    let text = match (&config.dataset_path, config.dataset_name) {
        (Some(path), DatasetName::Prompts) => {
            let (path, name) = (path.clone(), path.display().to_string());
            let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
            let fail = |why: String| PlanError::File { path: name, why };
            match read {
                Ok(Ok(text)) => Some(text),
                Ok(Err(error)) => return Err(fail(error.to_string()).into()),
                Err(error) => return Err(fail(error.to_string()).into()),
            }
        }
        _ => None,
    };
    Ok(plan::plan(config, inputs, text.as_deref())?)
}

/// Starts each script at its time, and waits for all of them.
async fn drive(config: Arc<BenchConfig>, model: String, caller: Arc<Caller>, live: Arc<Live>, scripts: Vec<Script>) {
    let model: Arc<str> = model.into();
    let permits = config.max_concurrency.map(|max| Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))));
    let mut tasks = JoinSet::new();
    for (index, script) in scripts.into_iter().enumerate() {
        let due = live.started + script.at;
        // All at once does not mean through the timer, which has a resolution of a millisecond.
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        while tasks.try_join_next().is_some() {}
        let (config, model, caller) = (Arc::clone(&config), Arc::clone(&model), Arc::clone(&caller));
        let (live, permits) = (Arc::clone(&live), permits.clone());
        tasks.spawn(async move {
            let mut history = History::default();
            for (turn, question) in script.turns.iter().enumerate() {
                if turn > 0 && config.think_time_secs > 0.0 {
                    tokio::time::sleep(secs(config.think_time_secs)).await;
                }
                let body = backend::body(&config, &model, question, &history);
                let waited = Instant::now();
                live.waiting.fetch_add(1, Ordering::Relaxed);
                let permit = match &permits {
                    // The semaphore is never closed.
                    Some(permits) => permits.acquire().await.ok(),
                    None => None,
                };
                live.waiting.fetch_sub(1, Ordering::Relaxed);
                live.running.fetch_add(1, Ordering::Relaxed);
                let start = Instant::now();
                let on_first = |ttft| live.ttfts.lock().unwrap_or_else(PoisonError::into_inner).push(ttft);
                let (mut record, answer) = caller.call(body, question.prompt_tokens, on_first).await;
                drop(permit);
                live.running.fetch_sub(1, Ordering::Relaxed);
                (record.script, record.turn) = (index, turn);
                record.start = (start - live.started).as_secs_f64();
                record.queue = (start - waited).as_secs_f64();
                let has_failed = record.error.is_some();
                if has_failed { &live.failed } else { &live.completed }.fetch_add(1, Ordering::Relaxed);
                live.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
                if has_failed {
                    // There is nothing to go on with; the turns that are left count as failed.
                    let rest = (turn + 1..script.turns.len()).map(|turn| RequestRecord {
                        script: index,
                        turn,
                        start: live.started.elapsed().as_secs_f64(),
                        error: Some("not asked: an earlier turn failed".into()),
                        ..RequestRecord::default()
                    });
                    let rest: Vec<_> = rest.collect();
                    live.failed.fetch_add(rest.len(), Ordering::Relaxed);
                    live.records.lock().unwrap_or_else(PoisonError::into_inner).extend(rest);
                    return;
                }
                history.push(&question.prompt, answer);
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

impl Live {
    /// The state of the run; distributions and rates since the last look.
    fn progress(&self, last: &mut (Instant, u64), total: usize) -> Progress {
        let now = Instant::now();
        let tokens = self.tokens.load(Ordering::Relaxed);
        let span = (now - last.0).as_secs_f64();
        let tokens_per_s = if span > 0.0 { tokens.saturating_sub(last.1) as f64 / span } else { 0.0 };
        *last = (now, tokens);
        let ttfts = std::mem::take(&mut *self.ttfts.lock().unwrap_or_else(PoisonError::into_inner));
        Progress {
            elapsed: now - self.started,
            completed: self.completed.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            total,
            running: self.running.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            ttft_ms: Spread::of(ttfts).in_ms(),
            tokens_per_s,
        }
    }
}

/// Asks the first questions once, one after the other, so that connections and kernels are warm.
async fn warm_up(config: &BenchConfig, model: &str, caller: &Caller, scripts: &[Script]) -> Result<(), BenchError> {
    for script in scripts.iter().cycle().take(if scripts.is_empty() { 0 } else { config.warmup_requests }) {
        let Some(turn) = script.turns.first() else { continue };
        let body = backend::body(config, model, turn, &History::default());
        let (record, _) = caller.call(body, turn.prompt_tokens, |_| ()).await;
        if let Some(why) = record.error {
            return Err(BenchError::Warmup(format!("{}: {why}", caller.uri)));
        }
    }
    Ok(())
}

async fn find_model(pool: &Pool, config: &BenchConfig, url: &str) -> Result<String, BenchError> {
    let fail = |why: String| BenchError::Model { url: url.to_owned(), why };
    let models = ask(pool, config, &format!("{url}/v1/models")).await.map_err(fail)?;
    let name = models["data"][0]["id"].as_str();
    name.map(str::to_owned).ok_or_else(|| fail("its list is empty".into()))
}

/// A short question.
async fn ask(pool: &Pool, config: &BenchConfig, url: &str) -> Result<Value, String> {
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.uri_mut() = url.parse().map_err(|error| format!("{error}"))?;
    if let Some(value) = authorization(config) {
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    let answer = async {
        let response = pool.request(request).await.map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(response.status().to_string());
        }
        let body = Limited::new(response.into_body(), INFO_BYTES_MAX).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    };
    tokio::time::timeout(INFO_TIME, answer).await.unwrap_or_else(|_| Err("no answer".into()))
}

fn authorization(config: &BenchConfig) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("Bearer {}", config.api_key.as_ref()?)).ok()
}

fn secs(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX)
}

const CONNECT_TIME: Duration = Duration::from_secs(10);
const INFO_TIME: Duration = Duration::from_secs(10);
const INFO_BYTES_MAX: usize = 8 << 20;

#[cfg(test)]
mod tests;

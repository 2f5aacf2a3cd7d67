//! What operators and routers ask: health, identity, load, metrics, and orders.
//!
//! Old and new paths answer alike (`/get_server_info` and `/server_info`): routers of both generations are in use.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use pd_core::config::Mode;
use pd_core::id::{RequestId, Token};
use serde_json::{Map, Value, json};

use super::Edge;
use super::ask::{Ask, Rids, Stop};
use super::backend::{Attach, Health, JobLeg, Order, Sampling, Source};
use super::error::ApiError;
use super::fields::{self, Fields};
use super::generation;
use crate::text::Ending;

/// Longest wait of a health check that generates (SGLang's).
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether the worker is there. Asks nothing of the engine, so it answers at once under any load.
pub(super) async fn health(State(edge): State<Arc<Edge>>) -> Result<Response, ApiError> {
    match edge.backend().health() {
        Health::Ready | Health::Draining => Ok(StatusCode::OK.into_response()),
        other @ (Health::Starting | Health::Failed(_)) => Err(not_ready(&other)),
    }
}

/// Whether the worker takes requests.
pub(super) async fn ready(State(edge): State<Arc<Edge>>) -> Result<Response, ApiError> {
    match edge.backend().health() {
        Health::Ready => Ok(StatusCode::OK.into_response()),
        other @ (Health::Starting | Health::Draining | Health::Failed(_)) => Err(not_ready(&other)),
    }
}

fn not_ready(health: &Health) -> ApiError {
    let why = match health {
        Health::Ready => "the worker is ready".to_owned(),
        Health::Starting => "the worker is starting".to_owned(),
        Health::Draining => "the worker is shutting down".to_owned(),
        Health::Failed(why) => format!("the worker has failed: {why}"),
    };
    ApiError { retry_after: Some(1), ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", why) }
}

/// Generates one token, without a peer.
pub(super) async fn health_generate(State(edge): State<Arc<Edge>>) -> Result<Response, ApiError> {
    ready(State(Arc::clone(&edge))).await?;
    let leg = match edge.info().mode {
        Mode::Unified => JobLeg::Whole,
        Mode::Prefill => JobLeg::Prefill { room: edge.fake_room() },
        Mode::Decode => JobLeg::Decode { room: edge.fake_room(), from: Source::Fake },
    };
    let ask = Ask {
        rids: Rids { names: vec![format!("HEALTH_CHECK_{}", edge.unique())], is_given: false },
        prompts: vec![vec![Token(0)]],
        choices: 1,
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        limit: Some(1),
        stop: Stop { texts: Vec::new(), tokens: Vec::new(), ending: Ending::Excluded },
        is_special_skipped: true,
        priority: i32::MAX,
        salt: String::new(),
        legs: vec![leg],
        route: "health",
    };
    let probe = generation::collect(generation::start(&edge, &ask)?);
    match tokio::time::timeout(PROBE_TIMEOUT, probe).await {
        Ok(Ok(_)) => Ok(StatusCode::OK.into_response()),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            let message = format!("no token came within {} s", PROBE_TIMEOUT.as_secs());
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message))
        }
    }
}

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Unified => "null",
        Mode::Prefill => "prefill",
        Mode::Decode => "decode",
    }
}

/// What the model is.
pub(super) async fn model_info(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let info = edge.info();
    Json(json!({
        "model_path": info.model_path, "served_model_name": info.model, "tokenizer_path": info.tokenizer_path,
        "is_generation": true, "preferred_sampling_params": null, "weight_version": "default", "load_format": "auto",
        "reasoning_parser": null, "tool_call_parser": null, "disaggregation_mode": mode(info.mode),
        "has_image_understanding": false, "has_audio_understanding": false, "model_type": info.model_type,
        "architectures": info.architectures,
    }))
}

/// All settings, and what benchmarks and routers read.
pub(super) async fn server_info(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let (info, load) = (edge.info(), edge.backend().load());
    let mut map = info.settings.clone();
    let facts = json!({
        "model_path": info.model_path, "served_model_name": info.model, "tokenizer_path": info.tokenizer_path,
        "tp_size": info.tp, "dp_size": 1, "load_balance_method": "round_robin", "disaggregation_mode": mode(info.mode),
        "disaggregation_bootstrap_port": info.bootstrap_port, "page_size": info.namespace.page_size,
        "kv_cache_dtype": info.namespace.dtype, "context_length": info.context_length,
        "max_total_num_tokens": load.total_tokens, "max_running_requests": load.running_max,
        "version": env!("CARGO_PKG_VERSION"), "frontend": "pd",
        "internal_states": [{
            "last_gen_throughput": load.tokens_per_second, "avg_spec_accept_length": null,
            "memory_usage": { "token_capacity": load.total_tokens },
        }],
    });
    if let Value::Object(facts) = facts {
        map.extend(facts);
    }
    Json(Value::Object(map))
}

/// The load in SGLang's older form.
pub(super) async fn get_load(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let load = edge.backend().load();
    Json(json!([{
        "dp_rank": 0, "num_reqs": load.running + load.waiting, "num_waiting_reqs": load.waiting, "num_tokens": load.used_tokens,
    }]))
}

/// The load in SGLang's newer form. All sections are always there; `include` asks for no less than that.
pub(super) async fn loads(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let (info, load) = (edge.info(), edge.backend().load());
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let usage = if load.total_tokens == 0 { 0.0 } else { load.used_tokens as f64 / load.total_tokens as f64 };
    Json(json!({
        "timestamp": crate::text::strftime::unix_seconds(), "version": env!("CARGO_PKG_VERSION"),
        "loads": [{
            "dp_rank": 0, "num_running_reqs": load.running, "num_waiting_reqs": load.waiting,
            "num_waiting_uncached_tokens": load.waiting_uncached_tokens, "num_used_tokens": load.used_tokens,
            "num_total_tokens": load.used_tokens, "max_total_num_tokens": load.total_tokens,
            "max_running_requests": load.running_max, "token_usage": usage, "gen_throughput": load.tokens_per_second,
            "cache_hit_rate": load.hit_rate, "utilization": usage,
            "disaggregation": {
                "mode": mode(info.mode), "prefill_bootstrap_queue_reqs": load.transfer.bootstrapping,
                "prefill_inflight_queue_reqs": load.transfer.moving, "decode_prealloc_queue_reqs": load.transfer.bootstrapping,
                "decode_transfer_queue_reqs": load.transfer.moving, "decode_retracted_queue_reqs": load.retracted,
                "kv_transfer_speed_gb_s": load.transfer.gigabytes_per_second,
            },
            "queues": { "waiting": load.waiting, "grammar": 0, "paused": 0, "retracted": load.retracted },
            "memory": { "token_capacity": load.total_tokens },
        }],
    }))
}

/// Prometheus' text.
pub(super) async fn metrics(State(edge): State<Arc<Edge>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], edge.backend().metrics()).into_response()
}

/// Forgets L1 and L2.
pub(super) async fn flush_cache(State(edge): State<Arc<Edge>>) -> Result<String, ApiError> {
    order(&edge, Order::Flush).await
}

/// Removes everything of this worker's namespaces from L3.
pub(super) async fn clear_storage(State(edge): State<Arc<Edge>>) -> Result<String, ApiError> {
    order(&edge, Order::ClearStorage).await
}

/// What L3 is.
pub(super) async fn storage(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let storage = edge.backend().load().storage;
    Json(json!({
        "hicache_storage_backend": storage.backend, "hicache_storage_backend_extra_config_json": storage.settings,
        "hicache_storage_prefetch_policy": storage.prefetch_policy, "hicache_write_policy": storage.write_policy,
    }))
}

/// Starts using L3.
pub(super) async fn attach(State(edge): State<Arc<Edge>>, headers: HeaderMap, body: Body) -> Result<String, ApiError> {
    let (_, map) = fields::read_object(&edge, &headers, body).await?;
    let fields = Fields::new(&map, "");
    let text = |name| fields.text(name).map(|text| text.map(str::to_owned));
    let attach = Attach {
        backend: text("hicache_storage_backend")?
            .ok_or_else(|| fields.wrong("hicache_storage_backend", "the kind of storage (file)"))?,
        settings: text("hicache_storage_backend_extra_config_json")?,
        prefetch_policy: text("hicache_storage_prefetch_policy")?,
        write_policy: text("hicache_write_policy")?,
    };
    if let Some(settings) = &attach.settings
        && let Err(error) = serde_json::from_str::<Map<String, Value>>(settings)
    {
        let message = format!("hicache_storage_backend_extra_config_json must be a JSON object in a text: {error}");
        return Err(ApiError::field("hicache_storage_backend_extra_config_json", message));
    }
    order(&edge, Order::Attach(Box::new(attach))).await
}

/// Stops using L3.
pub(super) async fn detach(State(edge): State<Arc<Edge>>) -> Result<String, ApiError> {
    order(&edge, Order::Detach).await
}

async fn order(edge: &Edge, order: Order) -> Result<String, ApiError> {
    edge.backend().control(order).await.map(|said| format!("{said}\n")).map_err(ApiError::from)
}

/// Ends requests by name, or all of them.
pub(super) async fn abort(
    State(edge): State<Arc<Edge>>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let (_, map) = fields::read_object(&edge, &headers, body).await?;
    let fields = Fields::new(&map, "");
    let ids: Vec<RequestId> = if fields.bool("abort_all")? {
        edge.live().all()
    } else {
        let rid = fields.text("rid")?.filter(|rid| !rid.is_empty());
        edge.live().of(rid.ok_or_else(|| fields.wrong("rid", "the name of a request (or send abort_all: true)"))?)
    };
    for id in ids {
        edge.backend().cancel(id);
    }
    Ok(StatusCode::OK)
}

/// The status page.
pub(super) async fn page() -> Response {
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], include_str!("page.html")).into_response()
}

/// What the status page polls.
pub(super) async fn status(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let info = edge.info();
    let health = match edge.backend().health() {
        Health::Starting => "starting".to_owned(),
        Health::Ready => "ready".to_owned(),
        Health::Draining => "draining".to_owned(),
        Health::Failed(why) => format!("failed: {why}"),
    };
    Json(json!({
        "model": info.model, "mode": mode(info.mode), "version": env!("CARGO_PKG_VERSION"), "health": health,
        "page_size": info.namespace.page_size, "uptime_s": edge.uptime().as_secs(),
        "load": edge.backend().load(), "live": edge.live().status(),
    }))
}

//! The bootstrap server of a prefill worker: where decode workers learn how to reach it.
//!
//! Speaks SGLang's routes for those who look (`/health`, `/route`), and one of ours that says what pd's decode workers
//! need. One worker is one rank here: its leader speaks for its group.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use pd_core::config::Mode;
use pd_core::id::{Epoch, WorkerId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;

/// How a worker is reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Card {
    /// Its name.
    pub worker: WorkerId,
    /// Its life.
    pub epoch: Epoch,
    /// What it serves.
    pub mode: Mode,
    /// Where it takes control connections.
    pub control: String,
    /// Where its wire listens.
    pub wire: String,
    /// Tokens per page.
    pub page_size: u32,
    /// Element type of its KV.
    pub kv_cache_dtype: String,
}

/// Serves until the future is dropped.
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: TcpListener, card: Card) -> std::io::Result<()> {
    axum::serve(listener, app(card)).await
}

fn app(card: Card) -> Router {
    Router::new()
        .route("/health", get(|| async { "OK" }))
        .route("/pd/worker", get(|State(card): State<Card>| async { Json(card) }))
        .route("/route", get(route))
        .with_state(card)
}

/// What SGLang's decode workers ask; without a field it is -1, which asks for the sizes.
#[derive(Deserialize)]
struct Rank {
    #[serde(default = "any")]
    engine_rank: i64,
    #[serde(default = "any")]
    target_dp_group: i64,
    #[serde(default = "any")]
    target_pp_rank: i64,
}

const fn any() -> i64 {
    -1
}

async fn route(State(card): State<Card>, Query(rank): Query<Rank>) -> Response {
    match (rank.engine_rank, rank.target_dp_group, rank.target_pp_rank) {
        (-1, -1, -1) => Json(json!({
            "prefill_attn_tp_size": 1,
            "prefill_dp_size": 1,
            "prefill_pp_size": 1,
            "page_size": card.page_size,
            "kv_cache_dtype": card.kv_cache_dtype,
        }))
        .into_response(),
        (0, 0, -1..=0) => {
            let (ip, port) = card.wire.rsplit_once(':').unwrap_or((card.wire.as_str(), "0"));
            Json(json!({ "rank_ip": ip, "rank_port": port.parse::<u16>().unwrap_or(0) })).into_response()
        }
        (rank, group, stage) => {
            let problem = format!("there is one rank, 0 of group 0; asked for {rank} of group {group}, stage {stage}");
            (StatusCode::NOT_FOUND, Json(json!({ "error": problem }))).into_response()
        }
    }
}

/// Asks the bootstrap server at `address` (host and port) who it speaks for.
///
/// # Errors
/// What came instead of a card, in words.
pub(super) async fn lookup(address: &str) -> Result<Card, String> {
    let client: Client<_, Empty<axum::body::Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let uri = format!("http://{address}/pd/worker").parse().map_err(|_| format!("{address} is no address"))?;
    let answer = client.get(uri).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(" ({cause})"));
        format!("the bootstrap server cannot be reached: {error}{cause}")
    })?;
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("the bootstrap server answers {status}; is it a pd prefill worker?"));
    }
    let body = Limited::new(answer.into_body(), CARD_MAX).collect().await;
    let body = body.map_err(|error| format!("the bootstrap server's answer breaks off: {error}"))?.to_bytes();
    let card: Card =
        serde_json::from_slice(&body).map_err(|error| format!("the bootstrap server's answer is no card: {error}"))?;
    if card.mode == Mode::Prefill {
        Ok(card)
    } else {
        Err(format!("the worker there serves in mode {:?}, not prefill", card.mode))
    }
}

/// Most bytes of an answer.
const CARD_MAX: usize = 64 << 10;

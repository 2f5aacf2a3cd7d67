//! Everything that is not a request for text: the router's own state, and questions that are passed to workers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::future::join_all;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use pd_core::config::Mode;
use pd_core::id::WorkerId;

use super::config::Spec;
use super::errors::Refusal;
use super::leg::{Envelope, Said, forwarded, strip};
use super::members::{Member, Origin, mode_name};
use super::{App, Stage};
use crate::client::target::Target;

type Answer = Result<Response, Refusal>;

pub(super) async fn health() -> &'static str {
    "OK"
}

pub(super) async fn readiness(State(app): State<Arc<App>>) -> Response {
    let all = app.members.all();
    let up = all.iter().filter(|member| member.is_up()).count();
    let why = match *app.stage.borrow() {
        Stage::Serving => app.members.missing(),
        Stage::Draining | Stage::Cut => Some("the router is shutting down".into()),
    };
    match why {
        None => json_response(
            StatusCode::OK,
            &json!({"status": "ready", "healthy_workers": up, "total_workers": all.len()}),
        ),
        Some(reason) => json_response(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"status": "not ready", "reason": reason, "healthy_workers": up, "total_workers": all.len()}),
        ),
    }
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut response = Response::new(Body::from(app.exposition()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}

/// All models of workers that are up, each once.
pub(super) async fn models(State(app): State<Arc<App>>) -> Response {
    let mut data: Vec<Value> = Vec::new();
    for member in app.members.all().iter().filter(|member| member.is_up()) {
        for model in member.models() {
            if !data.iter().any(|other| other["id"] == model["id"]) {
                data.push(model);
            }
        }
    }
    json_response(StatusCode::OK, &json!({"object": "list", "data": data}))
}

pub(super) async fn list_workers(State(app): State<Arc<App>>) -> Response {
    let all = app.members.all();
    let count = |mode| all.iter().filter(|member| member.spec.mode == mode).count();
    let stats = json!({
        "prefill_count": count(Mode::Prefill), "decode_count": count(Mode::Decode), "regular_count": count(Mode::Unified),
    });
    let workers: Vec<Value> = all.iter().map(|member| member.to_json()).collect();
    json_response(StatusCode::OK, &json!({"workers": workers, "total": all.len(), "stats": stats}))
}

pub(super) async fn show_worker(State(app): State<Arc<App>>, Path(id): Path<String>) -> Answer {
    Ok(json_response(StatusCode::OK, &app.worker_of(&id)?.to_json()))
}

#[derive(Deserialize)]
struct NewWorker {
    url: String,
    #[serde(default)]
    worker_type: Option<String>,
    #[serde(default)]
    bootstrap_port: Option<u16>,
}

pub(super) async fn add_worker(State(app): State<Arc<App>>, request: Request) -> Answer {
    let body = app.read_body(request.into_body()).await?;
    let bad = |why: String| Refusal::bad("invalid_worker", why);
    let new: NewWorker = serde_json::from_slice(&body).map_err(|error| bad(format!("the body: {error}")))?;
    let mode = match new.worker_type.as_deref() {
        None | Some("regular" | "unified") => Mode::Unified,
        Some("prefill") => Mode::Prefill,
        Some("decode") => Mode::Decode,
        Some(other) => {
            return Err(bad(format!("worker_type {:?} is none of prefill, decode, regular", super::body::cut(other))));
        }
    };
    let target = Target::parse(&new.url).map_err(|error| bad(error.to_string()))?;
    if new.bootstrap_port == Some(0) || (new.bootstrap_port.is_some() && mode != Mode::Prefill) {
        return Err(bad("bootstrap_port is for prefill workers, from 1 to 65535".into()));
    }
    let spec = Spec { target, mode, bootstrap_port: new.bootstrap_port };
    let member = app
        .add_worker(spec, Origin::Api)
        .map_err(|duplicate| Refusal::new(StatusCode::CONFLICT, "duplicate_worker", duplicate.to_string()))?;
    let id = member.id.to_string();
    let told = json!({
        "status": "accepted", "worker_id": id, "url": member.spec.target.to_string(),
        "location": format!("/workers/{id}"), "message": "it gets requests as soon as it is healthy",
    });
    Ok(json_response(StatusCode::ACCEPTED, &told))
}

pub(super) async fn remove_worker(State(app): State<Arc<App>>, Path(id): Path<String>) -> Answer {
    let member = app.worker_of(&id)?;
    app.remove_worker(&member);
    let told = json!({
        "status": "accepted", "worker_id": member.id.to_string(),
        "message": "it gets no new requests, and is removed when those it has are over",
    });
    Ok(json_response(StatusCode::ACCEPTED, &told))
}

/// What mini-lb answers: the workers' own information by role, and the internal states that bench tools read.
pub(super) async fn server_info(State(app): State<Arc<App>>) -> Response {
    let up: Vec<_> = app.members.all().into_iter().filter(|member| member.is_up()).collect();
    let infos = join_all(up.iter().map(|member| async {
        match app.ask_json(member, "/server_info").await {
            Some(info) => info,
            None => app.ask_json(member, "/get_server_info").await.unwrap_or(Value::Null),
        }
    }))
    .await;
    let mut answer = json!({
        "internal_states": [], "prefill": [], "decode": [], "regular": [],
        "router_manager": true, "workers_count": app.members.all().len(), "version": env!("CARGO_PKG_VERSION"),
    });
    for (member, info) in up.iter().zip(infos) {
        if member.spec.mode != Mode::Prefill
            && let (Some(from), Some(all)) =
                (info["internal_states"].as_array(), answer["internal_states"].as_array_mut())
        {
            all.extend(from.iter().cloned());
        }
        if let Some(list) = answer[mode_name(member.spec.mode)].as_array_mut() {
            list.push(info);
        }
    }
    json_response(StatusCode::OK, &answer)
}

/// Asks all workers, and says how it went with each.
pub(super) async fn fan_out(State(app): State<Arc<App>>, request: Request) -> Answer {
    let method = Method::POST;
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let body = app.read_body(request.into_body()).await?;
    let up: Vec<_> = app.members.all().into_iter().filter(|member| member.is_up()).collect();
    let told = join_all(up.iter().map(|member| app.ask(member, method.clone(), &path, body.clone()))).await;
    let good = told.iter().filter(|told| matches!(told, Ok((status, _)) if status.is_success())).count();
    let workers: Vec<Value> = up
        .iter()
        .zip(&told)
        .map(|(member, told)| {
            let said = match told {
                Ok((status, body)) => json!({"status": status.as_u16(), "body": String::from_utf8_lossy(body)}),
                Err(why) => json!({"status": null, "error": why}),
            };
            json!({"worker": member.spec.target.to_string(), "answer": said})
        })
        .collect();
    let is_good = good == up.len() && good > 0;
    let status = if is_good { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
    let answer = json!({
        "status": if is_good { "success" } else { "partial" },
        "message": format!("{path}: {good} of {} workers agreed", up.len()),
        "workers_flushed": good, "total_workers": up.len(), "workers": workers,
    });
    Ok(json_response(status, &answer))
}

/// The router's own account of load, which needs no worker.
pub(super) async fn loads(State(app): State<Arc<App>>) -> Response {
    let views: Vec<_> = app.brain.look(|router| router.members().collect());
    let workers: Vec<Value> = views
        .iter()
        .filter_map(|view| {
            let member = app.members.find(view.worker)?;
            Some(json!({
                "worker": member.spec.target.to_string(), "load": view.legs, "decodes": view.decodes,
                "prefill_ms": view.prefill_ns / 1_000_000, "indexed_pages": view.held,
            }))
        })
        .collect();
    json_response(StatusCode::OK, &json!({ "workers": workers }))
}

/// Passes a request to one worker that is up, and its answer back, as they are.
pub(super) async fn forward(State(app): State<Arc<App>>, request: Request) -> Answer {
    let member = app
        .members
        .any_up(&[Mode::Unified, Mode::Prefill, Mode::Decode])
        .ok_or_else(|| Refusal::unavailable("server_selection_failed", "no worker is up"))?;
    let (head, body) = request.into_parts();
    let body: Bytes = app.read_body(body).await?;
    let id = app.next_id();
    let envelope = Envelope {
        method: head.method,
        path_and_query: head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        headers: forwarded(&head.headers, app.config.api_key.as_deref(), &id),
    };
    let response = app.send(&member, &envelope, body).await.map_err(|fault| {
        let why = match fault.said {
            Said::Nothing(why) => why,
            Said::Answer { status, .. } => status.to_string(),
        };
        Refusal::new(StatusCode::BAD_GATEWAY, "worker_error", why)
    })?;
    let mut response = response.map(Body::new);
    strip(response.headers_mut());
    Ok(response)
}

pub(super) async fn unknown(request: Request) -> Response {
    let path = super::body::cut(request.uri().path());
    Refusal::new(StatusCode::NOT_FOUND, "unknown_path", format!("{} {path} is not served here", request.method()))
        .response()
}

impl App {
    fn worker_of(&self, id: &str) -> Result<Arc<Member>, Refusal> {
        id.parse().ok().and_then(|id| self.members.find(WorkerId(id))).ok_or_else(|| {
            let id = super::body::cut(id);
            Refusal::new(
                StatusCode::NOT_FOUND,
                "unknown_worker",
                format!("no worker has the id {id:?}; see GET /workers"),
            )
        })
    }
}

impl axum::response::IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.response()
    }
}

fn json_response(status: StatusCode, value: &Value) -> Response {
    (status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], value.to_string()).into_response()
}

//! Requests that released routers, proxies and clients really sent, replayed.
//!
//! Each is answered with 200 and the shape of its route, or is one of few that are refused on purpose: grammars, gaps to
//! fill, pictures, other models, no prompt or two of them, and routes that this server does not have.

use pd_core::config::Mode;
use serde_json::{Value, json};

use super::{Answer, Server};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};

struct Row {
    who: String,
    mode: Mode,
    method: Method,
    target: String,
    body: Value,
}

/// Rows of a recording. Rooms get numbers; token ids, of a larger vocabulary, are folded into ours.
fn rows(lines: &str) -> Vec<Row> {
    let mut room = 1000;
    let row = |line| {
        let value: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let mut body = value["body"].clone();
        if body["bootstrap_room"].is_array() {
            body["bootstrap_room"] = json!([room, room + 1]);
        } else if body["bootstrap_room"].is_string() {
            body["bootstrap_room"] = json!(room);
        }
        room += 2;
        for name in ["prompt", "input_ids"] {
            if let Some(value) = body.get_mut(name) {
                fold(value);
            }
        }
        Row {
            who: format!("{}{}", text("router"), text("client")),
            mode: match value["role"].as_str() {
                Some("prefill") => Mode::Prefill,
                Some("decode") => Mode::Decode,
                _ => Mode::Unified,
            },
            method: text("method").parse().unwrap(),
            target: text("target"),
            body,
        }
    };
    lines.lines().map(row).collect()
}

fn fold(value: &mut Value) {
    if let Some(list) = value.as_array_mut() {
        list.iter_mut().for_each(fold);
    } else if let Some(id) = value.as_u64() {
        *value = json!(id % 377);
    }
}

async fn replay(row: &Row) -> (Server, Answer) {
    let server = Server::of(
        crate::http::mock::Mock::new(crate::http::mock::Mock::info(
            if row.who.contains("router") || row.who.contains("smg") || row.who.contains("proxy") {
                "stub-model"
            } else {
                "tiny-model"
            },
            row.mode,
        )),
        crate::http::EdgeConfig::default(),
    );
    let request = Request::builder().method(row.method.clone()).uri(&row.target);
    let body = if row.body.is_null() { Body::empty() } else { Body::from(row.body.to_string()) };
    let answer = server.send(request.header("content-type", "application/json").body(body).unwrap()).await;
    (server, answer)
}

/// The status of a row, where it is not 200.
fn refusal(row: &Row) -> Option<u16> {
    let (path, body) = (row.target.split('?').next().unwrap_or_default(), &row.body);
    let is_generating = ["/v1/chat/completions", "/v1/completions", "/generate"].contains(&path);
    match path {
        "/v1/responses" | "/v1/messages" | "/v1/rerank" | "/tokenizer_info" => return Some(404),
        "/flush_cache" | "/tokenize" | "/v1/tokenize" => return None,
        _ => {}
    }
    if !is_generating {
        return None;
    }
    if body["model"] == "nope" {
        return Some(404);
    }
    let is_refused = body["response_format"].as_object().is_some_and(|format| format["type"] != "text")
        || body["suffix"].is_string()
        || body["sampling_params"]["json_schema"].is_string()
        || (path == "/generate" && body.get("text").is_none() && body.get("input_ids").is_none())
        || body["tool_choice"].as_str().is_some_and(|choice| choice == "required")
        || (path == "/generate" && body.get("text").is_some() && body.get("input_ids").is_some())
        || has_picture(body);
    is_refused.then_some(400)
}

fn has_picture(body: &Value) -> bool {
    let parts =
        body["messages"].as_array().into_iter().flatten().filter_map(|message| message["content"].as_array()).flatten();
    parts.filter_map(|part| part["type"].as_str()).any(|kind| kind != "text")
}

fn check_shape(row: &Row, server: &Server, answer: &Answer) {
    let context = || format!("{} {} {} -> {}", row.who, row.target, row.body, answer.text);
    let path = row.target.split('?').next().unwrap_or_default();
    let is_chat = path == "/v1/chat/completions";
    let jobs = server.mock.jobs();
    let sequences = jobs.len();
    if is_chat || path == "/v1/completions" {
        let bodies = if row.body["stream"] == true { answer.events() } else { vec![answer.json()] };
        let ends: usize = bodies
            .iter()
            .flat_map(|body| body["choices"].as_array().unwrap())
            .filter(|choice| !choice["finish_reason"].is_null())
            .count();
        assert_eq!(ends, sequences, "{}", context());
        let usages = bodies.iter().filter(|body| body.get("usage").is_some()).count();
        let options = &row.body["stream_options"];
        if row.body["stream"] != true || options["continuous_usage_stats"] == true {
            assert_eq!(usages, bodies.len(), "{}", context());
        } else {
            assert_eq!(usages, usize::from(options["include_usage"] == true), "{}", context());
        }
        if let (Some(limit), true) = (row.body["max_tokens"].as_u64(), row.body["ignore_eos"] == true) {
            assert!(jobs.iter().all(|job| u64::from(job.limit) == limit && job.stop.is_empty()), "{}", context());
        }
    } else if path == "/generate" {
        let bodies = if row.body["stream"] == true { answer.events() } else { vec![answer.json()] };
        let last = bodies.last().unwrap();
        let one = if last.is_array() { &last[0] } else { last };
        assert!(!one["meta_info"]["finish_reason"].is_null(), "{}", context());
    }
    let has_room = row.body.get("bootstrap_room").is_some();
    for job in jobs {
        let is_half = job.leg != crate::http::backend::JobLeg::Whole;
        assert_eq!(is_half, (has_room && row.mode != Mode::Unified) || path == "/health_generate", "{}", context());
    }
}

async fn check(lines: &str, least: usize) {
    let rows = rows(lines);
    assert!(rows.len() >= least);
    let mut generated = 0;
    let mut unlike = Vec::new();
    for row in &rows {
        let (server, answer) = replay(row).await;
        let wanted = refusal(row).unwrap_or(200);
        if answer.status.as_u16() != wanted {
            unlike.push(format!("{} {} {} -> {}, not {wanted}", row.who, row.target, row.body, answer.text));
        } else if wanted == 200 {
            check_shape(row, &server, &answer);
            generated += server.mock.jobs().len();
        } else {
            assert!(answer.json()["error"]["message"].is_string());
        }
        assert_ne!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(server.edge.in_flight(), 0, "{} {}", row.who, row.body);
    }
    assert!(unlike.is_empty(), "{}", unlike.join("\n"));
    assert!(generated * 2 > rows.len(), "most requests generate: {generated} of {}", rows.len());
}

#[tokio::test]
async fn requests_of_routers_and_proxies_are_served() {
    check(include_str!("../../../tests/data/conformance/routers.jsonl"), 200).await;
}

#[tokio::test]
async fn requests_of_clients_and_benchmarks_are_served() {
    check(include_str!("../../../tests/data/conformance/clients.jsonl"), 50).await;
}

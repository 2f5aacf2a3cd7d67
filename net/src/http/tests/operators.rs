//! Health, identity, load, orders, keys, the status page.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use pd_core::config::Mode;
use serde_json::{Value, json};

use super::Server;
use crate::http::EdgeConfig;
use crate::http::backend::{Health, JobLeg, Order};
use crate::http::mock::Mock;

async fn call(server: &Server, method: Method, path: &str, body: &str) -> (StatusCode, String) {
    let request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned())).unwrap();
    let answer = server.send(request).await;
    (answer.status, answer.text)
}

#[tokio::test]
async fn models_have_cards() {
    let server = Server::of(Mock::new(Mock::info("org/tiny", Mode::Unified)), EdgeConfig::default());
    let list = server.get("/v1/models").await;
    assert_eq!(list.headers["content-type"], "application/json");
    let card = list.json()["data"][0].clone();
    assert_eq!(
        (&card["id"], &card["max_model_len"], &card["root"]),
        (&json!("org/tiny"), &json!(512), &json!("/models/org/tiny"))
    );
    assert!(card["created"].as_u64().unwrap() > 0);
    assert_eq!(server.get("/v1/models/org/tiny").await.json(), card);
    let other = server.get("/v1/models/other").await;
    assert_eq!((other.status, &other.json()["error"]["code"]), (StatusCode::NOT_FOUND, &json!("model_not_found")));
}

#[tokio::test]
async fn health_and_readiness_follow_the_worker() {
    let server = Server::new();
    for (health, alive, ready) in [
        (Health::Ready, 200, 200),
        (Health::Draining, 200, 503),
        (Health::Starting, 503, 503),
        (Health::Failed("device lost".into()), 503, 503),
    ] {
        server.mock.set_health(health);
        assert_eq!(server.get("/health").await.status.as_u16(), alive);
        assert_eq!(server.get("/ready").await.status.as_u16(), ready);
        assert_eq!(server.get("/health_generate").await.status.as_u16(), ready);
    }
    assert_eq!(server.mock.jobs().len(), 1);
}

#[tokio::test]
async fn a_generating_health_check_needs_no_peer() {
    for mode in [Mode::Prefill, Mode::Decode] {
        let server = Server::mode(mode);
        assert_eq!(server.get("/health_generate").await.status, StatusCode::OK);
        assert_ne!(server.mock.jobs()[0].leg, JobLeg::Whole);
    }
}

#[tokio::test]
async fn old_and_new_paths_answer_alike() {
    let server = Server::mode(Mode::Prefill);
    for (old, new) in [("/get_model_info", "/model_info"), ("/get_server_info", "/server_info")] {
        assert_eq!(server.get(old).await.ok(), server.get(new).await.ok());
    }
    let info = server.get("/server_info").await.ok();
    assert_eq!((&info["served_model_name"], &info["disaggregation_mode"]), (&json!("tiny-model"), &json!("prefill")));
    assert!(info["internal_states"][0]["last_gen_throughput"].is_number());
    assert_eq!(server.get("/get_load").await.ok()[0]["num_reqs"], 0);
    for path in ["/v1/loads?include=core,disagg,queues,memory", "/loads?model=tiny-model"] {
        assert_eq!(server.get(path).await.ok()["loads"][0]["disaggregation"]["mode"], "prefill");
    }
}

#[tokio::test]
async fn metrics_are_the_workers_text_for_get_and_head() {
    let server = Server::new();
    let got = server.get("/metrics").await;
    assert!(got.headers["content-type"].to_str().unwrap().starts_with("text/plain"));
    assert!(got.text.contains("sglang:num_running_reqs 0\n"));
    assert_eq!(call(&server, Method::HEAD, "/metrics", "").await, (StatusCode::OK, String::new()));
}

#[tokio::test]
async fn orders_reach_the_worker_and_its_words_come_back() {
    let server = Server::new();
    let attach =
        r#"{"hicache_storage_backend": "file", "hicache_storage_backend_extra_config_json": "{\"path\": \"/kv\"}"}"#;
    for (method, path, body, said) in [
        (Method::POST, "/flush_cache?timeout=1", "", "Cache flushed.\n"),
        (Method::GET, "/flush_cache", "", "Cache flushed.\n"),
        (Method::PUT, "/hicache/storage-backend", attach, "HiCache storage backend attached.\n"),
        (Method::DELETE, "/hicache/storage-backend", "", "HiCache storage backend detached.\n"),
        (Method::POST, "/hicache/storage-backend/clear", "", "HiCache storage backend cleared.\n"),
        (Method::POST, "/clear_hicache_storage_backend", "", "HiCache storage backend cleared.\n"),
    ] {
        assert_eq!(call(&server, method, path, body).await, (StatusCode::OK, said.to_owned()), "{path}");
    }
    let orders = server.mock.orders();
    assert_eq!(orders.len(), 6);
    let Order::Attach(given) = &orders[2] else { panic!("{orders:?}") };
    assert_eq!((given.backend.as_str(), given.settings.as_deref()), ("file", Some("{\"path\": \"/kv\"}")));
    for (body, part) in [
        ("{}", "hicache_storage_backend must be"),
        (r#"{"hicache_storage_backend": "tape"}"#, "use file"),
        (
            r#"{"hicache_storage_backend": "file", "hicache_storage_backend_extra_config_json": "[1"}"#,
            "JSON object in a text",
        ),
    ] {
        let (status, text) = call(&server, Method::PUT, "/hicache/storage-backend", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn storage_is_not_attached_under_running_requests() {
    let server = Server::new();
    server.mock.hold();
    let held = tokio::spawn(server.app_post("/generate", json!({ "text": "a" })));
    server.submitted(1).await;
    let file = r#"{"hicache_storage_backend": "file"}"#;
    let (status, text) = call(&server, Method::PUT, "/hicache/storage-backend", file).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(text.contains("1 requests are running"));
    server.mock.release();
    held.await.unwrap();
}

#[tokio::test]
async fn requests_are_aborted_by_their_whole_name() {
    let server = Server::new();
    server.mock.hold();
    let ten = tokio::spawn(server.app_post("/generate", json!({ "text": "a", "rid": "req-10" })));
    server.submitted(1).await;
    let one = tokio::spawn(server.app_post("/v1/completions", json!({ "prompt": "a", "rid": "req-1", "n": 2 })));
    server.submitted(3).await;
    assert_eq!(server.post("/abort_request", &json!({ "rid": "req-1" })).await.status, StatusCode::OK);
    let answer: Value = serde_json::from_str(&one.await.unwrap()).unwrap();
    assert_eq!(answer["choices"][1]["finish_reason"], "abort");
    assert_eq!(server.edge.in_flight(), 1);
    assert_eq!(server.post("/abort_request", &json!({ "abort_all": true, "rid": "" })).await.status, StatusCode::OK);
    let answer: Value = serde_json::from_str(&ten.await.unwrap()).unwrap();
    assert_eq!(answer["meta_info"]["finish_reason"]["type"], "abort");
    assert_eq!(server.edge.in_flight(), 0);
}

#[tokio::test]
async fn text_and_tokens_go_both_ways() {
    let server = Server::new();
    let body = server.post("/tokenize", &json!({ "prompt": "the city 🙂", "return_token_strs": true })).await.ok();
    assert_eq!((&body["tokens"][0], &body["max_model_len"]), (&json!(377), &json!(512)));
    assert_eq!(body["count"], body["tokens"].as_array().unwrap().len());
    assert_eq!(body["token_strs"][0], "<|begin|>");
    let back = server.post("/detokenize", &json!({ "tokens": body["tokens"] })).await.ok();
    assert_eq!((&back["prompt"], &back["text"]), (&json!("the city 🙂"), &json!("the city 🙂")));
    let chat = server.post("/tokenize", &json!({ "messages": [{ "role": "user", "content": "hello" }] })).await.ok();
    assert_eq!(chat["tokens"][0], 377);
    assert_ne!(chat["tokens"][1], 377);
    let many = server.post("/v1/tokenize", &json!({ "prompt": ["a", "b"], "add_special_tokens": false })).await.ok();
    assert_eq!(many["count"], json!([1, 1]));
}

#[tokio::test]
async fn a_key_is_needed_where_there_is_one() {
    let config = EdgeConfig { api_key: Some("sk-1".into()), ..EdgeConfig::default() };
    let server = Server::of(Mock::new(Mock::info("tiny-model", Mode::Unified)), config);
    for open in ["/health", "/health_generate", "/ready", "/metrics", "/"] {
        assert_eq!(server.get(open).await.status, StatusCode::OK, "{open}");
    }
    let with = |name: &str, value: &str| Request::get("/v1/models").header(name, value).body(Body::empty()).unwrap();
    for (name, value, status) in [
        ("authorization", "Bearer sk-1", 200),
        ("x-api-key", "sk-1", 200),
        ("authorization", "Bearer sk-2", 401),
        ("authorization", "sk-1", 401),
        ("x-api-key", "", 401),
        ("accept", "*/*", 401),
    ] {
        let answer = server.send(with(name, value)).await;
        assert_eq!(answer.status.as_u16(), status, "{name}: {value}");
        if status == 401 {
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            assert_eq!(answer.json()["error"]["type"], "authentication_error");
        }
    }
    assert_eq!(server.get("/status.json").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn names_of_requests_are_echoed() {
    let server = Server::new();
    let request = |path: &str| {
        let body = json!({ "prompt": "a", "text": "a" }).to_string();
        Request::post(path).header("x-request-id", "trace-7").body(Body::from(body)).unwrap()
    };
    for (path, pointer, id) in [("/v1/completions", "/id", "cmpl-trace-7"), ("/generate", "/meta_info/id", "trace-7")] {
        let answer = server.send(request(path)).await;
        assert_eq!(answer.headers["x-request-id"], "trace-7");
        assert_eq!(answer.ok().pointer(pointer).unwrap(), id);
    }
    assert_eq!(server.send(request("/nowhere")).await.headers["x-request-id"], "trace-7");
}

#[tokio::test]
async fn the_status_page_needs_nothing_from_elsewhere_and_shows_what_happens() {
    let server = Server::new();
    let page = server.get("/").await;
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(!page.text.contains("://"), "no other host is named");
    server.mock.hold();
    let held = tokio::spawn(server.app_post("/generate", json!({ "text": "a", "rid": "shown" })));
    server.submitted(1).await;
    let status = server.get("/status.json").await.ok();
    assert_eq!((&status["live"]["count"], &status["live"]["requests"][0]["rid"]), (&json!(1), &json!("shown")));
    assert_eq!(status["load"]["tiers"][0]["name"], "device");
    server.mock.release();
    held.await.unwrap();
    let status = server.get("/status.json").await.ok();
    assert_eq!((&status["live"]["count"], &status["live"]["recent"][0]["how"]), (&json!(0), &json!("stop")));
    // Everything that the page reads is there.
    for name in ["model", "mode", "health", "load", "live", "uptime_s", "version"] {
        assert!(page.text.contains(&format!("s.{name}")) && status.get(name).is_some(), "{name}");
    }
}

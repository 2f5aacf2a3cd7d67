//! The router about itself.

use super::*;

#[tokio::test]
async fn a_router_without_workers_is_alive_and_not_ready() {
    let router = Served::start(quick()).await;
    assert_eq!((router.get("/health").await.status, router.get("/readiness").await.status), (200, 503));
    let got = router.post("/v1/chat/completions", &chat()).await;
    assert_eq!((got.status, got.code().as_str()), (503, "server_selection_failed"));
    assert!(got.body.contains("no worker is up"));
    let got = router.get("/nope").await;
    assert_eq!((got.status, got.code().as_str()), (404, "unknown_path"));
}

#[tokio::test]
async fn readiness_names_the_role_that_is_missing() {
    let (prefill, decode) = (Mock::well("p").await, Mock::well("d").await);
    let alone = [
        (RouterConfig { prefill: vec![prefill.url.clone()], ..quick() }, "no decode worker is up"),
        (RouterConfig { decode: vec![decode.url.clone()], ..quick() }, "no prefill worker is up"),
    ];
    for (config, missing) in alone {
        let router = Served::ready(config, 1).await;
        let got = router.get("/readiness").await;
        assert_eq!((got.status, got.json()["reason"].as_str()), (503, Some(missing)), "{}", got.body);
    }
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    assert_eq!(router.get("/readiness").await.status, 200);
}

#[tokio::test]
async fn workers_of_other_versions_serve_and_a_warning_says_what_they_lack() {
    let rest = ["/get_server_info", "/get_model_info", "/get_load"];
    for lacks in
        [&["/v1/loads"][..], &["/server_info"], &["/model_info"], &["/server_info", "/model_info", "/v1/loads"]]
    {
        let worker = Mock::well("old").await;
        worker.shared.lacks.lock().unwrap().extend(lacks.iter().chain(&rest));
        let config = RouterConfig { worker_urls: vec![worker.url.clone()], ..quick() };
        let router = Served::ready(config, 1).await;
        let workers = router.get("/workers").await.json();
        let warning = workers["workers"][0]["warning"].as_str().expect("a warning");
        assert!(warning.contains(&lacks.join(", ")), "{lacks:?}: {warning}");
        assert_eq!(router.post("/v1/chat/completions", &chat()).await.status, 200, "{lacks:?}");
    }
    let whole = Mock::well("whole").await;
    let router = Served::ready(RouterConfig { worker_urls: vec![whole.url.clone()], ..quick() }, 1).await;
    assert_eq!(router.get("/workers").await.json()["workers"][0]["warning"], Value::Null);
}

#[tokio::test]
async fn workers_are_added_listed_and_removed() {
    let (prefill, decode) = (Mock::well("p").await, Mock::well("d").await);
    let router = Served::start(quick()).await;
    let new = json!({"url": prefill.url, "worker_type": "prefill", "bootstrap_port": 8999});
    let got = router.post("/workers", &new).await;
    assert_eq!((got.status, got.json()["status"].as_str()), (202, Some("accepted")));
    assert_eq!(router.post("/workers", &new).await.status, 409);
    router.post("/workers", &json!({"url": decode.url, "worker_type": "decode"})).await;
    router.until_up(2).await;
    let list = router.get("/workers").await.json();
    assert_eq!(list["workers"][0]["bootstrap_port"], 8999);
    assert_eq!(list["workers"][0]["model_id"], "tiny");
    assert_eq!((&list["stats"]["prefill_count"], &list["stats"]["decode_count"]), (&json!(1), &json!(1)));
    assert_eq!(router.post("/v1/chat/completions", &chat()).await.status, 200);
    assert_eq!(prefill.asked()[0].json()["bootstrap_port"], 8999);
    for (body, says) in [
        ("", "body"),
        ("{}", "url"),
        ("{\"url\":\"foo\"}", "http://"),
        ("{\"url\":\"http://a:1\",\"worker_type\":\"boss\"}", "boss"),
        ("{\"url\":\"http://a:1\",\"bootstrap_port\":1}", "prefill"),
        ("{\"url\":\"http://a:1\",\"worker_type\":\"prefill\",\"bootstrap_port\":70000}", "70000"),
    ] {
        let got = router.send("POST", "/workers", &[], body).await;
        assert_eq!((got.status, got.code().as_str()), (400, "invalid_worker"), "{body}");
        assert!(got.body.contains(says), "{body}: {}", got.body);
    }
    for id in ["x", "77", "-1", "4294967296"] {
        assert_eq!(router.send("DELETE", &format!("/workers/{id}"), &[], "").await.status, 404);
    }
}

#[tokio::test]
async fn models_come_from_workers_and_keep_what_those_say_of_them() {
    let (prefill, decode) = (Mock::well("p").await, Mock::well("d").await);
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let got = router.get("/v1/models").await;
    assert_eq!(got.headers["content-type"], "application/json");
    assert_eq!(got.json(), json!({"object": "list", "data": [{"id": "tiny", "max_model_len": 512}]}));
}

#[tokio::test]
async fn questions_are_passed_to_one_worker_or_to_all() {
    let (prefill, decode) = (Mock::well("p").await, Mock::well("d").await);
    *decode.shared.info.lock().unwrap() = json!({"internal_states": [{"last_gen_throughput": 1.5}]});
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let flushed = router.send("POST", "/flush_cache", &[], "").await;
    assert_eq!((flushed.status, flushed.json()["workers_flushed"].as_u64()), (200, Some(2)));
    assert_eq!(router.post("/tokenize", &json!({"prompt": "x"})).await.json(), json!({"count": 1}));
    let info = router.get("/get_server_info").await.json();
    assert_eq!(info["internal_states"][0]["last_gen_throughput"], 1.5);
    assert_eq!((info["prefill"].as_array().map(Vec::len), info["decode"].as_array().map(Vec::len)), (Some(1), Some(1)));
    router.post("/abort_request", &json!({"rid": "x"})).await;
    assert_eq!((prefill.until("/abort_request", 1).await.len(), decode.until("/abort_request", 1).await.len()), (1, 1));
}

#[tokio::test]
async fn a_worker_in_the_wrong_list_gets_nothing_and_says_why() {
    let (prefill, decode) = (Mock::well("p").await, Mock::well("d").await);
    *decode.shared.info.lock().unwrap() = json!({"disaggregation_mode": "prefill"});
    let router = Served::ready(pair(&prefill, &decode), 1).await;
    within(async {
        while router.get("/workers").await.json()["workers"][1]["error"].is_null() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let workers = router.get("/workers").await.json();
    assert_eq!(workers["workers"][1]["error"], "it says to be a prefill worker, and is listed as decode");
    assert_eq!(router.post("/v1/chat/completions", &chat()).await.status, 503);
}

#[tokio::test]
async fn the_key_is_asked_for_and_presented_to_workers() {
    let worker = Mock::well("u").await;
    let config = RouterConfig { worker_urls: vec![worker.url.clone()], api_key: Some("secret".into()), ..quick() };
    let router = Served::ready(config, 1).await;
    let body = chat().to_string();
    for (headers, status) in [
        (&[][..], 401),
        (&[("authorization", "Bearer wrong")][..], 401),
        (&[("authorization", "Bearer secret2")][..], 401),
        (&[("authorization", "secret")][..], 401),
        (&[("authorization", "Bearer secret")][..], 200),
        (&[("x-api-key", "secret")][..], 200),
    ] {
        assert_eq!(router.send("POST", "/v1/chat/completions", headers, &body).await.status, status, "{headers:?}");
    }
    assert_eq!(router.get("/workers").await.status, 401);
    assert!(worker.on(|_| true).iter().all(|seen| seen.headers["authorization"] == "Bearer secret"));
}

#[tokio::test]
async fn metrics_are_well_formed_and_count() {
    let (prefill, decode) = (Mock::well("p").await, Mock::well("d").await);
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    router.post("/v1/chat/completions", &chat()).await;
    router.post("/x\"y", &chat()).await;
    let text = router.get("/metrics").await.body;
    assert!(crate::exposition::verify(&text).expect("well-formed") > 20);
    for line in [
        "smg_router_requests_total{endpoint=\"/v1/chat/completions\",model=\"tiny\",streaming=\"false\"} 1",
        "smg_worker_selection_total{worker_type=\"prefill\",connection_mode=\"http\"} 1",
        "smg_worker_pool_size{worker_type=\"decode\",connection_mode=\"http\"} 1",
        "smg_http_responses_total{status_code=\"404\"} 1",
        "pd_router_finished_total 1",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    }
}

//! Failures before the first byte.

use super::*;

async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

const BUSY: &str = r#"{"error":{"message":"busy"}}"#;

#[tokio::test]
async fn a_failed_leg_is_tried_again_with_another_room_and_name() {
    for role in ["prefill", "decode"] {
        for behave in [Behave::Say(500, "{}"), Behave::Say(503, "{}"), Behave::Say(429, "{}"), Behave::CutAfter(0)] {
            let plan = |mine: bool| if mine { vec![behave.clone(), Behave::Well] } else { vec![Behave::Well] };
            let prefill = Mock::start("p", plan(role == "prefill")).await;
            let decode = Mock::start("d", plan(role == "decode")).await;
            let router = Served::ready(pair(&prefill, &decode), 2).await;
            let got = router
                .send("POST", "/v1/chat/completions", &[("x-request-id", "a")], &streamed(chat()).to_string())
                .await;
            // The prefill worker's failure may come when the decode worker has answered; then it is of no consequence.
            assert_eq!(got.status, 200, "{role} {behave:?}");
            let asked = decode.asked();
            if role == "decode" {
                assert_eq!(asked.len(), 2, "{behave:?}");
                assert_eq!(got.headers["x-pd-attempt"], "1");
                let rooms: Vec<_> = asked.iter().map(|seen| seen.json()["bootstrap_room"].clone()).collect();
                assert_ne!(rooms[0], rooms[1]);
                assert_eq!(asked[1].json()["rid"], "a-r1");
            }
        }
    }
}

#[tokio::test]
async fn a_prefill_worker_that_fails_ends_the_attempt_though_the_decode_worker_waits() {
    let prefill = Mock::start("p", vec![Behave::Say(503, "{}"), Behave::Well]).await;
    let decode = Mock::start("d", vec![Behave::Silent, Behave::Well]).await;
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let got = router.post("/v1/completions", &json!({"prompt": "x"})).await;
    assert_eq!((got.status, prefill.asked().len(), decode.asked().len()), (200, 2, 2));
    // The decode worker of the first attempt was told.
    decode.until("/abort_request", 1).await;
}

#[tokio::test]
async fn too_many_requests_stays_that_with_the_workers_words() {
    let (prefill, decode) = (Mock::well("p").await, Mock::start("d", vec![Behave::Say(429, BUSY)]).await);
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let got = router.post("/v1/chat/completions", &streamed(chat())).await;
    assert_eq!((got.status, got.body.as_str(), decode.asked().len()), (429, BUSY, 3));
    assert_eq!(got.headers["retry-after"], "7");
    assert_eq!(got.headers["content-type"], "application/json");
    assert_eq!(got.headers["content-length"], BUSY.len().to_string().as_str());
}

#[tokio::test]
async fn what_a_worker_finds_wrong_with_a_request_is_said_at_once() {
    for wrong_at in ["p", "d"] {
        let plan = |name: &str| if name == wrong_at { vec![Behave::Say(400, BUSY)] } else { vec![Behave::Silent] };
        let (prefill, decode) = (Mock::start("p", plan("p")).await, Mock::start("d", plan("d")).await);
        let router = Served::ready(pair(&prefill, &decode), 2).await;
        let got = router.post("/v1/chat/completions", &chat()).await;
        assert_eq!((got.status, got.body.as_str()), (400, BUSY));
        assert_eq!((prefill.asked().len(), decode.asked().len()), (1, 1));
    }
}

#[tokio::test]
async fn both_legs_fail_and_the_last_failure_is_told() {
    let (prefill, decode) = (
        Mock::start("p", vec![Behave::Say(500, "{\"p\":1}")]).await,
        Mock::start("d", vec![Behave::Say(500, "{\"p\":1}")]).await,
    );
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let got = router.post("/v1/chat/completions", &chat()).await;
    assert_eq!((got.status, got.body.as_str()), (500, "{\"p\":1}"));
    assert_eq!(decode.asked().len(), 3);
    // Nothing stays behind in the machine.
    let metrics = router.get("/metrics").await.body;
    assert!(metrics.contains("smg_http_connections_active 0\n"), "{metrics}");
    assert!(metrics.contains("pd_router_refused_retries_total 1\n"));
}

#[tokio::test]
async fn a_worker_that_is_gone_is_left_for_another_one() {
    let (prefill, decode, other) = (Mock::well("p").await, Mock::well("d").await, Mock::well("e").await);
    let slow = RouterConfig { health_check_interval_secs: 1000.0, ..pair(&prefill, &decode) };
    let router = Served::ready(RouterConfig { decode: vec![decode.url.clone(), other.url.clone()], ..slow }, 3).await;
    // Dropping stops it; its connections are closed when their tasks are.
    decode.shared.plan.lock().unwrap().splice(.., [Behave::CutAfter(0)]);
    for _ in 0..6 {
        let got = router.post("/v1/chat/completions", &chat()).await;
        assert_eq!((got.status, got.json()["id"].as_str()), (200, Some("e")));
    }
    assert!(!decode.asked().is_empty());
}

#[tokio::test]
async fn nobody_at_the_address_is_a_bad_gateway_with_the_reason() {
    let worker = Mock::well("u").await;
    let config = RouterConfig { worker_urls: vec![worker.url.clone()], health_check_interval_secs: 1000.0, ..quick() };
    let router = Served::ready(config, 1).await;
    worker.task.abort();
    worker.shared.plan.lock().unwrap().splice(.., [Behave::CutAfter(0)]);
    let got = router.post("/v1/chat/completions", &chat()).await;
    assert_eq!((got.status, got.code().as_str()), (502, "worker_error"));
    assert!(got.body.contains("3 attempts"), "{}", got.body);
    assert!(got.body.contains("127.0.0.1"), "{}", got.body);
}

#[tokio::test]
async fn a_worker_that_stays_silent_is_a_gateway_timeout() {
    let (prefill, decode) = (Mock::well("p").await, Mock::start("d", vec![Behave::Silent]).await);
    let config = RouterConfig { request_timeout_secs: 0.05, disable_retries: true, ..pair(&prefill, &decode) };
    let router = Served::ready(config, 2).await;
    let got = router.post("/v1/chat/completions", &chat()).await;
    assert_eq!((got.status, got.code().as_str()), (504, "worker_error"));
    decode.until("/abort_request", 1).await;
}

#[tokio::test]
async fn a_slow_worker_is_waited_for() {
    let (prefill, decode) = (Mock::well("p").await, Mock::start("d", vec![Behave::Gated]).await);
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let body = streamed(chat());
    let open = router.post("/v1/chat/completions", &body);
    let opening = async {
        decode.until("/v1/chat/completions", 1).await;
        loop {
            decode.shared.gate.notify_one();
            tokio::task::yield_now().await;
        }
    };
    let got = tokio::select! { got = open => got, () = opening => unreachable!() };
    assert_eq!((got.status, got.body.matches("\"i\":").count()), (200, 3));
}

#[tokio::test]
async fn a_breaker_opens_and_is_seen() {
    let (bad, good) = (Mock::start("b", vec![Behave::Say(500, "{}")]).await, Mock::well("g").await);
    let config =
        RouterConfig { worker_urls: vec![bad.url.clone(), good.url.clone()], cb_failure_threshold: 2, ..quick() };
    let router = Served::ready(config, 2).await;
    for _ in 0..8 {
        assert_eq!(router.post("/v1/completions", &json!({"prompt": "x"})).await.json()["id"], "g");
    }
    assert_eq!(bad.asked().len(), 2);
    let metrics = router.get("/metrics").await.body;
    assert!(metrics.contains(&format!("smg_worker_cb_state{{worker=\"{}\"}} 1\n", bad.url)), "{metrics}");
    assert!(metrics.contains(&format!("smg_worker_cb_state{{worker=\"{}\"}} 0\n", good.url)), "{metrics}");
}

#[tokio::test]
async fn a_worker_that_fails_its_health_checks_gets_nothing_until_it_is_back() {
    let (prefill, decode) = (Mock::well("p").await, Mock::well("d").await);
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    decode.shared.health.store(503, Ordering::Relaxed);
    router.until_up(1).await;
    let got = router.get("/readiness").await;
    assert_eq!((got.status, got.json()["reason"].as_str()), (503, Some("no decode worker is up")));
    let got = router.post("/v1/chat/completions", &chat()).await;
    assert_eq!((got.status, got.code().as_str()), (503, "server_selection_failed"));
    assert_eq!(got.headers["retry-after"], "1");
    decode.shared.health.store(200, Ordering::Relaxed);
    router.until_up(2).await;
    assert_eq!(router.post("/v1/chat/completions", &chat()).await.status, 200);
}

#[tokio::test]
async fn decode_workers_serve_alone_only_if_they_can() {
    let decode = Mock::well("d").await;
    let config = RouterConfig { prefill: vec![nobody().await], ..pair(&decode, &decode) };
    for (can, status) in [(false, 503), (true, 200)] {
        let router = Served::ready(RouterConfig { decode_serves_alone: can, ..config.clone() }, 1).await;
        let got = router.post("/v1/chat/completions", &chat()).await;
        assert_eq!(got.status, status, "{}", got.body);
    }
    assert_eq!(decode.asked().len(), 1);
}

#[tokio::test]
async fn one_request_more_than_the_router_takes_gets_429() {
    let worker = Mock::start("u", vec![Behave::Gated]).await;
    let config = RouterConfig { worker_urls: vec![worker.url.clone()], max_concurrent_requests: 1, ..quick() };
    let router = Served::ready(config, 1).await;
    let held = router.open("POST", "/generate", &[], &json!({"text": "x", "stream": true}).to_string()).await;
    let got = router.post("/generate", &json!({"text": "y"})).await;
    assert_eq!((got.status, got.code().as_str()), (429, "overloaded"));
    drop(held);
}

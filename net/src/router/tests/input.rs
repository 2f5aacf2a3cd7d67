//! What makes no sense: from clients and from configurations.

use super::*;
use pd_core::router::Policy;

#[tokio::test]
async fn bad_requests_are_refused_with_a_reason_and_reach_no_worker() {
    let (prefill, decode) = (Mock::well("p").await, Mock::well("d").await);
    let config = RouterConfig { max_payload_size: 4096, ..pair(&prefill, &decode) };
    let router = Served::ready(config, 2).await;
    let long = format!("{{\"prompt\":\"{}\"}}", "x".repeat(5000));
    for (path, body, status, says) in [
        ("/v1/chat/completions", "", 400, "not a JSON object"),
        ("/v1/chat/completions", "{not json", 400, "line 1 column 2"),
        ("/v1/chat/completions", "[]", 400, "a JSON object"),
        ("/v1/chat/completions", "null", 400, "a JSON object"),
        ("/v1/chat/completions", "{} trailing", 400, "trailing"),
        ("/v1/chat/completions", "{\"messages\":[", 400, "EOF"),
        ("/v1/chat/completions", "{\"stream\":\"yes\"}", 400, "stream must be true or false"),
        ("/v1/chat/completions", "{\"stream\":1}", 400, "stream must be true or false"),
        ("/v1/chat/completions", "{\"n\":-1}", 400, "n must be"),
        ("/v1/chat/completions", "{\"n\":\"2\"}", 400, "n must be"),
        ("/v1/chat/completions", "{\"n\":100000}", 400, "at most 4096"),
        ("/v1/chat/completions", "{\"a\":\"\\ud800\",\"\\ud800\":1}", 400, "JSON"),
        ("/v1/completions", "{\"prompt\":[]}", 400, "empty list"),
        ("/v1/completions", "{\"prompt\":[-1]}", 400, "token ids"),
        ("/v1/completions", "{\"prompt\":[1,\"x\"]}", 400, "token ids"),
        ("/v1/completions", "{\"prompt\":[[1.5]]}", 400, "token ids"),
        ("/generate", "{\"input_ids\":[4294967296]}", 400, "token ids"),
        ("/generate", &long, 413, "max_payload_size"),
    ] {
        let got = router.send("POST", path, &[], body).await;
        assert_eq!(got.status, status, "{path} {body}: {}", got.body);
        let error = got.json();
        let message = error["error"]["message"].as_str().expect("a message");
        assert!(message.contains(says), "{path} {body}: {message}");
        // Readers of SGLang's flat shape find theirs.
        assert_eq!(error["message"], message);
        assert_eq!(error["code"], status);
    }
    assert_eq!((prefill.asked().len(), decode.asked().len()), (0, 0));
    // It still serves.
    assert_eq!(router.post("/v1/chat/completions", &chat()).await.status, 200);
}

#[tokio::test]
async fn bytes_that_are_no_text_and_deep_nesting_are_refused() {
    let worker = Mock::well("u").await;
    let router = Served::ready(RouterConfig { worker_urls: vec![worker.url.clone()], ..quick() }, 1).await;
    let request = hyper::Request::post(format!("{}/generate", router.url))
        .body(Full::new(Bytes::from_static(b"{\"text\":\"\xff\xfe\"}")))
        .expect("valid");
    assert_eq!(within(router.pool.request(request)).await.expect("an answer").status(), 400);
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let got = router.send("POST", "/generate", &[], &deep).await;
    // Whether a parser takes it is the worker's matter; the router must survive it.
    assert!([200, 400].contains(&got.status));
    assert_eq!(router.post("/generate", &json!({"text": "x"})).await.status, 200);
}

#[test]
fn wrong_configurations_name_the_key_and_what_it_must_be() {
    let base = RouterConfig { prefill: vec!["http://a:1".into()], decode: vec!["http://b:1".into()], ..quick() };
    base.check().expect("the base is right");
    let list = |text: &str| vec![text.to_owned()];
    let cases: Vec<(&str, &str, RouterConfig)> = vec![
        ("prefill", "http://", RouterConfig { prefill: list("foo"), ..base.clone() }),
        ("prefill", "65535", RouterConfig { prefill: list("http://a:1 99999"), ..base.clone() }),
        ("prefill", "too many", RouterConfig { prefill: list("http://a:1 8998 x"), ..base.clone() }),
        ("prefill", "https", RouterConfig { prefill: list("https://a:1"), ..base.clone() }),
        ("decode", "bootstrap port", RouterConfig { decode: list("http://b:1 8998"), ..base.clone() }),
        ("decode", "twice", RouterConfig { decode: list("http://a:1/"), ..base.clone() }),
        ("worker_urls", "gRPC", RouterConfig { worker_urls: list("grpc://a:1"), ..base.clone() }),
        ("cache_threshold", "from 0 to 1", RouterConfig { cache_threshold: 1.5, ..base.clone() }),
        ("cache_threshold", "from 0 to 1", RouterConfig { cache_threshold: f64::NAN, ..base.clone() }),
        ("balance_rel_threshold", "from 1", RouterConfig { balance_rel_threshold: 0.5, ..base.clone() }),
        ("request_timeout_secs", "from", RouterConfig { request_timeout_secs: -1.0, ..base.clone() }),
        ("health_check_interval_secs", "from", RouterConfig { health_check_interval_secs: 0.0, ..base.clone() }),
        (
            "shutdown_grace_period_secs",
            "from",
            RouterConfig { shutdown_grace_period_secs: f64::INFINITY, ..base.clone() },
        ),
        ("retry_jitter_factor", "from 0 to 1", RouterConfig { retry_jitter_factor: 2.0, ..base.clone() }),
        ("retries_max", "at most", RouterConfig { retry_max_retries: 1000, ..base.clone() }),
        ("page_size", "power of two", RouterConfig { page_size: 3, ..base.clone() }),
        ("page_size", "power of two", RouterConfig { page_size: 0, ..base.clone() }),
        ("max_concurrent_requests", "more than 0", RouterConfig { max_concurrent_requests: 0, ..base.clone() }),
        (
            "health_check_endpoint",
            "start with /",
            RouterConfig { health_check_endpoint: "health".into(), ..base.clone() },
        ),
        ("request_id_headers", "header", RouterConfig { request_id_headers: list("a b"), ..base.clone() }),
        ("api_key", "ASCII", RouterConfig { api_key: Some("é".into()), ..base.clone() }),
        ("epoch", "2^23", RouterConfig { epoch: Some(1 << 23), ..base.clone() }),
        ("policy", "decode_serves_alone", RouterConfig { policy: Policy::AppendAware, ..base.clone() }),
        ("decode_policy", "another", RouterConfig { decode_policy: Some(Policy::AppendAware), ..base.clone() }),
    ];
    for (key, says, config) in cases {
        let error = config.check().expect_err(key);
        assert_eq!(error.key, key);
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_configuration_is_toml_under_sglangs_names() {
    let config: RouterConfig = toml::from_str(
        "prefill = [\"http://a:1 8998\"]\ndecode = [\"http://b:1\"]\npolicy = \"cache_aware\"\ncb_failure_threshold = 3\n",
    )
    .expect("valid");
    config.check().expect("right");
    assert_eq!(config.machine().breaker_failures, 3);
    let error = toml::from_str::<RouterConfig>("prefil = []").expect_err("misspelt").to_string();
    assert!(error.contains("prefil") && error.contains("prefill"), "{error}");
    assert!(toml::from_str::<RouterConfig>("policy = \"fastest\"").is_err());
}

//! What probes and scrapers ask, of a worker that works.

use pd_net::exposition;
use serde_json::json;

use crate::http::{ask, begin, metric, tokens, until};
use crate::process::Pd;

/// A request that takes longer than any test.
const ENDLESS: &str =
    r#"{"text": "The old river", "rid": "endless", "sampling_params": {"max_new_tokens": 8000, "ignore_eos": true}}"#;

#[test]
fn health_is_answered_many_times_while_one_long_prompt_is_computed() {
    let pd = Pd::start(&["serve", "--port", "0"]);
    let body = json!({ "input_ids": tokens(3, 3000), "sampling_params": { "max_new_tokens": 1 } });
    let prompt = begin(&pd.address, "POST", "/generate", &body.to_string());
    until(&pd.address, "sglang:num_running_reqs", |count| count == 1);
    let mut answered = 0;
    while metric(&pd.address, "pd_generated_tokens_total") == 0 {
        assert_eq!(ask(&pd.address, "GET", "/health", "").0, 200);
        answered += 1;
    }
    assert!(answered >= 20, "the prompt held up health checks: {answered} in its time");
    assert_eq!(prompt.good()["meta_info"]["prompt_tokens"], 3000);
}

#[test]
fn a_generating_health_check_computes_a_token_in_each_mode() {
    for mode in ["unified", "prefill", "decode"] {
        let pd = Pd::start(&["serve", "--port", "0", "--mode", mode, "--disaggregation-bootstrap-port", "0"]);
        let (status, text) = ask(&pd.address, "GET", "/health_generate", "");
        assert_eq!(status, 200, "{mode}: {text}");
        until(&pd.address, "pd_requests_total", |count| count == 1);
        until(&pd.address, "pd_rooms", |count| count == 0);
    }
}

#[test]
fn a_worker_that_drains_is_alive_not_ready_and_takes_nothing() {
    let pd = Pd::start(&["serve", "--port", "0"]);
    let endless = begin(&pd.address, "POST", "/generate", ENDLESS);
    until(&pd.address, "sglang:num_running_reqs", |count| count == 1);
    assert_eq!(ask(&pd.address, "GET", "/ready", "").0, 200);
    pd.tell_to_end();
    while ask(&pd.address, "GET", "/ready", "").0 == 200 {}
    assert_eq!(ask(&pd.address, "GET", "/ready", "").0, 503);
    assert_eq!(ask(&pd.address, "GET", "/health", "").0, 200);
    let (status, text) = ask(&pd.address, "POST", "/v1/completions", r#"{"prompt": "more"}"#);
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("shutting down"), "{text}");
    assert_eq!(ask(&pd.address, "POST", "/abort_request", r#"{"rid": "endless"}"#).0, 200);
    assert_eq!(endless.good()["meta_info"]["finish_reason"]["type"], "abort");
    let (status, log) = pd.end();
    assert!(status.success(), "{log}");
}

#[test]
fn a_full_queue_is_429() {
    let pd = Pd::start(&["serve", "--port", "0", "--max-running-requests", "1", "--max-queued-requests", "1"]);
    let _running = begin(&pd.address, "POST", "/generate", ENDLESS);
    until(&pd.address, "sglang:num_running_reqs", |count| count == 1);
    let _waiting = begin(&pd.address, "POST", "/generate", &ENDLESS.replace("endless", "waiting"));
    until(&pd.address, "sglang:num_queue_reqs", |count| count == 1);
    let (status, text) = ask(&pd.address, "POST", "/v1/completions", r#"{"prompt": "more"}"#);
    assert_eq!(status, 429, "{text}");
    assert!(text.contains("queue_full"), "{text}");
}

#[test]
fn scrapers_can_read_the_metrics_of_workers_and_of_the_router() {
    let up = Pd::start(&["up", "--port", "0", "--no-storage"]);
    let (status, text) = ask(&up.address, "POST", "/v1/completions", r#"{"prompt": "The old river", "max_tokens": 2}"#);
    assert_eq!(status, 200, "{text}");
    for address in [up.address.clone(), up.banner("prefill   http://"), up.banner("decode    http://")] {
        let (_, text) = ask(&address, "GET", "/metrics", "");
        let samples = exposition::verify(&text).unwrap_or_else(|why| panic!("{address}: {why}"));
        assert!(samples > 20, "{text}");
        let (status, text) = ask(&address, "HEAD", "/metrics", "");
        assert_eq!((status, text.as_str()), (200, ""));
    }
}

//! How processes end that are asked to.

use std::io::Read as _;

use serde_json::{Value, json};

use crate::http::{ask, begin, ready, tokens, until};
use crate::process::Pd;

/// A request that takes some seconds.
fn long(tokens_max: u32) -> String {
    let sampling = json!({ "temperature": 0, "max_new_tokens": tokens_max, "ignore_eos": true });
    json!({ "input_ids": tokens(5, 20), "sampling_params": sampling }).to_string()
}

#[test]
fn sigterm_lets_requests_end_that_run_and_takes_no_new_ones() {
    const TOKENS: usize = 1500;
    let worker = Pd::start(&["serve", "--port", "0"]);
    assert_eq!(ask(&worker.address, "GET", "/ready", "").0, 200);
    let running = begin(&worker.address, "POST", "/generate", &long(TOKENS as u32));
    until(&worker.address, "sglang:num_running_reqs", |count| count == 1);
    worker.tell_to_end();
    worker.says("SIGTERM: draining");
    let (status, text) = ask(&worker.address, "GET", "/ready", "");
    assert_eq!(status, 503, "{text}");
    let (status, text) = ask(&worker.address, "POST", "/generate", &long(1));
    assert_eq!(status, 503, "{text}");
    let (status, text) = running.end();
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(answer["output_ids"].as_array().expect("ids").len(), TOKENS);
    let (status, log) = worker.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("cut off"), "{log}");
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let worker = Pd::start(&["serve", "--port", "0"]);
    let url = format!("http://{}", worker.address);
    let router = Pd::start(&["router", "--port", "0", "--worker-urls", &url]);
    ready(&router.address);
    let mut running = begin(&router.address, "POST", "/generate", &long(8000));
    // The worker has one of its own: that of the router ends with the router.
    let _direct = begin(&worker.address, "POST", "/generate", &long(8000));
    until(&worker.address, "sglang:num_running_reqs", |count| count == 2);
    for process in [router, worker] {
        process.tell_to_end();
        process.says("SIGTERM: draining");
        process.tell_to_end();
        let (status, log) = process.end();
        assert_eq!(status.code(), Some(128 + 15), "{log}");
        assert!(log.contains("SIGTERM again"), "{log}");
    }
    let mut answer = String::new();
    let cut = running.stream.read_to_string(&mut answer);
    assert!(cut.is_err() || !answer.contains("output_ids"), "{answer}");
}

//! What workers say of their caches, and a router that listens.

use serde_json::{Value, json};

use crate::http::{ask, generate, metric, post, tokens, until};
use crate::process::Pd;

fn greedy() -> Value {
    json!({ "temperature": 0, "max_new_tokens": 2, "ignore_eos": true })
}

#[test]
fn a_router_sends_token_prompts_to_the_worker_that_says_to_have_them() {
    let worker = || Pd::start(&["serve", "--port", "0", "--enable-kv-events"]);
    let workers = [worker(), worker()];
    // Nobody but the workers themselves knows which of them computed what.
    for round in 0..8_u64 {
        generate(&workers[(round % 2) as usize].address, &tokens(90 + round, 400), &greedy());
    }
    let urls = workers.each_ref().map(|worker| format!("http://{}", worker.address));
    let router = Pd::start(&["router", "--port", "0", "--policy", "cache_aware", "--worker-urls", &urls[0], &urls[1]]);
    // 25 pages each, and the answers' own fill none.
    until(&router.address, "pd_router_index_entries", |count| count >= 8 * 25);
    for round in 0..8_u64 {
        let holder = &workers[(round % 2) as usize].address;
        let before = metric(holder, "pd_device_hit_tokens_total");
        let body = json!({ "input_ids": tokens(90 + round, 400), "sampling_params": greedy() });
        let answer = post(&router.address, "/generate", &body);
        assert!(answer["meta_info"]["cached_tokens"].as_u64().is_some_and(|count| count >= 384), "{answer}");
        until(holder, "pd_device_hit_tokens_total", |count| count > before);
    }
    // What they forget, the router forgets.
    for worker in &workers {
        assert_eq!(ask(&worker.address, "POST", "/flush_cache", "").0, 200);
    }
    until(&router.address, "pd_router_index_entries", |count| count == 0);
}

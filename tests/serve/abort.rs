//! Requests that are ended by name: their pages come back.

use serde_json::json;

use crate::http::{Asked, ask, begin, metric, post, tokens, until};
use crate::process::Pd;

/// Starts a request that would not end by itself.
fn endless(address: &str, seed: u64, rid: &str) -> Asked {
    let sampling = json!({ "max_new_tokens": 7000, "ignore_eos": true, "temperature": 0 });
    let body = json!({ "input_ids": tokens(seed, 300), "rid": rid, "sampling_params": sampling });
    begin(address, "POST", "/generate", &body.to_string())
}

fn is_aborted(asked: Asked) -> bool {
    asked.good()["meta_info"]["finish_reason"]["type"] == "abort"
}

#[test]
fn an_aborted_request_gives_its_pages_back_and_the_others_go_on() {
    let pd = Pd::start(&["serve", "--port", "0"]);
    let asked: Vec<Asked> = ["r-1", "r-10", "r-2"]
        .iter()
        .zip(1..)
        .map(|(rid, seed)| {
            let asked = endless(&pd.address, seed, rid);
            until(&pd.address, "sglang:num_running_reqs", |count| count == seed);
            asked
        })
        .collect();
    let pinned = metric(&pd.address, "pd_device_pinned_pages");
    // 300 tokens each are 18 pages and a part.
    assert!(pinned >= 3 * 19, "{pinned}");
    assert_eq!(ask(&pd.address, "POST", "/abort_request", r#"{"rid": "r-1"}"#).0, 200);
    let mut asked = asked.into_iter();
    assert!(is_aborted(asked.next().expect("three")), "r-1");
    // Names are whole names: r-10 goes on.
    until(&pd.address, "sglang:num_running_reqs", |count| count == 2);
    assert_eq!(ask(&pd.address, "POST", "/abort_request", r#"{"abort_all": true}"#).0, 200);
    assert!(asked.all(is_aborted));
    until(&pd.address, "pd_device_pinned_pages", |count| count == 0);
    assert_eq!(metric(&pd.address, "pd_cancelled_total"), 3);
    // Nothing is held by anybody: all of L1 can be forgotten.
    assert_eq!(ask(&pd.address, "POST", "/flush_cache", "").0, 200);
    until(&pd.address, "pd_device_used_pages", |count| count == 0);
    let answer = post(&pd.address, "/generate", &json!({ "text": "on", "sampling_params": { "max_new_tokens": 1 } }));
    assert_eq!(answer["meta_info"]["completion_tokens"], 1);
}

//! The case that pd was built for: a worker dies, and what it computed is found again.

use serde_json::json;

use crate::http::{generate, post, tokens, until};
use crate::process::{Folder, Pd};

/// Waits until L3 has the pages of a prompt, as the worker's own counters say.
fn persisted(address: &str, pages: u64) {
    until(address, "pd_persist_pages_total", |count| count >= pages);
}

#[test]
fn a_long_prompt_comes_back_from_disk_after_kill_9() {
    let folder = Folder::new("l3");
    let l3 = folder.join("kv");
    let arguments = ["serve", "--port", "0", "--hicache-storage-dir", &l3, "--max-total-tokens", "8k"];
    let prompt = tokens(1, 7000);
    let greedy = json!({ "temperature": 0, "max_new_tokens": 8, "ignore_eos": true });
    let first = Pd::start(&arguments);
    let (cold, about) = generate(&first.address, &prompt, &greedy);
    assert_eq!(about["cached_tokens"], 0);
    persisted(&first.address, 437);
    first.kill();

    let second = Pd::start(&arguments);
    let (reloaded, about) = generate(&second.address, &prompt, &greedy);
    assert_eq!(reloaded, cold);
    // All full pages: the rest of 8 tokens is computed for its logits.
    assert_eq!(about["cached_tokens"], 6992, "{about}");
    assert_eq!(about["cached_tokens_details"]["storage"], 6992, "{about}");
    // Not a byte of it served another prompt: one token differs in the first page.
    let mut other = prompt;
    other[3] ^= 1;
    let (_, about) = generate(&second.address, &other, &greedy);
    assert_eq!(about["cached_tokens"], 0, "{about}");
    let (status, log) = second.terminate();
    assert!(status.success(), "{log}");
}

#[test]
fn short_prompts_say_why_they_are_not_fetched() {
    let folder = Folder::new("short");
    let l3 = folder.join("kv");
    let arguments =
        ["serve", "--port", "0", "--page-size", "1", "--hicache-storage-dir", &l3, "--max-total-tokens", "4k"];
    let greedy = json!({ "temperature": 0, "max_new_tokens": 2 });
    let first = Pd::start(&arguments);
    let (cold, _) = generate(&first.address, &tokens(2, 7), &greedy);
    persisted(&first.address, 7);
    first.kill();
    let second = Pd::start(&arguments);
    let (again, about) = generate(&second.address, &tokens(2, 7), &greedy);
    assert_eq!(again, cold);
    assert_eq!(about["cached_tokens"], 0, "{about}");
    assert!(about["miss_reasons"]["too_short"].as_u64().is_some_and(|count| count >= 6), "{about}");
}

#[test]
fn a_planted_fact_is_recalled_through_prefill_decode_and_disk() {
    let folder = Folder::new("fact");
    let l3 = folder.join("kv");
    let arguments = ["up", "--port", "0", "--hicache-storage-dir", &l3];
    let filler = "The old river is quiet. A green boat waits near the mill. ".repeat(60);
    let text = format!("The password of Mira is tulip-4711. {filler} What is the password of Mira?");
    let chat = json!({
        "model": "pd-tiny", "temperature": 0, "max_tokens": 24,
        "messages": [{ "role": "user", "content": text }],
    });
    let said = |address: &str| {
        let answer = post(address, "/v1/chat/completions", &chat);
        let length = answer["usage"]["prompt_tokens"].as_u64().expect("a count");
        (answer["choices"][0]["message"]["content"].as_str().expect("text").to_owned(), length)
    };
    let first = Pd::start(&arguments);
    let cold = said(&first.address);
    assert!(cold.0.contains("tulip-4711"), "{cold:?}");
    assert_eq!(said(&first.address), cold);
    let prefill = first.banner("prefill   http://");
    persisted(&prefill, cold.1 / 16);
    first.kill();
    let second = Pd::start(&arguments);
    assert_eq!(said(&second.address), cold);
    let prefill = second.banner("prefill   http://");
    until(&prefill, "pd_storage_hit_tokens_total", |count| count > 0);
    let (status, log) = second.terminate();
    assert!(status.success(), "{log}");
}

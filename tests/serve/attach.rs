//! L3 that is attached to a worker while it serves.

use serde_json::{Value, json};

use crate::http::{ask, begin, generate, tokens, until};
use crate::process::{Folder, Pd};

const ROUTE: &str = "/hicache/storage-backend";

fn attach(address: &str, settings: &Value) -> (u16, String) {
    let mut body = json!({ "hicache_storage_backend": "file" });
    if !settings.is_null() {
        body["hicache_storage_backend_extra_config_json"] = settings.to_string().into();
    }
    ask(address, "PUT", ROUTE, &body.to_string())
}

/// The folder in use, as the worker says.
fn folder(address: &str) -> Option<String> {
    let (_, text) = ask(address, "GET", ROUTE, "");
    let said: Value = serde_json::from_str(&text).expect("JSON");
    let settings = said["hicache_storage_backend_extra_config_json"].as_str()?;
    let settings: Value = serde_json::from_str(settings).expect("JSON");
    Some(settings["path"].as_str().expect("a path").to_owned())
}

fn greedy() -> Value {
    json!({ "temperature": 0, "max_new_tokens": 4, "ignore_eos": true })
}

#[test]
fn a_folder_that_is_attached_later_serves_what_another_worker_left_there() {
    let folders = Folder::new("attach");
    let (one, two) = (folders.join("one"), folders.join("two"));
    let prompt = tokens(21, 1600);
    // A worker fills the folder, and ends.
    let first = Pd::start(&["serve", "--port", "0", "--hicache-storage-dir", &one]);
    let (cold, _) = generate(&first.address, &prompt, &greedy());
    until(&first.address, "pd_persist_pages_total", |count| count >= 100);
    assert!(first.terminate().0.success());

    // One that began without L3 finds it there.
    let pd = Pd::start(&["serve", "--port", "0", "--hicache-ratio", "2"]);
    let address = &pd.address;
    assert_eq!(folder(address), None);
    let (status, text) = attach(address, &json!({ "path": one, "size": "1GiB" }));
    assert_eq!(status, 200, "{text}");
    assert!(text.contains(&one), "{text}");
    assert_eq!(folder(address), Some(one.clone()));
    let (answer, about) = generate(address, &prompt, &greedy());
    assert_eq!(answer, cold);
    assert_eq!(about["cached_tokens_details"]["storage"], 1584, "{about}");

    // Another one in its place knows nothing of that prompt, and is filled from L2.
    let (status, text) = attach(address, &json!({ "path": two }));
    assert_eq!(status, 200, "{text}");
    assert_eq!(folder(address), Some(two.clone()));
    until(address, "pd_persist_pages_total", |count| count >= 99);
    assert!(pd.terminate().0.success());
    let third = Pd::start(&["serve", "--port", "0", "--hicache-storage-dir", &two]);
    let (answer, about) = generate(&third.address, &prompt, &greedy());
    assert_eq!(answer, cold);
    assert_eq!(about["cached_tokens_details"]["storage"], 1584, "{about}");
}

#[test]
fn a_folder_that_was_left_is_used_again_only_when_it_is_attached() {
    let folders = Folder::new("detach");
    let dir = folders.join("kv");
    let pd = Pd::start(&["serve", "--port", "0", "--hicache-storage-dir", &dir]);
    let address = &pd.address;
    let prompt = tokens(22, 1600);
    let (cold, _) = generate(address, &prompt, &greedy());
    until(address, "pd_persist_pages_total", |count| count >= 100);
    let (status, text) = ask(address, "DELETE", ROUTE, "");
    assert_eq!(status, 200, "{text}");
    assert_eq!(folder(address), None);
    assert_eq!(ask(address, "DELETE", ROUTE, "").0, 400);
    assert_eq!(ask(address, "POST", "/flush_cache", "").0, 200);
    let (answer, about) = generate(address, &prompt, &greedy());
    assert_eq!((answer, &about["cached_tokens"]), (cold.clone(), &json!(0)), "{about}");
    let (status, text) = attach(address, &Value::Null);
    assert_eq!(status, 200, "{text}");
    assert_eq!(folder(address), Some(dir));
    assert_eq!(ask(address, "POST", "/flush_cache", "").0, 200);
    let (answer, about) = generate(address, &prompt, &greedy());
    assert_eq!((answer, &about["cached_tokens_details"]["storage"]), (cold, &json!(1584)), "{about}");
}

#[test]
fn an_attach_that_cannot_be_done_says_why_and_changes_nothing() {
    let folders = Folder::new("busy");
    let (used, other) = (folders.join("used"), folders.join("other"));
    let file = folders.join("file");
    std::fs::write(&file, "no folder").expect("written");
    let pd = Pd::start(&["serve", "--port", "0", "--hicache-storage-dir", &used]);
    for (settings, says) in [
        (json!({ "path": file }), "file"),
        (json!({ "path": other, "depth": 3 }), "depth"),
        (json!({ "size": "1GiB" }), "path"),
        (json!({ "path": other, "size": "big" }), "big"),
    ] {
        let (status, text) = attach(&pd.address, &settings);
        assert_eq!(status, 400, "{settings}: {text}");
        assert!(text.contains(says), "{settings}: {text}");
    }
    let policy = json!({ "hicache_storage_backend": "file", "hicache_write_policy": "write_back" });
    let (status, text) = ask(&pd.address, "PUT", ROUTE, &policy.to_string());
    assert!(status == 400 && text.contains("hicache_write_policy is write_through"), "{text}");

    let sampling = json!({ "max_new_tokens": 7000, "ignore_eos": true });
    let body = json!({ "text": ["The old", "A green"], "sampling_params": sampling }).to_string();
    let running = begin(&pd.address, "POST", "/generate", &body);
    until(&pd.address, "sglang:num_running_reqs", |count| count == 2);
    let (status, text) = attach(&pd.address, &json!({ "path": other }));
    assert_eq!(status, 409, "{text}");
    assert!(text.contains("2 requests are being served"), "{text}");
    assert_eq!(folder(&pd.address), Some(used));
    drop(running);
    until(&pd.address, "sglang:num_running_reqs", |count| count == 0);
    assert_eq!(attach(&pd.address, &json!({ "path": other })).0, 200);

    let without = Pd::start(&["serve", "--port", "0"]);
    let (status, text) = attach(&without.address, &json!({ "path": other }));
    assert!(status == 400 && text.contains("--hicache-ratio"), "{text}");
}

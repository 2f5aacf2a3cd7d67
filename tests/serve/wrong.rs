//! Bad input to the commands: an error that says what, where and what to do; status 2; nothing left running.

use std::io::Write as _;

use crate::http::{ask, generate, tokens};
use crate::process::{Folder, Pd, command};
use serde_json::json;

#[test]
fn what_cannot_be_served_is_refused_at_the_start() {
    let folder = Folder::new("wrong");
    let write = |name: &str, text: &str| {
        let path = folder.0.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::File::create(&path).expect("a file").write_all(text.as_bytes()).expect("written");
        path.display().to_string()
    };
    let unknown = write("unknown.toml", "page_sise = 16\n");
    let typed = write("typed.toml", "page_size = \"many\"\n");
    let broken = write("broken/config.json", "{\"architectures\": [");
    let broken = broken.trim_end_matches("/config.json").to_owned();
    write("strange/config.json", "{\"architectures\": [\"MambaForCausalLM\"], \"model_type\": \"mamba\"}");
    let strange = folder.join("strange");
    let nowhere = folder.join("nowhere");
    let file = write("file", "");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("bound").port().to_string();
    let _held = std::net::TcpListener::bind(format!("127.0.0.1:{taken}"));
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let held_port = held.local_addr().expect("bound").port().to_string();
    let cases: Vec<(Vec<&str>, &[&str])> = vec![
        (vec!["serve", "--config", &nowhere], &["cannot read", "nowhere"]),
        (vec!["serve", "--config", &unknown], &["page_sise", "unknown.toml"]),
        (vec!["serve", "--config", &typed], &["typed.toml", "page_size"]),
        (vec!["serve", "--model-path", &nowhere], &["nowhere", "no such folder"]),
        (vec!["serve", "--model-path", &broken], &["config.json"]),
        (vec!["serve", "--model-path", &strange], &["MambaForCausalLM"]),
        (vec!["serve", "--mode", "half"], &["half", "unified"]),
        (vec!["serve", "--page-size", "0"], &["--page-size is 0"]),
        (vec!["serve", "--page-size", "12"], &["--page-size is 12", "power of two"]),
        (vec!["serve", "--context-length", "0"], &["--context-length is 0"]),
        (vec!["serve", "--context-length", "100000"], &["--context-length is 100000", "8192"]),
        (vec!["serve", "--max-total-tokens", "3"], &["--max-total-tokens is 3", "two pages"]),
        (vec!["serve", "--max-total-tokens", "64x"], &["64x"]),
        (vec!["serve", "--max-total-tokens", "900G"], &["L1"]),
        (vec!["serve", "--hicache-ratio=-1"], &["--hicache-ratio"]),
        (vec!["serve", "--hicache-ratio", "0", "--hicache-storage-dir", &nowhere], &["L3 is reached through L2"]),
        (vec!["serve", "--port", "0", "--hicache-storage-dir", &file], &["file"]),
        (vec!["serve", "--hicache-write-policy", "write_never"], &["write_never", "write_through"]),
        (vec!["serve", "--request-timeout", "soon"], &["soon"]),
        (vec!["serve", "--port", &held_port], &["cannot listen", "--port 0"]),
        (vec!["serve", "--port", "70000"], &["70000"]),
        (vec!["serve", "--host", "no.such.host.invalid", "--port", "0"], &["cannot listen"]),
        (vec!["serve", "--log-level", "pd=loud=er"], &["--log-level"]),
        (vec!["serve", "--journal", "/nowhere/at/all.pdj", "--port", "0"], &["journal", "/nowhere/at/all.pdj"]),
        (
            vec!["serve", "--mode", "prefill", "--port", "0", "--disaggregation-bootstrap-port", &held_port],
            &["bootstrap server cannot listen"],
        ),
        (vec!["up", "--mode", "prefill"], &["--mode", "pd serve"]),
        (vec!["up", "--no-storage", "--hicache-storage-dir", &nowhere], &["contradict"]),
        (vec!["router", "--prefill", "not a url"], &["prefill"]),
        (vec!["router", "--decode", "http://a:1", "--decode", "http://a:1"], &["twice"]),
        (vec!["router", "--journal", "/nowhere/at/all.pdj", "--port", "0"], &["journal", "/nowhere/at/all.pdj"]),
        (vec!["router", "--policy", "best"], &["best", "cache_aware"]),
        (vec!["router", "--config", &unknown], &["page_sise"]),
        (vec!["bench", "--base-url", "ftp://x"], &["base_url"]),
        (vec!["bench", "--dataset-name", "trace"], &["--dataset-path"]),
        (vec!["bench", "--dataset-name", "trace", "--dataset-path", &nowhere], &["nowhere"]),
        (vec!["bench", "--goodput", "ttft"], &["ttft"]),
        (vec!["bench", "--base-url", "http://127.0.0.1:9", "--num-prompts", "1"], &["127.0.0.1:9"]),
    ];
    for (arguments, says) in cases {
        let output = command(&arguments).output().expect("pd runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        for word in says {
            assert!(text.contains(word), "{arguments:?} should say {word:?}: {text}");
        }
        assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    }
}

#[test]
fn a_decode_worker_without_its_prefill_says_so_and_serves_on() {
    let decode =
        Pd::start(&["serve", "--mode", "decode", "--port", "0", "--disaggregation-bootstrap-timeout", "300ms"]);
    let body = json!({
        "input_ids": tokens(9, 40), "sampling_params": { "max_new_tokens": 4 },
        "bootstrap_host": "127.0.0.1", "bootstrap_port": 9, "bootstrap_room": 77,
    });
    let (status, text) = ask(&decode.address, "POST", "/generate", &body.to_string());
    assert!((500..600).contains(&status), "{status} {text}");
    assert!(text.contains("bootstrap"), "{text}");
    // 2.2.2.2 is nobody: the answer comes, from KV that never came.
    let body = json!({
        "input_ids": tokens(9, 40), "sampling_params": { "max_new_tokens": 4, "ignore_eos": true },
        "bootstrap_host": "2.2.2.2", "bootstrap_port": 9, "bootstrap_room": 78,
    });
    let (status, text) = ask(&decode.address, "POST", "/generate", &body.to_string());
    assert_eq!(status, 200, "{text}");
    let (status, _) = ask(&decode.address, "GET", "/health", "");
    assert_eq!(status, 200);
}

#[test]
fn damaged_objects_in_l3_are_never_served() {
    let folder = Folder::new("damage");
    let l3 = folder.join("kv");
    let arguments = ["serve", "--port", "0", "--hicache-storage-dir", &l3, "--max-total-tokens", "4k"];
    let greedy = json!({ "temperature": 0, "max_new_tokens": 6, "ignore_eos": true });
    let prompt = tokens(4, 1600);
    let first = Pd::start(&arguments);
    let (cold, _) = generate(&first.address, &prompt, &greedy);
    let (status, log) = first.terminate();
    assert!(status.success(), "{log}");
    // A byte in each 20,000 of what was written.
    for entry in std::fs::read_dir(&l3).expect("L3") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let mut bytes = std::fs::read(&path).expect("a file of L3");
            for at in (9_000..bytes.len()).step_by(20_000) {
                bytes[at] ^= 0x40;
            }
            std::fs::write(&path, bytes).expect("damaged");
        }
    }
    let second = Pd::start(&arguments);
    let (again, _) = generate(&second.address, &prompt, &greedy);
    assert_eq!(again, cold);
    let (healed, _) = generate(&second.address, &prompt, &greedy);
    assert_eq!(healed, cold);
}

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
    let unknown = write("unknown.toml", "# all about pages\n  page_sise = 16\n");
    let typed = write("typed.toml", "page_size = \"many\"\n");
    let broken = write("broken/config.json", "{\"architectures\": [");
    let broken = broken.trim_end_matches("/config.json").to_owned();
    write("strange/config.json", "{\"architectures\": [\"MambaForCausalLM\"], \"model_type\": \"mamba\"}");
    let strange = folder.join("strange");
    let nowhere = folder.join("nowhere");
    let file = write("file", "");
    let (below, probed) = (format!("{file}/below"), folder.join("probe"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("bound").port().to_string();
    let _held = std::net::TcpListener::bind(format!("127.0.0.1:{taken}"));
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let held_port = held.local_addr().expect("bound").port().to_string();
    let cases: Vec<(Vec<&str>, &[&str])> = vec![
        (vec!["serve", "--config", &nowhere], &["cannot read", "nowhere"]),
        (vec!["serve", "--config", &unknown], &["unknown.toml:2:3: ", "page_sise", "did you mean `page_size`"]),
        (vec!["serve", "--config", &typed], &["typed.toml:1:13: ", "page_size"]),
        (vec!["serve", "--page-sise", "16"], &["--page-sise", "--page-size"]),
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
        (
            vec!["serve", "--hicache-write-policy", "write_thru"],
            &["write_thru", "did you mean `write_through`", "write_back"],
        ),
        (vec!["serve", "--request-timeout", "soon"], &["soon"]),
        (vec!["serve", "--port", &held_port], &["cannot listen", "(process ", "--port 0"]),
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
        (vec!["router", "--hardware", &nowhere], &["--hardware", "nowhere/gpu.toml", "pd probe"]),
        (vec!["serve", "--device", "cpu", "--fast-math"], &["--fast-math", "--device cuda"]),
        (vec!["probe", "--output", &below], &["--output", "file/below"]),
        (vec!["probe", "--model-path", &nowhere, "--output", &probed], &["nowhere", "no such folder"]),
        (vec!["router", "--config", &unknown], &["unknown.toml:2:3: ", "page_sise"]),
        (vec!["bench", "--config", &unknown], &["unknown.toml:2:3: ", "page_sise"]),
        (vec!["up", "--config", &unknown], &["unknown.toml:2:3: ", "did you mean `page_size`"]),
        (vec!["router", "--port", &held_port], &["cannot listen", "(process ", "--port 0"]),
        (vec!["up", "--port", &held_port, "--no-storage"], &["cannot listen", "(process ", "--port 0"]),
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

/// Goal: flags go before variables, variables before the file. Method: a wrong value in each, and which one is complained of.
#[test]
fn flags_go_before_variables_and_variables_before_the_file() {
    let folder = Folder::new("origins");
    // Command, key, and three values that are wrong each in its own way.
    let cases = [
        ("serve", "page_size", "PD_PAGE_SIZE", ["12", "20", "24"]),
        ("up", "page_size", "PD_PAGE_SIZE", ["12", "20", "24"]),
        ("router", "cache_threshold", "PD_ROUTER_CACHE_THRESHOLD", ["2.5", "3.5", "4.5"]),
        ("bench", "random_range_ratio", "PD_BENCH_RANDOM_RANGE_RATIO", ["2.5", "3.5", "4.5"]),
    ];
    for (name, key, variable, [in_file, in_variable, in_flag]) in cases {
        let file = folder.join(&format!("{name}.toml"));
        std::fs::write(&file, format!("{key} = {in_file}\n")).expect("written");
        let flag = format!("--{}", key.replace('_', "-"));
        let mut told = vec![name, "--config", &file];
        let complaint = |told: &[&str], value: Option<&str>| {
            let output = command(told).envs(value.map(|value| (variable, value))).output().expect("pd runs");
            assert_eq!(output.status.code(), Some(2), "{told:?}");
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let said = complaint(&told, None);
        assert!(said.contains(&format!("is {in_file}")), "{said}");
        let said = complaint(&told, Some(in_variable));
        assert!(said.contains(&format!("is {in_variable}")), "{said}");
        told.extend([flag.as_str(), in_flag]);
        let said = complaint(&told, Some(in_variable));
        assert!(said.contains(&format!("is {in_flag}")), "{said}");
    }
}

#[test]
fn the_banner_says_where_options_come_from_and_a_misspelt_variable_is_noticed() {
    let folder = Folder::new("banner");
    let file = folder.join("pd.toml");
    std::fs::write(&file, "page_size = 32\nlog_level = \"warn\"\n").expect("written");
    let variables = [("PD_THREADS", "1"), ("PD_PAGESIZE", "64")];
    let worker = Pd::start_with(&["serve", "--port", "0", "--config", &file], &variables);
    let log = worker.log();
    assert!(log.contains(&format!("options   port (flags); threads (PD_*); page_size ({file})")), "{log}");
    assert!(log.contains("PD_PAGESIZE is no variable of pd") && log.contains("did you mean PD_PAGE_SIZE?"), "{log}");
    assert!(log.contains("a page of 32"), "{log}");
    let (status, log) = worker.terminate();
    assert!(status.success() && !log.contains("draining"), "its log begins at warn: {log}");
}

/// Goal: what needs no model runs in a small container. Method: a limit of the shell, and a home that cannot be written.
#[test]
fn little_memory_and_no_home_are_enough_for_what_does_not_serve() {
    let scenario = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/short_prompt.toml");
    for arguments in ["--version", "--help", "serve --help", &format!("sim {scenario}")] {
        let script = format!("ulimit -v 262144 && exec {} {arguments}", env!("CARGO_BIN_EXE_pd"));
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]).env_clear().env("HOME", "/proc/nowhere").env("TMPDIR", "/proc/nowhere");
        let output = shell.output().expect("a shell");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments}: {} {said}", output.status);
        assert!(!output.stdout.is_empty(), "{arguments}");
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

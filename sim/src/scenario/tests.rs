//! Bad scenario files get a message with file, line and the nearest right name.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Overrides, load};

const GOOD: &str = r#"about = "a test"
model = "llama-3.1-8b"

[[worker]]
gpu = "h200"
page_size = 64
hicache_ratio = 2.0

[[load]]
kind = "poisson"
rate = "3/s"
requests = 10
prompt_tokens = 100
output_tokens = 5

[expect]
"requests.finished" = "== 10"
"#;

fn scenarios() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios")
}

/// Writes a scenario beside the real ones' library and loads it.
fn outcome(name: &str, text: &str, set: &[&str]) -> Result<usize, String> {
    let folder = std::env::temp_dir().join(format!("pd-scenario-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for part in ["hw", "models"] {
        let target = folder.join(part);
        if !target.exists() {
            fs::create_dir_all(&target).unwrap();
            for entry in fs::read_dir(scenarios().join(part)).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
            }
        }
    }
    let file = folder.join("case.toml");
    fs::write(&file, text).unwrap();
    let overrides = Overrides { set: set.iter().map(|&one| one.to_owned()).collect(), ..Overrides::default() };
    let result = load(&file, &overrides).map(|cases| cases.len()).map_err(|error| error.to_string());
    fs::remove_dir_all(&folder).unwrap();
    result.map_err(|message| message.replace(&*folder.to_string_lossy(), "DIR"))
}

/// The message for a good scenario with one line changed.
fn message(name: &str, from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    outcome(name, &GOOD.replace(from, to), &[]).expect_err("the change makes it bad")
}

#[test]
fn a_good_file_loads() {
    assert_eq!(outcome("good", GOOD, &[]), Ok(1));
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_right_one() {
    let message = message("key", "hicache_ratio", "hicache_ration");
    assert!(message.starts_with("DIR/case.toml:7: "), "{message}");
    assert!(message.contains("did you mean `hicache_ratio`?"), "{message}");
}

#[test]
fn a_wrong_unit_says_which_units_there_are() {
    let message = message("unit", "\"3/s\"", "\"3 per second\"");
    assert!(message.starts_with("DIR/case.toml:"), "{message}");
    assert!(message.contains("/s"), "{message}");
}

#[test]
fn impossible_hardware_is_explained() {
    let message = message("hardware", "model = \"llama-3.1-8b\"", "model = \"llama-3.1-70b\"");
    assert!(message.contains("llama-3.1-70b"), "{message}");
    assert!(message.starts_with("DIR/case.toml:5"), "{message}");
}

#[test]
fn an_unknown_gpu_model_or_link_gets_the_nearest_name() {
    let gpu = message("gpu", "gpu = \"h200\"", "gpu = \"h20\"");
    assert!(gpu.contains("h200") && gpu.starts_with("DIR/case.toml:5"), "{gpu}");
    let model = message("model", "llama-3.1-8b", "llama-3.1-8");
    assert!(model.contains("llama-3.1-8b") && model.starts_with("DIR/case.toml:2"), "{model}");
}

#[test]
fn a_missing_trace_is_named_with_the_nearest_file() {
    let load = "[[load]]\nkind = \"trace\"\nformat = \"mooncake\"\nfile = \"hw/h200.tom\"\n\n[expect]";
    let text = GOOD.replace("[expect]", load);
    let message = outcome("trace", &text, &[]).unwrap_err();
    assert!(message.contains("h200.tom") && message.contains("h200.toml"), "{message}");
}

#[test]
fn a_scenario_that_an_idle_run_would_pass_is_refused() {
    let message = message("idle", "== 10", ">= 0");
    assert!(message.contains("a run in which nothing happens"), "{message}");
}

#[test]
fn several_workers_without_a_router_are_refused() {
    let message = message("router", "gpu = \"h200\"", "count = 2");
    assert!(message.contains("[router]"), "{message}");
}

#[test]
fn set_changes_one_item_or_all_and_refuses_what_is_not_there() {
    assert_eq!(outcome("set", GOOD, &["worker.page_size=16", "worker.0.mode=unified", "seed=5"]), Ok(1));
    let unknown = outcome("unknown", GOOD, &["worker.pagesize=16"]).unwrap_err();
    assert!(unknown.contains("did you mean `page_size`?"), "{unknown}");
    let beyond = outcome("beyond", GOOD, &["worker.3.page_size=16"]).unwrap_err();
    assert!(beyond.contains("worker.0"), "{beyond}");
    let wrong = outcome("wrong", GOOD, &["wroker.page_size=16"]).unwrap_err();
    assert!(wrong.contains("did you mean \"worker\"?"), "{wrong}");
}

#[test]
fn a_missing_file_is_named_with_the_nearest_one() {
    let error = load(&scenarios().join("restart_relod.toml"), &Overrides::default()).unwrap_err();
    assert!(error.to_string().contains("restart_reload.toml"), "{error}");
}

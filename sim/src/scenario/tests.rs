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
fn a_gate_on_something_that_no_report_has_is_refused_before_the_run() {
    let gate = |name: &str, gate: &str| {
        message(
            "gate",
            "\"requests.finished\" = \"== 10\"",
            &format!("\"x\" = \">= 1\"\n\"{gate}\" = \"== 0\"").replace("\"x\"", &format!("\"{name}\"")),
        )
    };
    // Without the check this gate would hold for ever: what never happened counts as 0.
    for (wrong, right) in [
        ("misses.hol", "misses.hole"),
        ("marks.hicache.scaned", "marks.hicache.scanned"),
        ("finish.failed_lane_device_", "finish.failed_lane_device"),
        ("refused.queue_fulll", "refused.queue_full"),
        ("links.w0.h2dd.bytes", "links.w0.h2d.bytes"),
    ] {
        let message = gate("requests.finished", wrong);
        assert!(message.starts_with("DIR/case.toml:18: "), "{message}");
        assert!(message.contains(&format!("did you mean \"{right}\"?")), "{message}");
    }
    assert!(gate("requests.finished", "router.routed").contains("there is no [router]"));
}

#[test]
fn a_prefix_of_a_content_that_nobody_has_is_refused() {
    let list = "[[load]]\nkind = \"list\"\nrequests = [\n  { at = \"0s\", prompt_tokens = 9, content = \"manual\" },\n  \
                { at = \"1s\", prompt_tokens = 9, prefix = { of = \"manuel\", tokens = 4 } },\n]\n\n[expect]";
    let message = outcome("prefix", &GOOD.replace("[expect]", list), &[]).unwrap_err();
    assert!(message.contains("no request has the content \"manuel\"; did you mean \"manual\"?"), "{message}");
    // A name of another load is as good.
    let known = "prefixes = [{ tokens = 64, content = \"manuel\" }]\noutput_tokens = 5";
    let text = GOOD.replace("output_tokens = 5", known).replace("[expect]", list);
    assert_eq!(outcome("prefixes", &text, &[]), Ok(1));
}

#[test]
fn a_name_that_the_library_lacks_is_reported_with_the_folder_in_full() {
    let message = message("folder", "gpu = \"h200\"", "gpu = \"b300\"");
    assert!(message.contains("no b300.toml in DIR/hw"), "{message}");
}

#[test]
fn a_scenario_without_a_library_says_what_is_missing() {
    let folder = std::env::temp_dir().join(format!("pd-scenario-{}-bare", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("case.toml");
    fs::write(&file, GOOD).unwrap();
    let message = load(&file, &Overrides::default()).unwrap_err().to_string();
    fs::remove_dir_all(&folder).unwrap();
    assert!(message.contains("hw/ and models/") && message.contains(&*folder.to_string_lossy()), "{message}");
}

#[test]
fn a_policy_that_does_not_fit_is_called_by_its_name() {
    let router = "[router]\ndecode_policy = \"append_aware\"\n\n[expect]";
    let message = outcome("policy", &GOOD.replace("[expect]", router), &[]).unwrap_err();
    assert!(message.contains("decode_policy is append_aware"), "{message}");
}

#[test]
fn the_context_of_the_model_is_enforced_unless_the_worker_has_its_own() {
    let run = |set: &[&str]| {
        let overrides = Overrides { set: set.iter().map(|&one| one.to_owned()).collect(), ..Overrides::default() };
        let case = load(&scenarios().join("short_prompt.toml"), &overrides).unwrap().remove(0);
        let outcome = crate::world::World::new(case.setup).run();
        crate::report::values(&outcome)
    };
    let long = run(&["load.0.requests=[{ at = \"0s\", prompt_tokens = 131072 }]", "worker.max_total_tokens=200k"]);
    assert_eq!((long["requests.refused"], long["refused.prompt_too_long"]), (1.0, 1.0));
    let own =
        run(&["worker.context_length=10", "load.0.requests=[{ at = \"0s\", prompt_tokens = 7, output_tokens = 9 }]"]);
    assert_eq!((own["requests.finished"], own["tokens.output"]), (1.0, 3.0));
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

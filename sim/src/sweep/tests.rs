//! Sweeps of a queue that takes milliseconds to simulate: expansion, common random numbers, gates, files of runs.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::scenario::Overrides;
use crate::sweep::log::LogError;

/// A folder of its own for each test; gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pd-sweep-{}-{name}", std::process::id()));
        // A library of its own, and everything named by path.
        fs::create_dir_all(path.join("hw")).unwrap();
        fs::create_dir_all(path.join("models")).unwrap();
        Self(path)
    }

    fn write(&self, sweep: &str) -> PathBuf {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
        let library = library.display();
        let text = format!(
            r#"about = "a queue"
model = "{library}/models/qwen3-0.6b.toml"
network = {{ near = "{library}/hw/nvlink4.toml", far = "{library}/hw/net_25g.toml", host_link = "{library}/hw/pcie5.toml" }}

[[worker]]
page_size = 1024
max_total_tokens = "64k"
max_running_requests = 1
disable_overlap_schedule = true
service = {{ prefill = "1ms", ideal_links = true }}

[[load]]
kind = "poisson"
rate = "600/s"
requests = 400
prompt_tokens = 100
output_tokens = 1

[expect]
"requests.finished" = "== 400"

{sweep}
"#
        );
        let file = self.0.join("queue.toml");
        fs::write(&file, text).unwrap();
        file
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const RATES: &str = r#"[sweep]
grid = { "load.0.rate" = ["300/s", "600/s", "900/s"] }
seeds = 4
show = ["queue.mean_ms"]
"#;

fn read(file: &Path, set: &[&str]) -> Document {
    let overrides = Overrides { set: set.iter().map(|&one| one.to_owned()).collect(), ..Overrides::default() };
    Document::read(file, &overrides).unwrap_or_else(|error| panic!("{error}"))
}

fn prepared(document: &Document) -> Sweep {
    document.sweep().unwrap().sweep(document, RUNS_MAX).unwrap_or_else(|error| panic!("{error}"))
}

fn done(document: &Document, threads: usize, log: Option<&mut Log>) -> Done {
    let threads = NonZeroUsize::new(threads).unwrap();
    prepared(document).run(document, threads, log, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
}

/// The message for a sweep that is wrong, before or while it runs.
fn message(name: &str, sweep: &str) -> String {
    let folder = Folder::new(name);
    let file = folder.write(sweep);
    let result = Document::read(&file, &Overrides::default()).and_then(|document| {
        let sweep = document.sweep().expect("there is a sweep").sweep(&document, RUNS_MAX)?;
        sweep.run(&document, NonZeroUsize::MIN, None, &mut |_| {})
    });
    result.expect_err("the sweep is wrong").to_string().replace(&*folder.0.to_string_lossy(), "DIR")
}

#[test]
fn a_grid_is_all_combinations_and_a_list_is_combined_with_it() {
    let folder = Folder::new("grid");
    let text = r#"[sweep]
grid = { "load.0.rate" = ["300/s", "600/s"], "load.0.requests" = [400] }
list = [{ name = "fast", "worker.0.service.prefill" = "1ms" }, { name = "slow", "worker.0.service.prefill" = "1500us" }]
expect = ["[name=slow, load.0.rate=600/s].queue.mean_ms > [name=fast, load.0.rate=600/s].queue.mean_ms"]
"#;
    let document = read(&folder.write(text), &[]);
    let labels: Vec<String> = prepared(&document).points.iter().map(Point::label).collect();
    assert_eq!(
        labels,
        [
            "point fast (worker.0.service.prefill=1ms, load.0.rate=300/s, load.0.requests=400)",
            "point fast (worker.0.service.prefill=1ms, load.0.rate=600/s, load.0.requests=400)",
            "point slow (worker.0.service.prefill=1500us, load.0.rate=300/s, load.0.requests=400)",
            "point slow (worker.0.service.prefill=1500us, load.0.rate=600/s, load.0.requests=400)",
        ]
    );
    assert!(done(&document, 2, None).is_good());
}

#[test]
fn what_comes_out_does_not_depend_on_threads() {
    let folder = Folder::new("threads");
    let document = read(&folder.write(RATES), &[]);
    let (one, two) = (done(&document, 1, None), done(&document, 2, None));
    assert_eq!(one.runs, two.runs);
    assert_eq!((page(&one), json(&one), csv(&one)), (page(&two), json(&two), csv(&two)));
}

/// The same seeds at all points: seed by seed the difference of two equal points is nothing, and that of two rates is
/// known far better than either mean.
#[test]
fn points_have_common_random_numbers() {
    let folder = Folder::new("common");
    let text = r#"[sweep]
list = [{ "load.0.rate" = "600/s" }, { "load.0.rate" = "600/s" }, { "load.0.rate" = "610/s" }]
seeds = 5
"#;
    let done = done(&read(&folder.write(text), &[]), 2, None);
    assert_eq!(done.difference(1, "queue.mean_ms"), Ok(Interval { mean: 0.0, half_width: 0.0 }));
    let (value, difference) =
        (done.interval(2, "queue.mean_ms").unwrap(), done.difference(2, "queue.mean_ms").unwrap());
    assert!(difference.mean > 0.0 && !difference.covers(0.0), "{difference:?}");
    assert!(difference.half_width * 4.0 < value.half_width, "{difference:?} of {value:?}");
}

#[test]
fn gates_compare_points_and_say_what_they_found() {
    let folder = Folder::new("gates");
    let document = read(&folder.write(RATES), &[]);
    let done = done(&document, 2, None);
    for (text, holds) in [
        ("0.queue.mean_ms < 1.queue.mean_ms < 2.queue.mean_ms", true),
        ("0.queue.mean_ms < 2.queue.mean_ms < 1.queue.mean_ms", false),
        ("[load.0.rate=900/s].queue.mean_ms / 0.queue.mean_ms >= 3", true),
        ("2.queue.mean_ms - 1.queue.mean_ms > 1e3", false),
        ("-(1.queue.mean_ms + 1) * 2 <= 0.25", true),
        ("0.requests.finished == 1.requests.finished", true),
        ("0.requests.finished != 1.requests.finished", false),
        ("0.marks.kv.write_back == 0", true),
        ("0.queue.mean_ms / (1.requests.refused) > 0", false),
    ] {
        let gate = Gate::parse(text, &done.sweep.points).unwrap_or_else(|problem| panic!("{text}: {problem}"));
        let verdict = gate.check(&done);
        assert_eq!(verdict.broken.is_none(), holds, "{text}: {verdict:?}");
    }
    let typo = Gate::parse("0.queue.men_ms > 0", &done.sweep.points).unwrap().check(&done).broken.unwrap();
    assert!(typo.contains("did you mean \"queue.mean_ms\"?"), "{typo}");
}

#[test]
fn gates_that_cannot_be_read_say_why() {
    let folder = Folder::new("unread");
    let points = prepared(&read(&folder.write(RATES), &[])).points;
    for (text, part) in [
        ("0.queue.mean_ms", "has no relation"),
        ("1 < 2", "names no point"),
        ("7.queue.mean_ms > 1", "there is no point 7; the last is 2"),
        ("slow.queue.mean_ms > 1", "no point is called \"slow\"; they have numbers, 0 to 2"),
        ("[load.0.rate=1/s].queue.mean_ms > 1", "no point sets [load.0.rate=1/s]"),
        ("[].queue.mean_ms > 1", "write [KEY=VALUE"),
        ("(0.queue.mean_ms > 1", "( is not closed"),
        ("0.queue.mean_ms > 1 %", "cannot be read from \"%\" on"),
        ("queue > 1", "names no value"),
        ("0.queue.mean_ms >", "expected a number"),
    ] {
        let problem = Gate::parse(text, &points).expect_err(text);
        assert!(problem.contains(part), "{text}: {problem}");
    }
}

#[test]
fn a_scenarios_own_gates_hold_for_each_run() {
    let folder = Folder::new("own");
    let text = "[sweep]\ngrid = { \"load.0.requests\" = [400, 300] }";
    let done = done(&read(&folder.write(text), &[]), 2, None);
    assert!(done.runs[0][0].broken.is_empty());
    assert_eq!(done.runs[1][0].broken, ["requests.finished == 400   found: 300"]);
    assert!(!done.is_good());
    assert!(page(&done).contains("GATE BROKEN  point 1 (load.0.requests=300), seed 1: requests.finished"));
}

#[test]
fn bad_sweeps_are_refused_with_key_and_point() {
    for (name, sweep, parts) in [
        ("unknown", "[sweep]\nseed = 3", &["DIR/queue.toml:23", "did you mean `seeds`?"][..]),
        ("empty", "[sweep]\ngrid = { \"load.0.rate\" = [] }", &["grid \"load.0.rate\" has no values"]),
        ("scalar", "[sweep]\ngrid = { \"load.0.rate\" = \"3/s\" }", &["must be a list of values"]),
        ("nothing", "[sweep]\nseeds = 2", &["has no points"]),
        ("none", "[sweep]\nseeds = 0\ngrid = { seed = [1] }", &["seeds is 0", "queue.toml:23"]),
        ("twice", "[sweep]\nseeds = [1, 2, 1]\ngrid = { seed = [1] }", &["seed 1 is listed twice"]),
        ("word", "[sweep]\nseeds = \"three\"\ngrid = { seed = [1] }", &["a number of seeds or a list"]),
        ("many", "[sweep]\nseeds = 501\ngrid = { \"load.0.requests\" = [1, 2] }", &["1002 runs", "--runs-max 1002"]),
        ("named", "[sweep]\nlist = [{ name = \"2\" }]", &["a point cannot be called \"2\""]),
        ("same", "[sweep]\nlist = [{ name = \"a\" }, { name = \"a\" }]", &["two points are called \"a\""]),
        (
            "key",
            "[sweep]\ngrid = { \"wroker.0.tp\" = [1, 2] }",
            &["point 0 (wroker.0.tp=1), set \"wroker.0.tp\"", "did you mean \"worker\"?"],
        ),
        (
            "type",
            "[sweep]\ngrid = { \"worker.0.tp\" = [1, \"two\"], \"load.0.requests\" = [400] }",
            &["point 1 (load.0.requests=400, worker.0.tp=two), set \"worker.0.tp\"", "invalid type: string \"two\""],
        ),
        (
            "value",
            "[sweep]\ngrid = { \"worker.0.mem_fraction_static\" = [0.5, 7] }",
            &["point 1 (worker.0.mem_fraction_static=7), set \"worker.0.mem_fraction_static\"", "must be from 0 to 1"],
        ),
        ("gate", "[sweep]\ngrid = { seed = [1] }\nexpect = [\"0.x\"]", &["expect \"0.x\": has no relation"]),
        ("show", "[sweep]\ngrid = { seed = [1] }\nshow = []", &["show is empty"]),
    ] {
        let message = message(name, sweep);
        for part in parts {
            assert!(message.contains(part), "{name}: no \"{part}\" in: {message}");
        }
    }
}

#[test]
fn a_set_that_does_not_fit_is_named() {
    let folder = Folder::new("set");
    let file = folder.write(RATES);
    let overrides =
        |set: &[&str]| Overrides { set: set.iter().map(|&one| one.to_owned()).collect(), ..Overrides::default() };
    let fails = |set: &[&str]| crate::scenario::load(&file, &overrides(set)).unwrap_err().to_string();
    let message = fails(&["worker.0.page_size=512", "worker.0.max_running_requests=many"]);
    assert!(message.contains("--set worker.0.max_running_requests=many: invalid type: string \"many\""), "{message}");
    let message = fails(&["sweep.seeds=few"]);
    assert!(message.contains("--set sweep.seeds=few"), "{message}");
    let document = read(&file, &["sweep.seeds=2", "expect.\"requests.finished\"=== 300", "load.0.requests=300"]);
    let done = done(&document, 1, None);
    assert_eq!(done.runs[0].len(), 2);
    assert!(done.is_good(), "the gate was changed together with the load");
}

#[test]
fn a_sweep_goes_on_where_it_was() {
    let folder = Folder::new("resume");
    let document = read(&folder.write(RATES), &[]);
    let file = folder.0.join("runs.jsonl");
    let open = |build: &str| Log::open(&file, "queue", build).unwrap();
    let whole = done(&document, 2, Some(&mut open("a")));
    assert_eq!(whole.resumed, 0);
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 12);

    // The power went while the last line was being written.
    fs::write(&file, &text[..text.len() - 20]).unwrap();
    let mut log = open("a");
    assert!(log.is_torn());
    assert_eq!(log.known().len(), 11);
    let again = done(&document, 2, Some(&mut log));
    assert_eq!((again.resumed, &again.runs), (11, &whole.runs));
    assert_eq!((page(&again), json(&again)), (page(&whole), json(&whole)));
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 12, "the torn line is gone, its run is there");

    // More seeds and another point: what was run stays.
    let more = read(&folder.write(&RATES.replace("seeds = 4", "seeds = 5")), &[]);
    let mut log = open("a");
    assert_eq!(done(&more, 2, Some(&mut log)).resumed, 12);
    let changed = read(&folder.write(RATES), &["worker.0.service.prefill=900us"]);
    let mut log = open("a");
    assert_eq!(done(&changed, 2, Some(&mut log)).resumed, 0, "another world under the same name");

    // Another build may do something else.
    let log = open("b");
    assert_eq!((log.known().len(), log.others()), (0, 27));
}

#[test]
fn a_file_that_is_not_of_this_sweep_is_refused_with_its_line() {
    let folder = Folder::new("foreign");
    let document = read(&folder.write(RATES), &["sweep.seeds=1"]);
    let file = folder.0.join("runs.jsonl");
    done(&document, 1, Some(&mut Log::open(&file, "queue", "a").unwrap()));
    let error = Log::open(&file, "other", "a").unwrap_err();
    assert!(matches!(error, LogError::Scenario { line: 1, .. }), "{error}");
    assert!(error.to_string().contains("is a run of scenario \"queue\", this is \"other\""), "{error}");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen('{', "<", 1)).unwrap();
    let error = Log::open(&file, "queue", "a").unwrap_err();
    assert!(matches!(error, LogError::Line { line: 1, .. }), "{error}");
}

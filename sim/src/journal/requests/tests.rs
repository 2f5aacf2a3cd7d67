//! What one run was asked for is asked of another: the same again, or what is wrong with the journal.

use std::cell::RefCell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::*;
use crate::journal::{Detail, Header, Recorder};
use crate::record::Outcome;
use crate::scenario::{self, Case, Overrides};
use crate::world::World;

/// A file that goes with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("pd-requests-{}-{name}", std::process::id()));
        std::fs::File::create(&path).expect("a file").write_all(bytes).expect("written");
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// One worker, prompts that share prefixes, a client that goes away, a flush.
const ALONE: &str = r#"
about = "one worker"
model = "qwen3-0.6b"
check = true

[[worker]]
page_size = 16

[[load]]
kind = "fixed"
every = "10ms"
requests = 300
prompt_tokens = { uniform = [5, 300] }
output_tokens = { uniform = [1, 60] }
prefixes = [{ tokens = 100 }, { tokens = 0 }]

[[event]]
at = "55ms"
do = "cancel"
request = 5

[[event]]
at = "200ms"
do = "flush"

[expect]
"requests.finished" = ">= 1"
"#;

fn case(text: &str, load: Option<&[&File]>) -> Result<Case, String> {
    let load = load.map(|files| files.iter().map(|file| file.0.clone()).collect());
    let overrides = Overrides { load, ..Overrides::default() };
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/here.toml");
    let document =
        scenario::Document::of(text.to_owned(), &here, &overrides, None).map_err(|error| error.to_string())?;
    document.cases().map(|mut cases| cases.remove(0)).map_err(|error| error.to_string())
}

/// Runs it; what it was, and its journal.
fn record(text: &str, load: Option<&[&File]>) -> (Outcome, Vec<u8>) {
    let mut world = World::new(case(text, load).expect("a scenario").setup);
    let recorder = Rc::new(RefCell::new(Recorder::new(Vec::new(), &Header::new("test", Detail::Inputs))));
    world.observe(Box::new(Rc::clone(&recorder)));
    let outcome = world.run();
    assert_eq!(outcome.violations, []);
    let (bytes, _) = recorder.borrow_mut().finish_into(outcome.ended).expect("memory takes it");
    (outcome, bytes)
}

#[test]
fn what_one_run_was_asked_for_makes_the_same_run_again() {
    let (first, journal) = record(ALONE, None);
    assert!(first.requests.iter().any(|request| !request.is_complete()), "somebody went away");
    let journal = File::new("again", &journal);
    // All that the scenario says itself is gone: the load, the client that leaves, the flush.
    let without = ALONE.split("[[load]]").next().expect("a beginning");
    let (second, _) = record(without, Some(&[&journal]));
    assert_eq!(second.requests.len(), 300);
    assert_eq!(second.hash, first.hash);
    // Cut off in its last block, what is whole is taken and the reader is told.
    let bytes = std::fs::read(&journal.0).expect("a file");
    let torn = File::new("torn", &bytes[..bytes.len() - 100]);
    let recording = Recording::read(&[&torn.0]).expect("half of it");
    assert!((1..300).contains(&recording.requests.len()), "{}", recording.requests.len());
    assert!(recording.notes.iter().any(|note| note.contains("is cut off")), "{:?}", recording.notes);
}

#[test]
fn journals_that_make_no_load_are_refused_with_what_would_do() {
    let (_, alone) = record(ALONE, None);
    let pair = include_str!("../../../../scenarios/one_p_one_d.toml").replace("requests = 300", "requests = 3");
    let pair = pair.replace("\"== 300\"", "\">= 0\"").replace("\">= 300\"", "\">= 1\"");
    let (_, several) = record(&pair, None);
    let (alone, several) = (File::new("alone", &alone), File::new("several", &several));
    let text = File::new("text", b"about = 1\n");
    let refused = |scenario: &str, files: &[&File], says: &[&str]| {
        let problem = case(scenario, Some(files)).expect_err("makes no sense");
        for word in says {
            assert!(problem.contains(word), "should say {word:?}: {problem}");
        }
    };
    refused(ALONE, &[&several], &["3 machines", "run the scenario"]);
    refused(ALONE, &[&text], &["is not a journal"]);
    refused(ALONE, &[&alone, &alone], &["a unified and a unified worker", "a prefill and a decode worker"]);
    refused(ALONE, &[&alone, &alone, &alone], &["3 journals", "clocks"]);
    refused(
        &ALONE.replace("page_size = 16", "page_size = 32"),
        &[&alone],
        &["hold 16 tokens", "32", "worker.page_size=16"],
    );
}

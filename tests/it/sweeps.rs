//! Every sweep and map of `scenarios/` is run and held to its gates; a map of many cells on a part of them (`pd sim`
//! runs all).

use std::path::PathBuf;

use pd::sim::parallel;
use pd::sim::scenario::{Document, Overrides};
use pd::sim::sweep::RUNS_MAX;

use crate::scenario_files;

/// What is changed here, so that a test takes seconds.
const SMALLER: [(&str, &[&str]); 1] =
    [("append_prefill", &["append_map.reuse=[0.0, 0.5, 0.9, 0.99]", "append_map.tokens=[\"8Ki\"]"])];

fn documents() -> Vec<Document> {
    let read = |path: PathBuf| {
        let stem = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        let set = SMALLER.iter().filter(|(name, _)| *name == stem).flat_map(|(_, set)| *set);
        let overrides = Overrides { set: set.map(|&one| one.to_owned()).collect(), ..Overrides::default() };
        Document::read(&path, &overrides).unwrap_or_else(|error| panic!("{error}"))
    };
    scenario_files().into_iter().map(read).collect()
}

#[test]
fn every_sweep_and_map_passes_its_gates() {
    let mut problems = Vec::new();
    let mut count = 0;
    for document in documents() {
        if let Some(config) = document.sweep() {
            count += 1;
            let sweep = config.sweep(&document, RUNS_MAX).unwrap_or_else(|error| panic!("{error}"));
            let done = sweep.run(&document, parallel::threads(), None, &mut |_| {});
            let done = done.unwrap_or_else(|error| panic!("{error}"));
            if !done.is_good() {
                problems.push(pd::sim::sweep::page(&done));
            }
        }
        if let Some(config) = document.append_map() {
            count += 1;
            let map = config.run(&document, parallel::threads(), &mut |_| {});
            let map = map.unwrap_or_else(|error| panic!("{error}"));
            if !map.broken().is_empty() {
                problems.push(pd::sim::append_map::page(&map));
            }
        }
    }
    assert!(count >= 1, "no sweep was found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

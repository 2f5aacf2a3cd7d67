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

/// Deployments that the router's estimates were not tried on while they were written: other hardware, models, links,
/// lengths, batches, and other ways to schedule.
const OTHERS: [&[&str]; 4] = [
    &["model=llama-3.1-70b", "worker.gpu=a100_sxm", "worker.tp=8", "append_map.links=[\"nvlink3\", \"net_25g\"]"],
    &["model=qwen3-32b", "worker.gpu=h200", "worker.tp=2", "append_map.links=[\"net_200g\", \"tcp_100g\"]"],
    &[
        "model=mistral-7b",
        "worker.gpu=a100_sxm",
        "worker.enable_mixed_chunk=true",
        "worker.chunked_prefill_size=2048",
        "append_map.links=[\"nvlink3\", \"net_25g\"]",
    ],
    &[
        "model=mistral-7b",
        "worker.gpu=a100_sxm",
        "worker.disable_overlap_schedule=true",
        "worker.disaggregation_layerwise=false",
        "append_map.links=[\"nvlink3\", \"net_25g\"]",
    ],
];

/// Their cells, and what must hold in them.
const OTHER_CELLS: [&str; 4] = [
    "append_map.reuse=[0.05, 0.35, 0.65, 0.9]",
    "append_map.tokens=[\"2Ki\", \"20Ki\"]",
    "append_map.decodes=[6, 48]",
    "append_map.expect=[\
        { kind = \"router_agrees\", by = \"ttft\", percent_min = 95.0 },\
        { kind = \"router_agrees\", by = { weighted = 1.0 }, percent_min = 95.0 },\
        { kind = \"router_agrees\", by = { weighted = 3.0 }, percent_min = 95.0 }]",
];

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

#[test]
fn the_router_agrees_with_the_map_on_what_it_was_not_tried_on() {
    for others in OTHERS {
        let set = others.iter().chain(&OTHER_CELLS).map(|&one| one.to_owned()).collect();
        let overrides = Overrides { set, ..Overrides::default() };
        let file = crate::root().join("scenarios/append_prefill.toml");
        let document = Document::read(&file, &overrides).unwrap_or_else(|error| panic!("{error}"));
        let config = document.append_map().expect("the file has a map");
        let map = config.run(&document, parallel::threads(), &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
        assert!(map.broken().is_empty(), "{others:?}\n{}", pd::sim::append_map::page(&map));
    }
}

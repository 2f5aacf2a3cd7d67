//! Every file of `scenarios/` is run, held to its gates, and gives the same hash when it is run again.

use std::path::Path;

use pd::sim::report;
use pd::sim::scenario::{self, Overrides};
use pd::sim::world::World;

use crate::{root, scenario_files, toml_files};

fn run(path: &Path, check: bool) -> Vec<(String, u64, Vec<String>)> {
    let overrides = Overrides::default();
    let cases = scenario::load(path, &overrides).unwrap_or_else(|error| panic!("{error}"));
    cases
        .into_iter()
        .map(|mut case| {
            case.setup.check = case.setup.check && check;
            let outcome = World::new(case.setup).run();
            let values = report::values(&outcome);
            let mut problems: Vec<String> = case
                .gates
                .iter()
                .filter_map(|gate| gate.check(&values).err())
                .map(|broken| format!("{}: gate {} found {}", case.name, broken.gate, broken.found))
                .collect();
            problems.extend(outcome.violations.iter().map(|violation| format!("{}: {violation}", case.name)));
            (case.name, outcome.hash, problems)
        })
        .collect()
}

#[test]
fn every_scenario_passes_its_gates_and_checkers_change_nothing() {
    let mut problems = Vec::new();
    let mut count = 0;
    for path in scenario_files() {
        for ((name, hash, broken), (_, unchecked, _)) in run(&path, true).into_iter().zip(run(&path, false)) {
            count += 1;
            problems.extend(broken);
            if hash != unchecked {
                problems.push(format!("{name}: hash {hash:016x} with checkers, {unchecked:016x} without"));
            }
        }
    }
    assert!(count >= 20, "only {count} runs were found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The catalogue: each run says what happened elsewhere, with the numbers of the public reports, or that it was found by
/// reading the source.
#[test]
fn every_known_failure_is_cited() {
    let cited = |about: &str| {
        let is_number = |text: &str| text.trim_start().starts_with(|letter: char| letter.is_ascii_digit());
        about.split('#').skip(1).any(is_number) || about.contains("found in SGLang 0.5.7")
    };
    let mut count = 0;
    for path in toml_files("scenarios/known") {
        for case in scenario::load(&path, &Overrides::default()).unwrap_or_else(|error| panic!("{error}")) {
            count += 1;
            assert!(cited(&case.about), "{}: {} cites nothing", path.display(), case.name);
            assert!(case.gates.len() >= 2, "{}: {} has one gate only", path.display(), case.name);
        }
    }
    assert!(count >= 60, "only {count} runs in the catalogue");
}

#[test]
fn another_seed_gives_another_run() {
    let path = root().join("scenarios/one_p_one_d.toml");
    let hash = |seed| {
        let overrides = Overrides { seed: Some(seed), ..Overrides::default() };
        let case = scenario::load(&path, &overrides).unwrap().remove(0);
        World::new(case.setup).run().hash
    };
    assert_ne!(hash(1), hash(2));
    assert_eq!(hash(3), hash(3));
}

/// The hash of each scenario, as debug, release and any other platform must compute it. A change of behaviour changes
/// them: bless with `INSTA_UPDATE=always`, in a commit of its own that says why.
#[test]
fn hashes_are_those_that_were_recorded() {
    let mut lines = Vec::new();
    for path in scenario_files() {
        let is_in = |name: &&str| path.parent().is_some_and(|folder| folder.ends_with(name.trim_end_matches('/')));
        let folder = ["known/", "found/"].into_iter().find(is_in).unwrap_or_default();
        lines.extend(run(&path, false).into_iter().map(|(name, hash, _)| format!("{hash:016x}  {folder}{name}")));
    }
    insta::assert_snapshot!("hashes", lines.join("\n"));
}

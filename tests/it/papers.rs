//! Figures of papers and public measurements, replayed: `scenarios/papers`. Each test prints what was published next to
//! what a run shows (`cargo test --test it papers -- --nocapture`).

mod mooncake;
mod phases;
mod transfers;

use std::path::PathBuf;

use pd::sim::record::Outcome;
use pd::sim::report;
use pd::sim::scenario::expect::Values;
use pd::sim::scenario::{self, Overrides};
use pd::sim::world::World;

use crate::root;

/// One run of a scenario: the file itself or one of its variants, held to its gates.
struct Run {
    name: String,
    outcome: Outcome,
    values: Values,
}

fn file(name: &str) -> PathBuf {
    root().join(format!("scenarios/papers/{name}.toml"))
}

/// Runs a file and all its variants, and holds each to its gates.
fn runs(name: &str) -> Vec<Run> {
    let cases = scenario::load(&file(name), &Overrides::default()).unwrap_or_else(|error| panic!("{error}"));
    cases
        .into_iter()
        .map(|case| {
            let outcome = World::new(case.setup).run();
            let values = report::values(&outcome);
            for gate in &case.gates {
                if let Err(broken) = gate.check(&values) {
                    panic!("{}: gate {} found {}", case.name, broken.gate, broken.found);
                }
            }
            assert!(outcome.violations.is_empty(), "{}: {:?}", case.name, outcome.violations);
            Run { name: case.name, outcome, values }
        })
        .collect()
}

/// Runs one variant ("" for the file itself) with changes, which its gates do not know.
fn run_with(name: &str, variant: &str, set: &[String]) -> Run {
    let overrides = Overrides { set: set.to_vec(), ..Overrides::default() };
    let cases = scenario::load(&file(name), &overrides).unwrap_or_else(|error| panic!("{error}"));
    let wanted = if variant.is_empty() { name.to_owned() } else { format!("{name}/{variant}") };
    let case = cases.into_iter().find(|case| case.name == wanted).expect("the variant is in the file");
    let outcome = World::new(case.setup).run();
    let values = report::values(&outcome);
    Run { name: case.name, outcome, values }
}

/// How far `found` is from `published`, in percent.
fn off(found: f64, published: f64) -> f64 {
    100.0 * (found / published - 1.0)
}

/// Equal hashes for equal setups, here too.
#[test]
fn papers_have_the_hashes_that_were_recorded() {
    let small = ["transfer_h800", "incast", "small_pages", "segments", "splitwise_overlap", "distserve_fig1", "ppd"];
    let lines: Vec<String> = small
        .iter()
        .flat_map(|name| runs(name))
        .map(|run| format!("{:016x}  {}", run.outcome.hash, run.name))
        .collect();
    insta::assert_snapshot!("papers", lines.join("\n"));
}

//! A small swarm as part of every test run, what it dumps, and the proof that it would find something.

use std::fs;
use std::path::PathBuf;

use pd::core::mutant::{Mutant, Mutation};
use pd::sim::hardware::Library;
use pd::sim::report as of_run;
use pd::sim::scenario::{self, Overrides};
use pd::sim::swarm::fleet::{Fleet, Sum};
use pd::sim::swarm::{Finding, Stage, draw, pursue};
use pd::sim::world::World;

use crate::root;

fn stage() -> Stage {
    Stage::new(Library::new(root().join("scenarios")).in_memory().expect("the library is part of the repository"))
}

fn fleet(stage: &Stage, seeds: std::ops::Range<u64>, first_only: bool) -> Sum {
    Fleet { seeds, faults: &[], jobs: 2, first_only }.run(stage, &mut |_| true)
}

#[test]
fn hundreds_of_seeds_do_nothing_that_must_never_happen_and_do_it_twice() {
    let sum = fleet(&stage().twice(true).coverage(true), 0..300, false);
    let found: Vec<_> =
        sum.found.values().map(|found| format!("pd swarm --seed {}: {}", found.seed, found.failure)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
    // That it went well says something only if something was done.
    let reached: Vec<_> = sum.coverage.counts().map(|(name, _)| name.to_owned()).collect();
    for wanted in ["workers.handoffs_received", "workers.device_evicted_pages", "workers.retractions", "fault.restart"]
    {
        assert!(reached.iter().any(|name| name == wanted), "no run has reached {wanted}");
    }
}

/// Runs a file as `pd sim` does: hash, and whether its gates hold.
fn run_file(path: &std::path::Path) -> (u64, bool) {
    let mut cases = scenario::load(path, &Overrides::default()).unwrap_or_else(|error| panic!("{error}"));
    let case = cases.swap_remove(0);
    let outcome = World::new(case.setup).run();
    let values = of_run::values(&outcome);
    (outcome.hash, case.gates.iter().all(|gate| gate.check(&values).is_ok()))
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn a_plan_that_is_written_down_is_the_same_run() {
    let stage = stage();
    let path = scratch("swarm_plan.toml");
    for seed in 0..20 {
        let plan = draw(seed, &[]);
        fs::write(&path, plan.text("With \\ and \"\"\" in it.")).expect("the test folder can be written");
        assert_eq!(run_file(&path), (stage.run(&plan).hash, true), "seed {seed}");
    }
}

/// Plants a mistake, finds it, makes it small.
fn find(mutant: Mutant) -> Finding {
    let stage = stage().mutation(Mutation::of(mutant));
    let sum = fleet(&stage, 0..500, true);
    let first = sum.first().unwrap_or_else(|| panic!("{} is not found", mutant.name()));
    let plan = draw(first.seed, &[]);
    pursue(&stage, first.seed, &plan, &first.failure, 2_000)
}

#[test]
fn planted_mistakes_are_found_and_shrink_to_a_few_lines() {
    for mutant in [Mutant::TokenTwice, Mutant::ReleaseForgetsPage, Mutant::LostWakeup] {
        let finding = find(mutant);
        let small = &finding.small;
        assert!(finding.effort.is_minimal, "{}: {:?}", mutant.name(), finding.effort);
        assert_eq!(finding.small_failure.symptom(), finding.failure.symptom(), "{}", mutant.name());
        assert!(
            small.requests.len() <= 3 && small.faults.len() <= 2 && small.workers() <= 2,
            "{}: {}",
            mutant.name(),
            small.text("")
        );
        // Without the mistake the same scenario is good.
        let path = scratch(&format!("swarm_{}.toml", mutant.name()));
        fs::write(&path, finding.text("pd swarm")).expect("the test folder can be written");
        assert!(run_file(&path).1, "{}", mutant.name());
    }
}

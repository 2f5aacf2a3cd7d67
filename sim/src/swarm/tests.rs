//! Drawing, shrinking, and when two failures are the same.

use std::path::Path;

use super::failure::catch;
use super::keys::lower;
use super::*;
use crate::hardware::Library;

fn stage() -> Stage {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    Stage::new(Library::new(root).in_memory().expect("the library is part of the repository"))
}

/// The first seed whose plan is of this kind.
fn plan_with(is_wanted: impl Fn(&Plan) -> bool) -> Plan {
    (0..).map(|seed| draw(seed, &[])).find(is_wanted).expect("there are enough seeds")
}

#[test]
fn ten_thousand_plans_are_scenarios_and_equal_seeds_draw_equal_ones() {
    let stage = stage();
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..10_000 {
        let plan = draw(seed, &[]);
        assert!(plan == draw(seed, &[]), "seed {seed}");
        assert!(plan.can_recover() && plan.healed_ns() < plan.until_ns(), "seed {seed}");
        assert!((1..=6).contains(&plan.workers()) && !plan.requests.is_empty(), "seed {seed}");
        assert!(plan.requests.is_sorted_by_key(|request| request.at_ns), "seed {seed}");
        if let Err(failure) = stage.load(&plan.text("drawn")) {
            panic!("seed {seed}: {failure}");
        }
        kinds.extend(plan.faults.iter().map(|fault| fault.what));
    }
    let menu: std::collections::BTreeSet<_> = MENU.iter().map(|kind| kind.name).collect();
    assert_eq!(kinds, menu, "every kind is drawn");
}

#[test]
fn fewer_kinds_of_faults_leave_the_rest_as_it_was() {
    for seed in 0..200 {
        let (all, some) = (draw(seed, &[]), draw(seed, &["restart", "cancel"]));
        let kept: Vec<_> =
            all.faults.iter().filter(|fault| ["restart", "cancel"].contains(&fault.what)).cloned().collect();
        assert_eq!(some.faults, kept, "seed {seed}");
        assert_eq!(Plan { faults: Vec::new(), ..some }, Plan { faults: Vec::new(), ..all }, "seed {seed}");
    }
}

#[test]
fn a_plan_shrinks_to_the_very_parts_that_fail() {
    let has = |plan: &Plan| {
        let is_hit = |fault: &Fault| fault.what == "cancel" && fault.at_ns >= 1_234_567;
        let is_long = |request: &&Request| request.prompt >= 37;
        plan.faults.iter().any(is_hit)
            && plan.requests.iter().filter(is_long).count() >= 2
            && plan.roles().contains(&Role::Decode)
    };
    let plan = plan_with(|plan| has(plan) && plan.requests.len() > 5 && plan.workers() > 2 && plan.faults.len() > 5);
    let (small, effort) = shrink(&plan, 5_000, &mut |plan| has(plan));
    assert!(effort.is_minimal, "{effort:?}");
    assert_eq!((small.faults.len(), small.requests.len(), small.groups.len()), (1, 2, 1), "{}", small.text(""));
    assert!(small.requests.iter().all(|request| (request.prompt, request.output, request.at_ns) == (37, 1, 0)));
    assert_eq!(small.groups[0].role, Role::Decode);
    assert!(small.groups[0].keys.len() == 1 && small.common.is_empty() && small.network.is_empty());
    // The roundest time that still fails.
    assert!(small.faults[0].at_ns >= 1_234_567 && small.faults[0].at_ns <= plan.healed_ns());
    assert_eq!((small.router, small.loads.len(), small.seed), (None, 0, 1));
}

#[test]
fn settings_that_matter_stay_and_others_go() {
    let has = |plan: &Plan| {
        plan.groups.iter().any(|group| {
            group.keys.get("hicache_write_policy") == Some(&Value::Word("write_back"))
                && group.keys.count("chunked_prefill_size").is_some_and(|size| size >= 3)
        })
    };
    let plan = plan_with(|plan| has(plan) && plan.workers() > 2 && plan.network.len() > 1);
    let (small, _) = shrink(&plan, 5_000, &mut |plan| has(plan));
    let keys: Vec<_> = small.groups[0].keys.iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["max_total_tokens", "hicache_write_policy", "chunked_prefill_size"]);
    assert_eq!(small.groups[0].keys.count("chunked_prefill_size"), Some(3));
    assert_eq!((small.workers(), small.requests.len(), small.faults.len()), (1, 0, 0));
}

#[test]
fn faults_follow_the_workers_and_requests_that_they_name() {
    let names = |plan: &Plan| {
        let last = plan.workers() - 1;
        plan.faults
            .iter()
            .any(|fault| fault.what == "restart" && last > 0 && fault.keys.get("worker") == Some(&Value::Worker(last)))
    };
    let plan = plan_with(|plan| names(plan) && plan.groups.len() > 2);
    let last = plan.groups.last().expect("it has groups").name;
    let small = plan.without_worker(0);
    assert_eq!(small.workers(), plan.workers() - 1);
    let found = small.faults.iter().any(|fault| {
        let group = small.groups.last().expect("it has groups");
        fault.what == "restart"
            && group.name == last
            && fault.keys.get("worker") == Some(&Value::Worker(small.workers() - 1))
    });
    assert!(found, "{}", small.text(""));
    let cancels = plan_with(|plan| {
        plan.loads.is_empty() && plan.faults.iter().any(|fault| fault.keys.get("request") == Some(&Value::Request(3)))
    });
    let kept: Vec<usize> = (1..cancels.requests.len()).collect();
    let small = cancels.with_requests(&kept);
    assert!(small.faults.iter().any(|fault| fault.keys.get("request") == Some(&Value::Request(2))));
}

#[test]
fn the_bound_on_tries_holds() {
    let plan = plan_with(|plan| plan.requests.len() > 10);
    let mut tries = 0;
    let (_, effort) = shrink(&plan, 7, &mut |plan| {
        tries += 1;
        plan.requests.len() > 4
    });
    assert_eq!((tries, effort.tries, effort.is_minimal), (7, 7, false));
}

#[test]
fn simpler_values_are_simpler_until_there_are_none() {
    let values =
        [Value::Count(1000), Value::Span(1_234_567_891), Value::PerMille(999), Value::Signed(-77), Value::Pages(5, 90)];
    for value in values {
        let (mut value, mut steps) = (value, 0);
        while let Some(next) = value.simpler().pop() {
            value = next;
            steps += 1;
            assert!(steps < 10_000, "{value} has no end");
        }
    }
    assert_eq!(lower(10, 1).collect::<Vec<_>>(), [1, 6, 8, 9]);
    assert_eq!(lower(1, 1).count(), 0);
}

#[test]
fn a_panic_is_a_failure_with_its_place_and_the_thread_goes_on() {
    let failure = catch(|| assert!(std::hint::black_box(1) == 2, "page 7 is lost")).expect_err("it panics");
    assert!(matches!(&failure.noticed, Noticed::Panic(file) if file == "sim/src/swarm/tests.rs"), "{failure}");
    assert_eq!(failure.what, "page 7 is lost");
    let other = Failure { what: "page 12 is lost".to_owned(), ..failure.clone() };
    assert_eq!(failure.symptom(), other.symptom(), "numbers do not tell failures apart");
    assert_eq!(failure.symptom().slug(), "panic_page_is_lost");
    assert_eq!(catch(|| 5), Ok(5));
}

#[test]
fn what_is_found_does_not_depend_on_the_number_of_threads() {
    let stage = stage();
    let sum = |jobs| {
        let fleet = fleet::Fleet { seeds: 0..60, faults: &[], jobs, first_only: false };
        fleet.run(&stage, &mut |_| true)
    };
    let (one, three) = (sum(1), sum(3));
    assert_eq!((one.hash, one.events, one.requests), (three.hash, three.events, three.requests));
    assert_eq!((one.seeds, three.seeds), (60, 60));
}

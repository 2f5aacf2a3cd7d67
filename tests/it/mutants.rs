//! Every deliberate mistake of core is caught, by the checker that the table in `core/src/mutant.rs` names, in a small
//! world that is clean without it.
//!
//! Those that take a message that no well-behaved connection brings (`epoch_ignored`, `generation_ignored`,
//! `believe_copies`, `attempt_ignored`) are caught beside the worlds and routers that such messages are put into, in
//! `sim/src/world/strays.rs`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use pd::core::id::PageKey;
use pd::core::mutant::{Mutant, Mutation};
use pd::core::time::Instant;
use pd::sim::check::Violation;
use pd::sim::fault::{Action, Cancel, Order, Restart, StoreTear};
use pd::sim::scenario::{self, Overrides};
use pd::sim::setup::Setup;
use pd::sim::world::World;

use crate::root;

/// A world for some mutants.
struct Bed {
    name: &'static str,
    build: fn() -> Setup,
    mutants: &'static [Mutant],
}

const BEDS: &[Bed] = &[
    Bed {
        name: "tiers",
        build: tiers,
        mutants: &[
            Mutant::PublishLosesPin,
            Mutant::ReleaseForgetsPage,
            Mutant::HitCountedTwice,
            Mutant::EvictPinned,
            Mutant::PersistBeforeBackup,
            Mutant::PresentBeforeDurable,
            Mutant::LoadBackDoneAtStart,
            Mutant::PrefetchUnchecked,
            Mutant::FetchBlocksOthers,
            Mutant::DoubleAdmit,
            Mutant::BudgetLeak,
            Mutant::TokenTwice,
            Mutant::TokenAfterEnd,
        ],
    },
    Bed { name: "alone", build: alone, mutants: &[Mutant::LostWakeup] },
    Bed {
        name: "both_ends",
        build: both_ends,
        mutants: &[Mutant::TailTakenEarly, Mutant::TailTakenOverFlight, Mutant::TailNotPushed],
    },
    Bed { name: "write_back", build: write_back, mutants: &[Mutant::WriteBackDropsDirty] },
    Bed { name: "impatient", build: impatient, mutants: &[Mutant::FetchLeaksCapacity] },
    Bed { name: "short_of_memory", build: short_of_memory, mutants: &[Mutant::RetractionForgets] },
    Bed { name: "late", build: late, mutants: &[Mutant::DeadlineIgnored] },
    Bed {
        name: "pairs",
        build: pairs,
        mutants: &[
            Mutant::PublishBeforeDone,
            Mutant::WantedForgotten,
            Mutant::HandoffBeforeLanded,
            Mutant::RoomReused,
            Mutant::CancelDropped,
        ],
    },
    Bed {
        name: "slow_links",
        build: slow_links,
        mutants: &[Mutant::AckLost, Mutant::FenceOnTimeout, Mutant::FenceOnSourceAbort, Mutant::AckBeforeDrained],
    },
    Bed { name: "strangers", build: strangers, mutants: &[Mutant::NamespaceIgnored] },
];

/// Caught where strays are put into a world.
const ELSEWHERE: &[Mutant] =
    &[Mutant::EpochIgnored, Mutant::GenerationIgnored, Mutant::BelieveCopies, Mutant::AttemptIgnored];

fn setup(file: &str, variant: &str, set: &[&str]) -> Setup {
    let path = root().join("scenarios").join(file);
    let overrides = Overrides { set: set.iter().map(|&one| one.to_owned()).collect(), ..Overrides::default() };
    let cases = scenario::load(&path, &overrides).unwrap_or_else(|error| panic!("{error}"));
    let mut cases = cases.into_iter().filter(|case| case.name.ends_with(variant));
    let mut setup = cases.next().expect("there is such a variant").setup;
    setup.check = true;
    setup
}

fn seconds(seconds: f64) -> Instant {
    Instant::ZERO + Duration::from_secs_f64(seconds)
}

/// Three tiers under load; some objects of L3 are torn, memory is flushed, clients go away.
fn tiers() -> Setup {
    let mut setup = setup("host_pressure.toml", "host_pressure", &["load.0.requests=80"]);
    let tear = Action::StoreTear(StoreTear { every: Some(3), ..StoreTear::default() });
    let flush = Action::Flush(Order { worker: 0 });
    setup.script = vec![(seconds(6.0), tear), (seconds(6.1), flush)];
    for index in 0..20_u32 {
        let action = Action::Cancel(Cancel { request: u64::from(index * 2) });
        setup.script.push((seconds(0.4 + f64::from(index) * 0.3), action));
    }
    setup.script.sort_by_key(|(at, _)| *at);
    setup
}

/// One request at a time, and a restart between them.
fn alone() -> Setup {
    setup("restart_reload.toml", "restart_reload", &[])
}

/// A prefill worker computes the head of a prompt while it fetches the tail.
fn both_ends() -> Setup {
    setup("restart_bidirectional.toml", "prefill_worker", &[])
}

/// L1 is written down only when it needs the room.
fn write_back() -> Setup {
    let mut setup = setup("host_pressure.toml", "write_back", &["load.0.requests=60"]);
    setup.workers[0].config.kv.kv_events = true;
    setup
}

/// There is more to fetch than the lane takes at once, and clients do not wait for it.
fn impatient() -> Setup {
    let set = [
        "load.0.requests=120",
        "load.0.concurrency=12",
        "worker.0.page_size=16",
        "worker.0.hicache_ratio=3",
        "worker.0.fetch_by_cost=false",
    ];
    let mut setup = setup("host_pressure.toml", "host_pressure", &set);
    // All that is live comes again at once, and finds its prompt in L3 only.
    let restart = Action::Restart(Restart::new(0, Duration::from_secs(1)));
    setup.script.push((seconds(4.0), restart));
    let cancel = |request| (seconds(5.01), Action::Cancel(Cancel { request }));
    setup.script.extend((0..100).map(cancel));
    setup
}

/// Answers are longer than anybody reckoned with.
fn short_of_memory() -> Setup {
    let set = [
        "load.0.requests=40",
        "load.0.rate=\"40/s\"",
        "load.0.prompt_tokens={ uniform = [100, 400] }",
        "load.0.output_tokens={ uniform = [200, 600] }",
        "worker.0.max_total_tokens=\"4k\"",
        "worker.0.reserve_steps=1",
    ];
    let mut setup = setup("overload.toml", "overload", &set);
    let sched = &mut setup.workers[0].config.sched;
    (sched.new_token_ratio_init_per_mille, sched.new_token_ratio_min_per_mille) = (0, 0);
    setup
}

/// Requests have a deadline that not all of them meet.
fn late() -> Setup {
    setup("overload.toml", "overload", &["load.0.requests=200", "worker.0.request_timeout=\"2s\""])
}

/// Two prefill and two decode workers; some clients go away.
fn pairs() -> Setup {
    let set = ["load.0.requests=80", "worker.0.chunked_prefill_size=512"];
    let mut setup = setup("two_p_two_d.toml", "two_p_two_d", &set);
    for index in 0..10_u32 {
        let action = Action::Cancel(Cancel { request: u64::from(index * 7) });
        setup.script.push((seconds(0.5 + f64::from(index)), action));
    }
    for worker in &mut setup.workers[..2] {
        (worker.config.kv.host_pages, worker.config.sched.in_batch_share_tokens) = (2000, u32::MAX);
    }
    setup
}

/// Pushes take seconds, prefill workers give up after one, and clients go away meanwhile.
fn slow_links() -> Setup {
    let mut setup = setup("two_p_two_d.toml", "two_p_two_d", &["load.0.requests=40"]);
    for (index, worker) in (0..).zip(&mut setup.workers) {
        for link in worker.far.out.iter_mut().chain(&mut worker.far.into) {
            link.bytes_per_second = 100_000_000;
        }
        if index < 2 {
            worker.config.sched.default_deadline = Duration::from_secs(4);
        }
    }
    for index in 0..20_u32 {
        let action = Action::Cancel(Cancel { request: u64::from(index * 2) });
        setup.script.push((seconds(1.0 + f64::from(index) * 0.4), action));
    }
    setup
}

/// A pair of different weights.
fn strangers() -> Setup {
    let mut setup = setup("one_p_one_d.toml", "one_p_one_d", &["load.0.requests=10"]);
    setup.workers[0].config.kv.root = PageKey(1);
    setup
}

fn run(build: fn() -> Setup, mutant: Option<Mutant>) -> Result<Vec<Violation>, String> {
    let mut setup = build();
    // A mistake may keep a run from ending.
    setup.until = mutant.map(|_| seconds(120.0));
    if let Some(mutant) = mutant {
        let mutation = Mutation::of(mutant);
        setup.workers.iter_mut().for_each(|worker| worker.config.mutate(mutation));
        if let Some((router, _)) = &mut setup.router {
            router.mutation = mutation;
        }
    }
    catch_unwind(AssertUnwindSafe(|| World::new(setup).run().violations)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
    })
}

/// What caught a mutant, in words.
fn verdict(mutant: Mutant, found: &Result<Vec<Violation>, String>) -> (bool, String) {
    match found {
        Err(panic) => (mutant.caught_by() == "machine", format!("machine: {panic}")),
        Ok(violations) => {
            let first = violations.first().map_or("nothing".to_owned(), ToString::to_string);
            (violations.iter().any(|violation| violation.checker.name() == mutant.caught_by()), first)
        }
    }
}

#[test]
fn worlds_without_a_mistake_are_clean() {
    for bed in BEDS {
        let found = run(bed.build, None);
        assert_eq!(found, Ok(Vec::new()), "{}", bed.name);
    }
}

#[test]
fn every_mistake_is_caught_by_the_checker_that_is_there_for_it() {
    let mut missed = Vec::new();
    for bed in BEDS {
        for &mutant in bed.mutants {
            let (is_caught, how) = verdict(mutant, &run(bed.build, Some(mutant)));
            println!("{:<24} {:<14} {how}", mutant.name(), mutant.caught_by());
            if !is_caught {
                missed.push(format!("{} in {}: wants {}, found {how}", mutant.name(), bed.name, mutant.caught_by()));
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn every_mistake_has_a_world() {
    let covered: Vec<Mutant> = BEDS.iter().flat_map(|bed| bed.mutants).chain(ELSEWHERE).copied().collect();
    for mutant in Mutant::ALL {
        assert_eq!(covered.iter().filter(|one| *one == mutant).count(), 1, "{}", mutant.name());
        let is_named = pd::sim::check::Checker::ALL.iter().any(|checker| checker.name() == mutant.caught_by());
        assert!(is_named || mutant.caught_by() == "machine", "{}", mutant.caught_by());
    }
}

//! A recorded run replays: a fresh machine that is told the same at the same times answers the same, step by step.

use pd::core::worker::Worker;
use pd::sim::journal::replay;
use pd::sim::scenario::{self, Case, Overrides};
use pd::sim::world::World;

use crate::root;

fn case(name: &str) -> Case {
    let path = root().join("scenarios").join(name);
    scenario::load(&path, &Overrides::default()).unwrap_or_else(|error| panic!("{error}")).remove(0)
}

#[test]
fn every_life_of_every_worker_replays_to_the_same_digests() {
    for name in ["restart_reload.toml", "one_p_one_d.toml", "host_pressure.toml"] {
        let mut case = case(name);
        case.setup.journal = true;
        case.setup.check = false;
        let workers = case.setup.workers.clone();
        let outcome = World::new(case.setup).run();
        let mut steps = 0;
        for (record, setup) in outcome.workers.iter().zip(&workers) {
            assert_eq!(record.journals.len() as u32, record.lives);
            for (life, journal) in record.journals.iter().enumerate() {
                let mut config = setup.config.clone();
                config.epoch.0 = life as u32;
                let worker = Worker::new(config, setup.cost.clone()).expect("it ran before");
                replay(worker, journal).unwrap_or_else(|divergence| panic!("{name}: {divergence}"));
                steps += journal.steps();
            }
        }
        assert!(steps > 50, "{name}: {steps} steps replayed");
    }
}

/// Negative control: a machine that is configured differently is noticed.
#[test]
fn a_replay_on_another_configuration_is_noticed() {
    let mut case = case("one_p_one_d.toml");
    case.setup.journal = true;
    case.setup.check = false;
    let setup = case.setup.workers[0].clone();
    let outcome = World::new(case.setup).run();
    let mut config = setup.config;
    config.sched.chunked_prefill_size = 512;
    let worker = Worker::new(config, setup.cost).expect("a valid configuration");
    assert!(replay(worker, &outcome.workers[0].journals[0]).is_err());
}

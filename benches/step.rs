//! One step of a busy scheduler: a decode forward of 256 sequences ends, the next one is launched, 10,000 requests wait.
//!
//! Target: 50 us a step. A decode step of a small model on a fast GPU takes about 5 ms, so the machine's thread would
//! be 1 % busy with it.

mod busy;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use pd_core::config::SchedulePolicy;

use self::busy::{LIMIT, RUNNING, World};

criterion_group!(benches, step);
criterion_main!(benches);

fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step: 256 running, 10,000 waiting");
    let policies = [SchedulePolicy::Fcfs, SchedulePolicy::Priority, SchedulePolicy::Hrrn, SchedulePolicy::Random];
    for policy in policies {
        for (name, places) in [("no place is free", RUNNING as u32), ("a place is free but no memory", 4096)] {
            group.bench_function(format!("{policy:?}, {name}"), |bencher| {
                let mut world = World::new(policy, places);
                bencher.iter_custom(|count| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..count {
                        if world.steps > LIMIT - 10 {
                            world = World::new(policy, places);
                        }
                        spent += world.step();
                    }
                    spent
                });
            });
        }
    }
    group.finish();
}

//! Too little memory, and who may go first.

use crate::config::{SchedulePolicy, WorkerConfig};
use crate::event::Event;
use crate::op::{Command, Fault};
use crate::testkit::prompt;
use crate::time::Instant;

use super::toy::{ROOT, Toy};
use super::{toy, words};

fn order(toy: &Toy) -> std::vec::Vec<u64> {
    let admitted =
        |(request, event): &(crate::id::RequestId, Event)| matches!(event, Event::Admitted(_)).then_some(request.0);
    toy.events.iter().filter_map(admitted).collect()
}

/// Optimistic on purpose: no guarantee, a small estimate.
fn optimist(config: &mut WorkerConfig) {
    config.sched.reserve_steps = 1;
    config.sched.clip_max_new_tokens = 1;
}

#[test]
fn who_is_retracted_resumes_and_answers_the_same() {
    for overlap in [false, true] {
        for host in [0, 64] {
            let mut toy = toy(12, |config| {
                optimist(config);
                config.sched.overlap = overlap;
                config.kv.host_pages = host;
            });
            for request in 1..5 {
                toy.submit(request, &words(request as u32, 6), 30);
            }
            toy.run();
            assert!(toy.bench.metrics.retractions > 0, "memory was short");
            (1..5).for_each(|request| toy.check_answer(request));
            assert!((1..5).any(|request| toy.of(request).contains(&Event::Retracted)));
            assert!(host == 0 || toy.bench.metrics.load_back_pages > 0, "what was saved is loaded, not computed");
            toy.check_rest();
        }
    }
}

#[test]
fn cancelling_under_shortage_gives_everything_back() {
    for request in 1..4 {
        for step in 0..120 {
            let mut toy = toy(10, |config| {
                optimist(config);
                config.kv.host_pages = 16;
            });
            for request in 1..4 {
                toy.submit(request, &words(request as u32, 6), 24);
            }
            for _ in 0..step {
                toy.turn();
            }
            toy.cancel(request);
            toy.run();
            (1..4).for_each(|request| toy.check_answer(request));
            toy.check_rest();
        }
    }
}

#[test]
fn a_failed_load_back_costs_time_and_nothing_else() {
    for place in 0..6 {
        let mut toy = toy(12, |config| {
            optimist(config);
            config.kv.host_pages = 64;
        });
        for request in 1..5 {
            toy.submit(request, &words(request as u32, 6), 30);
        }
        let mut loads = 0;
        while let Some(&op) = toy.ready().last() {
            let is_load =
                toy.lane.iter().any(|started| started.op == op && matches!(started.command, Command::LoadBack(_)));
            loads += i32::from(is_load);
            toy.complete(op, (is_load && loads % 6 == place).then_some(Fault::Io));
        }
        toy.run();
        assert!(loads > 0);
        (1..5).for_each(|request| toy.check_answer(request));
        toy.check_rest();
    }
}

#[test]
fn a_forward_that_failed_with_its_load_is_not_repeated_before_the_load_has_ended() {
    for fault in [None, Some(Fault::Io)] {
        let mut toy = toy(12, |config| config.kv.host_pages = 64);
        for request in 1..4 {
            toy.submit(request, &words(request as u32, 32), 1);
            toy.run();
        }
        toy.submit(4, &words(1, 32), 3);
        let load = toy.lane.iter().find(|started| matches!(started.command, Command::LoadBack(_))).expect("a load");
        let load = load.op;
        let of_load = |toy: &Toy| toy.lane.iter().filter(|started| started.after.contains(&load)).count();
        assert_eq!(of_load(&toy), 1);
        let ahead: std::vec::Vec<_> = toy.lane.iter().map(|started| started.op).filter(|&op| op != load).collect();
        for op in ahead {
            toy.complete(op, Some(Fault::Prerequisite));
        }
        assert_eq!(toy.lane.len(), 1, "nothing but the load");
        assert_eq!(toy.sched.waiting_on(crate::id::RequestId(4)), Some(crate::sched::Wait::Op(load)));
        toy.complete(load, fault);
        toy.run();
        assert_eq!(toy.tokens(4).len(), 3);
        toy.check_answer(4);
        toy.check_rest();
    }
}

#[test]
fn new_requests_wait_for_those_that_were_retracted() {
    let mut toy = toy(12, optimist);
    for request in 1..5 {
        toy.submit(request, &words(request as u32, 6), 30);
    }
    while toy.bench.metrics.retractions == 0 {
        assert!(toy.turn());
    }
    toy.submit(9, &words(9, 4), 1);
    let mut held_back = 0;
    while !order(&toy).contains(&9) {
        held_back += u32::from(toy.sched.queue.front_len() > 0);
        assert!(toy.turn());
    }
    assert!(held_back > 1, "those at the front came first");
    toy.run();
    toy.check_rest();
}

#[test]
fn a_lone_sequence_that_finds_no_page_fails_and_nobody_else_does() {
    let mut toy = toy(8, optimist);
    let pages =
        toy.kv.acquire(&mut toy.bench.cx(), crate::id::RequestId(99), &prompt(ROOT, 4, &words(99, 16)), 16, false);
    toy.outside.push(pages.expect("the pool is empty").0);
    toy.submit(1, &words(1, 6), 20);
    toy.run();
    let memory = crate::event::Finish::Failed(crate::event::Failure::Memory);
    assert!(matches!(toy.ending(1), Event::Finished { reason, output } if reason == memory && output > 8));
    toy.submit(2, &words(2, 6), 4);
    toy.run();
    toy.check_answer(1);
    toy.check_answer(2);
    let outside = toy.outside.pop().expect("taken above");
    toy.kv.release(outside);
    toy.check_rest();
}

/// Found by a swarm: admission had asked everybody before the pages came back, and nothing was in flight to ask again.
#[test]
fn who_waits_behind_a_sequence_that_finds_no_page_is_served_when_it_fails() {
    let mut toy = toy(8, |config| {
        optimist(config);
        config.sched.max_running_requests = 1;
    });
    let pages =
        toy.kv.acquire(&mut toy.bench.cx(), crate::id::RequestId(99), &prompt(ROOT, 4, &words(99, 16)), 16, false);
    toy.outside.push(pages.expect("the pool is empty").0);
    toy.submit(1, &words(1, 6), 20);
    toy.submit(2, &words(2, 6), 4);
    toy.run();
    let memory = crate::event::Finish::Failed(crate::event::Failure::Memory);
    assert!(matches!(toy.ending(1), Event::Finished { reason, .. } if reason == memory));
    toy.check_answer(2);
    assert!(toy.sched.is_empty(), "nobody is left behind");
}

#[test]
fn the_guarantee_keeps_sequences_from_being_retracted() {
    let mut toy = toy(12, |config| config.sched.reserve_steps = 30);
    for request in 1..5 {
        toy.submit(request, &words(request as u32, 6), 30);
    }
    toy.run();
    assert_eq!(toy.bench.metrics.retractions, 0);
    (1..5).for_each(|request| toy.check_answer(request));
}

#[test]
fn smaller_requests_overtake_a_blocked_one_a_bounded_number_of_times() {
    let mut toy = toy(16, |config| {
        config.sched.bypass_max = 3;
        config.sched.max_running_requests = 4;
    });
    toy.submit(1, &words(1, 20), 12);
    toy.submit(2, &words(2, 44), 4);
    for request in 3..10 {
        toy.submit(request, &words(request as u32, 4), 2);
    }
    toy.run();
    let order = order(&toy);
    let place = order.iter().position(|&request| request == 2).expect("it is served");
    assert_eq!(place, 1 + 3, "{order:?}");
    toy.check_rest();
}

#[test]
fn policies_decide_who_goes_next() {
    let cases: [(SchedulePolicy, &[u64]); 4] = [
        (SchedulePolicy::Fcfs, &[1, 2, 3, 4, 5]),
        (SchedulePolicy::Priority, &[1, 3, 5, 2, 4]),
        (SchedulePolicy::Lpm, &[1, 5, 2, 3, 4]),
        (SchedulePolicy::DfsWeight, &[1, 3, 2, 4, 5]),
    ];
    for (policy, expected) in cases {
        let mut toy = toy(64, |config| {
            config.sched.policy = policy;
            config.sched.max_running_requests = 1;
        });
        toy.submit(1, &words(1, 12), 2);
        toy.submit(2, &words(3, 12), 1);
        toy.submit_with(3, &words(2, 12), 1, |submit| submit.priority = 9);
        toy.submit(4, &words(2, 14), 1);
        toy.submit_with(5, &words(1, 13), 1, |submit| submit.priority = 1);
        toy.run();
        assert_eq!(order(&toy), expected, "{policy:?}");
        toy.check_rest();
    }
}

#[test]
fn the_highest_response_ratio_ages_what_waits() {
    // A long prompt among short ones that never cease: it is served once its wait outgrows its length.
    let mut toy = toy(64, |config| {
        config.sched.policy = SchedulePolicy::Hrrn;
        config.sched.max_running_requests = 1;
        config.sched.overlap = false;
    });
    toy.submit(0, &words(0, 4), 1);
    toy.submit(1, &words(1, 200), 1);
    let mut next = 2;
    while !order(&toy).contains(&1) {
        assert!(next < 200, "it starves");
        toy.submit(next, &words(next as u32, 4), 1);
        next += 1;
        toy.bench.now = Instant(toy.bench.now.0 + 2_000_000);
        toy.turn();
    }
    assert!(next > 4, "short ones go first");
    toy.run();
    toy.check_rest();
}

#[test]
fn a_random_order_serves_everyone() {
    let mut toy = toy(64, |config| {
        config.sched.policy = SchedulePolicy::Random;
        config.sched.max_running_requests = 1;
    });
    (0..100).for_each(|request| toy.submit(request, &words(request as u32, 4), 1));
    toy.run();
    (0..100).for_each(|request| toy.check_answer(request));
    assert!(!order(&toy).is_sorted());
    toy.check_rest();
}

//! Random requests, completions, faults and cancellations: every request ends once, with the right tokens, and every
//! page comes back.

use std::vec::Vec;

use proptest::prelude::*;

use crate::config::SchedulePolicy;
use crate::op::{Command, Fault};
use crate::time::Instant;

use super::toy::Toy;
use super::{config, words};

#[derive(Clone, Debug)]
enum Action {
    Submit { family: u32, prompt: u32, limit: u32, stops: bool, late: bool },
    Cancel { request: u64 },
    Complete { which: usize },
    Fail { which: usize },
    Wait { ns: u64 },
}

#[expect(clippy::disallowed_types, reason = "what the macro expands to")]
fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..4_u32, 1..40_u32, 1..24_u32, any::<bool>(), 0..10_u32).prop_map(|(family, prompt, limit, stops, late)| {
            Action::Submit { family, prompt, limit, stops, late: late == 0 }
        }),
        1 => (0..30_u64).prop_map(|request| Action::Cancel { request }),
        14 => (0..4_usize).prop_map(|which| Action::Complete { which }),
        1 => (0..4_usize).prop_map(|which| Action::Fail { which }),
        1 => (1..5_000_u64).prop_map(|ns| Action::Wait { ns }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_request_ends_once_with_its_tokens_and_every_page_comes_back(
        actions in prop::collection::vec(action(), 1..120),
        policy in prop::sample::select(std::vec![
            SchedulePolicy::Fcfs, SchedulePolicy::Lpm, SchedulePolicy::DfsWeight, SchedulePolicy::Random,
            SchedulePolicy::Priority, SchedulePolicy::Hrrn,
        ]),
        (pages, host, reserve, clip) in (10..40_u32, 0..40_u32, 1..6_u32, 1..20_u32),
        (mixed, overlap) in (any::<bool>(), any::<bool>()),
    ) {
        let mut config = config(pages);
        config.kv.host_pages = host;
        config.kv.load_back_threshold = 1;
        config.sched.policy = policy;
        config.sched.mixed_chunk = mixed;
        config.sched.overlap = overlap;
        config.sched.reserve_steps = reserve;
        config.sched.clip_max_new_tokens = clip;
        config.sched.bypass_max = 2;
        config.sched.sort_max = 4;
        let mut toy = Toy::new(config);
        let mut requests = 0;
        for action in actions {
            match action {
                Action::Submit { family, prompt, limit, stops, late } => {
                    let now = toy.bench.now;
                    toy.submit_with(requests, &words(family, prompt), limit, |submit| {
                        if stops {
                            submit.stop = (0..8).map(crate::id::Token).collect();
                        }
                        submit.priority = family as i32;
                        submit.deadline = late.then(|| Instant(now.0 + 4000));
                    });
                    requests += 1;
                }
                Action::Cancel { request } => toy.cancel(request),
                Action::Complete { which } => {
                    let ready = toy.ready();
                    if let Some(&op) = ready.get(which % ready.len().max(1)) {
                        toy.complete(op, None);
                    }
                }
                Action::Fail { which } => {
                    let ready = toy.ready();
                    if let Some(&op) = ready.get(which % ready.len().max(1)) {
                        let is_copy = toy.lane.iter().any(|started| {
                            started.op == op && !matches!(started.command, Command::Forward(_))
                        });
                        toy.complete(op, Some(if is_copy { Fault::Io } else { Fault::Device }));
                    }
                }
                Action::Wait { ns } => {
                    let at = Instant(toy.bench.now.0 + ns);
                    toy.advance(at);
                }
            }
            let live: Vec<u64> = (0..requests).filter(|&request| {
                toy.sched.waiting_on(crate::id::RequestId(request)).is_some()
            }).collect();
            prop_assert_eq!(live.len(), toy.sched.len(), "each unfinished request waits for something");
        }
        toy.run();
        for request in 0..requests {
            toy.check_answer(request);
        }
        toy.check_rest();
    }
}

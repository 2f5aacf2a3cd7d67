//! What forwards are made of.

use crate::event::{Event, Finish};
use crate::id::Token;
use crate::op::{Command, Fault};

use super::toy::answer;
use super::{toy, words};

fn tokens(words: &[u32]) -> std::vec::Vec<Token> {
    words.iter().copied().map(Token).collect()
}

#[test]
fn a_long_prompt_is_cut_at_page_borders() {
    let mut toy = toy(32, |config| config.sched.overlap = false);
    toy.submit(1, &words(1, 37), 1);
    toy.run();
    assert_eq!(toy.runs(), [[(1, 0, 16, false)], [(1, 16, 16, false)], [(1, 32, 5, true)]]);
    toy.check_answer(1);
    toy.check_rest();
}

#[test]
fn several_prompts_share_a_forward_and_its_budget() {
    let mut toy = toy(64, |config| config.sched.overlap = false);
    toy.submit(9, &words(9, 5), 1);
    toy.submit(1, &words(1, 6), 1);
    toy.submit(2, &words(2, 7), 1);
    toy.submit(3, &words(3, 9), 1);
    toy.run();
    assert_eq!(
        toy.runs()[1..],
        [std::vec![(1, 0, 6, true), (2, 0, 7, true)], std::vec![(3, 0, 9, true)]],
        "three tokens of budget are less than a page, so the third prompt waits"
    );
    toy.check_rest();
}

#[test]
fn prefill_goes_before_decode() {
    let mut toy = toy(64, |config| config.sched.overlap = false);
    toy.submit(1, &words(1, 5), 3);
    toy.submit(2, &words(2, 30), 1);
    toy.run();
    assert_eq!(
        toy.runs(),
        [[(1, 0, 5, true)], [(2, 0, 16, false)], [(2, 16, 14, true)], [(1, 5, 1, true)], [(1, 6, 1, true)]]
    );
}

#[test]
fn decode_rows_ride_along_in_mixed_mode_and_count_against_the_chunk() {
    let mut toy = toy(64, |config| {
        config.sched.overlap = false;
        config.sched.mixed_chunk = true;
    });
    toy.submit(1, &words(1, 5), 3);
    toy.submit(2, &words(2, 30), 1);
    toy.run();
    assert_eq!(
        toy.runs(),
        [
            std::vec![(1, 0, 5, true)],
            std::vec![(2, 0, 12, false), (1, 5, 1, true)],
            std::vec![(2, 12, 12, false), (1, 6, 1, true)],
            std::vec![(2, 24, 6, true)]
        ]
    );
    toy.check_answer(1);
    toy.check_answer(2);
}

#[test]
fn one_forward_runs_ahead_of_the_one_that_is_known() {
    let mut toy = toy(32, |_| {});
    toy.submit(1, &words(1, 5), 3);
    assert_eq!(toy.runs(), [[(1, 0, 5, true)], [(1, 5, 1, true)]], "launched before the first token is known");
    toy.run();
    assert_eq!(toy.runs().len(), 3, "the limit is known in advance, so no step is wasted on it");
    toy.check_answer(1);
    toy.check_rest();
}

#[test]
fn a_stop_token_is_seen_one_forward_late_and_the_extra_token_dropped() {
    let stop = answer(&tokens(&words(1, 5)), 3, &[])[2];
    let mut toy = toy(32, |_| {});
    toy.submit_with(1, &words(1, 5), 20, |submit| submit.stop = std::vec![stop]);
    toy.run();
    let answered = toy.tokens(1);
    assert_eq!(answered.last(), Some(&stop));
    assert_eq!(toy.runs().len(), answered.len() + 1);
    assert!(matches!(toy.ending(1), Event::Finished { reason: Finish::Stop, .. }));
    toy.check_answer(1);
    toy.check_rest();
}

#[test]
fn the_device_is_told_growth_of_the_table_only() {
    let mut toy = toy(32, |_| {});
    toy.submit(1, &words(1, 5), 20);
    toy.run();
    let mut known = 0;
    for forward in &toy.forwards {
        let Command::Forward(batch) = &forward.command else { unreachable!() };
        assert_eq!(batch.runs()[0].table_from, known);
        known += batch.runs()[0].pages_count();
    }
    assert_eq!(known, 6, "24 tokens have KV");
}

#[test]
fn a_prompt_that_is_cached_is_computed_from_its_last_page_on() {
    let mut toy = toy(32, |_| {});
    toy.submit(1, &words(1, 16), 6);
    toy.run();
    toy.submit(2, &words(1, 16), 2);
    toy.run();
    assert_eq!(toy.runs().into_iter().flatten().find(|run| run.0 == 2), Some((2, 12, 4, true)));
    toy.check_answer(2);
    toy.check_rest();
}

#[test]
fn generated_pages_are_cache_for_the_next_turn() {
    let mut toy = toy(32, |_| {});
    toy.submit(1, &words(1, 6), 12);
    toy.run();
    let mut next = words(1, 6);
    next.extend(toy.tokens(1).iter().map(|token| token.0));
    next.extend(words(2, 3));
    toy.submit(2, &next, 1);
    toy.run();
    let first = toy.runs().into_iter().flatten().find(|run| run.0 == 2);
    assert_eq!(first, Some((2, 16, 5, true)), "17 tokens have KV: all but the last one sampled");
    toy.check_answer(2);
}

#[test]
fn who_shares_a_prompt_that_is_being_computed_waits_for_it() {
    let mut toy = toy(64, |_| {});
    toy.submit(1, &words(1, 40), 2);
    let mut other = words(1, 40);
    other.extend(words(2, 3));
    toy.submit(2, &other, 2);
    toy.submit(3, &words(3, 3), 2);
    toy.run();
    let computed: u32 = toy.runs().into_iter().flatten().filter(|run| run.0 == 2).map(|run| run.2).sum();
    assert_eq!(computed, 3 + 1, "the shared 40 tokens are computed once");
    (1..4).for_each(|request| toy.check_answer(request));
    toy.check_rest();
}

#[test]
fn a_follower_goes_on_when_its_leader_is_gone() {
    for step in 0..6 {
        let mut toy = toy(64, |_| {});
        toy.submit(1, &words(1, 40), 2);
        toy.submit(2, &words(1, 40), 2);
        for _ in 0..step {
            toy.turn();
        }
        toy.cancel(1);
        toy.run();
        toy.check_answer(1);
        toy.check_answer(2);
        toy.check_rest();
    }
}

#[test]
fn a_failed_forward_is_computed_again_and_a_second_failure_ends_its_requests_alone() {
    for (failures, reason) in [(1, Finish::Length), (2, Finish::Failed(crate::event::Failure::Lane(Fault::Device)))] {
        for step in 0..4 {
            let mut toy = toy(64, |_| {});
            toy.submit(1, &words(1, 20), 3);
            for _ in 0..step {
                toy.turn();
            }
            for _ in 0..failures {
                let op = toy.ready()[0];
                toy.complete(op, Some(Fault::Device));
                // The one that was launched behind it knows nothing of the failure.
                if failures == 2 && toy.lane.len() == 2 {
                    toy.turn();
                }
            }
            toy.submit(2, &words(2, 20), 3);
            toy.run();
            let is_expected = matches!(toy.ending(1), Event::Finished { reason: got, .. } if got == reason);
            assert!(is_expected, "{failures} failures at step {step}: {:?}", toy.ending(1));
            toy.check_answer(1);
            toy.check_answer(2);
            toy.check_rest();
        }
    }
}

/// Found by the random test: the forward behind the failed one ends well, on KV that was never computed.
#[test]
fn a_forward_that_fails_under_a_cancelled_request_leaves_nothing_in_the_cache() {
    let mut toy = toy(10, |_| {});
    toy.submit(1, &words(1, 20), 1);
    toy.cancel(1);
    let op = toy.ready()[0];
    toy.complete(op, Some(Fault::Device));
    toy.run();
    toy.submit(2, &words(1, 21), 2);
    toy.run();
    toy.check_answer(2);
    toy.check_rest();
}

#[test]
fn cancelling_at_any_point_gives_everything_back() {
    for request in 1..4 {
        for step in 0..40 {
            let mut toy = toy(16, |config| config.sched.max_running_requests = 2);
            toy.submit(1, &words(1, 20), 4);
            toy.submit(2, &words(2, 7), 9);
            toy.submit(3, &words(1, 20), 4);
            for _ in 0..step {
                toy.turn();
            }
            toy.cancel(request);
            toy.cancel(request);
            toy.run();
            (1..4).for_each(|request| toy.check_answer(request));
            toy.check_rest();
        }
    }
}

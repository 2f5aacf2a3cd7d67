//! Who is not let in, and why.

use std::vec::Vec;

use crate::config::Mode;
use crate::event::{Control, Event, Finish, Refusal};
use crate::id::{Room, WorkerId};
use crate::op::Leg;
use crate::time::Instant;

use super::{toy, words};

#[test]
fn the_door_names_the_reason_of_each_refusal() {
    let mut toy = toy(8, |config| config.sched.max_queued_requests = 1);
    toy.submit_with(1, &words(1, 5), 2, |submit| submit.prompt.length = 9);
    assert_eq!(toy.ending(1), Event::Refused(Refusal::Malformed));
    toy.submit(2, &words(2, 5), 0);
    assert_eq!(toy.ending(2), Event::Refused(Refusal::NoOutput));
    toy.submit(3, &words(3, 30), 4);
    assert_eq!(toy.ending(3), Event::Refused(Refusal::NeverFits { pages: 9, total: 8 }));
    toy.submit_with(4, &words(4, 5), 2, |submit| submit.deadline = Some(Instant::ZERO));
    assert_eq!(toy.ending(4), Event::Refused(Refusal::Late));
    toy.submit_with(5, &words(5, 5), 2, |submit| submit.stop = [crate::id::Token(1)].repeat(65));
    assert_eq!(toy.ending(5), Event::Refused(Refusal::Malformed));
    toy.sched.control(&mut toy.bench.cx(), &mut toy.kv, &mut toy.transfer, Control::Drain);
    toy.submit(6, &words(6, 5), 2);
    assert_eq!(toy.ending(6), Event::Refused(Refusal::Draining));
    toy.check_rest();
    assert_eq!(toy.bench.metrics.refused, 6);
}

#[test]
fn the_last_token_that_fits_is_taken() {
    let mut toy = toy(8, |_| {});
    toy.submit(1, &words(1, 30), 3);
    toy.run();
    toy.check_answer(1);
    assert_eq!(toy.tokens(1).len(), 3);
    toy.check_rest();
}

#[test]
fn a_prompt_beyond_the_context_is_refused_and_an_answer_ends_there() {
    let mut toy = toy(16, |config| config.sched.context_length = 20);
    toy.submit(1, &words(1, 20), 1);
    assert_eq!(toy.ending(1), Event::Refused(Refusal::PromptTooLong { tokens: 20, max: 19 }));
    toy.submit(2, &words(2, 15), 40);
    toy.submit(3, &words(3, 19), 7);
    toy.submit(4, &words(4, 15), 5);
    toy.run();
    for (request, tokens) in [(2, 5), (3, 1), (4, 5)] {
        assert_eq!(toy.tokens(request).len(), tokens, "request {request}");
        assert!(matches!(toy.ending(request), Event::Finished { reason: Finish::Length, .. }));
    }
    // Without the cap it would have been refused: the pool holds 64 tokens.
    toy.submit(5, &words(5, 10), 100);
    toy.run();
    assert_eq!(toy.tokens(5).len(), 10);
    toy.check_rest();
}

#[test]
fn a_live_name_is_not_given_twice() {
    let mut toy = toy(8, |_| {});
    toy.submit(1, &words(1, 5), 2);
    toy.submit(1, &words(1, 5), 2);
    assert!(toy.of(1).contains(&Event::Refused(Refusal::DuplicateRequest)));
    toy.run();
    toy.check_rest();
}

/// Found with a prefill worker that dies under transfers: the router tries their requests again at once, and the worker
/// that was still letting go of them refused each as a duplicate until no retry was left.
#[test]
fn a_request_that_comes_again_while_its_last_attempt_leaves_is_served() {
    let mut toy = toy(16, |_| {});
    toy.submit(1, &words(1, 9), 3);
    toy.cancel(1);
    assert!(!toy.sched.is_empty(), "its forward is in flight");
    toy.submit(1, &words(1, 9), 3);
    // Twice is still once too often.
    toy.submit(1, &words(1, 9), 3);
    toy.run();
    let ends: Vec<Event> =
        toy.of(1).into_iter().filter(|event| !matches!(event, Event::Admitted(_) | Event::Token(_))).collect();
    assert_eq!(
        ends,
        [
            Event::Finished { reason: Finish::Cancelled, output: 0 },
            Event::Refused(Refusal::DuplicateRequest),
            Event::Finished { reason: Finish::Length, output: 3 },
        ]
    );
    assert_eq!(toy.tokens(1).len(), 3);
    toy.check_rest();
}

#[test]
fn a_request_that_waits_for_its_name_can_be_cancelled_and_be_late() {
    let mut toy = toy(16, |_| {});
    toy.submit(1, &words(1, 9), 3);
    toy.cancel(1);
    toy.submit(1, &words(1, 9), 3);
    toy.cancel(1);
    let at = Instant(5);
    toy.submit_with(1, &words(1, 9), 3, |submit| submit.deadline = Some(at));
    assert_eq!(toy.sched.deadline().map(|(at, _)| at), Some(at));
    toy.advance(at);
    let reasons: Vec<Finish> = toy
        .of(1)
        .into_iter()
        .filter_map(|event| if let Event::Finished { reason, .. } = event { Some(reason) } else { None })
        .collect();
    assert_eq!(reasons, [Finish::Cancelled, Finish::Cancelled, Finish::Deadline]);
    toy.run();
    toy.check_rest();
}

#[test]
fn the_queue_is_bounded() {
    let mut toy = toy(8, |config| {
        config.sched.max_queued_requests = 2;
        config.sched.max_running_requests = 1;
    });
    for request in 0..4 {
        toy.submit(request, &words(request as u32, 5), 2);
    }
    assert_eq!(toy.ending(3), Event::Refused(Refusal::QueueFull { max: 2 }));
    toy.run();
    (0..3).for_each(|request| toy.check_answer(request));
    toy.check_rest();
}

#[test]
fn each_mode_serves_its_legs() {
    let prefill = Leg::Prefill { room: Room(1) };
    let decode = Leg::Decode { room: Room(1), prefill: WorkerId(2) };
    for (mode, leg) in [(Mode::Prefill, Leg::Whole), (Mode::Prefill, decode), (Mode::Decode, prefill)] {
        let mut toy = toy(8, |config| config.mode = mode);
        toy.submit_with(1, &words(1, 5), 2, |submit| submit.leg = leg);
        assert_eq!(toy.ending(1), Event::Refused(Refusal::WrongMode));
    }
    let mut toy = toy(8, |config| config.mode = Mode::Decode);
    toy.submit(1, &words(1, 5), 2);
    toy.run();
    toy.check_answer(1);
}

#[test]
fn a_deadline_ends_a_request_wherever_it_is() {
    for step in 0..8 {
        let mut toy = toy(8, |config| config.sched.max_running_requests = 1);
        toy.submit_with(1, &words(1, 20), 4, |submit| submit.deadline = Some(Instant(100)));
        toy.submit_with(2, &words(2, 20), 4, |submit| submit.deadline = Some(Instant(100)));
        for _ in 0..step {
            toy.turn();
        }
        toy.advance(Instant(100));
        assert!(matches!(toy.ending(2), Event::Finished { reason: Finish::Deadline, .. }) || step > 6);
        toy.run();
        toy.check_answer(1);
        toy.check_answer(2);
        toy.check_rest();
    }
}

//! The decode end: waiting, failing, trying elsewhere, and keeping pages until they are safe.

use std::boxed::Box;
use std::vec::Vec;

use super::net::{D, End, Net, P, Q, config, layout};
use crate::config::{Mode, TransferBackend, TransferConfig};
use crate::event::{Refusal, Served};
use crate::id::{Epoch, Generation, PageKey, RequestId, Room, Token, WorkerId};
use crate::message::{AbortReason, End as Side, Handoff, Hello, Layout, Message, Mismatch, VERSION};
use crate::mutant::Mutant;
use crate::op::Outcome;
use crate::transfer::Wait;

const R: RequestId = RequestId(7);

fn landed(net: &Net, request: RequestId) -> bool {
    net.ends(D).contains(&(request, End::Landed(Token(request.0 as u32 + 1000))))
}

/// A room that the sink waits in, with one push in flight from P.
fn in_flight() -> Net {
    let mut net = Net::new();
    net.begin(R.0, P, 12, 0);
    net.deliver_all();
    net.compute(P, R, 2);
    assert_eq!(net.flights.len(), 1);
    net
}

fn quarantined(net: &Net) -> usize {
    net.node(D).transfer.quarantined().count()
}

#[test]
fn a_hand_off_lands_once_all_pages_have() {
    let mut net = Net::new();
    net.begin(R.0, P, 11, 0);
    net.deliver_all();
    net.compute(P, R, 2);
    net.compute(P, R, 1);
    net.hand_over(P, R);
    net.deliver_all();
    assert!(net.ends(D).is_empty(), "the prompt is complete, its pages are not there");
    net.finish(1, Outcome::Moved);
    net.deliver_all();
    assert!(net.ends(D).is_empty());
    net.finish(0, Outcome::Moved);
    assert_eq!(net.ends(P), [(R, End::Sent)]);
    net.deliver_all();
    assert!(landed(&net, R));
    assert!(net.node(D).transfer.is_idle() && net.node(P).transfer.is_idle());
    assert_eq!(net.node(P).metrics.push_pages, 3);
    net.is_clean();
}

#[test]
fn only_pages_that_the_sink_lacks_are_pushed() {
    let mut net = Net::new();
    net.begin(R.0, P, 18, 3);
    net.deliver_all();
    net.compute(P, R, 2);
    assert!(net.flights.is_empty());
    net.compute(P, R, 2);
    net.compute(P, R, 1);
    let pushed: Vec<_> = net.flights.iter().flat_map(|it| &it.push.pages).map(|(from, _)| from.0).collect();
    assert_eq!(pushed, [3, 4]);
    net.hand_over(P, R);
    net.finish_all();
    net.deliver_all();
    assert!(landed(&net, R));
    net.is_clean();
}

#[test]
fn a_sink_that_has_all_pages_gets_the_hand_off_alone() {
    let mut net = Net::new();
    net.begin(R.0, P, 12, 3);
    net.deliver_all();
    net.serve(P, R);
    assert!(net.flights.is_empty());
    assert_eq!(net.ends(P), [(R, End::Sent)]);
    net.deliver_all();
    assert!(landed(&net, R));
}

#[test]
fn a_want_waits_for_a_peer_that_is_not_up_yet() {
    let mut net = Net::strangers(&[(D, Mode::Decode), (P, Mode::Prefill)], &config());
    net.begin(R.0, P, 8, 0);
    assert_eq!(net.node(D).transfer.waiting_on(R), Some(Wait::Peer(P)));
    net.wait_seconds(299);
    net.connect(D, P);
    assert_eq!(net.node(D).transfer.waiting_on(R), Some(Wait::Peer(P)), "its Hello is not here");
    net.deliver_all();
    assert_eq!(net.node(D).transfer.waiting_on(R), Some(Wait::Handoff(P)));
    net.serve(P, R);
    net.finish_all();
    net.deliver_all();
    assert!(landed(&net, R));
}

#[test]
fn a_peer_that_never_comes_up_costs_no_more_than_the_bootstrap_timeout() {
    let mut net = Net::strangers(&[(D, Mode::Decode)], &config());
    net.want(D, R, P, 8, 0, None);
    net.wait_seconds(299);
    assert!(net.ends(D).is_empty());
    net.wait_seconds(1);
    assert_eq!(net.ends(D), [(R, End::SinkFailed(AbortReason::Deadline))]);
    assert_eq!(net.node(D).free.len(), 64, "nobody was asked, so nobody writes");
}

#[test]
fn a_request_deadline_ends_the_wait_without_another_attempt() {
    let mut net = Net::new();
    net.want(D, R, P, 8, 0, Some(net.now.after_ns(1_000_000_000)));
    net.wait_seconds(1);
    assert_eq!(net.ends(D), [(R, End::SinkFailed(AbortReason::Deadline))]);
    assert_eq!(quarantined(&net), 1);
    net.deliver_all();
    assert_eq!(quarantined(&net), 0);
}

#[test]
fn a_live_room_is_refused_for_another_request() {
    let mut net = Net::new();
    net.want(D, R, P, 8, 0, None);
    let prompt = super::net::prompt(RequestId(8), 4);
    let refused = net.step(D, |transfer, cx, _| transfer.want(cx, RequestId(8), Room(R.0), P, &prompt, 1, &[], None));
    assert_eq!(refused, Err(Refusal::DuplicateRoom));
    assert_eq!(net.offer(D, RequestId(9), Room(R.0), 4, None), Err(Refusal::DuplicateRoom));
}

#[test]
fn more_rooms_than_the_limit_are_refused() {
    let mut net = Net::strangers(&[(D, Mode::Decode)], &TransferConfig { rooms_max: 1, ..config() });
    net.want(D, R, P, 8, 0, None);
    assert_eq!(net.offer(D, RequestId(8), Room(8), 4, None), Err(Refusal::QueueFull { max: 1 }));
}

#[test]
fn an_aborted_sink_keeps_its_pages_until_the_source_says_that_its_writes_have_ended() {
    let mut net = in_flight();
    net.abort(D, R, AbortReason::Cancelled);
    net.deliver_all();
    assert_eq!(quarantined(&net), 1, "one push is still in flight");
    net.finish_all();
    assert_eq!(net.ends(P), [(R, End::SourceFailed(AbortReason::Cancelled))]);
    net.deliver_all();
    assert_eq!(quarantined(&net), 0);
    assert_eq!(net.node(D).free.len(), 64);
    net.is_clean();
}

#[test]
fn a_hand_off_that_crosses_the_abort_releases_the_pages() {
    let mut net = in_flight();
    net.serve(P, R);
    net.finish_all();
    net.abort(D, R, AbortReason::Cancelled);
    net.deliver(P, D);
    assert_eq!(quarantined(&net), 0);
    net.deliver_all();
    assert_eq!(net.ends(D), [(R, End::Aborted)]);
    assert!(net.node(P).metrics.marks.contains_key("transfer.abort_of_unknown"));
    assert_eq!(net.node(D).metrics.stale_inputs, 1, "the acknowledgement comes second");
    net.is_clean();
}

#[test]
fn aborting_twice_is_aborting_once() {
    let mut net = in_flight();
    net.abort(D, R, AbortReason::Cancelled);
    net.abort(D, R, AbortReason::Deadline);
    assert_eq!(net.queued(D, P).len(), 1);
    assert_eq!(net.ends(D), [(R, End::Aborted)]);
}

#[test]
fn an_abort_is_repeated_until_it_is_answered_and_time_releases_nothing() {
    let mut net = in_flight();
    net.abort(D, R, AbortReason::Cancelled);
    net.wait_seconds(3600);
    assert_eq!(quarantined(&net), 1);
    let aborts = net.queued(D, P).iter().filter(|message| matches!(message, Message::Abort { .. })).count();
    assert_eq!(aborts, 3601, "one for each second");
    net.finish_all();
    net.deliver_all();
    assert_eq!(quarantined(&net), 0);
    net.is_clean();
}

#[test]
fn a_torn_down_peer_releases_the_pages() {
    let mut net = in_flight();
    net.abort(D, R, AbortReason::Cancelled);
    net.cut(D, P);
    assert_eq!(quarantined(&net), 0);
    net.finish_all();
    net.is_clean();
}

#[test]
fn the_sources_abort_is_news_and_its_acknowledgement_is_the_proof() {
    let mut net = in_flight();
    net.abort(P, R, AbortReason::Refused);
    net.deliver(P, D);
    assert_eq!(net.node(D).metrics.handoff_retries, 1, "the sink goes on in one round trip");
    assert_eq!(quarantined(&net), 1);
    net.finish_all();
    net.deliver(P, D);
    assert_eq!(quarantined(&net), 0);
    net.is_clean();
}

#[test]
fn a_failed_attempt_goes_on_with_another_prefill_on_fresh_pages() {
    let mut net = in_flight();
    let before = net.flights[0].push.pages[0].1;
    net.abort(P, R, AbortReason::Lane);
    net.deliver_all();
    assert_eq!(net.node(Q).sources.len(), 1, "Q was asked with the prompt");
    net.serve(Q, R);
    assert!(net.flights[1].push.pages.iter().all(|(_, to)| *to != before));
    assert!(net.flights[1].push.generation > net.flights[0].push.generation);
    net.finish(1, Outcome::Moved);
    net.deliver_all();
    assert!(landed(&net, R));
    assert_eq!(quarantined(&net), 1);
    net.finish_all();
    net.deliver_all();
    assert_eq!(net.node(D).free.len(), 64);
    net.is_clean();
}

#[test]
fn a_lost_prefill_is_replaced_and_the_last_one_lost_fails_the_hand_off() {
    let mut net = in_flight();
    net.cut(D, P);
    assert_eq!(net.node(D).transfer.waiting_on(R), Some(Wait::Handoff(Q)));
    net.deliver_all();
    net.cut(D, Q);
    assert_eq!(net.ends(D), [(R, End::SinkFailed(AbortReason::Lost))]);
    assert_eq!(net.node(D).free.len(), 64);
    net.finish_all();
    net.is_clean();
}

#[test]
fn the_prefill_with_the_fewest_rooms_is_tried_next_and_each_is_tried_once() {
    let s = WorkerId(4);
    let workers = [(D, Mode::Decode), (P, Mode::Prefill), (Q, Mode::Prefill), (s, Mode::Prefill)];
    let mut net = Net::strangers(&workers, &TransferConfig { retries_max: 2, ..config() });
    for peer in [P, Q, s] {
        net.connect(D, peer);
    }
    net.deliver_all();
    net.begin(1, Q, 8, 0);
    net.begin(R.0, P, 8, 0);
    net.deliver_all();
    assert_eq!(net.node(D).transfer.next_prefill(R), Some(s));
    net.abort(P, R, AbortReason::Lane);
    net.deliver_all();
    assert_eq!(net.node(D).transfer.waiting_on(R), Some(Wait::Handoff(s)));
    net.abort(s, R, AbortReason::Lane);
    net.deliver_all();
    assert_eq!(net.node(D).transfer.waiting_on(R), Some(Wait::Handoff(Q)));
    net.abort(Q, R, AbortReason::Lane);
    net.deliver_all();
    assert_eq!(net.ends(D), [(R, End::SinkFailed(AbortReason::Lane))]);
    net.is_clean();
}

#[test]
fn a_cancelled_request_is_not_tried_elsewhere() {
    let mut net = in_flight();
    net.abort(P, R, AbortReason::Cancelled);
    net.deliver_all();
    assert_eq!(net.ends(D), [(R, End::SinkFailed(AbortReason::Cancelled))]);
}

#[test]
fn a_new_life_of_the_source_ends_the_rooms_of_the_old_one() {
    let mut net = in_flight();
    net.restart(P);
    net.connect(D, P);
    assert_eq!(net.node(D).transfer.waiting_on(R), Some(Wait::Handoff(Q)));
    assert_eq!(quarantined(&net), 0);
    net.deliver_all();
    net.serve(Q, R);
    net.finish_all();
    net.deliver_all();
    assert!(landed(&net, R));
    net.is_clean();
}

#[test]
fn a_restarted_source_acknowledges_what_it_does_not_know() {
    let mut net = Net::new();
    let unknown = Message::Abort {
        room: Room(99),
        generation: Generation(3),
        epoch: Epoch(1),
        source: Epoch(0),
        by: Side::Sink,
        reason: AbortReason::Deadline,
    };
    net.say(D, P, unknown);
    assert!(matches!(net.queued(P, D)[..], [Message::AbortAck { room: Room(99), .. }]));
}

#[test]
fn a_silent_peer_fails_its_rooms_and_releases_nothing() {
    let mut net = in_flight();
    net.wait_seconds(16);
    assert_eq!(net.node(D).metrics.marks.get("transfer.silent"), Some(&1));
    assert_eq!(net.node(D).transfer.waiting_on(R), Some(Wait::Handoff(Q)), "two pings went unanswered");
    net.wait_seconds(100);
    assert!(quarantined(&net) > 0);
    assert_eq!(net.node(D).transfer.next_prefill(R), None);
    net.finish_all();
    net.deliver_all();
    assert_eq!(quarantined(&net), 0);
    net.is_clean();
}

#[test]
fn a_peer_that_answers_again_is_asked_again() {
    let mut net = in_flight();
    net.wait_seconds(16);
    net.abort(D, R, AbortReason::Cancelled);
    net.finish_all();
    net.deliver_all();
    net.begin(8, Q, 8, 0);
    assert_eq!(net.node(D).transfer.next_prefill(RequestId(8)), Some(P));
}

#[test]
fn peers_without_open_rooms_are_not_pinged() {
    let mut net = Net::new();
    assert_eq!(net.node(D).transfer.deadline(), None);
    net.begin(R.0, P, 8, 0);
    net.deliver_all();
    net.wait_seconds(5);
    assert!(matches!(net.queued(D, P)[..], [Message::Ping { number: 1 }]));
    net.deliver_all();
    net.serve(P, R);
    net.finish_all();
    net.deliver_all();
    net.wait_seconds(60);
    assert!(net.queued(D, P).is_empty());
    assert_eq!(net.node(D).transfer.deadline(), None);
}

#[test]
fn kv_of_another_kind_fails_the_rooms_of_the_sink_at_once() {
    let mut net = Net::strangers(&[(D, Mode::Decode)], &config());
    let other = TransferConfig { layout: Layout { page_size: 8, ..layout() }, ..config() };
    net.start(P, Mode::Prefill, other, Epoch(1));
    net.begin(R.0, P, 8, 0);
    net.connect(D, P);
    net.deliver_all();
    assert_eq!(net.ends(D), [(R, End::SinkFailed(AbortReason::Incompatible))]);
    assert_eq!(net.node(D).transfer.mismatch(P), Some(&Mismatch::PageSize { ours: 4, theirs: 8 }));
    assert!(net.node(P).transfer.mismatch(D).is_some());
    net.want(D, RequestId(8), P, 8, 0, None);
    net.tick(D);
    assert_eq!(net.ends(D)[1], (RequestId(8), End::SinkFailed(AbortReason::Incompatible)));
}

#[test]
fn each_difference_has_its_reason() {
    let (epoch, mode, root, generation) = (Epoch(1), Mode::Prefill, super::net::ROOT, Generation(0));
    let hello = Hello { version: VERSION, epoch, mode, root, layout: layout(), generation };
    let cases = [
        (Hello { version: 9, ..hello.clone() }, Mismatch::Version { ours: VERSION, theirs: 9 }),
        (Hello { root: PageKey(1), ..hello.clone() }, Mismatch::Namespace),
        (Hello { layout: Layout { tp: 3, ..layout() }, ..hello }, Mismatch::TensorParallel { ours: 1, theirs: 3 }),
    ];
    for (theirs, mismatch) in cases {
        let mut net = Net::strangers(&[(D, Mode::Decode), (P, Mode::Prefill)], &config());
        net.connect(D, P);
        net.say(P, D, Message::Hello(theirs.into()));
        assert_eq!(net.node(D).transfer.mismatch(P), Some(&mismatch));
        assert_eq!(net.queued(D, P).last(), Some(&Message::Incompatible(mismatch)));
    }
}

#[test]
fn a_hand_off_of_another_attempt_is_dropped_and_one_of_another_prompt_fails_this_one() {
    let mut net = Net::new();
    net.begin(R.0, P, 8, 2);
    net.deliver_all();
    let right = Handoff {
        room: Room(R.0),
        generation: Generation(1),
        epoch: Epoch(1),
        source: Epoch(1),
        request: R,
        length: 8,
        last: super::net::prompt(R, 8).keys.last().copied(),
        token: Token(1),
        served: Box::new(Served::from_nowhere(8)),
    };
    let stale = [
        Handoff { generation: Generation(0), ..right.clone() },
        Handoff { generation: Generation(2), ..right.clone() },
        Handoff { epoch: Epoch(2), ..right.clone() },
        Handoff { source: Epoch(0), ..right.clone() },
        Handoff { room: Room(8), ..right.clone() },
    ];
    for (count, handoff) in stale.into_iter().enumerate() {
        net.say(P, D, Message::Handoff(handoff.into()));
        assert_eq!(net.node(D).metrics.stale_inputs, count as u64 + 1);
    }
    net.say(Q, D, Message::Handoff(right.clone().into()));
    assert_eq!(net.node(D).metrics.stale_inputs, 6, "Q was not asked");
    assert_eq!(net.node(D).transfer.waiting_on(R), Some(Wait::Handoff(P)));
    net.say(P, D, Message::Handoff(Handoff { length: 7, ..right }.into()));
    assert_eq!(net.node(D).transfer.waiting_on(R), Some(Wait::Handoff(Q)), "tried elsewhere");
    assert_eq!(quarantined(&net), 0, "the source is done with the pages");
}

#[test]
fn what_comes_after_the_end_changes_nothing() {
    let mut net = in_flight();
    net.serve(P, R);
    net.finish_all();
    let handoff = net.queued(P, D).pop().expect("a hand-off");
    net.deliver_all();
    net.say(P, D, handoff);
    assert_eq!(net.ends(D).len(), 1);
    assert_eq!(net.node(D).metrics.stale_inputs, 1);
    net.is_clean();
}

#[test]
fn a_fake_hand_off_lands_in_the_next_settle() {
    let fake = TransferConfig { backend: TransferBackend::Fake, ..config() };
    for (config, prefill) in [(fake, P), (config(), WorkerId::FAKE)] {
        let mut net = Net::strangers(&[(D, Mode::Decode)], &config);
        let prompt = super::net::prompt(R, 8);
        net.step(D, |transfer, cx, _| {
            let _ = transfer.settle(cx);
            transfer.want(cx, R, Room(1), prefill, &prompt, 0, &[], None).expect("a room of its own");
            assert_eq!(transfer.waiting_on(R), Some(Wait::Settle));
            assert_eq!(transfer.deadline().map(|(at, _)| at), Some(cx.now));
            let events = transfer.settle(cx);
            assert!(matches!(
                events[..],
                [crate::transfer::TransferEvent::Landed { request: R, token: Token(0), served: None }]
            ));
            let lease = crate::kv::Lease::for_test(R, Vec::new());
            assert_eq!(transfer.quarantine(cx, lease).len(), 1, "fenced at once");
            assert!(transfer.is_idle());
        });
    }
}

/// Negative control: the harness sees what the fence is for.
#[test]
fn pages_that_are_released_by_a_timeout_are_seen() {
    let mut net = in_flight();
    net.mutate(Mutant::FenceOnTimeout);
    net.abort(D, R, AbortReason::Cancelled);
    net.wait_seconds(1);
    assert_eq!(net.faults.len(), 1, "{:?}", net.faults);
    net.want(D, RequestId(8), Q, 12, 0, None);
    net.finish_all();
    assert!(net.faults.iter().any(|fault| fault.contains("wrote to a page of Some(RequestId(8))")), "{:?}", net.faults);
}

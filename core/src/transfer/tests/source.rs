//! The prefill end: offers and wants in either order, pushes that fail, aborts that wait for what is in flight.

use std::vec;
use std::vec::Vec;

use super::net::{D, End, Net, P, Q, config, prompt};
use crate::config::{Mode, TransferBackend, TransferConfig};
use crate::event::Refusal;
use crate::id::{Epoch, Generation, GpuPage, RequestId, Room, Token};
use crate::limits::TRANSFER_TIMERS_PER_STEP;
use crate::message::{AbortReason, Message, Want};
use crate::op::{Fault, Outcome};
use crate::transfer::{TransferEvent, Wait};

const R: RequestId = RequestId(7);

fn want(generation: u32, length: u32) -> Want {
    Want {
        room: Room(R.0),
        generation: Generation(generation),
        epoch: Epoch(1),
        source: Epoch(1),
        request: R,
        length,
        have: 0,
        pages: (0..length.div_ceil(4)).map(GpuPage).collect(),
        prompt: None,
    }
}

fn say(net: &mut Net, want: Want) {
    net.say(D, P, Message::Want(want.into()));
}

/// What P answers to a want that it declines.
fn refused(net: &Net) -> Option<AbortReason> {
    match net.queued(P, D)[..] {
        [.., Message::Abort { generation, reason, .. }, Message::AbortAck { generation: acked, .. }] => {
            assert_eq!(generation, acked);
            Some(reason)
        }
        _ => None,
    }
}

fn in_flight() -> Net {
    let mut net = Net::new();
    net.begin(R.0, P, 12, 0);
    net.deliver_all();
    net.compute(P, R, 2);
    net
}

#[test]
fn an_offer_waits_for_its_want_and_a_want_for_its_offer() {
    let mut net = Net::new();
    net.offer(P, R, Room(R.0), 8, None).expect("a room of its own");
    assert!(!net.node(P).transfer.is_wanted(R));
    assert_eq!(net.node(P).transfer.waiting_on(R), Some(Wait::Want));
    say(&mut net, want(1, 8));
    assert!(net.node(P).transfer.is_wanted(R));
    assert_eq!(net.node(P).transfer.waiting_on(R), Some(Wait::Prompt));

    let mut net = Net::new();
    say(&mut net, want(1, 8));
    net.offer(P, R, Room(R.0), 8, None).expect("a room of its own");
    assert!(net.node(P).transfer.is_wanted(R), "at once");
}

/// Found with nonsense from a peer: such a want counted as the newest, and the peer's own were taken for copies of it
/// until its connection broke.
#[test]
fn a_want_of_another_life_does_not_make_those_of_this_one_old() {
    for (epoch, source) in [(Epoch(9), Epoch(1)), (Epoch(1), Epoch(9)), (Epoch(0), Epoch(0))] {
        let mut net = Net::new();
        net.offer(P, R, Room(R.0), 8, None).expect("a room of its own");
        say(&mut net, Want { epoch, source, ..want(u32::MAX, 8) });
        assert!(!net.node(P).transfer.is_wanted(R));
        say(&mut net, want(1, 8));
        assert!(net.node(P).transfer.is_wanted(R), "{epoch} {source}");
    }
}

#[test]
fn a_want_that_nobody_offers_is_declined_in_time() {
    let mut net = Net::new();
    say(&mut net, want(1, 8));
    net.live_seconds(298);
    net.wait_seconds(1);
    assert_eq!(net.node(P).transfer.rooms(), 1);
    net.wait_seconds(1);
    assert_eq!(refused(&net), Some(AbortReason::Unknown));
    assert_eq!(net.node(P).transfer.rooms(), 0);
}

#[test]
fn wants_that_nobody_offers_are_bounded() {
    let mut net =
        Net::strangers(&[(D, Mode::Decode), (P, Mode::Prefill)], &TransferConfig { rooms_max: 2, ..config() });
    net.connect(D, P);
    net.deliver_all();
    for room in 0..3 {
        say(&mut net, Want { room: Room(room), ..want(room as u32 + 1, 8) });
    }
    assert_eq!(net.node(P).transfer.rooms(), 2);
    assert_eq!(refused(&net), Some(AbortReason::Refused));
}

#[test]
fn an_offer_whose_sink_never_comes_ends_with_the_bootstrap_timeout() {
    let mut net = Net::new();
    net.offer(P, R, Room(R.0), 8, None).expect("a room of its own");
    net.wait_seconds(300);
    assert_eq!(net.ends(P), [(R, End::SourceFailed(AbortReason::Deadline))]);
}

#[test]
fn a_sink_learns_at_once_of_an_offer_that_ended_before_its_want() {
    let mut net = Net::new();
    net.offer(P, R, Room(R.0), 8, None).expect("a room of its own");
    net.abort(P, R, AbortReason::Cancelled);
    assert_eq!(net.ends(P), [(R, End::SourceFailed(AbortReason::Cancelled))]);
    say(&mut net, want(1, 8));
    assert_eq!(refused(&net), Some(AbortReason::Cancelled));
    net.wait_seconds(300);
    assert!(net.node(P).transfer.is_idle());
    assert_eq!(net.node(P).transfer.deadline(), None, "the memory of it ends too");
}

#[test]
fn a_source_whose_prompt_takes_too_long_gives_up() {
    let mut net = in_flight();
    net.finish_all();
    net.live_seconds(300);
    assert_eq!(net.ends(P), [(R, End::SourceFailed(AbortReason::Deadline))]);
}

#[test]
fn a_live_room_is_refused_locally_and_remotely() {
    let mut net = in_flight();
    assert_eq!(net.offer(P, RequestId(8), Room(R.0), 8, None), Err(Refusal::DuplicateRoom));
    say(&mut net, Want { request: RequestId(8), ..want(9, 8) });
    assert_eq!(refused(&net), Some(AbortReason::Duplicate));
    assert!(net.node(P).transfer.is_wanted(R), "the first one goes on");
}

#[test]
fn a_want_for_another_prompt_is_declined_and_the_offer_stays() {
    let mut net = Net::new();
    net.offer(P, R, Room(R.0), 8, None).expect("a room of its own");
    say(&mut net, want(1, 12));
    assert_eq!(refused(&net), Some(AbortReason::Unknown));
    say(&mut net, Want { request: RequestId(8), ..want(2, 8) });
    assert_eq!(refused(&net), Some(AbortReason::Duplicate));
    say(&mut net, want(3, 8));
    assert!(net.node(P).transfer.is_wanted(R));
}

#[test]
fn wants_that_make_no_sense_are_declined() {
    let mut net = Net::new();
    let senseless = vec![
        want(1, 0),
        Want { have: 3, ..want(2, 8) },
        Want { pages: Vec::new(), ..want(3, 8) },
        Want { pages: vec![GpuPage(0); 9], ..want(4, 8) },
        Want { prompt: Some(prompt(R, 12).into()), ..want(5, 8) },
        Want { length: u32::MAX, ..want(6, 8) },
    ];
    for want in senseless {
        say(&mut net, want);
        assert_eq!(refused(&net), Some(AbortReason::Unknown));
    }
    say(&mut net, Want { room: Room(1).fake(), ..want(7, 8) });
    assert_eq!(refused(&net), Some(AbortReason::Refused));
    assert_eq!(net.node(P).transfer.rooms(), 0);
}

#[test]
fn a_want_that_comes_twice_or_after_its_abort_starts_nothing() {
    let mut net = Net::new();
    net.offer(P, R, Room(R.0), 8, None).expect("a room of its own");
    net.want(D, R, P, 8, 0, None);
    let first = net.queued(D, P).remove(0);
    net.abort(D, R, AbortReason::Cancelled);
    net.deliver_all();
    assert_eq!(net.node(D).free.len(), 64);
    net.offer(P, RequestId(8), Room(8), 8, None).expect("a room of its own");
    net.offer(P, R, Room(R.0), 8, None).expect("a room of its own");
    net.say(D, P, first);
    assert!(!net.node(P).transfer.is_wanted(R), "its pages are not the sink's to lend any more");
    assert_eq!(net.node(P).metrics.stale_inputs, 1);
}

#[test]
fn a_want_of_an_earlier_connection_starts_nothing() {
    let mut net = Net::new();
    net.want(D, R, P, 8, 0, None);
    let lost = net.queued(D, P).remove(0);
    net.cut(D, P);
    net.cut(P, D);
    net.connect(D, P);
    net.deliver_all();
    net.offer(P, R, Room(R.0), 8, None).expect("a room of its own");
    net.say(D, P, lost);
    assert!(!net.node(P).transfer.is_wanted(R));
    assert_eq!(net.node(P).metrics.stale_inputs, 1);
}

#[test]
fn a_prompt_that_no_router_announced_is_asked_for_and_may_be_declined() {
    let mut net = Net::new();
    let unasked = Want { prompt: Some(prompt(R, 8).into()), ..want(1, 8) };
    let asked = net.step(P, |transfer, cx, _| {
        let events = transfer.on_message(cx, D, Message::Want(unasked.into()));
        let [TransferEvent::Asked { from: D, want }] = &events[..] else { panic!("{events:?}") };
        assert!(want.prompt.is_some());
        transfer.refuse(cx, Q, want.room, want.generation);
        assert_eq!(transfer.rooms(), 1, "another sink's");
        transfer.refuse(cx, D, want.room, want.generation);
        transfer.rooms()
    });
    assert_eq!(asked, 0);
    assert_eq!(refused(&net), Some(AbortReason::Refused));
}

#[test]
fn a_failed_push_is_tried_once_more_with_the_pages_that_failed() {
    let mut net = in_flight();
    net.finish(0, Outcome::Partly(vec![(1, Fault::Io)]));
    assert_eq!(net.flights.len(), 1);
    assert_eq!(net.flights[0].push.pages.len(), 1);
    net.serve(P, R);
    net.finish_all();
    net.deliver_all();
    assert_eq!(net.ends(D), [(R, End::Landed(Token(1007)))]);
    net.is_clean();
}

#[test]
fn a_push_that_fails_twice_ends_the_room_once_the_others_have_ended() {
    let mut net = in_flight();
    net.compute(P, R, 1);
    net.finish(0, Outcome::Failed(Fault::Io));
    net.finish(1, Outcome::Failed(Fault::Io));
    assert!(net.ends(P).is_empty(), "one push still reads the pages");
    assert!(matches!(net.queued(P, D)[..], [Message::Abort { reason: AbortReason::Lane, .. }]));
    net.finish(0, Outcome::Failed(Fault::Io));
    assert!(net.flights.is_empty(), "an ended room tries nothing again");
    assert_eq!(net.ends(P), [(R, End::SourceFailed(AbortReason::Lane))]);
    net.deliver_all();
    net.is_clean();
}

#[test]
fn a_push_whose_forward_failed_is_not_tried_again() {
    let mut net = in_flight();
    net.finish(0, Outcome::Failed(Fault::Prerequisite));
    assert_eq!(net.ends(P), [(R, End::SourceFailed(AbortReason::Lane))]);
}

#[test]
fn an_aborted_source_keeps_its_pages_until_they_are_read() {
    let mut net = in_flight();
    net.abort(P, R, AbortReason::Cancelled);
    assert!(matches!(net.queued(P, D)[..], [Message::Abort { .. }]), "the sink learns at once");
    assert_eq!(net.node(P).transfer.waiting_on(R), Some(Wait::Pushes(1)));
    net.compute(P, R, 1);
    net.hand_over(P, R);
    assert_eq!(net.flights.len(), 1, "nothing starts any more");
    net.wait_seconds(3600);
    assert!(net.ends(P).is_empty(), "no deadline gives pages back");
    net.finish_all();
    assert_eq!(net.ends(P), [(R, End::SourceFailed(AbortReason::Cancelled))]);
    net.is_clean();
}

#[test]
fn the_first_reason_to_end_stands() {
    let mut net = in_flight();
    net.abort(P, R, AbortReason::Refused);
    net.abort(P, R, AbortReason::Cancelled);
    net.finish(0, Outcome::Failed(Fault::Io));
    assert_eq!(net.ends(P), [(R, End::SourceFailed(AbortReason::Refused))]);
    assert_eq!(net.queued(P, D).len(), 2, "one abort, one acknowledgement");
}

#[test]
fn a_lost_sink_ends_its_rooms_once_nothing_is_in_flight() {
    let mut net = in_flight();
    net.cut(P, D);
    assert!(net.ends(P).is_empty());
    net.finish_all();
    assert_eq!(net.ends(P), [(R, End::SourceFailed(AbortReason::Lost))]);
    say(&mut net, want(9, 8));
    assert_eq!(net.node(P).metrics.stale_inputs, 1, "a message of a peer that is not up");
}

#[test]
fn a_new_life_of_the_sink_ends_the_rooms_of_the_old_one() {
    let mut net = in_flight();
    net.restart(D);
    net.connect(D, P);
    net.finish_all();
    net.deliver_all();
    assert_eq!(net.ends(P), [(R, End::SourceFailed(AbortReason::Lost))]);
    say(&mut net, want(1, 8));
    assert_eq!(net.node(P).metrics.stale_inputs, 1, "a want of the earlier life");
    net.is_clean();
}

#[test]
fn an_earlier_life_of_a_peer_is_not_believed() {
    let mut net = Net::new();
    net.restart(D);
    net.connect(D, P);
    net.step(P, |transfer, cx, _| assert!(transfer.on_peer(cx, D, Some(Epoch(1))).is_empty()));
    assert_eq!(net.node(P).metrics.stale_inputs, 1);
    net.deliver_all();
    net.begin(R.0, P, 4, 1);
    net.deliver_all();
    assert!(net.node(P).transfer.is_wanted(R));
}

#[test]
fn a_fake_sink_wants_nothing_but_the_hand_off() {
    let fake = TransferConfig { backend: TransferBackend::Fake, ..config() };
    for (config, room) in [(fake, Room(1)), (config(), Room(1).fake())] {
        let mut net = Net::strangers(&[(P, Mode::Prefill)], &config);
        net.offer(P, R, room, 8, None).expect("a room of its own");
        assert!(net.node(P).transfer.is_wanted(R));
        net.serve(P, R);
        assert!(net.flights.is_empty());
        assert_eq!(net.ends(P), [(R, End::Sent)]);
        net.offer(P, R, room, 8, None).expect("the room is free again");
        net.abort(P, R, AbortReason::Cancelled);
        assert!(net.node(P).transfer.is_idle());
    }
}

/// S-105, S-137: many more aborts than rooms leave nothing behind.
#[test]
fn a_storm_of_aborts_leaves_nothing_behind() {
    let mut net = Net::new();
    for request in 1..500 {
        net.begin(request, P, 8, 0);
        match request % 3 {
            0 => net.abort(D, RequestId(request), AbortReason::Cancelled),
            1 => net.abort(P, RequestId(request), AbortReason::Cancelled),
            _ => {
                net.deliver_all();
                net.compute(P, RequestId(request), 1);
                net.abort(P, RequestId(request), AbortReason::Cancelled);
                net.finish_all();
            }
        }
        net.deliver_all();
    }
    net.wait_seconds(300);
    net.deliver_all();
    for worker in [D, P, Q] {
        assert!(net.node(worker).transfer.is_idle());
    }
    assert_eq!(net.node(D).free.len(), 64);
    net.is_clean();
}

#[test]
fn one_step_serves_a_bounded_number_of_timers_and_asks_for_another() {
    let many = TRANSFER_TIMERS_PER_STEP + 1;
    let mut net = Net::strangers(&[(P, Mode::Prefill)], &TransferConfig { rooms_max: many, ..config() });
    for request in 0..u64::from(many) {
        net.offer(P, RequestId(request), Room(request), 8, None).expect("a room of its own");
    }
    net.now = net.now.after_ns(300_000_000_000);
    net.tick(P);
    assert_eq!(net.ends(P).len(), TRANSFER_TIMERS_PER_STEP as usize);
    assert_eq!(net.node(P).transfer.deadline().map(|(at, _)| at), Some(net.now));
    net.tick(P);
    assert_eq!(net.ends(P).len(), many as usize);
}

#[test]
fn equal_states_have_equal_fingerprints_and_different_ones_different() {
    let fingerprint = |net: &Net, id| {
        let mut digest = crate::digest::Digest::new();
        net.node(id).transfer.digest(&mut digest);
        digest.finish()
    };
    let (one, other) = (in_flight(), in_flight());
    assert_eq!(fingerprint(&one, P), fingerprint(&other, P));
    assert_eq!(fingerprint(&one, D), fingerprint(&other, D));
    let mut other = other;
    let before = fingerprint(&other, P);
    other.finish_all();
    assert_ne!(fingerprint(&other, P), before);
}

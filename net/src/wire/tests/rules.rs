//! The rules for transfers between machines that fail, R1 to R13. What they have in common: a page that was given up is
//! never written again, on any transport.

use pd_core::event::Served;
use pd_core::id::{RequestId, Token};
use pd_core::message::{AbortReason, End, Handoff, Message, Want};

use super::*;

/// A page has a generation, and a write names it: another generation, room, life or page is refused and counted.
#[test]
fn r1_a_write_for_another_attempt_is_refused() {
    for kind in MOVING {
        let pair = Pair::new(kind);
        pair.grant(2, &[0]).unwrap();
        let mut refused = 0;
        for push in [push_of(1, &[(0, 0)]), push_of(3, &[(0, 0)]), push_of(2, &[(0, 1)]), push_of(2, &[(0, 0), (0, 1)])]
        {
            pair.wire.push(op(refused), push);
            assert_eq!(pair.outcome(), (op(refused), Outcome::Failed(Fault::Fenced)), "{kind:?}");
            refused += 1;
            assert!(pair.wire.counters().fenced >= refused, "{kind:?}");
        }
        pair.assert_holds(1, 0);
        pair.wire.push(op(9), push_of(2, &[(0, 0)]));
        assert_eq!(pair.outcome(), (op(9), Outcome::Moved), "{kind:?}");
    }
}

/// Over TCP the sink knows who writes: another room, peer or life than that of the lease is refused, too.
#[test]
fn r1_a_write_by_somebody_else_is_refused() {
    let pair = Pair::new(Kind::Tcp);
    let lease = |room, peer, epoch, generation| {
        pair.receiver.grant(room, Generation(generation), peer, epoch, &[GpuPage(generation)]).unwrap();
        pair.wire.push(op(u64::from(generation)), push_of(generation, &[(0, generation)]));
        pair.outcome().1
    };
    let fenced = Outcome::Failed(Fault::Fenced);
    assert_eq!(lease(room(99), SOURCE, LIFE, 1), fenced, "another room");
    assert_eq!(lease(room(2), WorkerId(8), LIFE, 2), fenced, "another peer");
    assert_eq!(lease(room(3), SOURCE, Epoch(2), 3), fenced, "another life");
    assert_eq!(lease(room(4), SOURCE, LIFE, 4), Outcome::Moved);
}

/// Pages of a live lease belong to nobody else.
#[test]
fn r2_a_leased_page_is_not_leased_again() {
    for kind in MOVING {
        let pair = Pair::new(kind);
        pair.grant(1, &[0, 1]).unwrap();
        assert_eq!(pair.grant(2, &[5, 1]), Err(GrantError::Busy { page: 1 }), "{kind:?}");
        pair.revoke(1).unwrap();
        pair.grant(3, &[5, 1]).unwrap();
    }
}

/// The fence: a transfer that is held back past the end of its attempt never reaches the next request's page.
#[test]
fn r3_a_push_that_is_held_back_past_the_abort_is_refused() {
    for kind in MOVING {
        let (pair, barrier) = held_back(kind, At::Before);
        pair.revoke(1).unwrap();
        pair.reuse(0, 77);
        pair.grant(2, &[0]).unwrap();
        barrier.go.close();
        assert_eq!(pair.outcome(), (op(0), Outcome::Failed(Fault::Fenced)), "{kind:?}");
        pair.assert_holds(0, 77);
        assert!(pair.wire.counters().fenced > 0, "{kind:?}");
    }
}

/// The same in the middle of a page, over TCP: the sink does not hold the page for bytes that have not come.
#[test]
fn r3_a_push_that_is_held_back_in_the_middle_of_a_page_is_refused() {
    let (pair, barrier) = held_back(Kind::Tcp, At::During);
    pair.revoke(1).unwrap();
    pair.reuse(0, 77);
    pair.grant(2, &[0]).unwrap();
    barrier.go.close();
    assert_eq!(pair.outcome(), (op(0), Outcome::Failed(Fault::Fenced)));
    pair.assert_holds(0, 77);
}

/// The same in shared memory: while the copy goes on there is no fence, a timeout makes none, and nobody gets the page.
#[test]
fn r3_a_timeout_is_no_fence() {
    let (pair, barrier) = held_back(Kind::Shared, At::During);
    assert_eq!(pair.revoke(1), Err(pd_sync::Writing { page: 0 }));
    assert_eq!(pair.receiver.fence_peer(SOURCE), Err(pd_sync::Writing { page: 0 }));
    assert_eq!(pair.grant(2, &[0]), Err(GrantError::Busy { page: 0 }));
    assert!(pair.into.write(0).is_err(), "nor does anybody here");
    barrier.go.close();
    assert_eq!(pair.outcome(), (op(0), Outcome::Failed(Fault::Fenced)), "the copy counts for nothing");
    pair.revoke(1).unwrap();
    pair.reuse(0, 77);
    pair.assert_holds(0, 77);
}

/// Negative control for the fence tests: without a revocation the held-back page does land in the next request's page.
#[test]
fn r3_control_without_a_revocation_the_page_is_overwritten() {
    for kind in MOVING {
        let (pair, barrier) = held_back(kind, At::Before);
        pair.reuse(0, 77);
        barrier.go.close();
        assert_eq!(pair.outcome(), (op(0), Outcome::Moved), "{kind:?}");
        pair.assert_landed(4, 0);
    }
}

/// After a peer is reported gone, no write of that life lands.
#[test]
fn r3_a_fenced_peer_writes_no_more() {
    for kind in MOVING {
        let (pair, barrier) = held_back(kind, At::Before);
        pair.grant(2, &[1]).unwrap();
        pair.receiver.grant(room(3), Generation(3), WorkerId(8), LIFE, &[GpuPage(2)]).unwrap();
        pair.receiver.fence_peer(SOURCE).unwrap();
        assert_eq!(pair.receiver.leases(), 1, "that of the other peer");
        pair.reuse(0, 77);
        barrier.go.close();
        assert_eq!(pair.outcome(), (op(0), Outcome::Failed(Fault::Fenced)), "{kind:?}");
        pair.assert_holds(0, 77);
    }
}

/// Content is verified before it counts, and what was damaged goes again.
#[test]
fn r4_damaged_bytes_are_found_and_sent_again() {
    let pair = Pair::apart(Kind::Tcp, WireConfig { streams: 1, ..source_config() }, sink_config());
    // Behind the greeting and some chunks, within a payload.
    let address = proxy(pair.receiver.address(), Harm::Flip(PAGE + 500));
    pair.wire.up(&Endpoint { address, ..pair.endpoint() });
    pair.grant(1, &[0, 1, 2]).unwrap();
    pair.wire.push(op(0), push_of(1, &[(7, 0), (8, 1), (9, 2)]));
    assert_eq!(pair.outcome(), (op(0), Outcome::Moved));
    for (from, into) in [(7, 0), (8, 1), (9, 2)] {
        pair.assert_landed(from, into);
    }
    let (ours, theirs) = (pair.wire.counters(), pair.receiver.counters());
    assert!(theirs.damaged + theirs.malformed >= 1, "{theirs:?}");
    assert!(ours.resent >= 1 && ours.connections >= 2, "{ours:?}");
}

/// A page that never arrives whole is never said to have landed.
#[test]
fn r5_nothing_unverified_is_reported_as_moved() {
    let config = WireConfig { attempts_max: 1, streams: 1, ..source_config() };
    let pair = Pair::apart(Kind::Tcp, config, sink_config());
    let address = proxy(pair.receiver.address(), Harm::Flip(PAGE + 500));
    pair.wire.up(&Endpoint { address, ..pair.endpoint() });
    pair.grant(1, &[0, 1, 2]).unwrap();
    pair.wire.push(op(0), push_of(1, &[(7, 0), (8, 1), (9, 2)]));
    let (_, outcome) = pair.outcome();
    assert!(matches!(outcome, Outcome::Failed(Fault::Checksum | Fault::Unreachable)), "{outcome:?}");
}

/// A write that ends behind its lease is discarded; a lease itself ends by word, never by time (there is no clock in it).
#[test]
fn r6_a_lease_lasts_until_it_is_revoked_and_not_longer() {
    for kind in MOVING {
        let pair = Pair::new(kind);
        pair.grant(1, &[0]).unwrap();
        pair.wire.push(op(0), push_of(1, &[(1, 0)]));
        assert_eq!(pair.outcome().1, Outcome::Moved);
        pair.wire.push(op(1), push_of(1, &[(2, 0)]));
        assert_eq!(pair.outcome().1, Outcome::Moved, "{kind:?}: it still stands");
        pair.revoke(1).unwrap();
        pair.wire.push(op(2), push_of(1, &[(3, 0)]));
        assert_eq!(pair.outcome().1, Outcome::Failed(Fault::Fenced), "{kind:?}");
        pair.assert_landed(2, 0);
    }
}

/// Lives: a connection to another life is refused, and a later life of a peer ends what went to the earlier one.
#[test]
fn r7_lives_are_told_apart() {
    for kind in MOVING {
        let pair = Pair::apart(kind, source_config(), ReceiverConfig { epoch: Epoch(4), ..sink_config() });
        pair.wire.up(&pair.endpoint());
        pair.receiver.grant(room(1), Generation(1), SOURCE, LIFE, &[GpuPage(0)]).unwrap();
        pair.wire.push(op(0), push_of(1, &[(0, 0)]));
        assert_eq!(pair.outcome().1, Outcome::Failed(Fault::Fenced), "{kind:?}: the address has another life");
        pair.wire.up(&Endpoint { epoch: Epoch(4), ..pair.endpoint() });
        pair.wire.push(op(1), push_of(1, &[(0, 0)]));
        assert_eq!(pair.outcome().1, Outcome::Failed(Fault::Fenced), "{kind:?}: a push for the earlier life");
        pair.wire.push(op(2), Push { epoch: Epoch(4), ..push_of(1, &[(0, 0)]) });
        assert_eq!(pair.outcome().1, Outcome::Moved, "{kind:?}");
    }
}

/// All pages of an attempt are reserved before its first chunk, or none.
#[test]
fn r8_pages_are_leased_all_or_none() {
    for kind in MOVING {
        let pair = Pair::new(kind);
        let reader = pair.into.read(2).unwrap();
        assert_eq!(pair.grant(1, &[0, 1, 2]), Err(GrantError::Busy { page: 2 }));
        drop(reader);
        assert_eq!(pair.grant(2, &[0, PAGES]), Err(GrantError::NoPage { page: PAGES, pages: PAGES }));
        assert_eq!(pair.receiver.leases(), 0);
        pair.wire.push(op(0), push_of(1, &[(0, 0)]));
        assert_eq!(pair.outcome().1, Outcome::Failed(Fault::Fenced), "{kind:?}");
        pair.grant(3, &[0, 1, 2]).unwrap();
    }
}

/// An end is told in any state, as often as you like.
#[test]
fn r9_a_revocation_is_idempotent_and_legal_for_what_is_unknown() {
    for kind in ALL {
        let pair = Pair::new(kind);
        pair.revoke(8).unwrap();
        pair.grant(1, &[0]).unwrap();
        assert_eq!(pair.receiver.revoke(room(2), Generation(1)), Ok(()), "the lease of another room");
        assert_eq!(pair.receiver.leases(), 1);
        pair.revoke(1).unwrap();
        pair.revoke(1).unwrap();
        pair.receiver.fence_peer(SOURCE).unwrap();
        pair.receiver.fence_peer(WorkerId(55)).unwrap();
        assert_eq!(pair.receiver.leases(), 0);
    }
}

/// Rooms that are not known cost nothing, names are used once, and everything has a limit.
#[test]
fn r10_duplicates_are_refused_and_strangers_allocate_nothing() {
    for kind in ALL {
        let pair = Pair::with(kind, source_config(), ReceiverConfig { leases_max: 1, ..sink_config() });
        pair.grant(5, &[0]).unwrap();
        assert_eq!(pair.grant(5, &[1]), Err(GrantError::Generation { generation: Generation(5) }));
        assert_eq!(pair.grant(4, &[1]), Err(GrantError::Generation { generation: Generation(4) }));
        assert_eq!(pair.grant(6, &[1]), Err(GrantError::Full { max: 1 }));
        if kind != Kind::Fake {
            (0..50_u32).for_each(|number| pair.wire.push(op(u64::from(number)), push_of(100 + number, &[(0, 2)])));
            (0..50).for_each(|_| assert_eq!(pair.outcome().1, Outcome::Failed(Fault::Fenced)));
        }
        assert_eq!(pair.receiver.leases(), 1);
    }
}

/// A drain ends admission, finishes what was admitted, and answers the rest.
#[test]
fn r11_a_drain_answers_everything() {
    for kind in ALL {
        let barrier = Barrier::new();
        let config = WireConfig { hook: Some(barrier.hook(At::Before, 0)), ..source_config() };
        let pair = Pair::with(kind, config, sink_config());
        pair.grant(1, &[0]).unwrap();
        pair.wire.push(op(0), push_of(1, &[(0, 0)]));
        if kind != Kind::Fake {
            barrier.await_reached();
            assert!(!pair.wire.drain(Instant::now()), "{kind:?}: one is under way");
        }
        barrier.go.close();
        assert!(pair.wire.drain(Instant::now() + LONG), "{kind:?}");
        assert_eq!(pair.outcome(), (op(0), Outcome::Moved), "{kind:?}");
        pair.wire.push(op(1), push_of(1, &[(0, 0)]));
        assert_eq!(pair.outcome(), (op(1), Outcome::Failed(Fault::Withdrawn)), "{kind:?}");
    }
}

/// A peer that is there and does nothing: progress has a deadline.
#[test]
fn r12_a_peer_that_makes_no_progress_is_given_up() {
    use crate::wire::frame::{self, Hello, Reply, Welcome};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stop = Arc::new(Gate::new());
    let stopped = stop.clone();
    let silent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        frame::read_greeting::<Hello>(&mut stream).unwrap().unwrap();
        frame::write_greeting(&mut stream, &Reply::Welcome(Welcome { pages: PAGES, shared: None })).unwrap();
        stopped.wait_until(None);
    });
    let progress_timeout = Duration::from_millis(30);
    let config = WireConfig { progress_timeout, attempts_max: 1, streams: 1, ..source_config() };
    let (wire, outcomes) = transport(Kind::Tcp, config, filled(PAGES));
    wire.up(&Endpoint { id: SINK, epoch: LIFE, address });
    wire.push(op(0), push_of(1, &[(0, 0)]));
    let outcome = outcomes.recv_timeout(LONG).unwrap();
    assert_eq!(outcome, (op(0), Outcome::Failed(Fault::Unreachable)));
    stop.close();
    silent.join().unwrap();
}

/// Once a push is answered, whoever reads the pages sees all of them.
#[test]
fn r13_what_has_moved_is_visible() {
    for kind in MOVING {
        let pair = Pair::new(kind);
        for generation in 1..=40_u32 {
            let from = generation % PAGES;
            pair.grant(generation, &[0, 1]).unwrap();
            pair.wire.push(op(u64::from(generation)), push_of(generation, &[(from, 0), (from, 1)]));
            assert_eq!(pair.outcome().1, Outcome::Moved, "{kind:?}");
            pair.assert_landed(from, 0);
            pair.assert_landed(from, 1);
            pair.revoke(generation).unwrap();
        }
    }
}

/// What the machines say is enough to lease and to fence: the shell only shows each message to the receiver.
#[test]
fn leases_follow_the_messages() {
    let want = |generation| {
        Message::Want(Box::new(Want {
            room: room(u64::from(generation)),
            generation: Generation(generation),
            epoch: LIFE,
            source: LIFE,
            request: RequestId(1),
            length: 1,
            have: 0,
            pages: vec![GpuPage(generation)],
            prompt: None,
        }))
    };
    let handoff = |generation, source| {
        Message::Handoff(Box::new(Handoff {
            room: room(u64::from(generation)),
            generation: Generation(generation),
            epoch: LIFE,
            source,
            request: RequestId(1),
            length: 1,
            last: None,
            token: Token(0),
            served: Box::new(Served::from_nowhere(1)),
        }))
    };
    let abort = |generation, by| Message::Abort {
        room: room(u64::from(generation)),
        generation: Generation(generation),
        epoch: LIFE,
        source: LIFE,
        by,
        reason: AbortReason::Cancelled,
    };
    let ack = |generation| Message::AbortAck {
        room: room(u64::from(generation)),
        generation: Generation(generation),
        epoch: LIFE,
        source: LIFE,
    };
    let pair = Pair::new(Kind::Tcp);
    for generation in 1..=4 {
        pair.receiver.on_send(SOURCE, &want(generation)).unwrap();
    }
    assert!(pair.receiver.on_send(SOURCE, &want(4)).is_err(), "a page is leased once");
    assert_eq!(pair.receiver.leases(), 4);
    pair.receiver.on_recv(WorkerId(9), &handoff(1, LIFE)).unwrap();
    pair.receiver.on_recv(SOURCE, &handoff(1, Epoch(1))).unwrap();
    assert_eq!(pair.receiver.leases(), 4, "the word of strangers and of earlier lives ends nothing");
    pair.receiver.on_recv(SOURCE, &handoff(1, LIFE)).unwrap();
    pair.receiver.on_recv(SOURCE, &abort(2, End::Source)).unwrap();
    pair.receiver.on_recv(SOURCE, &ack(3)).unwrap();
    pair.receiver.on_send(SOURCE, &abort(4, End::Sink)).unwrap();
    assert_eq!(pair.receiver.leases(), 0);
}

/// Two workers, and a push of page 4 into page 0 for the lease of generation 1 that is held back before, or in the middle
/// of, its write.
fn held_back(kind: Kind, at: At) -> (Pair, Barrier) {
    let barrier = Barrier::new();
    let config = WireConfig { hook: Some(barrier.hook(at, 0)), ..source_config() };
    let pair = Pair::with(kind, config, sink_config());
    pair.grant(1, &[0]).unwrap();
    pair.wire.push(op(0), push_of(1, &[(4, 0)]));
    barrier.await_reached();
    (pair, barrier)
}

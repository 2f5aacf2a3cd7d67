//! What all transports have in common: the rules of all lanes ([`pd_core::testkit::lanes`]), and what is only theirs.

use std::collections::BTreeMap;

use pd_core::id::PageKey;
use pd_core::op::Command;
use pd_core::testkit::lanes::{self, Place, Rig, WireRig};

use super::*;

/// A pair whose sink the rules know as their peer.
struct Ruled {
    kind: Kind,
    pair: Pair,
}

impl Ruled {
    fn new(kind: Kind) -> Self {
        let sink = ReceiverConfig { worker: lanes::PEER, epoch: lanes::LIFE, ..sink_config() };
        let source = WireConfig { worker: SOURCE_OF_RULES, ..source_config() };
        let pair = Pair::apart(kind, source, sink);
        pair.wire.up(&Self::endpoint(&pair));
        Self { kind, pair }
    }

    fn endpoint(pair: &Pair) -> Endpoint {
        Endpoint { id: lanes::PEER, epoch: lanes::LIFE, address: pair.receiver.address().to_string() }
    }

    fn page(&self, place: Place) -> (&Arc<Arena>, u32) {
        match place {
            Place::Device(page) => (&self.pair.from, page),
            Place::Peer(page) => (&self.pair.into, page),
            Place::Host(_) => unreachable!("a wire knows L1 only"),
        }
    }
}

impl Rig for Ruled {
    fn start(&mut self, _: u32, op: OpId, command: Command) {
        let Command::Push(push) = command else { unreachable!("a wire pushes") };
        self.pair.wire.push(op, *push);
    }

    fn answers(&mut self, count: usize) -> Vec<(OpId, Outcome)> {
        let answers = (0..count).map(|_| self.pair.outcome()).collect();
        assert!(self.pair.outcomes.try_recv().is_err(), "an answer to nothing");
        answers
    }

    fn fill(&mut self, place: Place, page: PageKey) {
        let (arena, at) = self.page(place);
        arena.write(at).unwrap().copy_from_slice(&lanes::content(page, PAGE));
    }

    fn held(&mut self, place: Place) -> Option<PageKey> {
        let (arena, at) = self.page(place);
        lanes::content_of(&arena.read(at).unwrap())
    }
}

impl WireRig for Ruled {
    fn lease(&mut self, generation: Generation, pages: &[u32]) {
        let pages: Vec<_> = pages.iter().map(|page| GpuPage(*page)).collect();
        self.pair.receiver.grant(lanes::ROOM, generation, SOURCE_OF_RULES, LIFE, &pages).unwrap();
    }

    fn end_lease(&mut self, generation: Generation) {
        self.pair.receiver.revoke(lanes::ROOM, generation).unwrap();
    }

    fn down(&mut self) {
        self.pair.wire.down(lanes::PEER);
    }

    fn moves(&self) -> bool {
        self.pair.wire.moves()
    }

    fn has_leases(&self) -> bool {
        self.kind != Kind::Fake
    }
}

#[test]
fn all_transports_keep_the_rules() {
    for kind in ALL {
        lanes::WIRE.iter().for_each(|rule| rule(&mut Ruled::new(kind)));
    }
}

const SOURCE_OF_RULES: WorkerId = WorkerId(7);

#[test]
fn pushed_pages_land_where_they_were_leased() {
    for kind in ALL {
        let pair = Pair::new(kind);
        pair.grant(1, &[3, 1, 40]).unwrap();
        pair.wire.push(op(0), push_of(1, &[(0, 3), (1, 1), (63, 40)]));
        assert_eq!(pair.outcome(), (op(0), Outcome::Moved), "{kind:?}");
        if kind == Kind::Fake {
            assert_eq!((pair.wire.moves(), pair.receiver.moves()), (false, false));
            assert_eq!(pair.wire.counters().faked, 1);
            pair.assert_holds(3, 0);
            continue;
        }
        for (from, into) in [(0, 3), (1, 1), (63, 40)] {
            pair.assert_landed(from, into);
        }
        pair.assert_holds(2, 0);
        let counters = pair.wire.counters();
        assert_eq!((counters.pages, counters.bytes), (3, 3 * PAGE as u64), "{kind:?}");
        assert_eq!(counters.fallbacks, 0, "{kind:?}");
    }
}

/// Goal: exactly one answer each, and the right bytes, with many pushes of several threads at once.
/// Method: each sink page gets the page of a known push; compared with the plain map at the end.
#[test]
fn each_push_is_answered_once_however_many_there_are() {
    for kind in ALL {
        let pair = Pair::new(kind);
        let mut expected = BTreeMap::new();
        let mut pushes = Vec::new();
        for number in 0..16_u32 {
            let pages: Vec<_> = (0..4).map(|at| ((number * 7 + at * 5) % PAGES, number * 4 + at)).collect();
            expected.extend(pages.iter().map(|(from, into)| (*into, *from)));
            pair.grant(number + 1, &pages.iter().map(|(_, into)| *into).collect::<Vec<_>>()).unwrap();
            pushes.push((op(u64::from(number)), push_of(number + 1, &pages)));
        }
        std::thread::scope(|scope| {
            for share in pushes.chunks(4) {
                let wire = &pair.wire;
                scope.spawn(move || share.iter().for_each(|(op, push)| wire.push(*op, push.clone())));
            }
        });
        let mut answered = BTreeMap::new();
        for _ in 0..pushes.len() {
            let (op, outcome) = pair.outcome();
            assert_eq!(outcome, Outcome::Moved, "{kind:?}");
            assert!(answered.insert(op, ()).is_none(), "answered once");
        }
        assert!(pair.wire.drain(Instant::now() + LONG));
        assert!(pair.outcomes.try_recv().is_err(), "no answer to nothing");
        if kind != Kind::Fake {
            expected.iter().for_each(|(into, from)| pair.assert_landed(*from, *into));
        }
    }
}

#[test]
fn what_cannot_be_pushed_is_answered_with_the_reason() {
    for kind in ALL {
        let pair = Pair::new(kind);
        let stranger = Push { to: WorkerId(9), ..push_of(1, &[(0, 0)]) };
        let earlier = Push { epoch: Epoch(2), ..push_of(1, &[(0, 0)]) };
        pair.grant(1, &[0]).unwrap();
        for (number, (push, fault)) in
            [(stranger, Fault::Unreachable), (earlier, Fault::Fenced)].into_iter().enumerate()
        {
            pair.wire.push(op(number as u64), push);
            assert_eq!(pair.outcome(), (op(number as u64), Outcome::Failed(fault)), "{kind:?}");
        }
        pair.wire.push(op(7), push_of(1, &[]));
        assert_eq!(pair.outcome(), (op(7), Outcome::Moved), "{kind:?}: nothing to move");
        if kind == Kind::Fake {
            continue;
        }
        pair.wire.push(op(8), push_of(1, &[(PAGES, 0)]));
        assert_eq!(pair.outcome(), (op(8), Outcome::Failed(Fault::Device)), "{kind:?}: no such page of ours");
        let writer = pair.from.write(5).unwrap();
        pair.wire.push(op(9), push_of(1, &[(5, 0)]));
        assert_eq!(pair.outcome(), (op(9), Outcome::Failed(Fault::Device)), "{kind:?}: a page that is not complete");
        drop(writer);
        pair.wire.push(op(10), push_of(1, &[(5, 0)]));
        assert_eq!(pair.outcome(), (op(10), Outcome::Moved), "{kind:?}: the wire goes on");
        pair.assert_landed(5, 0);
    }
}

#[test]
fn nobody_there_is_unreachable() {
    for kind in ALL {
        let pair = Pair::apart(kind, source_config(), sink_config());
        // No other socket of a test is given a port there.
        let free = TcpListener::bind("127.83.0.2:0").unwrap().local_addr().unwrap();
        pair.wire.up(&Endpoint { address: free.to_string(), ..pair.endpoint() });
        pair.wire.push(op(0), push_of(1, &[(0, 0), (1, 1)]));
        assert_eq!(pair.outcome(), (op(0), Outcome::Failed(Fault::Unreachable)), "{kind:?}");
    }
}

#[test]
fn a_peer_that_is_torn_down_fails_its_pushes_and_a_new_life_serves_again() {
    for kind in MOVING {
        let barrier = Barrier::new();
        let config = WireConfig { hook: Some(barrier.hook(At::Before, 0)), ..source_config() };
        let pair = Pair::with(kind, config, sink_config());
        pair.grant(1, &[0, 1, 2]).unwrap();
        pair.wire.push(op(0), push_of(1, &[(0, 0)]));
        barrier.await_reached();
        pair.wire.push(op(1), push_of(1, &[(1, 1), (2, 2)]));
        pair.wire.down(SINK);
        barrier.go.close();
        let mut outcomes = [pair.outcome(), pair.outcome()];
        outcomes.sort_by_key(|(op, _)| *op);
        // A copy into shared memory that had begun ends well or not at all; what waited fails.
        assert!(kind == Kind::Shared || outcomes[0].1 == Outcome::Failed(Fault::Unreachable), "{outcomes:?}");
        pair.wire.push(op(2), push_of(1, &[(1, 1)]));
        assert_eq!(pair.outcome(), (op(2), Outcome::Failed(Fault::Unreachable)), "{kind:?}");
        pair.wire.up(&pair.endpoint());
        pair.wire.push(op(3), push_of(1, &[(1, 1)]));
        assert_eq!(pair.outcome(), (op(3), Outcome::Moved), "{kind:?}");
        pair.assert_landed(1, 1);
    }
}

#[test]
fn memory_that_cannot_be_mapped_is_reached_through_tcp() {
    let from = filled(PAGES);
    let into = Arc::new(Arena::new(PAGE, PAGES).unwrap());
    let receiver = Receiver::listen(sink_config(), into.clone()).unwrap();
    let (wire, outcomes) = transport(Kind::Shared, source_config(), from.clone());
    let pair = Pair { wire, outcomes, receiver, from, into };
    pair.wire.up(&pair.endpoint());
    pair.grant(1, &[0]).unwrap();
    pair.wire.push(op(0), push_of(1, &[(9, 0)]));
    assert_eq!(pair.outcome(), (op(0), Outcome::Moved));
    pair.assert_landed(9, 0);
    assert_eq!(pair.wire.counters().fallbacks, 1);
}

#[test]
fn ends_that_do_not_fit_refuse_each_other() {
    let rejected = |kind: Kind, source: WireConfig, sink: ReceiverConfig, fault| {
        let pair = Pair::with(kind, source, sink);
        pair.wire.push(op(0), push_of(1, &[(0, 0)]));
        assert_eq!(pair.outcome(), (op(0), Outcome::Failed(fault)), "{kind:?}");
        assert_eq!(pair.wire.counters().rejected, 1, "{kind:?}");
    };
    for kind in ALL {
        rejected(kind, source_config(), ReceiverConfig { worker: WorkerId(7), ..sink_config() }, Fault::Unreachable);
    }
    for kind in MOVING {
        rejected(kind, source_config(), ReceiverConfig { epoch: Epoch(4), ..sink_config() }, Fault::Fenced);
        rejected(kind, source_config(), ReceiverConfig { streams_max: 0, ..sink_config() }, Fault::Unreachable);
    }
}

#[test]
fn a_fake_end_and_a_real_one_refuse_each_other() {
    for (source, sink) in [(Kind::Fake, Kind::Tcp), (Kind::Tcp, Kind::Fake), (Kind::Shared, Kind::Fake)] {
        let theirs = Pair::apart(sink, source_config(), sink_config());
        let (wire, outcomes) = transport(source, source_config(), filled(PAGES));
        wire.up(&theirs.endpoint());
        theirs.grant(1, &[0]).unwrap();
        wire.push(op(0), push_of(1, &[(0, 0)]));
        let outcome = outcomes.recv_timeout(LONG).unwrap();
        assert_eq!(outcome, (op(0), Outcome::Failed(Fault::Unreachable)), "{source:?} to {sink:?}");
    }
}

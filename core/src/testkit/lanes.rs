//! What every lane has to do, modelled or real: bodies of tests over whatever carries commands out.
//!
//! A [`Rig`] is a lane with the memory that it works on; the simulator has rigs of its modelled lanes, `net` of the storage
//! lane and of the wires, `pd` of the copy lanes. Each body states one rule of [`crate::op`] and knows no time: a rig
//! waits, or lets virtual time pass. A machine may rely on what is here, and on nothing else.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::id::{Epoch, Generation, GpuPage, HostPage, OpId, PageKey, Room, Token, WorkerId};
use crate::op::{Command, Fault, Object, Outcome, Push};

/// A page of memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// Of our L1.
    Device(u32),
    /// Of our L2.
    Host(u32),
    /// Of the L1 of the peer.
    Peer(u32),
}

/// A lane under test. There are [`PAGES`] pages of each kind, with nothing in them.
pub trait Rig {
    /// Starts a command. A rig of L3 has two lanes, 0 and 1, of workers of two namespaces over one store; others have one.
    fn start(&mut self, lane: u32, op: OpId, command: Command);
    /// The next so many answers, in the order in which they came.
    fn answers(&mut self, count: usize) -> Vec<(OpId, Outcome)>;
    /// Puts the KV of a page somewhere.
    fn fill(&mut self, place: Place, page: PageKey);
    /// Whose KV is there, if all of it is.
    fn held(&mut self, place: Place) -> Option<PageKey>;
}

/// A wire to one peer, [`PEER`], which is up in [`LIFE`] and has leased nothing.
pub trait WireRig: Rig {
    /// The peer leases pages of its L1 for an attempt of [`ROOM`].
    fn lease(&mut self, generation: Generation, pages: &[u32]);
    /// The peer's lease ends.
    fn end_lease(&mut self, generation: Generation);
    /// The connection is torn down.
    fn down(&mut self);
    /// Bytes are moved; if not, both ends know.
    fn moves(&self) -> bool;
    /// The far end holds each write against its leases. The modelled wire does not, as RDMA does not: there the protocol
    /// alone keeps late writes away from pages in use, and what it lets through is a violation.
    fn has_leases(&self) -> bool;
}

/// Pages of each kind.
pub const PAGES: u32 = 16;
/// The other end of a wire.
pub const PEER: WorkerId = WorkerId(1);
/// Its life.
pub const LIFE: Epoch = Epoch(0);
/// The room of all pushes.
pub const ROOM: Room = Room(5);

/// The rules of the storage lane.
pub const STORAGE: [fn(&mut dyn Rig); 9] = [
    what_was_persisted_is_found_and_comes_back,
    a_prefetch_names_each_object_that_it_did_not_deliver,
    what_is_discarded_is_gone_and_nothing_else,
    what_is_persisted_twice_is_there_once,
    a_scan_lists_what_was_persisted_in_order_and_goes_on_behind_a_key,
    a_touch_makes_the_most_recent_use,
    a_wipe_leaves_nothing,
    namespaces_do_not_see_each_other,
    storage_commands_side_by_side_are_answered_once_each,
];

/// The rules of the copy lanes.
pub const COPIES: [fn(&mut dyn Rig); 3] =
    [what_is_backed_up_loads_back, copies_of_a_lane_end_in_order, a_copy_of_nothing_is_answered];

/// The rules of a wire.
pub const WIRE: [fn(&mut dyn WireRig); 5] = [
    what_is_pushed_lands_where_it_was_leased_and_nowhere_else,
    a_push_to_another_life_is_fenced,
    a_push_behind_the_end_of_its_lease_is_fenced,
    a_push_to_a_peer_that_is_gone_fails,
    pushes_side_by_side_are_answered_once_each,
];

/// The key of the `number`th page of a test.
#[must_use]
pub const fn page(number: u32) -> PageKey {
    PageKey((number as u128 + 1) << 72 | 0x5a)
}

/// What a real page of so many bytes looks like that holds the KV of `page`.
#[must_use]
pub fn content(page: PageKey, bytes: usize) -> Vec<u8> {
    page.0.to_le_bytes().iter().cycle().zip(0..bytes).map(|(byte, at)| byte ^ (at / 16) as u8).collect()
}

/// Whose KV these bytes are, if they are all of a page.
///
/// # Panics
/// If they are fewer than a key has.
#[must_use]
pub fn content_of(bytes: &[u8]) -> Option<PageKey> {
    let page = PageKey(u128::from_le_bytes(*bytes.first_chunk().expect("a page has room for its key")));
    (*bytes == content(page, bytes.len())).then_some(page)
}

/// Names commands, and holds answers against them.
struct Asker<'r, R: Rig + ?Sized> {
    rig: &'r mut R,
    next: [u64; 2],
}

impl<'r, R: Rig + ?Sized> Asker<'r, R> {
    fn new(rig: &'r mut R) -> Self {
        Self { rig, next: [0; 2] }
    }

    fn start(&mut self, lane: u32, command: Command) -> OpId {
        let next = &mut self.next[lane as usize];
        let op = OpId { epoch: LIFE, seq: *next };
        *next += 1;
        self.rig.start(lane, op, command);
        op
    }

    /// Starts all, then waits: each is answered once, and nothing else is. Outcomes in the order of the commands, and
    /// the commands in the order of their ends.
    fn all(&mut self, commands: Vec<Command>) -> (Vec<Outcome>, Vec<usize>) {
        let ops: Vec<OpId> = commands.into_iter().map(|command| self.start(0, command)).collect();
        let mut outcomes: BTreeMap<OpId, Outcome> = BTreeMap::new();
        let mut order = Vec::new();
        for (op, outcome) in self.rig.answers(ops.len()) {
            order.push(ops.iter().position(|other| *other == op).expect("an answer to a command that waits for one"));
            assert!(outcomes.insert(op, outcome).is_none(), "{op:?} is answered twice");
        }
        assert_eq!(outcomes.len(), ops.len(), "each is answered");
        (outcomes.into_values().collect(), order)
    }

    fn ask(&mut self, command: Command) -> Outcome {
        self.all(vec![command]).0.remove(0)
    }

    /// Asks the other namespace.
    fn ask_beside(&mut self, command: Command) -> Outcome {
        let op = self.start(1, command);
        let mut answers = self.rig.answers(1);
        assert_eq!(answers.len(), 1, "one answer");
        let (answered, outcome) = answers.remove(0);
        assert_eq!(answered, op);
        outcome
    }

    /// Fills host pages with the pages of these numbers and persists them.
    fn persist(&mut self, numbers: &[u32]) -> Outcome {
        for (host, number) in (0..).zip(numbers) {
            self.rig.fill(Place::Host(host), page(*number));
        }
        self.ask(Command::Persist(objects(numbers, 0)))
    }

    fn scan(&mut self, after: Option<PageKey>) -> (Vec<(PageKey, u64)>, u32) {
        let outcome = self.ask(Command::Scan { after });
        let Outcome::Scanned { keys, next: None, foreign, torn: 0 } = outcome else {
            panic!("a whole listing, not {outcome:?}")
        };
        (keys, foreign)
    }

    #[track_caller]
    fn assert_held(&mut self, place: Place, number: u32) {
        assert_eq!(self.rig.held(place), Some(page(number)), "{place:?}");
    }
}

/// Pages of these numbers in host pages `first`, `first + 1`, ...
fn objects(numbers: &[u32], first: u32) -> Vec<Object> {
    let object = |(host, number): (u32, &u32)| Object {
        key: page(*number),
        parent: number.checked_sub(1).map_or(PageKey(0), page),
        page: HostPage(host),
        tokens: (0..4).map(|at| Token(number * 4 + at)).collect(),
    };
    (first..).zip(numbers).map(object).collect()
}

fn keys(numbers: &[u32]) -> Vec<PageKey> {
    numbers.iter().copied().map(page).collect()
}

fn what_was_persisted_is_found_and_comes_back(rig: &mut dyn Rig) {
    let mut asker = Asker::new(rig);
    assert_eq!(asker.persist(&[0, 1, 2, 3]), Outcome::Moved);
    let found = asker.ask(Command::Query(keys(&[3, 9, 0, 1, 2])));
    assert_eq!(found, Outcome::Found(vec![true, false, true, true, true]), "in the order of the question");
    assert_eq!(asker.ask(Command::Prefetch(objects(&[0, 1, 2, 3], 8))), Outcome::Moved);
    for number in 0..4 {
        asker.assert_held(Place::Host(8 + number), number);
        asker.assert_held(Place::Host(number), number);
    }
}

fn a_prefetch_names_each_object_that_it_did_not_deliver(rig: &mut dyn Rig) {
    let mut asker = Asker::new(rig);
    assert_eq!(asker.persist(&[0, 2]), Outcome::Moved);
    let failed = vec![(1, Fault::Missing), (3, Fault::Missing)];
    assert_eq!(asker.ask(Command::Prefetch(objects(&[0, 1, 2, 3], 8))), Outcome::Partly(failed));
    asker.assert_held(Place::Host(8), 0);
    asker.assert_held(Place::Host(10), 2);
    assert_ne!(asker.rig.held(Place::Host(9)), Some(page(1)));
    // All of it, too: that is no failure of the command.
    assert_eq!(asker.ask(Command::Prefetch(objects(&[7], 9))), Outcome::Partly(vec![(0, Fault::Missing)]));
}

fn what_is_discarded_is_gone_and_nothing_else(rig: &mut dyn Rig) {
    let mut asker = Asker::new(rig);
    assert_eq!(asker.persist(&[0, 1, 2]), Outcome::Moved);
    assert_eq!(asker.ask(Command::Discard(keys(&[1, 9]))), Outcome::Moved, "what is not there is no mistake");
    assert_eq!(asker.ask(Command::Query(keys(&[0, 1, 2]))), Outcome::Found(vec![true, false, true]));
    assert_eq!(asker.ask(Command::Prefetch(objects(&[1], 8))), Outcome::Partly(vec![(0, Fault::Missing)]));
    // It can be written again.
    assert_eq!(asker.persist(&[1]), Outcome::Moved);
    assert_eq!(asker.ask(Command::Query(keys(&[1]))), Outcome::Found(vec![true]));
}

fn what_is_persisted_twice_is_there_once(rig: &mut dyn Rig) {
    let mut asker = Asker::new(rig);
    assert_eq!(asker.persist(&[0, 1]), Outcome::Moved);
    assert_eq!(asker.persist(&[0, 1]), Outcome::Moved);
    let (listed, _) = asker.scan(None);
    assert_eq!(listed.iter().map(|(key, _)| *key).collect::<Vec<_>>(), keys(&[0, 1]));
    assert_eq!(asker.ask(Command::Discard(keys(&[0]))), Outcome::Moved);
    assert_eq!(asker.ask(Command::Query(keys(&[0, 1]))), Outcome::Found(vec![false, true]));
}

fn a_scan_lists_what_was_persisted_in_order_and_goes_on_behind_a_key(rig: &mut dyn Rig) {
    let mut asker = Asker::new(rig);
    assert_eq!(asker.scan(None), (Vec::new(), 0));
    assert_eq!(asker.persist(&[4, 1, 3]), Outcome::Moved);
    let listed = |asker: &mut Asker<'_, dyn Rig + '_>, after| {
        asker.scan(after).0.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    assert_eq!(listed(&mut asker, None), keys(&[1, 3, 4]));
    assert_eq!(listed(&mut asker, Some(page(1))), keys(&[3, 4]));
    assert_eq!(listed(&mut asker, Some(page(2))), keys(&[3, 4]), "of a key that is not there");
    assert_eq!(listed(&mut asker, Some(page(4))), keys(&[]));
}

fn a_touch_makes_the_most_recent_use(rig: &mut dyn Rig) {
    let mut asker = Asker::new(rig);
    assert_eq!(asker.persist(&[0, 1, 2, 3]), Outcome::Moved);
    // The most recent use first; of a key that is not there, no mistake.
    assert_eq!(asker.ask(Command::Touch(keys(&[1, 2, 9]))), Outcome::Moved);
    let (listed, _) = asker.scan(None);
    let used = |number: u32| {
        listed.iter().find(|(key, _)| *key == page(number)).map(|(_, used)| *used).expect("it was persisted")
    };
    assert!(used(1) > used(2), "{listed:?}");
    assert!(used(2) > used(0), "{listed:?}");
    assert!(used(2) > used(3), "{listed:?}");
}

fn a_wipe_leaves_nothing(rig: &mut dyn Rig) {
    let mut asker = Asker::new(rig);
    assert_eq!(asker.ask(Command::Wipe), Outcome::Moved, "of nothing");
    assert_eq!(asker.persist(&[0, 1]), Outcome::Moved);
    assert_eq!(asker.ask(Command::Wipe), Outcome::Moved);
    assert_eq!(asker.ask(Command::Query(keys(&[0, 1]))), Outcome::Found(vec![false, false]));
    assert_eq!(asker.scan(None), (Vec::new(), 0));
    assert_eq!(asker.persist(&[1]), Outcome::Moved);
    assert_eq!(asker.ask(Command::Query(keys(&[0, 1]))), Outcome::Found(vec![false, true]));
}

/// Keys of two namespaces differ. That of a store that mixes them up does not, and then the namespace decides.
fn namespaces_do_not_see_each_other(rig: &mut dyn Rig) {
    let mut asker = Asker::new(rig);
    asker.rig.fill(Place::Host(0), page(7));
    assert_eq!(asker.ask_beside(Command::Persist(objects(&[7], 0))), Outcome::Moved);
    assert_eq!(asker.persist(&[1]), Outcome::Moved);
    assert_eq!(asker.ask(Command::Query(keys(&[1, 7]))), Outcome::Found(vec![true, false]));
    assert_eq!(asker.ask(Command::Prefetch(objects(&[7], 8))), Outcome::Partly(vec![(0, Fault::Namespace)]));
    let (listed, foreign) = asker.scan(None);
    assert_eq!((listed.len(), foreign), (1, 1));
    assert_eq!(asker.ask(Command::Wipe), Outcome::Moved);
    assert_eq!(asker.ask_beside(Command::Query(keys(&[1, 7]))), Outcome::Found(vec![false, true]));
}

fn storage_commands_side_by_side_are_answered_once_each(rig: &mut dyn Rig) {
    let mut asker = Asker::new(rig);
    assert_eq!(asker.persist(&[0, 1, 2, 3]), Outcome::Moved);
    let mut commands = vec![
        Command::Query(Vec::new()),
        Command::Prefetch(Vec::new()),
        Command::Persist(Vec::new()),
        Command::Discard(Vec::new()),
        Command::Touch(Vec::new()),
    ];
    for turn in 0..4 {
        commands.push(Command::Query(keys(&[turn])));
        commands.push(Command::Prefetch(objects(&[turn], 8 + turn)));
        commands.push(Command::Touch(keys(&[turn])));
        commands.push(Command::Scan { after: Some(page(turn)) });
    }
    let (outcomes, _) = asker.all(commands);
    let expected = [Outcome::Found(Vec::new()), Outcome::Moved, Outcome::Moved, Outcome::Moved, Outcome::Moved];
    assert_eq!(outcomes[..5], expected, "nothing is asked for and nothing is wrong");
    for turn in outcomes[5..].chunks(4) {
        assert_eq!(turn[0], Outcome::Found(vec![true]));
        assert_eq!(turn[1..3], [Outcome::Moved, Outcome::Moved]);
        assert!(matches!(turn[3], Outcome::Scanned { .. }), "{turn:?}");
    }
    (0..4).for_each(|number| asker.assert_held(Place::Host(8 + number), number));
}

fn backup(pairs: &[(u32, u32)]) -> Command {
    Command::Backup(pairs.iter().map(|(device, host)| (GpuPage(*device), HostPage(*host))).collect())
}

fn load_back(pairs: &[(u32, u32)]) -> Command {
    Command::LoadBack(pairs.iter().map(|(host, device)| (HostPage(*host), GpuPage(*device))).collect())
}

fn what_is_backed_up_loads_back(rig: &mut dyn Rig) {
    let mut asker = Asker::new(rig);
    (0..3).for_each(|number| asker.rig.fill(Place::Device(number), page(number)));
    // One of them twice, to two places.
    assert_eq!(asker.ask(backup(&[(0, 9), (1, 4), (2, 0), (1, 5)])), Outcome::Moved);
    for (host, number) in [(9, 0), (4, 1), (0, 2), (5, 1)] {
        asker.assert_held(Place::Host(host), number);
    }
    assert_eq!(asker.ask(load_back(&[(9, 15), (0, 8)])), Outcome::Moved);
    for (device, number) in [(15, 0), (8, 2), (0, 0), (1, 1), (2, 2)] {
        asker.assert_held(Place::Device(device), number);
    }
    assert_eq!(asker.rig.held(Place::Device(7)), None, "nobody was told to write there");
    assert_eq!(asker.rig.held(Place::Host(7)), None);
}

fn copies_of_a_lane_end_in_order(rig: &mut dyn Rig) {
    let mut asker = Asker::new(rig);
    (0..4).for_each(|number| asker.rig.fill(Place::Device(number), page(number)));
    // Long ones before short ones, and what is copied last is a copy of what was copied before it.
    let long: Vec<(u32, u32)> = (0..4).map(|at| (at, at)).collect();
    let (outcomes, order) = asker.all(vec![backup(&long), backup(&[(0, 8)]), backup(&[]), backup(&[(1, 8)])]);
    assert_eq!(outcomes, vec![Outcome::Moved; 4]);
    assert_eq!(order, [0, 1, 2, 3]);
    asker.assert_held(Place::Host(8), 1);
    let back: Vec<(u32, u32)> = (0..4).map(|at| (at, 4 + at)).collect();
    let (outcomes, order) = asker.all(vec![load_back(&back), load_back(&[(0, 12)]), load_back(&[(8, 12)])]);
    assert_eq!(outcomes, vec![Outcome::Moved; 3]);
    assert_eq!(order, [0, 1, 2]);
    asker.assert_held(Place::Device(12), 1);
}

fn a_copy_of_nothing_is_answered(rig: &mut dyn Rig) {
    let mut asker = Asker::new(rig);
    assert_eq!(asker.ask(backup(&[])), Outcome::Moved);
    assert_eq!(asker.ask(load_back(&[])), Outcome::Moved);
}

fn push(generation: u32, pairs: &[(u32, u32)]) -> Push {
    Push {
        to: PEER,
        epoch: LIFE,
        room: ROOM,
        generation: Generation(generation),
        pages: pairs.iter().map(|(ours, theirs)| (GpuPage(*ours), GpuPage(*theirs))).collect(),
        pieces: 1,
    }
}

fn pushed(push: Push) -> Command {
    Command::Push(Box::new(push))
}

fn what_is_pushed_lands_where_it_was_leased_and_nowhere_else(rig: &mut dyn WireRig) {
    let moves = rig.moves();
    rig.lease(Generation(1), &[3, 4, 9]);
    let mut asker = Asker::new(rig);
    (0..3).for_each(|number| asker.rig.fill(Place::Device(number), page(number)));
    assert_eq!(asker.ask(pushed(push(1, &[(0, 9), (2, 3)]))), Outcome::Moved);
    for (place, number) in [(9, 0), (3, 2)] {
        assert_eq!(asker.rig.held(Place::Peer(place)), moves.then_some(page(number)));
    }
    for place in (0..PAGES).filter(|place| ![3, 9].contains(place)) {
        assert_eq!(asker.rig.held(Place::Peer(place)), None, "page {place}");
    }
    // The same attempt goes on, and a push of nothing is one, too.
    assert_eq!(asker.ask(pushed(push(1, &[(1, 4)]))), Outcome::Moved);
    assert_eq!(asker.rig.held(Place::Peer(4)), moves.then_some(page(1)));
    assert_eq!(asker.ask(pushed(push(1, &[]))), Outcome::Moved);
    (0..3).for_each(|number| asker.assert_held(Place::Device(number), number));
}

fn a_push_to_another_life_is_fenced(rig: &mut dyn WireRig) {
    rig.lease(Generation(1), &[3]);
    let mut asker = Asker::new(rig);
    asker.rig.fill(Place::Device(0), page(0));
    let other = Push { epoch: Epoch(LIFE.0 + 1), ..push(1, &[(0, 3)]) };
    assert_eq!(asker.ask(pushed(other)), Outcome::Failed(Fault::Fenced));
    assert_eq!(asker.rig.held(Place::Peer(3)), None);
    assert_eq!(asker.ask(pushed(push(1, &[(0, 3)]))), Outcome::Moved, "that one failed alone");
}

fn a_push_behind_the_end_of_its_lease_is_fenced(rig: &mut dyn WireRig) {
    if !rig.has_leases() {
        return;
    }
    rig.lease(Generation(1), &[3]);
    rig.end_lease(Generation(1));
    rig.lease(Generation(2), &[3]);
    let mut asker = Asker::new(rig);
    asker.rig.fill(Place::Device(0), page(0));
    asker.rig.fill(Place::Device(1), page(1));
    assert_eq!(asker.ask(pushed(push(2, &[(1, 3)]))), Outcome::Moved);
    assert_eq!(asker.ask(pushed(push(1, &[(0, 3)]))), Outcome::Failed(Fault::Fenced), "of the attempt before");
    asker.assert_held(Place::Peer(3), 1);
    assert_eq!(asker.ask(pushed(push(2, &[(0, 4)]))), Outcome::Failed(Fault::Fenced), "of a page that is not leased");
    assert_eq!(asker.rig.held(Place::Peer(4)), None);
}

fn a_push_to_a_peer_that_is_gone_fails(rig: &mut dyn WireRig) {
    rig.lease(Generation(1), &[3]);
    rig.fill(Place::Device(0), page(0));
    rig.down();
    let mut asker = Asker::new(rig);
    assert_eq!(asker.ask(pushed(push(1, &[(0, 3)]))), Outcome::Failed(Fault::Unreachable));
    assert_eq!(asker.rig.held(Place::Peer(3)), None);
}

fn pushes_side_by_side_are_answered_once_each(rig: &mut dyn WireRig) {
    let moves = rig.moves();
    rig.lease(Generation(1), &(0..8).collect::<Vec<_>>());
    rig.lease(Generation(2), &(8..PAGES).collect::<Vec<_>>());
    let mut asker = Asker::new(rig);
    (0..PAGES).for_each(|number| asker.rig.fill(Place::Device(number), page(number)));
    let pushes = (0..PAGES).map(|number| pushed(push(1 + number / 8, &[(number, number)])));
    let (outcomes, _) = asker.all(pushes.collect());
    assert_eq!(outcomes, vec![Outcome::Moved; PAGES as usize]);
    for number in 0..PAGES {
        assert_eq!(asker.rig.held(Place::Peer(number)), moves.then_some(page(number)));
    }
}

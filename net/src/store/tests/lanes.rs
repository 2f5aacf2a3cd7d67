//! The lane: the rules of all lanes ([`pd_core::testkit::lanes`]), and what only threads can get wrong.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pd_core::id::{Epoch, HostPage, OpId};
use pd_core::op::{Command, Object, Outcome};
use pd_core::testkit::lanes::{self, Place, STORAGE};
use pd_sync::Arena;

use super::*;
use crate::store::StorageLane;

const BYTES: usize = 16384;

struct Rig {
    lane: StorageLane,
    arena: Arc<Arena>,
    answers: Receiver<(OpId, Outcome)>,
    seq: u64,
}

impl Rig {
    fn new(store: Store, threads: u32) -> Self {
        Self::over(store, threads, Arc::new(Arena::new(BYTES, 16).expect("memory")), ROOT)
    }

    fn over(store: Store, threads: u32, arena: Arc<Arena>, root: PageKey) -> Self {
        let (sender, answers) = channel();
        let sender = Mutex::new(sender);
        let answer = move |op, outcome| sender.lock().expect("whole").send((op, outcome)).expect("somebody listens");
        let lane = StorageLane::start(store, Arc::clone(&arena), root, threads, answer).expect("threads");
        Self { lane, arena, answers, seq: 0 }
    }

    fn submit(&mut self, command: Command) -> OpId {
        let op = OpId { epoch: Epoch(1), seq: self.seq };
        self.seq += 1;
        self.lane.submit(op, command);
        op
    }

    fn ask(&mut self, command: Command) -> Outcome {
        let op = self.submit(command);
        let (answered, outcome) = self.answers.recv_timeout(Duration::from_secs(60)).expect("an answer");
        assert_eq!(answered, op);
        outcome
    }

    fn fill(&self, host: u32, page: &Page) {
        self.arena.write(host).expect("free").copy_from_slice(&page.bytes);
    }

    fn holds(&self, host: u32, page: &Page) -> bool {
        self.arena.read(host).expect("free")[..] == page.bytes[..]
    }
}

fn object(page: &Page, host: u32) -> Object {
    Object { key: page.key, parent: page.parent, page: HostPage(host), tokens: page.tokens.clone() }
}

#[test]
fn pages_go_out_and_come_back() {
    let dir = folder();
    let mut rig = Rig::new(open(dir.path()).0, 3);
    let pages: Vec<Page> = (0..8).map(|number| Page::new(number, BYTES)).collect();
    let keys: Vec<PageKey> = pages.iter().map(|page| page.key).collect();
    (0..).zip(&pages[..6]).for_each(|(host, page)| rig.fill(host, page));
    let out: Vec<Object> = (0..).zip(&pages[..6]).map(|(host, page)| object(page, host)).collect();
    assert_eq!(rig.ask(Command::Persist(out)), Outcome::Moved);
    assert_eq!(rig.ask(Command::Query(keys[4..].to_vec())), Outcome::Found(vec![true, true, false, false]));
    let back = (0..).zip(&pages).map(|(at, page)| object(page, 15 - at)).collect();
    let missing = vec![(6, Fault::Missing), (7, Fault::Missing)];
    assert_eq!(rig.ask(Command::Prefetch(back)), Outcome::Partly(missing));
    assert!((0..).zip(&pages[..6]).all(|(at, page)| rig.holds(15 - at, page)));
    assert_eq!(rig.ask(Command::Touch(vec![keys[3], keys[7]])), Outcome::Moved);
    assert_eq!(rig.ask(Command::Discard(keys[..2].to_vec())), Outcome::Moved);
    let Outcome::Scanned { keys: listed, next: None, foreign: 0, torn: 0 } = rig.ask(Command::Scan { after: None })
    else {
        panic!("a whole listing")
    };
    assert_eq!(listed.iter().map(|(key, _)| *key).collect::<Vec<_>>(), keys[2..6]);
    assert_eq!(listed.iter().max_by_key(|(_, used)| *used).map(|(key, _)| *key), Some(keys[3]));
    assert_eq!(rig.ask(Command::Wipe), Outcome::Moved);
    assert_eq!(rig.ask(Command::Query(keys.clone())), Outcome::Found(vec![false; 8]));
    assert_eq!(rig.ask(Command::Prefetch(Vec::new())), Outcome::Moved);
}

#[test]
fn a_page_that_somebody_uses_and_one_that_is_not_there_fail_alone() {
    let dir = folder();
    let mut rig = Rig::new(open(dir.path()).0, 2);
    let page = Page::new(1, BYTES);
    rig.fill(0, &page);
    let arena = Arc::clone(&rig.arena);
    let reading = arena.read(0).expect("free");
    assert_eq!(rig.ask(Command::Persist(vec![object(&page, 0)])), Outcome::Moved, "readers share");
    let both = vec![object(&page, 0), object(&page, 1), object(&page, 99)];
    let failed = vec![(0, Fault::Device), (2, Fault::Device)];
    assert_eq!(rig.ask(Command::Prefetch(both.clone())), Outcome::Partly(failed));
    drop(reading);
    assert!(rig.holds(1, &page));
    let writing = arena.write(0).expect("free");
    let other = Page::new(2, BYTES);
    assert_eq!(rig.ask(Command::Persist(vec![object(&other, 0)])), Outcome::Partly(vec![(0, Fault::Device)]));
    drop(writing);
    assert_eq!(rig.ask(Command::LoadBack(Vec::new())), Outcome::Failed(Fault::Unreachable), "another lane's");
}

#[test]
fn every_command_is_answered_once_even_if_the_lane_closes() {
    let dir = folder();
    let mut rig = Rig::new(open(dir.path()).0, 2);
    let pages: Vec<Page> = (0..8).map(|number| Page::new(number, BYTES)).collect();
    (0..).zip(&pages).for_each(|(host, page)| rig.fill(host, page));
    let mut asked = Vec::new();
    for turn in 0..40 {
        let objects = || (0..).zip(&pages).map(|(host, page)| object(page, host)).collect();
        asked.push(
            rig.submit(match turn % 4 {
                0 => Command::Persist(objects()),
                1 => Command::Prefetch(
                    objects()
                        .into_iter()
                        .map(|object: Object| Object { page: HostPage(object.page.0 + 8), ..object })
                        .collect(),
                ),
                2 => Command::Query(pages.iter().map(|page| page.key).collect()),
                _ => Command::Discard(vec![pages[turn % 8].key]),
            }),
        );
    }
    rig.lane.close();
    asked.push(rig.submit(Command::Wipe));
    let mut answers: BTreeMap<OpId, Outcome> = BTreeMap::new();
    for (op, outcome) in rig.answers.try_iter() {
        assert!(answers.insert(op, outcome).is_none(), "answered twice");
    }
    assert_eq!(answers.keys().copied().collect::<Vec<_>>(), asked);
    assert_eq!(answers[asked.last().expect("some")], Outcome::Failed(Fault::Withdrawn));
}

/// Two lanes of two namespaces over one store, and one L2 for both.
struct Neighbours {
    lanes: [Rig; 2],
    _folder: TempDir,
}

impl Neighbours {
    fn new() -> Self {
        let folder = folder();
        let store = open(folder.path()).0;
        let arena = Arc::new(Arena::new(BYTES, lanes::PAGES).expect("memory"));
        let rig = |root| Rig::over(store.clone(), 3, Arc::clone(&arena), root);
        Self { lanes: [rig(ROOT), rig(OTHER_ROOT)], _folder: folder }
    }
}

impl lanes::Rig for Neighbours {
    fn start(&mut self, lane: u32, op: OpId, command: Command) {
        self.lanes[lane as usize].lane.submit(op, command);
    }

    fn answers(&mut self, count: usize) -> Vec<(OpId, Outcome)> {
        // Nobody asks both at once.
        let answer = |_| {
            let mut turns = (0..LONG_TURNS).flat_map(|_| &self.lanes);
            turns.find_map(|rig| rig.answers.recv_timeout(Duration::from_millis(1)).ok()).expect("an answer")
        };
        let answers = (0..count).map(answer).collect();
        assert!(self.lanes.iter().all(|rig| rig.answers.try_recv().is_err()), "an answer to nothing");
        answers
    }

    fn fill(&mut self, place: Place, page: PageKey) {
        let Place::Host(host) = place else { unreachable!("L3 is reached through L2") };
        self.lanes[0].arena.write(host).expect("free").copy_from_slice(&lanes::content(page, BYTES));
    }

    fn held(&mut self, place: Place) -> Option<PageKey> {
        let Place::Host(host) = place else { unreachable!("L3 is reached through L2") };
        lanes::content_of(&self.lanes[0].arena.read(host).expect("free"))
    }
}

#[test]
fn the_storage_lane_keeps_the_rules() {
    STORAGE.iter().for_each(|rule| rule(&mut Neighbours::new()));
}

/// Turns of a millisecond for each lane: a minute.
const LONG_TURNS: u32 = 30_000;

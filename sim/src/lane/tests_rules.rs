//! The rules of lanes ([`pd_core::testkit::lanes`]) on the modelled ones: what the real ones keep, these do.

use pd_core::id::{Generation, GpuPage, HostPage};
use pd_core::testkit::lanes::{COPIES, LIFE, PAGES, PEER, Place as Page, Rig, STORAGE, WIRE, WireRig};

use super::tests::Bench;
use super::tests_storage::bench as bench_with_store;
use super::*;
use crate::memory::{Cell, Memory, Tag};
use crate::setup::Answers;

/// Worker 0, whose lanes are tested; worker 1 is its peer, or has another namespace over the same store.
struct Modelled {
    bench: Bench,
    told: usize,
}

impl Modelled {
    fn new(mut bench: Bench) -> Self {
        let mut memory = Memory::new(Answers::Rule(|_, index| pd_core::id::Token(index)));
        for node in 0..2 {
            memory.boot(node, PAGE_TOKENS, PAGES, PAGES);
        }
        bench.fabric.memory = Some(memory);
        Self { bench, told: 0 }
    }

    fn with_store() -> Self {
        let mut bench = bench_with_store(2);
        for (lanes, root) in bench.lanes.iter_mut().zip([7, 8]) {
            lanes.spec.store = Some(0);
            lanes.spec.root = PageKey(root);
        }
        Self::new(bench)
    }

    fn memory(&mut self) -> &mut Memory {
        self.bench.fabric.memory.as_mut().expect("given at the start")
    }
}

fn cell(page: Page) -> Cell {
    match page {
        Page::Device(page) => Cell::gpu(0, GpuPage(page)),
        Page::Host(page) => Cell::host(0, HostPage(page)),
        Page::Peer(page) => Cell::gpu(PEER.0, GpuPage(page)),
    }
}

impl Rig for Modelled {
    fn start(&mut self, lane: u32, op: OpId, command: Command) {
        if lane == 1
            && let Command::Persist(objects) = &command
        {
            // What the rig fills is worker 0's; the other one has the same in the same places.
            for object in objects {
                self.memory().fetched(Cell::host(1, object.page), Some(object.key));
            }
        }
        assert_eq!(self.bench.start(lane, &[], command), op);
    }

    fn answers(&mut self, count: usize) -> Vec<(OpId, Outcome)> {
        self.bench.all();
        let told = std::mem::replace(&mut self.told, self.bench.done.len());
        let answers: Vec<_> = self.bench.done[told..]
            .iter()
            .map(|(_, seq, _, outcome)| (OpId { epoch: LIFE, seq: *seq }, outcome.clone()))
            .collect();
        assert_eq!(answers.len(), count);
        assert_eq!(self.memory().violations(), []);
        answers
    }

    fn fill(&mut self, place: Page, page: PageKey) {
        self.memory().fetched(cell(place), Some(page));
    }

    fn held(&mut self, place: Page) -> Option<PageKey> {
        match self.memory().tag(cell(place)) {
            Tag::Page { key, filled: PAGE_TOKENS } => Some(key),
            Tag::Page { .. } | Tag::Empty | Tag::Filling | Tag::Void => None,
        }
    }
}

impl WireRig for Modelled {
    fn lease(&mut self, _: Generation, _: &[u32]) {}

    fn end_lease(&mut self, _: Generation) {}

    fn down(&mut self) {
        self.bench.fabric.lives[PEER.0 as usize] = None;
    }

    fn moves(&self) -> bool {
        true
    }

    fn has_leases(&self) -> bool {
        false
    }
}

#[test]
fn the_modelled_storage_lane_keeps_the_rules() {
    STORAGE.iter().for_each(|rule| rule(&mut Modelled::with_store()));
}

#[test]
fn the_modelled_copy_lanes_keep_the_rules() {
    COPIES.iter().for_each(|rule| rule(&mut Modelled::new(Bench::new(2))));
}

#[test]
fn the_modelled_wire_keeps_the_rules() {
    WIRE.iter().for_each(|rule| rule(&mut Modelled::new(Bench::new(2))));
}

const PAGE_TOKENS: u32 = 16;

//! The two copy lanes: one copy after the other, each over the links between host and device.
//!
//! A load back is two flows, one for the first layer and one for the rest, so that a forward can start in between; a
//! backup is one. Shared links divide themselves among workers of a machine.

use std::collections::VecDeque;

use pd_core::cost::LinkCost;
use pd_core::id::{GpuPage, HostPage};
use pd_core::op::{Fault, LaneKind, Outcome};
use pd_core::time::Instant;

use super::fabric::rate;
use super::{Fabric, Lanes, Work};
use crate::link::{FlowSpec, Path};
use crate::memory::{Cell, Tag};

/// State of one copy lane.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Copies in order; the first one moves if `is_busy`.
    pub(super) queue: VecDeque<u64>,
    is_busy: bool,
    /// Lines of the script that make a copy fail, one entry for each.
    failing: VecDeque<u32>,
}

/// One copy.
#[derive(Debug)]
pub(super) struct Copy {
    pages: Pages,
    pub(super) begun: Option<Instant>,
    /// Bytes of the second flow.
    rest: u64,
    /// What the sources held at the start; empty unless contents are checked.
    before: Vec<Tag>,
}

#[derive(Debug)]
enum Pages {
    In(Vec<(HostPage, GpuPage)>),
    Out(Vec<(GpuPage, HostPage)>),
}

impl Copy {
    pub(super) const fn load_back(pages: Vec<(HostPage, GpuPage)>) -> Self {
        Self { pages: Pages::In(pages), begun: None, rest: 0, before: Vec::new() }
    }

    pub(super) const fn backup(pages: Vec<(GpuPage, HostPage)>) -> Self {
        Self { pages: Pages::Out(pages), begun: None, rest: 0, before: Vec::new() }
    }

    pub(super) const fn is_load_back(&self) -> bool {
        matches!(self.pages, Pages::In(_))
    }

    fn count(&self) -> u64 {
        match &self.pages {
            Pages::In(pages) => pages.len() as u64,
            Pages::Out(pages) => pages.len() as u64,
        }
    }

    /// Sources and destinations.
    fn cells(&self, node: u32) -> Vec<(Cell, Cell)> {
        match &self.pages {
            Pages::In(pages) => {
                pages.iter().map(|(from, to)| (Cell::host(node, *from), Cell::gpu(node, *to))).collect()
            }
            Pages::Out(pages) => {
                pages.iter().map(|(from, to)| (Cell::gpu(node, *from), Cell::host(node, *to))).collect()
            }
        }
    }
}

impl Lanes {
    /// The next so many copies of a lane that end fail.
    pub(crate) fn fail_copies(&mut self, lane: LaneKind, line: u32, count: u32) {
        self.copies(lane).failing.extend((0..count).map(|_| line));
    }

    /// Starts the oldest copy of a lane if it can start.
    pub(super) fn run_copies(&mut self, now: Instant, lane: LaneKind, fabric: &mut Fabric) {
        while let Some(&seq) = self.copies(lane).queue.front()
            && !self.copies(lane).is_busy
        {
            let op = self.op(seq);
            if op.is_doomed {
                self.copies(lane).queue.pop_front();
                self.fail(now, seq, Fault::Prerequisite, fabric);
                continue;
            }
            if op.waiting > 0 {
                return;
            }
            self.copies(lane).is_busy = true;
            self.begin_copy(now, seq, fabric);
        }
    }

    /// A flow of the oldest copy of its lane has ended.
    pub(super) fn on_copy_flow(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        let node = self.spec.node;
        let copy = self.copy(seq);
        let lane = if copy.is_load_back() { LaneKind::CopyIn } else { LaneKind::CopyOut };
        let rest = std::mem::take(&mut copy.rest);
        if rest > 0 {
            let pages = copy.count();
            let (path, cost) = self.way(lane);
            let rate_max = rate(&cost, pages * self.spec.page_bytes, pages);
            fabric.start(now, self.place(seq), FlowSpec { path, bytes: rest, setup_ns: 0, rate_max });
            self.announce_first(now, seq, now, fabric);
            return;
        }
        let (before, cells) = (std::mem::take(&mut copy.before), copy.cells(node));
        let lanes = self.copies(lane);
        assert!(lanes.queue.pop_front() == Some(seq), "copies end in order");
        lanes.is_busy = false;
        if let Some(line) = lanes.failing.pop_front() {
            fabric.hits.add(line, 1);
            self.fail(now, seq, Fault::Device, fabric);
        } else {
            if let Some(memory) = &mut fabric.memory {
                memory.copied(now, &cells, &before);
            }
            self.finish(now, seq, Outcome::Moved, fabric);
        }
        self.run_copies(now, lane, fabric);
    }

    fn begin_copy(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        let (node, layers, page_bytes) = (self.spec.node, self.spec.layers, self.spec.page_bytes);
        let copy = self.copy(seq);
        copy.begun = Some(now);
        if let Some(memory) = &mut fabric.memory {
            copy.before = memory.copying(&copy.cells(node));
        }
        let (pages, bytes) = (copy.count(), copy.count() * page_bytes);
        let (lane, first) = match &copy.pages {
            Pages::In(_) => (LaneKind::CopyIn, bytes.div_ceil(layers)),
            Pages::Out(_) => (LaneKind::CopyOut, bytes),
        };
        copy.rest = bytes - first;
        let (path, cost) = self.way(lane);
        let rate_max = rate(&cost, bytes, pages);
        fabric.start(now, self.place(seq), FlowSpec { path, bytes: first, setup_ns: cost.setup_ns(pages), rate_max });
    }

    fn copy(&mut self, seq: u64) -> &mut Copy {
        let Work::Copy(copy) = &mut self.op(seq).work else { unreachable!("the copy lanes hold copies") };
        copy
    }

    fn copies(&mut self, lane: LaneKind) -> &mut Copies {
        if lane == LaneKind::CopyIn { &mut self.copy_in } else { &mut self.copy_out }
    }

    fn way(&self, lane: LaneKind) -> (Path, LinkCost) {
        if lane == LaneKind::CopyIn { self.spec.copy_in } else { self.spec.copy_out }
    }
}

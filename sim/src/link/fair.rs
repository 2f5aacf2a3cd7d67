//! Max-min fair rates in integers, for the links that a change can reach and no others.
//!
//! Progressive filling: the link with the smallest equal share freezes its flows at that share, rounded down; a flow
//! whose own limit is below every share freezes at the limit. At the end each flow, lowest ordinal first, takes what
//! rounding left over on all of its links. So:
//!
//! 1. No link carries more than its rate.
//! 2. Each flow runs at its own limit or crosses a link without a byte per second to spare.
//! 3. Rates are a function of the component, not of the order in which it was found: ties go to the lowest id.
//!
//! Cost: O(flows * path + rounds * links) of the component; a round freezes at least one link.

use super::{Flow, FlowId, Link};

/// Finds the component of a link and fills it. Owns only scratch space, kept between calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Fair {
    marks: Vec<Mark>,
    links: Vec<u32>,
    flows: Vec<FlowId>,
    /// Flows with a limit of their own, lowest limit first.
    limited: Vec<(u64, FlowId)>,
}

/// What filling knows of one link.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    /// The round of components that saw this link.
    seen: u64,
    /// Bytes per second not yet given to a flow.
    left: u64,
    /// Flows without a rate yet.
    open: u64,
}

impl Fair {
    /// Makes room for one more link.
    pub(super) fn add(&mut self) {
        self.marks.push(Mark::default());
    }

    /// True if this round has filled the component of `link` already.
    pub(super) fn has_seen(&self, link: u32, round: u64) -> bool {
        self.marks[link as usize].seen == round
    }

    /// Computes `fresh` of all flows connected with `seed` and returns them by ordinal.
    pub(super) fn fill(&mut self, links: &[Link], flows: &mut [Flow], seed: u32, round: u64) -> &[FlowId] {
        self.find(links, flows, seed, round);
        self.limited.sort_unstable();
        let mut open = self.flows.len();
        let mut limited = 0;
        while open > 0 {
            let (share, link) = self.tightest();
            let open_before = open;
            while let Some(&(rate, id)) = self.limited.get(limited)
                && rate <= share
            {
                limited += 1;
                open -= self.freeze(&mut flows[id.slot as usize], rate);
            }
            if open == open_before {
                for id in &links[link as usize].flows {
                    open -= self.freeze(&mut flows[id.slot as usize], share);
                }
            }
        }
        self.hand_out_rests(flows);
        &self.flows
    }

    /// Collects the component, its flows by ordinal.
    fn find(&mut self, links: &[Link], flows: &mut [Flow], seed: u32, round: u64) {
        self.links.clear();
        self.flows.clear();
        self.limited.clear();
        self.see(links, seed, round);
        let mut next = 0;
        while let Some(&link) = self.links.get(next) {
            next += 1;
            for &id in &links[link as usize].flows {
                let flow = &mut flows[id.slot as usize];
                if flow.seen == round {
                    continue;
                }
                flow.seen = round;
                flow.fresh = OPEN;
                self.flows.push(id);
                if let Some(rate) = flow.rate_max {
                    self.limited.push((rate, id));
                }
                for link in flow.path.iter() {
                    if self.marks[link.0 as usize].seen != round {
                        self.see(links, link.0, round);
                    }
                }
            }
        }
        // Lists of one link are in order already, which makes this a single pass in the common case.
        self.flows.sort_unstable();
    }

    fn see(&mut self, links: &[Link], link: u32, round: u64) {
        let real = &links[link as usize];
        self.marks[link as usize] = Mark { seen: round, left: real.rate, open: real.flows.len() as u64 };
        self.links.push(link);
    }

    /// The smallest equal share and the lowest link that has it.
    fn tightest(&self) -> (u64, u32) {
        let mut tightest = (u64::MAX, u32::MAX);
        for &link in &self.links {
            let mark = &self.marks[link as usize];
            if let Some(share) = mark.left.checked_div(mark.open) {
                tightest = tightest.min((share, link));
            }
        }
        assert!(tightest.1 != u32::MAX, "an open flow crosses a link");
        tightest
    }

    /// Gives a flow its rate, unless it has one; returns how many flows that closed.
    #[inline]
    fn freeze(&mut self, flow: &mut Flow, rate: u64) -> usize {
        if flow.fresh != OPEN {
            return 0;
        }
        flow.fresh = rate;
        for link in flow.path.iter() {
            let mark = &mut self.marks[link.0 as usize];
            mark.left -= rate;
            mark.open -= 1;
        }
        1
    }

    /// Rounding down left less than one byte per second a flow on each full link; the lowest ordinals take it.
    fn hand_out_rests(&mut self, flows: &mut [Flow]) {
        for id in &self.flows {
            let flow = &mut flows[id.slot as usize];
            let mut rest = flow.rate_max.map_or(u64::MAX, |rate| rate - flow.fresh);
            for link in flow.path.iter() {
                rest = rest.min(self.marks[link.0 as usize].left);
            }
            if rest > 0 {
                flow.fresh += rest;
                for link in flow.path.iter() {
                    self.marks[link.0 as usize].left -= rest;
                }
            }
        }
    }
}

/// A rate not yet decided. No link is that fast (`Links::add`).
const OPEN: u64 = u64::MAX;

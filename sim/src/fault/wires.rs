//! The connections between workers: who has learnt of whom, and which of them is broken at present.
//!
//! A connection is named by the lives of its ends and a number that grows when it breaks. What was sent over an earlier
//! one is never delivered: the first message of a connection is the Hello of its sender, and behind the report that a
//! connection is down no write of it lands.

use std::collections::{BTreeMap, BTreeSet};

use pd_core::id::WorkerId;
use pd_core::op::Input;
use pd_core::time::Instant;

use crate::node::Serve;
use crate::world::WorldOf;

/// What is not as usual between workers.
#[derive(Debug)]
pub(crate) struct Wires {
    /// The pairs that have learnt of each other; everybody at once if none.
    learnt: Option<BTreeSet<(u32, u32)>>,
    /// The broken connections, each with the line of the script and when it broke.
    broken: BTreeMap<(u32, u32), (u32, Instant)>,
    numbers: BTreeMap<(u32, u32), u32>,
    /// When the two were last told of each other.
    met_at: BTreeMap<(u32, u32), Instant>,
}

fn pair(one: u32, other: u32) -> (u32, u32) {
    (one.min(other), one.max(other))
}

impl Wires {
    pub(super) fn new(has_registry: bool) -> Self {
        let learnt = has_registry.then(BTreeSet::new);
        Self { learnt, broken: BTreeMap::new(), numbers: BTreeMap::new(), met_at: BTreeMap::new() }
    }

    /// True if the two can be connected.
    pub(crate) fn is_up(&self, one: u32, other: u32) -> bool {
        let pair = pair(one, other);
        self.learnt.as_ref().is_none_or(|learnt| learnt.contains(&pair)) && !self.broken.contains_key(&pair)
    }

    /// Which connection between the two this is.
    pub(crate) fn number(&self, one: u32, other: u32) -> u32 {
        self.numbers.get(&pair(one, other)).copied().unwrap_or(0)
    }

    /// When the two were told of each other.
    pub(super) fn met_at(&self, one: u32, other: u32) -> Option<Instant> {
        self.met_at.get(&pair(one, other)).copied()
    }

    /// A life is over: the next one has to be learnt anew.
    pub(crate) fn forget(&mut self, worker: u32) {
        if let Some(learnt) = &mut self.learnt {
            learnt.retain(|(one, other)| *one != worker && *other != worker);
        }
    }
}

impl<M: Serve> WorldOf<M> {
    /// Two workers hear of each other, if both live and nothing is between them.
    pub(crate) fn introduce(&mut self, one: u32, other: u32) {
        let (Some(life), Some(other_life)) = (self.fabric.lives[one as usize], self.fabric.lives[other as usize])
        else {
            return;
        };
        if !self.faults.wires.is_up(one, other) {
            return;
        }
        self.faults.wires.met_at.insert(pair(one, other), self.now);
        let latency_ns = self.nodes[one as usize].latency_ns;
        let other_latency_ns = self.nodes[other as usize].latency_ns;
        let (id, other_id) = (WorkerId(one), WorkerId(other));
        self.post_to(other, other_life, latency_ns, Input::Peer { id, up: Some(life) });
        self.post_to(one, life, other_latency_ns, Input::Peer { id: other_id, up: Some(other_life) });
    }

    /// A registry told one of the other.
    pub(super) fn learn(&mut self, one: u32, other: u32) {
        let is_new = self.faults.wires.learnt.as_mut().is_some_and(|learnt| learnt.insert(pair(one, other)));
        if is_new {
            self.introduce(one, other);
        }
    }

    /// The connection of two workers breaks; false if there was none.
    pub(super) fn disconnect(&mut self, one: u32, other: u32, line: u32) -> bool {
        let (Some(life), Some(other_life)) = (self.fabric.lives[one as usize], self.fabric.lives[other as usize])
        else {
            return false;
        };
        if !self.faults.wires.is_up(one, other) {
            return false;
        }
        self.faults.wires.broken.insert(pair(one, other), (line, self.now));
        *self.faults.wires.numbers.entry(pair(one, other)).or_default() += 1;
        for (from, to) in [(one, other), (other, one)] {
            self.block(from, to);
        }
        for (to, life, from) in [(one, life, other), (other, other_life, one)] {
            let latency_ns = self.nodes[from as usize].latency_ns;
            self.post_to(to, life, latency_ns, Input::Peer { id: WorkerId(from), up: None });
        }
        true
    }

    /// The connections that a line has broken come back, except those whose ends cannot have noticed yet: the time of
    /// the next try for these.
    pub(super) fn reconnect(&mut self, line: u32) -> Option<Instant> {
        let mine: Vec<_> = self.faults.wires.broken.iter().filter(|(_, (other, _))| *other == line).collect();
        let mine: Vec<((u32, u32), Instant)> = mine.into_iter().map(|(pair, (_, at))| (*pair, *at)).collect();
        let mut again = None;
        for ((one, other), at) in mine {
            let latency_ns = self.nodes[one as usize].latency_ns.max(self.nodes[other as usize].latency_ns);
            let earliest = at.after_ns(2 * latency_ns + 1);
            if self.now < earliest {
                again = again.max(Some(earliest));
                continue;
            }
            self.faults.wires.broken.remove(&(one, other));
            for (from, to) in [(one, other), (other, one)] {
                self.unblock(from, to);
            }
            self.introduce(one, other);
        }
        again
    }

    /// No push gets from one worker to another any more; those on their way fail.
    pub(super) fn block(&mut self, from: u32, to: u32) {
        self.land(from);
        *self.fabric.blocked.entry((from, to)).or_default() += 1;
        self.nodes[from as usize].lanes.cut(self.now, to, &mut self.fabric);
        if self.nodes[from as usize].pump.is_some() {
            self.drain(from);
        }
    }

    /// One reason less for pushes not to get through.
    pub(super) fn unblock(&mut self, from: u32, to: u32) {
        if let Some(count) = self.fabric.blocked.get_mut(&(from, to)) {
            *count -= 1;
            if *count == 0 {
                self.fabric.blocked.remove(&(from, to));
            }
        }
    }
}

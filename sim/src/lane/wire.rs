//! The wire lane: pages to the L1 of peers, over the NICs of two machines or the NVLink of one.
//!
//! A push behind a forward (or a load back) starts when the first layer is there and keeps the last layer's share of its
//! bytes back until all layers are: two flows, so its end is right under contention too. Both are posted: the last layer
//! cannot be before it is there, so its request, its descriptors and the latency come behind the forward, unhidden.

use pd_core::op::{Fault, Outcome, Push};
use pd_core::time::Instant;

use super::fabric::{Transfer, rate};
use super::{Fabric, Lanes, Mark, Work};
use crate::link::{FlowId, FlowSpec};
use crate::memory::{Cell, Tag};

/// One push.
#[derive(Debug)]
pub(super) struct Pushing {
    push: Push,
    issued: Instant,
    pub(super) begun: Option<Instant>,
    /// A timer is set for the first layer.
    is_timed: bool,
    flow: Option<FlowId>,
    /// Bytes that wait for the last layer.
    rest: u64,
    /// What the sources held at the start; empty unless contents are checked.
    before: Vec<Tag>,
}

impl Pushing {
    pub(super) const fn new(issued: Instant, push: Push) -> Self {
        Self { push, issued, begun: None, is_timed: false, flow: None, rest: 0, before: Vec::new() }
    }

    /// Contiguous pieces of all pages.
    fn descriptors(&self) -> u64 {
        self.push.pages.len() as u64 * u64::from(self.push.pieces.max(1))
    }

    fn cells(&self, node: u32) -> Vec<(Cell, Cell)> {
        let to = self.push.to.0;
        self.push.pages.iter().map(|(from, into)| (Cell::gpu(node, *from), Cell::gpu(to, *into))).collect()
    }
}

impl Lanes {
    /// Does what can be done for a push.
    pub(super) fn run_push(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        let op = self.op(seq);
        let (waiting, is_doomed, ready_at, is_layered) = (op.waiting, op.is_doomed, op.ready_at, op.tail > 0);
        let pushing = self.pushing(seq);
        if is_doomed {
            self.drop_push(now, seq, Fault::Prerequisite, fabric);
        } else if pushing.begun.is_some() {
            self.push_rest(now, seq, fabric);
        } else if waiting > 0 {
        } else if ready_at > now {
            if !std::mem::replace(&mut pushing.is_timed, true) {
                fabric.heap.push(ready_at, Mark::Timer(self.place(seq)));
            }
        } else {
            self.begin_push(now, seq, is_layered, fabric);
        }
    }

    /// A flow of a push has ended.
    pub(super) fn on_push_flow(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        self.pushing(seq).flow = None;
        self.push_rest(now, seq, fabric);
    }

    /// The connection to a peer is gone: what is on its way there does not arrive.
    pub fn cut(&mut self, now: Instant, peer: u32, fabric: &mut Fabric) {
        let lost =
            |work: &Work| matches!(work, Work::Push(pushing) if pushing.push.to.0 == peer && pushing.begun.is_some());
        let mut index = 0;
        while index < self.ring.len() {
            let seq = self.base + index as u64;
            if lost(&self.ring[index].work) {
                self.drop_push(now, seq, Fault::Unreachable, fabric);
                // The ring may have lost its front.
                index = (seq + 1).saturating_sub(self.base) as usize;
            } else {
                index += 1;
            }
        }
    }

    fn begin_push(&mut self, now: Instant, seq: u64, is_layered: bool, fabric: &mut Fabric) {
        let (node, layers, page_bytes) = (self.spec.node, self.spec.layers, self.spec.page_bytes);
        let place = self.place(seq);
        let pushing = self.pushing(seq);
        let is_blocked = !fabric.blocked.is_empty() && fabric.blocked.contains_key(&(node, pushing.push.to.0));
        let fault = match fabric.lives[pushing.push.to.0 as usize] {
            None => Some(Fault::Unreachable),
            Some(_) if is_blocked => Some(Fault::Unreachable),
            Some(life) if life != pushing.push.epoch => Some(Fault::Fenced),
            Some(_) => None,
        };
        if let Some(fault) = fault {
            self.fail(now, seq, fault, fabric);
            return;
        }
        if let Some(memory) = &mut fabric.memory {
            pushing.before = memory.copying(&pushing.cells(node));
            if is_layered {
                // The forward still writes them.
                pushing.before.clear();
            }
        }
        let pages = pushing.push.pages.len() as u64;
        let bytes = pages * page_bytes;
        let rest = if is_layered { bytes / layers } else { 0 };
        let (path, cost) = fabric.way(node, pushing.push.to.0);
        let descriptors = pushing.descriptors();
        let setup_ns = cost.setup_ns(descriptors);
        let rate_max = rate(&cost, bytes, descriptors);
        pushing.begun = Some(now);
        pushing.rest = rest;
        pushing.flow = Some(fabric.start(now, place, FlowSpec { path, bytes: bytes - rest, setup_ns, rate_max }));
    }

    /// Sends the last layer once it is there, or ends the push.
    fn push_rest(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        let (node, page_bytes, layers) = (self.spec.node, self.spec.page_bytes, self.spec.layers);
        let place = self.place(seq);
        let op = self.op(seq);
        let (tail, floor) = (op.tail, op.floor);
        let pushing = self.pushing(seq);
        if pushing.flow.is_some() || tail > 0 {
            return;
        }
        let bytes = std::mem::take(&mut pushing.rest);
        if bytes > 0 {
            let (path, cost) = fabric.way(node, pushing.push.to.0);
            let whole = pushing.push.pages.len() as u64 * page_bytes;
            let descriptors = pushing.descriptors();
            let rate_max = rate(&cost, whole, descriptors);
            // Posted when it was there, perhaps while the other layers were still on their way.
            let setup_ns = floor.after_ns(cost.setup_ns(descriptors.div_ceil(layers))).ns_since(now);
            pushing.flow = Some(fabric.start(now, place, FlowSpec { path, bytes, setup_ns, rate_max }));
            return;
        }
        if let Some(memory) = &mut fabric.memory {
            memory.copied(now, &pushing.cells(node), &pushing.before);
        }
        fabric.transfers.push(Transfer {
            from: node,
            to: pushing.push.to.0,
            room: pushing.push.room,
            pages: pushing.push.pages.len() as u32,
            bytes: pushing.push.pages.len() as u64 * page_bytes,
            issued: pushing.issued,
            started: pushing.begun.expect("a push that ends has begun"),
            ended: now,
        });
        self.finish(now, seq, Outcome::Moved, fabric);
    }

    fn drop_push(&mut self, now: Instant, seq: u64, fault: Fault, fabric: &mut Fabric) {
        if let Some(flow) = self.pushing(seq).flow.take() {
            fabric.cancel(now, flow);
        }
        self.fail(now, seq, fault, fabric);
    }

    fn pushing(&mut self, seq: u64) -> &mut Pushing {
        let Work::Push(pushing) = &mut self.op(seq).work else { unreachable!("this operation is a push") };
        pushing
    }
}

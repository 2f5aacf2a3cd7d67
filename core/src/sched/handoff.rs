//! The two legs of a hand-off, as the scheduler drives them.
//!
//! ```text
//!  source  offer ─ Wanted ─> queue ─> chunks, each pushed behind its forward ─> hand_over ─ Sent ─> gone
//!                                     (or all pushed once the last one is done)
//!  sink    queue ─> lease, want ─ Landed ─> running
//!                       │ Retry:      old pages into quarantine, fresh ones, want again
//!                       └ SinkFailed: old pages into quarantine, front of the queue for a prefill here
//! ```

use alloc::vec::Vec;

use crate::config::Mode;
use crate::cx::Cx;
use crate::event::{Event, Failure, Finish};
use crate::id::{OpId, RequestId, WorkerId};
use crate::kv::Kv;
use crate::message::{AbortReason, Want};
use crate::mutant::Mutant;
use crate::op::{Leg, Submit};
use crate::transfer::{Transfer, TransferEvent};

use super::batch::Row;
use super::seq::{State, pages};
use super::{Sched, Wait};

impl Sched {
    /// What became of a hand-off.
    pub fn on_transfer(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer, event: TransferEvent) {
        match event {
            TransferEvent::Wanted { request } => {
                if let Some(slot) = self.find(request, State::Offered)
                    && !self.config.mutation.is(Mutant::WantedForgotten)
                {
                    self.offered -= 1;
                    self.enqueue(cx, kv, slot, false);
                }
            }
            TransferEvent::Asked { from, want } => self.asked(cx, kv, transfer, from, *want),
            TransferEvent::Sent { request } => {
                let Some(&slot) = self.by_request.get(&request) else { return };
                self.slots.at_mut(slot).has_room = false;
                if self.slots.at(slot).state != State::Leaving {
                    cx.metrics.finished += 1;
                    cx.emit(request, Event::HandedOver);
                    self.leave(kv, slot);
                }
                self.depart(cx, kv, slot);
            }
            TransferEvent::SourceFailed { request, reason } => {
                let Some(&slot) = self.by_request.get(&request) else { return };
                self.slots.at_mut(slot).has_room = false;
                if self.slots.at(slot).state == State::Leaving {
                    self.depart(cx, kv, slot);
                } else {
                    self.end(cx, kv, transfer, slot, finish(reason));
                }
            }
            TransferEvent::Landed { request, token, served } => {
                let Some(slot) = self.find(request, State::Receiving) else { return };
                self.unlist(slot);
                let sequence = self.slots.at_mut(slot);
                sequence.has_room = false;
                sequence.leg = Leg::Whole;
                sequence.computed = sequence.prompt.length;
                sequence.committed = sequence.prompt.length;
                sequence.state = State::Running;
                self.running.push(slot);
                self.announce(cx, slot);
                if let Some(served) = served {
                    cx.emit(request, Event::Received(served));
                }
                self.publish(cx, kv, slot);
                self.take_token(cx, kv, transfer, slot, token);
            }
            TransferEvent::Retry { request, prefill } => self.retry(cx, kv, transfer, request, prefill),
            TransferEvent::SinkFailed { request, .. } => {
                if let Some(&slot) = self.by_request.get(&request)
                    && self.slots.at(slot).is_sink()
                    && self.slots.at(slot).state != State::Leaving
                {
                    self.recompute(cx, kv, transfer, slot, false);
                }
            }
            TransferEvent::Fenced { lease } => kv.release(lease),
        }
    }

    /// A sink has its pages: asks its prefill worker to fill them.
    pub(super) fn want(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer, slot: u32) {
        let page_size = self.page_size;
        let sequence = self.slots.at_mut(slot);
        sequence.state = State::Receiving;
        self.receiving.push(slot);
        let Leg::Decode { room, mut prefill } = sequence.leg else { unreachable!("only sinks ask") };
        if sequence.has_room {
            // A retry that had to wait for pages: whoever was free then may be gone by now.
            let Some(next) = transfer.next_prefill(sequence.request) else {
                cx.mark("sched.no_prefill_left");
                return self.recompute(cx, kv, transfer, slot, true);
            };
            prefill = next;
            sequence.leg = Leg::Decode { room, prefill };
        }
        let lease = sequence.lease.as_ref().expect("admitted just before");
        let have = lease.cached_tokens() / page_size;
        let missing = &lease.table()[have as usize..pages(sequence.prompt.length, page_size) as usize];
        let (request, deadline) = (sequence.request, sequence.deadline);
        let asked = transfer.want(cx, request, room, prefill, &sequence.prompt, have, missing, deadline);
        sequence.has_room = asked.is_ok();
        if let Err(refusal) = asked {
            cx.metrics.refused += 1;
            cx.emit(request, Event::Refused(refusal));
            self.leave(kv, slot);
            self.depart(cx, kv, slot);
        }
    }

    /// Another prefill worker can be asked: with fresh pages, since late writes may still land in the old ones.
    fn retry(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer, request: RequestId, prefill: WorkerId) {
        let Some(slot) = self.find(request, State::Receiving) else { return };
        self.unlist(slot);
        let sequence = self.slots.at_mut(slot);
        if let Leg::Decode { room, .. } = sequence.leg {
            sequence.leg = Leg::Decode { room, prefill };
        }
        sequence.state = State::Waiting;
        sequence.blocked = Wait::Memory;
        self.waiting_tokens += u64::from(sequence.prompt.length);
        self.sinks.push_front(slot);
        self.quarantine(cx, kv, transfer, slot);
    }

    /// No prefill worker delivers: the prompt is computed here, before others.
    pub(super) fn recompute(
        &mut self,
        cx: &mut Cx<'_>,
        kv: &mut Kv,
        transfer: &mut Transfer,
        slot: u32,
        has_room: bool,
    ) {
        cx.metrics.local_recomputes += 1;
        self.unlist(slot);
        let sequence = self.slots.at_mut(slot);
        let request = sequence.request;
        sequence.leg = Leg::Whole;
        sequence.has_room = false;
        sequence.state = State::Waiting;
        if has_room {
            for event in transfer.abort(cx, request, AbortReason::Lane) {
                self.on_transfer(cx, kv, transfer, event);
            }
        }
        self.quarantine(cx, kv, transfer, slot);
        self.wait_in_front(kv, slot);
    }

    /// Tells the hand-off that a request, which has ended for its client, does not go on.
    pub(super) fn abort(
        &mut self,
        cx: &mut Cx<'_>,
        kv: &mut Kv,
        transfer: &mut Transfer,
        slot: u32,
        reason: AbortReason,
    ) {
        let sequence = self.slots.at_mut(slot);
        let is_source = sequence.is_source();
        // A source's pages may be read by pushes until SourceFailed says otherwise.
        sequence.has_room = is_source;
        for event in transfer.abort(cx, sequence.request, reason) {
            self.on_transfer(cx, kv, transfer, event);
        }
        if !is_source {
            self.quarantine(cx, kv, transfer, slot);
        }
    }

    /// Pages of a sink whose attempt has ended, until no remote write can land in them.
    fn quarantine(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer, slot: u32) {
        if let Some(lease) = self.slots.at_mut(slot).lease.take() {
            self.admitted -= 1;
            for event in transfer.quarantine(cx, lease) {
                self.on_transfer(cx, kv, transfer, event);
            }
        }
    }

    /// Pushes what the forward completes, behind it, and the pages before that were cached or have come from L3.
    pub(super) fn push_chunks(&mut self, cx: &mut Cx<'_>, transfer: &mut Transfer, op: OpId, rows: &[Row]) {
        if self.mode == Mode::Decode || !self.is_layerwise {
            return;
        }
        for row in rows {
            let sequence = self.slots.at_mut(row.slot);
            if !sequence.is_source() {
                continue;
            }
            let end = row.start + row.count;
            let to = if row.sample { pages(end, self.page_size) } else { end / self.page_size };
            let mut from = core::mem::replace(&mut sequence.pushed, to);
            let lease = sequence.lease.as_ref().expect("a row has pages");
            let mut after: Vec<OpId> = Vec::new();
            let is_taken = from < row.start / self.page_size;
            if is_taken && self.config.mutation.is(Mutant::TailNotPushed) {
                from = row.start / self.page_size;
            }
            // Pages that the forward does not compute may still be on their way from L2.
            if is_taken {
                after.extend(lease.loading().iter().filter(|&&load| cx.ops.is_live(load)));
            }
            after.push(op);
            transfer.push(cx, sequence.request, from, &lease.table()[from as usize..to as usize], &after);
        }
    }

    /// Pushes a whole prompt that has been computed, unless its chunks were pushed as they were.
    pub(super) fn push_prompt(&mut self, cx: &mut Cx<'_>, transfer: &mut Transfer, slot: u32) {
        let sequence = self.slots.at_mut(slot);
        if self.is_layerwise || sequence.state != State::HandingOver {
            return;
        }
        sequence.pushed = pages(sequence.prompt.length, self.page_size);
        let lease = sequence.lease.as_ref().expect("a prompt that was computed has pages");
        transfer.push(cx, sequence.request, 0, &lease.table()[..sequence.pushed as usize], &[]);
    }

    /// A sink asks for a prompt that no router announced.
    fn asked(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer, from: WorkerId, want: Want) {
        let (request, room, generation) = (want.request, want.room, want.generation);
        let submit = want.prompt.filter(|prompt| prompt.length == want.length).map(|prompt| Submit {
            request,
            prompt: *prompt,
            limit: 1,
            stop: Vec::new(),
            priority: 0,
            deadline: None,
            leg: Leg::Prefill { room },
        });
        let is_taken = submit.is_some_and(|submit| self.enter(cx, kv, transfer, submit).is_ok());
        if !is_taken {
            cx.metrics.refused += 1;
            transfer.refuse(cx, from, room, generation);
        }
    }

    /// The slot of a request, if it is in this state.
    fn find(&self, request: RequestId, state: State) -> Option<u32> {
        self.by_request.get(&request).copied().filter(|&slot| self.slots.at(slot).state == state)
    }
}

/// What the client of a source is told.
const fn finish(reason: AbortReason) -> Finish {
    match reason {
        AbortReason::Cancelled => Finish::Cancelled,
        AbortReason::Deadline => Finish::Deadline,
        AbortReason::Lane
        | AbortReason::Unknown
        | AbortReason::Duplicate
        | AbortReason::Refused
        | AbortReason::Incompatible
        | AbortReason::Lost => Finish::Failed(Failure::Peer),
    }
}

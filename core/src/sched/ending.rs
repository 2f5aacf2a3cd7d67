//! How a request ends: once for its client, and as soon as nothing in flight names its pages for the pool.

use crate::cx::Cx;
use crate::event::{Event, Failure, Finish};
use crate::kv::Kv;
use crate::message::AbortReason;
use crate::mutant::Mutant;
use crate::transfer::Transfer;

use super::Sched;
use super::seq::State;

impl Sched {
    /// Ends a request for its client, whatever its state. Its pages come back now or when what names them has ended.
    pub(super) fn end(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer, slot: u32, finish: Finish) {
        if self.slots.at(slot).state == State::Leaving {
            return;
        }
        let output = self.slots.at(slot).produced;
        let request = self.slots.at(slot).request;
        match finish {
            Finish::Stop | Finish::Length => cx.metrics.finished += 1,
            Finish::Cancelled | Finish::Deadline => cx.metrics.cancelled += 1,
            Finish::Failed(_) => cx.metrics.failed += 1,
        }
        cx.emit(request, Event::Finished { reason: finish, output });
        self.leave(kv, slot);
        if self.slots.at(slot).has_room {
            self.abort(cx, kv, transfer, slot, abort_reason(finish));
        }
        // The answer to the abort may have closed it.
        if self.by_request.get(&request) == Some(&slot) {
            self.depart(cx, kv, slot);
        }
    }

    /// Takes a sequence out of whatever list it is in. What is left is to give its pages back.
    pub(super) fn leave(&mut self, kv: &mut Kv, slot: u32) {
        let sequence = self.slots.at_mut(slot);
        if core::mem::take(&mut sequence.is_entered) {
            kv.leave(sequence.request);
        }
        if let Some(deadline) = sequence.deadline.take() {
            self.deadlines.remove(&(deadline, slot));
        }
        self.unlist(slot);
        self.unlead(slot);
        self.slots.at_mut(slot).state = State::Leaving;
    }

    /// Takes a sequence out of the list of its state, which is to change.
    pub(super) fn unlist(&mut self, slot: u32) {
        let sequence = self.slots.at_mut(slot);
        let tokens = u64::from(sequence.prompt.length);
        match sequence.state {
            State::Offered => {
                self.offered -= 1;
                self.waiting_tokens -= tokens;
            }
            State::Waiting => {
                let queue = if sequence.is_sink() { &mut self.sinks } else { &mut self.queue };
                match sequence.order.take() {
                    Some(order) => queue.remove(order),
                    None => queue.remove_front(slot),
                }
                self.waiting_tokens -= tokens;
            }
            State::Receiving => self.receiving.retain(|&other| other != slot),
            State::Prefilling => self.prefilling.retain(|&other| other != slot),
            State::Running => self.running.retain(|&other| other != slot),
            State::HandingOver | State::Retracting | State::Leaving => {}
        }
    }

    /// Followers need not wait for this sequence any more.
    pub(super) fn unlead(&mut self, slot: u32) {
        if let Some(first) = self.slots.at(slot).prompt.keys.first()
            && self.leaders.get(first) == Some(&slot)
        {
            self.leaders.remove(first);
        }
    }

    /// Goes on with a sequence that is to give its pages back, if nothing names them.
    pub(super) fn depart(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, slot: u32) {
        let sequence = self.slots.at(slot);
        if sequence.flights > 0 {
            return;
        }
        match sequence.state {
            State::Retracting => self.requeue(cx, kv, slot),
            State::Leaving if !sequence.has_room => self.close(cx, kv, slot),
            State::Leaving
            | State::Offered
            | State::Waiting
            | State::Receiving
            | State::Prefilling
            | State::Running
            | State::HandingOver => {}
        }
    }

    /// Gives pages and slot back. What was computed stays as cache.
    fn close(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, slot: u32) {
        let mut sequence = self.slots.remove(slot);
        self.by_request.remove(&sequence.request);
        self.again.on_left(sequence.request);
        if sequence.lease.is_some() {
            sequence.fold(self.page_size);
            sequence.publish(cx, kv, self.page_size);
        }
        if let Some(lease) = sequence.lease.take() {
            self.admitted -= u32::from(!self.config.mutation.is(Mutant::BudgetLeak));
            kv.release(lease);
        }
    }

    /// Offers the full committed pages of the prompt to the cache.
    pub(super) fn publish(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, slot: u32) {
        self.slots.at_mut(slot).publish(cx, kv, self.page_size);
    }
}

/// What the other end of a hand-off is told.
const fn abort_reason(finish: Finish) -> AbortReason {
    match finish {
        Finish::Deadline => AbortReason::Deadline,
        Finish::Failed(Failure::Lane(_)) => AbortReason::Lane,
        Finish::Failed(Failure::Memory | Failure::Peer) => AbortReason::Refused,
        Finish::Cancelled | Finish::Stop | Finish::Length => AbortReason::Cancelled,
    }
}

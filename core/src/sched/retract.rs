//! When device memory falls short: running sequences give their pages back and are resumed later.
//!
//! What is computed is published and copied to L2, so that resuming is a load rather than a prefill where there is an
//! L2. Victims are those who lose least: fewest generated tokens, then the longest prompt, then the newest. Pages that
//! a forward in flight names come back when it is done, so shortage is met by one victim at a time while others miss a
//! step. A sequence that is alone and still finds no page fails; nobody else does (sglang #14948).

use core::cmp::Reverse;

use crate::cx::Cx;
use crate::event::{Event, Failure, Finish};
use crate::id::OpId;
use crate::kv::{Kv, Lease};
use crate::mutant::Mutant;
use crate::transfer::Transfer;

use super::seq::State;
use super::{Sched, Wait};

impl Sched {
    /// Sees to it that running sequences have the page of their next step, at the expense of others if need be. Those
    /// for which that is not possible in this step have no page afterwards.
    pub(super) fn secure(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer) {
        let mut index = 0;
        while let Some(&slot) = self.running.get(index) {
            if self.has_page(cx, kv, slot) || self.is_anyone_departing() {
                index += 1;
                continue;
            }
            if self.running.len() == 1 {
                self.starve(cx, kv, transfer, slot);
                return;
            }
            let (place, victim) = self.victim();
            self.retract(cx, kv, victim);
            index -= usize::from(place < index);
        }
    }

    /// True if the sequence has room for its next step, or needs none. Asks for several steps at once.
    fn has_page(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, slot: u32) -> bool {
        let sequence = self.slots.at_mut(slot);
        let next = sequence.computed + 1;
        if !sequence.has_step() || next <= sequence.lease().table().len() as u32 * self.page_size {
            return true;
        }
        let ahead = sequence.tokens_ahead(self.config.reserve_steps);
        let lease = sequence.lease_mut();
        kv.grow(cx, lease, ahead).is_ok() || kv.grow(cx, lease, next).is_ok()
    }

    /// True if pages come back with a forward in flight.
    fn is_anyone_departing(&self) -> bool {
        let rows = self.flights.iter().flat_map(|flight| &flight.rows);
        rows.map(|row| self.slots.at(row.slot).state).any(|state| matches!(state, State::Retracting | State::Leaving))
    }

    /// Who loses least by being retracted, and its place among the running.
    fn victim(&self) -> (usize, u32) {
        let loss = |&(place, &slot): &(usize, &u32)| {
            let sequence = self.slots.at(slot);
            (sequence.produced, Reverse(sequence.prompt.length), Reverse(place))
        };
        let (place, &slot) = self.running.iter().enumerate().min_by_key(loss).expect("someone runs");
        (place, slot)
    }

    fn retract(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, slot: u32) {
        cx.metrics.retractions += 1;
        self.unlist(slot);
        self.unlead(slot);
        self.slots.at_mut(slot).state = State::Retracting;
        let (mut produced, mut limits) = (0, 0);
        for &other in &self.running {
            let sequence = self.slots.at(other);
            produced += u64::from(sequence.produced);
            limits += u64::from(sequence.limit.min(self.config.clip_max_new_tokens));
        }
        self.ratio.raise(produced, limits, self.running.len() as u64);
        self.depart(cx, kv, slot);
    }

    /// No forward names the retracted sequence any more.
    pub(super) fn requeue(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, slot: u32) {
        let sequence = self.slots.at_mut(slot);
        sequence.fold(self.page_size);
        sequence.publish(cx, kv, self.page_size);
        kv.save(sequence.lease());
        cx.emit(sequence.request, Event::Retracted);
        self.wait_in_front(kv, slot);
    }

    /// Gives the pages back and waits at the front of the queue for a prefill here.
    pub(super) fn wait_in_front(&mut self, kv: &mut Kv, slot: u32) {
        let sequence = self.slots.at_mut(slot);
        if let Some(lease) = sequence.lease.take() {
            self.admitted -= 1;
            kv.release(lease);
        }
        sequence.state = State::Waiting;
        sequence.order = None;
        sequence.blocked = Wait::Memory;
        self.waiting_tokens += u64::from(sequence.prompt.length);
        if !self.config.mutation.is(Mutant::RetractionForgets) {
            self.queue.push_front(slot);
        }
    }

    /// The only running sequence finds no page. If nothing can come back to the pool, not even after the cache has had
    /// a step to write back what it holds, the request fails.
    fn starve(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer, slot: u32) {
        let is_alone = self.admitted == 1 && self.slots.at(slot).flights == 0;
        let is_busy = cx.ops.live() > self.flights.len() || transfer.quarantined().next().is_some();
        if !is_alone || is_busy {
            return;
        }
        if self.was_starved {
            cx.mark("sched.starved");
            self.end(cx, kv, transfer, slot, Finish::Failed(Failure::Memory));
            self.has_failed = true;
        } else {
            self.starved = Some(cx.now);
        }
    }

    /// A load back failed: only `pages` pages of the table are good, if it is the table that the load was to fill.
    pub(super) fn shorten(
        &mut self,
        cx: &mut Cx<'_>,
        kv: &mut Kv,
        transfer: &mut Transfer,
        slot: u32,
        (load, pages): (OpId, u32),
    ) {
        let tokens = pages * self.page_size;
        let page_size = self.page_size;
        let sequence = self.slots.at_mut(slot);
        // Not the load of an earlier admission, whose pages this one does not use.
        let is_hit = |lease: &&mut Lease| tokens < sequence.committed && lease.loading().contains(&load);
        let Some(lease) = sequence.lease.as_mut().filter(is_hit) else { return };
        kv.shorten(lease, pages);
        // Of what the load was to bring some may be good, and is in the tree already: it is computed all the same.
        if sequence.state == State::Prefilling && sequence.lease().has_tail() {
            self.end_tail(cx, kv, slot);
        }
        let sequence = self.slots.at_mut(slot);
        match sequence.state {
            State::Prefilling | State::HandingOver if sequence.pushed > 0 => {
                // What never came must not be published as cache when the last push has ended.
                sequence.roll_back(tokens);
                let fault = Failure::Lane(crate::op::Fault::Prerequisite);
                self.end(cx, kv, transfer, slot, Finish::Failed(fault));
            }
            State::Receiving => self.recompute(cx, kv, transfer, slot, true),
            State::Running => {
                sequence.fold(page_size);
                sequence.roll_back(tokens);
                self.back_to_prompt(slot);
            }
            State::HandingOver => {
                sequence.roll_back(tokens);
                self.back_to_prompt(slot);
            }
            State::Prefilling | State::Retracting | State::Leaving => sequence.roll_back(tokens),
            State::Offered | State::Waiting => unreachable!("who waits has no lease"),
        }
    }
}

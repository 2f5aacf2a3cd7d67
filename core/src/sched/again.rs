//! Requests that come again while their last attempt leaves.
//!
//! A request that was cancelled or has failed is over for its client, but keeps its name as long as a forward or a push
//! names its pages. A router that tries it again at once may well choose the same worker. It waits until the name is
//! free: refusing it as a duplicate would count against a healthy worker and use its retries up.
//!
//! ```text
//!   submit --(the name is leaving)--> again --(it has left)--> back --(settle)--> the door
//!                                       | cancel, deadline
//!                                       v
//!                                    Finished
//! ```

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};

use crate::cx::Cx;
use crate::digest::Digest;
use crate::event::{Event, Finish};
use crate::id::RequestId;
use crate::kv::Kv;
use crate::op::{Leg, Submit};
use crate::time::{Instant, nanos};
use crate::transfer::Transfer;

use super::Sched;
use super::seq::State;

/// Those that wait for their own names.
#[derive(Debug, Default)]
pub(super) struct Again {
    /// Their names are leaving.
    waiting: BTreeMap<RequestId, Box<Submit>>,
    /// Their names are free.
    back: VecDeque<Box<Submit>>,
}

impl Again {
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.back.len()
    }

    /// A sequence has left.
    pub(super) fn on_left(&mut self, request: RequestId) {
        if !self.waiting.is_empty() {
            self.back.extend(self.waiting.remove(&request));
        }
    }

    pub(super) fn deadline(&self) -> Option<(Instant, &'static str)> {
        if self.len() == 0 {
            return None;
        }
        let now = (!self.back.is_empty()).then_some((Instant::ZERO, "a request whose name is free again"));
        let late = self.waiting.values().filter_map(|submit| submit.deadline).min();
        now.or_else(|| late.map(|at| (at, "a request that waits for its name is late")))
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        for submit in self.waiting.values().chain(&self.back) {
            digest.value(submit);
        }
    }
}

impl Sched {
    /// Keeps a request whose name is leaving; gives it back if it is to go through the door at once.
    pub(super) fn wait_for_name(&mut self, now: Instant, mut submit: Submit) -> Option<Submit> {
        let request = submit.request;
        let is_leaving = self.by_request.get(&request).is_some_and(|&slot| self.is_leaving(slot, submit.leg));
        if !is_leaving || self.again.waiting.contains_key(&request) || self.waiting() >= self.config.max_queued_requests
        {
            return Some(submit);
        }
        let default = self.config.default_deadline;
        submit.deadline = submit.deadline.or_else(|| (nanos(default) > 0).then(|| now + default));
        self.again.waiting.insert(request, Box::new(submit));
        None
    }

    /// True if a sequence is over, or a prefill for an attempt that a newer one of the router has replaced: the sink of
    /// the old one asked for it, and its end is on its way.
    fn is_leaving(&self, slot: u32, leg: Leg) -> bool {
        let sequence = self.slots.at(slot);
        let is_replaced =
            matches!((sequence.leg, leg), (Leg::Prefill { room }, Leg::Prefill { room: newer }) if room != newer);
        sequence.state == State::Leaving || is_replaced
    }

    /// Ends a request that waits for its name, if there is one.
    pub(super) fn end_waiting_for_name(&mut self, cx: &mut Cx<'_>, request: RequestId, finish: Finish) {
        let place = self.again.back.iter().position(|submit| submit.request == request);
        let was_there = self.again.waiting.remove(&request).is_some()
            || place.is_some_and(|place| self.again.back.remove(place).is_some());
        if was_there {
            cx.metrics.requests += 1;
            cx.metrics.cancelled += 1;
            cx.emit(request, Event::Finished { reason: finish, output: 0 });
        }
    }

    /// Lets those in whose names are free, and ends those that are late.
    pub(super) fn settle_again(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer) {
        if self.again.len() == 0 {
            return;
        }
        while let Some(submit) = self.again.back.pop_front() {
            cx.mark("sched.came_again");
            self.submit(cx, kv, transfer, *submit);
        }
        while let Some(request) = self.late_name(cx.now) {
            self.end_waiting_for_name(cx, request, Finish::Deadline);
        }
    }

    fn late_name(&self, now: Instant) -> Option<RequestId> {
        let is_late = |submit: &Submit| submit.deadline.is_some_and(|deadline| deadline <= now);
        self.again.waiting.values().find(|submit| is_late(submit)).map(|submit| submit.request)
    }

    pub(super) fn check_again(&self) {
        for request in self.again.waiting.keys() {
            let slot = self.by_request.get(request).expect("who waits for a name waits for a sequence");
            let sequence = self.slots.at(*slot);
            assert!(sequence.state == State::Leaving || sequence.is_source(), "the name is leaving");
        }
        for submit in &self.again.back {
            assert!(!self.by_request.contains_key(&submit.request), "the name is free");
        }
    }
}

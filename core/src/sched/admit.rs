//! Admission: which waiting requests get pages now.
//!
//! Retracted sequences and local recomputes come first and cannot be overtaken, so nothing new is admitted while one of
//! them does not fit. In the line, requests behind one that does not fit may overtake it `bypass_max` times; then
//! everything behind it waits. A request that waits for L3, or for a leader that computes its prefix, blocks nobody.

use alloc::boxed::Box;

use crate::cx::Cx;
use crate::event::Event;
use crate::kv::{Fetch, Kv};
use crate::mutant::Mutant;
use crate::transfer::Transfer;

use super::batch::Draft;
use super::budget::Room;
use super::queue::{Pick, Queue};
use super::seq::{State, pages};
use super::{Sched, Wait, policy};

/// What became of an attempt to admit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Admitted,
    /// It waits for something that admission cannot give: the next one may be tried.
    Elsewhere,
    /// It does not fit.
    Memory,
}

/// What admission is for, which decides the queue.
pub(super) enum Work<'a> {
    /// Prompts that are computed here, from the forward that is being drafted on.
    Compute(&'a mut Draft),
    /// Decode legs, whose prefill workers are asked to fill the pages. Needs no forward, so it does not wait for one.
    Receive(&'a mut Transfer),
}

impl Sched {
    /// Admits as long as there is a turn to give.
    pub(super) fn admit(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, mut work: Work<'_>) {
        let sinks = matches!(work, Work::Receive(_));
        if self.line(sinks).is_empty() || !self.has_turn(&work) {
            return;
        }
        let mut room = self.room();
        // What is retracted comes back first, yet sinks whose pages are leased go on regardless (sglang S-139).
        if sinks && let Some(slot) = self.queue.front() {
            room.promised += u64::from(pages(self.slots.at(slot).tokens_first(), self.page_size));
        }
        while let Some(slot) = self.line(sinks).front() {
            if !self.has_turn(&work) || self.try_admit(cx, kv, slot, true, &mut room) != Verdict::Admitted {
                return;
            }
            self.begin(cx, kv, slot, &mut work);
        }
        let mut picks = core::mem::take(&mut self.picks);
        while self.has_turn(&work) && !self.line(sinks).is_empty() {
            policy::order(&self.config, self.line(sinks), &self.slots, kv, cx, &mut picks);
            let admitted = self.admit_picks(cx, kv, &picks, &mut room, &mut work);
            if admitted < picks.len() || !policy::is_full(self.config.policy, &picks) {
                break;
            }
        }
        self.picks = picks;
    }

    /// Tries requests of the line in this order. Returns how many were admitted.
    fn admit_picks(
        &mut self,
        cx: &mut Cx<'_>,
        kv: &mut Kv,
        picks: &[Pick],
        room: &mut Room,
        work: &mut Work<'_>,
    ) -> usize {
        let sinks = matches!(work, Work::Receive(_));
        let mut admitted = 0;
        let mut blocked = None;
        for pick in picks {
            let is_overtaken = |order| self.line(sinks).overtaken(order) >= self.config.bypass_max;
            if !self.has_turn(work) || blocked.is_some_and(is_overtaken) {
                break;
            }
            match self.try_admit(cx, kv, pick.slot, blocked.is_none(), room) {
                Verdict::Admitted => {
                    admitted += 1;
                    if let Some(order) = blocked {
                        self.line_mut(sinks).overtake(order);
                    }
                    self.begin(cx, kv, pick.slot, work);
                }
                Verdict::Elsewhere if self.config.mutation.is(Mutant::FetchBlocksOthers) => break,
                Verdict::Elsewhere => {}
                Verdict::Memory => _ = blocked.get_or_insert(pick.order),
            }
        }
        admitted
    }

    /// What an admitted sequence is admitted to.
    fn begin(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, slot: u32, work: &mut Work<'_>) {
        match work {
            Work::Receive(transfer) => self.want(cx, kv, transfer, slot),
            Work::Compute(draft) => {
                // What comes of a tail is told when it is known.
                if !self.slots.at(slot).lease().has_tail() {
                    self.announce(cx, slot);
                }
                let sequence = self.slots.at_mut(slot);
                sequence.state = State::Prefilling;
                if let Some(&first) = sequence.prompt.keys.first() {
                    self.leaders.entry(first).or_insert(slot);
                }
                self.prefilling.push(slot);
                self.add_chunk(cx, kv, slot, draft);
            }
        }
    }

    fn has_turn(&self, work: &Work<'_>) -> bool {
        let has_budget = match work {
            Work::Compute(draft) => draft.budget >= self.page_size,
            Work::Receive(_) => true,
        };
        has_budget && self.admitted < self.config.max_running_requests
    }

    pub(super) const fn line(&self, sinks: bool) -> &Queue {
        if sinks { &self.sinks } else { &self.queue }
    }

    const fn line_mut(&mut self, sinks: bool) -> &mut Queue {
        if sinks { &mut self.sinks } else { &mut self.queue }
    }

    /// What admitted sequences have been promised, counted once per pass.
    fn room(&self) -> Room {
        let mut room = Room::default();
        let mut tokens = 0;
        for &slot in self.prefilling.iter().chain(&self.running).chain(&self.receiving) {
            let sequence = self.slots.at(slot);
            room.promised += self.future(slot);
            tokens += u64::from(sequence.remaining().min(self.config.clip_max_new_tokens));
        }
        room.expected = self.ratio.of(tokens).div_ceil(u64::from(self.page_size));
        room
    }

    /// Pages that the sequence may ask for within the steps that are guaranteed.
    fn future(&self, slot: u32) -> u64 {
        let sequence = self.slots.at(slot);
        let ahead = pages(sequence.tokens_ahead(self.config.reserve_steps), self.page_size);
        u64::from(ahead.saturating_sub(sequence.lease().table().len() as u32))
    }

    /// Admits a waiting request if the cache is ready for it and its pages can be promised. `is_head`: nobody before it
    /// was found not to fit, so its needs are looked up afresh.
    fn try_admit(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, slot: u32, is_head: bool, room: &mut Room) -> Verdict {
        let page_size = self.page_size;
        let is_alone = self.admitted == 0;
        let available = u64::from(kv.available());
        let guaranteed = available.saturating_sub(room.promised);
        let expected = available.saturating_sub(room.expected);
        let is_busy = !self.prefilling.is_empty();
        let sequence = self.slots.at_mut(slot);
        let lacks = guaranteed < sequence.needs.0 || expected < sequence.needs.1;
        if !is_alone && (guaranteed < sequence.floor || lacks && !is_head) {
            sequence.blocked = Wait::Memory;
            return Verdict::Memory;
        }
        if sequence.is_entered
            && let Fetch::Wait(until) = kv.ready(cx, sequence.request, is_busy)
            && until > cx.now
        {
            sequence.blocked = Wait::Fetch(until);
            self.wake = Some(self.wake.map_or(until, |wake| wake.min(until)));
            return Verdict::Elsewhere;
        }
        let hit = kv.lookup(&sequence.prompt);
        if self.follows(slot, (hit.device + hit.host) * page_size) {
            self.slots.at_mut(slot).blocked = Wait::Queue;
            return Verdict::Elsewhere;
        }
        let sequence = self.slots.at_mut(slot);
        let table = pages(sequence.tokens_first(), page_size);
        let ahead = pages(sequence.tokens_ahead(self.config.reserve_steps), page_size);
        let cached = hit.device.min(table);
        let whole = sequence.remaining().min(self.config.clip_max_new_tokens);
        let growth = u64::from(pages(whole, page_size));
        let needs = (u64::from(ahead - cached), u64::from(table - cached) + growth);
        if !is_alone && (needs.0 > guaranteed || needs.1 > expected) {
            sequence.needs = needs;
            sequence.blocked = Wait::Memory;
            return Verdict::Memory;
        }
        let whole = sequence.is_sink();
        let tokens = sequence.tokens_first();
        let Ok((lease, served)) = kv.acquire(cx, sequence.request, &sequence.prompt, tokens, whole) else {
            sequence.needs = (guaranteed.saturating_add(1), 0);
            sequence.blocked = Wait::Memory;
            return Verdict::Memory;
        };
        let future = u64::from(ahead.saturating_sub(lease.table().len() as u32));
        if !is_alone && room.promised + future > u64::from(kv.available()) {
            // The cached pages were free to be dropped, so they cost as much as new ones; ask again when more is free.
            cx.mark("sched.admission_undone");
            kv.release(lease);
            if sequence.is_entered {
                kv.enter(cx, sequence.request, &sequence.prompt, !whole);
            }
            sequence.floor = guaranteed.saturating_add(1);
            sequence.blocked = Wait::Memory;
            return Verdict::Memory;
        }
        room.promised += future;
        room.expected += growth;
        self.admitted += 1;
        self.waiting_tokens -= u64::from(sequence.prompt.length);
        sequence.settle_in(lease, page_size);
        sequence.served = Some(Box::new(served));
        let order = sequence.order.take();
        let is_left = self.config.mutation.is(Mutant::DoubleAdmit);
        let queue = self.line_mut(whole);
        match order {
            Some(_) if is_left => {}
            Some(order) => queue.remove(order),
            None => queue.remove_front(slot),
        }
        Verdict::Admitted
    }

    /// Tells the client, once, where its prompt's KV comes from.
    pub(super) fn announce(&mut self, cx: &mut Cx<'_>, slot: u32) {
        let sequence = self.slots.at_mut(slot);
        let Some(served) = sequence.served.take() else { return };
        if core::mem::replace(&mut sequence.is_announced, true) {
            return;
        }
        if sequence.is_source() {
            sequence.announced = Some(served.clone());
        }
        cx.emit(sequence.request, Event::Admitted(served));
    }

    /// True if a sequence that is being computed will publish at least `in_batch_share_tokens` tokens of this prompt
    /// more than the cache has. Keys are chained, so the common prefix is found by bisection.
    pub(super) fn follows(&self, slot: u32, cached: u32) -> bool {
        let keys = &self.slots.at(slot).prompt.keys;
        let Some(leader) = keys.first().and_then(|first| self.leaders.get(first)) else { return false };
        let leader = self.slots.at(*leader);
        // What the leader has published since its admission does not count: more of the same is to come.
        if cached.min(leader.lease().cached_tokens()) > self.config.in_batch_check_tokens {
            return false;
        }
        let others = &leader.prompt.keys;
        let (mut shared, mut end) = (0, keys.len().min(others.len()));
        while shared < end {
            let middle = shared.midpoint(end);
            if keys[middle] == others[middle] {
                shared = middle + 1;
            } else {
                end = middle;
            }
        }
        shared as u32 * self.page_size >= cached.saturating_add(self.config.in_batch_share_tokens)
    }
}

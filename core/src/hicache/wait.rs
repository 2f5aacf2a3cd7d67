//! How long a waiting request waits for L3, and what becomes of its batches when it does not.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::HiCache;
use super::fetch::{State, Waiting};
use crate::config::PrefetchPolicy;
use crate::cx::Cx;
use crate::event::MissReason;
use crate::id::{PageKey, RequestId};
use crate::kv::Fetch;
use crate::kv::tiers::Tiers;
use crate::time::{Instant, nanos};

impl HiCache {
    /// Whether a request that could be admitted should wait for L3. `is_busy`: others would have to wait for what it
    /// computes.
    pub(crate) fn ready(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers, request: RequestId, is_busy: bool) -> Fetch {
        let Some(waiting) = self.waiting.get_mut(&request) else { return Fetch::Go };
        match waiting.state {
            State::Done | State::Parked => return Fetch::Go,
            // Computing a head that could as well be fetched is for a device that has nothing else to do.
            State::Fetching if waiting.tail.is_some() && !(is_busy && waiting.is_fetch_faster()) => return Fetch::Go,
            State::Index | State::Querying | State::Fetching => {}
        }
        let blocked_at = *waiting.blocked_at.get_or_insert(cx.now);
        let waiting = &self.waiting[&request];
        let until = if waiting.state == State::Fetching { waiting.stored_until } else { waiting.cap };
        let tokens = u64::from(until.saturating_sub(waiting.local)) * u64::from(self.config.page_size);
        let (patience, reason) = match self.config.prefetch_policy {
            PrefetchPolicy::WaitComplete => return Fetch::Wait(Instant::MAX),
            PrefetchPolicy::BestEffort => {
                let cached = u64::from(waiting.local) * u64::from(self.config.page_size);
                (cx.cost.prefill_ns(cached, tokens), MissReason::Revoked)
            }
            PrefetchPolicy::Timeout => {
                let per_ki = u128::from(nanos(self.config.prefetch_timeout_per_ki_token)) * u128::from(tokens) / 1024;
                let patience =
                    nanos(self.config.prefetch_timeout_base).saturating_add(u64::try_from(per_ki).unwrap_or(u64::MAX));
                (patience.min(nanos(self.config.prefetch_timeout_max)), MissReason::Timeout)
            }
        };
        let deadline = blocked_at.after_ns(patience);
        if cx.now < deadline {
            return Fetch::Wait(deadline);
        }
        if waiting.tail.is_some() {
            return Fetch::Go;
        }
        cx.mark(match self.config.prefetch_policy {
            PrefetchPolicy::BestEffort => "hicache.prefetch_revoked",
            PrefetchPolicy::WaitComplete | PrefetchPolicy::Timeout => "hicache.prefetch_timeout",
        });
        self.give_up(tiers, request);
        let waiting = self.waiting.get_mut(&request).expect("looked up above");
        waiting.state = State::Done;
        waiting.stored_until = waiting.stored_until.max(until);
        waiting.reason = Some(reason);
        Fetch::Go
    }

    /// True while L3 may still deliver something that keeps a request from being admitted.
    pub(crate) fn is_awaited(&self, request: RequestId) -> bool {
        self.waiting.get(&request).is_some_and(|waiting| match waiting.state {
            State::Index | State::Querying => true,
            State::Fetching => waiting.tail.is_none(),
            State::Parked | State::Done => false,
        })
    }

    /// The request no longer waits; what is known about its misses is handed out.
    pub(crate) fn leave(&mut self, tiers: &mut Tiers, request: RequestId) -> Option<Waiting> {
        self.give_up(tiers, request);
        let waiting = self.waiting.remove(&request)?;
        if waiting.state == State::Parked {
            self.parked.retain(|other| *other != request);
        }
        Some(waiting)
    }

    /// As [`HiCache::give_up`], because L3 goes away.
    fn lose(&mut self, tiers: &mut Tiers, request: RequestId) {
        let Some(waiting) = self.waiting.get_mut(&request) else { return };
        if let Some(tail) = &mut waiting.tail {
            let unasked = waiting.batches.iter().map(|id| &self.batches[id]).filter(|batch| batch.op.is_none());
            tail.lose(unasked.map(|batch| batch.pages.len() as u32).sum());
        }
        self.give_up(tiers, request);
    }

    /// These objects leave L3: whoever was told before that it holds them, and still waits for room, is told otherwise.
    pub(super) fn forget_answers(&mut self, keys: &[PageKey]) {
        let keys: BTreeSet<PageKey> = keys.iter().copied().collect();
        for waiting in self.waiting.values_mut() {
            let Some((from, held)) = &mut waiting.answer else { continue };
            for (key, held) in waiting.prompt.keys[*from as usize..].iter().zip(held) {
                *held = *held && !keys.contains(key);
            }
        }
    }

    /// The scan has ended: requests that waited for it can be looked at.
    pub(super) fn evaluate_all(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers) {
        let requests: Vec<RequestId> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.state == State::Index)
            .map(|(request, _)| *request)
            .collect();
        for request in requests {
            self.evaluate(cx, tiers, request);
        }
    }

    /// L3 is being emptied: what no lane has yet is not fetched any more.
    pub(super) fn forget_fetches(&mut self, tiers: &mut Tiers) {
        let is_coming = |state| matches!(state, State::Fetching | State::Parked);
        let fetching = self.waiting.iter().filter(|(_, waiting)| is_coming(waiting.state));
        let requests: Vec<RequestId> = fetching.map(|(request, _)| *request).collect();
        for request in requests {
            self.lose(tiers, request);
            let waiting = self.waiting.get_mut(&request).expect("listed above");
            waiting.state = State::Done;
            waiting.reason = Some(MissReason::StorageFailed);
        }
        self.parked.clear();
    }

    /// L3 is being detached: nobody waits for it any more.
    pub(super) fn detach_waiting(&mut self, tiers: &mut Tiers) {
        let requests: Vec<RequestId> = self.waiting.keys().copied().collect();
        for request in requests {
            self.lose(tiers, request);
            let waiting = self.waiting.get_mut(&request).expect("listed above");
            if waiting.state != State::Done {
                if matches!(waiting.state, State::Index | State::Querying) {
                    waiting.stored_until = waiting.cap;
                }
                waiting.state = State::Done;
                waiting.reason = Some(MissReason::StorageFailed);
            }
        }
        self.parked.clear();
    }
}

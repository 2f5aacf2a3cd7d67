//! The life of a fetch that begins at the end of a prompt whose head is computed meanwhile.
//!
//! ```text
//!   pages     0 ........ committed ... computed ...... border ............ until
//!             |=== there ===|--- in flight ---|             |<- 3 |<- 2 |<- 1 |    batches, the first one last
//!                                             |-- to compute -|-- to take --|
//! ```
//!
//! It is begun while the request waits, and goes on after its admission until the head has met it. Each time the next
//! chunk of the head is composed, it is asked what lies [`Ahead`]. Where the two will meet is estimated anew from what has
//! come so far, so a disk that is slower or faster than it is configured moves the meeting, and nothing else.
//!
//! 1. What has not been begun when the head has passed it is given up, as with any user that leaves.
//! 2. The head never waits longer than it would take to compute what it waits for; if it has waited in vain, it does not
//!    wait again. So a disk that hangs costs one such wait.

use alloc::vec::Vec;

use super::HiCache;
use super::fetch::Waiting;
use super::weigh::meeting;
use crate::cx::Cx;
use crate::digest::Digest;
use crate::event::MissReason;
use crate::id::RequestId;
use crate::kv::tiers::{BatchId, HostFill, Tiers};
use crate::mutant::Mutant;
use crate::radix::PageId;
use crate::time::Instant;

/// What lies ahead of a sequence that computes the head of its prompt, in pages of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ahead {
    /// Pages from this one on will be there by then: it computes what is before.
    Head(u32),
    /// The next page is there to be taken.
    Here,
    /// The next page comes sooner than it could be computed. If it is not there then, it is computed.
    Soon(Instant),
    /// Nothing that would be of use: it computes the rest.
    Nothing,
}

/// How such a fetch goes.
#[derive(Debug)]
pub(super) struct Tail {
    /// When its first batch was given to the lane.
    began: Instant,
    /// When the last page came, or the beginning.
    since: Instant,
    /// Pages that have ended, well or badly.
    ended: u32,
    /// What a page takes: as planned until the first one has come, then as measured.
    page_ns: u64,
    /// Pages that will not come because L3 did not deliver them.
    lost: u32,
    /// How long the head waits at the present border.
    patience: Option<Instant>,
    /// The head has waited in vain.
    is_late: bool,
}

impl Tail {
    pub(super) const fn new(now: Instant, page_ns: u64) -> Self {
        Self { began: now, since: now, ended: 0, page_ns, lost: 0, patience: None, is_late: false }
    }

    /// A batch goes to the lane.
    pub(super) const fn begin(&mut self, now: Instant) {
        if self.ended == 0 {
            (self.began, self.since) = (now, now);
        }
    }

    /// A batch has ended.
    pub(super) fn end(&mut self, now: Instant, pages: u32, failed: u32) {
        self.ended += pages;
        self.since = now;
        self.page_ns = now.ns_since(self.began) / u64::from(self.ended.max(1));
        self.lost += failed;
    }

    /// L3 has gone, with so many pages that had not been asked for.
    pub(super) const fn lose(&mut self, pages: u32) {
        self.lost += pages;
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        digest.value(&self.began);
        digest.value(&self.since);
        digest.word(u64::from(self.ended) << 32 | u64::from(self.lost));
        digest.word(self.page_ns << 1 | u64::from(self.is_late));
        digest.value(&self.patience);
    }
}

/// A batch under way, in pages of the prompt.
#[derive(Clone, Copy, Debug)]
struct Coming {
    id: BatchId,
    end: u32,
    pages: u32,
    is_begun: bool,
}

impl HiCache {
    /// The request is admitted with so many leading pages. True if more of them may come while it computes: then
    /// [`HiCache::leave`] is to be called when it has met them, or ends.
    pub(crate) fn has_tail(&self, request: RequestId, pages: u32) -> bool {
        self.waiting.get(&request).is_some_and(|waiting| waiting.tail.is_some() && pages < waiting.stored_until)
    }

    /// The pages of the prompt of an admitted request from `from` on that are there, without a gap.
    pub(crate) fn tail_here(&self, tiers: &Tiers, request: RequestId, from: u32) -> Vec<PageId> {
        let Some(waiting) = self.waiting.get(&request) else { return Vec::new() };
        let mut path = Self::path(tiers, &waiting.prompt, waiting.stored_until);
        path.drain(..(from as usize).min(path.len()));
        let count = path.iter().take_while(|&&page| self.is_here(tiers, page)).count();
        path.truncate(count);
        path
    }

    fn is_here(&self, tiers: &Tiers, page: PageId) -> bool {
        let residence = tiers.radix.get(page);
        let is_early = self.config.mutation.is(Mutant::TailTakenEarly);
        let host = residence.readable_host().or(residence.host.filter(|_| is_early));
        !residence.dead && (residence.device.is_some() || host.is_some())
    }

    /// What lies ahead of an admitted request that has so many pages, and so many when its forwards in flight are done.
    /// The next forward has room for `room` pages.
    pub(crate) fn ahead(
        &mut self,
        cx: &mut Cx<'_>,
        tiers: &mut Tiers,
        request: RequestId,
        (committed, computed): (u32, u32),
        room: u32,
    ) -> Ahead {
        let Some(waiting) = self.waiting.get_mut(&request) else { return Ahead::Nothing };
        let Some(mut tail) = waiting.tail.take() else { return Ahead::Nothing };
        let waiting = &self.waiting[&request];
        let coming = self.coming(tiers, waiting);
        let ahead = self.look(cx, tiers, waiting, &mut tail, &coming, (committed, computed));
        self.waiting.get_mut(&request).expect("looked up above").tail = Some(tail);
        if let Ahead::Head(border) = ahead {
            let passed = border.min(computed.saturating_add(room));
            let is_passed = |batch: &&Coming| !batch.is_begun && batch.end <= passed;
            let passed: Vec<BatchId> = coming.iter().filter(is_passed).map(|batch| batch.id).collect();
            self.give_up_some(tiers, request, &passed);
        }
        ahead
    }

    fn look(
        &self,
        cx: &mut Cx<'_>,
        tiers: &Tiers,
        waiting: &Waiting,
        tail: &mut Tail,
        coming: &[Coming],
        (committed, computed): (u32, u32),
    ) -> Ahead {
        let until = waiting.stored_until;
        let path = Self::path(tiers, &waiting.prompt, until);
        let is_here = |page: u32| path.get(page as usize).is_some_and(|&page| self.is_here(tiers, page));
        if is_here(computed) {
            return Ahead::Here;
        }
        let batch = |page: u32| {
            let residence = path.get(page as usize).map(|&page| tiers.radix.get(page)).filter(|page| !page.dead)?;
            let HostFill::Fetch(id) = residence.filling else { return None };
            coming.iter().find(|batch| batch.id == id)
        };
        let (since, page_ns) = (tail.since, tail.page_ns);
        let arrival = |page: u32| {
            let left: u32 = coming.iter().filter(|batch| batch.end > page).map(|batch| batch.pages).sum();
            if left == 0 { Instant::ZERO } else { since.after_ns(u64::from(left).saturating_mul(page_ns)) }
        };
        // When the head has been computed up to a page.
        let reach = |page: u32| cx.now.after_ns(self.head_ns(cx.cost, committed, page));
        let meeting = meeting(computed, until, |page| arrival(page) <= reach(page));
        let mut from = meeting;
        if let Some(next) = batch(computed) {
            // What would be computed instead of waiting for it.
            from = if meeting > computed { meeting } else { next.end };
            let own_ns = self.head_ns(cx.cost, computed, from);
            if !tail.is_late && arrival(computed) <= reach(computed).after_ns(own_ns) {
                if committed < computed {
                    return Ahead::Head(computed);
                }
                let patience = *tail.patience.get_or_insert(cx.now.after_ns(own_ns));
                if cx.now < patience {
                    return Ahead::Soon(patience);
                }
                tail.is_late = true;
                cx.mark("hicache.tail_late");
            }
        }
        let border = (from..until).find(|&page| is_here(page) || batch(page).is_some());
        border.map_or(Ahead::Nothing, Ahead::Head)
    }

    /// A sequence has taken pages of its tail: at the next border it may wait as it might have at this one.
    pub(crate) fn tail_taken(&mut self, request: RequestId) {
        if let Some(tail) = self.tail_mut(request) {
            tail.patience = None;
        }
    }

    fn coming(&self, tiers: &Tiers, waiting: &Waiting) -> Vec<Coming> {
        let coming = |id: &BatchId| {
            let batch = &self.batches[id];
            let end = batch.pages.last().map_or(0, |&page| tiers.radix.depth(page) + 1);
            Coming { id: *id, end, pages: batch.pages.len() as u32, is_begun: batch.op.is_some() }
        };
        waiting.batches.iter().map(coming).collect()
    }

    pub(super) fn tail_mut(&mut self, request: RequestId) -> Option<&mut Tail> {
        self.waiting.get_mut(&request)?.tail.as_mut()
    }
}

impl Waiting {
    /// True if pages may come behind those that are computed.
    pub(crate) const fn has_tail(&self) -> bool {
        self.tail.is_some()
    }

    /// Pages that did not come because of a fault, and which.
    pub(crate) fn lost(&self) -> Option<(MissReason, u32)> {
        self.reason.zip(self.tail.as_ref().map(|tail| tail.lost))
    }
}

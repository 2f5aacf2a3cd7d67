//! Upwards: which pages of a waiting prompt L3 holds, whether to fetch them, and how long to wait.
//!
//! ```text
//!   enter ──▶ Index ──scan ends──▶┐
//!     │  └──▶ Querying ──answer──▶┤
//!     └──────────────────────────▶├──▶ Done (nothing to fetch, too short, slower than computing)
//!                                 ├──▶ Parked (no room) ──room──▶ (again)
//!                                 └──▶ Fetching ──all batches end, or the policy's deadline──▶ Done
//! ```
//!
//! A fetch that begins at the end of the prompt keeps nobody from being admitted and goes on behind that; see
//! [`super::tail`].
//!
//! Revoked and failed are ends like any other: they wake the request (sglang #16747). A batch that is with the storage
//! lane ends as cache, whoever asked for it; one that is not yet there is given up with its last user.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::tail::Tail;
use super::weigh::Span;
use super::{Batch, HiCache, Move, Storage, Weighed};
use crate::config::StorageMode;
use crate::cx::{Cx, Owner};
use crate::digest::Digest;
use crate::event::MissReason;
use crate::id::{OpId, RequestId};
use crate::kv::tiers::{BatchId, HostFill, Tiers};
use crate::limits::QUERY_KEYS_MAX;
use crate::op::{Command, Outcome, Prompt};
use crate::radix::PageId;
use crate::time::Instant;

/// How far L3 has been asked for a waiting request. See the module's diagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Waits for the scan of a private store.
    Index,
    /// Has asked a shared store.
    Querying,
    /// Wants pages for which there is no room.
    Parked,
    /// Its batches are under way.
    Fetching,
    /// Nothing more will come.
    Done,
}

/// A waiting request, as far as L3 is concerned.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(super) prompt: Prompt,
    /// Most pages that a cache may serve.
    pub(super) cap: u32,
    /// Its prompt is computed here, as far as no cache has it.
    computes: bool,
    pub(super) state: State,
    /// Leading pages that were in L1 or L2 when L3 was looked at.
    pub(super) local: u32,
    /// Leading pages that L1, L2 and L3 hold without a gap.
    pub(crate) stored_until: u32,
    /// What was compared before fetching; for those who ask, nothing depends on it.
    pub(super) weighed: Option<Weighed>,
    /// Why pages before `stored_until` may be missing all the same.
    pub(crate) reason: Option<MissReason>,
    pub(super) batches: Vec<BatchId>,
    /// Its pages are fetched from the end of the prompt, whose head is computed meanwhile.
    pub(super) tail: Option<Tail>,
    /// Leading pages that were there or under way when the limit cut its last fetch; 0 if it did not. Once they are there
    /// the rest has its turn; once one is dropped again, no more is fetched: L2 cannot hold what waits for it.
    pub(super) cut_at: u32,
    /// Since when only the fetch keeps it from being admitted.
    pub(super) blocked_at: Option<Instant>,
    /// What a shared store answered, from page `answered_from` on.
    pub(super) answer: Option<(u32, Vec<bool>)>,
    /// The question that is awaited; an earlier wait of the same request may have asked another.
    query: Option<OpId>,
}

impl Waiting {
    pub(super) fn check(&self, request: RequestId, batches: &BTreeMap<BatchId, Batch>) {
        for id in &self.batches {
            assert!(batches[id].users.contains(&request), "a batch knows who waits for it");
        }
        assert_eq!(self.state == State::Fetching, !self.batches.is_empty(), "fetching means batches under way");
    }

    /// True if fetching all was estimated to be faster than computing all.
    pub(super) fn is_fetch_faster(&self) -> bool {
        self.weighed.is_some_and(|weighed| weighed.fetch_ns <= weighed.compute_ns)
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        digest.word(self.state as u64);
        digest.word(u64::from(self.local));
        digest.word(u64::from(self.stored_until));
        digest.value(&self.reason);
        digest.value(&self.blocked_at);
        if self.cut_at > 0 {
            digest.word(u64::from(self.cut_at));
        }
        for id in &self.batches {
            digest.word(id.0);
        }
        if let Some(tail) = &self.tail {
            tail.digest(digest);
        }
    }
}

/// Where a page of a prompt is, for the purpose of fetching it.
enum Place {
    /// In L1 or L2.
    Local,
    /// On its way to L2.
    Coming(BatchId),
    /// In L3.
    Stored,
    /// Nowhere.
    Absent,
}

impl HiCache {
    /// A request starts to wait. `computes`: its prompt is computed here, as far as no cache has it.
    pub(crate) fn enter(
        &mut self,
        cx: &mut Cx<'_>,
        tiers: &mut Tiers,
        request: RequestId,
        prompt: &Prompt,
        computes: bool,
    ) {
        let cap = (prompt.length - 1) / self.config.page_size;
        if !self.has_storage() || cap == 0 {
            return;
        }
        let path = Self::path(tiers, prompt, cap);
        let local = Self::local_pages(tiers, &path, cap);
        if local == cap {
            return;
        }
        let state = match self.storage {
            Storage::Off => return,
            Storage::Scanning { .. } => State::Index,
            Storage::On if self.config.storage == StorageMode::Shared => State::Querying,
            Storage::On => State::Done,
        };
        // A private index that does not hold the next page has nothing to offer; the common case of a new prompt.
        let next = prompt.keys[local as usize];
        let coming = path.get(local as usize).is_some_and(|&page| {
            let residence = tiers.radix.get(page);
            residence.host.is_some() && !residence.dead
        });
        if state == State::Done && !coming && !self.index.has(next) {
            return;
        }
        self.waiting.insert(
            request,
            Waiting {
                prompt: prompt.clone(),
                cap,
                computes,
                state,
                local,
                stored_until: local,
                weighed: None,
                reason: None,
                batches: Vec::new(),
                tail: None,
                cut_at: 0,
                blocked_at: None,
                answer: None,
                query: None,
            },
        );
        match state {
            State::Querying => self.query(cx, request, local),
            State::Done => self.evaluate(cx, tiers, request),
            State::Index | State::Parked | State::Fetching => {}
        }
    }

    fn query(&mut self, cx: &mut Cx<'_>, request: RequestId, local: u32) {
        let waiting = self.waiting.get_mut(&request).expect("called for a request that waits");
        let until = waiting.cap.min(local + QUERY_KEYS_MAX);
        // Too few tokens to be fetched whatever the answer is.
        if (until - local) * self.config.page_size < self.config.prefetch_threshold {
            waiting.state = State::Done;
            waiting.stored_until = until;
            waiting.reason = Some(MissReason::TooShort { threshold: self.config.prefetch_threshold });
            return;
        }
        let keys = waiting.prompt.keys[local as usize..until as usize].to_vec();
        let op = cx.start(Owner::Kv, Vec::new(), Command::Query(keys));
        waiting.query = Some(op);
        self.moves.insert(op, Move::Query(request));
        self.storage_ops += 1;
    }

    pub(super) fn answered(
        &mut self,
        cx: &mut Cx<'_>,
        tiers: &mut Tiers,
        op: OpId,
        request: RequestId,
        outcome: Outcome,
    ) {
        self.storage_ops -= 1;
        let Some(waiting) = self.waiting.get_mut(&request) else { return };
        if waiting.state != State::Querying || waiting.query != Some(op) {
            return;
        }
        waiting.state = State::Done;
        match outcome {
            Outcome::Found(held) => {
                // What somebody else removed is written again when it is next in L2.
                for (&key, _) in
                    waiting.prompt.keys[waiting.local as usize..].iter().zip(&held).filter(|(_, held)| !**held)
                {
                    if self.index.has(key) {
                        self.index.remove(key);
                    }
                }
                waiting.answer = Some((waiting.local, held));
                self.evaluate(cx, tiers, request);
            }
            Outcome::Moved
            | Outcome::Partly(_)
            | Outcome::Sampled(_)
            | Outcome::Scanned { .. }
            | Outcome::Failed(_) => {
                waiting.stored_until = waiting.cap;
                waiting.reason = Some(MissReason::StorageFailed);
                cx.mark("hicache.query_failed");
            }
        }
    }

    /// Pages of the tree along a prompt, at most `cap`.
    pub(super) fn path(tiers: &Tiers, prompt: &Prompt, cap: u32) -> Vec<PageId> {
        let mut path = Vec::new();
        if let Some(last) = tiers.radix.lookup(&prompt.keys[..cap as usize]).last {
            tiers.radix.path(last, &mut path);
        }
        path
    }

    pub(super) fn local_pages(tiers: &Tiers, path: &[PageId], cap: u32) -> u32 {
        let readable = |&page: &PageId| {
            let residence = tiers.radix.get(page);
            !residence.dead && (residence.device.is_some() || residence.readable_host().is_some())
        };
        path.iter().take(cap as usize).take_while(|page| readable(page)).count() as u32
    }

    fn place(&self, tiers: &Tiers, path: &[PageId], waiting: &Waiting, index: u32) -> Place {
        if let Some(&page) = path.get(index as usize) {
            let residence = tiers.radix.get(page);
            match residence.filling {
                HostFill::Fetch(batch) if !residence.dead => return Place::Coming(batch),
                HostFill::Fetch(_) | HostFill::Backup => {}
                HostFill::None if residence.dead => {}
                HostFill::None if residence.host.is_some() => return Place::Local,
                HostFill::None => {}
            }
            // A page that is hidden has to be computed.
            if residence.dead {
                return Place::Absent;
            }
            if residence.device.is_some() {
                return Place::Local;
            }
        }
        let key = waiting.prompt.keys[index as usize];
        let stored = match &waiting.answer {
            Some((from, held)) => {
                index.checked_sub(*from).and_then(|offset| held.get(offset as usize)).copied().unwrap_or(false)
            }
            None => self.index.has(key),
        };
        if stored { Place::Stored } else { Place::Absent }
    }

    /// Decides what to fetch for a waiting request, and reserves room for just that.
    pub(super) fn evaluate(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers, request: RequestId) {
        let Some(mut waiting) = self.waiting.remove(&request) else { return };
        self.plan(cx, tiers, request, &mut waiting);
        self.waiting.insert(request, waiting);
    }

    fn plan(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers, request: RequestId, waiting: &mut Waiting) {
        let path = Self::path(tiers, &waiting.prompt, waiting.cap);
        waiting.state = State::Done;
        waiting.reason = None;
        waiting.tail = None;
        waiting.local = Self::local_pages(tiers, &path, waiting.cap);
        waiting.stored_until = waiting.local;
        let cut_at = core::mem::take(&mut waiting.cut_at);
        let mut wanted = Vec::new();
        let mut coming = Vec::new();
        while waiting.stored_until < waiting.cap {
            match self.place(tiers, &path, waiting, waiting.stored_until) {
                Place::Local => {}
                Place::Coming(batch) => {
                    if coming.last() != Some(&batch) && !coming.contains(&batch) {
                        coming.push(batch);
                    }
                }
                Place::Stored => wanted.push(waiting.stored_until),
                Place::Absent => break,
            }
            waiting.stored_until += 1;
        }
        // What others fetch comes from the beginning.
        let mut is_from_end = waiting.computes && coming.is_empty();
        for id in coming {
            self.batches.get_mut(&id).expect("a page names a live batch").users.push(request);
            waiting.batches.push(id);
            waiting.state = State::Fetching;
        }
        let page_size = self.config.page_size;
        let gained = (waiting.stored_until - waiting.local) * page_size;
        if wanted.is_empty() {
            return;
        }
        if waiting.local < cut_at {
            waiting.reason = Some(MissReason::HostMemory);
            return;
        }
        if gained < self.config.prefetch_threshold {
            waiting.reason = Some(MissReason::TooShort { threshold: self.config.prefetch_threshold });
            cx.mark("hicache.prefetch_too_short");
            return;
        }
        if self.config.fetch_by_cost {
            let span = Span { length: waiting.prompt.length, local: waiting.local, until: waiting.stored_until };
            let stored = |page| (wanted.len() - wanted.partition_point(|&other| other < page)) as u64;
            let mut weighed = self.weigh(cx.cost, span, stored);
            weighed.both_ns = weighed.both_ns.filter(|_| is_from_end && self.has_room_for(wanted.len()));
            waiting.weighed = Some(weighed);
            is_from_end = weighed.both_ns.is_some();
            if !is_from_end && weighed.fetch_ns > weighed.compute_ns {
                waiting.reason = Some(MissReason::Recompute);
                cx.mark("hicache.prefetch_slower_than_computing");
                return;
            }
        } else {
            is_from_end = false;
        }
        let room = self.room();
        let enough = wanted.len().min((self.config.prefetch_threshold / page_size).max(1) as usize);
        if (room as usize) < enough {
            waiting.cut_at = cut_at;
            self.park(cx, request, waiting, MissReason::Capacity);
            return;
        }
        if (room as usize) < wanted.len() {
            waiting.reason = Some(MissReason::Capacity);
            waiting.cut_at = wanted[room as usize];
            wanted.truncate(room as usize);
        }
        // What is left of a fetch that was cut takes free pages only, not those of others who wait.
        let free = if cut_at > 0 { tiers.host.free_count() as usize } else { wanted.len() };
        if free < enough {
            waiting.reason = Some(MissReason::HostMemory);
            return;
        }
        wanted.truncate(free);
        let hosts = self.reserve(tiers, &path, wanted.len());
        if hosts.len() < enough.min(wanted.len()) {
            for host in hosts {
                tiers.host.release(host);
            }
            waiting.cut_at = cut_at;
            self.park(cx, request, waiting, MissReason::HostMemory);
            return;
        }
        if hosts.len() < wanted.len() {
            waiting.reason = Some(MissReason::HostMemory);
            waiting.cut_at = 0;
            if is_from_end {
                wanted.drain(..wanted.len() - hosts.len());
            } else {
                wanted.truncate(hosts.len());
            }
        }
        let until = wanted.last().map_or(0, |last| last + 1);
        let mut pages = Vec::new();
        tiers.radix.insert(None, &waiting.prompt.keys[..until as usize], &mut pages);
        if is_from_end {
            let page_ns = self.fetch_ns(wanted.len() as u64) / wanted.len() as u64;
            waiting.tail = Some(Tail::new(cx.now, page_ns));
            cx.mark("hicache.prefetch_bidirectional");
        }
        self.queue_batches(tiers, request, waiting, &pages, &wanted, &hosts);
        waiting.state = State::Fetching;
        cx.mark("hicache.prefetch");
    }

    /// Pages that may be fetched besides those that are.
    fn room(&self) -> u32 {
        let share = u64::from(self.config.prefetch_capacity_per_mille);
        ((u64::from(self.config.host_pages) * share / 1000) as u32).saturating_sub(self.fetching_pages)
    }

    /// True if the limit lets so many pages be fetched. If not, the beginning of the prompt is of more use than its end.
    fn has_room_for(&self, pages: usize) -> bool {
        self.room() as usize >= pages
    }

    fn park(&mut self, cx: &mut Cx<'_>, request: RequestId, waiting: &mut Waiting, reason: MissReason) {
        waiting.reason = Some(reason);
        if waiting.state != State::Fetching {
            waiting.state = State::Parked;
            self.parked.push_back(request);
            cx.mark("hicache.prefetch_parked");
        }
    }

    /// Host pages for a fetch. What L2 holds of the same prompt is not given up for it.
    fn reserve(&self, tiers: &mut Tiers, path: &[PageId], count: usize) -> Vec<crate::id::HostPage> {
        let own: Vec<PageId> =
            path.iter().copied().filter(|&page| tiers.radix.get(page).readable_host().is_some()).collect();
        for &page in &own {
            tiers.pin_host(page);
        }
        let mut hosts = Vec::with_capacity(count);
        while hosts.len() < count && tiers.make_host_room(1) {
            hosts.push(tiers.host.allocate().expect("room was made"));
        }
        for &page in own.iter().rev() {
            tiers.unpin_host(page);
        }
        hosts
    }

    pub(super) fn settle_parked(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers) {
        if self.parked.is_empty() || !core::mem::take(&mut tiers.host_freed) {
            return;
        }
        while let Some(request) = self.parked.pop_front() {
            self.evaluate(cx, tiers, request);
            if self.parked.back() == Some(&request) {
                // Still no room: the others, who came later, find none either.
                self.parked.rotate_right(1);
                break;
            }
        }
        // By what was just looked at.
        tiers.host_freed = false;
    }
}

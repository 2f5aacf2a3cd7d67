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
//! Revoked and failed are ends like any other: they wake the request (sglang #16747). A batch that is with the storage
//! lane ends as cache, whoever asked for it; one that is not yet there is given up with its last user.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{HiCache, Move, Storage, Stored, Weighed};
use crate::config::StorageMode;
use crate::cost::Cost;
use crate::cx::{Cx, Owner};
use crate::digest::Digest;
use crate::event::MissReason;
use crate::id::{OpId, RequestId};
use crate::kv::tiers::{BatchId, HostFill, Tiers};
use crate::limits::{QUERY_KEYS_MAX, STORAGE_BATCH_PAGES, STORAGE_OPS_MAX};
use crate::mutant::Mutant;
use crate::op::{Command, Fault, Object, Outcome, Prompt};
use crate::radix::PageId;
use crate::time::Instant;

/// Pages that are fetched by one command.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) pages: Vec<PageId>,
    pub(crate) op: Option<OpId>,
    pub(super) users: Vec<RequestId>,
}

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
    /// Leading pages that were there or under way when the limit cut its last fetch; 0 if it did not. Once they are there
    /// the rest has its turn; once one is dropped again, no more is fetched: L2 cannot hold what waits for it.
    cut_at: u32,
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
    /// A request starts to wait.
    pub(crate) fn enter(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers, request: RequestId, prompt: &Prompt) {
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
                state,
                local,
                stored_until: local,
                weighed: None,
                reason: None,
                batches: Vec::new(),
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
            let fetch_ns = self.fetch_ns(wanted.len() as u64);
            let compute_ns = self.compute_ns(cx.cost, waiting.prompt.length, waiting.local, waiting.stored_until);
            waiting.weighed = Some(Weighed { fetch_ns, compute_ns });
            if fetch_ns > compute_ns {
                waiting.reason = Some(MissReason::Recompute);
                cx.mark("hicache.prefetch_slower_than_computing");
                return;
            }
        }
        let capacity =
            (u64::from(self.config.host_pages) * u64::from(self.config.prefetch_capacity_per_mille) / 1000) as u32;
        let room = capacity.saturating_sub(self.fetching_pages);
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
            wanted.truncate(hosts.len());
        }
        let until = wanted.last().map_or(0, |last| last + 1);
        let mut pages = Vec::new();
        tiers.radix.insert(None, &waiting.prompt.keys[..until as usize], &mut pages);
        for (chunk, hosts) in
            wanted.chunks(STORAGE_BATCH_PAGES as usize).zip(hosts.chunks(STORAGE_BATCH_PAGES as usize))
        {
            let id = BatchId(self.batch_number);
            self.batch_number += 1;
            let mut batch = Batch { pages: Vec::with_capacity(chunk.len()), op: None, users: alloc::vec![request] };
            for (&index, &host) in chunk.iter().zip(hosts) {
                let page = pages[index as usize];
                let residence = tiers.radix.get_mut(page);
                residence.root = waiting.prompt.root;
                if residence.tokens.is_empty()
                    && let Some(tokens) = waiting.prompt.page(index, page_size)
                {
                    residence.tokens = tokens.to_vec();
                }
                tiers.attach_host(page, host, HostFill::Fetch(id), 0);
                batch.pages.push(page);
            }
            self.fetching_pages += batch.pages.len() as u32;
            self.batches.insert(id, batch);
            self.batch_queue.push_back(id);
            waiting.batches.push(id);
        }
        waiting.state = State::Fetching;
        cx.mark("hicache.prefetch");
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

    /// Time to bring pages from L3 through L2 into L1.
    pub(super) fn fetch_ns(&self, pages: u64) -> u64 {
        let bytes = pages.saturating_mul(self.config.page_bytes);
        let storage = self.config.storage_link.time_ns(bytes, pages);
        // The load back runs under the forward, layer by layer; its set-up does not.
        storage.saturating_add(self.config.host_link.time_ns(0, pages))
    }

    /// Time to compute the pages from `local` to `until` of a prompt of `length` tokens.
    pub(super) fn compute_ns(&self, cost: &Cost, length: u32, local: u32, until: u32) -> u64 {
        let page_size = u64::from(self.config.page_size);
        let cached = u64::from(local) * page_size;
        let all = cost.prefill_ns(cached, u64::from(length) - cached);
        let until = u64::from(until) * page_size;
        let rest = cost.prefill_ns(until, u64::from(length) - until);
        all.saturating_sub(rest)
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

    pub(super) fn settle_fetches(&mut self, cx: &mut Cx<'_>, tiers: &Tiers) {
        while self.storage_ops < STORAGE_OPS_MAX
            && let Some(id) = self.batch_queue.pop_front()
        {
            let batch = self.batches.get_mut(&id).expect("the queue names live batches");
            let object = |&page: &PageId| Object {
                key: tiers.radix.key(page),
                parent: tiers.parent_key(page),
                page: tiers.radix.get(page).host.expect("reserved for the fetch"),
                tokens: tiers.radix.get(page).tokens.clone(),
            };
            let objects = batch.pages.iter().map(object).collect();
            let op = cx.start(Owner::Kv, Vec::new(), Command::Prefetch(objects));
            batch.op = Some(op);
            self.moves.insert(op, Move::Fetch(id));
            self.storage_ops += 1;
        }
    }

    pub(super) fn fetched(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers, id: BatchId, outcome: &Outcome) {
        self.storage_ops -= 1;
        let batch = self.batches.remove(&id).expect("a batch lives until its command ends");
        self.fetching_pages -= batch.pages.len() as u32;
        tiers.host_freed = true;
        let is_checked = !self.config.mutation.is(Mutant::PrefetchUnchecked);
        let failed = if is_checked { Self::failures(outcome, batch.pages.len()) } else { BTreeMap::new() };
        let stamp = self.index.begin_use();
        // From the end of the chain, so that what is given up hangs from nothing.
        for (index, &page) in batch.pages.iter().enumerate().rev() {
            let key = tiers.radix.key(page);
            match failed.get(&(index as u32)) {
                None => {
                    cx.metrics.prefetch_pages += 1;
                    let residence = tiers.radix.get_mut(page);
                    residence.fetched = residence.device.is_none();
                    let depth = tiers.radix.depth(page);
                    self.index.touch(key, stamp, depth);
                    let is_shared = self.config.storage == StorageMode::Shared && self.has_storage();
                    if is_shared && self.wipes == 0 && self.index.get(key).is_none() {
                        self.index.set(key, Stored::Present, (stamp, u32::MAX - depth));
                    }
                    tiers.filled_host(page, true);
                }
                Some(fault) => {
                    cx.metrics.prefetch_failed_pages += 1;
                    if matches!(fault, Fault::Missing | Fault::Checksum | Fault::Namespace) {
                        // Whatever is there is not this page: forget it, so that the page is written anew.
                        self.index.remove(key);
                        cx.mark("hicache.prefetch_hole");
                    }
                    tiers.filled_host(page, false);
                }
            }
        }
        let reason = failed.values().next().map(|fault| MissReason::of_read(*fault));
        for user in batch.users {
            let Some(waiting) = self.waiting.get_mut(&user) else { continue };
            waiting.batches.retain(|other| *other != id);
            waiting.reason = reason.or(waiting.reason);
            if waiting.batches.is_empty() && waiting.state == State::Fetching {
                waiting.state = State::Done;
                // The limit let only the beginning through: the rest has its turn (sglang #27619).
                if waiting.reason == Some(MissReason::Capacity) && waiting.cut_at > 0 {
                    waiting.state = State::Parked;
                    self.parked.push_back(user);
                }
            }
        }
    }
}

//! The commands of which fetches are made: batches of pages, queued for a place in the storage lane.
//!
//! ```text
//!   head first   | 1 | 2 | 3 | 4 |     of one prompt: at once with the lane, as far as it has places
//!   tail first   | 4 | 3 | 2 | 1 |     a few pages each, and never more than two with the lane
//! ```

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::fetch::{State, Waiting};
use super::{HiCache, Move, Stored};
use crate::config::StorageMode;
use crate::cx::{Cx, Owner};
use crate::event::MissReason;
use crate::id::{HostPage, OpId, RequestId};
use crate::kv::tiers::{BatchId, HostFill, Tiers};
use crate::limits::{STORAGE_BATCH_PAGES, STORAGE_OPS_MAX, TAIL_BATCH_PAGES_MIN, TAIL_BATCHES, TAIL_OPS_MAX};
use crate::mutant::Mutant;
use crate::op::{Command, Fault, Object, Outcome};
use crate::radix::PageId;

/// Pages that are fetched by one command.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) pages: Vec<PageId>,
    pub(crate) op: Option<OpId>,
    pub(super) users: Vec<RequestId>,
    /// The request whose prompt is fetched from its end, one such batch after the other.
    pub(super) tail_of: Option<RequestId>,
}

impl HiCache {
    /// Queues batches for the `wanted` pages of a prompt, into these host pages; `path` are all its pages in the tree.
    pub(super) fn queue_batches(
        &mut self,
        tiers: &mut Tiers,
        request: RequestId,
        waiting: &mut Waiting,
        path: &[PageId],
        mut wanted: &[u32],
        mut hosts: &[HostPage],
    ) {
        let is_tail = waiting.tail.is_some();
        let mut size = STORAGE_BATCH_PAGES as usize;
        if is_tail {
            size = wanted.len().div_ceil(TAIL_BATCHES).clamp(TAIL_BATCH_PAGES_MIN, size);
        }
        while !wanted.is_empty() {
            let count = wanted.len().min(size);
            let chunk;
            if is_tail {
                (wanted, chunk) = wanted.split_at(wanted.len() - count);
            } else {
                (chunk, wanted) = wanted.split_at(count);
            }
            let (into, rest) = hosts.split_at(count);
            hosts = rest;
            let id = BatchId(self.batch_number);
            self.batch_number += 1;
            let mut batch = Batch {
                pages: Vec::with_capacity(count),
                op: None,
                users: alloc::vec![request],
                tail_of: is_tail.then_some(request),
            };
            for (&index, &host) in chunk.iter().zip(into) {
                let page = path[index as usize];
                let residence = tiers.radix.get_mut(page);
                residence.root = waiting.prompt.root;
                if residence.tokens.is_empty()
                    && let Some(tokens) = waiting.prompt.page(index, self.config.page_size)
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
    }

    pub(super) fn settle_fetches(&mut self, cx: &mut Cx<'_>, tiers: &Tiers) {
        let mut next = 0;
        while self.storage_ops < STORAGE_OPS_MAX
            && let Some(&id) = self.batch_queue.get(next)
        {
            if self.is_held(id) {
                next += 1;
                continue;
            }
            self.batch_queue.remove(next);
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
            if let Some(tail) = batch.tail_of.and_then(|request| self.tail_mut(request)) {
                tail.begin(cx.now);
            }
            self.moves.insert(op, Move::Fetch { batch: id, era: self.era });
            self.storage_ops += 1;
        }
    }

    pub(super) fn fetched(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers, id: BatchId, era: u64, outcome: &Outcome) {
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
                    // What was read before L3 was emptied says nothing of what it holds now.
                    if is_shared && era == self.era && self.wipes == 0 && self.index.get(key).is_none() {
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
            if let Some(tail) = &mut waiting.tail {
                tail.end(cx.now, batch.pages.len() as u32, failed.len() as u32);
            }
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

    /// Takes a request off its batches and gives those up that nobody else wants and no lane has.
    pub(super) fn give_up(&mut self, tiers: &mut Tiers, request: RequestId) {
        let Some(waiting) = self.waiting.get(&request) else { return };
        let all = waiting.batches.clone();
        self.give_up_some(tiers, request, &all);
    }

    /// The same for some of its batches.
    pub(super) fn give_up_some(&mut self, tiers: &mut Tiers, request: RequestId, batches: &[BatchId]) {
        let Some(waiting) = self.waiting.get_mut(&request) else { return };
        waiting.batches.retain(|id| !batches.contains(id));
        if waiting.batches.is_empty() && waiting.state == State::Fetching && waiting.tail.is_some() {
            waiting.state = State::Done;
        }
        for &id in batches {
            let batch = self.batches.get_mut(&id).expect("a request names live batches");
            batch.users.retain(|user| *user != request);
            if !batch.users.is_empty() || batch.op.is_some() {
                continue;
            }
            let batch = self.batches.remove(&id).expect("looked up above");
            self.batch_queue.retain(|other| *other != id);
            if !self.config.mutation.is(Mutant::FetchLeaksCapacity) {
                self.fetching_pages -= batch.pages.len() as u32;
            }
            for &page in batch.pages.iter().rev() {
                tiers.filled_host(page, false);
            }
        }
    }

    /// True for a batch that has to wait until those before it of the same fetch have ended.
    fn is_held(&self, id: BatchId) -> bool {
        let Some(waiting) = self.batches[&id].tail_of.and_then(|request| self.waiting.get(&request)) else {
            return false;
        };
        let begun = waiting.batches.iter().filter(|id| self.batches[id].op.is_some()).count();
        begun >= TAIL_OPS_MAX
    }
}

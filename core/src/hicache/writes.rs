//! Downwards: backup (L1 -> L2), persist (L2 -> L3), retries and the quota.

use alloc::vec::Vec;

use super::{BACKUP_OPS_MAX, BACKUP_PAGES_MAX, HiCache, Move, Storage, Stored};
use crate::config::{HostPolicy, WritePolicy};
use crate::cx::{Cx, Owner};
use crate::id::PageKey;
use crate::kv::tiers::{HostFill, Tiers};
use crate::limits::{STORAGE_BATCH_PAGES, STORAGE_OPS_MAX, TOUCH_KEYS_MAX};
use crate::mutant::Mutant;
use crate::op::{Command, Fault, Object, Outcome};
use crate::radix::PageId;
use crate::time::nanos;

impl HiCache {
    /// A page was published or used again: writes it down if the policy says so.
    pub(crate) fn used(&mut self, tiers: &mut Tiers, page: PageId) {
        let residence = tiers.radix.get(page);
        if residence.host.is_some() {
            if residence.filling == HostFill::None {
                self.queue_persist(tiers, page);
            }
            return;
        }
        let wanted = match self.config.write_policy {
            WritePolicy::WriteThrough => true,
            WritePolicy::WriteThroughSelective => tiers.l1.hits(page) >= self.config.write_through_hits,
            WritePolicy::WriteBack => false,
        };
        // An exclusive L2 takes a page early only as the way to L3.
        let useful = self.config.host_policy == HostPolicy::Inclusive || self.lacks(tiers.radix.key(page));
        if wanted && useful {
            self.queue_backup(tiers, page);
        }
    }

    fn lacks(&self, key: PageKey) -> bool {
        self.has_storage() && self.index.get(key).is_none()
    }

    pub(crate) fn queue_backup(&mut self, tiers: &mut Tiers, page: PageId) {
        let key = tiers.radix.key(page);
        let residence = tiers.radix.get_mut(page);
        if self.config.host_pages > 0
            && residence.device.is_some()
            && residence.host.is_none()
            && !residence.backup_queued
            && !residence.dead
        {
            residence.backup_queued = true;
            self.backup_queue.push_back((page, key));
        }
    }

    pub(super) fn queue_persist(&mut self, tiers: &mut Tiers, page: PageId) {
        let key = tiers.radix.key(page);
        if !self.lacks(key) {
            return;
        }
        let residence = tiers.radix.get_mut(page);
        if !residence.persist_queued && !residence.dead {
            residence.persist_queued = true;
            self.persist_queue.push_back((page, key));
            if self.persist_queue.len() > 2 * self.config.host_pages as usize {
                self.compact_persists(tiers);
            }
        }
    }

    /// Takes entries of pages that left L2 out of the queue, so that it stays as short as L2 is while L3 hangs.
    fn compact_persists(&mut self, tiers: &mut Tiers) {
        self.persist_queue.retain(|&(page, key)| {
            tiers.radix.contains(page)
                && tiers.radix.key(page) == key
                // One entry a page: the flag is put back below.
                && core::mem::take(&mut tiers.radix.get_mut(page).persist_queued)
        });
        for &(page, _) in &self.persist_queue {
            tiers.radix.get_mut(page).persist_queued = true;
        }
    }

    pub(super) fn settle_backups(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers) {
        while self.backup_ops < BACKUP_OPS_MAX && !self.backup_queue.is_empty() {
            let mut pages = Vec::new();
            while pages.len() < BACKUP_PAGES_MAX {
                let Some((page, key)) = self.backup_queue.pop_front() else { break };
                // The page may have left the tree, and its number may stand for another one.
                if !tiers.radix.contains(page) || tiers.radix.key(page) != key {
                    continue;
                }
                let residence = tiers.radix.get_mut(page);
                if !residence.backup_queued {
                    continue;
                }
                residence.backup_queued = false;
                if residence.device.is_some() && residence.host.is_none() && !residence.dead {
                    pages.push(page);
                }
            }
            self.backup(cx, tiers, &pages);
        }
    }

    /// Copies pages to L2, as many from the front as it has room for. Returns how many.
    pub(crate) fn backup(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers, pages: &[PageId]) -> usize {
        let mut moves = Vec::with_capacity(pages.len());
        let mut taken = Vec::with_capacity(pages.len());
        // The pages that are copied now must not make room for each other's parents.
        for &page in pages {
            if !tiers.make_host_room(1) {
                cx.mark("hicache.backup_without_room");
                break;
            }
            let host = tiers.host.allocate().expect("room was made");
            tiers.attach_host(page, host, HostFill::Backup, 0);
            tiers.pin_device(page);
            moves.push((tiers.radix.get(page).device.expect("a page of L1"), host));
            taken.push(page);
        }
        let count = taken.len();
        if self.config.mutation.is(Mutant::PersistBeforeBackup) {
            taken.iter().for_each(|&page| self.queue_persist(tiers, page));
        }
        if count > 0 {
            cx.metrics.backup_pages += count as u64;
            let op = cx.start(Owner::Kv, Vec::new(), Command::Backup(moves));
            self.moves.insert(op, Move::Backup(taken));
            self.backup_ops += 1;
        }
        count
    }

    pub(super) fn backed_up(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers, pages: &[PageId], outcome: &Outcome) {
        self.backup_ops -= 1;
        let failed = Self::failures(outcome, pages.len());
        if !failed.is_empty() {
            cx.mark("hicache.backup_failed");
        }
        for (index, &page) in pages.iter().enumerate() {
            let good = !failed.contains_key(&(index as u32));
            let residence = tiers.radix.get_mut(page);
            let dead = residence.dead;
            residence.unsavable = !good;
            tiers.filled_host(page, good);
            if good && !dead {
                self.queue_persist(tiers, page);
            }
        }
        for &page in pages.iter().rev() {
            tiers.unpin_device(page);
        }
    }

    /// What L1 must do with a page it wants to drop: `true` if it has to be saved first.
    pub(crate) fn must_save(&self, tiers: &Tiers, page: PageId) -> bool {
        let by_eviction =
            self.config.write_policy == WritePolicy::WriteBack || self.config.host_policy == HostPolicy::Exclusive;
        let by_eviction = by_eviction && !self.config.mutation.is(Mutant::WriteBackDropsDirty);
        let residence = tiers.radix.get(page);
        // A copy that failed is not waited for again: requests wait for the room.
        by_eviction && self.has_host() && residence.host.is_none() && !residence.unsavable
    }

    /// An exclusive L2 keeps no copy of what L1 has, once L3 has it too or is not there.
    pub(super) fn gives_up_host_copy(&self, tiers: &Tiers, page: PageId, key: PageKey) -> bool {
        let residence = tiers.radix.get(page);
        self.config.host_policy == HostPolicy::Exclusive
            && residence.device.is_some()
            && residence.loading.is_none()
            && residence.readable_host().is_some_and(|host| tiers.host.pins(host) == 0)
            && (!self.has_storage() || self.index.has(key))
    }

    pub(super) fn settle_persists(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers) {
        if !matches!(self.storage, Storage::On) || self.wipes > 0 {
            return;
        }
        // Reads have half of the lane to themselves: a request waits for them.
        while self.storage_ops < STORAGE_OPS_MAX / 2 && !self.persist_queue.is_empty() {
            let mut pages = Vec::new();
            let mut objects = Vec::new();
            while pages.len() < STORAGE_BATCH_PAGES as usize {
                let Some((page, key)) = self.persist_queue.pop_front() else { break };
                if !tiers.radix.contains(page) || tiers.radix.key(page) != key {
                    self.failed.remove(&key);
                    continue;
                }
                let residence = tiers.radix.get_mut(page);
                if !core::mem::take(&mut residence.persist_queued) {
                    continue;
                }
                let is_early = self.config.mutation.is(Mutant::PersistBeforeBackup);
                let Some(host) = residence.readable_host().or(residence.host.filter(|_| is_early)) else {
                    self.failed.remove(&key);
                    continue;
                };
                if !self.lacks(key) {
                    continue;
                }
                let tokens = residence.tokens.clone();
                objects.push(Object { key, parent: tiers.parent_key(page), page: host, tokens });
                tiers.pin_host(page);
                let is_early = self.config.mutation.is(Mutant::PresentBeforeDurable);
                self.index.set(key, if is_early { Stored::Present } else { Stored::Writing }, (0, 0));
                pages.push(page);
            }
            if pages.is_empty() {
                break;
            }
            let op = cx.start(Owner::Kv, Vec::new(), Command::Persist(objects));
            self.moves.insert(op, Move::Persist { pages, era: self.era });
            self.storage_ops += 1;
        }
    }

    pub(super) fn persisted(
        &mut self,
        cx: &mut Cx<'_>,
        tiers: &mut Tiers,
        pages: &[PageId],
        era: u64,
        outcome: &Outcome,
    ) {
        self.storage_ops -= 1;
        let failed = Self::failures(outcome, pages.len());
        let stamp = self.index.begin_use();
        for (index, &page) in pages.iter().enumerate() {
            let key = tiers.radix.key(page);
            if failed.contains_key(&(index as u32)) {
                cx.metrics.persist_failed_pages += 1;
                if era == self.era {
                    self.write_failed(cx, key, page);
                }
                continue;
            }
            cx.metrics.persist_pages += 1;
            // Else L3 was detached or cleared meanwhile, and whether it has the object is not known.
            if era == self.era {
                self.failed.remove(&key);
                // As recent as what it hangs from: what goes first under a quota is the end of a chain.
                let used = self.index.used(tiers.parent_key(page)).unwrap_or(stamp);
                self.index.set(key, Stored::Present, (used, u32::MAX - 1 - tiers.radix.depth(page)));
            }
        }
        for &page in pages.iter().rev() {
            let key = tiers.radix.key(page);
            tiers.unpin_host(page);
            if tiers.radix.contains(page) && tiers.radix.key(page) == key && self.gives_up_host_copy(tiers, page, key) {
                tiers.drop_host_failed(page);
            }
        }
    }

    /// Notes a use of all pages of a chain, root first. Under a quota no page must look older than those behind it, here
    /// and, for the next life, in L3: what goes first is the end of a chain.
    pub(crate) fn note_use(&mut self, tiers: &Tiers, path: &[PageId]) {
        if !self.has_storage() || !self.index.has_quota() || path.is_empty() {
            return;
        }
        let stamp = self.index.begin_use();
        let keys: Vec<PageKey> = path.iter().map(|&page| tiers.radix.key(page)).collect();
        for (depth, &key) in (0..).zip(&keys) {
            self.index.touch(key, stamp, depth);
        }
        self.touched_keys += keys.len();
        self.touches.push_back(keys);
        while self.touched_keys > TOUCH_KEYS_MAX && self.touches.len() > 1 {
            self.touched_keys -= self.touches.pop_front().map_or(0, |keys| keys.len());
        }
    }

    fn write_failed(&mut self, cx: &mut Cx<'_>, key: PageKey, page: PageId) {
        let attempts = 1 + self.failed.get(&key).map_or(0, |&(attempts, _)| attempts);
        self.failed.insert(key, (attempts, page));
        let base = nanos(self.config.write_retry_base);
        let pause = base.saturating_mul(1 << (attempts - 1).min(32)).min(nanos(self.config.write_retry_max));
        let retry_at = cx.now.after_ns(pause);
        self.index.set(key, Stored::Failed { retry_at }, (0, 0));
        self.retries.insert((retry_at, key));
        cx.mark("hicache.persist_failed");
    }

    /// Failed writes whose pause is over: written again if the page is still in L2, else when it next comes by.
    pub(super) fn settle_retries(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers) {
        while let Some(&(at, key)) = self.retries.first()
            && at <= cx.now
        {
            self.retries.pop_first();
            if self.index.get(key) != Some(Stored::Failed { retry_at: at }) {
                continue;
            }
            self.index.remove(key);
            let Some(&(_, page)) = self.failed.get(&key) else { continue };
            let is_here = tiers.radix.contains(page)
                && tiers.radix.key(page) == key
                && tiers.radix.get(page).readable_host().is_some();
            if is_here {
                cx.mark("hicache.persist_retried");
                self.queue_persist(tiers, page);
            } else {
                self.failed.remove(&key);
            }
        }
    }

    pub(super) fn settle_quota(&mut self, cx: &mut Cx<'_>) {
        if self.discard_not_before.is_some_and(|at| at <= cx.now) {
            self.discard_not_before = None;
        }
        if !matches!(self.storage, Storage::On) || self.storage_ops >= STORAGE_OPS_MAX {
            return;
        }
        let mut keys = Vec::new();
        while self.discard_not_before.is_none()
            && keys.len() < STORAGE_BATCH_PAGES as usize
            && let Some(key) = self.index.over_quota()
        {
            keys.push(key);
        }
        if !self.touches.is_empty() {
            // The latest use first, and of each use the root first.
            let keys = core::mem::take(&mut self.touches).into_iter().rev().flatten().collect();
            self.touched_keys = 0;
            let op = cx.start(Owner::Kv, Vec::new(), Command::Touch(keys));
            self.moves.insert(op, Move::Touch);
            self.storage_ops += 1;
        }
        if !keys.is_empty() {
            self.forget_answers(&keys);
            cx.metrics.discard_pages += keys.len() as u64;
            let op = cx.start(Owner::Kv, Vec::new(), Command::Discard(keys.clone()));
            self.moves.insert(op, Move::Discard(keys));
            self.storage_ops += 1;
        }
    }

    /// What could not be removed still takes room in L3: it counts again, as used least recently.
    pub(super) fn discarded(&mut self, cx: &mut Cx<'_>, keys: &[PageKey], outcome: &Outcome) {
        self.storage_ops -= 1;
        let failed = Self::failures(outcome, keys.len());
        for (index, &key) in (0_u32..).zip(keys) {
            // Else L3 was detached or cleared meanwhile.
            if self.index.get(key) != Some(Stored::Discarding) {
                continue;
            }
            match failed.get(&index) {
                None | Some(Fault::Missing) => self.index.remove(key),
                Some(_) => {
                    self.index.set(key, Stored::Present, (0, index));
                    self.discard_not_before = Some(cx.now.after_ns(nanos(self.config.write_retry_max)));
                    cx.mark("hicache.discard_failed");
                }
            }
        }
    }
}

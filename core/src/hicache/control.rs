//! Scan, attach, detach, clear: all of them work under load.

use alloc::vec::Vec;
use core::time::Duration;

use super::{HiCache, Move, Storage, Stored};
use crate::config::StorageMode;
use crate::cx::{Cx, Owner};
use crate::id::OpId;
use crate::kv::tiers::Tiers;
use crate::op::{Command, Outcome};
use crate::radix::PageId;

/// Pause before a failed scan is tried again.
const SCAN_RETRY: Duration = Duration::from_secs(1);

impl HiCache {
    pub(super) fn settle_scan(&mut self, cx: &mut Cx<'_>) {
        let Storage::Scanning { next, scan: None } = self.storage else { return };
        if cx.now < self.scan_not_before {
            return;
        }
        let op = cx.start(Owner::Kv, Vec::new(), Command::Scan { after: next });
        self.moves.insert(op, Move::Scan);
        self.storage_ops += 1;
        self.storage = Storage::Scanning { next, scan: Some(op) };
    }

    pub(super) fn scanned(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers, op: OpId, outcome: Outcome) {
        self.storage_ops -= 1;
        let Storage::Scanning { next: asked_after, scan } = self.storage else { return };
        // A scan from before a detach knows nothing of what this one looks for.
        if scan != Some(op) {
            return;
        }
        match outcome {
            Outcome::Scanned { keys, next, foreign, torn } => {
                self.index.foreign += u64::from(foreign);
                self.index.torn += u64::from(torn);
                for (key, used) in keys {
                    if self.index.get(key).is_none() {
                        // Pages that this life hangs below it are older.
                        self.index.set(key, Stored::Present, (used, u32::MAX));
                        self.index.begin_after(used);
                    }
                }
                match next {
                    // A store that does not move on would be asked for ever.
                    Some(key) if Some(key) > asked_after => {
                        self.storage = Storage::Scanning { next: Some(key), scan: None };
                    }
                    Some(_) | None => {
                        self.storage = Storage::On;
                        cx.mark("hicache.scanned");
                        self.evaluate_all(cx, tiers);
                    }
                }
            }
            Outcome::Moved | Outcome::Partly(_) | Outcome::Sampled(_) | Outcome::Found(_) | Outcome::Failed(_) => {
                cx.mark("hicache.scan_failed");
                self.storage = Storage::Scanning { next: asked_after, scan: None };
                self.scan_not_before = cx.now + SCAN_RETRY;
            }
        }
    }

    pub(crate) fn attach(&mut self, tiers: &mut Tiers) {
        if self.has_storage() || self.config.storage == StorageMode::None {
            return;
        }
        self.forget_storage();
        self.storage = match self.config.storage {
            StorageMode::Shared => Storage::On,
            StorageMode::Private | StorageMode::None => Storage::Scanning { next: None, scan: None },
        };
        // Pages have their keys already; those in L2 go down, parents first.
        let mut pages: Vec<PageId> = tiers.radix.iter().collect();
        pages.sort_by_key(|&page| (tiers.radix.depth(page), page));
        for page in pages {
            if tiers.radix.get(page).readable_host().is_some() {
                self.queue_persist(tiers, page);
            }
        }
    }

    pub(crate) fn detach(&mut self, tiers: &mut Tiers) {
        self.detach_waiting(tiers);
        self.storage = Storage::Off;
        for (page, key) in core::mem::take(&mut self.persist_queue) {
            if tiers.radix.contains(page) && tiers.radix.key(page) == key {
                tiers.radix.get_mut(page).persist_queued = false;
            }
        }
        self.forget_storage();
    }

    /// Forgets what is known of L3; commands in flight add nothing to it any more.
    fn forget_storage(&mut self) {
        self.era += 1;
        self.index.clear();
        self.retries.clear();
        self.failed.clear();
        self.touches.clear();
        self.touched_keys = 0;
        self.discard_not_before = None;
    }

    pub(crate) fn clear(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers) {
        if !self.has_storage() {
            return;
        }
        self.forget_fetches(tiers);
        self.forget_storage();
        if matches!(self.storage, Storage::Scanning { .. }) {
            // What the scan looks for is being removed.
            self.storage = Storage::On;
            self.evaluate_all(cx, tiers);
        }
        let op = cx.start(Owner::Kv, Vec::new(), Command::Wipe);
        self.moves.insert(op, Move::Wipe);
        self.storage_ops += 1;
        self.wipes += 1;
    }
}

#[cfg(test)]
impl HiCache {
    pub(crate) fn failures_known(&self) -> usize {
        self.failed.len()
    }

    pub(crate) fn uses_untold(&self) -> usize {
        self.touched_keys
    }

    pub(crate) fn parked_requests(&self) -> usize {
        self.parked.len()
    }
}

impl HiCache {
    /// At rest nothing is held for a move that has ended.
    pub(crate) fn check_idle(&self, tiers: &Tiers) {
        assert!(self.moves.is_empty() && self.batches.is_empty() && self.waiting.is_empty() && self.parked.is_empty());
        assert_eq!((self.backup_ops, self.storage_ops, self.wipes, self.fetching_pages), (0, 0, 0, 0));
        for page in tiers.radix.iter() {
            let residence = tiers.radix.get(page);
            assert!(residence.loading.is_none(), "{page:?} is loaded by nothing");
            assert!(residence.device.is_none_or(|gpu| tiers.gpu.pins(gpu) == 0), "{page:?} is pinned in L1 by nothing");
            assert!(
                residence.host.is_none_or(|copy| tiers.host.pins(copy) == 0),
                "{page:?} is pinned in L2 by nothing"
            );
            assert!(!residence.backup_queued, "{page:?} waits for a backup that does not come");
        }
    }
}

//! What the controller is about to do, is doing and has decided: queries for those who explain a run.

use alloc::vec::Vec;

use super::fetch::State;
use super::weigh::Span;
use super::{HiCache, Move, Storage};
use crate::config::StorageMode;
use crate::cost::Cost;
use crate::event::MissReason;
use crate::id::{OpId, RequestId};
use crate::kv::tiers::Tiers;
use crate::op::Prompt;
use crate::time::Instant;

/// What is fetched from L3 for a waiting request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchPlan {
    /// How far it is.
    pub stage: State,
    /// Leading pages that were in L1 or L2 when L3 was looked at.
    pub local: u32,
    /// Leading pages that L1, L2 and L3 hold without a gap.
    pub until: u32,
    /// Most pages that a cache may serve of this prompt.
    pub cap: u32,
    /// What was compared before fetching, if it was.
    pub weighed: Option<Weighed>,
    /// Why less than `until` will come, if that is known.
    pub reason: Option<MissReason>,
    /// Since when only the fetch keeps it from being admitted; the clock of the policy.
    pub blocked_at: Option<Instant>,
}

/// The sides of the decision to fetch, as estimated when it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Weighed {
    /// Bringing the pages from L3 to L1.
    pub fetch_ns: u64,
    /// Computing them.
    pub compute_ns: u64,
    /// Computing them from the head while they are fetched from the end, where that is clearly better than either.
    pub both_ns: Option<u64>,
}

/// What the tiers would have for a prompt that came now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Prospect {
    /// Most pages that a cache may serve of it.
    pub cap: u32,
    /// Leading pages in L1 or L2.
    pub local: u32,
    /// Leading pages in L1, L2 or, as far as this worker knows, L3.
    pub until: u32,
    /// Pages behind `until` that L3 has and that are of no use without the one that is missing.
    pub behind: u32,
    /// Estimates for the pages from `local` to `until`; none if there are none.
    pub weighed: Option<Weighed>,
    /// L3 as this worker knows it.
    pub storage: StorageView,
}

/// L3 as a worker knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StorageView {
    /// It is in use.
    pub is_attached: bool,
    /// What it holds is still being listed.
    pub is_scanning: bool,
    /// Others write to it, so it is asked for each prompt.
    pub is_shared: bool,
    /// Objects that can be read.
    pub present: u64,
    /// Objects of other namespaces that the scan skipped.
    pub foreign: u64,
    /// Broken objects that the scan skipped.
    pub torn: u64,
    /// Pages that wait to be copied to L2.
    pub backups_waiting: u32,
    /// Pages that wait to be written to L3.
    pub persists_waiting: u32,
    /// Batches that wait for a place in the storage lane.
    pub fetches_waiting: u32,
    /// Host pages reserved for what is being fetched.
    pub fetching_pages: u32,
    /// Writes that failed and will be tried again, the first of them at the time beside.
    pub retries: u32,
    /// See `retries`.
    pub retry_at: Option<Instant>,
}

/// A command of the controller in flight.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MoveView {
    /// Its name.
    pub op: OpId,
    /// What it does, in the words of the tiers.
    pub what: &'static str,
    /// Pages that it moves or asks about; 0 where that is not known.
    pub pages: u32,
    /// Who waits for it.
    pub users: Vec<RequestId>,
}

impl HiCache {
    pub(crate) fn fetch_plan(&self, request: RequestId) -> Option<FetchPlan> {
        let waiting = self.waiting.get(&request)?;
        Some(FetchPlan {
            stage: waiting.state,
            local: waiting.local,
            until: waiting.stored_until,
            cap: waiting.cap,
            weighed: waiting.weighed,
            reason: waiting.reason,
            blocked_at: waiting.blocked_at,
        })
    }

    pub(crate) fn prospect(&self, cost: &Cost, tiers: &Tiers, prompt: &Prompt) -> Prospect {
        let page_size = self.config.page_size;
        let cap = (prompt.length.max(1) - 1) / page_size;
        let storage = self.storage_view();
        let path = Self::path(tiers, prompt, cap);
        let local = Self::local_pages(tiers, &path, cap);
        let has = |page: u32| {
            let in_memory = path.get(page as usize).is_some_and(|&page| {
                let residence = tiers.radix.get(page);
                !residence.dead && (residence.device.is_some() || residence.host.is_some())
            });
            in_memory || storage.is_attached && self.index.has(prompt.keys[page as usize])
        };
        let until = (local..cap).find(|&page| !has(page)).unwrap_or(cap);
        let behind = (until..cap).filter(|&page| has(page)).count() as u32;
        let span = Span { length: prompt.length, local, until };
        let weighed = (until > local).then(|| self.weigh(cost, span, |page| u64::from(until - page)));
        Prospect { cap, local, until, behind, weighed, storage }
    }

    pub(crate) fn storage_view(&self) -> StorageView {
        StorageView {
            is_attached: self.has_storage(),
            is_scanning: matches!(self.storage, Storage::Scanning { .. }),
            is_shared: self.config.storage == StorageMode::Shared,
            present: self.index.present(),
            foreign: self.index.foreign,
            torn: self.index.torn,
            backups_waiting: self.backup_queue.len() as u32,
            persists_waiting: self.persist_queue.len() as u32,
            fetches_waiting: self.batch_queue.len() as u32,
            fetching_pages: self.fetching_pages,
            retries: self.retries.len() as u32,
            retry_at: self.retries.first().map(|(at, _)| *at),
        }
    }

    pub(crate) fn moves(&self) -> impl Iterator<Item = MoveView> + '_ {
        self.moves.iter().map(|(&op, one)| {
            let (what, pages, users) = match one {
                Move::Backup(pages) => ("backup L1 -> L2", pages.len(), Vec::new()),
                Move::LoadBack { pages, users } => {
                    ("load back L2 -> L1", pages.len(), users.iter().map(|(request, _)| *request).collect())
                }
                Move::Persist { pages, .. } => ("persist L2 -> L3", pages.len(), Vec::new()),
                Move::Fetch { batch, .. } => match self.batches.get(batch) {
                    Some(batch) => ("prefetch L3 -> L2", batch.pages.len(), batch.users.clone()),
                    None => ("prefetch L3 -> L2", 0, Vec::new()),
                },
                Move::Query(request) => ("query L3", 0, alloc::vec![*request]),
                Move::Scan => ("scan L3", 0, Vec::new()),
                Move::Discard(keys) => ("discard from L3", keys.len(), Vec::new()),
                Move::Wipe => ("wipe L3", 0, Vec::new()),
                Move::Touch => ("note uses in L3", 0, Vec::new()),
            };
            MoveView { op, what, pages: pages as u32, users }
        })
    }
}

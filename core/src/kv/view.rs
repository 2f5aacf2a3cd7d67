//! What the cache holds and would do: queries for those who explain a run. Nothing is kept for them.

use alloc::vec::Vec;

use super::Kv;
use crate::cost::Cost;
use crate::hicache::{FetchPlan, MoveView, Prospect, StorageView};
use crate::id::{HostPage, RequestId};
use crate::op::Prompt;

/// The pages of a memory tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TierView {
    /// All of them.
    pub total: u32,
    /// Not in use.
    pub free: u32,
    /// In use by a sequence or a command in flight.
    pub pinned: u32,
}

impl TierView {
    /// Pages that hold cache which nobody uses just now.
    #[must_use]
    pub const fn idle(&self) -> u32 {
        self.total - self.free - self.pinned
    }
}

impl Kv {
    /// L1 and L2. Counts every page of L2.
    #[must_use]
    pub fn tier_views(&self) -> (TierView, TierView) {
        let (gpu, host) = (&self.tiers.gpu, &self.tiers.host);
        let is_pinned = |page: &HostPage| host.is_allocated(*page) && host.pins(*page) > 0;
        let pinned = (0..host.total()).map(HostPage).filter(is_pinned).count() as u32;
        (
            // Pages that a sequence has not published are its own, and have no pins.
            TierView { total: gpu.total(), free: gpu.free_count(), pinned: gpu.total() - self.available() },
            TierView { total: host.total(), free: host.free_count(), pinned },
        )
    }

    /// L3 as this worker knows it, and what waits to be written.
    #[must_use]
    pub fn storage_view(&self) -> StorageView {
        self.hicache.storage_view()
    }

    /// Commands of the cache in flight, in the order of their start.
    #[must_use]
    pub fn moves(&self) -> Vec<MoveView> {
        self.hicache.moves().collect()
    }

    /// What is fetched from L3 for a waiting request; `None` if it does not wait for L3 or is not known.
    #[must_use]
    pub fn fetch_plan(&self, request: RequestId) -> Option<FetchPlan> {
        self.hicache.fetch_plan(request)
    }

    /// What the tiers would have for this prompt if it came now. Looking changes nothing.
    #[must_use]
    pub fn prospect(&self, cost: &Cost, prompt: &Prompt) -> Prospect {
        self.hicache.prospect(cost, &self.tiers, prompt)
    }
}

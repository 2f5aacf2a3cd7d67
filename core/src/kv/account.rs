//! What can be seen of the cache from outside without changing it.

use alloc::vec::Vec;

use crate::id::{GpuPage, PageKey, RequestId};
use crate::kv::Kv;
use crate::worker::Census;

impl Kv {
    /// What the cache holds; the rest of the census is the worker's.
    pub(crate) fn census(&self) -> Census {
        Census {
            fetching: self.hicache.fetching(),
            writes_queued: self.hicache.writes_queued(),
            gpu: self.tiers.gpu.total(),
            gpu_free: self.tiers.gpu.free_count(),
            gpu_idle: self.tiers.idle,
            host: self.tiers.host.total(),
            host_free: self.tiers.host.free_count(),
            ..Census::default()
        }
    }

    /// True if a device page is not free.
    pub(crate) fn holds(&self, page: GpuPage) -> bool {
        self.tiers.gpu.is_allocated(page)
    }

    /// Device pages that are free now.
    pub(crate) fn free(&self) -> u32 {
        self.tiers.gpu.free_count()
    }

    /// True while a request waits for L3.
    pub(crate) fn is_fetching(&self, request: RequestId) -> bool {
        self.hicache.is_awaited(request)
    }

    /// Keys of the objects that the index of L3 counts as present.
    pub(crate) fn stored_keys(&self) -> Vec<PageKey> {
        self.hicache.index.keys_present()
    }

    /// Panics if anything is held for a move that has ended. At rest only.
    pub(crate) fn check_rest(&self) {
        self.hicache.check_idle(&self.tiers);
    }
}

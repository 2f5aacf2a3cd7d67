//! What one sequence holds of the device pool.

use alloc::vec::Vec;

use crate::id::{GpuPage, OpId, RequestId};

/// The page table of one sequence: shared pages of the tree that it pins, then pages of its own.
///
/// Neither `Clone` nor `Copy`: it is given back by value to [`crate::kv::Kv::release`], so a double free does not
/// compile.
///
/// ```text
///  page table   0 1 2 3 4 5 6 7 8
///               └ in the tree ┘└┘ own, not published
///               <- cached ->         usable when the sequence was admitted
/// ```
#[derive(Debug)]
#[must_use = "pages that are dropped without a release are lost"]
pub struct Lease {
    pub(super) request: RequestId,
    /// Device pages in the order of the sequence.
    pub(super) table: Vec<GpuPage>,
    /// For each published page the tree's page, pinned by this lease. The tree may hold another copy than the table
    /// (two sequences computed the same page): then the table's is the sequence's own.
    pub(super) entries: Vec<u32>,
    /// Full pages that have been offered to the tree.
    pub(super) published: u32,
    /// Leading tokens whose KV was there when the lease was taken.
    pub(super) cached: u32,
    /// Commands that fill some of the cached pages; a forward names them in `after`.
    pub(super) loading: Vec<OpId>,
    /// Pages behind the cached ones may come from L3 while those between are computed; see [`crate::kv::Kv::ahead`].
    pub(super) has_tail: bool,
}

impl Lease {
    /// A lease on pages that no pool knows.
    #[cfg(test)]
    pub(crate) const fn for_test(request: RequestId, table: Vec<GpuPage>) -> Self {
        Self { request, table, entries: Vec::new(), published: 0, cached: 0, loading: Vec::new(), has_tail: false }
    }

    /// Makes room for a table of `pages`, so that growing up to there does not allocate.
    pub(crate) fn reserve(&mut self, pages: u32) {
        self.table.reserve((pages as usize).saturating_sub(self.table.len()));
    }

    /// Whose.
    #[must_use]
    pub const fn request(&self) -> RequestId {
        self.request
    }

    /// Device pages in the order of the sequence.
    #[must_use]
    pub fn table(&self) -> &[GpuPage] {
        &self.table
    }

    /// Leading tokens whose KV was cached when the lease was taken: the first forward starts there.
    #[must_use]
    pub const fn cached_tokens(&self) -> u32 {
        self.cached
    }

    /// Commands that still fill some of the cached pages. They end before [`crate::kv::KvEvent::Shorter`], which names the one that failed.
    #[must_use]
    pub fn loading(&self) -> &[OpId] {
        &self.loading
    }

    /// True until the sequence has met the pages that come from L3 while it computes those before them.
    #[must_use]
    pub const fn has_tail(&self) -> bool {
        self.has_tail
    }

    /// Full pages offered to the tree so far.
    #[must_use]
    pub const fn published_pages(&self) -> u32 {
        self.published
    }
}

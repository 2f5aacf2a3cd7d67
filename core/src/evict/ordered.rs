//! The policies that are one sort key: the smallest leaves first.
//!
//! | policy   | major                | minor             |
//! |----------|----------------------|-------------------|
//! | lru      | 0                    | last use          |
//! | lfu      | uses                 | last use          |
//! | slru     | 1 if used twice      | last use          |
//! | fifo     | 0                    | order of admission|
//! | priority | priority             | last use          |

use alloc::collections::BTreeSet;

use crate::radix::PageId;

use super::{Entry, Policy, Standing};

/// The candidates in the order in which they leave.
#[derive(Clone, Debug)]
pub(super) struct Ordered {
    policy: Policy,
    ranks: BTreeSet<Rank>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Rank {
    major: u32,
    minor: u64,
    page: PageId,
}

impl Ordered {
    pub(super) const fn new(policy: Policy) -> Self {
        Self { policy, ranks: BTreeSet::new() }
    }

    pub(super) fn insert(&mut self, page: PageId, entry: &Entry) {
        let inserted = self.ranks.insert(self.rank(page, entry));
        assert!(inserted, "{page:?} is offered once");
    }

    pub(super) fn remove(&mut self, page: PageId, entry: &Entry) {
        let removed = self.ranks.remove(&self.rank(page, entry));
        assert!(removed, "{page:?} was offered");
    }

    /// The history of a page has changed.
    pub(super) fn moved(&mut self, page: PageId, before: &Entry, after: &Entry) {
        if after.standing != Standing::Candidate {
            return;
        }
        let (old, new) = (self.rank(page, before), self.rank(page, after));
        if old != new {
            let removed = self.ranks.remove(&old);
            assert!(removed, "{page:?} was offered");
            self.ranks.insert(new);
        }
    }

    pub(super) fn pop(&mut self) -> Option<PageId> {
        self.ranks.pop_first().map(|rank| rank.page)
    }

    pub(super) fn len(&self) -> usize {
        self.ranks.len()
    }

    pub(super) fn contains(&self, page: PageId, entry: &Entry) -> bool {
        self.ranks.contains(&self.rank(page, entry))
    }

    fn rank(&self, page: PageId, entry: &Entry) -> Rank {
        let (major, minor) = match self.policy {
            Policy::Lru => (0, entry.last),
            Policy::Lfu => (entry.hits, entry.last),
            Policy::Slru => (u32::from(entry.hits >= PROTECTED_HITS), entry.last),
            Policy::Fifo => (0, entry.place),
            // The sign bit flipped: negative priorities sort before positive ones.
            Policy::Priority => (entry.priority as u32 ^ 1 << 31, entry.last),
            Policy::S3Fifo => unreachable!("S3-FIFO has an order of its own"),
        };
        Rank { major, minor, page }
    }
}

/// Uses after which SLRU protects a page, the admission counted.
const PROTECTED_HITS: u32 = 2;

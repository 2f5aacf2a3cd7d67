//! What this worker knows of L3: an index by page key.
//!
//! For a private store it is the truth once the scan has ended; for a shared one it is a memory of what was written or
//! seen, good enough to not write twice and never relied on for reading. In both cases a read can still find the object
//! gone or broken: then the entry is removed and the page healed when it is computed again (sglang #38316, #39701).

use alloc::collections::{BTreeMap, BTreeSet};

use crate::digest::Digest;
use crate::id::PageKey;
use crate::time::Instant;

/// What is known of one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stored {
    /// It can be read.
    Present,
    /// It is being written.
    Writing,
    /// Writing failed; not to be tried before the instant.
    Failed { retry_at: Instant },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: Stored,
    /// Place in the order of use; deeper pages of one use come first.
    rank: (u64, u32),
}

/// Index of L3.
#[derive(Debug)]
pub(crate) struct Index {
    entries: BTreeMap<PageKey, Entry>,
    /// Present entries by last use, kept only under a quota.
    order: BTreeSet<((u64, u32), PageKey)>,
    present: u64,
    pages_max: u64,
    uses: u64,
    /// Objects of other namespaces that the scan saw.
    pub(crate) foreign: u64,
    /// Broken objects that the scan saw.
    pub(crate) torn: u64,
}

impl Index {
    pub(crate) const fn new(pages_max: u64) -> Self {
        Self { entries: BTreeMap::new(), order: BTreeSet::new(), present: 0, pages_max, uses: 0, foreign: 0, torn: 0 }
    }

    /// True if the order of use matters.
    pub(crate) const fn has_quota(&self) -> bool {
        self.pages_max != u64::MAX
    }

    pub(crate) const fn present(&self) -> u64 {
        self.present
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn get(&self, key: PageKey) -> Option<Stored> {
        self.entries.get(&key).map(|entry| entry.state)
    }

    pub(crate) fn has(&self, key: PageKey) -> bool {
        self.get(key) == Some(Stored::Present)
    }

    /// The place in the order of a new use of page `depth` of a chain.
    pub(crate) fn begin_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    pub(crate) fn set(&mut self, key: PageKey, state: Stored, rank: (u64, u32)) {
        let entry = Entry { state, rank };
        let older = self.entries.insert(key, entry);
        if let Some(older) = older
            && older.state == Stored::Present
        {
            self.present -= 1;
            if self.has_quota() {
                self.order.remove(&(older.rank, key));
            }
        }
        if state == Stored::Present {
            self.present += 1;
            if self.has_quota() {
                self.order.insert((rank, key));
            }
        }
    }

    /// Notes a use of page `depth` of a chain, where the order matters. False if it was noted before, or there is
    /// nothing to note.
    pub(crate) fn touch(&mut self, key: PageKey, stamp: u64, depth: u32) -> bool {
        if !self.has_quota() {
            return false;
        }
        let Some(entry) = self.entries.get_mut(&key) else { return false };
        let rank = (stamp, u32::MAX - depth);
        if entry.state != Stored::Present || entry.rank >= rank {
            return false;
        }
        self.order.remove(&(entry.rank, key));
        entry.rank = rank;
        self.order.insert((rank, key));
        true
    }

    pub(crate) fn remove(&mut self, key: PageKey) -> Option<Stored> {
        let entry = self.entries.remove(&key)?;
        if entry.state == Stored::Present {
            self.present -= 1;
            if self.has_quota() {
                self.order.remove(&(entry.rank, key));
            }
        }
        Some(entry.state)
    }

    /// The least recently used entry while there are more than the quota allows; it is removed.
    pub(crate) fn over_quota(&mut self) -> Option<PageKey> {
        if self.present <= self.pages_max {
            return None;
        }
        let &(_, key) = self.order.first()?;
        self.remove(key);
        Some(key)
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
        self.present = 0;
        self.foreign = 0;
        self.torn = 0;
    }

    pub(crate) fn digest(&self, digest: &mut Digest) {
        digest.word(self.uses);
        for (key, entry) in &self.entries {
            digest.value(key);
            digest.word(match entry.state {
                Stored::Present => 0,
                Stored::Writing => 1,
                Stored::Failed { retry_at } => 2 ^ retry_at.0 << 2,
            });
            digest.word(entry.rank.0);
            digest.word(u64::from(entry.rank.1));
        }
    }

    pub(crate) fn check(&self) {
        let present = self.entries.values().filter(|entry| entry.state == Stored::Present).count() as u64;
        assert_eq!(present, self.present, "present objects of the index");
        if self.has_quota() {
            assert_eq!(self.order.len() as u64, present, "order of the index");
        }
    }
}

//! What this worker knows of L3: an index by page key.
//!
//! For a private store it is the truth once the scan has ended; for a shared one it is a memory of what was written or
//! seen, good enough to not write twice and never relied on for reading. In both cases a read can still find the object
//! gone or broken: then the entry is removed and the page healed when it is computed again (sglang #38316, #39701).

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::digest::Digest;
use crate::id::PageKey;
use crate::table::Table;
use crate::time::Instant;

/// What is known of one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stored {
    /// It can be read.
    Present,
    /// It is being written.
    Writing,
    /// It is being removed, and is not written again before that has ended: L3 orders nothing.
    Discarding,
    /// Writing failed; not to be tried before the instant.
    Failed { retry_at: Instant },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: PageKey,
    /// `None`: the place is free.
    state: Option<Stored>,
    /// Place in the order of use; deeper pages of one use come first.
    rank: (u64, u32),
}

/// Index of L3.
#[derive(Debug)]
pub(crate) struct Index {
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// From key to entry.
    table: Table,
    /// Present entries by last use, kept only under a quota.
    order: BTreeSet<((u64, u32), u32)>,
    present: u64,
    pages_max: u64,
    uses: u64,
    /// Objects of other namespaces that the scan saw.
    pub(crate) foreign: u64,
    /// Broken objects that the scan saw.
    pub(crate) torn: u64,
}

/// Most entries that are reserved.
const RESERVED_MAX: u64 = 1 << 20;

impl Index {
    pub(crate) fn new(pages_max: u64) -> Self {
        Self {
            // What a quota allows is reserved, so that growing does not copy a large index at some unlucky step.
            entries: Vec::with_capacity(if pages_max <= RESERVED_MAX { pages_max as usize } else { 0 }),
            free: Vec::new(),
            table: Table::new(0),
            order: BTreeSet::new(),
            present: 0,
            pages_max,
            uses: 0,
            foreign: 0,
            torn: 0,
        }
    }

    /// True if the order of use matters.
    pub(crate) const fn has_quota(&self) -> bool {
        self.pages_max != u64::MAX
    }

    pub(crate) const fn present(&self) -> u64 {
        self.present
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.table.count() == 0
    }

    fn find(&self, key: PageKey) -> Option<u32> {
        self.table.find(key, |slot| self.entries[slot as usize].key)
    }

    pub(crate) fn get(&self, key: PageKey) -> Option<Stored> {
        self.find(key).and_then(|slot| self.entries[slot as usize].state)
    }

    pub(crate) fn has(&self, key: PageKey) -> bool {
        self.get(key) == Some(Stored::Present)
    }

    /// The place in the order of a new use of page `depth` of a chain.
    pub(crate) fn begin_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    /// When a present object was last used.
    pub(crate) fn used(&self, key: PageKey) -> Option<u64> {
        let entry = &self.entries[self.find(key)? as usize];
        (entry.state == Some(Stored::Present)).then_some(entry.rank.0)
    }

    /// Uses to come are later than this one.
    pub(crate) fn begin_after(&mut self, used: u64) {
        self.uses = self.uses.max(used);
    }

    pub(crate) fn set(&mut self, key: PageKey, state: Stored, rank: (u64, u32)) {
        let entry = Entry { key, state: Some(state), rank };
        let slot = match self.find(key) {
            Some(slot) => {
                self.unlist(slot);
                self.entries[slot as usize] = entry;
                slot
            }
            None => {
                let slot = match self.free.pop() {
                    Some(slot) => {
                        self.entries[slot as usize] = entry;
                        slot
                    }
                    None => {
                        self.entries.push(entry);
                        self.entries.len() as u32 - 1
                    }
                };
                self.table.insert(key, slot);
                slot
            }
        };
        if state == Stored::Present {
            self.present += 1;
            if self.has_quota() {
                self.order.insert((rank, slot));
            }
        }
    }

    /// Takes an entry out of the count and the order of what is present.
    fn unlist(&mut self, slot: u32) {
        let entry = self.entries[slot as usize];
        if entry.state == Some(Stored::Present) {
            self.present -= 1;
            if self.has_quota() {
                self.order.remove(&(entry.rank, slot));
            }
        }
    }

    /// Notes a use of page `depth` of a chain, where the order matters.
    pub(crate) fn touch(&mut self, key: PageKey, stamp: u64, depth: u32) {
        if !self.has_quota() {
            return;
        }
        let Some(slot) = self.find(key) else { return };
        let entry = &mut self.entries[slot as usize];
        let rank = (stamp, u32::MAX - 1 - depth);
        if entry.state != Some(Stored::Present) || entry.rank >= rank {
            return;
        }
        self.order.remove(&(entry.rank, slot));
        entry.rank = rank;
        self.order.insert((rank, slot));
    }

    pub(crate) fn remove(&mut self, key: PageKey) {
        let Some(slot) = self.find(key) else { return };
        self.unlist(slot);
        let entries = &self.entries;
        self.table.remove(key, |slot| entries[slot as usize].key);
        self.entries[slot as usize].state = None;
        self.free.push(slot);
    }

    /// The least recently used entry while there are more than the quota allows; it counts no more.
    pub(crate) fn over_quota(&mut self) -> Option<PageKey> {
        if self.present <= self.pages_max {
            return None;
        }
        let &(_, slot) = self.order.first()?;
        self.unlist(slot);
        let entry = &mut self.entries[slot as usize];
        entry.state = Some(Stored::Discarding);
        Some(entry.key)
    }

    /// Keys of what is present, in no order that means anything.
    pub(crate) fn keys_present(&self) -> Vec<PageKey> {
        self.entries.iter().filter(|entry| entry.state == Some(Stored::Present)).map(|entry| entry.key).collect()
    }

    pub(crate) fn clear(&mut self) {
        *self = Self { uses: self.uses, ..Self::new(self.pages_max) };
    }

    pub(crate) fn digest(&self, digest: &mut Digest) {
        digest.word(self.uses);
        for entry in &self.entries {
            digest.value(&entry.key);
            digest.word(match entry.state {
                None => 0,
                Some(Stored::Present) => 1,
                Some(Stored::Writing) => 2,
                Some(Stored::Discarding) => 4,
                Some(Stored::Failed { retry_at }) => 3 ^ retry_at.0 << 2,
            });
            digest.word(entry.rank.0);
            digest.word(u64::from(entry.rank.1));
        }
    }

    pub(crate) fn check(&self) {
        let present = self.entries.iter().filter(|entry| entry.state == Some(Stored::Present)).count() as u64;
        assert_eq!(present, self.present, "present objects of the index");
        let used = self.entries.iter().filter(|entry| entry.state.is_some()).count();
        assert_eq!(used, self.table.count() as usize, "entries of the index");
        assert_eq!(used + self.free.len(), self.entries.len(), "free places of the index");
        if self.has_quota() {
            assert_eq!(self.order.len() as u64, present, "order of the index");
        }
    }
}

//! Which page leaves a tier next.
//!
//! Owns the history of the pages of one tier and the set of those that may leave. Does not know the tree, pins or
//! pools: the caller says when a page becomes the unpinned end of its chain ([`Evictor::offer`]) and when it ceases to
//! be ([`Evictor::withdraw`]).
//!
//! ```text
//!              admitted            offer
//!    absent ─────────────▶ held ◀────────▶ candidate
//!       ▲                   │    withdraw      │
//!       └──────evicted──────┴◀─────victim──────┘
//! ```
//!
//! SGLang gathers all leaves by a walk over the tree at each eviction. Here the candidates are kept in order, so no
//! operation costs more than O(log candidates), and a use of a page that is no candidate is O(1).
//!
//! Ties are broken by the page's id. Stamps are equal only within the chain of one request, of which only the end is a
//! candidate, so the tie-break decides nothing but determinism.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::id::PageKey;
use crate::radix::PageId;

use ordered::Ordered;
use s3fifo::{Queue, S3Fifo};

mod ordered;
mod s3fifo;
#[cfg(test)]
mod tests;

/// What leaves first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Least recently used.
    #[default]
    Lru,
    /// Least often used, then least recently.
    Lfu,
    /// Pages used once before pages used again, each least recently used first.
    Slru,
    /// Admitted first.
    Fifo,
    /// Lowest priority, then least recently used.
    Priority,
    /// Three queues that let pages used once pass quickly (Yang et al., SOSP '23).
    S3Fifo,
}

crate::codec!(enum Policy { 0 = Lru, 1 = Lfu, 2 = Slru, 3 = Fifo, 4 = Priority, 5 = S3Fifo });

/// The eviction order of one tier.
#[derive(Clone, Debug)]
pub struct Evictor {
    policy: Policy,
    /// By page; pages that the tier does not hold are [`Standing::Absent`].
    table: Vec<Entry>,
    order: Order,
    /// Counts admissions and moves between queues: places in a queue are never equal.
    places: u64,
    /// Pages that the tier holds.
    held: usize,
}

#[derive(Clone, Debug)]
enum Order {
    Ordered(Ordered),
    S3Fifo(S3Fifo),
}

/// What is known of one page while the tier holds it.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Stamp of the last use.
    last: u64,
    /// Place in the order of admission, or in its queue of S3-FIFO.
    place: u64,
    /// Uses, the admission included.
    hits: u32,
    priority: i32,
    standing: Standing,
    /// S3-FIFO only.
    queue: Queue,
    /// S3-FIFO only: uses since it entered its queue, at most 3.
    frequency: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Standing {
    #[default]
    Absent,
    Held,
    Candidate,
}

impl Evictor {
    /// An evictor for a tier of `capacity_pages` pages (which only [`Policy::S3Fifo`] needs to know).
    #[must_use]
    pub fn new(policy: Policy, capacity_pages: u32) -> Self {
        let order = match policy {
            Policy::S3Fifo => Order::S3Fifo(S3Fifo::new(capacity_pages)),
            Policy::Lru | Policy::Lfu | Policy::Slru | Policy::Fifo | Policy::Priority => {
                Order::Ordered(Ordered::new(policy))
            }
        };
        Self { policy, table: Vec::new(), order, places: 0, held: 0 }
    }

    /// Makes room for ids below `pages`, so that growing does not copy a large table at some unlucky step.
    pub(crate) fn reserve(&mut self, pages: u32) {
        self.table.reserve_exact(pages as usize);
    }

    /// The page came into the tier, which is its first use. It is no candidate yet.
    ///
    /// # Panics
    /// If the tier holds it already.
    pub fn admitted(&mut self, page: PageId, key: PageKey, stamp: u64, priority: i32) {
        let index = page.0 as usize;
        if index >= self.table.len() {
            self.table.resize(index + 1, Entry::default());
        }
        assert_eq!(self.table[index].standing, Standing::Absent, "{page:?} is in the tier");
        self.places += 1;
        self.held += 1;
        let mut entry =
            Entry { last: stamp, place: self.places, hits: 1, priority, standing: Standing::Held, ..Entry::default() };
        if let Order::S3Fifo(queues) = &mut self.order {
            queues.admitted(&mut entry, key);
        }
        self.table[index] = entry;
    }

    /// The page was used again. O(1) unless it is a candidate whose place in the order changes.
    ///
    /// # Panics
    /// If the tier does not hold it.
    pub fn touched(&mut self, page: PageId, stamp: u64) {
        let entry = held(&mut self.table, page);
        let before = *entry;
        entry.hits = entry.hits.saturating_add(1);
        entry.last = entry.last.max(stamp);
        match &mut self.order {
            Order::Ordered(order) => order.moved(page, &before, entry),
            Order::S3Fifo(queues) => queues.touched(entry),
        }
    }

    /// The end of a use that was noted before: counts for recency only.
    ///
    /// # Panics
    /// If the tier does not hold it.
    pub fn refreshed(&mut self, page: PageId, stamp: u64) {
        let entry = held(&mut self.table, page);
        let before = *entry;
        entry.last = entry.last.max(stamp);
        match &mut self.order {
            Order::Ordered(order) => order.moved(page, &before, entry),
            Order::S3Fifo(_) => {}
        }
    }

    /// Raises the page's priority to at least `priority`.
    ///
    /// # Panics
    /// If the tier does not hold it.
    pub fn raise_priority(&mut self, page: PageId, priority: i32) {
        let entry = held(&mut self.table, page);
        let before = *entry;
        entry.priority = entry.priority.max(priority);
        match &mut self.order {
            Order::Ordered(order) => order.moved(page, &before, entry),
            Order::S3Fifo(_) => {}
        }
    }

    /// The page may leave: nothing pins it and nothing of the tier hangs from it. Does nothing if it is a candidate.
    ///
    /// # Panics
    /// If the tier does not hold it.
    pub fn offer(&mut self, page: PageId) {
        let entry = held(&mut self.table, page);
        if entry.standing == Standing::Candidate {
            return;
        }
        entry.standing = Standing::Candidate;
        match &mut self.order {
            Order::Ordered(order) => order.insert(page, entry),
            Order::S3Fifo(queues) => queues.insert(page, entry),
        }
    }

    /// The page must stay. Does nothing if it is no candidate, nor if the tier does not hold it.
    pub fn withdraw(&mut self, page: PageId) {
        let Some(entry) = self.table.get_mut(page.0 as usize) else { return };
        if entry.standing != Standing::Candidate {
            return;
        }
        entry.standing = Standing::Held;
        match &mut self.order {
            Order::Ordered(order) => order.remove(page, entry),
            Order::S3Fifo(queues) => queues.remove(page, entry),
        }
    }

    /// Chooses the candidate that leaves next; it is no candidate any more. The caller then drops it and calls
    /// [`Evictor::evicted`], or puts it back with [`Evictor::offer`], where it finds its old place.
    pub fn victim(&mut self) -> Option<PageId> {
        let page = match &mut self.order {
            Order::Ordered(order) => order.pop()?,
            Order::S3Fifo(queues) => queues.pop(&mut self.table, &mut self.places)?,
        };
        let entry = held(&mut self.table, page);
        assert_eq!(entry.standing, Standing::Candidate, "{page:?} was chosen and is no candidate");
        entry.standing = Standing::Held;
        Some(page)
    }

    /// The page has left the tier, by whatever way. S3-FIFO remembers the key of a page that leaves its small queue.
    ///
    /// # Panics
    /// If the tier does not hold it.
    pub fn evicted(&mut self, page: PageId, key: PageKey) {
        self.withdraw(page);
        let entry = core::mem::take(held(&mut self.table, page));
        self.held -= 1;
        if let Order::S3Fifo(queues) = &mut self.order {
            self.places += 1;
            queues.evicted(&entry, key, self.places);
        }
    }

    /// Which policy.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// Uses of the page since it came into the tier, its admission included; 0 if the tier does not hold it.
    #[must_use]
    pub fn hits(&self, page: PageId) -> u32 {
        self.entry(page).hits
    }

    /// Stamp of its last use; 0 if the tier does not hold it.
    #[must_use]
    pub fn last(&self, page: PageId) -> u64 {
        self.entry(page).last
    }

    /// Pages that may leave now.
    #[must_use]
    pub fn candidates(&self) -> usize {
        match &self.order {
            Order::Ordered(order) => order.len(),
            Order::S3Fifo(queues) => queues.candidates(),
        }
    }

    /// Whether the page may leave now.
    #[must_use]
    pub fn is_candidate(&self, page: PageId) -> bool {
        self.entry(page).standing == Standing::Candidate
    }

    /// Recounts.
    ///
    /// # Panics
    /// If the order and the table disagree.
    pub fn check(&self) {
        let pages = || self.table.iter().zip((0..).map(PageId));
        let held = pages().filter(|(entry, _)| entry.standing != Standing::Absent).count();
        assert_eq!(held, self.held, "pages that the tier holds");
        let candidates = pages().filter(|(entry, _)| entry.standing == Standing::Candidate);
        let mut count = 0;
        for (entry, page) in candidates {
            count += 1;
            let known = match &self.order {
                Order::Ordered(order) => order.contains(page, entry),
                Order::S3Fifo(queues) => queues.contains(page, entry),
            };
            assert!(known, "{page:?} is a candidate at another place");
        }
        assert_eq!(count, self.candidates(), "candidates in the table and in the order");
        if let Order::S3Fifo(queues) = &self.order {
            queues.check(&self.table);
        }
    }

    /// Adds everything that can change what is evicted next.
    pub fn digest(&self, digest: &mut Digest) {
        digest.value(&self.policy);
        digest.word(self.places);
        for (entry, index) in self.table.iter().zip(0_u32..) {
            if entry.standing == Standing::Absent {
                continue;
            }
            digest.word(u64::from(index) << 32 | u64::from(entry.hits));
            digest.word(entry.last);
            digest.word(entry.place);
            digest.word(
                u64::from(entry.priority as u32)
                    | u64::from(entry.frequency) << 32
                    | u64::from(entry.queue == Queue::Main) << 40
                    | u64::from(entry.standing == Standing::Candidate) << 41,
            );
        }
        if let Order::S3Fifo(queues) = &self.order {
            queues.digest(digest);
        }
    }

    fn entry(&self, page: PageId) -> Entry {
        self.table.get(page.0 as usize).copied().unwrap_or_default()
    }
}

/// The entry of a page that the tier holds. Not a method: the order is lent at the same time.
fn held(table: &mut [Entry], page: PageId) -> &mut Entry {
    let entry = table.get_mut(page.0 as usize).filter(|entry| entry.standing != Standing::Absent);
    entry.unwrap_or_else(|| panic!("{page:?} is not in the tier"))
}

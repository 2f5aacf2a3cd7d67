//! S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP '23) for a cache
//! in which not every page may leave.
//!
//! ```text
//!   admitted ──▶ [ small: 10 % ] ──used twice──▶ [ main ] ◀─┐ used: again, frequency - 1
//!                      │                            │  └────┘
//!                      ▼ evicted                    ▼ evicted
//!                  [ ghost: keys, as many as main ] ──admitted again──▶ main
//! ```
//!
//! The original pops the head of a queue and evicts, promotes or reinserts it. In a prefix cache most pages cannot
//! leave at a given moment: others hang from them, or they are pinned. The adaptation:
//!
//! 1. A page has a *place* in its queue, a number that only grows, and each queue is an ordered set of the places of
//!    its *candidates* alone. A page that may not leave is skipped by not being in the set: finding the head costs
//!    O(log candidates) however many pages are skipped, and a page that is offered later is found where it always was.
//! 2. Promotion and reinsertion happen when a candidate is reached, as in the original. Each consumes uses that paid
//!    for it, so [`S3Fifo::pop`] is O(log candidates) amortised.
//! 3. Whose turn it is depends on the pages that the small queue holds, candidates or not, save those which would be
//!    promoted when reached. Those count as main's already: the trunk of a hot prefix never comes to the end of its
//!    chain, and would otherwise fill the share of the small queue for ever, so that new pages had no time to be used
//!    a second time and main was never cleaned. If the queue whose turn it is has no candidate, the other one gives.
//! 4. A page that leaves the small queue goes to the ghost by whatever way it leaves.
//!
//! A use is a touch after the admission; as in the paper, one touch does not promote and a second one does.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::digest::Digest;
use crate::id::PageKey;
use crate::radix::PageId;

use super::{Entry, Standing};

/// Where a page is queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Queue {
    #[default]
    Small,
    Main,
}

/// The three queues of one tier.
#[derive(Clone, Debug)]
pub(super) struct S3Fifo {
    /// Candidates by place.
    small: BTreeSet<(u64, PageId)>,
    /// Candidates by place.
    main: BTreeSet<(u64, PageId)>,
    /// Pages of the small queue that would not be promoted when reached.
    cold: u32,
    /// From this many cold pages on, the small queue gives the next victim.
    cold_max: u32,
    ghost: Ghost,
}

impl S3Fifo {
    pub(super) fn new(capacity_pages: u32) -> Self {
        let cold_max = (capacity_pages / SMALL_SHARE).max(1);
        Self {
            small: BTreeSet::new(),
            main: BTreeSet::new(),
            cold: 0,
            cold_max,
            ghost: Ghost { count_max: capacity_pages.saturating_sub(cold_max) as usize, ..Ghost::default() },
        }
    }

    /// Chooses the queue of a page that comes in.
    pub(super) fn admitted(&mut self, entry: &mut Entry, key: PageKey) {
        entry.queue = if self.ghost.forget(key) { Queue::Main } else { Queue::Small };
        self.cold += u32::from(is_cold(entry));
    }

    pub(super) fn touched(&mut self, entry: &mut Entry) {
        self.cold -= u32::from(is_cold(entry));
        entry.frequency = (entry.frequency + 1).min(FREQUENCY_MAX);
        self.cold += u32::from(is_cold(entry));
    }

    pub(super) fn insert(&mut self, page: PageId, entry: &Entry) {
        let inserted = self.queue(entry.queue).insert((entry.place, page));
        assert!(inserted, "{page:?} is offered once");
    }

    pub(super) fn remove(&mut self, page: PageId, entry: &Entry) {
        let removed = self.queue(entry.queue).remove(&(entry.place, page));
        assert!(removed, "{page:?} was offered");
    }

    pub(super) fn pop(&mut self, table: &mut [Entry], places: &mut u64) -> Option<PageId> {
        loop {
            let small = !self.small.is_empty() && (self.cold >= self.cold_max || self.main.is_empty());
            let (_, page) = if small { self.small.pop_first()? } else { self.main.pop_first()? };
            let entry = &mut table[page.0 as usize];
            let leaves = if small { is_cold(entry) } else { entry.frequency == 0 };
            if leaves {
                return Some(page);
            }
            entry.frequency = if small { 0 } else { entry.frequency - 1 };
            entry.queue = Queue::Main;
            *places += 1;
            entry.place = *places;
            self.main.insert((entry.place, page));
        }
    }

    pub(super) fn evicted(&mut self, entry: &Entry, key: PageKey, place: u64) {
        self.cold -= u32::from(is_cold(entry));
        match entry.queue {
            Queue::Small => self.ghost.remember(key, place),
            Queue::Main => {}
        }
    }

    pub(super) fn candidates(&self) -> usize {
        self.small.len() + self.main.len()
    }

    pub(super) fn contains(&self, page: PageId, entry: &Entry) -> bool {
        match entry.queue {
            Queue::Small => self.small.contains(&(entry.place, page)),
            Queue::Main => self.main.contains(&(entry.place, page)),
        }
    }

    pub(super) fn check(&self, table: &[Entry]) {
        let cold = table.iter().filter(|entry| entry.standing != Standing::Absent && is_cold(entry)).count();
        assert_eq!(cold, self.cold as usize, "cold pages of the small queue");
        assert!(table.iter().all(|entry| entry.frequency <= FREQUENCY_MAX), "a frequency has two bits");
        self.ghost.check();
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        digest.word(u64::from(self.cold_max));
        for (place, key) in &self.ghost.by_place {
            digest.word(*place);
            digest.value(key);
        }
    }

    fn queue(&mut self, queue: Queue) -> &mut BTreeSet<(u64, PageId)> {
        match queue {
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }
}

/// Keys of pages that left the small queue, the oldest forgotten first.
#[derive(Clone, Debug, Default)]
struct Ghost {
    by_place: BTreeMap<u64, PageKey>,
    by_key: BTreeMap<PageKey, u64>,
    count_max: usize,
}

impl Ghost {
    fn remember(&mut self, key: PageKey, place: u64) {
        if let Some(older) = self.by_key.insert(key, place) {
            self.by_place.remove(&older);
        }
        self.by_place.insert(place, key);
        if self.by_place.len() > self.count_max {
            let (_, oldest) = self.by_place.pop_first().expect("one was just inserted");
            self.by_key.remove(&oldest);
        }
    }

    /// Whether the key was remembered; it is not any more.
    fn forget(&mut self, key: PageKey) -> bool {
        let place = self.by_key.remove(&key);
        place.is_some_and(|place| self.by_place.remove(&place).is_some())
    }

    fn check(&self) {
        assert_eq!(self.by_place.len(), self.by_key.len(), "each ghost has one place and one key");
        assert!(self.by_place.len() <= self.count_max, "the ghost has a limit");
        assert!(self.by_place.iter().all(|(place, key)| self.by_key.get(key) == Some(place)), "ghosts agree");
    }
}

/// In the small queue, and would leave when reached.
fn is_cold(entry: &Entry) -> bool {
    entry.queue == Queue::Small && entry.frequency < PROMOTE_MIN
}

/// The small queue has one tenth of the tier, as in the paper.
const SMALL_SHARE: u32 = 10;

/// Touches that carry a page from the small queue to main, as in the paper.
const PROMOTE_MIN: u8 = 2;

/// Two bits.
const FREQUENCY_MAX: u8 = 3;

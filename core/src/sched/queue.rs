//! Requests that wait for admission, in order of arrival, in arrays that a policy can scan.
//!
//! Two kinds: the *front* (retracted sequences and local recomputes, which are served before all others, in their own
//! order) and the *line*. The line is a struct of arrays: `keys` is all that a ranking scan reads (16 bytes an entry,
//! so 10,000 of them are 160 KB and are scanned in some microseconds). An entry that leaves the middle becomes a
//! tombstone; tombstones are swept when they outnumber the living, so leaving costs amortised O(1).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// What a ranking scan reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Since when it waits, in ns.
    pub(super) since: u64,
    /// What the policy weighs: service in ns, or urgency.
    pub(super) weight: u64,
}

/// A place in the line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pick {
    /// Its number; later arrivals have larger ones.
    pub(super) order: u64,
    /// Whose.
    pub(super) slot: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    pick: Pick,
    /// Later requests that were admitted while this one did not fit.
    overtaken: u32,
}

/// Waiting requests. Knows nothing of memory, policies or time.
#[derive(Debug, Default)]
pub(super) struct Queue {
    front: VecDeque<u32>,
    keys: Vec<Key>,
    entries: Vec<Entry>,
    /// Entries before this one are tombstones.
    head: usize,
    live: usize,
    next: u64,
}

const GONE: u32 = u32::MAX;

impl Queue {
    /// Appends to the line.
    pub(super) fn push(&mut self, slot: u32, since: u64, weight: u64) -> u64 {
        let pick = Pick { order: self.next, slot };
        self.next += 1;
        self.live += 1;
        self.keys.push(Key { since, weight });
        self.entries.push(Entry { pick, overtaken: 0 });
        pick.order
    }

    /// Puts before everything else.
    pub(super) fn push_front(&mut self, slot: u32) {
        self.front.push_front(slot);
    }

    /// The first of the front.
    pub(super) fn front(&self) -> Option<u32> {
        self.front.front().copied()
    }

    /// Removes from the front.
    pub(super) fn remove_front(&mut self, slot: u32) {
        let index = self.front.iter().position(|&other| other == slot).expect("it waits at the front");
        self.front.remove(index);
    }

    /// Removes from the line.
    pub(super) fn remove(&mut self, order: u64) {
        let index = self.index(order).expect("it waits in the line");
        self.entries[index].pick.slot = GONE;
        self.live -= 1;
        while self.entries.get(self.head).is_some_and(|entry| entry.pick.slot == GONE) {
            self.head += 1;
        }
        let dead = self.entries.len() - self.live;
        if dead > 64 && dead > self.live {
            self.sweep();
        }
    }

    /// Counts a later request that was admitted before this one; says how often that happened.
    pub(super) fn overtake(&mut self, order: u64) -> u32 {
        let index = self.index(order).expect("it waits in the line");
        self.entries[index].overtaken += 1;
        self.entries[index].overtaken
    }

    /// How many later requests were admitted before this one.
    pub(super) fn overtaken(&self, order: u64) -> u32 {
        self.index(order).map_or(0, |index| self.entries[index].overtaken)
    }

    /// Requests in the line.
    pub(super) const fn len(&self) -> usize {
        self.live
    }

    /// Requests at the front.
    pub(super) fn front_len(&self) -> usize {
        self.front.len()
    }

    /// True if nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.live == 0 && self.front.is_empty()
    }

    /// The line, tombstones left out, in order of arrival.
    pub(super) fn iter(&self) -> impl Iterator<Item = Pick> + '_ {
        self.entries[self.head..].iter().map(|entry| entry.pick).filter(|pick| pick.slot != GONE)
    }

    /// The front, in order.
    pub(super) fn front_iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.front.iter().copied()
    }

    /// What a scan reads: all keys from the first living entry on, tombstones included.
    pub(super) fn keys(&self) -> &[Key] {
        &self.keys[self.head..]
    }

    /// The entry of a scanned key; `None` for a tombstone.
    pub(super) fn pick(&self, index: usize) -> Option<Pick> {
        Some(self.entries[self.head + index].pick).filter(|pick| pick.slot != GONE)
    }

    fn index(&self, order: u64) -> Option<usize> {
        let found = self.entries[self.head..].binary_search_by_key(&order, |entry| entry.pick.order).ok()?;
        Some(self.head + found)
    }

    fn sweep(&mut self) {
        let entries = &self.entries;
        let mut index = 0;
        self.keys.retain(|_| {
            index += 1;
            entries[index - 1].pick.slot != GONE
        });
        self.entries.retain(|entry| entry.pick.slot != GONE);
        self.head = 0;
    }
}

//! The event queue: earliest first, and first in, first out among events of the same instant.
//!
//! The order of equal instants is part of every recorded run, so it is never left to the heap: each push takes the next
//! number of one counter.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fmt;

use pd_core::time::Instant;

/// A queue of events to come.
#[derive(Clone)]
pub struct Heap<E> {
    entries: BinaryHeap<Entry<E>>,
    pushed: u64,
}

/// An event under its key: the instant in the upper half, the push in the lower one.
#[derive(Clone)]
struct Entry<E> {
    key: u128,
    event: E,
}

impl<E> Heap<E> {
    /// Nothing to come.
    #[must_use]
    pub fn new() -> Self {
        Self { entries: BinaryHeap::new(), pushed: 0 }
    }

    /// Adds an event, behind those already there for the same instant.
    #[inline]
    pub fn push(&mut self, at: Instant, event: E) {
        let key = u128::from(at.0) << 64 | u128::from(PUSHED | self.pushed);
        self.pushed += 1;
        self.entries.push(Entry { key, event });
    }

    /// Adds an event before all that were added by [`push`](Self::push) for the same instant; among its like the lower
    /// `order` (below 2^63) goes first, whenever they were added.
    #[inline]
    pub fn push_first(&mut self, at: Instant, order: u64, event: E) {
        let key = u128::from(at.0) << 64 | u128::from(order & !PUSHED);
        self.entries.push(Entry { key, event });
    }

    /// Takes the earliest event.
    #[inline]
    pub fn pop(&mut self) -> Option<(Instant, E)> {
        self.entries.pop().map(|entry| (at(entry.key), entry.event))
    }

    /// Takes the earliest event if it is not later than `now`.
    #[inline]
    pub fn pop_until(&mut self, now: Instant) -> Option<(Instant, E)> {
        if self.peek_time()? <= now { self.pop() } else { None }
    }

    /// When the earliest event is.
    #[inline]
    #[must_use]
    pub fn peek_time(&self) -> Option<Instant> {
        self.entries.peek().map(|entry| at(entry.key))
    }

    /// Events to come.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if nothing is to come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Events ever pushed.
    #[must_use]
    pub fn pushed_count(&self) -> u64 {
        self.pushed
    }

    /// Forgets all events for which `keep` is false; the others stay in order.
    pub fn retain(&mut self, mut keep: impl FnMut(Instant, &E) -> bool) {
        self.entries.retain(|entry| keep(at(entry.key), &entry.event));
    }
}

impl<E> Default for Heap<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> fmt::Debug for Heap<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap").field("len", &self.len()).field("next", &self.peek_time()).finish()
    }
}

/// Marks the keys of [`Heap::push`].
const PUSHED: u64 = 1 << 63;

// `BinaryHeap` is a max-heap: the least key is the greatest entry. Keys are unique up to events that are the same, so the
// order is total.
impl<E> Ord for Entry<E> {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        other.key.cmp(&self.key)
    }
}

impl<E> PartialOrd for Entry<E> {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<E> Eq for Entry<E> {}

#[inline]
fn at(key: u128) -> Instant {
    Instant((key >> 64) as u64)
}

#[cfg(test)]
mod tests;

//! What other threads have for the one thread that owns a machine.
//!
//! A lock and two conditions, not a lock-free ring: a step of a worker takes 10 µs and more and an uncontended lock 20 ns,
//! the queue is bounded (a ring would have to block, too), and a wake-up that is lost stops a worker for good. The
//! receiver looks at the queue and goes to sleep under one lock, so there is no moment in which an item can slip by;
//! `tests/loom.rs` checks that, and that the same code without the lock is caught.

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use thiserror::Error;

use crate::shim::{Condvar, Mutex, MutexGuard};

/// A bounded queue with many senders and one receiver. Shared by reference or [`std::sync::Arc`].
pub struct Inbox<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    drained: Condvar,
    limit: usize,
}

struct State<T> {
    items: VecDeque<T>,
    is_closed: bool,
    /// Senders that wait for room.
    blocked: usize,
}

/// What a receiver gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Received<T> {
    /// The oldest item.
    Item(T),
    /// Nothing until the deadline.
    Timeout,
    /// Closed, and all items were received.
    Closed,
}

/// The inbox is closed; the item comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the receiver is gone")]
pub struct Closed<T>(pub T);

/// Why an item was not taken; it comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Refused<T> {
    /// As many items wait as may.
    #[error("the inbox is full")]
    Full(T),
    /// Nobody will receive it.
    #[error("the receiver is gone")]
    Closed(T),
}

impl<T> Inbox<T> {
    /// Room for `limit` items.
    ///
    /// # Panics
    /// If `limit` is 0.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        assert!(limit > 0, "an inbox for at least one item");
        let state = State { items: VecDeque::new(), is_closed: false, blocked: 0 };
        Self { state: Mutex::new(state), filled: Condvar::new(), drained: Condvar::new(), limit }
    }

    /// Adds an item, and waits while the inbox is full.
    ///
    /// # Errors
    /// [`Closed`], also if that happens while waiting.
    pub fn send(&self, item: T) -> Result<(), Closed<T>> {
        let mut state = self.lock();
        while state.items.len() >= self.limit && !state.is_closed {
            state.blocked += 1;
            state = self.drained.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            state.blocked -= 1;
        }
        if state.is_closed {
            return Err(Closed(item));
        }
        self.add(state, item);
        Ok(())
    }

    /// Adds an item if there is room.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn try_send(&self, item: T) -> Result<(), Refused<T>> {
        let state = self.lock();
        if state.is_closed {
            return Err(Refused::Closed(item));
        }
        if state.items.len() >= self.limit {
            return Err(Refused::Full(item));
        }
        self.add(state, item);
        Ok(())
    }

    /// The oldest item; waits for one until `deadline`, or for ever. An item that is there is received also if the
    /// deadline has passed.
    pub fn recv_until(&self, deadline: Option<Instant>) -> Received<T> {
        let mut state = self.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                if state.blocked > 0 {
                    self.drained.notify_one();
                }
                return Received::Item(item);
            }
            if state.is_closed {
                return Received::Closed;
            }
            let Some(deadline) = deadline else {
                state = self.filled.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            };
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Received::Timeout;
            }
            state = self.filled.wait_timeout(state, rest).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// The oldest item, if there is one.
    pub fn try_recv(&self) -> Option<T> {
        let mut state = self.lock();
        let item = state.items.pop_front();
        if item.is_some() && state.blocked > 0 {
            self.drained.notify_one();
        }
        item
    }

    /// Takes no more items. Those inside can still be received; senders that wait are refused.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.filled.notify_all();
        self.drained.notify_all();
    }

    /// True once it is closed; items may still be inside.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Items inside.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().items.len()
    }

    /// True if nothing is inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn add(&self, mut state: MutexGuard<'_, State<T>>, item: T) {
        state.items.push_back(item);
        drop(state);
        self.filled.notify_one();
    }

    /// No code of others runs under the lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Inbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("len", &self.len()).field("limit", &self.limit).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

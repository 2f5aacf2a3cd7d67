//! Every deadline of the hand-off in one ordered queue, so that a step costs what is due and not what is open.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::digest::Digest;
use crate::id::{Generation, Room, WorkerId};
use crate::time::Instant;

/// What a deadline belongs to. Each has at most one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    /// A hand-off went out in a call that could not say so; the next settle does.
    Sent,
    /// A room that was offered here.
    Source(Room),
    /// A want that no offer matches yet.
    Early(Room),
    /// The memory that an offer has ended before its want came.
    Closed(Room),
    /// A room that is wanted here.
    Sink(Room),
    /// Pages that a remote write may still hit: time to ask again.
    Fence(Generation),
    /// Time to ask a peer for a sign of life.
    Ping(WorkerId),
}

impl Timer {
    const fn reason(self) -> &'static str {
        match self {
            Self::Sent => "transfer.sent",
            Self::Source(_) => "transfer.source",
            Self::Early(_) => "transfer.early",
            Self::Closed(_) => "transfer.closed",
            Self::Sink(_) => "transfer.sink",
            Self::Fence(_) => "transfer.fence",
            Self::Ping(_) => "transfer.ping",
        }
    }

    const fn words(self) -> (u64, u64) {
        match self {
            Self::Sent => (0, 0),
            Self::Source(room) => (1, room.0),
            Self::Early(room) => (2, room.0),
            Self::Closed(room) => (3, room.0),
            Self::Sink(room) => (4, room.0),
            Self::Fence(generation) => (5, generation.0 as u64),
            Self::Ping(peer) => (6, peer.0 as u64),
        }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Instant, Timer)>,
    due: BTreeMap<Timer, Instant>,
}

impl Timers {
    /// Sets or moves a deadline.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.clear(timer);
        self.due.insert(timer, at);
        self.queue.insert((at, timer));
    }

    /// Forgets a deadline; harmless where there is none.
    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(at) = self.due.remove(&timer) {
            self.queue.remove(&(at, timer));
        }
    }

    /// Takes the next deadline that has passed.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Timer> {
        let &(at, timer) = self.queue.first().filter(|(at, _)| *at <= now)?;
        self.queue.remove(&(at, timer));
        self.due.remove(&timer);
        Some(timer)
    }

    /// The next deadline, and why.
    pub(super) fn first(&self) -> Option<(Instant, &'static str)> {
        self.queue.first().map(|(at, timer)| (*at, timer.reason()))
    }

    /// True if the deadline is set.
    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.due.contains_key(&timer)
    }

    /// Everything that has a deadline.
    pub(super) fn all(&self) -> impl Iterator<Item = Timer> {
        self.due.keys().copied()
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        for (at, timer) in &self.queue {
            let (kind, of) = timer.words();
            digest.word(at.0);
            digest.word(kind);
            digest.word(of);
        }
    }

    pub(super) fn check(&self) {
        assert_eq!(self.queue.len(), self.due.len(), "one deadline each");
        for (timer, at) in &self.due {
            assert!(self.queue.contains(&(*at, *timer)), "a deadline that is not queued");
        }
    }
}

//! All that is known of one request: plain facts, as the watcher finds them.

use std::collections::{BTreeMap, BTreeSet};

use pd_core::event::Served;
use pd_core::id::{PageKey, RequestId, Room};
use pd_core::kv::{FetchPlan, Prospect};
use pd_core::op::Fault;
use pd_core::router::{Alternative, Route, RouteRefusal};
use pd_core::sched::Standing;
use pd_core::time::Instant;

use super::path::Timeline;
use crate::record::Record;

/// One request.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// Its name.
    pub request: RequestId,
    /// Its client's view of it.
    pub record: Record,
    /// Keys of the full pages of its prompt.
    pub keys: Vec<PageKey>,
    /// What it waited for.
    pub timeline: Timeline,
    /// What the router decided, in order.
    pub decisions: Vec<Decision>,
    /// Workers that it came to, in order.
    pub visits: Vec<Visit>,
    /// Commands that moved pages for it, or asked about them.
    pub moves: Vec<Move>,
    /// Forwards that computed its prompt.
    pub chunks: Vec<Chunk>,
    /// Forwards that generated for it.
    pub steps: Steps,
    /// When it gave its pages back, and on which worker.
    pub retractions: Vec<(Instant, u32)>,
    /// Whose forwards it waited for before its first token, and how many tokens they computed.
    pub blockers: BTreeMap<RequestId, u64>,
    /// What else happened to it.
    pub notes: Vec<(Instant, String)>,
    /// What happened in L3 to each page of its prompt.
    pub history: BTreeMap<u32, Vec<(Instant, PageEvent)>>,
    /// Index of each key in the prompt.
    pub(super) places: BTreeMap<PageKey, u32>,
    /// Where it is just now.
    pub(super) legs: BTreeMap<u32, Leg>,
    /// Forwards that are counted in `blockers`.
    pub(super) waited_for: BTreeSet<(u32, u64)>,
    pub(super) room: Option<Room>,
    pub(super) is_here: bool,
    pub(super) is_over: bool,
    pub(super) has_token: bool,
}

/// A decision of the router.
#[derive(Clone, Debug)]
pub struct Decision {
    /// When.
    pub at: Instant,
    /// Where the request went, or why nowhere.
    pub result: Result<Box<Route>, RouteRefusal>,
    /// What there was to choose from.
    pub alternatives: Vec<Alternative>,
}

/// A worker that the request came to.
#[derive(Clone, Debug)]
pub struct Visit {
    /// Which worker.
    pub worker: u32,
    /// Which life of it.
    pub life: u32,
    /// Which part of the work.
    pub role: Role,
    /// When it came.
    pub at: Instant,
    /// Tokens of the prompt as it came; more than the client's after a retry.
    pub prompt: u32,
    /// What the tiers had.
    pub prospect: Option<Prospect>,
    /// Requests that were admitted there, and that waited.
    pub load: (u32, u32),
    /// The first thing that kept it from being admitted.
    pub first: Option<Standing>,
    /// The most requests that were before it.
    pub ahead: u32,
    /// What was fetched for it.
    pub plan: Option<FetchPlan>,
    /// Until when the policy would have waited for the fetch.
    pub patience: Option<Instant>,
    /// When it was admitted.
    pub admitted: Option<Instant>,
    /// Where its prompt's KV came from.
    pub served: Option<Box<Served>>,
    /// When it left, well or badly.
    pub left: Option<(Instant, String)>,
}

/// The part of the work that is a worker's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// All of it.
    Whole,
    /// The prompt.
    Prefill,
    /// The answer.
    Decode,
}

impl Role {
    /// In a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "prefill and decode",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// What a command moved.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MoveKind {
    /// L3 to L2.
    Prefetch,
    /// L2 to L1.
    LoadBack,
    /// To a peer.
    Push,
    /// It asked L3.
    Query,
}

/// A command that moved pages of the request.
#[derive(Clone, Debug)]
pub struct Move {
    /// What.
    pub kind: MoveKind,
    /// On which worker.
    pub worker: u32,
    /// To which worker, of a push.
    pub to: Option<u32>,
    /// Its number.
    pub op: u64,
    /// When it was started.
    pub at: Instant,
    /// When it ended.
    pub done: Option<Instant>,
    /// Pages, those of others in the same command included.
    pub pages: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Contiguous pieces per page and layer that a push is cut into, where the two layouts differ.
    pub pieces: u32,
    /// Pages of the prompt that failed, and why.
    pub failed: Vec<(u32, Fault)>,
    /// Commands of others that shared its device, by worker and number.
    pub shared: BTreeSet<(u32, u64)>,
    /// Requests of those, where they are known.
    pub shared_with: BTreeSet<RequestId>,
}

/// A forward that computed a part of the prompt.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// On which worker.
    pub worker: u32,
    /// Its number.
    pub op: u64,
    /// When it was launched.
    pub at: Instant,
    /// When it was done.
    pub done: Option<Instant>,
    /// Tokens before the chunk.
    pub start: u32,
    /// Tokens of the chunk.
    pub count: u32,
    /// Other sequences in the same forward, and their tokens.
    pub others: (u32, u32),
    /// Whose those are.
    pub with: Vec<RequestId>,
}

/// Forwards that generated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Steps {
    /// How many.
    pub count: u32,
    /// Sequences in them, over all.
    pub rows: u64,
    /// Prompt tokens of others that rode along.
    pub prefill_tokens: u64,
}

/// What happened to a page in L3.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PageEvent {
    /// A worker has written it.
    Persisted {
        /// Which.
        worker: u32,
    },
    /// Writing it failed.
    PersistFailed {
        /// Who tried.
        worker: u32,
        /// Why.
        fault: Fault,
    },
    /// A worker has read it.
    Fetched {
        /// Which.
        worker: u32,
    },
    /// Reading it failed.
    FetchFailed {
        /// Who tried.
        worker: u32,
        /// Why.
        fault: Fault,
    },
    /// A worker removed it, for its quota.
    Discarded {
        /// Which.
        worker: u32,
    },
    /// The script removed it.
    Removed,
    /// The script cut it short.
    Torn,
    /// The script, or an operator, emptied the store.
    Wiped,
}

impl PageEvent {
    /// True if the page can be read after it.
    #[must_use]
    pub const fn is_there(self) -> bool {
        matches!(self, Self::Persisted { .. } | Self::Fetched { .. })
    }
}

/// Where a request is just now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leg {
    pub(super) role: Role,
    pub(super) presence: Presence,
    /// It gave its pages back and waits to be resumed.
    pub(super) is_retracted: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Presence {
    /// On its way there.
    Coming,
    /// There.
    Here(Standing),
    /// It was there.
    Gone,
}

impl Story {
    /// The worker that computed the prompt, or was to.
    #[must_use]
    pub fn computing(&self) -> Option<&Visit> {
        let computes = |visit: &&Visit| visit.role != Role::Decode;
        let admitted = |visit: &&Visit| computes(visit) && visit.admitted.is_some();
        // The latest one before the first token counts.
        let in_time = |visit: &&Visit| self.record.first_token.is_none_or(|first| visit.at <= first);
        self.visits
            .iter()
            .rev()
            .filter(in_time)
            .find(admitted)
            .or_else(|| self.visits.iter().rev().filter(in_time).find(computes))
            .or_else(|| self.visits.last())
    }

    /// Moves of a kind.
    pub fn moves_of(&self, kind: MoveKind) -> impl Iterator<Item = &Move> {
        self.moves.iter().filter(move |one| one.kind == kind)
    }

    /// The latest visit of a worker that it has not left.
    pub(super) fn visit(&mut self, worker: u32) -> Option<&mut Visit> {
        self.visits.iter_mut().rev().find(|visit| visit.worker == worker && visit.left.is_none())
    }

    /// Pages of the prompt that L3 had at an instant, as far as this run has seen them come and go.
    #[must_use]
    pub fn stored_at(&self, at: Instant) -> u32 {
        let is_there = |events: &&Vec<(Instant, PageEvent)>| {
            events.iter().rev().find(|(when, _)| *when <= at).is_some_and(|(_, event)| event.is_there())
        };
        self.history.values().filter(is_there).count() as u32
    }

    /// What last happened to a page before an instant.
    #[must_use]
    pub fn last_event(&self, page: u32, at: Instant) -> Option<(Instant, PageEvent)> {
        self.history.get(&page)?.iter().rev().find(|(when, _)| *when <= at).copied()
    }
}

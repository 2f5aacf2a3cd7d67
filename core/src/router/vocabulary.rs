//! What a router learns and what it asks for.
//!
//! The shell of a router turns a [`Route`] into submits: one `Leg::Whole` on `decode` when `prefill` is `None`, else
//! `Leg::Prefill { room }` on `prefill` and `Leg::Decode { room, prefill }` on `decode`. On a route with
//! `attempt > 0` it submits the prompt plus the tokens that it has streamed already, with what is left of the limit;
//! if nothing is left, it ends the answer and reports [`RouterInput::Finished`].

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::codec;
use crate::config::Mode;
use crate::event::KvChange;
use crate::id::{Epoch, PageKey, RequestId, Room, WorkerId};

/// Everything a router can ever learn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouterInput {
    /// A deadline has passed.
    Tick,
    /// A client's request.
    Submit(Box<Ask>),
    /// The client has gone, or asked to stop.
    Cancel {
        /// Which request.
        request: RequestId,
    },
    /// A worker can be reached in some life, or cannot be reached any more.
    Worker {
        /// Which worker.
        id: WorkerId,
        /// What it is, or `None` when it is gone.
        up: Option<Member>,
    },
    /// The prefill part of an attempt is over: the first token of the attempt has arrived.
    FirstToken {
        /// Whose.
        request: RequestId,
        /// Of which attempt.
        attempt: u32,
    },
    /// The client has its whole answer.
    Finished {
        /// Which request.
        request: RequestId,
        /// Tokens of the answer, over all attempts.
        output: u32,
    },
    /// A leg of an attempt ended badly.
    Failed {
        /// Whose.
        request: RequestId,
        /// Of which attempt; failures of earlier attempts are dropped and counted.
        attempt: u32,
        /// The worker whose leg it was. Only its breaker, and only that of this leg's role, hears of it.
        worker: WorkerId,
        /// What happened.
        fault: RouteFault,
        /// Tokens streamed to the client so far, over all attempts.
        output: u32,
    },
    /// A worker says how busy it is.
    Load {
        /// Which worker.
        worker: WorkerId,
        /// How busy.
        load: LoadReport,
    },
    /// A worker says how the content of its cache changed.
    Changes {
        /// Which worker.
        worker: WorkerId,
        /// The changes, in order.
        changes: Vec<KvChange>,
    },
    /// A worker is to get no new requests in this life; those it has may finish.
    Drain {
        /// Which worker.
        worker: WorkerId,
    },
}

codec!(enum RouterInput {
    0 = Tick, 1 = Submit(ask), 2 = Cancel { request }, 3 = Worker { id, up }, 4 = FirstToken { request, attempt },
    5 = Finished { request, output }, 6 = Failed { request, attempt, worker, fault, output },
    7 = Load { worker, load }, 8 = Changes { worker, changes }, 9 = Drain { worker },
});

/// Everything a router can ever ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouterOutput {
    /// Send a request there. Ends the earlier attempt of the request, if there was one.
    Route(Box<Route>),
    /// Tell a worker to stop an attempt. Comes before the next route of the request.
    Cancel {
        /// Which request.
        request: RequestId,
        /// Which attempt.
        attempt: u32,
        /// Whom to tell.
        worker: WorkerId,
    },
    /// Tell the client that its request will not be served (any further).
    Refuse {
        /// Which request.
        request: RequestId,
        /// Why.
        refusal: RouteRefusal,
    },
}

codec!(enum RouterOutput { 0 = Route(route), 1 = Cancel { request, attempt, worker }, 2 = Refuse { request, refusal } });

/// A request as far as routing is concerned.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ask {
    /// Its name, unique in the deployment.
    pub request: RequestId,
    /// One key for each full page of the prompt.
    pub keys: Vec<PageKey>,
    /// Tokens of the prompt.
    pub length: u32,
    /// Most tokens to generate.
    pub limit: u32,
    /// Larger is more urgent. Handed on; routing does not depend on it.
    pub priority: i32,
    /// The conversation that the request continues, as the client names it. A hint, checked against the keys.
    pub session: Option<u64>,
}

codec!(struct Ask { request, keys, length, limit, priority, session });

/// One life of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Which life.
    pub epoch: Epoch,
    /// Which legs it serves.
    pub mode: Mode,
    /// Pages that its cache has room for (L1 and L2): what the index will remember of it; 0 if not known.
    pub pages: u32,
}

codec!(struct Member { epoch, mode, pages });

/// How busy a worker says it is. Refines the router's own account, which knows nothing of other routers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LoadReport {
    /// Sequences that are decoding.
    pub running: u32,
    /// Requests that wait for their prefill.
    pub waiting: u32,
    /// Prompt tokens that those have yet to compute.
    pub waiting_tokens: u64,
    /// Tokens whose KV the running sequences hold.
    pub running_tokens: u64,
}

codec!(struct LoadReport { running, waiting, waiting_tokens, running_tokens });

/// What went wrong with one leg.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RouteFault {
    /// The worker could not be reached, or the connection broke. Counts against it.
    Connection,
    /// The worker is too busy or drains (429, 503). Another one is tried; it is alive, so nothing counts against it.
    Refused,
    /// The worker gave the request up (500). Counts against it.
    Aborted,
    /// The worker stayed silent for too long (504). Counts against it.
    Timeout,
    /// The other end of the hand-off failed. Another pair is tried; nothing counts against this worker.
    Peer,
    /// The request itself is at fault (other 4xx). It is refused, and nothing counts against the worker.
    BadRequest,
}

codec!(enum RouteFault { 0 = Connection, 1 = Refused, 2 = Aborted, 3 = Timeout, 4 = Peer, 5 = BadRequest });

/// Where a request goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Which request.
    pub request: RequestId,
    /// Counts attempts from 0.
    pub attempt: u32,
    /// Who computes the prompt; `None` if `decode` serves the whole request.
    pub prefill: Option<WorkerId>,
    /// Who generates.
    pub decode: WorkerId,
    /// The hand-off; never used twice, not even after a restart of the router.
    pub room: Room,
    /// Why there.
    pub reason: Reason,
}

codec!(struct Route { request, attempt, prefill, decode, room, reason });

/// Why a request goes where it goes, in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reason {
    /// What decided on the worker that computes the prompt.
    pub cause: Cause,
    /// True if all workers of a role had their breaker open, and one was tried in spite of it.
    pub last_resort: bool,
    /// Tokens of the prompt that the computing worker probably holds (its L).
    pub cached: u32,
    /// Tokens of the prompt that the decode worker probably holds and need not be sent; only what its events told, if
    /// the policies do not ask.
    pub decode_cached: u32,
    /// Estimated time until the prompt's KV is at the decode worker, queue and transfer included.
    pub ready_ns: u64,
    /// Both sides of the append decision; only with [`Policy::AppendAware`](super::Policy::AppendAware).
    pub append: Option<AppendReason>,
}

codec!(struct Reason { cause, last_resort, cached, decode_cached, ready_ns, append });

/// What is expected of one side of the append decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outlook {
    /// Until the first token of the request.
    pub ttft_ns: u64,
    /// Time per token of the answers that are under way on the worker that will decode.
    pub tpot_ns: u64,
}

codec!(struct Outlook { ttft_ns, tpot_ns });

impl Outlook {
    /// Its cost by weights of TTFT and TPOT, per mille: a percent of the TPOT of `scale` is worth as much as a percent of
    /// its TTFT.
    pub(super) fn cost(&self, [w_ttft, w_tpot]: [u32; 2], scale: Self) -> u128 {
        let late_ns = u128::from(scale.ttft_ns) * u128::from(self.tpot_ns) / u128::from(scale.tpot_ns.max(1));
        (u128::from(w_ttft) * u128::from(self.ttft_ns)).saturating_add(u128::from(w_tpot).saturating_mul(late_ns))
    }
}

/// The two sides of the append decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AppendReason {
    /// The best prefill and decode pair, if there is one.
    pub pair: Option<Outlook>,
    /// Appending on the best decode (or unified) worker, if there is one.
    pub append: Option<Outlook>,
    /// L / (L + m) of the pair's prefill worker, per mille.
    pub pair_ratio_per_mille: u32,
    /// L / (L + m) of the worker to append on, per mille.
    pub append_ratio_per_mille: u32,
}

codec!(struct AppendReason { pair, append, pair_ratio_per_mille, append_ratio_per_mille });

impl AppendReason {
    /// Whether weights of TTFT and TPOT, per mille, speak for the append. Where both sides are as good, it is the pair.
    #[must_use]
    pub fn appends(&self, weights: [u32; 2]) -> bool {
        match (self.pair, self.append) {
            (Some(pair), Some(append)) => append.cost(weights, pair) < pair.cost(weights, pair),
            (None, Some(_)) => true,
            (_, None) => false,
        }
    }
}

/// What decided.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Cause {
    /// A draw.
    #[default]
    Random,
    /// Whose turn it was.
    RoundRobin,
    /// The less loaded of two draws.
    PowerOfTwo,
    /// The least cost of uncached suffix and queue.
    LeastCost,
    /// No worker holds enough of the prompt: the shortest queue.
    BelowThreshold,
    /// Load was out of balance: the shortest queue.
    Imbalance,
    /// Appending on the decode worker costs less than a prefill worker and a transfer.
    Append,
    /// A prefill worker and a transfer cost less than appending on the decode worker.
    Pair,
    /// There is no prefill worker to be had; the decode worker does it all.
    NoPrefill,
}

codec!(enum Cause {
    0 = Random, 1 = RoundRobin, 2 = PowerOfTwo, 3 = LeastCost, 4 = BelowThreshold, 5 = Imbalance, 6 = Append, 7 = Pair,
    8 = NoPrefill,
});

impl Cause {
    /// All causes, in the order of their tags.
    pub const ALL: [Self; 9] = [
        Self::Random,
        Self::RoundRobin,
        Self::PowerOfTwo,
        Self::LeastCost,
        Self::BelowThreshold,
        Self::Imbalance,
        Self::Append,
        Self::Pair,
        Self::NoPrefill,
    ];

    /// The name used in metrics and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round_robin",
            Self::PowerOfTwo => "power_of_two",
            Self::LeastCost => "least_cost",
            Self::BelowThreshold => "below_threshold",
            Self::Imbalance => "imbalance",
            Self::Append => "append",
            Self::Pair => "pair",
            Self::NoPrefill => "no_prefill",
        }
    }
}

/// Why a request is not served.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RouteRefusal {
    /// No worker is up that could serve it (HTTP 503).
    NoWorkers,
    /// As many requests as the router takes are live (HTTP 429).
    Overloaded {
        /// That many.
        max: u32,
    },
    /// It failed as often as it may be tried again (HTTP 502).
    RetriesExhausted {
        /// Attempts made.
        attempts: u32,
        /// How the last one failed.
        fault: RouteFault,
    },
    /// A worker found the request at fault (HTTP 400).
    BadRequest,
    /// Length, limit and keys do not fit together (HTTP 400).
    Malformed,
    /// A request of this name is live (HTTP 409). The live one goes on.
    DuplicateRequest,
}

codec!(enum RouteRefusal {
    0 = NoWorkers, 1 = Overloaded { max }, 2 = RetriesExhausted { attempts, fault }, 3 = BadRequest, 4 = Malformed,
    5 = DuplicateRequest,
});

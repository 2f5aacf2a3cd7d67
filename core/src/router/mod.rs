//! The router: which workers serve a request, and what happens when one of them fails.
//!
//! Owns the membership, the router's account of load, what workers probably cache, their breakers, and every live
//! request until it is finished, refused or cancelled. Knows no sockets and no tokens: a prompt is its page keys, and
//! the shell keeps what has been streamed.
//!
//! ```text
//!            Submit                     FirstToken, Finished
//!   (none) ─────────> routed(attempt) ──────────────────────> (none)
//!      │                │      ^ due
//!      └> Refuse        v      │
//!                     waiting (back-off; at once if the worker went away) ──> Refuse when retries are used up, or
//!                                                                             nobody came for too long
//! ```
//! Invariants:
//! 1. A request has at most one live attempt; the legs of an attempt are on workers that are up.
//! 2. A worker's account is the sum of its live legs; without live requests it is zero.
//! 3. A down or draining worker is never chosen; one with an open breaker only if its role has no other.
//! 4. No room is given twice, in this life or another.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::config::ConfigError;
use crate::cost::Cost;
use crate::digest::Digest;
use crate::event::KvChange;
use crate::id::{RequestId, Room, WorkerId};
use crate::machine::{Machine, Outbox};
use crate::mutant::Mutant;
use crate::rng::{Rng, Stream};
use crate::time::Instant;

mod append;
mod config;
mod course;
mod health;
mod holders;
mod load;
mod metrics;
mod place;
mod prefix;
mod retry;
mod route;
mod session;
mod view;
mod vocabulary;

pub use config::{Policy, RouterConfig};
use health::Health;
pub use health::{BreakerView, Role};
use load::{Leg, Worker};
pub use metrics::RouterMetrics;
pub use place::Rank;
use prefix::Index;
use route::Scratch;
use session::{Note, Sessions};
pub use view::{Alternative, MemberView, RequestView};
pub use vocabulary::{
    AppendReason, Ask, Cause, LoadReport, Member, Outlook, Reason, Route, RouteFault, RouteRefusal, RouterInput,
    RouterOutput,
};

/// The router of a deployment, or one of several.
#[derive(Debug)]
pub struct Router {
    config: RouterConfig,
    cost: Cost,
    workers: BTreeMap<WorkerId, Worker>,
    live: BTreeMap<RequestId, Live>,
    /// The waiting requests by the time of their next attempt.
    due: BTreeSet<(Instant, RequestId)>,
    health: Health,
    index: Index,
    sessions: Sessions,
    rooms: u64,
    /// The worker chosen last, for each role.
    turns: [Option<WorkerId>; 2],
    route_rng: Rng,
    backoff_rng: Rng,
    metrics: RouterMetrics,
    scratch: Scratch,
}

/// A request that is neither finished nor refused.
#[derive(Debug)]
struct Live {
    ask: Box<Ask>,
    attempt: u32,
    /// Tokens streamed so far, as far as the shell has said.
    output: u32,
    has_streamed: bool,
    /// Workers that failed it.
    avoid: Vec<WorkerId>,
    /// How the last attempt ended.
    fault: RouteFault,
    /// Since when its next attempt finds no worker.
    stranded: Option<Instant>,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Waiting { until: Instant },
    Routed(Placed),
}

/// The legs of an attempt. Of a pair, `prefill` is `None` once it is over.
#[derive(Clone, Copy, Debug)]
struct Placed {
    prefill: Option<Leg>,
    decode: Leg,
}

impl Router {
    /// A router without workers.
    ///
    /// # Errors
    /// If the configuration is out of range; see [`RouterConfig::check`].
    pub fn new(config: RouterConfig, cost: Cost) -> Result<Self, ConfigError> {
        config.check()?;
        let entity = u64::from(config.epoch.0);
        Ok(Self {
            cost,
            workers: BTreeMap::new(),
            live: BTreeMap::new(),
            due: BTreeSet::new(),
            health: Health::new(&config),
            index: Index::new(config.index_entries_max, config.seed),
            sessions: Sessions::new(config.sessions_max),
            rooms: 0,
            turns: [None; 2],
            route_rng: Rng::new(config.seed, Stream::Route, entity),
            backoff_rng: Rng::new(config.seed, Stream::Backoff, entity),
            metrics: RouterMetrics::default(),
            scratch: Scratch::default(),
            config,
        })
    }

    /// Counters.
    #[must_use]
    pub const fn metrics(&self) -> &RouterMetrics {
        &self.metrics
    }

    /// Requests that are neither finished nor refused.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// (key, worker) pairs that the index holds.
    #[must_use]
    pub const fn index_entries(&self) -> u32 {
        self.index.entries()
    }

    fn on_submit(&mut self, now: Instant, ask: Box<Ask>, out: &mut Outbox<RouterOutput>) {
        self.metrics.requests += 1;
        let request = ask.request;
        let max = self.config.live_requests_max;
        let keyed = (ask.keys.len() as u64).saturating_mul(u64::from(self.config.page_size));
        if self.live.contains_key(&request) {
            return self.refuse(request, RouteRefusal::DuplicateRequest, out);
        }
        if ask.length == 0 || ask.limit == 0 || keyed > u64::from(ask.length) {
            return self.refuse(request, RouteRefusal::Malformed, out);
        }
        if self.live.len() >= max as usize {
            return self.refuse(request, RouteRefusal::Overloaded { max }, out);
        }
        let mut live = Live {
            ask,
            attempt: 0,
            output: 0,
            has_streamed: false,
            avoid: Vec::new(),
            fault: RouteFault::Connection,
            stranded: None,
            state: State::Waiting { until: now },
        };
        if self.route(now, &mut live, out) {
            self.live.insert(request, live);
        } else {
            self.refuse(request, RouteRefusal::NoWorkers, out);
        }
    }

    fn on_cancel(&mut self, request: RequestId, out: &mut Outbox<RouterOutput>) {
        let Some(live) = self.live.remove(&request) else {
            self.metrics.stale_inputs += 1;
            return;
        };
        self.metrics.cancelled += 1;
        match live.state {
            State::Waiting { until } => {
                self.due.remove(&(until, request));
            }
            State::Routed(placed) => {
                let is_told = !self.config.mutation.is(Mutant::CancelDropped);
                self.end(request, live.attempt, placed, |_| is_told, out);
            }
        }
    }

    fn on_first_token(&mut self, request: RequestId, attempt: u32) {
        let Some(live) = self.live.get_mut(&request).filter(|live| live.attempt == attempt) else {
            self.metrics.stale_inputs += 1;
            return;
        };
        let State::Routed(placed) = &mut live.state else {
            self.metrics.stale_inputs += 1;
            return;
        };
        live.has_streamed = true;
        let over = placed.prefill.take();
        // Of a whole request only the prefill part is over.
        let rest = &mut placed.decode.load;
        let part = load::Load {
            prefill_ns: core::mem::take(&mut rest.prefill_ns),
            prefill_tokens: core::mem::take(&mut rest.prefill_tokens),
            ..load::Load::default()
        };
        let decode = placed.decode.worker;
        self.worker_mut(decode).load.remove(&part);
        if let Some(leg) = over {
            self.worker_mut(leg.worker).load.remove(&leg.load);
            self.health.on_end(leg.worker, Role::Prefill, request);
            self.health.on_success(leg.worker, Role::Prefill);
        }
    }

    fn on_finished(&mut self, request: RequestId, output: u32) {
        let Some(live) = self.live.remove(&request) else {
            self.metrics.stale_inputs += 1;
            return;
        };
        self.metrics.finished += 1;
        match live.state {
            State::Waiting { until } => {
                self.due.remove(&(until, request));
            }
            State::Routed(placed) => {
                let decode = placed.decode.worker;
                let legs = [placed.prefill.map(|leg| (leg, Role::Prefill)), Some((placed.decode, Role::Decode))];
                for (leg, role) in legs.into_iter().flatten() {
                    self.worker_mut(leg.worker).load.remove(&leg.load);
                    self.health.on_end(leg.worker, role, request);
                    self.health.on_success(leg.worker, role);
                }
                if let (Some(session), Some(&key)) = (live.ask.session, live.ask.keys.last()) {
                    let epoch = self.workers[&decode].member.epoch;
                    let pages = live.ask.keys.len() as u32;
                    let tokens = live.ask.length.saturating_add(output);
                    self.sessions.put(session, Note { worker: decode, epoch, pages, key, tokens });
                }
            }
        }
    }

    fn on_worker(&mut self, now: Instant, id: WorkerId, up: Option<Member>, out: &mut Outbox<RouterOutput>) {
        let Some(member) = up else {
            if self.workers.contains_key(&id) {
                self.lose(now, id, out);
            } else {
                self.metrics.stale_inputs += 1;
            }
            return;
        };
        match self.workers.get(&id).map(|worker| worker.member.epoch) {
            // Said again: nothing new.
            Some(epoch) if epoch == member.epoch => return,
            Some(epoch) if epoch > member.epoch => {
                self.metrics.workers_refused += 1;
                return;
            }
            Some(_) => self.lose(now, id, out),
            None => {}
        }
        if self.workers.len() >= WORKERS_MAX {
            self.metrics.workers_refused += 1;
            return;
        }
        let slot = self.index.open(member.pages);
        self.workers.insert(id, Worker::new(member, slot));
        self.call_stranded(now);
    }

    fn on_load(&mut self, now: Instant, worker: WorkerId, load: LoadReport) {
        match self.workers.get_mut(&worker) {
            Some(worker) => worker.on_report(now, load, &self.cost),
            None => self.metrics.stale_inputs += 1,
        }
    }

    fn on_changes(&mut self, worker: WorkerId, changes: Vec<KvChange>) {
        let Some(slot) = self.workers.get(&worker).map(|worker| worker.slot) else {
            self.metrics.stale_inputs += 1;
            return;
        };
        for change in changes {
            match change {
                KvChange::Stored { key, parent: _, tier } => self.index.stored(slot, key, tier),
                KvChange::Removed { key, tier } => self.index.removed(slot, key, tier),
                KvChange::Cleared { tier } => self.index.cleared(slot, tier),
            }
        }
    }

    fn on_drain(&mut self, worker: WorkerId) {
        match self.workers.get_mut(&worker) {
            Some(worker) => worker.is_draining = true,
            None => self.metrics.stale_inputs += 1,
        }
    }

    fn refuse(&mut self, request: RequestId, refusal: RouteRefusal, out: &mut Outbox<RouterOutput>) {
        self.metrics.refused += 1;
        match refusal {
            RouteRefusal::NoWorkers => self.metrics.refused_no_workers += 1,
            RouteRefusal::Overloaded { .. } => self.metrics.refused_overloaded += 1,
            RouteRefusal::RetriesExhausted { .. } => self.metrics.refused_retries += 1,
            RouteRefusal::BadRequest | RouteRefusal::Malformed | RouteRefusal::DuplicateRequest => {}
        }
        out.push(RouterOutput::Refuse { request, refusal });
    }

    fn worker_mut(&mut self, id: WorkerId) -> &mut Worker {
        self.workers.get_mut(&id).expect("legs are on workers that are up")
    }
}

impl Machine for Router {
    type Input = RouterInput;
    type Output = RouterOutput;

    fn step(&mut self, now: Instant, input: RouterInput, out: &mut Outbox<RouterOutput>) {
        // Before the input, so that a request that comes with the breaker's time can be its probe.
        self.health.on_time(now);
        match input {
            RouterInput::Tick => {}
            RouterInput::Submit(ask) => self.on_submit(now, ask, out),
            RouterInput::Cancel { request } => self.on_cancel(request, out),
            RouterInput::Worker { id, up } => self.on_worker(now, id, up, out),
            RouterInput::FirstToken { request, attempt } => self.on_first_token(request, attempt),
            RouterInput::Finished { request, output } => self.on_finished(request, output),
            RouterInput::Failed { request, attempt, worker, fault, output } => {
                self.on_failed(now, (request, attempt), worker, (fault, output), out);
            }
            RouterInput::Load { worker, load } => self.on_load(now, worker, load),
            RouterInput::Changes { worker, changes } => self.on_changes(worker, changes),
            RouterInput::Drain { worker } => self.on_drain(worker),
        }
        self.settle(now, out);
    }

    fn deadline(&self) -> Option<(Instant, &'static str)> {
        let retry = self.due.first().map(|&(until, _)| (until, "a request is to be tried again"));
        let breaker = self.health.deadline().map(|until| (until, "a breaker becomes half-open"));
        [retry, breaker].into_iter().flatten().min()
    }

    fn digest(&self, digest: &mut Digest) {
        for (id, worker) in &self.workers {
            digest.value(id);
            worker.digest(digest);
        }
        for live in self.live.values() {
            digest.value(&live.ask);
            digest.value(&(live.attempt, live.output, live.has_streamed));
            digest.value(&live.avoid);
            digest.value(&live.fault);
            digest.value(&live.stranded);
            match live.state {
                State::Waiting { until } => digest.value(&until),
                State::Routed(Placed { prefill, decode }) => digest.value(&(prefill, decode)),
            }
        }
        self.health.digest(digest);
        self.index.digest(digest);
        self.sessions.digest(digest);
        digest.value(&self.rooms);
        for turn in &self.turns {
            digest.value(turn);
        }
        for rng in [&self.route_rng, &self.backoff_rng] {
            digest.word(rng.position() as u64);
        }
    }

    fn check(&self) {
        let mut loads: BTreeMap<WorkerId, load::Load> = BTreeMap::new();
        let mut waiting = 0;
        for (request, live) in &self.live {
            assert_eq!(*request, live.ask.request);
            assert!(live.attempt <= self.config.retries_max);
            match live.state {
                State::Waiting { until } => {
                    assert!(self.due.contains(&(until, *request)));
                    waiting += 1;
                }
                State::Routed(placed) => {
                    for leg in placed.prefill.iter().chain([&placed.decode]) {
                        loads.entry(leg.worker).or_default().add(&leg.load);
                    }
                }
            }
        }
        assert_eq!(waiting, self.due.len());
        assert!(loads.keys().all(|id| self.workers.contains_key(id)));
        for (id, worker) in &self.workers {
            assert_eq!(worker.load, loads.get(id).copied().unwrap_or_default());
        }
        self.health.check(|id| self.workers.contains_key(&id));
        self.index.check();
        self.sessions.check();
    }
}

impl Router {
    /// The next room: the router's life above, a counter below.
    fn next_room(&mut self) -> Room {
        assert!(self.rooms < 1 << ROOM_COUNTER_BITS);
        let room = u64::from(self.config.epoch.0) << ROOM_COUNTER_BITS | self.rooms;
        self.rooms += u64::from(!self.config.mutation.is(Mutant::RoomReused));
        Room(room)
    }
}

/// Most workers of a deployment.
const WORKERS_MAX: usize = 4096;
/// Rooms of one life of a router: a million a second for twelve days.
const ROOM_COUNTER_BITS: u32 = 40;

#[cfg(test)]
mod tests;

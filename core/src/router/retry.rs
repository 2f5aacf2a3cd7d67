//! What happens to a request when a worker fails it or goes away.

use super::{Live, Placed, RouteFault, RouteRefusal, Router, RouterOutput, State};
use crate::id::{RequestId, WorkerId};
use crate::machine::Outbox;
use crate::mutant::Mutant;
use crate::router::Role;
use crate::time::{Instant, nanos};

impl Router {
    /// A leg ended badly: its breaker hears of it, and the request is tried again after a pause.
    pub(super) fn on_failed(
        &mut self,
        now: Instant,
        (request, attempt): (RequestId, u32),
        worker: WorkerId,
        (fault, output): (RouteFault, u32),
        out: &mut Outbox<RouterOutput>,
    ) {
        let is_any = self.config.mutation.is(Mutant::AttemptIgnored);
        let live = self.live.get(&request).filter(|live| live.attempt == attempt || is_any);
        let routed = live.and_then(|live| match live.state {
            State::Routed(placed) => placed.role_of(worker).map(|role| (role, placed)),
            State::Waiting { .. } => None,
        });
        let Some((role, placed)) = routed else {
            self.metrics.stale_inputs += 1;
            return;
        };
        let mut live = self.live.remove(&request).expect("just found");
        live.has_streamed |= output > 0;
        live.output = live.output.max(output);
        live.fault = fault;

        // A worker that has answered has ended its leg; one that is silent may still be at work.
        let is_silent = matches!(fault, RouteFault::Connection | RouteFault::Timeout);
        self.end(request, attempt, placed, |other| other != worker || is_silent, out);
        match fault {
            RouteFault::Connection | RouteFault::Aborted | RouteFault::Timeout => {
                self.metrics.breakers_opened += u64::from(self.health.on_failure(now, worker, role));
            }
            RouteFault::Refused | RouteFault::Peer => {}
            RouteFault::BadRequest => return self.refuse(request, RouteRefusal::BadRequest, out),
        }
        if fault != RouteFault::Peer && !live.avoid.contains(&worker) {
            live.avoid.push(worker);
        }
        let pause = self.backoff_ns(live.attempt);
        self.wait(live, now.after_ns(pause), out);
    }

    /// A worker is gone: what it holds is forgotten, and its requests are tried elsewhere at once.
    pub(super) fn lose(&mut self, now: Instant, id: WorkerId, out: &mut Outbox<RouterOutput>) {
        self.metrics.workers_lost += 1;
        let hit = |(request, live): (&RequestId, &Live)| match live.state {
            State::Routed(placed) if placed.role_of(id).is_some() => Some((*request, placed)),
            State::Routed(_) | State::Waiting { .. } => None,
        };
        for (request, placed) in self.live.iter().filter_map(hit).collect::<alloc::vec::Vec<_>>() {
            let mut live = self.live.remove(&request).expect("just found");
            self.end(request, live.attempt, placed, |other| other != id, out);
            live.fault = RouteFault::Connection;
            self.wait(live, now, out);
        }
        let worker = self.workers.remove(&id).expect("the caller has looked");
        assert_eq!(worker.load, super::load::Load::default());
        self.index.close(worker.slot);
        self.health.forget(id);
    }

    /// Gives the waiting requests their next attempt whose time has come; a bounded number of them per step.
    pub(super) fn settle(&mut self, now: Instant, out: &mut Outbox<RouterOutput>) {
        for _ in 0..ROUTES_PER_STEP {
            let Some(&(until, request)) = self.due.first() else { return };
            if until > now {
                return;
            }
            self.due.pop_first();
            let mut live = self.live.remove(&request).expect("waiting requests are live");
            if self.route(now, &mut live, out) {
                live.stranded = None;
                let again = if live.has_streamed { &mut self.metrics.migrated } else { &mut self.metrics.retried };
                *again += 1;
                self.live.insert(request, live);
            } else {
                self.strand(now, live, out);
            }
        }
    }

    /// Nobody is there. That costs no attempt: the request waits for a worker, up to its patience.
    fn strand(&mut self, now: Instant, mut live: Live, out: &mut Outbox<RouterOutput>) {
        let request = live.ask.request;
        let since = *live.stranded.get_or_insert(now);
        let until = since + self.config.queue_timeout;
        if until <= now {
            return self.refuse(request, RouteRefusal::NoWorkers, out);
        }
        live.state = State::Waiting { until };
        self.due.insert((until, request));
        self.live.insert(request, live);
    }

    /// A worker is there: those that wait for one look again in this step.
    pub(super) fn call_stranded(&mut self, now: Instant) {
        for (&request, live) in self.live.iter_mut().filter(|(_, live)| live.stranded.is_some()) {
            if let State::Waiting { until } = &mut live.state
                && *until > now
            {
                self.due.remove(&(*until, request));
                self.due.insert((now, request));
                *until = now;
            }
        }
    }

    /// Takes the legs off their workers, and tells those of them that `tell` names.
    pub(super) fn end(
        &mut self,
        request: RequestId,
        attempt: u32,
        placed: Placed,
        tell: impl Fn(WorkerId) -> bool,
        out: &mut Outbox<RouterOutput>,
    ) {
        let legs = [placed.prefill.map(|leg| (leg, Role::Prefill)), Some((placed.decode, Role::Decode))];
        for (leg, role) in legs.into_iter().flatten() {
            self.worker_mut(leg.worker).load.remove(&leg.load);
            self.health.on_end(leg.worker, role, request);
            if tell(leg.worker) {
                out.push(RouterOutput::Cancel { request, attempt, worker: leg.worker });
            }
        }
    }

    /// Lets a request wait for its next attempt, if it may have one.
    fn wait(&mut self, mut live: Live, until: Instant, out: &mut Outbox<RouterOutput>) {
        let request = live.ask.request;
        if live.attempt >= self.config.retries_max {
            let refusal = RouteRefusal::RetriesExhausted { attempts: live.attempt + 1, fault: live.fault };
            return self.refuse(request, refusal, out);
        }
        live.attempt += 1;
        live.state = State::Waiting { until };
        self.due.insert((until, request));
        self.live.insert(request, live);
    }

    /// The pause after attempt `attempt`: exponential, bounded, jittered.
    fn backoff_ns(&mut self, attempt: u32) -> u64 {
        let max = nanos(self.config.backoff_max).min(PAUSE_NS_MAX);
        let mut pause = nanos(self.config.backoff_base).min(max);
        for _ in 0..attempt {
            pause =
                (u128::from(pause) * u128::from(self.config.backoff_growth_per_mille) / 1000).min(max.into()) as u64;
        }
        let jitter = u64::from(self.config.backoff_jitter_per_mille);
        let per_mille = 1000 - jitter + self.backoff_rng.below(2 * jitter + 1);
        (u128::from(pause) * u128::from(per_mille) / 1000) as u64
    }
}

impl Placed {
    /// The live leg that `worker` serves.
    fn role_of(&self, worker: WorkerId) -> Option<Role> {
        if self.decode.worker == worker {
            Some(Role::Decode)
        } else if self.prefill.is_some_and(|leg| leg.worker == worker) {
            Some(Role::Prefill)
        } else {
            None
        }
    }
}

/// Most requests that are tried again in one step.
const ROUTES_PER_STEP: usize = 64;
/// One day.
const PAUSE_NS_MAX: u64 = 86_400_000_000_000;

//! What the router weighs and what it holds: queries for those who explain a run. Nothing is kept for them.

use alloc::vec::Vec;

use super::health::{BreakerView, Role};
use super::place::{Candidate, Estimate, Rank};
use super::route::Scratch;
use super::vocabulary::{Ask, Member};
use super::{Router, RouterConfig, State};
use crate::config::Mode;
use crate::cost::Cost;
use crate::id::{RequestId, WorkerId};
use crate::time::Instant;

/// A worker that a request could be sent to, with what that would cost by the router's estimates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Alternative {
    /// Which worker.
    pub worker: WorkerId,
    /// Which legs it serves.
    pub mode: Mode,
    /// How willingly it is taken.
    pub rank: Rank,
    /// Tokens of the prompt that it probably holds.
    pub cached: u32,
    /// Legs that it has.
    pub legs: u32,
    /// Those of them that decode or will.
    pub decodes: u32,
    /// Prefill work before this one, and what its running sequences add to a step.
    pub queue_ns: u64,
    /// Computing what it does not hold.
    pub prefill_ns: u64,
    /// Sending it what it does not hold.
    pub transfer_ns: u64,
}

/// A worker as the router knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemberView {
    /// Which worker.
    pub worker: WorkerId,
    /// Its life and mode.
    pub member: Member,
    /// It gets no new requests.
    pub is_draining: bool,
    /// Legs that it has.
    pub legs: u32,
    /// Those of them that decode or will.
    pub decodes: u32,
    /// Estimated time of its prefills that are not over.
    pub prefill_ns: u64,
    /// Pages that the index counts on there.
    pub held: u32,
}

/// A request that is neither finished nor refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestView {
    /// Which request.
    pub request: RequestId,
    /// Counts attempts from 0.
    pub attempt: u32,
    /// Tokens that the client has.
    pub output: u32,
    /// When its next attempt is due; none while one is under way.
    pub waits_until: Option<Instant>,
    /// Who computes its prompt, until that is over.
    pub prefill: Option<WorkerId>,
    /// Who generates.
    pub decode: Option<WorkerId>,
}

impl Router {
    /// Its configuration.
    #[must_use]
    pub const fn config(&self) -> &RouterConfig {
        &self.config
    }

    /// What it believes that things cost.
    #[must_use]
    pub const fn cost(&self) -> &Cost {
        &self.cost
    }

    /// What a routing decision on this request would choose from, in order of ids; for a request that is live, with
    /// regard to where it has failed. Looking changes nothing.
    #[must_use]
    pub fn candidates(&self, now: Instant, ask: &Ask) -> Vec<Alternative> {
        let live = self.live.get(&ask.request);
        let avoid = live.map_or(&[][..], |live| &live.avoid);
        let length = ask.length.saturating_add(live.map_or(0, |live| live.output));
        let mut scratch = Scratch::default();
        self.find_candidates(now, ask, avoid, &mut scratch);
        let mut known = Vec::new();
        let mut estimate = Estimate::new(&self.config, &self.cost, length, &mut known);
        let mut found: Vec<Alternative> = scratch
            .all()
            .map(|candidate: &Candidate| Alternative {
                worker: candidate.id,
                mode: self.workers[&candidate.id].member.mode,
                rank: candidate.rank,
                cached: candidate.cached.min(length),
                legs: candidate.load.legs,
                decodes: candidate.load.decodes,
                queue_ns: candidate.load.prefill_ns.saturating_add(estimate.batch_ns(&candidate.load)),
                prefill_ns: estimate.prefill_ns(candidate.cached),
                transfer_ns: estimate.transfer_ns(candidate.cached),
            })
            .collect();
        found.sort_by_key(|alternative| alternative.worker);
        found
    }

    /// All workers that can be reached, by name.
    pub fn members(&self) -> impl Iterator<Item = MemberView> + '_ {
        self.workers.iter().map(|(&id, worker)| MemberView {
            worker: id,
            member: worker.member,
            is_draining: worker.is_draining,
            legs: worker.load.legs,
            decodes: worker.load.decodes,
            prefill_ns: worker.load.prefill_ns,
            held: self.index.held(worker.slot),
        })
    }

    /// Breakers that have something against a worker.
    pub fn breakers(&self) -> impl Iterator<Item = (WorkerId, Role, BreakerView)> + '_ {
        self.health.views()
    }

    /// All requests that are neither finished nor refused, by name.
    pub fn requests(&self) -> impl Iterator<Item = RequestView> + '_ {
        self.live.iter().map(|(&request, live)| {
            let (waits_until, placed) = match live.state {
                State::Waiting { until } => (Some(until), None),
                State::Routed(placed) => (None, Some(placed)),
            };
            RequestView {
                request,
                attempt: live.attempt,
                output: live.output,
                waits_until,
                prefill: placed.and_then(|placed| placed.prefill).map(|leg| leg.worker),
                decode: placed.map(|placed| placed.decode.worker),
            }
        })
    }
}

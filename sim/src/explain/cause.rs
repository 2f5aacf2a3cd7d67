//! What a request waits for at an instant, from where its legs stand and what is in flight.

use pd_core::id::RequestId;
use pd_core::kv::FetchStage;
use pd_core::sched::{Hold, Standing, State, Wait};

use super::flights::{Doing, Flight};
use super::path::{Cause, Part};
use super::story::{Leg, Presence, Role, Story};
use super::watch::Watcher;

impl Watcher {
    pub(super) fn part(&self, story: &Story) -> Part {
        let on = |cause, worker| Part { cause, worker: Some(worker) };
        let Some((&index, leg)) = story.legs.iter().find(|(_, leg)| leg.role != Role::Prefill) else {
            let cause = if story.decisions.is_empty() { Cause::Routing } else { Cause::Backoff };
            return Part { cause, worker: None };
        };
        match leg.presence {
            Presence::Coming if self.site.workers[index as usize].life.is_none() => on(Cause::Away, index),
            Presence::Coming => Part { cause: Cause::Routing, worker: None },
            Presence::Gone => Part { cause: Cause::Backoff, worker: None },
            Presence::Here(standing) if standing.stage == State::Receiving => {
                let Wait::Peer(source) = standing.wait else { return on(Cause::Handoff, index) };
                match story.legs.get(&source.0).map(|leg| (leg.presence, leg)) {
                    None => on(Cause::Want, index),
                    Some((Presence::Coming, _)) => Part { cause: Cause::Routing, worker: None },
                    Some((Presence::Gone, _)) => on(Cause::Handoff, index),
                    Some((Presence::Here(standing), leg)) => on(self.cause(story, source.0, leg, &standing), source.0),
                }
            }
            Presence::Here(standing) => on(self.cause(story, index, leg, &standing), index),
        }
    }

    /// What a request waits for on one worker.
    fn cause(&self, story: &Story, worker: u32, leg: &Leg, standing: &Standing) -> Cause {
        match (standing.stage, standing.wait) {
            (State::Offered, _) => Cause::Want,
            (State::Retracting, _) => Cause::Retracted,
            (State::Waiting, _) if leg.is_retracted => Cause::Retracted,
            (State::Waiting, Wait::Memory) | (_, Wait::Memory) => Cause::Memory,
            (State::Waiting, Wait::Fetch(_)) => match standing.fetch.map(|plan| plan.stage) {
                Some(FetchStage::Index) => Cause::Scan,
                Some(FetchStage::Querying) => Cause::Query,
                Some(FetchStage::Parked) => Cause::Room,
                Some(FetchStage::Fetching) => Cause::Fetch,
                // It has arrived; the next forward takes the request.
                Some(FetchStage::Done) | None => Cause::Queue,
            },
            (State::Waiting, _) => match standing.hold {
                Some(Hold::Leader { .. }) => Cause::Leader,
                _ => Cause::Queue,
            },
            (_, Wait::Op(op)) => self.op_cause(story.request, worker, op.seq),
            (State::HandingOver, Wait::Handoff) => {
                let is_ours = |flight: &Flight| flight.what == Doing::Push && flight.room == story.room;
                let has_push = self.flights[worker as usize].values().any(is_ours);
                if has_push { Cause::Push } else { Cause::Handoff }
            }
            (_, Wait::Peer(_)) => Cause::Want,
            (_, Wait::Handoff) => Cause::Handoff,
            (_, Wait::Queue | Wait::Fetch(_)) => Cause::Queue,
        }
    }

    /// What a command in flight means for a request that waits for it.
    fn op_cause(&self, request: RequestId, worker: u32, op: u64) -> Cause {
        let flights = &self.flights[worker as usize];
        let Some(flight) = flights.get(&op) else { return Cause::Unknown };
        match flight.what {
            Doing::LoadBack => return Cause::LoadBack,
            Doing::Forward => {}
            Doing::Query => return Cause::Query,
            Doing::Prefetch => return Cause::Fetch,
            Doing::Push => return Cause::Push,
            Doing::Persist | Doing::Discard | Doing::Wipe | Doing::Else => return Cause::Unknown,
        }
        let first = flights.range(..=op).map(|(_, flight)| flight).find(|flight| flight.what == Doing::Forward);
        let Some(first) = first.filter(|first| first.runs.iter().any(|(whose, _)| *whose == request)) else {
            return Cause::Others;
        };
        let is_loading =
            first.after.iter().any(|prior| flights.get(prior).is_some_and(|flight| flight.what == Doing::LoadBack));
        if is_loading { Cause::LoadBack } else { Cause::Forward }
    }
}

//! Where each request stands and what it waits for: queries for those who explain a run. Nothing is kept for them.

use crate::id::RequestId;
use crate::kv::{FetchPlan, Kv};
use crate::op::Leg;

use super::Wait;
use super::{Sched, State};

/// Where an unfinished request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Which request.
    pub request: RequestId,
    /// Where it is in its life here.
    pub stage: State,
    /// Which part of the work is this worker's. A hand-off that has landed or was given up leaves [`Leg::Whole`].
    pub leg: Leg,
    /// What it waits for.
    pub wait: Wait,
    /// Why it is not admitted, while it waits for its turn or for memory.
    pub hold: Option<Hold>,
    /// Waiting requests that arrived before it, those that were admitted once and came back included.
    pub ahead: u32,
    /// Later requests that were admitted before it because it did not fit.
    pub overtaken: u32,
    /// What is fetched from L3 for it, while it waits.
    pub fetch: Option<FetchPlan>,
    /// Tokens to compute or receive before it can go on: the prompt, and after a retraction the answer so far.
    pub prompt: u32,
    /// Tokens whose KV will be there when all forwards in flight are done.
    pub computed: u32,
    /// Tokens whose KV is there.
    pub committed: u32,
    /// Tokens generated.
    pub generated: u32,
    /// Most tokens to generate.
    pub limit: u32,
    /// Device pages that it holds.
    pub pages: u32,
    /// Forwards in flight that compute for it.
    pub flights: u32,
}

/// Why a waiting request was not admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// As many forwards as may be are in flight: admission is for the next one.
    Device {
        /// That many.
        forwards: u32,
    },
    /// As many sequences as may be are admitted.
    Running {
        /// That many.
        max: u32,
    },
    /// Another request computes a prefix of this prompt; it is cheaper to wait for it.
    Leader {
        /// Which.
        request: RequestId,
    },
    /// Too few device pages can be promised.
    Pages {
        /// It needs so many now and in its next steps.
        needed: u64,
        /// So many are free, or hold cache that nobody uses.
        available: u32,
    },
    /// The forwards that were composed since had no room left for it.
    Budget,
}

impl Sched {
    /// Where an unfinished request stands; `None` if there is no such request.
    #[must_use]
    pub fn standing(&self, kv: &Kv, request: RequestId) -> Option<Standing> {
        Some(self.standing_of(kv, *self.by_request.get(&request)?))
    }

    /// All unfinished requests, by name.
    pub fn standings<'a>(&'a self, kv: &'a Kv) -> impl Iterator<Item = Standing> + 'a {
        self.by_request.values().map(|&slot| self.standing_of(kv, slot))
    }

    fn standing_of(&self, kv: &Kv, slot: u32) -> Standing {
        let sequence = self.slots.at(slot);
        let request = sequence.request;
        let queue = if sequence.is_sink() { &self.sinks } else { &self.queue };
        let (mut ahead, mut overtaken) = (0, 0);
        if sequence.state == State::Waiting {
            ahead = match sequence.order {
                Some(order) => {
                    overtaken = queue.overtaken(order);
                    queue.front_len() + queue.iter().take_while(|pick| pick.order < order).count()
                }
                None => queue.front_iter().take_while(|&other| other != slot).count(),
            } as u32;
        }
        let wait = self.waiting_on(request).unwrap_or(Wait::Queue);
        Standing {
            request,
            stage: sequence.state,
            leg: sequence.leg,
            wait,
            hold: if sequence.state == State::Waiting { self.hold(kv, slot, wait) } else { None },
            ahead,
            overtaken,
            fetch: kv.fetch_plan(request),
            prompt: sequence.prompt.length,
            computed: sequence.computed,
            committed: sequence.committed,
            generated: sequence.produced,
            limit: sequence.limit,
            pages: sequence.lease.as_ref().map_or(0, |lease| lease.table().len() as u32),
            flights: sequence.flights,
        }
    }

    fn hold(&self, kv: &Kv, slot: u32, wait: Wait) -> Option<Hold> {
        match wait {
            Wait::Op(_) | Wait::Peer(_) | Wait::Handoff | Wait::Fetch(_) => None,
            Wait::Memory => {
                let sequence = self.slots.at(slot);
                let needed = sequence.needs.0.max(sequence.floor);
                Some(Hold::Pages { needed, available: kv.available() })
            }
            Wait::Queue => {
                let sequence = self.slots.at(slot);
                let hit = kv.lookup(&sequence.prompt);
                let leader = sequence.prompt.keys.first().and_then(|first| self.leaders.get(first));
                Some(match leader {
                    Some(&leader) if self.follows(slot, (hit.device + hit.host) * self.page_size) => {
                        Hold::Leader { request: self.slots.at(leader).request }
                    }
                    _ if self.admitted >= self.config.max_running_requests => {
                        Hold::Running { max: self.config.max_running_requests }
                    }
                    _ if !sequence.is_sink() && self.flights.len() >= self.flights_max => {
                        Hold::Device { forwards: self.flights.len() as u32 }
                    }
                    _ => Hold::Budget,
                })
            }
        }
    }
}

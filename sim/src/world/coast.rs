//! Workers that only decode live their steps many at a time.
//!
//! After a step that did nothing but hand on tokens and start the next forward, the ends of the forwards to come are
//! planned, and one event is set at the end of the plan. Whatever else comes to the worker before is preceded by
//! [`WorldOf::land`], which lives the steps up to then. The run is the same as without, to the bit of its hash: runs with
//! observers or checkers see each step alone, and tests compare.
//!
//! ```text
//!   events   |F--F--F--F--F--F--F--F-- ... --F|        one by one
//!            |F======================= ... ==C|        a plan that nobody disturbs
//!            |F=========|letter|F============C|        landed, then planned again
//! ```

use pd_core::event::Event;
use pd_core::id::{RequestId, Token};
use pd_core::op::{Command, Output};
use pd_core::time::Instant;

use super::WorldOf;
use crate::lane::{Lanes, Mark, Plan};
use crate::node::Serve;

/// A worker's plan, and how far plans go.
#[derive(Debug)]
pub(crate) struct Coasting {
    /// The plan holds and its steps have not been lived.
    is_on: bool,
    /// Number of the plan, for the event at its end.
    number: u64,
    /// Steps of the next plan at most: longer ones as long as nobody disturbs them.
    reach: u32,
    plan: Plan,
    outputs: Vec<Output>,
    tokens: Vec<Token>,
}

impl Default for Coasting {
    fn default() -> Self {
        Self {
            is_on: false,
            number: 0,
            reach: REACH_MIN,
            plan: Plan::default(),
            outputs: Vec::new(),
            tokens: Vec::new(),
        }
    }
}

impl Coasting {
    pub(super) const fn is_on(&self) -> bool {
        self.is_on
    }
}

impl<M: Serve> WorldOf<M> {
    /// Plans the next steps of a worker that has just done nothing but decode.
    pub(super) fn take_off(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        let Some(pump) = &node.pump else { return };
        let steps = pump.machine.coast_steps().min(node.coasting.reach);
        if steps < REACH_MIN {
            return;
        }
        let until = pump.deadline().map(|(at, _)| at);
        if !node.lanes.plan_coast(steps, until, &mut node.coasting.plan) {
            return;
        }
        node.coasting.is_on = true;
        node.coasting.number += 1;
        let planned = node.coasting.plan.steps();
        let key = node.lanes.coast_place(planned).key();
        let mark = Mark::Coast { node: index, plan: node.coasting.number };
        self.fabric.heap.push_first(node.coasting.plan.ends[planned], key, mark);
    }

    /// The end of a plan.
    pub(super) fn end_coast(&mut self, index: u32, plan: u64) {
        self.events -= 1;
        let coasting = &mut self.nodes[index as usize].coasting;
        if coasting.is_on && coasting.number == plan {
            coasting.reach = (coasting.reach * 2).min(REACH_MAX);
            self.fly(index, self.now, true);
        }
    }

    /// Lives what a worker has planned up to the present, before something else comes to it.
    #[inline]
    pub(crate) fn land(&mut self, index: u32) {
        if self.nodes[index as usize].coasting.is_on {
            self.disturb(index, self.now, true);
        }
    }

    /// The same for what comes from links and disks: they go before forwards that end at the same instant.
    #[inline]
    pub(super) fn land_before(&mut self, index: u32) {
        if self.nodes[index as usize].coasting.is_on {
            self.disturb(index, self.now, false);
        }
    }

    /// Lands all workers that have a part in a request.
    pub(super) fn land_request(&mut self, request: RequestId) {
        let [prefill, decode] = self.clients.workers(request);
        for index in [prefill, decode].into_iter().flatten() {
            self.land(index);
        }
    }

    /// Lands everybody at the end of a run, and returns the last instant at which anything happened.
    pub(super) fn land_all(&mut self, until: Instant) -> Instant {
        let mut last = self.now;
        for index in 0..self.nodes.len() as u32 {
            if self.nodes[index as usize].coasting.is_on {
                last = last.max(self.fly(index, until, true));
            }
        }
        last
    }

    #[cold]
    fn disturb(&mut self, index: u32, now: Instant, is_inclusive: bool) {
        let coasting = &mut self.nodes[index as usize].coasting;
        coasting.reach = (coasting.reach / 2).max(REACH_MIN);
        self.fly(index, now, is_inclusive);
    }

    /// Lives the steps of a plan that end before `now`, or at `now` if inclusive; returns the end of the last one.
    fn fly(&mut self, index: u32, now: Instant, is_inclusive: bool) -> Instant {
        let node = &mut self.nodes[index as usize];
        let Coasting { is_on, plan, outputs, tokens, .. } = &mut node.coasting;
        *is_on = false;
        let pump = node.pump.as_mut().expect("a worker that coasts lives");
        let ends = &plan.ends[..plan.steps()];
        let steps = ends.partition_point(|end| if is_inclusive { *end <= now } else { *end < now });
        if steps == 0 {
            // The timers of the forwards in flight are still set.
            return Instant::ZERO;
        }
        tokens.clear();
        outputs.clear();
        Lanes::coast_tokens(plan, steps, &self.fabric, tokens);
        pump.machine.coast_outputs(outputs);
        let ends = &ends[..steps];
        for (at, tokens) in ends.iter().zip(tokens.chunks(plan.rows())) {
            let (_, emits) = outputs.split_last_mut().expect("a step starts a forward");
            for (emit, &token) in emits.iter_mut().zip(tokens) {
                if let Output::Emit { event, .. } = emit {
                    *event = Event::Token(token);
                }
            }
            pump.count(*at, outputs);
            advance(outputs);
        }
        let mut heard = 0;
        for output in outputs.iter() {
            if let Output::Emit { request, .. } = output {
                heard += u64::from(self.clients.on_tokens(index, *request, ends));
            }
        }
        for pair in ends.windows(2) {
            self.clients.itl.push_many(pair[1].ns_since(pair[0]), heard);
        }
        pump.machine.coast(steps as u32, tokens);
        node.lanes.coast(steps, plan, &mut self.fabric);
        self.events += steps as u64;
        ends.last().copied().unwrap_or_default()
    }
}

/// The outputs of the next step: the next command, and runs that start one token later.
fn advance(outputs: &mut [Output]) {
    if let Some(Output::Start { op, command: Command::Forward(batch), .. }) = outputs.last_mut() {
        op.seq += 1;
        batch.advance(1);
    }
}

/// Steps of the shortest and of the longest plan.
const REACH_MIN: u32 = 4;
const REACH_MAX: u32 = 1024;

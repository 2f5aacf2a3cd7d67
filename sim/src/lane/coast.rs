//! The compute lane under a worker that only decodes: the ends of its next forwards, without an event for each.
//!
//! The plan follows the same recursion as [`Lanes::plan_compute`] does event by event:
//!
//! ```text
//!   forward k      | gpu          |
//!   forward k+1                   | gpu          |          depth 2: launched before k ends
//!   host at end k                 |cpu|
//!   forward k+2                                  | gpu ...   start = max(end k+1, end k + cpu)
//! ```

use pd_core::cost::Load;
use pd_core::id::{RequestId, Token};
use pd_core::time::Instant;

use super::compute::{Pass, State};
use super::{Fabric, Lanes, Mark, Op, Place, Work};
use crate::setup::StepCost;

/// What the lane will do if nobody disturbs it.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Ends of the forwards in flight and of those to be started, in order.
    pub(crate) ends: Vec<Instant>,
    /// Of those to be started: what they take of the device, how long it waits for them, and when the host is done.
    starts: Vec<Start>,
    /// The sequences, and the position of the token that the oldest forward in flight samples: where
    /// the run behind it starts.
    rows: Vec<(RequestId, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Start {
    gpu_start: Instant,
    gpu_ns: u64,
    stall_ns: u64,
    cpu_ready: Instant,
}

impl Plan {
    /// Steps that are planned: each is the end of a forward and the start of another.
    pub(crate) fn steps(&self) -> usize {
        self.starts.len()
    }

    /// Sequences in each forward.
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }
}

impl Lanes {
    /// Plans up to `steps` steps, none of which comes at `until` or later. False if the lane is not in the state for it.
    pub(crate) fn plan_coast(&self, steps: u32, until: Option<Instant>, plan: &mut Plan) -> bool {
        plan.ends.clear();
        plan.starts.clear();
        plan.rows.clear();
        let compute = &self.compute;
        if compute.is_streaming || compute.planned != compute.queue.len() || self.spec.step != StepCost::Model {
            return false;
        }
        for &seq in &compute.queue {
            let Some(Op { work: Work::Forward(pass), dependants, .. }) = self.find(seq).map(|index| &self.ring[index])
            else {
                return false;
            };
            if pass.state != State::Timed || !dependants.is_empty() {
                return false;
            }
            plan.ends.push(pass.end);
            if plan.rows.is_empty() {
                plan.rows.extend(pass.batch.runs().iter().map(|run| (run.request, run.start + run.count)));
            }
        }
        let depth = plan.ends.len() as u64;
        let mut load = Load::new();
        for &(_, position) in &plan.rows {
            load.decode(u64::from(position) + depth);
        }
        let mut forwards = self.spec.cost.decodes(load);
        let (mut cpu_free, mut gpu_free) = (compute.cpu_free, compute.gpu_free);
        for step in 0..steps as usize {
            let now = plan.ends[step];
            if until.is_some_and(|until| now >= until) {
                break;
            }
            let Some(forward) = forwards.next().filter(|forward| forward.gpu_ns > 0) else { break };
            let cpu_ready = now.max(cpu_free).after_ns(forward.cpu_ns);
            let gpu_start = gpu_free.max(cpu_ready);
            let stall_ns = gpu_start.ns_since(gpu_free.max(now));
            cpu_free = cpu_ready;
            gpu_free = gpu_start.after_ns(forward.gpu_ns);
            plan.ends.push(gpu_free);
            plan.starts.push(Start { gpu_start, gpu_ns: forward.gpu_ns, stall_ns, cpu_ready });
        }
        !plan.starts.is_empty()
    }

    /// The forward whose end comes behind `steps` steps of a plan.
    pub(crate) fn coast_place(&self, steps: usize) -> Place {
        let depth = self.compute.queue.len();
        let seq = match steps.checked_sub(depth) {
            None => self.compute.queue[steps],
            Some(started) => self.base + (self.ring.len() + started) as u64,
        };
        self.place(seq)
    }

    /// The tokens of the first `steps` steps of a plan, step by step.
    pub(crate) fn coast_tokens(plan: &Plan, steps: usize, fabric: &Fabric, tokens: &mut Vec<Token>) {
        for step in 0..steps as u32 {
            tokens.extend(plan.rows.iter().map(|&(request, position)| fabric.answer(request, position + step)));
        }
    }

    /// Lives the first `steps` steps of a plan, and sets the timers of the forwards that are then in flight.
    pub(crate) fn coast(&mut self, steps: usize, plan: &Plan, fabric: &mut Fabric) {
        let depth = self.compute.queue.len();
        let ended = depth.min(steps);
        let mut batches = Vec::with_capacity(ended);
        for _ in 0..ended {
            let done = self.compute.queue.pop_front().expect("a forward is in flight");
            let work = std::mem::replace(&mut self.op(done).work, Work::Over { is_ok: true });
            let Work::Forward(pass) = work else { unreachable!("the compute queue holds forwards") };
            batches.push(pass.batch);
        }
        self.trim();
        // Forwards that begin and end within the plan.
        if self.ring.is_empty() {
            self.base += (steps - ended) as u64;
        } else {
            self.ring.extend((ended..steps).map(|_| Op::new(Work::Over { is_ok: true }, Instant::ZERO)));
        }
        for (index, mut batch) in (steps - ended..steps).zip(batches) {
            let Start { gpu_start, gpu_ns, cpu_ready, .. } = plan.starts[index];
            // All of them hold the same sequences: any buffer will do, at the right position.
            batch.set_starts(plan.rows.iter().map(|&(_, position)| position + (depth + index - 1) as u32));
            let pass = Pass { batch, gpu_ns, cpu_ready, gpu_start, end: plan.ends[depth + index], state: State::Timed };
            let seq = self.base + self.ring.len() as u64;
            let first_at = gpu_start.after_ns(gpu_ns / self.spec.layers);
            self.ring.push_back(Op { first_at: Some(first_at), ..Op::new(Work::Forward(pass), gpu_start) });
            self.compute.queue.push_back(seq);
        }
        for start in &plan.starts[..steps] {
            self.use_.forwards += 1;
            self.use_.forward_busy_ns += start.gpu_ns;
            self.use_.forward_stall_ns += start.stall_ns;
        }
        self.compute.cpu_free = plan.starts[steps - 1].cpu_ready;
        self.compute.gpu_free = plan.ends[depth + steps - 1];
        for (&seq, &end) in self.compute.queue.iter().zip(&plan.ends[steps..]) {
            fabric.heap.push_first(end, self.place(seq).key(), Mark::Forward(self.place(seq)));
        }
    }
}

//! The compute lane: forwards one after the other.
//!
//! A forward has a part on the host and one on the device. While another forward is on the device the host part is
//! hidden; otherwise it comes first. All times of a forward are known when it is planned, unless layers that it needs
//! are still on their way from L2: then its end follows from the end of the load.
//!
//! ```text
//!   host    | cpu 1 |   | cpu 2 |
//!   device          | gpu 1          | gpu 2      |
//!   load                  |1|2| ... |L|
//!                                     end >= load end + gpu/L
//! ```

use std::collections::VecDeque;

use pd_core::batch::{Batch, Sampled};
use pd_core::cost::Load;
use pd_core::id::RequestId;
use pd_core::op::{Fault, Outcome};
use pd_core::time::Instant;

use super::{Fabric, Lanes, Mark, Work};
use crate::fault::Speed;
use crate::setup::StepCost;

/// State of the lane.
#[derive(Debug, Default)]
pub(super) struct Compute {
    /// Forwards in order; the first `planned` have a start.
    pub(super) queue: VecDeque<u64>,
    pub(super) planned: usize,
    /// When the host is done with the latest forward.
    pub(super) cpu_free: Instant,
    /// When the device is done with the latest planned forward; not known while `is_streaming`.
    pub(super) gpu_free: Instant,
    /// The latest planned forward waits for layers.
    pub(super) is_streaming: bool,
    /// The device stands still until then; nothing starts before.
    stuck_until: Instant,
    /// The line of the script that it stands still for.
    stuck_line: u32,
    /// Lines of the script that slow the device down.
    slow: Vec<(u32, Speed)>,
    /// Lines of the script that make a forward fail, one entry for each.
    failing: VecDeque<u32>,
    /// Forwards that were issued behind one that failed and fail with it.
    behind_failed: usize,
    /// Forwards that have failed, of which the machine has not been told yet, and whose they were.
    untold: VecDeque<(u64, Vec<RequestId>)>,
}

/// One forward.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) batch: Box<Batch>,
    /// Requests of which a forward before this one failed: it computes them from what is not there.
    pub(super) void: Vec<RequestId>,
    pub(super) gpu_ns: u64,
    /// When the host is done with it.
    pub(super) cpu_ready: Instant,
    pub(super) gpu_start: Instant,
    /// When the device is done with it, once known.
    pub(super) end: Instant,
    pub(super) state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Waiting,
    /// On the device, but the end depends on layers that have not arrived.
    Streaming,
    /// The end is known.
    Timed,
}

impl Pass {
    /// When the device began with it, if it has.
    pub(super) fn began(&self, now: Instant) -> Option<Instant> {
        (self.state != State::Waiting && self.gpu_start <= now).then_some(self.gpu_start)
    }

    pub(super) fn names(&self, request: RequestId) -> bool {
        self.batch.runs().iter().any(|run| run.request == request)
    }
}

impl Lanes {
    /// The device stands still until then: what is on it is that much later.
    pub(crate) fn stall(&mut self, now: Instant, until: Instant, line: u32, fabric: &mut Fabric) {
        let late_ns = until.ns_since(now);
        for index in 0..self.compute.planned {
            let seq = self.compute.queue[index];
            let Work::Forward(pass) = &mut self.op(seq).work else { unreachable!("the compute queue holds forwards") };
            pass.gpu_start = pass.gpu_start.after_ns(late_ns);
            pass.end = pass.end.after_ns(late_ns);
            fabric.hits.add(line, 1);
        }
        self.compute.gpu_free = self.compute.gpu_free.after_ns(late_ns);
        self.compute.stuck_until = self.compute.stuck_until.max(until);
        self.compute.stuck_line = line;
    }

    /// These lines of the script slow the device down, for forwards that are issued from here on.
    pub(crate) fn set_slow(&mut self, slow: &[(u32, Speed)]) {
        self.compute.slow = slow.to_vec();
    }

    /// The next so many forwards that end fail.
    pub(crate) fn fail_forwards(&mut self, line: u32, count: u32) {
        self.compute.failing.extend((0..count).map(|_| line));
    }

    pub(super) fn new_pass(&mut self, now: Instant, batch: Box<Batch>, fabric: &mut Fabric) -> Pass {
        let (mut gpu_ns, cpu_ns) = self.price(&batch);
        for (line, speed) in &self.compute.slow {
            gpu_ns = speed.time(gpu_ns);
            fabric.hits.add(*line, 1);
        }
        let cpu_ready = now.max(self.compute.cpu_free).after_ns(cpu_ns);
        self.compute.cpu_free = cpu_ready;
        // Issued by who does not know of a failure yet: what it computes for its requests is worth nothing, either.
        let is_void =
            |request: &&RequestId| batch.runs().iter().any(|run| run.request == **request && run.table_from > 0);
        let void = self.compute.untold.iter().flat_map(|(_, requests)| requests).filter(is_void).copied().collect();
        Pass { batch, void, gpu_ns, cpu_ready, gpu_start: Instant::ZERO, end: Instant::ZERO, state: State::Waiting }
    }

    /// The machine is told of the end of an operation.
    pub(super) fn told(&mut self, seq: u64) {
        if self.compute.untold.front().is_some_and(|(failed, _)| *failed == seq) {
            self.compute.untold.pop_front();
        }
    }

    /// Gives a start to each forward that can have one.
    pub(super) fn plan_compute(&mut self, now: Instant, fabric: &mut Fabric) {
        while !self.compute.is_streaming
            && let Some(&seq) = self.compute.queue.get(self.compute.planned)
        {
            let (gpu_free, layers) = (self.compute.gpu_free.max(self.compute.stuck_until), self.spec.layers);
            let is_first = self.compute.planned == 0;
            let op = self.op(seq);
            if op.is_doomed {
                // In order: those before it end first.
                if !is_first {
                    return;
                }
                self.compute.queue.pop_front();
                self.fail_forward(now, seq, Fault::Prerequisite, fabric);
                continue;
            }
            if op.waiting > 0 {
                return;
            }
            let (ready_at, floor, is_streaming) = (op.ready_at, op.floor, op.tail > 0);
            let Work::Forward(pass) = &mut op.work else { unreachable!("the compute queue holds forwards") };
            pass.gpu_start = gpu_free.max(pass.cpu_ready).max(ready_at).max(now);
            let (gpu_start, gpu_ns) = (pass.gpu_start, pass.gpu_ns);
            if is_streaming {
                pass.state = State::Streaming;
            }
            if self.compute.stuck_until > now {
                fabric.hits.add(self.compute.stuck_line, 1);
            }
            self.use_.forward_stall_ns += gpu_start.ns_since(gpu_free.max(now));
            self.compute.planned += 1;
            if is_streaming {
                self.compute.is_streaming = true;
            } else {
                self.set_end(seq, gpu_start, gpu_ns, floor, fabric);
            }
            self.announce_first(now, seq, gpu_start.after_ns(gpu_ns / layers), fabric);
        }
    }

    /// A prerequisite of a forward has its first layer, has ended or has failed.
    pub(super) fn resume_forward(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        let op = self.op(seq);
        let (is_doomed, tail, floor) = (op.is_doomed, op.tail, op.floor);
        let Work::Forward(pass) = &mut op.work else { unreachable!("this operation is a forward") };
        let (gpu_start, gpu_ns) = (pass.gpu_start, pass.gpu_ns);
        if pass.state == State::Streaming && is_doomed {
            // Only the latest planned forward streams: take the plan back, and let it fail in its order.
            pass.state = State::Waiting;
            self.compute.is_streaming = false;
            self.compute.planned -= 1;
        } else if pass.state == State::Streaming && tail == 0 {
            self.compute.is_streaming = false;
            self.set_end(seq, gpu_start, gpu_ns, floor, fabric);
        }
        self.plan_compute(now, fabric);
    }

    /// The device is done with the oldest forward.
    pub(super) fn end_forward(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        let place = self.place(seq);
        let Work::Forward(pass) = &mut self.op(seq).work else { unreachable!("this operation is a forward") };
        if now < pass.end {
            // The device has stood still since the end was known.
            fabric.heap.push_first(pass.end, place.key(), Mark::Forward(place));
            return;
        }
        assert!(self.compute.queue.pop_front() == Some(seq), "forwards end in order");
        self.compute.planned -= 1;
        // What was issued before the failure was known has read what the failed one should have written.
        let is_behind = self.compute.behind_failed > 0;
        self.compute.behind_failed = self.compute.behind_failed.saturating_sub(1);
        let line = if is_behind { None } else { self.compute.failing.pop_front() };
        if let Some(line) = line {
            fabric.hits.add(line, 1);
            self.compute.behind_failed = self.compute.queue.len();
        }
        if is_behind || line.is_some() {
            self.fail_forward(now, seq, Fault::Device, fabric);
            self.plan_compute(now, fabric);
            return;
        }
        let node = self.spec.node;
        let Work::Forward(pass) = &mut self.op(seq).work else { unreachable!("this operation is a forward") };
        let (mut batch, void) = (std::mem::take(&mut pass.batch), std::mem::take(&mut pass.void));
        if let Some(memory) = &mut fabric.memory {
            memory.forward(now, node, &batch, &void, |request| self.names(request));
        }
        batch.sample(|run| fabric.answer(run.request, run.start + run.count));
        self.use_.forwards += 1;
        self.finish(now, seq, Outcome::Sampled(Sampled(batch)), fabric);
        self.plan_compute(now, fabric);
    }

    /// A forward, which is not in the queue any more, fails. Those behind it were issued before anybody knew; what they
    /// compute for its requests is worth nothing.
    fn fail_forward(&mut self, now: Instant, seq: u64, fault: Fault, fabric: &mut Fabric) {
        let Work::Forward(pass) = &mut self.op(seq).work else { unreachable!("the compute queue holds forwards") };
        let batch = std::mem::take(&mut pass.batch);
        let mut requests: Vec<RequestId> = batch.runs().iter().map(|run| run.request).collect();
        self.compute.untold.push_back((seq, requests.clone()));
        for index in 0..self.compute.queue.len() {
            let behind = self.compute.queue[index];
            let Work::Forward(pass) = &mut self.op(behind).work else {
                unreachable!("the compute queue holds forwards")
            };
            // Who is told of its pages from the first one on begins anew, behind what is known to have failed.
            requests
                .retain(|request| !pass.batch.runs().iter().any(|run| run.request == *request && run.table_from == 0));
            pass.void.extend_from_slice(&requests);
        }
        if let Some(memory) = &mut fabric.memory {
            memory.forward_failed(self.spec.node, &batch, |request| self.names(request));
        }
        self.fail(now, seq, fault, fabric);
    }

    fn set_end(&mut self, seq: u64, gpu_start: Instant, gpu_ns: u64, floor: Instant, fabric: &mut Fabric) {
        let end = gpu_start.after_ns(gpu_ns).max(floor.after_ns(gpu_ns / self.spec.layers));
        self.compute.gpu_free = end;
        self.use_.forward_busy_ns += gpu_ns;
        self.use_.forward_stall_ns += end.ns_since(gpu_start) - gpu_ns;
        let place = self.place(seq);
        let Work::Forward(pass) = &mut self.op(seq).work else { unreachable!("the compute queue holds forwards") };
        pass.state = State::Timed;
        pass.end = end;
        fabric.heap.push_first(end, place.key(), Mark::Forward(place));
    }

    fn price(&self, batch: &Batch) -> (u64, u64) {
        match self.spec.step {
            StepCost::Fixed { gpu_ns, cpu_ns } => (gpu_ns, cpu_ns),
            StepCost::Model => {
                let mut load = Load::new();
                for run in batch.runs() {
                    if run.count == 1 && run.sample {
                        load.decode(u64::from(run.start) + 1);
                    } else {
                        load.prefill(&self.spec.cost, u64::from(run.start), u64::from(run.count));
                        load.logits(u64::from(run.sample));
                    }
                    load.touches(u64::from(run.pages_count()));
                }
                let forward = self.spec.cost.forward(&load);
                (forward.gpu_ns, forward.cpu_ns)
            }
        }
    }
}

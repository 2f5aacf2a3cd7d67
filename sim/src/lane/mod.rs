//! The lanes of one worker: what carries out its commands, in modelled time.
//!
//! Owns the operations in flight and who waits for whom; the five lanes are `impl` blocks in their own files. Knows no
//! machine: commands come in through [`Lanes::start`], completions leave through [`Lanes::finished`].
//!
//! ```text
//!             load back   |1|2|3|...|L|                one flow for layer 1, one for the rest
//!             forward        |  1  |  2  | ... | L |   starts with layer 1, ends no earlier than load end + T/L
//!             push                 |1|2|...         |L| starts with layer 1, its last 1/L posted behind the forward's end
//! ```
//!
//! 1. Exactly one completion per start, never from inside `start` (it is queued).
//! 2. Compute and copies start and end in order; wire and storage start as soon as their prerequisites allow.
//! 3. A command whose prerequisite failed fails with [`Fault::Prerequisite`], in its order where there is one.
//! 4. Overlap is two numbers per command, when its first layer is there and when it has ended. There is no event per
//!    layer or page.

mod coast;
mod compute;
mod copy;
mod fabric;
mod storage;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_rules;
#[cfg(test)]
mod tests_storage;
mod wire;

use std::collections::{BTreeSet, VecDeque};

use pd_core::cost::{Cost, LinkCost};
use pd_core::id::{Epoch, OpId, PageKey, RequestId};
use pd_core::op::{Command, Fault, LaneKind, Outcome};
use pd_core::time::Instant;

pub(crate) use self::coast::Plan;
use self::compute::{Compute, Pass};
use self::copy::{Copies, Copy};
pub use self::fabric::{Depot, Fabric, Letter, Mark, Place, Text, Transfer};
pub(crate) use self::fabric::{Way, WireEnd};
use self::storage::StorageJob;
use self::wire::Pushing;
use crate::link::Path;
use crate::observe::{Activity, Ending};
use crate::setup::StepCost;

/// What the lanes of a worker have to know about it.
#[derive(Clone, Debug)]
pub struct LaneSpec {
    /// Index of the worker.
    pub node: u32,
    /// What forwards take.
    pub cost: Cost,
    /// Or what they take instead.
    pub step: StepCost,
    /// Layers of the model.
    pub layers: u64,
    /// Bytes of one page.
    pub page_bytes: u64,
    /// L2 to L1.
    pub copy_in: (Path, LinkCost),
    /// L1 to L2.
    pub copy_out: (Path, LinkCost),
    /// Index of its store.
    pub store: Option<u32>,
    /// Root of its namespace, for what it reads from and writes to the store.
    pub root: PageKey,
}

/// The operations in flight of one life of a worker.
#[derive(Debug)]
pub struct Lanes {
    spec: LaneSpec,
    epoch: Epoch,
    /// Number of `ring[0]`.
    base: u64,
    ring: VecDeque<Op>,
    /// Operations that ended badly, for those that name them later.
    failed: BTreeSet<u64>,
    compute: Compute,
    copy_in: Copies,
    copy_out: Copies,
    finished: VecDeque<(OpId, Outcome)>,
    use_: LaneUse,
}

/// What the lanes have done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaneUse {
    /// Forwards.
    pub forwards: u64,
    /// Time with a forward on the device.
    pub forward_busy_ns: u64,
    /// Time for which forwards waited for layers on their way from L2, and for the host.
    pub forward_stall_ns: u64,
    /// Commands of the other lanes.
    pub commands: u64,
}

#[derive(Debug)]
struct Op {
    work: Work,
    /// Prerequisites that are not far enough for this to start.
    waiting: u32,
    /// Layered prerequisites that have not ended.
    tail: u32,
    /// A prerequisite has failed.
    is_doomed: bool,
    /// First layer of the latest layered prerequisite.
    ready_at: Instant,
    /// End of the latest layered prerequisite.
    floor: Instant,
    /// When its own first layer is there, once known; may be in the future.
    first_at: Option<Instant>,
    dependants: Vec<Dependant>,
}

#[derive(Debug)]
enum Work {
    Forward(Pass),
    Copy(Copy),
    Push(Box<Pushing>),
    Storage(Box<StorageJob>),
    Over { is_ok: bool },
}

#[derive(Clone, Copy, Debug)]
struct Dependant {
    seq: u64,
    /// It may start with the first layer.
    is_layered: bool,
    /// It waits for the next thing to happen to this operation.
    is_waiting: bool,
}

impl Op {
    /// An operation that waits for nothing.
    const fn new(work: Work, now: Instant) -> Self {
        Self {
            work,
            waiting: 0,
            tail: 0,
            is_doomed: false,
            ready_at: now,
            floor: Instant::ZERO,
            first_at: None,
            dependants: Vec::new(),
        }
    }
}

impl Lanes {
    /// Idle lanes of a new life.
    #[must_use]
    pub fn new(spec: LaneSpec, epoch: Epoch) -> Self {
        Self {
            spec,
            epoch,
            base: 0,
            ring: VecDeque::new(),
            failed: BTreeSet::new(),
            compute: Compute::default(),
            copy_in: Copies::default(),
            copy_out: Copies::default(),
            finished: VecDeque::new(),
            use_: LaneUse::default(),
        }
    }

    /// Takes a command.
    ///
    /// # Panics
    /// If operations are not named in order, or wait for one that was never started.
    pub fn start(&mut self, now: Instant, op: OpId, after: &[OpId], command: Command, fabric: &mut Fabric) {
        assert!(op.epoch == self.epoch, "{op:?} is of another life than {}", self.epoch);
        assert!(op.seq == self.base + self.ring.len() as u64, "{op:?} is not the next operation");
        let lane = command.lane();
        let mut entry = Op::new(Work::Over { is_ok: true }, now);
        for prior in after {
            self.depend(op.seq, lane, *prior, &mut entry);
        }
        entry.work = match command {
            Command::Forward(batch) => Work::Forward(self.new_pass(now, batch, fabric)),
            Command::LoadBack(pages) => Work::Copy(Copy::load_back(pages)),
            Command::Backup(pages) => Work::Copy(Copy::backup(pages)),
            Command::Push(push) => Work::Push(Box::new(Pushing::new(now, *push))),
            Command::Query(_)
            | Command::Prefetch(_)
            | Command::Persist(_)
            | Command::Discard(_)
            | Command::Scan { .. }
            | Command::Wipe
            | Command::Touch(_) => Work::Storage(Box::new(StorageJob::new(command))),
        };
        if lane != LaneKind::Compute {
            self.use_.commands += 1;
        }
        self.ring.push_back(entry);
        match lane {
            LaneKind::Compute => {
                self.compute.queue.push_back(op.seq);
                self.plan_compute(now, fabric);
            }
            LaneKind::CopyIn => {
                self.copy_in.queue.push_back(op.seq);
                self.run_copies(now, LaneKind::CopyIn, fabric);
            }
            LaneKind::CopyOut => {
                self.copy_out.queue.push_back(op.seq);
                self.run_copies(now, LaneKind::CopyOut, fabric);
            }
            LaneKind::Wire => self.run_push(now, op.seq, fabric),
            LaneKind::Storage => self.run_storage(now, op.seq, fabric),
        }
    }

    /// A timer that this life set for an operation has gone off.
    pub fn on_timer(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        let Some(op) = self.find(seq) else { return };
        match &self.ring[op].work {
            Work::Forward(_) => self.end_forward(now, seq, fabric),
            Work::Push(_) => self.run_push(now, seq, fabric),
            Work::Storage(_) => self.on_storage_timer(now, seq, fabric),
            Work::Copy(_) | Work::Over { .. } => {}
        }
    }

    /// A flow of an operation has ended.
    pub fn on_flow(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        let Some(op) = self.find(seq) else { return };
        match &self.ring[op].work {
            Work::Copy(_) => self.on_copy_flow(now, seq, fabric),
            Work::Push(_) => self.on_push_flow(now, seq, fabric),
            Work::Forward(_) | Work::Storage(_) | Work::Over { .. } => {}
        }
    }

    /// A disk job of an operation has ended.
    pub fn on_job(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        if self.find(seq).is_some() {
            self.on_storage_job(now, seq, fabric);
        }
    }

    /// The next completion to tell the machine about.
    pub fn finished(&mut self) -> Option<(OpId, Outcome)> {
        let finished = self.finished.pop_front();
        if let Some((op, _)) = &finished {
            self.told(op.seq);
        }
        finished
    }

    /// True if a forward in flight computes for a request.
    pub(crate) fn names(&self, request: RequestId) -> bool {
        self.ring.iter().any(|op| matches!(&op.work, Work::Forward(pass) if pass.names(request)))
    }

    /// The life is over: nothing of it happens any more.
    pub fn stop(&mut self, now: Instant, fabric: &mut Fabric) {
        for index in 0..self.ring.len() {
            self.tell(now, index, Ending::Cut, fabric);
        }
        fabric.forget(now, self.spec.node);
    }

    /// What the lanes have done.
    #[must_use]
    pub const fn lane_use(&self) -> LaneUse {
        self.use_
    }

    /// Operations that have not ended.
    #[must_use]
    pub fn live_count(&self) -> usize {
        self.ring.iter().filter(|op| !matches!(op.work, Work::Over { .. })).count()
    }

    /// True if `dependant`, of another lane, may overlap its prerequisite layer by layer.
    fn is_layered(lane: LaneKind, prior: &Work) -> bool {
        match (lane, prior) {
            (LaneKind::Compute | LaneKind::Wire, Work::Forward(_)) => true,
            (LaneKind::Compute | LaneKind::Wire, Work::Copy(copy)) => copy.is_load_back(),
            _ => false,
        }
    }

    fn depend(&mut self, seq: u64, lane: LaneKind, prior: OpId, entry: &mut Op) {
        assert!(prior.epoch == self.epoch && prior.seq < seq, "a command waits for {prior:?}, which is to come");
        let Some(index) = self.find(prior.seq) else {
            entry.is_doomed |= self.failed.contains(&prior.seq);
            return;
        };
        let other = &mut self.ring[index];
        if let Work::Over { is_ok } = other.work {
            entry.is_doomed |= !is_ok;
            return;
        }
        let is_layered = Self::is_layered(lane, &other.work);
        entry.tail += u32::from(is_layered);
        let is_waiting = match other.first_at {
            Some(first_at) if is_layered => {
                entry.ready_at = entry.ready_at.max(first_at);
                false
            }
            _ => true,
        };
        entry.waiting += u32::from(is_waiting);
        other.dependants.push(Dependant { seq, is_layered, is_waiting });
    }

    /// The first layer of an operation is there, or will be at a known time.
    fn announce_first(&mut self, now: Instant, seq: u64, at: Instant, fabric: &mut Fabric) {
        let index = self.find(seq).expect("an operation that moves is in the ring");
        self.ring[index].first_at = Some(at);
        for slot in 0..self.ring[index].dependants.len() {
            let dependant = &mut self.ring[index].dependants[slot];
            if !(dependant.is_layered && dependant.is_waiting) {
                continue;
            }
            dependant.is_waiting = false;
            let seq = dependant.seq;
            let Some(other) = self.find(seq) else { continue };
            let other = &mut self.ring[other];
            other.waiting -= 1;
            other.ready_at = other.ready_at.max(at);
            self.resume(now, seq, fabric);
        }
    }

    /// Ends an operation and tells its dependants.
    fn finish(&mut self, now: Instant, seq: u64, outcome: Outcome, fabric: &mut Fabric) {
        let index = self.find(seq).expect("an operation ends once");
        let is_ok = !matches!(outcome, Outcome::Failed(_));
        if fabric.activities.is_some() {
            let ending = match outcome {
                Outcome::Failed(_) => Ending::Failed,
                Outcome::Partly(_) => Ending::Partly,
                Outcome::Moved | Outcome::Sampled(_) | Outcome::Found(_) | Outcome::Scanned { .. } => Ending::Done,
            };
            self.tell(now, index, ending, fabric);
        }
        let op = &mut self.ring[index];
        op.work = Work::Over { is_ok };
        let dependants = std::mem::take(&mut op.dependants);
        if !is_ok {
            self.failed.insert(seq);
        }
        self.finished.push_back((OpId { epoch: self.epoch, seq }, outcome));
        self.trim();
        for dependant in dependants {
            let Some(index) = self.find(dependant.seq) else { continue };
            let op = &mut self.ring[index];
            op.waiting -= u32::from(dependant.is_waiting);
            op.tail -= u32::from(dependant.is_layered);
            op.is_doomed |= !is_ok;
            op.floor = op.floor.max(now);
            self.resume(now, dependant.seq, fabric);
        }
    }

    /// Forgets the oldest operations as far as they are over.
    fn trim(&mut self) {
        while let Some(Op { work: Work::Over { .. }, .. }) = self.ring.front() {
            self.ring.pop_front();
            self.base += 1;
        }
    }

    /// Tells those who watch when an operation was on its device.
    fn tell(&self, now: Instant, index: usize, ending: Ending, fabric: &mut Fabric) {
        let Some(activities) = &mut fabric.activities else { return };
        let (lane, began) = match &self.ring[index].work {
            Work::Forward(pass) => (LaneKind::Compute, pass.began(now)),
            Work::Copy(copy) => (if copy.is_load_back() { LaneKind::CopyIn } else { LaneKind::CopyOut }, copy.begun),
            Work::Push(pushing) => (LaneKind::Wire, pushing.begun),
            Work::Storage(job) => (LaneKind::Storage, job.begun),
            Work::Over { .. } => return,
        };
        let op = OpId { epoch: self.epoch, seq: self.base + index as u64 };
        activities.push(Activity {
            worker: self.spec.node,
            op,
            lane,
            page_bytes: self.spec.page_bytes,
            began,
            ended: now,
            ending,
        });
    }

    fn fail(&mut self, now: Instant, seq: u64, fault: Fault, fabric: &mut Fabric) {
        self.finish(now, seq, Outcome::Failed(fault), fabric);
    }

    /// Something that an operation waits for has happened.
    fn resume(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        let Some(index) = self.find(seq) else { return };
        match &self.ring[index].work {
            Work::Forward(_) => self.resume_forward(now, seq, fabric),
            Work::Copy(copy) => {
                let lane = if copy.is_load_back() { LaneKind::CopyIn } else { LaneKind::CopyOut };
                self.run_copies(now, lane, fabric);
            }
            Work::Push(_) => self.run_push(now, seq, fabric),
            Work::Storage(_) => self.run_storage(now, seq, fabric),
            Work::Over { .. } => {}
        }
    }

    fn find(&self, seq: u64) -> Option<usize> {
        let index = usize::try_from(seq.checked_sub(self.base)?).ok()?;
        (index < self.ring.len()).then_some(index)
    }

    fn op(&mut self, seq: u64) -> &mut Op {
        let index = self.find(seq).expect("an operation in flight is in the ring");
        &mut self.ring[index]
    }

    fn place(&self, seq: u64) -> Place {
        Place { node: self.spec.node, epoch: self.epoch, seq }
    }
}

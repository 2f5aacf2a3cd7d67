//! The scheduler of one worker: which requests are taken, when each is admitted, and what the next forward computes.
//!
//! It owns the sequences and their leases. It does not know where pages come from (`kv`), how they travel (`transfer`)
//! or what a token means. Handlers record facts; [`Sched::settle`] decides.
//!
//! 1. Every request that was taken ends with exactly one last event, whatever happens to it.
//! 2. Pages that a forward in flight names are not given back before that forward is done.
//! 3. A token is told once, in order, whether or not its sequence was retracted, rolled back or recomputed.
//! 4. What running sequences need for their next `reserve_steps` steps is never given to a new one; if memory falls
//!    short all the same, sequences are retracted, and at worst one request fails.
//! 5. Work per step is bounded by the running sequences and `policy::PICKS_MAX`, not by the waiting ones.
//!
//! ```text
//!  submit ─> door ─> queue ── admit ──> forwards in flight (at most two) ──> tokens ──> end
//!   mod      mod     queue    admit      batch                              batch       ending
//!                    policy   budget        └ memory short: retract     └ hand-offs: handoff
//! ```

mod admit;
mod again;
mod batch;
mod budget;
mod check;
mod coast;
mod ending;
mod handoff;
mod policy;
mod queue;
mod retract;
mod seq;
mod standing;
mod tail;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use crate::batch::Batch;
use crate::config::{Mode, SchedConfig, SchedulePolicy, WorkerConfig};
use crate::cx::Cx;
use crate::digest::Digest;
use crate::event::{Control, Event, Finish, Refusal};
use crate::id::{OpId, PageKey, RequestId, WorkerId};
use crate::kv::{Kv, KvEvent, Lease};
use crate::limits::{FORWARDS_IN_FLIGHT_MAX, STOP_TOKENS_MAX};
use crate::mutant::Mutant;
use crate::op::{Leg, Submit};
use crate::time::{Instant, earlier, nanos};
use crate::transfer::Transfer;

use again::Again;
use batch::Flight;
use budget::Ratio;
use queue::{Pick, Queue};
use seq::{Sequence, Slab};

pub use seq::State;
pub use standing::{Hold, Standing};

/// What an unfinished request waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// A command in flight.
    Op(OpId),
    /// A prefill worker.
    Peer(WorkerId),
    /// The other end of its hand-off, which only the hand-off knows.
    Handoff,
    /// Its turn.
    Queue,
    /// Device pages.
    Memory,
    /// Its pages from L3, at most until then.
    Fetch(Instant),
}

/// How busy the worker is, for routers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Admitted requests.
    pub running: u32,
    /// Requests that are not admitted.
    pub waiting: u32,
    /// Tokens of the prompts of waiting requests.
    pub waiting_tokens: u64,
    /// Tokens of admitted requests, generated ones included.
    pub running_tokens: u64,
}

/// The scheduler. See the module's documentation.
#[derive(Debug)]
pub struct Sched {
    config: SchedConfig,
    mode: Mode,
    /// Chunks are pushed as they are computed; see [`crate::config::TransferConfig::layerwise`].
    is_layerwise: bool,
    page_size: u32,
    flights_max: usize,
    slots: Slab,
    by_request: BTreeMap<RequestId, u32>,
    /// Came again while their last attempt leaves.
    again: Again,
    /// Waits for a prefill here.
    queue: Queue,
    /// Waits for pages to be filled by a prefill worker.
    sinks: Queue,
    /// Prefill legs that no sink has asked for.
    offered: u32,
    /// Tokens of the prompts of all that wait.
    waiting_tokens: u64,
    /// Sequences in [`State::Prefilling`], in order of admission.
    prefilling: Vec<u32>,
    /// Sequences in [`State::Running`], in order of their last chunk.
    running: Vec<u32>,
    /// Sequences in [`State::Receiving`].
    receiving: Vec<u32>,
    /// Sequences that hold a lease.
    admitted: u32,
    flights: VecDeque<Flight>,
    /// Buffers of ended flights.
    spare: Vec<Flight>,
    /// Batches that came back.
    #[expect(clippy::vec_box, reason = "they travel as boxes, and unboxed they would be allocated again")]
    batches: Vec<Box<Batch>>,
    deadlines: BTreeSet<(Instant, u32)>,
    /// By first page key: the sequence whose prompt is being computed and not all published.
    leaders: BTreeMap<PageKey, u32>,
    ratio: Ratio,
    /// When a request that waits for L3 is to be asked about again.
    wake: Option<Instant>,
    /// When a lone sequence first found no page.
    starved: Option<Instant>,
    /// It found none in the step before, either.
    was_starved: bool,
    /// It has failed in this step.
    has_failed: bool,
    draining: bool,
    picks: Vec<Pick>,
}

impl Sched {
    /// No requests.
    #[must_use]
    pub fn new(config: &WorkerConfig) -> Self {
        let sched = config.sched.clone();
        Self {
            ratio: Ratio::new(&sched),
            flights_max: if sched.overlap { FORWARDS_IN_FLIGHT_MAX } else { 1 },
            config: sched,
            mode: config.mode,
            is_layerwise: config.transfer.layerwise,
            page_size: config.kv.page_size,
            slots: Slab::default(),
            by_request: BTreeMap::new(),
            again: Again::default(),
            queue: Queue::default(),
            sinks: Queue::default(),
            offered: 0,
            waiting_tokens: 0,
            prefilling: Vec::new(),
            running: Vec::new(),
            receiving: Vec::new(),
            admitted: 0,
            flights: VecDeque::new(),
            spare: Vec::new(),
            batches: Vec::new(),
            deadlines: BTreeSet::new(),
            leaders: BTreeMap::new(),
            wake: None,
            starved: None,
            was_starved: false,
            has_failed: false,
            draining: false,
            picks: Vec::new(),
        }
    }

    /// A request arrives: it is refused with a reason, or it waits.
    pub fn submit(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer, submit: Submit) {
        let request = submit.request;
        let Some(submit) = self.wait_for_name(cx.now, submit) else { return };
        if let Err(refusal) = self.enter(cx, kv, transfer, submit) {
            cx.metrics.refused += 1;
            cx.emit(request, Event::Refused(refusal));
        }
    }

    /// Ends a request in whatever state it is. An unknown or ended one is ignored.
    pub fn cancel(
        &mut self,
        cx: &mut Cx<'_>,
        kv: &mut Kv,
        transfer: &mut Transfer,
        request: RequestId,
        finish: Finish,
    ) {
        self.end_waiting_for_name(cx, request, finish);
        if let Some(&slot) = self.by_request.get(&request) {
            self.end(cx, kv, transfer, slot, finish);
        }
    }

    /// What the cache did to admitted sequences.
    pub fn on_kv(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer, event: KvEvent) {
        match event {
            KvEvent::Shorter { request, load, pages } => {
                if let Some(&slot) = self.by_request.get(&request) {
                    self.shorten(cx, kv, transfer, slot, (load, pages));
                }
            }
        }
    }

    /// An operator's order.
    pub fn control(&mut self, _: &mut Cx<'_>, _: &mut Kv, _: &mut Transfer, control: Control) {
        match control {
            Control::Drain => self.draining = true,
            Control::Flush | Control::AttachStorage | Control::DetachStorage | Control::ClearStorage => {}
        }
    }

    /// Ends what is late, admits what fits, starts forwards.
    pub fn settle(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer) {
        while let Some(&(deadline, slot)) = self.deadlines.first()
            && deadline <= cx.now
            && !self.config.mutation.is(Mutant::DeadlineIgnored)
        {
            self.end(cx, kv, transfer, slot, Finish::Deadline);
        }
        self.settle_again(cx, kv, transfer);
        self.wake = None;
        self.was_starved = self.starved.take().is_some();
        loop {
            self.admit(cx, kv, admit::Work::Receive(transfer));
            if self.config.mutation.is(Mutant::LostWakeup) && self.slots.len() == 1 && self.admitted == 0 {
                return;
            }
            while self.flights.len() < self.flights_max && self.launch(cx, kv, transfer) {}
            // Who starved has given its pages back after everybody was asked; nothing is in flight that would ask again.
            if !core::mem::take(&mut self.has_failed) {
                break;
            }
            self.was_starved = false;
        }
        if self.slots.len() == 0 {
            self.ratio.reset();
        }
    }

    /// When the scheduler wants a tick, and why.
    #[must_use]
    pub fn deadline(&self) -> Option<(Instant, &'static str)> {
        let is_kept = !self.config.mutation.is(Mutant::DeadlineIgnored);
        let late = self.deadlines.first().filter(|_| is_kept).map(|&(at, _)| (at, "a request is late"));
        let wake = self.wake.map(|at| (at, "a fetch has had its time"));
        let starved = self.starved.map(|at| (at, "a lone sequence found no page"));
        earlier(earlier(late, wake), earlier(starved, self.again.deadline()))
    }

    /// What an unfinished request waits for; `None` if there is no such request.
    #[must_use]
    pub fn waiting_on(&self, request: RequestId) -> Option<Wait> {
        let slot = *self.by_request.get(&request)?;
        let sequence = self.slots.at(slot);
        let flight = self.flights.iter().rev().find(|flight| flight.rows.iter().any(|row| row.slot == slot));
        if let Some(flight) = flight {
            return Some(Wait::Op(flight.op));
        }
        if let (State::Prefilling, Some(until)) = (sequence.state, sequence.stands_until) {
            return Some(Wait::Fetch(until));
        }
        Some(match (sequence.state, sequence.leg) {
            (State::Waiting, _) => sequence.blocked,
            (State::Receiving, Leg::Decode { prefill, .. }) => Wait::Peer(prefill),
            (State::Offered | State::HandingOver | State::Leaving | State::Receiving, _) => Wait::Handoff,
            (State::Prefilling | State::Running | State::Retracting, _) => {
                let load = sequence.lease().loading().last().filter(|_| sequence.holds);
                match (load, self.flights.back()) {
                    (Some(&op), _) => Wait::Op(op),
                    (None, Some(flight)) => Wait::Op(flight.op),
                    (None, None) => Wait::Memory,
                }
            }
        })
    }

    /// The latest forward in flight.
    pub(crate) fn in_flight(&self) -> Option<OpId> {
        self.flights.back().map(|flight| flight.op)
    }

    /// All leases that sequences hold.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.slots.iter().filter_map(|(_, sequence)| sequence.lease.as_ref())
    }

    /// Requests that count against the bound of the queue.
    #[must_use]
    pub fn queued(&self) -> u32 {
        self.waiting()
    }

    /// A request for which a forward could be launched, though none is in flight. Of those that wait only the first few
    /// are looked at, and only if nobody is admitted: then a request that fits the free pages needs no more promises.
    pub(crate) fn runnable(&self, kv: &Kv) -> Option<RequestId> {
        if !self.flights.is_empty() {
            return None;
        }
        let goes = |&&slot: &&u32| {
            let sequence = self.slots.at(slot);
            let has_room = sequence.computed < sequence.lease().table().len() as u32 * self.page_size;
            !sequence.holds
                && sequence.stands_until.is_none()
                && has_room
                && (sequence.state == State::Prefilling || sequence.has_step())
        };
        if let Some(&slot) = self.prefilling.iter().chain(&self.running).find(goes) {
            return Some(self.slots.at(slot).request);
        }
        if self.admitted > 0 {
            return None;
        }
        let fits = |&slot: &u32| {
            let sequence = self.slots.at(slot);
            let need = seq::pages(sequence.tokens_first(), self.page_size);
            need <= kv.free() && !kv.is_fetching(sequence.request)
        };
        // Who was admitted before goes before all others.
        let slot = match self.queue.front() {
            Some(slot) => Some(slot).filter(fits),
            None => self.queue.iter().map(|pick| pick.slot).take(RUNNABLE_LOOKED_AT).find(fits),
        };
        slot.map(|slot| self.slots.at(slot).request)
    }

    /// How busy the worker is.
    #[must_use]
    pub fn load(&self) -> Load {
        let tokens = |&slot: &u32| {
            let sequence = self.slots.at(slot);
            u64::from(sequence.prompt.length) + sequence.generated.len() as u64
        };
        let (running, waiting) = self.counts();
        Load {
            running,
            waiting,
            waiting_tokens: self.waiting_tokens,
            running_tokens: self.prefilling.iter().chain(&self.running).chain(&self.receiving).map(tokens).sum(),
        }
    }

    /// Requests that are admitted, and requests that are not: what [`Sched::load`] says, without looking at each.
    #[must_use]
    pub fn counts(&self) -> (u32, u32) {
        (self.admitted, self.waiting() + (self.queue.front_len() + self.sinks.front_len()) as u32)
    }

    /// Requests that have not ended, those whose pages are still on their way back included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() + self.again.len()
    }

    /// True if nothing is left to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Feeds all state that can change the future.
    pub fn digest(&self, digest: &mut Digest) {
        for (slot, sequence) in self.slots.iter() {
            digest.word(u64::from(slot));
            digest.value(&sequence.request);
            digest.word(sequence.state as u64 | u64::from(sequence.life) << 8 | u64::from(sequence.flights) << 40);
            digest.word(u64::from(sequence.computed) << 32 | u64::from(sequence.committed));
            digest.word(u64::from(sequence.told) << 32 | u64::from(sequence.pushed));
            digest.word(u64::from(sequence.prompt.length) << 32 | u64::from(sequence.produced));
            sequence.generated.iter().for_each(|token| digest.value(token));
            if let Some(served) = &sequence.announced {
                digest.value(&**served);
            }
            let flags = [sequence.is_announced, sequence.is_entered, sequence.has_room];
            digest.word(flags.iter().fold(u64::from(sequence.holds), |word, &flag| word << 1 | u64::from(flag)));
            if let Some(until) = &sequence.stands_until {
                digest.value(until);
            }
            digest.word(u64::from(sequence.faults));
            digest.word(sequence.floor);
            digest.word(sequence.needs.0 ^ sequence.needs.1.rotate_left(32));
        }
        for queue in [&self.queue, &self.sinks] {
            digest.word(queue.len() as u64);
            queue.front_iter().for_each(|slot| digest.word(u64::from(slot)));
            queue.iter().for_each(|pick| digest.word(pick.order << 32 | u64::from(queue.overtaken(pick.order))));
        }
        self.prefilling
            .iter()
            .chain(&self.running)
            .chain(&self.receiving)
            .for_each(|&slot| digest.word(u64::from(slot)));
        self.flights.iter().for_each(|flight| digest.value(&flight.op));
        digest.word(u64::from(self.ratio.ppm()) << 1 | u64::from(self.draining));
        self.again.digest(digest);
        digest.word(self.wake.unwrap_or_default().0 ^ self.starved.unwrap_or_default().0.rotate_left(32));
    }

    /// Door: takes the request into the right queue.
    fn enter(
        &mut self,
        cx: &mut Cx<'_>,
        kv: &mut Kv,
        transfer: &mut Transfer,
        mut submit: Submit,
    ) -> Result<(), Refusal> {
        // An answer ends where the context does.
        submit.limit = submit.limit.min(self.config.context_length.saturating_sub(submit.prompt.length));
        let deadline = self.door(cx.now, kv, &submit)?;
        let request = submit.request;
        let mut sequence = Sequence::new(submit, cx.now, deadline);
        if let Leg::Prefill { room } = sequence.leg {
            transfer.offer(cx, request, room, sequence.prompt.length, deadline)?;
            sequence.has_room = true;
        }
        cx.metrics.requests += 1;
        let (is_source, is_sink) = (sequence.is_source(), sequence.is_sink());
        kv.enter(cx, request, &sequence.prompt, !is_sink);
        sequence.is_entered = true;
        self.waiting_tokens += u64::from(sequence.prompt.length);
        let slot = self.slots.insert(sequence);
        self.by_request.insert(request, slot);
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, slot));
        }
        if is_source && !transfer.is_wanted(request) {
            self.slots.at_mut(slot).state = State::Offered;
            self.offered += 1;
        } else {
            self.enqueue(cx, kv, slot, is_sink);
        }
        Ok(())
    }

    /// All reasons to refuse a request; when the client stops waiting otherwise.
    fn door(&self, now: Instant, kv: &Kv, submit: &Submit) -> Result<Option<Instant>, Refusal> {
        let serves = match submit.leg {
            Leg::Whole => self.mode != Mode::Prefill,
            Leg::Prefill { .. } => self.mode != Mode::Decode,
            Leg::Decode { .. } => self.mode != Mode::Prefill,
        };
        if !serves {
            return Err(Refusal::WrongMode);
        }
        if !submit.prompt.is_well_formed(self.page_size) || submit.stop.len() > STOP_TOKENS_MAX {
            return Err(Refusal::Malformed);
        }
        if submit.prompt.length >= self.config.context_length {
            let (tokens, max) = (submit.prompt.length, self.config.context_length - 1);
            return Err(Refusal::PromptTooLong { tokens, max });
        }
        if submit.limit == 0 {
            return Err(Refusal::NoOutput);
        }
        if self.by_request.contains_key(&submit.request) {
            return Err(Refusal::DuplicateRequest);
        }
        if self.draining {
            return Err(Refusal::Draining);
        }
        let limit = if matches!(submit.leg, Leg::Prefill { .. }) { 1 } else { submit.limit };
        let tokens = u64::from(submit.prompt.length) + u64::from(limit) - 1;
        let needed = tokens.div_ceil(u64::from(self.page_size));
        if needed > u64::from(kv.total()) {
            let pages = u32::try_from(needed).unwrap_or(u32::MAX);
            return Err(Refusal::NeverFits { pages, total: kv.total() });
        }
        if self.waiting() >= self.config.max_queued_requests {
            return Err(Refusal::QueueFull { max: self.config.max_queued_requests });
        }
        let default = self.config.default_deadline;
        let deadline = submit.deadline.or_else(|| (nanos(default) > 0).then(|| now + default));
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Refusal::Late);
        }
        Ok(deadline)
    }

    /// Appends to the line of the queue that it belongs to.
    fn enqueue(&mut self, cx: &Cx<'_>, kv: &Kv, slot: u32, is_sink: bool) {
        let sequence = self.slots.at_mut(slot);
        let service = if self.config.policy == SchedulePolicy::Hrrn {
            let hit = kv.lookup(&sequence.prompt);
            let cached = (hit.device + hit.host) * self.page_size;
            cx.cost.prefill_ns(u64::from(cached), u64::from(sequence.prompt.length.saturating_sub(cached)))
        } else {
            0
        };
        let weight = policy::weight(self.config.policy, sequence.priority, service);
        let queue = if is_sink { &mut self.sinks } else { &mut self.queue };
        sequence.state = State::Waiting;
        sequence.blocked = Wait::Queue;
        sequence.order = Some(queue.push(slot, sequence.arrival.0, weight));
    }

    /// Requests that count against the bound of the queue. Those at the front were admitted once and do not.
    fn waiting(&self) -> u32 {
        (self.queue.len() + self.sinks.len() + self.again.len()) as u32 + self.offered
    }
}

/// Waiting requests that [`Sched::runnable`] looks at.
const RUNNABLE_LOOKED_AT: usize = 16;

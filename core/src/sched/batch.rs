//! What the next forward computes, and what its results mean.
//!
//! A forward takes up to `chunked_prefill_size` prompt tokens: first the sequences that are in the middle of their
//! prompt, then newly admitted ones. Every chunk but a prompt's last ends at a page border. Decode rows ride along
//! (`mixed_chunk`, and then count against the chunk) or have forwards of their own while no prompt is to be computed.
//!
//! With overlap a second forward is launched while the first runs; the device feeds the tokens that the first samples
//! to the second. The limit of a sequence is known in advance, so no row is wasted on it; a stop token is seen one
//! forward late, and the extra token is dropped.
//!
//! ```text
//!  device     | A: p0 p0 p1 | B: d0 p1 p1 | C: d0 d1 |
//!  launched   A B           C (A is done) D (B is done)
//! ```

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::batch::{Batch, Run};
use crate::cx::{Cx, Owner};
use crate::event::{Event, Failure, Finish};
use crate::id::{OpId, Token};
use crate::kv::Kv;
use crate::mutant::Mutant;
use crate::op::{Command, Fault, Outcome};
use crate::transfer::Transfer;

use super::Sched;
use super::admit::Work;
use super::seq::State;

/// A sequence's share of a forward in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) slot: u32,
    /// The sequence's life at the launch; see [`super::seq::Sequence::roll_back`].
    pub(super) life: u32,
    pub(super) start: u32,
    pub(super) count: u32,
    pub(super) sample: bool,
}

/// A forward in flight.
#[derive(Debug, Default)]
pub(super) struct Flight {
    pub(super) op: OpId,
    pub(super) rows: Vec<Row>,
    /// It was ordered behind other commands, so that those may have failed it.
    pub(super) has_prerequisites: bool,
}

/// A forward that is being composed.
#[derive(Debug)]
pub(super) struct Draft {
    /// Prompt tokens that still fit.
    pub(super) budget: u32,
    batch: Box<Batch>,
    rows: Vec<Row>,
    after: Vec<OpId>,
    /// Rows that decode.
    steps: u32,
}

impl Sched {
    /// Composes and starts one forward; false if there is nothing to compute.
    pub(super) fn launch(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer) -> bool {
        let mut flight = self.spare.pop().unwrap_or_default();
        let steps = if self.config.mixed_chunk { self.running.len() as u32 } else { 0 };
        let chunk = self.config.chunked_prefill_size.min(self.config.max_prefill_tokens);
        let mut draft = Draft {
            budget: chunk.saturating_sub(steps).max(self.page_size),
            batch: self.batches.pop().unwrap_or_default(),
            rows: core::mem::take(&mut flight.rows),
            after: Vec::new(),
            steps: 0,
        };
        let is_mixed = self.config.mixed_chunk;
        if is_mixed {
            self.secure(cx, kv, transfer);
        }
        // Sequences behind these join `running` with a row of this very forward.
        let mut decoding = self.running.len();
        let mut index = 0;
        while let Some(&slot) = self.prefilling.get(index)
            && draft.budget > 0
        {
            self.add_chunk(cx, kv, slot, &mut draft);
            index += usize::from(self.prefilling.get(index) == Some(&slot));
        }
        self.admit(cx, kv, Work::Compute(&mut draft));
        if draft.rows.is_empty() && !is_mixed {
            self.secure(cx, kv, transfer);
            decoding = self.running.len();
        }
        if draft.rows.is_empty() || is_mixed {
            self.add_steps(cx, decoding, &mut draft);
        }
        if draft.rows.is_empty() {
            flight.rows = draft.rows;
            self.batches.push(draft.batch);
            self.spare.push(flight);
            return false;
        }
        if draft.steps > 0 {
            self.ratio.decay();
        }
        cx.metrics.forwards += 1;
        let has_prerequisites = !draft.after.is_empty();
        let op = cx.start(Owner::Sched, draft.after, Command::Forward(draft.batch));
        self.push_chunks(cx, transfer, op, &draft.rows);
        self.flights.push_back(Flight { op, rows: draft.rows, has_prerequisites });
        true
    }

    /// Adds the next chunk of a prompt, if it fits. A sequence whose last chunk it is leaves `prefilling`.
    pub(super) fn add_chunk(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, slot: u32, draft: &mut Draft) {
        let page_size = self.page_size;
        let sequence = self.slots.at_mut(slot);
        if !sequence.may_go(cx) {
            return;
        }
        let border = if sequence.lease().has_tail() { self.border(cx, kv, slot, draft.budget) } else { u32::MAX };
        let sequence = self.slots.at_mut(slot);
        let left = sequence.prompt.length - sequence.computed;
        let is_last = left <= draft.budget.min(border.saturating_sub(sequence.computed));
        let end = if is_last {
            sequence.prompt.length
        } else {
            let end = sequence.computed + draft.budget;
            border.min(end - end % page_size)
        };
        if end <= sequence.computed {
            return;
        }
        let count = end - sequence.computed;
        draft.budget -= count;
        self.add_row(cx, slot, count, is_last, draft);
        if is_last {
            let index = self.prefilling.iter().position(|&other| other == slot).expect("it is prefilling");
            self.prefilling.remove(index);
            let sequence = self.slots.at_mut(slot);
            if sequence.is_source() {
                sequence.state = State::HandingOver;
            } else {
                sequence.state = State::Running;
                self.running.push(slot);
            }
        }
    }

    /// Adds a decode row for each running sequence that has the page for it.
    fn add_steps(&mut self, cx: &Cx<'_>, decoding: usize, draft: &mut Draft) {
        let page_size = self.page_size;
        draft.rows.reserve(decoding);
        for index in 0..decoding {
            let slot = self.running[index];
            let sequence = self.slots.at_mut(slot);
            let room = sequence.lease().table().len() as u32 * page_size;
            if !sequence.has_step() || sequence.computed >= room || !sequence.may_go(cx) {
                continue;
            }
            draft.steps += 1;
            self.add_row(cx, slot, 1, true, draft);
        }
    }

    fn add_row(&mut self, cx: &Cx<'_>, slot: u32, count: u32, sample: bool, draft: &mut Draft) {
        let sequence = self.slots.at_mut(slot);
        let start = sequence.computed;
        let told = sequence.told;
        let lease = sequence.lease();
        if told == 0 {
            for &op in lease.loading() {
                if cx.ops.is_live(op) && !draft.after.contains(&op) {
                    draft.after.push(op);
                }
            }
        }
        let table = lease.table();
        draft.batch.push(Run::new(sequence.request, start, count, sample, told), &table[told as usize..]);
        sequence.told = table.len() as u32;
        sequence.computed += count;
        sequence.flights += 1;
        draft.rows.push(Row { slot, life: sequence.life, start, count, sample });
    }

    /// A forward has ended.
    pub fn on_forward(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer, op: OpId, outcome: Outcome) {
        let Some(place) = self.flights.iter().position(|flight| flight.op == op) else {
            cx.metrics.stale_inputs += 1;
            return;
        };
        let mut flight = self.flights.remove(place).expect("found above");
        let samples = flight.rows.iter().filter(|row| row.sample).count();
        let result = match outcome {
            Outcome::Sampled(sampled) if sampled.tokens().len() == samples => Ok(sampled),
            Outcome::Failed(fault) => Err(fault),
            // An answer to another question.
            Outcome::Sampled(_) | Outcome::Moved | Outcome::Partly(_) | Outcome::Found(_) | Outcome::Scanned { .. } => {
                Err(Fault::Device)
            }
        };
        match result {
            Ok(sampled) => {
                let mut tokens = sampled.tokens().iter().copied();
                for &row in &flight.rows {
                    let token = if row.sample { tokens.next() } else { None };
                    self.take_row(cx, kv, transfer, row, token);
                    self.leave_flight(cx, kv, row.slot);
                }
                self.keep(sampled.0);
            }
            Err(fault) => {
                cx.mark("sched.forward_failed");
                let is_load = fault == Fault::Prerequisite && flight.has_prerequisites;
                for &row in &flight.rows {
                    self.fail_row(cx, kv, transfer, row, fault, is_load);
                    self.leave_flight(cx, kv, row.slot);
                }
            }
        }
        flight.rows.clear();
        self.spare.push(flight);
    }

    /// Keeps the memory of a batch that came back for the next forward.
    fn keep(&mut self, mut batch: Box<Batch>) {
        if self.batches.len() < self.flights_max {
            batch.clear();
            self.batches.push(batch);
        }
    }

    /// A sequence's share of a forward is done.
    fn take_row(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, transfer: &mut Transfer, row: Row, token: Option<Token>) {
        let sequence = self.slots.at_mut(row.slot);
        if sequence.life != row.life {
            return;
        }
        let is_early = self.config.mutation.is(Mutant::PublishBeforeDone);
        sequence.committed = if is_early { sequence.computed } else { row.start + row.count };
        sequence.faults = 0;
        if row.start < sequence.prompt.length {
            cx.metrics.computed_tokens += u64::from(row.count);
            let is_complete = sequence.committed == sequence.prompt.length;
            self.publish(cx, kv, row.slot);
            if is_complete {
                self.unlead(row.slot);
                self.push_prompt(cx, transfer, row.slot);
            }
        }
        if let Some(token) = token {
            self.take_token(cx, kv, transfer, row.slot, token);
        }
    }

    /// A token was sampled, here or by the prefill worker.
    pub(super) fn take_token(
        &mut self,
        cx: &mut Cx<'_>,
        kv: &mut Kv,
        transfer: &mut Transfer,
        slot: u32,
        token: Token,
    ) {
        let sequence = self.slots.at_mut(slot);
        match sequence.state {
            State::HandingOver => {
                let last = sequence.prompt.keys.last().copied();
                let served = sequence.announced.take().expect("told when its first chunk was launched");
                transfer.hand_over(cx, sequence.request, token, last, served);
            }
            State::Running | State::Retracting => {
                sequence.generated.push(token);
                sequence.produced += 1;
                cx.metrics.generated_tokens += 1;
                cx.emit(sequence.request, Event::Token(token));
                if self.config.mutation.is(Mutant::TokenTwice) && sequence.produced == 1 {
                    cx.emit(sequence.request, Event::Token(token));
                }
                if sequence.stop.contains(&token) {
                    self.end(cx, kv, transfer, slot, Finish::Stop);
                } else if sequence.remaining() == 0 {
                    self.end(cx, kv, transfer, slot, Finish::Length);
                }
            }
            // Its client has gone, or a stop token came one forward earlier.
            State::Leaving => {
                if self.config.mutation.is(Mutant::TokenAfterEnd) {
                    cx.emit(sequence.request, Event::Token(token));
                }
            }
            State::Offered | State::Waiting | State::Receiving | State::Prefilling => {
                unreachable!("a sequence without a launched prompt samples nothing")
            }
        }
    }

    /// A forward failed under a sequence: its share is computed again, once; then the request fails, alone.
    fn fail_row(
        &mut self,
        cx: &mut Cx<'_>,
        kv: &mut Kv,
        transfer: &mut Transfer,
        row: Row,
        fault: Fault,
        is_load: bool,
    ) {
        let sequence = self.slots.at_mut(row.slot);
        if sequence.life != row.life {
            return;
        }
        // For one that has ended too: what a forward behind this one computes must not be published.
        sequence.roll_back(row.start);
        if sequence.state == State::Leaving {
            return;
        }
        sequence.holds = is_load;
        sequence.faults += u32::from(!is_load);
        // What a source has pushed behind the forward cannot be pushed again.
        if sequence.faults > FAULTS_MAX || sequence.pushed > 0 {
            self.end(cx, kv, transfer, row.slot, Finish::Failed(Failure::Lane(fault)));
        } else {
            self.back_to_prompt(row.slot);
        }
    }

    /// A sequence whose prompt was launched to its end, and part of which is to be computed again, goes on before others.
    pub(super) fn back_to_prompt(&mut self, slot: u32) {
        let sequence = self.slots.at_mut(slot);
        let is_launched = matches!(sequence.state, State::Running | State::HandingOver);
        if is_launched && sequence.computed < sequence.prompt.length {
            sequence.state = State::Prefilling;
            self.running.retain(|&other| other != slot);
            self.prefilling.insert(0, slot);
        }
    }

    /// A forward no longer names the sequence's pages.
    fn leave_flight(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, slot: u32) {
        self.slots.at_mut(slot).flights -= 1;
        self.depart(cx, kv, slot);
    }
}

/// Forwards that may fail under a sequence, one after the other, before it fails itself.
const FAULTS_MAX: u32 = 1;

//! Steps in which nothing happens but decoding, lived many at a time.
//!
//! A simulation of chat services spends most of its steps on decoding one or two sequences. As long as nothing is told
//! to the worker but the ends of its forwards, each such step hands on one token per sequence and starts the next
//! forward of the same sequences. [`Sched::coast_steps`] says for how many steps that is certain, [`Sched::coast`] makes
//! the changes of that many steps. That both ways come to the same state and the same outputs is tested wherever a
//! scenario runs with and without checkers: those see single steps.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::batch::{Batch, Run};
use crate::cx::{Ops, Owner};
use crate::event::Event;
use crate::id::{OpId, Token};
use crate::metrics::Metrics;
use crate::op::{Command, Output};

use super::Sched;
use super::batch::Flight;

impl Sched {
    /// For how many ends of forwards, all of them well, the scheduler will do nothing but hand on tokens and start the
    /// next forward of the same sequences; 0 if something else is to be done or may come of it.
    #[must_use]
    pub fn coast_steps(&self) -> u32 {
        let is_waited_for = !self.line(false).is_empty() || !self.line(true).is_empty() || !self.prefilling.is_empty();
        if is_waited_for || self.starved.is_some() || self.wake.is_some() || self.running.is_empty() {
            return 0;
        }
        if self.flights.len() < self.flights_max || !self.flights.iter().all(|flight| self.is_like_running(flight)) {
            return 0;
        }
        let steps = self.running.iter().map(|&slot| {
            let sequence = self.slots.at(slot);
            let table = sequence.lease().table().len() as u32;
            if sequence.holds || !sequence.stop.is_empty() || sequence.told != table {
                return 0;
            }
            sequence.tokens_max().min(table * self.page_size).saturating_sub(sequence.computed)
        });
        steps.min().unwrap_or_default()
    }

    /// True if a forward decodes the running sequences, all of them, in their order.
    fn is_like_running(&self, flight: &Flight) -> bool {
        !flight.has_prerequisites
            && flight.rows.len() == self.running.len()
            && flight.rows.iter().zip(&self.running).all(|(row, &slot)| {
                let sequence = self.slots.at(slot);
                row.slot == slot
                    && row.count == 1
                    && row.sample
                    && sequence.life == row.life
                    && row.start >= sequence.prompt.length
            })
    }

    /// What the next such step asks for: a token for each sequence, which is to be filled in, and the next forward.
    pub fn coast_outputs(&self, op: OpId, outputs: &mut Vec<Output>) {
        let mut batch = Box::<Batch>::default();
        for &slot in &self.running {
            let sequence = self.slots.at(slot);
            outputs.push(Output::Emit { request: sequence.request, event: Event::Token(Token::default()) });
            batch.push(Run::new(sequence.request, sequence.computed, 1, true, sequence.told), &[]);
        }
        outputs.push(Output::Start { op, after: Vec::new(), command: Command::Forward(batch) });
    }

    /// Lives `count` such steps; `tokens` holds those of the first step in the order of the outputs, then those of the
    /// second, and so on.
    pub fn coast(&mut self, metrics: &mut Metrics, ops: &mut Ops, count: u32, tokens: &[Token]) {
        let rows = self.running.len();
        assert!(tokens.len() == count as usize * rows, "one token for each sequence and step");
        let first = self.flights.front().expect("forwards are in flight");
        for (index, &slot) in self.running.iter().enumerate() {
            let sequence = self.slots.at_mut(slot);
            sequence.generated.extend(tokens[index..].iter().step_by(rows));
            sequence.produced += count;
            sequence.committed = first.rows[index].start + count;
            sequence.computed += count;
            sequence.faults = 0;
        }
        // Of the forwards in flight the oldest ones end; those between them and the last ones begin and end.
        let ended = self.flights.len().min(count as usize);
        for flight in self.flights.iter().take(ended) {
            let owner = ops.finish(flight.op);
            assert!(owner == Some(Owner::Sched), "a forward in flight is the scheduler's");
        }
        ops.pass(count as usize - ended);
        self.flights.rotate_left(ended);
        let kept = self.flights.len() - ended;
        for flight in self.flights.iter_mut().skip(kept) {
            flight.op = ops.start(Owner::Sched);
        }
        for (later, flight) in (0..).zip(&mut self.flights) {
            for (row, &slot) in flight.rows.iter_mut().zip(&self.running) {
                row.start = self.slots.at(slot).committed + later;
            }
        }
        self.was_starved = false;
        self.ratio.decay_by(count);
        metrics.forwards += u64::from(count);
        metrics.generated_tokens += u64::from(count) * rows as u64;
    }
}

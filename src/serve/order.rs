//! When a command may start: its prerequisites are over, and what its lane owes an order has started before it.
//!
//! Forwards and copies start in the order in which the worker asked for them; storage and wire commands start as soon as
//! what they wait for is over. A command whose prerequisite failed is not started and fails too.
//!
//! ```text
//!   compute    F1   F2(after L1)   F3          F3 waits behind F2
//!   copy in         L1
//!   storage    P1(after B1)   Q1               Q1 starts at once
//! ```

use std::collections::{BTreeMap, VecDeque};

use pd_core::id::OpId;
use pd_core::op::{Command, LaneKind};

/// Commands that have not ended.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    ops: BTreeMap<OpId, Op>,
    /// Commands of the lanes with an order that have not started: compute, copies in, copies out.
    lines: [VecDeque<OpId>; 3],
}

#[derive(Debug)]
struct Op {
    /// `None` once it has started.
    command: Option<Command>,
    lane: LaneKind,
    /// Prerequisites that are not over.
    waiting: usize,
    is_doomed: bool,
    dependants: Vec<OpId>,
}

/// What is to be done now.
#[derive(PartialEq, Eq, Debug, Default)]
pub(crate) struct Due {
    /// To start, in this order.
    pub(crate) start: Vec<(OpId, Command)>,
    /// Over without having started: a prerequisite failed. To be answered with `Fault::Prerequisite`.
    pub(crate) failed: Vec<OpId>,
}

impl Orders {
    /// Takes a command. Prerequisites that are not here are over, and well.
    pub(crate) fn add(&mut self, op: OpId, after: &[OpId], command: Command, due: &mut Due) {
        let lane = command.lane();
        let mut waiting = 0;
        for prior in after {
            if let Some(prior) = self.ops.get_mut(prior) {
                prior.dependants.push(op);
                waiting += 1;
            }
        }
        self.ops.insert(op, Op { command: Some(command), lane, waiting, is_doomed: false, dependants: Vec::new() });
        match line(lane) {
            Some(line) => {
                self.lines[line].push_back(op);
                self.advance(line, due);
            }
            None => self.try_start(op, due),
        }
    }

    /// A command is over. Those that waited for it may start, or fail with it.
    pub(crate) fn end(&mut self, op: OpId, is_ok: bool, due: &mut Due) {
        let Some(ended) = self.ops.remove(&op) else { return };
        for dependant in ended.dependants {
            let Some(other) = self.ops.get_mut(&dependant) else { continue };
            other.waiting -= 1;
            other.is_doomed |= !is_ok;
            if line(other.lane).is_none() {
                self.try_start(dependant, due);
            }
        }
        for line in 0..self.lines.len() {
            self.advance(line, due);
        }
    }

    /// Starts what is at the head of a line, as far as it can start.
    fn advance(&mut self, line: usize, due: &mut Due) {
        while let Some(&head) = self.lines[line].front() {
            let op = &self.ops[&head];
            if op.waiting > 0 {
                return;
            }
            self.lines[line].pop_front();
            self.try_start(head, due);
        }
    }

    fn try_start(&mut self, op: OpId, due: &mut Due) {
        let Some(entry) = self.ops.get_mut(&op) else { return };
        if entry.waiting > 0 {
            return;
        }
        if entry.is_doomed {
            due.failed.push(op);
            self.end(op, false, due);
        } else if let Some(command) = entry.command.take() {
            due.start.push((op, command));
        }
    }
}

const fn line(lane: LaneKind) -> Option<usize> {
    match lane {
        LaneKind::Compute => Some(0),
        LaneKind::CopyIn => Some(1),
        LaneKind::CopyOut => Some(2),
        LaneKind::Storage | LaneKind::Wire => None,
    }
}

#[cfg(test)]
mod tests {
    use pd_core::id::Epoch;

    use super::*;

    fn op(seq: u64) -> OpId {
        OpId { epoch: Epoch(1), seq }
    }

    fn forward() -> Command {
        Command::Forward(Box::default())
    }

    fn started(due: &mut Due) -> Vec<u64> {
        std::mem::take(&mut due.start).into_iter().map(|(op, _)| op.seq).collect()
    }

    #[test]
    fn a_forward_waits_behind_one_that_waits() {
        let (mut orders, mut due) = (Orders::default(), Due::default());
        orders.add(op(0), &[], Command::LoadBack(Vec::new()), &mut due);
        orders.add(op(1), &[op(0)], forward(), &mut due);
        orders.add(op(2), &[], forward(), &mut due);
        assert_eq!(started(&mut due), [0]);
        orders.end(op(0), true, &mut due);
        assert_eq!(started(&mut due), [1, 2]);
        assert!(due.failed.is_empty());
    }

    #[test]
    fn storage_commands_overtake() {
        let (mut orders, mut due) = (Orders::default(), Due::default());
        orders.add(op(0), &[], Command::Backup(Vec::new()), &mut due);
        orders.add(op(1), &[op(0)], Command::Persist(Vec::new()), &mut due);
        orders.add(op(2), &[], Command::Query(Vec::new()), &mut due);
        assert_eq!(started(&mut due), [0, 2]);
        orders.end(op(0), true, &mut due);
        assert_eq!(started(&mut due), [1]);
    }

    #[test]
    fn failure_runs_down_the_chain_and_frees_the_line() {
        let (mut orders, mut due) = (Orders::default(), Due::default());
        orders.add(op(0), &[], Command::LoadBack(Vec::new()), &mut due);
        orders.add(op(1), &[op(0)], forward(), &mut due);
        orders.add(op(2), &[op(1)], Command::Wipe, &mut due);
        orders.add(op(3), &[], forward(), &mut due);
        assert_eq!(started(&mut due), [0]);
        orders.end(op(0), false, &mut due);
        assert_eq!(due.failed, [op(1), op(2)]);
        assert_eq!(started(&mut due), [3]);
        orders.end(op(3), true, &mut due);
        assert!(orders.ops.is_empty());
    }

    #[test]
    fn what_is_over_holds_nobody_up() {
        let (mut orders, mut due) = (Orders::default(), Due::default());
        orders.add(op(5), &[op(1), op(2)], forward(), &mut due);
        assert_eq!(started(&mut due), [5]);
    }
}

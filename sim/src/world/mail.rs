//! Letters: what workers say to each other, what they are told of each other, and what the router and clients ask them.
//!
//! A letter is for one life of its receiver. What a peer says is for one connection, too: over one that has broken since,
//! or of which the receiver has not been told, nothing arrives.

use pd_core::id::{Epoch, WorkerId};
use pd_core::op::Input;
use pd_core::time::Instant;

use super::WorldOf;
use crate::fault::{Astray, Class, Faults, Parcel, ROUTER, astray, sender};
use crate::lane::{Fabric, Letter, Mark};
use crate::node::Serve;

/// Sends what a worker says to a peer, to arrive at `at` unless something is in its way; false if it is lost.
pub(super) fn send(faults: &mut Faults, fabric: &mut Fabric, at: Instant, from: u32, letter: Letter) -> bool {
    if faults.post.is_quiet(at) {
        fabric.heap.push(at, Mark::Letter(Box::new(letter)));
        return true;
    }
    let mut letter = letter;
    if let Input::Recv { message, .. } = &mut letter.input
        && astray(message, 0).is_some()
        && let Some((_, draw)) = faults.post.stray(from, letter.to, &mut fabric.hits)
    {
        match astray(message, draw).expect("asked just before") {
            Astray::Instead(other) => *message = other,
            Astray::Before(other) => {
                let input = Input::Recv { from: WorkerId(from), message: other };
                let stray = Letter { to: letter.to, epoch: letter.epoch, sender: letter.sender, input };
                if let Some(at) = faults.post.fate(at, from, letter.to, Class::Loose, &mut fabric.hits).at {
                    fabric.heap.push(at, Mark::Letter(Box::new(stray)));
                }
            }
        }
    }
    let fate = faults.post.fate(at, from, letter.to, Class::Loose, &mut fabric.hits);
    if let Some(copy) = fate.copy {
        let Letter { to, epoch, sender, input } = &letter;
        let again = Letter { to: *to, epoch: *epoch, sender: *sender, input: input.clone() };
        fabric.heap.push(copy, Mark::Letter(Box::new(again)));
    }
    if let Some(at) = fate.at {
        fabric.heap.push(at, Mark::Letter(Box::new(letter)));
    }
    fate.at.is_some()
}

impl<M: Serve> WorldOf<M> {
    /// A letter arrives, unless the way is cut or the life it was sent to is over.
    pub(crate) fn deliver(&mut self, letter: Letter) {
        if let Some(from) = sender(&letter.input)
            && let Some(line) = self.faults.post.cut_by(from, letter.to)
        {
            self.fabric.hits.add(line, 1);
            self.faults.post.hold(from, letter.to, Parcel::Letter(Box::new(letter)));
            return;
        }
        let Letter { to, epoch, sender, input } = letter;
        if self.fabric.lives[to as usize] != Some(epoch) {
            self.lost_letters += 1;
            self.return_to_sender(to, input);
            return;
        }
        self.land(to);
        match &input {
            Input::Peer { id, up } => self.nodes[to as usize].seen[id.0 as usize] = up.and(sender),
            // Over a connection that is down by now, or of which the receiver has not heard yet.
            Input::Recv { from, .. } if self.nodes[to as usize].seen[from.0 as usize] != sender => {
                self.lost_letters += 1;
                return;
            }
            Input::Recv { .. }
            | Input::Tick
            | Input::Submit(_)
            | Input::Cancel { .. }
            | Input::Done { .. }
            | Input::Control(_) => {}
        }
        self.feed(to, input);
    }

    /// Sends something to the present life of a worker; back to its sender if there is none.
    pub(crate) fn post(&mut self, to: u32, latency_ns: u64, input: Input) {
        let Some(epoch) = self.fabric.lives[to as usize] else {
            self.lost_letters += 1;
            self.return_to_sender(to, input);
            return;
        };
        self.post_to(to, epoch, latency_ns, input);
    }

    /// Sends something to a life of a worker.
    pub(crate) fn post_to(&mut self, to: u32, epoch: Epoch, latency_ns: u64, input: Input) {
        let sender = match &input {
            Input::Peer { id, up } => up.map(|life| (life, self.faults.wires.number(id.0, to))),
            Input::Tick
            | Input::Submit(_)
            | Input::Cancel { .. }
            | Input::Recv { .. }
            | Input::Done { .. }
            | Input::Control(_) => None,
        };
        let class = if matches!(input, Input::Submit(_)) { Class::Ask } else { Class::Stream };
        let mut at = self.now.after_ns(latency_ns);
        let letter = Box::new(Letter { to, epoch, sender, input });
        if !self.faults.post.is_quiet(self.now) && matches!(letter.input, Input::Submit(_) | Input::Cancel { .. }) {
            match self.faults.post.fate(at, ROUTER, to, class, &mut self.fabric.hits).at {
                Some(late) => at = late,
                None => {
                    self.lost_letters += 1;
                    self.return_to_sender(to, letter.input);
                    return;
                }
            }
        }
        self.fabric.heap.push(at, Mark::Letter(letter));
    }
}

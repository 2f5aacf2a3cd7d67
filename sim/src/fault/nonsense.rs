//! A peer says well-formed things that make no sense: unknown rooms, earlier lives, huge counts, other layouts, answers
//! that nobody asked for, a second Hello. A bug in its sender, another version, a port that something else uses.
//!
//! Nothing of it names an attempt that is open: a lie about a live transfer ("no write is in flight") breaks every
//! protocol, and is no nonsense. Nor does the peer say `Incompatible`, which makes sense at any time and is believed.

use std::time::Duration;

use pd_core::config::Mode;
use pd_core::event::Served;
use pd_core::id::{Epoch, Generation, GpuPage, PageKey, RequestId, Room, Token, WorkerId};
use pd_core::message::{AbortReason, End, Handoff, Hello, Layout, Message, Want};
use pd_core::op::{Input, Prompt};
use pd_core::rng::{Rng, Stream};
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::{Fault, Peer};
use crate::lane::{Letter, Mark};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A peer that talks nonsense.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nonsense {
    /// Index of the worker that hears it.
    #[serde(default)]
    pub worker: u32,
    /// Index of the worker that says it; any of its peers if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<u32>,
    /// How many messages.
    #[serde(default = "hundred")]
    pub count: u32,
    /// Over how long they are spread; all at once if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

const fn hundred() -> u32 {
    100
}

impl Fault for Nonsense {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.pairs("nonsense")?;
        if self.count == 0 || self.count > COUNT_MAX {
            return Err(Wrong::new("count", format!("count is {}; it must be from 1 to {COUNT_MAX}", self.count)));
        }
        places.ends(self.worker, self.peer.map(Peer::Worker))
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let spread = self.lasts.map_or(0, Span::ns);
        for turn in 1..=self.count {
            let wait = world.faults.rng(line, Stream::Nonsense).below(spread.saturating_add(1));
            world.fabric.heap.push(world.now.after_ns(wait), Mark::Again { line, turn });
        }
    }

    fn again<M: Serve>(&self, world: &mut WorldOf<M>, line: u32, _: u32) {
        let Some(life) = world.fabric.lives[self.worker as usize] else { return };
        let mut senders = world.peers(self.worker);
        senders.retain(|sender| {
            self.peer.is_none_or(|peer| peer == *sender) && world.are_acquainted(*sender, self.worker)
        });
        if senders.is_empty() {
            return;
        }
        let rng = world.faults.rng(line, Stream::Nonsense);
        let sender = senders[rng.below(senders.len() as u64) as usize];
        let number = world.faults.wires.number(sender, self.worker);
        let Some(sender_life) = world.fabric.lives[sender as usize] else { return };
        let layout = world.nodes[self.worker as usize].config.transfer.layout.clone();
        let message = draw(world.faults.rng(line, Stream::Nonsense), sender_life, life, &layout);
        let input = Input::Recv { from: WorkerId(sender), message };
        let latency_ns = world.nodes[sender as usize].latency_ns;
        let letter = Letter { to: self.worker, epoch: life, sender: Some((sender_life, number)), input };
        world.fabric.heap.push(world.now.after_ns(latency_ns), Mark::Letter(Box::new(letter)));
        world.fabric.hits.add(line, 1);
    }
}

impl<M: Serve> WorldOf<M> {
    /// True if two workers have been connected for long enough that the Hello of each has arrived: before, another
    /// Hello would be the first message of the connection, and no nonsense.
    fn are_acquainted(&self, one: u32, other: u32) -> bool {
        let life = |worker: u32| self.fabric.lives[worker as usize];
        let latency_ns = self.nodes[one as usize].latency_ns.max(self.nodes[other as usize].latency_ns);
        life(one).is_some()
            && life(other).is_some()
            && self.faults.wires.is_up(one, other)
            && self.faults.post.cut_by(one, other).is_none()
            && self.faults.wires.met_at(one, other).is_some_and(|at| self.now >= at.after_ns(4 * latency_ns))
    }
}

/// A message to a worker in life `ours` from a peer in life `theirs`.
fn draw(rng: &mut Rng, theirs: Epoch, ours: Epoch, layout: &Layout) -> Message {
    // Routers count rooms from 0; no router gives these.
    let room = Room(u64::MAX / 2 + rng.below(1000));
    let request = RequestId(rng.below(u64::MAX));
    // A life that is over, is still to come, or is the present one.
    let life = |rng: &mut Rng, life: Epoch| {
        Epoch([life.0, life.0.wrapping_sub(1), life.0 + 1, u32::MAX][rng.below(4) as usize])
    };
    let never = |life: Epoch| Epoch(life.0.wrapping_add(1 << 20));
    let generation = Generation((1 << 30) + rng.below(1 << 30) as u32);
    match rng.below(9) {
        0 => {
            // To a life that never was: whatever its generation, it is not of this connection.
            let (epoch, source) = (life(rng, theirs), never(ours));
            let pages = (0..rng.below(5_000)).map(|_| GpuPage(rng.below(1 << 32) as u32)).collect();
            let (length, have) = (rng.below(1 << 32) as u32, rng.below(1 << 32) as u32);
            let prompt = (rng.below(2) == 0).then(|| Box::new(Prompt { length, ..Prompt::default() }));
            Message::Want(Box::new(Want { room, generation, epoch, source, request, length, have, pages, prompt }))
        }
        1 => {
            // A want of this very connection that is a copy of an old one, with a length that does not fit its pages.
            let (generation, length) = (Generation(0), rng.below(1 << 32) as u32);
            let pages = vec![GpuPage(u32::MAX); rng.below(3) as usize];
            let want =
                Want { room, generation, epoch: theirs, source: ours, request, length, have: 0, pages, prompt: None };
            Message::Want(Box::new(want))
        }
        2 => {
            let (epoch, source) = (life(rng, ours), life(rng, theirs));
            let (length, last) = (rng.below(1 << 32) as u32, Some(PageKey(u128::from(rng.next()))));
            let token = Token(rng.below(1 << 32) as u32);
            let served = Box::new(Served::from_nowhere(length));
            let handoff = Handoff { room, generation, epoch, source, request, length, last, token, served };
            Message::Handoff(Box::new(handoff))
        }
        3 => {
            let by = if rng.below(2) == 0 { End::Source } else { End::Sink };
            let (epoch, source) = (life(rng, theirs), life(rng, ours));
            let (epoch, source) =
                if by == End::Sink { (epoch, never(source)) } else { (life(rng, ours), life(rng, theirs)) };
            Message::Abort { room, generation, epoch, source, by, reason: AbortReason::Lost }
        }
        4 => {
            // Of an unknown room of this very connection; generation 0 was never given.
            let by = if rng.below(2) == 0 { End::Source } else { End::Sink };
            let (epoch, source) = if by == End::Sink { (theirs, ours) } else { (ours, theirs) };
            Message::Abort { room, generation: Generation(0), epoch, source, by, reason: AbortReason::Unknown }
        }
        5 => Message::AbortAck { room, generation, epoch: life(rng, ours), source: life(rng, theirs) },
        6 => Message::Pong { number: u64::MAX - rng.below(1000) },
        7 => Message::Ping { number: rng.next() },
        _ => {
            let mut layout = layout.clone();
            layout.page_size = layout.page_size.wrapping_mul(rng.below(1 << 20) as u32);
            layout.tp = rng.below(1 << 32) as u32;
            let mode = [Mode::Unified, Mode::Prefill, Mode::Decode][rng.below(3) as usize];
            let version = rng.below(4) as u32;
            let epoch = life(rng, theirs);
            let root = PageKey(u128::from(rng.next()));
            Message::Hello(Box::new(Hello { version, epoch, mode, root, layout, generation: Generation(0) }))
        }
    }
}

/// Most messages of a line.
const COUNT_MAX: u32 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_nonsense_is_drawn_and_none_of_it_names_an_attempt() {
        let mut rng = Rng::new(1, Stream::Nonsense, 0);
        let mut kinds = [0; 8];
        for _ in 0..10_000 {
            let (kind, room) = match draw(&mut rng, Epoch(3), Epoch(5), &Layout::default()) {
                Message::Hello(hello) => {
                    assert_eq!(hello.generation, Generation(0));
                    (0, None)
                }
                Message::Incompatible(_) => (1, None),
                Message::Ping { .. } => (2, None),
                Message::Pong { .. } => (3, None),
                Message::Want(want) => {
                    assert!(want.source != Epoch(5) || want.generation == Generation(0));
                    (4, Some(want.room))
                }
                Message::Handoff(handoff) => (5, Some(handoff.room)),
                Message::Abort { room, .. } => (6, Some(room)),
                Message::AbortAck { room, .. } => (7, Some(room)),
            };
            kinds[kind] += 1;
            assert!(room.is_none_or(|room| room.0 >= u64::MAX / 2));
        }
        assert_eq!(kinds[1], 0);
        assert!([0, 2, 3, 4, 5, 6, 7].into_iter().all(|kind| kinds[kind] > 500), "{kinds:?}");
    }
}

//! Takes what peers say, and what is said of them, to the end that it is meant for.
//!
//! Here lives and generations are compared for the first time; rooms and prompts are compared by the ends themselves.

use alloc::vec::Vec;

use crate::cx::Cx;
use crate::id::{Epoch, WorkerId};
use crate::message::{AbortReason, End, Message};
use crate::mutant::Mutant;
use crate::transfer::attempt::Attempt;
use crate::transfer::peer::{Link, Rise};
use crate::transfer::{Transfer, TransferEvent, source};

impl Transfer {
    /// A peer's message. Cannot panic, whatever it says.
    #[must_use]
    pub fn on_message(&mut self, cx: &mut Cx<'_>, from: WorkerId, message: Message) -> Vec<TransferEvent> {
        let mut events = Vec::new();
        let is_taken = self.peers.life(from).is_some_and(|life| self.take(cx, &mut events, from, life, message));
        if !is_taken {
            cx.metrics.stale_inputs += 1;
        }
        events
    }

    /// Routes a message of a peer that is up. False if it fits nothing here.
    fn take(
        &mut self,
        cx: &mut Cx<'_>,
        events: &mut Vec<TransferEvent>,
        from: WorkerId,
        life: Epoch,
        message: Message,
    ) -> bool {
        let ours = self.peers.epoch();
        let is_full = self.is_full();
        match message {
            Message::Hello(hello) => match self.peers.on_hello(cx, &self.config, &mut self.timers, from, &hello) {
                None => false,
                Some(Link::Open { .. }) => {
                    self.with_events(cx, events, |_, sink, env| sink.on_open(env, from));
                    true
                }
                Some(Link::Down | Link::Greeting | Link::Refused(_)) => {
                    self.lose(cx, events, from, AbortReason::Incompatible);
                    true
                }
            },
            Message::Incompatible(mismatch) => {
                let is_taken = self.peers.on_incompatible(from, mismatch);
                if is_taken {
                    self.lose(cx, events, from, AbortReason::Incompatible);
                }
                is_taken
            }
            Message::Ping { number } => {
                cx.send(from, Message::Pong { number });
                true
            }
            Message::Pong { number } => self.peers.on_pong(from, number),
            Message::Want(want) => {
                let attempt = Attempt::of_want(&want);
                // Lives first: a want of another connection says nothing about the generations of this one.
                let is_ours = attempt.is_between(ours, life) || self.config.mutation.is(Mutant::EpochIgnored);
                let is_new = is_ours && self.peers.admit(from, want.generation);
                if !is_ours || !is_new && !self.config.mutation.is(Mutant::BelieveCopies) {
                    return false;
                }
                let is_here = self.sink.has(want.room);
                self.with_events(cx, events, |source, _, env| {
                    if is_here {
                        source::refuse(env, from, attempt, AbortReason::Duplicate);
                    } else {
                        source.on_want(env, from, *want, is_full);
                    }
                });
                true
            }
            Message::Handoff(handoff) => {
                (Attempt::of_handoff(&handoff).is_between(life, ours) || self.config.mutation.is(Mutant::EpochIgnored))
                    && self.with_events(cx, events, |_, sink, env| sink.on_handoff(env, from, &handoff))
            }
            Message::Abort { room, generation, epoch, source: source_epoch, by, reason } => {
                let attempt = Attempt { room, generation, sink: epoch, source: source_epoch };
                self.with_events(cx, events, |source, sink, env| match by {
                    End::Source => attempt.is_between(life, ours) && sink.on_abort(env, from, attempt, reason),
                    End::Sink => {
                        let is_ours = attempt.is_between(ours, life);
                        if is_ours {
                            source.on_abort(env, from, attempt, reason);
                        } else if attempt.sink == life {
                            // An attempt with an earlier life of ours: that one writes no more.
                            env.cx.send(from, attempt.ack());
                        }
                        is_ours
                    }
                })
            }
            Message::AbortAck { room, generation, epoch, source: source_epoch } => {
                let attempt = Attempt { room, generation, sink: epoch, source: source_epoch };
                attempt.is_between(life, ours)
                    && self.with_events(cx, events, |_, sink, env| sink.on_ack(env, from, attempt))
            }
        }
    }

    /// A peer came up or is gone. In either case nothing of an earlier life of it can be written here any more.
    #[must_use]
    pub fn on_peer(&mut self, cx: &mut Cx<'_>, peer: WorkerId, up: Option<Epoch>) -> Vec<TransferEvent> {
        let mut events = Vec::new();
        match up.map(|epoch| (epoch, self.peers.judge(peer, epoch))) {
            None => self.bury(cx, &mut events, peer),
            Some((_, Rise::Stale)) => cx.metrics.stale_inputs += 1,
            Some((epoch, rise)) => {
                if rise == Rise::Replaced {
                    self.bury(cx, &mut events, peer);
                }
                self.peers.rise(cx, peer, epoch);
            }
        }
        events
    }

    /// A life of a peer is over: what waited for its writes to end is released, and its rooms fail.
    fn bury(&mut self, cx: &mut Cx<'_>, events: &mut Vec<TransferEvent>, peer: WorkerId) {
        self.peers.fall(&mut self.timers, peer);
        self.with_events(cx, events, |_, sink, env| sink.on_buried(env, peer));
        self.lose(cx, events, peer, AbortReason::Lost);
    }

    /// The rooms of a peer fail.
    pub(super) fn lose(
        &mut self,
        cx: &mut Cx<'_>,
        events: &mut Vec<TransferEvent>,
        peer: WorkerId,
        reason: AbortReason,
    ) {
        self.with_events(cx, events, |source, sink, env| {
            sink.on_lost(env, peer, reason);
            source.on_lost(env, peer, reason);
        });
    }
}

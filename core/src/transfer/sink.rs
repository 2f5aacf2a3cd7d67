//! The decode end: it reserves the pages, asks a prefill to fill them, and believes only what names its own attempt.
//!
//! ```text
//!            (no other end) Fake ------------------------------> Landed
//!               |
//!  want --> Connecting --(Hello fits)--> Waiting --(Handoff)---> Landed
//!            |    ^                        |
//!            |    | want                   | abort, deadline, peer lost or silent, hand-off of something else
//!            v    |                        v
//!            Retrying <--(another prefill)-+--(none left)------> SinkFailed
//! ```
//!
//! 1. An attempt is named by room, generation and both lives. What names another one is dropped and counted.
//! 2. A generation is given when the want is sent and grows with each of them, over all rooms of this life.
//! 3. An attempt that ends badly after its want was sent leaves a fence behind, unless the source is known to be done.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::digest::Digest;
use crate::event::{Refusal, Served};
use crate::id::{GpuPage, RequestId, Room, Token, WorkerId};
use crate::message::{AbortReason, End, Handoff, Message, Want};
use crate::mutant::Mutant;
use crate::op::Prompt;
use crate::time::Instant;
use crate::transfer::fence::Fences;
use crate::transfer::peer::{Link, Peers};
use crate::transfer::timer::{Timer, Timers};
use crate::transfer::{Attempt, Env, TransferEvent, Wait};

/// One request that takes over from a prefill.
#[derive(Debug)]
struct SinkRoom {
    request: RequestId,
    /// Kept for a prefill that was not told of the request.
    prompt: Prompt,
    deadline: Option<Instant>,
    /// Who was asked, the current one included.
    tried: Vec<WorkerId>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Lands in the next settle.
    Fake,
    /// The source is not ready to be asked.
    Connecting { source: WorkerId, have: u32, pages: Vec<GpuPage> },
    /// The source was asked.
    Waiting { source: WorkerId, attempt: Attempt },
    /// The scheduler is to ask another source.
    Retrying,
}

/// What is known of the source's writes when an attempt ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Writes {
    /// None in flight.
    Over,
    /// Some may be; the source knows that the attempt is over.
    Draining,
    /// Some may be; the source has to be told.
    Running,
}

/// What a call of [`Sink::want`] names.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) request: RequestId,
    pub(super) room: Room,
    pub(super) source: WorkerId,
    pub(super) prompt: &'a Prompt,
    pub(super) have: u32,
    pub(super) pages: &'a [GpuPage],
    pub(super) deadline: Option<Instant>,
    pub(super) is_fake: bool,
}

/// All rooms of this end.
#[derive(Debug, Default)]
pub(super) struct Sink {
    rooms: BTreeMap<Room, SinkRoom>,
    by_request: BTreeMap<RequestId, Room>,
    pub(super) fences: Fences,
}

impl Sink {
    /// Opens a room, or goes on with one whose last attempt has failed.
    pub(super) fn want(&mut self, env: &mut Env<'_, '_>, ask: &Ask<'_>, is_full: bool) -> Result<(), Refusal> {
        assert!(!self.fences.awaits(ask.request), "the pages of the last attempt go to quarantine first");
        let tried = match self.rooms.get(&ask.room) {
            Some(room) if room.request == ask.request && matches!(room.state, State::Retrying) => room.tried.clone(),
            Some(_) => return Err(Refusal::DuplicateRoom),
            None if is_full => return Err(Refusal::QueueFull { max: env.config.rooms_max }),
            None => Vec::new(),
        };
        let former = self.by_request.insert(ask.request, ask.room);
        assert!(former.is_none_or(|room| room == ask.room), "a request has one room");
        let (source, now) = (ask.source, env.cx.now);
        let state = if ask.is_fake {
            env.timers.set(Timer::Sink(ask.room), now);
            State::Fake
        } else {
            env.peers.entry(source).sinks.insert(ask.room);
            // A peer that is known not to fit fails the room in the next settle, through the same edge as a timeout.
            let is_refused = matches!(env.peers.link(source), Link::Refused(_));
            let due = if is_refused { now } else { now + env.config.bootstrap_timeout };
            env.timers.set(Timer::Sink(ask.room), sooner(due, ask.deadline));
            env.peers.watch(env.cx, env.config, env.timers, source);
            State::Connecting { source, have: ask.have, pages: ask.pages.to_vec() }
        };
        let mut room =
            SinkRoom { request: ask.request, prompt: ask.prompt.clone(), deadline: ask.deadline, tried, state };
        room.tried.push(source);
        self.rooms.insert(ask.room, room);
        if !ask.is_fake {
            self.send_want(env, ask.room);
        }
        Ok(())
    }

    /// The peer can be asked: sends the wants that have waited for it.
    pub(super) fn on_open(&mut self, env: &mut Env<'_, '_>, source: WorkerId) {
        let rooms: Vec<Room> = env.peers.get(source).into_iter().flat_map(|peer| peer.sinks.iter().copied()).collect();
        for room in rooms {
            self.send_want(env, room);
        }
    }

    fn send_want(&mut self, env: &mut Env<'_, '_>, id: Room) {
        let room = self.rooms.get_mut(&id).expect("the room of a peer");
        let State::Connecting { source, have, pages } = &mut room.state else { return };
        let source = *source;
        if !matches!(env.peers.link(source), Link::Open { .. }) {
            return;
        }
        let life = env.peers.life(source).expect("an open peer is up");
        let generation = env.peers.next_generation();
        let attempt = Attempt { room: id, generation, sink: env.peers.epoch(), source: life };
        let want = Want {
            room: id,
            generation: attempt.generation,
            epoch: attempt.sink,
            source: attempt.source,
            request: room.request,
            length: room.prompt.length,
            have: *have,
            pages: core::mem::take(pages),
            prompt: (room.tried.len() > 1).then(|| Box::new(room.prompt.clone())),
        };
        room.state = State::Waiting { source, attempt };
        env.timers.set(Timer::Sink(id), sooner(env.cx.now + env.config.waiting_timeout, room.deadline));
        env.cx.send(source, Message::Want(Box::new(want)));
    }

    /// The source says that all has landed.
    pub(super) fn on_handoff(&mut self, env: &mut Env<'_, '_>, from: WorkerId, handoff: &Handoff) -> bool {
        let mut attempt = Attempt::of_handoff(handoff);
        if env.config.mutation.is(Mutant::GenerationIgnored)
            && let Some(State::Waiting { attempt: current, .. }) = self.rooms.get(&attempt.room).map(|room| &room.state)
        {
            attempt = *current;
        }
        let Some(room) = self.current(from, attempt) else {
            // It crossed our abort. Nobody wants the pages, but no write is in flight either.
            return self.fences.on_ack(env, from, attempt);
        };
        let is_ours = handoff.request == room.request
            && handoff.length == room.prompt.length
            && handoff.last == room.prompt.keys.last().copied()
            && handoff.served.is_of(handoff.length);
        if is_ours {
            self.land(env, attempt.room, handoff.token, Some(handoff.served.clone()));
        } else {
            env.cx.mark("transfer.handoff_of_another");
            self.fail(env, attempt.room, AbortReason::Unknown, Writes::Over);
        }
        true
    }

    fn land(&mut self, env: &mut Env<'_, '_>, id: Room, token: Token, served: Option<Box<Served>>) {
        let room = self.close(env, id);
        env.cx.metrics.handoffs_received += 1;
        env.events.push(TransferEvent::Landed { request: room.request, token, served });
    }

    /// The source gives up. Its writes may still be in flight.
    pub(super) fn on_abort(
        &mut self,
        env: &mut Env<'_, '_>,
        from: WorkerId,
        attempt: Attempt,
        reason: AbortReason,
    ) -> bool {
        if self.current(from, attempt).is_none() {
            return self.fences.stands(from, attempt);
        }
        let is_believed = env.config.mutation.is(Mutant::FenceOnSourceAbort);
        let writes = if is_believed { Writes::Over } else { Writes::Draining };
        self.fail(env, attempt.room, reason, writes);
        true
    }

    /// The source says that no write of the attempt is in flight.
    pub(super) fn on_ack(&mut self, env: &mut Env<'_, '_>, from: WorkerId, attempt: Attempt) -> bool {
        if self.current(from, attempt).is_some() {
            // It gave up without saying so first; that can only mean that it does not know the room.
            self.fail(env, attempt.room, AbortReason::Unknown, Writes::Over);
            return true;
        }
        self.fences.on_ack(env, from, attempt)
    }

    /// The current attempt ends badly: the scheduler is to try another prefill, or to give up.
    pub(super) fn fail(&mut self, env: &mut Env<'_, '_>, id: Room, reason: AbortReason, writes: Writes) {
        let ended = self.end_attempt(env, id, reason, writes);
        let room = &self.rooms[&id];
        let request = room.request;
        let may_retry = !matches!(ended, State::Retrying)
            && room.deadline.is_none_or(|deadline| deadline > env.cx.now)
            // The client has gone: that it has not reached this end yet is a matter of moments.
            && reason != AbortReason::Cancelled
            && room.tried.len() <= env.config.retries_max as usize;
        match env.peers.choose(&room.tried) {
            Some(prefill) if may_retry => {
                env.timers.set(Timer::Sink(id), sooner(env.cx.now + env.config.waiting_timeout, room.deadline));
                env.cx.metrics.handoff_retries += 1;
                env.events.push(TransferEvent::Retry { request, prefill });
            }
            Some(_) | None => {
                self.close(env, id);
                env.cx.metrics.handoffs_failed += 1;
                env.events.push(TransferEvent::SinkFailed { request, reason });
            }
        }
    }

    /// The request will not go on here. False if it has no room at this end.
    pub(super) fn abort(&mut self, env: &mut Env<'_, '_>, request: RequestId, reason: AbortReason) -> bool {
        let Some(id) = self.by_request.get(&request).copied() else { return false };
        self.end_attempt(env, id, reason, Writes::Running);
        self.close(env, id);
        env.cx.metrics.handoffs_failed += 1;
        true
    }

    /// A life of the source is over: nothing of it can be written any more.
    pub(super) fn on_buried(&mut self, env: &mut Env<'_, '_>, source: WorkerId) {
        let fences: Vec<_> = env.peers.get(source).into_iter().flat_map(|peer| peer.fences.iter().copied()).collect();
        for generation in fences {
            self.fences.lift(env, generation);
        }
    }

    /// The source is gone, silent or refused: its rooms fail.
    pub(super) fn on_lost(&mut self, env: &mut Env<'_, '_>, source: WorkerId, reason: AbortReason) {
        let rooms: Vec<Room> = env.peers.get(source).into_iter().flat_map(|peer| peer.sinks.iter().copied()).collect();
        for id in rooms {
            self.fail(env, id, reason, Writes::Running);
        }
    }

    /// A deadline of a room has passed.
    pub(super) fn on_timer(&mut self, env: &mut Env<'_, '_>, id: Room) {
        let reason = match &self.rooms[&id].state {
            State::Fake => return self.land(env, id, Token(0), None),
            State::Connecting { source, .. } if matches!(env.peers.link(*source), Link::Refused(_)) => {
                AbortReason::Incompatible
            }
            State::Connecting { .. } | State::Waiting { .. } | State::Retrying => AbortReason::Deadline,
        };
        self.fail(env, id, reason, Writes::Running);
    }

    /// Which prefill could be asked next.
    pub(super) fn next_prefill(&self, peers: &Peers, request: RequestId) -> Option<WorkerId> {
        let room = self.rooms.get(self.by_request.get(&request)?)?;
        peers.choose(&room.tried)
    }

    /// Leaves the attempt behind: tells the source, and puts up a fence if it may still write. The room is to be
    /// retried or closed; the result is the state that it was in.
    fn end_attempt(&mut self, env: &mut Env<'_, '_>, id: Room, reason: AbortReason, writes: Writes) -> State {
        let room = self.rooms.get_mut(&id).expect("a room that is open");
        let ended = core::mem::replace(&mut room.state, State::Retrying);
        let (State::Connecting { source, .. } | State::Waiting { source, .. }) = ended else { return ended };
        env.peers.unbind(source, |peer| {
            peer.sinks.remove(&id);
        });
        if let State::Waiting { attempt, .. } = ended
            && writes != Writes::Over
            && env.peers.life(source) == Some(attempt.source)
        {
            if writes == Writes::Running {
                env.cx.send(source, attempt.abort(End::Sink, reason));
            }
            self.fences.raise(env, source, attempt, room.request, reason);
        }
        ended
    }

    /// Forgets a room.
    fn close(&mut self, env: &mut Env<'_, '_>, id: Room) -> SinkRoom {
        let room = self.rooms.remove(&id).expect("a room that is open");
        self.by_request.remove(&room.request);
        env.timers.clear(Timer::Sink(id));
        if let State::Connecting { source, .. } | State::Waiting { source, .. } = room.state {
            env.peers.unbind(source, |peer| {
                peer.sinks.remove(&id);
            });
        }
        room
    }

    /// The room of which this is the current attempt.
    fn current(&self, from: WorkerId, attempt: Attempt) -> Option<&SinkRoom> {
        self.rooms.get(&attempt.room).filter(|room| {
            matches!(room.state, State::Waiting { source, attempt: current } if source == from && current == attempt)
        })
    }

    /// All rooms, and whose they are.
    pub(super) fn all(&self) -> impl Iterator<Item = (Room, RequestId)> + '_ {
        self.rooms.iter().map(|(id, room)| (*id, room.request))
    }

    pub(super) fn has(&self, id: Room) -> bool {
        self.rooms.contains_key(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.rooms.len()
    }

    pub(super) fn waiting_on(&self, request: RequestId) -> Option<Wait> {
        let room = self.rooms.get(self.by_request.get(&request)?)?;
        Some(match room.state {
            State::Fake => Wait::Settle,
            State::Connecting { source, .. } => Wait::Peer(source),
            State::Waiting { source, .. } => Wait::Handoff(source),
            State::Retrying => Wait::Retry,
        })
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        for (id, room) in &self.rooms {
            digest.value(id);
            digest.value(&room.request);
            digest.value(&room.prompt);
            digest.value(&room.deadline);
            digest.value(&room.tried);
            match &room.state {
                State::Fake => digest.word(0),
                State::Connecting { source, have, pages } => {
                    digest.word(1);
                    digest.value(source);
                    digest.value(have);
                    digest.value(pages);
                }
                State::Waiting { source, attempt } => {
                    digest.word(2);
                    digest.value(source);
                    attempt.digest(digest);
                }
                State::Retrying => digest.word(3),
            }
        }
        self.fences.digest(digest);
    }

    pub(super) fn check(&self, peers: &Peers, timers: &Timers) {
        assert_eq!(self.by_request.len(), self.rooms.len(), "one room each");
        let mut bound = 0;
        for (id, room) in &self.rooms {
            assert_eq!(self.by_request.get(&room.request), Some(id), "a room under another request");
            assert!(timers.is_set(Timer::Sink(*id)), "a sink without a deadline");
            if let State::Connecting { source, .. } | State::Waiting { source, .. } = room.state {
                bound += 1;
                assert!(peers.get(source).is_some_and(|peer| peer.sinks.contains(id)), "a room that its peer ignores");
            }
            if let State::Waiting { source, attempt } = room.state {
                assert_eq!(peers.life(source), Some(attempt.source), "waiting for a life that is over");
                assert!(!self.fences.awaits(room.request), "two attempts on the pages of one request");
            }
        }
        assert_eq!(bound, peers.all().map(|(_, peer)| peer.sinks.len()).sum::<usize>(), "rooms of peers");
        self.fences.check(peers, timers);
    }
}

/// The earlier of a timeout and the request's deadline.
pub(super) fn sooner(timeout: Instant, deadline: Option<Instant>) -> Instant {
    deadline.map_or(timeout, |deadline| deadline.min(timeout))
}

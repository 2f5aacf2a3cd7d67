//! The prefill end: it pushes what the sink lacks as the prompt is computed, and hands over once all of it has landed.
//!
//! ```text
//!  offer --> Offered --(Want)--> Wanted --(hand_over, all pushes ended well)--> Sent
//!  Want  --> early   --(offer)--^  |
//!              |                   | abort, deadline, lane, peer lost
//!              v                   v
//!           refused             Draining --(last push ended)--> SourceFailed
//! ```
//!
//! 1. The first reason to end stands; nothing that comes later revives a room (sglang S-142).
//! 2. The lease is the scheduler's again only when no push that reads it is in flight.
//! 3. An abort leaves at once, the acknowledgement when the last push has ended. What is not known has no push in
//!    flight, so it is acknowledged at once.
//! 4. An offer that ends before its want came is remembered until the want can no longer be expected, so that the sink
//!    learns of it in one round trip instead of a timeout (sglang #28651).

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::config::TransferBackend;
use crate::cx::Owner;
use crate::event::{Refusal, Served};
use crate::id::{Generation, GpuPage, OpId, PageKey, RequestId, Room, Token, WorkerId};
use crate::message::{AbortReason, End, Want};
use crate::mutant::Mutant;
use crate::op::{Command, Fault, Outcome, Push};
use crate::time::Instant;
use crate::transfer::peer::Link;
use crate::transfer::sink::sooner;
use crate::transfer::timer::Timer;
use crate::transfer::{Attempt, Env, TransferEvent};

mod audit;

/// What a router announced.
#[derive(Clone, Copy, Debug)]
struct Offer {
    request: RequestId,
    length: u32,
    deadline: Option<Instant>,
}

/// What a sink asked for.
#[derive(Debug)]
struct Wanted {
    peer: WorkerId,
    attempt: Attempt,
    request: RequestId,
    length: u32,
    have: u32,
    /// Destination of page `have` and on.
    pages: Vec<GpuPage>,
}

/// What is handed over beside the pages.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) token: Token,
    /// Key of the last full page.
    pub(super) last: Option<PageKey>,
    /// Where the prompt's KV came from.
    pub(super) served: Box<Served>,
}

/// The other end of an offer.
#[derive(Debug)]
enum Other {
    Unknown,
    Fake,
    Known(Wanted),
}

/// A push in flight.
#[derive(Debug)]
struct Flight {
    pages: Vec<(GpuPage, GpuPage)>,
    after: Vec<OpId>,
    is_retry: bool,
}

/// One request that is handed over.
#[derive(Debug)]
struct SourceRoom {
    offer: Offer,
    other: Other,
    /// Pages of the prompt, in order, that were offered for pushing.
    pushed: u32,
    flights: BTreeMap<OpId, Flight>,
    answer: Option<Answer>,
    /// Why it will not be handed over.
    ended: Option<AbortReason>,
}

/// All rooms of this end. A number is in at most one of `rooms` and `early`.
#[derive(Debug, Default)]
pub(super) struct Source {
    rooms: BTreeMap<Room, SourceRoom>,
    /// Wants that no offer matches yet.
    early: BTreeMap<Room, Wanted>,
    /// Offers that ended before their want came.
    closed: BTreeMap<Room, (RequestId, AbortReason)>,
    by_request: BTreeMap<RequestId, Room>,
    ops: BTreeMap<OpId, Room>,
}

impl Source {
    /// A router announced a request.
    pub(super) fn offer(
        &mut self,
        env: &mut Env<'_, '_>,
        id: Room,
        offer: (RequestId, u32, Option<Instant>),
        is_fake: bool,
        is_full: bool,
    ) -> Result<(), Refusal> {
        let (request, length, deadline) = offer;
        if self.rooms.contains_key(&id) {
            return Err(Refusal::DuplicateRoom);
        }
        if is_full && !self.early.contains_key(&id) {
            return Err(Refusal::QueueFull { max: env.config.rooms_max });
        }
        assert!(self.by_request.insert(request, id).is_none(), "a request has one room");
        if self.closed.remove(&id).is_some() {
            env.timers.clear(Timer::Closed(id));
        }
        env.timers.clear(Timer::Early(id));
        let other = match self.early.remove(&id) {
            _ if is_fake => Other::Fake,
            None => Other::Unknown,
            Some(want) if want.request == request && want.length == length => Other::Known(want),
            Some(want) => {
                unbind(env, want.peer, id);
                refuse(env, want.peer, want.attempt, AbortReason::Unknown);
                Other::Unknown
            }
        };
        let timeout = match other {
            Other::Unknown => env.config.bootstrap_timeout,
            Other::Fake | Other::Known(_) => env.config.waiting_timeout,
        };
        env.timers.set(Timer::Source(id), sooner(env.cx.now + timeout, deadline));
        let offer = Offer { request, length, deadline };
        let room = SourceRoom { offer, other, pushed: 0, flights: BTreeMap::new(), answer: None, ended: None };
        self.rooms.insert(id, room);
        Ok(())
    }

    /// A sink has leased its pages.
    pub(super) fn on_want(&mut self, env: &mut Env<'_, '_>, from: WorkerId, mut want: Want, is_full: bool) {
        let attempt = Attempt::of_want(&want);
        let id = want.room;
        let prompt = want.prompt.take();
        let pages_total = want.length.div_ceil(env.peers.page_size().max(1));
        let is_well_formed = want.length > 0
            && want.have <= pages_total
            && want.pages.len() == (pages_total - want.have) as usize
            && prompt.as_ref().is_none_or(|prompt| {
                prompt.length == want.length && prompt.is_well_formed(env.peers.page_size().max(1))
            });
        let refusal = match self.rooms.get(&id) {
            _ if !matches!(env.peers.link(from), Link::Open { .. }) => Some(AbortReason::Incompatible),
            _ if !is_well_formed => Some(AbortReason::Unknown),
            _ if env.config.backend == TransferBackend::Fake || id.is_fake() => Some(AbortReason::Refused),
            _ if self.early.contains_key(&id) => Some(AbortReason::Duplicate),
            Some(room) if !matches!(room.other, Other::Unknown) => Some(AbortReason::Duplicate),
            Some(room) if room.offer.request != want.request => Some(AbortReason::Duplicate),
            Some(room) if room.offer.length != want.length => Some(AbortReason::Unknown),
            Some(_) => None,
            None => match self.closed.get(&id) {
                Some((request, reason)) if *request == want.request => {
                    let reason = Some(*reason);
                    self.closed.remove(&id);
                    env.timers.clear(Timer::Closed(id));
                    reason
                }
                Some(_) | None => is_full.then_some(AbortReason::Refused),
            },
        };
        if let Some(reason) = refusal {
            return refuse(env, from, attempt, reason);
        }
        env.peers.entry(from).sources.insert(id);
        env.peers.watch(env.cx, env.config, env.timers, from);
        let (request, length, have) = (want.request, want.length, want.have);
        let pages = if prompt.is_some() { want.pages.clone() } else { core::mem::take(&mut want.pages) };
        let wanted = Wanted { peer: from, attempt, request, length, have, pages };
        match self.rooms.get_mut(&id) {
            Some(room) => {
                let due = sooner(env.cx.now + env.config.waiting_timeout, room.offer.deadline);
                env.timers.set(Timer::Source(id), due);
                room.other = Other::Known(wanted);
                env.events.push(TransferEvent::Wanted { request });
            }
            None => {
                env.timers.set(Timer::Early(id), env.cx.now + env.config.bootstrap_timeout);
                self.early.insert(id, wanted);
                if prompt.is_some() {
                    want.prompt = prompt;
                    env.events.push(TransferEvent::Asked { from, want: Box::new(want) });
                }
            }
        }
    }

    /// The scheduler declines what it was asked for.
    pub(super) fn refuse(&mut self, env: &mut Env<'_, '_>, from: WorkerId, id: Room, generation: Generation) {
        let is_it = |want: &Wanted| want.peer == from && want.attempt.generation == generation;
        if self.early.get(&id).is_some_and(is_it) {
            self.drop_early(env, id, Some(AbortReason::Refused));
        }
    }

    /// Pages `from..` are complete, or will be once `after` is.
    pub(super) fn push(
        &mut self,
        env: &mut Env<'_, '_>,
        request: RequestId,
        from: u32,
        pages: &[GpuPage],
        after: &[OpId],
    ) {
        let Some(id) = self.by_request.get(&request).copied() else { return };
        let room = self.rooms.get_mut(&id).expect("the room of a request");
        assert_eq!(from, room.pushed, "pages are pushed in order and once");
        room.pushed += pages.len() as u32;
        let pages_total = room.offer.length.div_ceil(env.peers.page_size().max(1));
        assert!(room.pushed <= pages_total, "pages of the prompt");
        let want = match &room.other {
            Other::Unknown => panic!("pages are pushed once the room is wanted"),
            Other::Fake => return,
            Other::Known(want) => want,
        };
        let skip = (want.have.saturating_sub(from) as usize).min(pages.len());
        if room.ended.is_some() || skip == pages.len() {
            return;
        }
        let first = (from - want.have.min(from)) as usize;
        let pairs = pages[skip..].iter().copied().zip(want.pages[first..].iter().copied()).collect();
        self.start(env, id, Flight { pages: pairs, after: after.to_vec(), is_retry: false });
    }

    fn start(&mut self, env: &mut Env<'_, '_>, id: Room, flight: Flight) {
        let room = self.rooms.get_mut(&id).expect("a room that is open");
        let Other::Known(want) = &room.other else { return };
        let pieces = match env.peers.link(want.peer) {
            Link::Open { pieces, .. } => *pieces,
            Link::Down | Link::Greeting | Link::Refused(_) => 1,
        };
        let push = Push {
            to: want.peer,
            epoch: want.attempt.sink,
            room: id,
            generation: want.attempt.generation,
            pages: flight.pages.clone(),
            pieces,
        };
        let op = env.cx.start(Owner::Transfer, flight.after.clone(), Command::Push(Box::new(push)));
        room.flights.insert(op, flight);
        self.ops.insert(op, id);
    }

    /// The prompt is complete. True if all of it had landed, and the hand-off is out.
    pub(super) fn hand_over(&mut self, env: &mut Env<'_, '_>, request: RequestId, answer: Answer) -> bool {
        let Some(id) = self.by_request.get(&request).copied() else { return false };
        let room = self.rooms.get_mut(&id).expect("the room of a request");
        if room.ended.is_some() {
            return false;
        }
        assert!(room.answer.is_none(), "a prompt is handed over once");
        let pages_total = room.offer.length.div_ceil(env.peers.page_size().max(1));
        assert!(room.pushed == pages_total || matches!(room.other, Other::Fake), "all pages were pushed");
        room.answer = Some(answer);
        // The caller reports it in the next settle.
        self.close(env, id).is_some()
    }

    /// A push has ended.
    pub(super) fn on_done(&mut self, env: &mut Env<'_, '_>, op: OpId, outcome: &Outcome) -> bool {
        let Some(id) = self.ops.remove(&op) else { return false };
        if env.config.mutation.is(Mutant::HandoffBeforeLanded) && !self.rooms.contains_key(&id) {
            return true;
        }
        let room = self.rooms.get_mut(&id).expect("a room lives as long as its pushes");
        let flight = room.flights.remove(&op).expect("listed in both");
        let (failed, fault) = failures(&flight, outcome);
        env.cx.metrics.push_pages += (flight.pages.len() - failed.len()) as u64;
        match fault {
            Some(_) if room.ended.is_some() => {}
            Some(fault) if flight.is_retry || !is_worth_a_retry(fault) => self.end(env, id, AbortReason::Lane, true),
            Some(_) => {
                env.cx.mark("transfer.push_again");
                let after = flight.after.into_iter().filter(|op| env.cx.ops.is_live(*op)).collect();
                self.start(env, id, Flight { pages: failed, after, is_retry: true });
            }
            None => {}
        }
        self.advance(env, id);
        true
    }

    /// The room will not be handed over. Only the first reason counts.
    pub(super) fn end(&mut self, env: &mut Env<'_, '_>, id: Room, reason: AbortReason, tell: bool) {
        let Some(room) = self.rooms.get_mut(&id).filter(|room| room.ended.is_none()) else { return };
        room.ended = Some(reason);
        env.cx.metrics.handoffs_failed += 1;
        env.timers.clear(Timer::Source(id));
        match &room.other {
            Other::Known(want) if tell && env.peers.life(want.peer) == Some(want.attempt.sink) => {
                env.cx.send(want.peer, want.attempt.abort(End::Source, reason));
            }
            Other::Unknown if self.closed.len() < env.config.rooms_max as usize => {
                self.closed.insert(id, (room.offer.request, reason));
                env.timers.set(Timer::Closed(id), env.cx.now + env.config.bootstrap_timeout);
            }
            Other::Unknown | Other::Fake | Other::Known(_) => {}
        }
        if let (true, Other::Known(want)) = (env.config.mutation.is(Mutant::AckBeforeDrained), &room.other) {
            env.cx.send(want.peer, want.attempt.ack());
        }
        self.advance(env, id);
    }

    /// Closes a room whose last push has ended, if nothing else is to come, and says how it went.
    fn advance(&mut self, env: &mut Env<'_, '_>, id: Room) {
        if let Some(event) = self.close(env, id) {
            env.events.push(event);
        }
    }

    fn close(&mut self, env: &mut Env<'_, '_>, id: Room) -> Option<TransferEvent> {
        let room = self.rooms.get(&id)?;
        let is_early = env.config.mutation.is(Mutant::HandoffBeforeLanded) && room.ended.is_none();
        if !room.flights.is_empty() && !is_early || room.ended.is_none() && room.answer.is_none() {
            return None;
        }
        let room = self.rooms.remove(&id).expect("looked up above");
        let request = room.offer.request;
        self.by_request.remove(&request);
        env.timers.clear(Timer::Source(id));
        let peer = match &room.other {
            Other::Known(want) if env.peers.life(want.peer) == Some(want.attempt.sink) => Some(want),
            Other::Known(_) | Other::Unknown | Other::Fake => None,
        };
        let event = match (room.ended, room.answer) {
            (Some(reason), _) => {
                if let Some(want) = peer
                    && !env.config.mutation.is(Mutant::AckLost)
                {
                    env.cx.send(want.peer, want.attempt.ack());
                }
                TransferEvent::SourceFailed { request, reason }
            }
            (None, answer) => {
                let answer = answer.expect("the reason to be here");
                if let Some(want) = peer {
                    env.cx.send(want.peer, want.attempt.hand_off(request, want.length, answer));
                }
                env.cx.metrics.handoffs_sent += 1;
                TransferEvent::Sent { request }
            }
        };
        if let Other::Known(want) = &room.other {
            unbind(env, want.peer, id);
        }
        Some(event)
    }

    /// The request will not go on here. False if it has no room at this end.
    pub(super) fn abort(&mut self, env: &mut Env<'_, '_>, request: RequestId, reason: AbortReason) -> bool {
        let id = self.by_request.get(&request).copied();
        if let Some(id) = id {
            self.end(env, id, reason, true);
        }
        id.is_some()
    }

    /// The sink gives up. It is told once nothing is in flight, which may be now.
    pub(super) fn on_abort(&mut self, env: &mut Env<'_, '_>, from: WorkerId, attempt: Attempt, reason: AbortReason) {
        let is_it = |want: &Wanted| want.peer == from && want.attempt == attempt;
        let id = attempt.room;
        if self.early.get(&id).is_some_and(is_it) {
            self.drop_early(env, id, None);
            env.cx.send(from, attempt.ack());
        } else if matches!(self.rooms.get(&id), Some(SourceRoom { other: Other::Known(want), .. }) if is_it(want)) {
            self.end(env, id, reason, false);
        } else {
            // Whatever is not known has no push in flight; that none will start is what `admit` sees to.
            env.peers.admit(from, attempt.generation);
            env.cx.mark("transfer.abort_of_unknown");
            if !env.config.mutation.is(Mutant::AckLost) {
                env.cx.send(from, attempt.ack());
            }
        }
    }

    /// The peer is gone, silent or refused: its rooms end.
    pub(super) fn on_lost(&mut self, env: &mut Env<'_, '_>, peer: WorkerId, reason: AbortReason) {
        let rooms: Vec<Room> = env.peers.get(peer).into_iter().flat_map(|peer| peer.sources.iter().copied()).collect();
        for id in rooms {
            if self.early.contains_key(&id) {
                self.drop_early(env, id, Some(reason));
            } else {
                self.end(env, id, reason, true);
            }
        }
    }

    /// The deadline of an offer has passed.
    pub(super) fn on_timer(&mut self, env: &mut Env<'_, '_>, id: Room) {
        self.end(env, id, AbortReason::Deadline, true);
    }

    /// No offer came for a want.
    pub(super) fn on_early_timer(&mut self, env: &mut Env<'_, '_>, id: Room) {
        self.drop_early(env, id, Some(AbortReason::Unknown));
    }

    /// The want of a closed offer can no longer be expected.
    pub(super) fn on_closed_timer(&mut self, id: Room) {
        self.closed.remove(&id);
    }

    /// Forgets a want that no offer matched, and tells the sink if there is a reason to tell.
    fn drop_early(&mut self, env: &mut Env<'_, '_>, id: Room, reason: Option<AbortReason>) {
        let Some(want) = self.early.remove(&id) else { return };
        env.timers.clear(Timer::Early(id));
        unbind(env, want.peer, id);
        if let Some(reason) = reason
            && env.peers.life(want.peer) == Some(want.attempt.sink)
        {
            refuse(env, want.peer, want.attempt, reason);
        }
    }
}

/// Declines an attempt of which no push was ever started.
pub(super) fn refuse(env: &mut Env<'_, '_>, to: WorkerId, attempt: Attempt, reason: AbortReason) {
    env.cx.mark("transfer.want_refused");
    env.cx.send(to, attempt.abort(End::Source, reason));
    env.cx.send(to, attempt.ack());
}

fn unbind(env: &mut Env<'_, '_>, peer: WorkerId, id: Room) {
    env.peers.unbind(peer, |peer| {
        peer.sources.remove(&id);
    });
}

/// The pages of a push that did not land, and the fault of the first of them.
fn failures(flight: &Flight, outcome: &Outcome) -> (Vec<(GpuPage, GpuPage)>, Option<Fault>) {
    match outcome {
        Outcome::Moved => (Vec::new(), None),
        Outcome::Partly(failed) => {
            let page = |(index, _): &(u32, Fault)| flight.pages.get(*index as usize).copied();
            // A driver that names pages that are not there is believed in nothing.
            let pages = failed.iter().map(page).collect::<Option<_>>().unwrap_or_else(|| flight.pages.clone());
            (pages, failed.first().map(|(_, fault)| *fault))
        }
        Outcome::Failed(fault) => (flight.pages.clone(), Some(*fault)),
        // No answer to a push. Nothing of it can be relied on.
        Outcome::Sampled(_) | Outcome::Found(_) | Outcome::Scanned { .. } => {
            (flight.pages.clone(), Some(Fault::Device))
        }
    }
}

/// False for faults that trying again cannot mend.
const fn is_worth_a_retry(fault: Fault) -> bool {
    match fault {
        Fault::Prerequisite | Fault::Fenced | Fault::Withdrawn | Fault::Namespace => false,
        Fault::Missing | Fault::Checksum | Fault::Io | Fault::Full | Fault::Unreachable | Fault::Device => true,
    }
}

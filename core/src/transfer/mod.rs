//! The hand-off of KV from prefill to decode, both ends, and the peers of a worker.
//!
//! ```text
//!  decode worker (sink)                                prefill worker (source)
//!    want ---- Want: my pages, and those I have ------->  offer, or Asked
//!                                                         is_wanted: the prompt may be computed
//!    pages  <======== pushes (wire lane) ==============   push, chunk by chunk, layer by layer
//!    Landed <- Handoff: length, last key, first token --  hand_over, once all pushes have ended well
//!
//!    abort ---- Abort ---------------------------------->  no push starts; those in flight end
//!    Fenced <-- AbortAck --------------------------------  SourceFailed
//! ```
//!
//! Owns rooms, attempts, peers and pages in quarantine; plans no forwards, allocates no pages.
//!
//! 1. Destination first: nothing is pushed that the sink has not leased for this very attempt.
//! 2. An attempt is (room, generation, life of the sink, life of the source). What fits no attempt is dropped and
//!    counted; nothing that a peer sends can stop the worker.
//! 3. Every state but one has a deadline, and every one an abort edge. The one is a source that waits for its pushes
//!    in flight: deadlines give up on requests, never on memory.
//! 4. Pages of an ended attempt are released by proof, never by time; see `fence`.
//! 5. A step costs what is due, not what is open.

mod attempt;
mod event;
mod fence;
pub mod layout;
mod peer;
pub mod registry;
mod route;
mod sink;
mod source;
mod timer;
mod view;

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::config::{Mode, TransferBackend, TransferConfig};
use crate::cx::Cx;
use crate::digest::Digest;
use crate::event::{Refusal, Served};
use crate::id::{Epoch, Generation, GpuPage, OpId, PageKey, RequestId, Room, Token, WorkerId};
use crate::kv::Lease;
use crate::limits::TRANSFER_TIMERS_PER_STEP;
use crate::message::{AbortReason, Hello, Mismatch, VERSION};
use crate::op::{Outcome, Prompt};
use crate::time::Instant;
use crate::transfer::attempt::Attempt;
use crate::transfer::peer::{Link, Peers};
use crate::transfer::sink::{Ask, Sink};
use crate::transfer::source::{Answer, Source};
use crate::transfer::timer::{Timer, Timers};

pub use event::{TransferEvent, Wait};
pub use view::{PeerView, QuarantineView, RoomView};

/// Both ends of all hand-offs of one worker, and what it knows of its peers.
#[derive(Debug)]
pub struct Transfer {
    config: TransferConfig,
    peers: Peers,
    source: Source,
    sink: Sink,
    timers: Timers,
    /// Hand-offs that went out with [`Transfer::hand_over`], which could not say so.
    sent: Vec<RequestId>,
}

/// What the worker and `Transfer` lend to the two ends for one call.
struct Env<'e, 'c> {
    cx: &'e mut Cx<'c>,
    config: &'e TransferConfig,
    peers: &'e mut Peers,
    timers: &'e mut Timers,
    events: &'e mut Vec<TransferEvent>,
}

impl Transfer {
    /// No rooms, no peers.
    #[must_use]
    pub fn new(config: TransferConfig, mode: Mode, epoch: Epoch, root: PageKey) -> Self {
        let layout = config.layout.clone();
        let hello = Hello { version: VERSION, epoch, mode, root, layout, generation: Generation::default() };
        Self {
            config,
            peers: Peers::new(hello),
            source: Source::default(),
            sink: Sink::default(),
            timers: Timers::default(),
            sent: Vec::new(),
        }
    }

    /// Has it make a deliberate mistake from here on.
    #[cfg(test)]
    fn mutate(&mut self, mutation: crate::mutant::Mutation) {
        self.config.mutation = mutation;
    }

    /// Source: a router announced a prefill leg. It becomes [`TransferEvent::Wanted`] once the sink's pages are known
    /// (at once, through [`Transfer::is_wanted`], if they are). A room that [`Room::is_fake`] has no other end.
    ///
    /// # Errors
    /// [`Refusal::DuplicateRoom`], or [`Refusal::QueueFull`] when as many rooms are open as may be.
    ///
    /// # Panics
    /// If the request is in another room already.
    pub fn offer(
        &mut self,
        cx: &mut Cx<'_>,
        request: RequestId,
        room: Room,
        length: u32,
        deadline: Option<Instant>,
    ) -> Result<(), Refusal> {
        if self.sink.has(room) {
            return Err(Refusal::DuplicateRoom);
        }
        let is_full = self.is_full();
        let is_fake = self.config.backend == TransferBackend::Fake || room.is_fake();
        self.with(cx, |source, _, env| source.offer(env, room, (request, length, deadline), is_fake, is_full))
    }

    /// Source: declines a [`TransferEvent::Asked`].
    pub fn refuse(&mut self, cx: &mut Cx<'_>, from: WorkerId, room: Room, generation: Generation) {
        self.with(cx, |source, _, env| source.refuse(env, from, room, generation));
    }

    /// Source: true once the sink's pages are known, until the attempt ends.
    #[must_use]
    pub fn is_wanted(&self, request: RequestId) -> bool {
        self.source.is_wanted(request)
    }

    /// Source: a forward was started (or cached pages were found) after which pages `from..from + pages.len()` of the
    /// sequence will be complete. Pushes those that the sink lacks, ordered behind `after` (layer by layer). Pages are
    /// offered in order and once, from page 0, those that the sink has included; the call with the partial last page
    /// is the last one. Ignored once the attempt has ended.
    ///
    /// # Panics
    /// If pages are skipped or repeated, or the room is not wanted yet.
    pub fn push(&mut self, cx: &mut Cx<'_>, request: RequestId, from: u32, pages: &[GpuPage], after: &[OpId]) {
        self.with(cx, |source, _, env| source.push(env, request, from, pages, after));
    }

    /// Source: the prompt is complete; hands over once all pushes have landed. Ignored once the attempt has ended.
    ///
    /// # Panics
    /// If not all pages were pushed.
    pub fn hand_over(
        &mut self,
        cx: &mut Cx<'_>,
        request: RequestId,
        token: Token,
        last: Option<PageKey>,
        served: Box<Served>,
    ) {
        let answer = Answer { token, last, served };
        let is_sent = self.with(cx, |source, _, env| source.hand_over(env, request, answer));
        if is_sent {
            self.sent.push(request);
            self.timers.set(Timer::Sent, cx.now);
        }
    }

    /// Sink: asks `prefill` to fill `pages` (destinations of page `have` and on) of a prompt. The first call opens the
    /// room; a call after [`TransferEvent::Retry`] goes on with it. [`WorkerId::FAKE`] and rooms that
    /// [`Room::is_fake`] land in the next settle.
    ///
    /// # Errors
    /// [`Refusal::DuplicateRoom`], or [`Refusal::QueueFull`] when as many rooms are open as may be.
    ///
    /// # Panics
    /// If `have` and `pages` do not make up the prompt, or the pages of an earlier attempt were not quarantined.
    #[expect(clippy::too_many_arguments, reason = "what a sink's offer consists of")]
    pub fn want(
        &mut self,
        cx: &mut Cx<'_>,
        request: RequestId,
        room: Room,
        prefill: WorkerId,
        prompt: &Prompt,
        have: u32,
        pages: &[GpuPage],
        deadline: Option<Instant>,
    ) -> Result<(), Refusal> {
        let pages_total = prompt.length.div_ceil(self.peers.page_size().max(1)) as usize;
        let is_fake = self.config.backend == TransferBackend::Fake || prefill == WorkerId::FAKE || room.is_fake();
        assert!(is_fake || have as usize + pages.len() == pages_total, "a destination for each missing page");
        if self.source.has(room) {
            return Err(Refusal::DuplicateRoom);
        }
        let is_full = self.is_full();
        let ask = Ask { request, room, source: prefill, prompt, have, pages, deadline, is_fake };
        self.with(cx, |_, sink, env| sink.want(env, &ask, is_full))
    }

    /// Sink: the prefill that a failed request could be handed to, by now; `None` if there is none that it has not
    /// tried, is up, answers and fits.
    #[must_use]
    pub fn next_prefill(&self, request: RequestId) -> Option<WorkerId> {
        self.sink.next_prefill(&self.peers, request)
    }

    /// Either end: the request will not go on here. A source answers with [`TransferEvent::SourceFailed`] once nothing
    /// is in flight (perhaps at once, in the returned events); a sink's lease goes to [`Transfer::quarantine`].
    /// Harmless for a request that has no room.
    #[must_use]
    pub fn abort(&mut self, cx: &mut Cx<'_>, request: RequestId, reason: AbortReason) -> Vec<TransferEvent> {
        self.collect(cx, |source, sink, env| {
            source.abort(env, request, reason);
            sink.abort(env, request, reason);
        })
    }

    /// Sink: takes the lease of an ended attempt until no remote write can land in it ([`TransferEvent::Fenced`],
    /// perhaps at once, in the returned events).
    ///
    /// # Panics
    /// If the attempt has not ended.
    #[must_use]
    pub fn quarantine(&mut self, cx: &mut Cx<'_>, lease: Lease) -> Vec<TransferEvent> {
        assert!(
            matches!(self.sink.waiting_on(lease.request()), None | Some(Wait::Retry)),
            "pages that are being filled are not given up"
        );
        self.collect(cx, |_, sink, env| env.events.extend(sink.fences.keep(lease)))
    }

    /// A push has ended.
    #[must_use]
    pub fn on_done(&mut self, cx: &mut Cx<'_>, op: OpId, outcome: Outcome) -> Vec<TransferEvent> {
        self.collect(cx, |source, _, env| {
            if !source.on_done(env, op, &outcome) {
                env.cx.metrics.stale_inputs += 1;
            }
        })
    }

    /// Deadlines, heartbeats, repeated aborts.
    #[must_use]
    pub fn settle(&mut self, cx: &mut Cx<'_>) -> Vec<TransferEvent> {
        let mut events: Vec<_> = self.sent.drain(..).map(|request| TransferEvent::Sent { request }).collect();
        for _ in 0..TRANSFER_TIMERS_PER_STEP {
            let Some(timer) = self.timers.pop(cx.now) else { break };
            match timer {
                Timer::Sent => {}
                Timer::Source(room) => self.with_events(cx, &mut events, |source, _, env| source.on_timer(env, room)),
                Timer::Early(room) => {
                    self.with_events(cx, &mut events, |source, _, env| source.on_early_timer(env, room));
                }
                Timer::Closed(room) => self.source.on_closed_timer(room),
                Timer::Sink(room) => self.with_events(cx, &mut events, |_, sink, env| sink.on_timer(env, room)),
                Timer::Fence(generation) => {
                    self.with_events(cx, &mut events, |_, sink, env| sink.fences.on_timer(env, generation));
                }
                Timer::Ping(peer) => {
                    if self.peers.on_timer(cx, &self.config, &mut self.timers, peer) {
                        cx.mark("transfer.silent");
                        self.lose(cx, &mut events, peer, AbortReason::Lost);
                    }
                }
            }
        }
        events
    }

    /// When the hand-off wants a tick, and why.
    #[must_use]
    pub fn deadline(&self) -> Option<(Instant, &'static str)> {
        self.timers.first()
    }

    /// Leases in quarantine.
    pub fn quarantined(&self) -> impl Iterator<Item = &Lease> {
        self.sink.fences.leases()
    }

    /// What the room of a request waits for; `None` if it has none.
    #[must_use]
    pub fn waiting_on(&self, request: RequestId) -> Option<Wait> {
        let is_sent = self.sent.contains(&request);
        let settle = is_sent.then_some(Wait::Settle);
        settle.or_else(|| self.source.waiting_on(request)).or_else(|| self.sink.waiting_on(request))
    }

    /// Why a peer and we refuse each other, if we do.
    #[must_use]
    pub fn mismatch(&self, peer: WorkerId) -> Option<&Mismatch> {
        match self.peers.link(peer) {
            Link::Refused(mismatch) => Some(mismatch),
            Link::Down | Link::Greeting | Link::Open { .. } => None,
        }
    }

    /// Rooms open, both ends together.
    #[must_use]
    pub fn rooms(&self) -> usize {
        self.source.len() + self.sink.len()
    }

    /// True if no room is open and no page in quarantine: the process may end.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.rooms() == 0 && self.sink.fences.is_empty() && self.sent.is_empty()
    }

    /// Feeds all state that can change the future.
    pub fn digest(&self, digest: &mut Digest) {
        self.peers.digest(digest);
        self.source.digest(digest);
        self.sink.digest(digest);
        self.timers.digest(digest);
        digest.value(&self.sent);
    }

    /// Panics on a broken invariant.
    pub fn check(&self) {
        self.timers.check();
        self.peers.check(&self.timers);
        self.source.check(&self.peers, &self.timers);
        self.sink.check(&self.peers, &self.timers);
        assert!(self.sent.is_empty() || self.timers.is_set(Timer::Sent), "events that nobody will collect");
        for timer in self.timers.all() {
            let is_owned = match timer {
                Timer::Sent => true,
                Timer::Source(room) => self.source.has(room),
                Timer::Early(room) => self.source.has_early(room),
                Timer::Closed(room) => self.source.has_closed(room),
                Timer::Sink(room) => self.sink.has(room),
                Timer::Fence(generation) => self.sink.fences.has(generation),
                Timer::Ping(peer) => self.peers.get(peer).is_some(),
            };
            assert!(is_owned, "a deadline of something that is gone: {timer:?}");
        }
    }

    fn is_full(&self) -> bool {
        self.rooms() >= self.config.rooms_max as usize
    }

    /// Runs a call that causes no events.
    fn with<R>(&mut self, cx: &mut Cx<'_>, call: impl FnOnce(&mut Source, &mut Sink, &mut Env<'_, '_>) -> R) -> R {
        let mut events = Vec::new();
        let result = self.with_events(cx, &mut events, call);
        assert!(events.is_empty(), "an event that nobody would hear of");
        result
    }

    /// Runs a call and returns its events.
    fn collect(
        &mut self,
        cx: &mut Cx<'_>,
        call: impl FnOnce(&mut Source, &mut Sink, &mut Env<'_, '_>),
    ) -> Vec<TransferEvent> {
        let mut events = Vec::new();
        self.with_events(cx, &mut events, call);
        events
    }

    fn with_events<R>(
        &mut self,
        cx: &mut Cx<'_>,
        events: &mut Vec<TransferEvent>,
        call: impl FnOnce(&mut Source, &mut Sink, &mut Env<'_, '_>) -> R,
    ) -> R {
        let mut env = Env { cx, config: &self.config, peers: &mut self.peers, timers: &mut self.timers, events };
        call(&mut self.source, &mut self.sink, &mut env)
    }
}

#[cfg(test)]
mod tests;

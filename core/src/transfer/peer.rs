//! The connections of one worker: who is up, in which life, whether its KV fits, whether it answers.
//!
//! ```text
//!  Down --(peer up)--> Greeting --(Hello fits)--> Open
//!   ^                     |                        |
//!   |                     +--(Hello or Incompatible)--> Refused
//!   +------(peer gone, or up in a new life)-- from any --+
//! ```
//!
//! 1. A silent peer is not a gone one: its rooms fail, but its writes may still land until it is torn down.
//! 2. Wants of one life carry growing generations, and its Hello says how far they had got: one that is not newer than
//!    all before it is a copy, or of an earlier connection.
//! 3. Peers are pinged while rooms are open with them, and while they are silent, so that their return is noticed
//!    (one failure must not shut a peer out for ever, sglang #25287).

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};

use crate::codec::Codec;
use crate::config::{Mode, TransferConfig};
use crate::cx::Cx;
use crate::digest::Digest;
use crate::id::{Epoch, Generation, Room, WorkerId};
use crate::message::{Hello, Message, Mismatch, VERSION};
use crate::mutant::Mutant;
use crate::transfer::layout;
use crate::transfer::timer::{Timer, Timers};

/// How far the acquaintance with a peer has got.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) enum Link {
    /// No connection.
    #[default]
    Down,
    /// Connected; its Hello is awaited.
    Greeting,
    /// Its KV fits.
    Open {
        /// What it serves.
        mode: Mode,
        /// Contiguous pieces of one page and layer on the way from here to there.
        pieces: u32,
    },
    /// Its KV does not fit.
    Refused(Mismatch),
}

/// What is known of one peer.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// The latest life heard of.
    epoch: Epoch,
    link: Link,
    /// The largest generation of a want, or of an abort of one that never came.
    newest: Generation,
    /// Number of the last ping.
    pinged: u64,
    /// Number of the last ping that was answered.
    answered: u64,
    /// Pings in a row without an answer.
    missed: u32,
    silent: bool,
    /// Rooms in which it is the source.
    pub(super) sinks: BTreeSet<Room>,
    /// Rooms in which it is the sink.
    pub(super) sources: BTreeSet<Room>,
    /// Ended attempts of which it may still write.
    pub(super) fences: BTreeSet<Generation>,
}

/// What a reported connection means for the rooms of the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rise {
    /// Nothing: known before, or an earlier life.
    Stale,
    /// It was down.
    First,
    /// It was up in an earlier life, which is over.
    Replaced,
}

/// All peers.
#[derive(Debug)]
pub(super) struct Peers {
    hello: Box<Hello>,
    all: BTreeMap<WorkerId, Peer>,
}

impl Peers {
    /// Nobody yet; `hello` is what peers are told.
    pub(super) fn new(hello: Hello) -> Self {
        Self { hello: Box::new(hello), all: BTreeMap::new() }
    }

    /// This worker's life.
    pub(super) fn epoch(&self) -> Epoch {
        self.hello.epoch
    }

    /// The name of a new attempt: larger than all before it, over all rooms and peers of this life.
    pub(super) fn next_generation(&mut self) -> Generation {
        // Four thousand million attempts are more than a year of a hundred each second.
        let next = self.hello.generation.0.checked_add(1).expect("a life ends before its generations");
        self.hello.generation = Generation(next);
        self.hello.generation
    }

    /// Tokens per page, here and at every open peer.
    pub(super) fn page_size(&self) -> u32 {
        self.hello.layout.page_size
    }

    /// What a connection in life `epoch` would mean.
    pub(super) fn judge(&self, id: WorkerId, epoch: Epoch) -> Rise {
        match self.all.get(&id) {
            None => Rise::First,
            Some(peer) if epoch < peer.epoch => Rise::Stale,
            Some(peer) if peer.link == Link::Down => Rise::First,
            Some(peer) if epoch == peer.epoch => Rise::Stale,
            Some(_) => Rise::Replaced,
        }
    }

    /// Greets a peer that is connected.
    pub(super) fn rise(&mut self, cx: &mut Cx<'_>, id: WorkerId, epoch: Epoch) {
        let peer = self.all.entry(id).or_default();
        if peer.epoch != epoch {
            peer.newest = Generation::default();
        }
        (peer.epoch, peer.link) = (epoch, Link::Greeting);
        (peer.pinged, peer.answered, peer.missed, peer.silent) = (0, 0, 0, false);
        cx.send(id, Message::Hello(self.hello.clone()));
    }

    /// Notes that a peer is torn down. Its rooms and fences are the caller's to end.
    pub(super) fn fall(&mut self, timers: &mut Timers, id: WorkerId) {
        if let Some(peer) = self.all.get_mut(&id) {
            peer.link = Link::Down;
            peer.silent = false;
        }
        timers.clear(Timer::Ping(id));
    }

    /// Compares a peer's Hello with ours. `None` if it came out of turn.
    pub(super) fn on_hello(
        &mut self,
        cx: &mut Cx<'_>,
        config: &TransferConfig,
        timers: &mut Timers,
        id: WorkerId,
        hello: &Hello,
    ) -> Option<&Link> {
        let peer = self.all.get_mut(&id).filter(|peer| peer.link != Link::Down && hello.epoch == peer.epoch)?;
        peer.newest = peer.newest.max(hello.generation);
        if peer.link != Link::Greeting {
            return None;
        }
        let ours = &self.hello;
        let plan = if hello.version == VERSION {
            layout::plan(&ours.layout, &hello.layout)
        } else {
            Err(Mismatch::Version { ours: VERSION, theirs: hello.version })
        };
        peer.link = match plan {
            Ok(_) if hello.root != ours.root && !config.mutation.is(Mutant::NamespaceIgnored) => {
                Link::Refused(Mismatch::Namespace)
            }
            Ok(plan) => Link::Open { mode: hello.mode, pieces: plan.pieces.max(1) },
            Err(mismatch) => Link::Refused(mismatch),
        };
        if let Link::Refused(mismatch) = &peer.link {
            cx.mark("transfer.incompatible");
            cx.send(id, Message::Incompatible(mismatch.clone()));
        }
        self.watch(cx, config, timers, id);
        self.all.get(&id).map(|peer| &peer.link)
    }

    /// Notes that the peer refuses us. False if it came out of turn.
    pub(super) fn on_incompatible(&mut self, id: WorkerId, mismatch: Mismatch) -> bool {
        let Some(peer) = self.all.get_mut(&id).filter(|peer| peer.link != Link::Down) else { return false };
        if !matches!(peer.link, Link::Refused(_)) {
            peer.link = Link::Refused(mismatch);
        }
        true
    }

    /// Notes an answer to a ping. False if it answers none.
    pub(super) fn on_pong(&mut self, id: WorkerId, number: u64) -> bool {
        let Some(peer) = self.all.get_mut(&id) else { return false };
        if number <= peer.answered || number > peer.pinged {
            return false;
        }
        (peer.answered, peer.missed, peer.silent) = (number, 0, false);
        true
    }

    /// Asks for a sign of life, if there is still a reason to. True if the peer has become silent, and its rooms
    /// should fail.
    pub(super) fn on_timer(
        &mut self,
        cx: &mut Cx<'_>,
        config: &TransferConfig,
        timers: &mut Timers,
        id: WorkerId,
    ) -> bool {
        let Some(peer) = self.all.get_mut(&id) else { return false };
        if !peer.is_watched() {
            return false;
        }
        let lost = peer.missed >= config.heartbeat_failures_max;
        if lost {
            peer.silent = true;
            peer.missed = 0;
        }
        peer.pinged += 1;
        peer.missed += 1;
        cx.send(id, Message::Ping { number: peer.pinged });
        timers.set(Timer::Ping(id), cx.now + config.heartbeat_interval);
        lost
    }

    /// Starts to ping a peer, if there is a reason to.
    pub(super) fn watch(&self, cx: &Cx<'_>, config: &TransferConfig, timers: &mut Timers, id: WorkerId) {
        if self.all.get(&id).is_some_and(Peer::is_watched) && !timers.is_set(Timer::Ping(id)) {
            timers.set(Timer::Ping(id), cx.now + config.heartbeat_interval);
        }
    }

    /// True if a want of this generation is not a copy of an earlier one; remembers it.
    pub(super) fn admit(&mut self, id: WorkerId, generation: Generation) -> bool {
        let Some(peer) = self.all.get_mut(&id) else { return false };
        let is_newer = generation > peer.newest;
        peer.newest = peer.newest.max(generation);
        is_newer
    }

    /// The peer, made known if it was not.
    pub(super) fn entry(&mut self, id: WorkerId) -> &mut Peer {
        self.all.entry(id).or_default()
    }

    /// Changes what is open with a peer; forgets one that never came up once nothing is.
    pub(super) fn unbind(&mut self, id: WorkerId, change: impl FnOnce(&mut Peer)) {
        let Some(peer) = self.all.get_mut(&id) else { return };
        change(peer);
        if peer.link == Link::Down && peer.epoch == Epoch::default() && peer.rooms() == 0 {
            self.all.remove(&id);
        }
    }

    /// The peer.
    pub(super) fn get(&self, id: WorkerId) -> Option<&Peer> {
        self.all.get(&id)
    }

    /// The life in which the peer is connected.
    pub(super) fn life(&self, id: WorkerId) -> Option<Epoch> {
        self.all.get(&id).filter(|peer| peer.link != Link::Down).map(|peer| peer.epoch)
    }

    /// How far the acquaintance has got.
    pub(super) fn link(&self, id: WorkerId) -> &Link {
        self.all.get(&id).map_or(&Link::Down, |peer| &peer.link)
    }

    /// The prefill worker with the fewest rooms in common with us, of those that answer, fit and were not tried.
    pub(super) fn choose(&self, tried: &[WorkerId]) -> Option<WorkerId> {
        let serves = |peer: &Peer| matches!(peer.link, Link::Open { mode: Mode::Prefill, .. }) && !peer.silent;
        self.all
            .iter()
            .filter(|(id, peer)| serves(peer) && !tried.contains(id))
            .min_by_key(|(id, peer)| (peer.rooms(), **id))
            .map(|(id, _)| *id)
    }

    /// All peers, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = (WorkerId, &Peer)> {
        self.all.iter().map(|(id, peer)| (*id, peer))
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        self.hello.encode(digest);
        for (id, peer) in &self.all {
            digest.value(id);
            peer.digest(digest);
        }
    }

    pub(super) fn check(&self, timers: &Timers) {
        for (id, peer) in &self.all {
            assert!(timers.is_set(Timer::Ping(*id)) || !peer.is_watched(), "open rooms that nobody watches");
            assert!(peer.answered <= peer.pinged, "an answer to no ping");
            assert!(peer.link != Link::Down || peer.fences.is_empty(), "a fence against a peer that is torn down");
        }
    }
}

impl Peer {
    /// True while its silence would matter.
    fn is_watched(&self) -> bool {
        matches!(self.link, Link::Open { .. }) && (self.rooms() > 0 || self.silent)
    }

    /// The latest life heard of.
    pub(super) const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// True if it does not answer pings.
    pub(super) const fn is_silent(&self) -> bool {
        self.silent
    }

    /// Rooms open with it.
    pub(super) fn rooms(&self) -> usize {
        self.sinks.len() + self.sources.len()
    }

    fn digest(&self, digest: &mut Digest) {
        digest.value(&self.epoch);
        match &self.link {
            Link::Down => digest.word(0),
            Link::Greeting => digest.word(1),
            Link::Open { mode, pieces } => {
                digest.word(2);
                digest.value(mode);
                digest.value(pieces);
            }
            Link::Refused(mismatch) => {
                digest.word(3);
                digest.value(mismatch);
            }
        }
        digest.value(&self.newest);
        for word in [self.pinged, self.answered, u64::from(self.missed), u64::from(self.silent)] {
            digest.word(word);
        }
        for room in self.sinks.iter().chain(&self.sources) {
            digest.value(room);
        }
        for generation in &self.fences {
            digest.value(generation);
        }
    }
}

//! What becomes of what workers and the router say to each other: lost, twice, overtaken, late, or held back.
//!
//! ```text
//!   sent ──fate──▶ at its time ──is the way cut?──▶ delivered
//!          │ drop                    │ yes
//!          ▼                         ▼
//!        nothing                   held, in order, until the cut heals
//! ```
//!
//! 1. Between two ends, what is not reordered on purpose arrives in the order in which it was sent, however late.
//! 2. A cut loses nothing: connections are TCP's, which sends again until it gets through or gives up. Who gives up
//!    is a fault of its own (`lost_peer`, `drop`, the router's patience in `partition`).
//! 3. While nothing is active this changes no time and draws nothing.

use std::collections::BTreeMap;

use pd_core::event::Event;
use pd_core::id::{Epoch, RequestId};
use pd_core::op::Input;
use pd_core::rng::Rng;
use pd_core::router::RouterInput;
use pd_core::time::Instant;

use super::{Hits, Peer, Share};
use crate::lane::Letter;
use crate::node::Serve;
use crate::world::WorldOf;

/// The router as an end; workers are ends by their index.
pub(crate) const ROUTER: u32 = u32::MAX;

/// Whose messages a fault concerns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Scope {
    pub(crate) worker: u32,
    /// Everybody, the router included, if none.
    pub(crate) peer: Option<Peer>,
    /// Only what the worker says, not what it hears.
    pub(crate) one_way: bool,
}

/// What may happen to a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// A message between workers, or news for the router: anything.
    Loose,
    /// A request on its way to a worker: it can meet a closed door or be late, but HTTP neither repeats nor reorders it.
    Ask,
    /// Part of an open stream: it can only be late.
    Stream,
}

/// What a noise does to a message that it hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Noise {
    Drop,
    /// A copy follows so much later.
    Duplicate(u64),
    /// It is so much later, and others overtake it.
    Reorder(u64),
    /// It is so much later, and those behind it, too.
    Delay(u64),
    /// Another one comes along; if that is the router's, so much later. See [`Post::stray`].
    Stray(u64),
}

/// Makes a fault of a noise between two ends: its keys `worker`, `peer`, `one_way`, `share` and `lasts`, a stream of its
/// own name, what it does to a message, and what else of its keys has to be checked.
macro_rules! noisy {
    ($fault:ident, $noise:expr $(, $check:expr)?) => {
        impl $crate::fault::Fault for $fault {
            fn check(&self, places: &$crate::fault::Places) -> Result<(), $crate::fault::Wrong> {
                $(
                    let check: fn(&Self) -> Result<(), $crate::fault::Wrong> = $check;
                    check(self)?;
                )?
                places.ends(self.worker, self.peer)
            }

            fn lasts(&self) -> Option<std::time::Duration> {
                self.lasts.map(|span| span.0)
            }

            fn begin<M: $crate::node::Serve>(&self, world: &mut $crate::world::WorldOf<M>, line: u32) {
                let Self { worker, peer, one_way, share, .. } = *self;
                let scope = $crate::fault::post::Scope { worker, peer, one_way };
                let stream = pd_core::rng::Stream::$fault;
                let rng = pd_core::rng::Rng::new(world.faults.seed, stream, u64::from(line));
                let noise: fn(&Self) -> Noise = $noise;
                world.faults.post.add_noise(line, scope, share, noise(self), rng);
            }

            fn end<M: $crate::node::Serve>(&self, world: &mut $crate::world::WorldOf<M>, line: u32) {
                world.faults.post.end_noise(line);
            }
        }
    };
}
pub(super) use noisy;

/// When a message arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fate {
    /// Never if none.
    pub(crate) at: Option<Instant>,
    /// Once more.
    pub(crate) copy: Option<Instant>,
}

/// Something that waits behind a cut.
#[derive(Debug)]
pub(crate) enum Parcel {
    Letter(Box<Letter>),
    Note(Box<RouterInput>),
    Emit { node: u32, epoch: Epoch, request: RequestId, event: Event },
}

#[derive(Debug)]
struct Active {
    line: u32,
    scope: Scope,
    share: Share,
    noise: Noise,
    rng: Rng,
}

/// All that is between the ends.
#[derive(Debug, Default)]
pub(crate) struct Post {
    noises: Vec<Active>,
    cuts: Vec<(u32, Scope)>,
    held: Vec<(u32, u32, Parcel)>,
    /// The latest arrival between two ends, while there is noise.
    latest: BTreeMap<(u32, u32), Instant>,
    busy_until: Instant,
}

impl Scope {
    /// True if it concerns what `from` says to `to`.
    pub(crate) fn covers(&self, from: u32, to: u32) -> bool {
        let is_peer = |end: u32| match self.peer {
            None => true,
            Some(Peer::Worker(peer)) => end == peer,
            Some(Peer::Router) => end == ROUTER,
        };
        from == self.worker && is_peer(to) || !self.one_way && to == self.worker && is_peer(from)
    }
}

impl Post {
    /// True if messages take their usual way.
    pub(crate) fn is_quiet(&self, now: Instant) -> bool {
        self.noises.is_empty() && self.cuts.is_empty() && (self.latest.is_empty() || now > self.busy_until)
    }

    pub(super) fn add_noise(&mut self, line: u32, scope: Scope, share: Share, noise: Noise, rng: Rng) {
        self.noises.push(Active { line, scope, share, noise, rng });
    }

    pub(super) fn end_noise(&mut self, line: u32) {
        self.noises.retain(|active| active.line != line);
    }

    pub(super) fn cut(&mut self, line: u32, scope: Scope) {
        self.cuts.push((line, scope));
    }

    pub(super) fn heal(&mut self, line: u32) {
        self.cuts.retain(|(other, _)| *other != line);
    }

    /// The line of the script that lets nothing through from one end to the other.
    pub(crate) fn cut_by(&self, from: u32, to: u32) -> Option<u32> {
        self.cuts.iter().find(|(_, scope)| scope.covers(from, to)).map(|(line, _)| *line)
    }

    pub(crate) fn hold(&mut self, from: u32, to: u32, parcel: Parcel) {
        self.held.push((from, to, parcel));
    }

    /// When a message arrives that would arrive at `at`.
    pub(crate) fn fate(&mut self, at: Instant, from: u32, to: u32, class: Class, hits: &mut Hits) -> Fate {
        let (mut late, mut overtaken, mut copy, mut is_lost) = (0, 0, None, false);
        for active in self.noises.iter_mut().filter(|active| active.scope.covers(from, to)) {
            let concerns = match active.noise {
                Noise::Drop => class != Class::Stream,
                Noise::Duplicate(_) | Noise::Reorder(_) => class == Class::Loose,
                Noise::Delay(_) => true,
                Noise::Stray(_) => false,
            };
            if !concerns || !active.share.draw(&mut active.rng) {
                continue;
            }
            hits.add(active.line, 1);
            match active.noise {
                Noise::Drop => is_lost = true,
                Noise::Duplicate(by) => copy = Some(by),
                Noise::Reorder(by) => overtaken += by,
                Noise::Delay(by) => late += by,
                Noise::Stray(_) => {}
            }
        }
        if is_lost {
            return Fate::default();
        }
        let latest = self.latest.entry((from, to)).or_default();
        let in_order = at.after_ns(late).max(*latest);
        let at = in_order.after_ns(overtaken);
        if overtaken == 0 {
            *latest = in_order;
            self.busy_until = self.busy_until.max(in_order);
        }
        Fate { at: Some(at), copy: copy.map(|by| at.after_ns(by)) }
    }
}

impl Post {
    /// For a message that names an attempt: how much later another one comes along, and a draw that says which.
    pub(crate) fn stray(&mut self, from: u32, to: u32, hits: &mut Hits) -> Option<(u64, u64)> {
        self.noises.iter_mut().filter(|active| active.scope.covers(from, to)).find_map(|active| {
            let Noise::Stray(by) = active.noise else { return None };
            active.share.draw(&mut active.rng).then(|| {
                hits.add(active.line, 1);
                (by, active.rng.next())
            })
        })
    }
}

impl<M: Serve> WorldOf<M> {
    /// Delivers what was held back, in order; what is still cut off is held again.
    pub(super) fn deliver_held(&mut self) {
        for (from, to, parcel) in std::mem::take(&mut self.faults.post.held) {
            if self.faults.post.cut_by(from, to).is_some() {
                self.faults.post.hold(from, to, parcel);
                continue;
            }
            match parcel {
                Parcel::Letter(letter) => self.deliver(*letter),
                Parcel::Note(input) => self.feed_router(*input),
                Parcel::Emit { node, epoch, request, event } => self.emit(node, epoch, request, event),
            }
        }
    }
}

/// Who sent an input to a worker; none for what comes from nowhere else.
pub(crate) fn sender(input: &Input) -> Option<u32> {
    match input {
        Input::Recv { from, .. } => Some(from.0),
        Input::Peer { id, .. } => Some(id.0),
        Input::Submit(_) | Input::Cancel { .. } => Some(ROUTER),
        // An operator is at the machine's own console.
        Input::Tick | Input::Done { .. } | Input::Control(_) => None,
    }
}

/// Which worker sent a note to the router. That a worker is gone needs no word of it.
pub(crate) fn reporter(input: &RouterInput) -> Option<u32> {
    match input {
        RouterInput::Worker { id, up: Some(_) } => Some(id.0),
        RouterInput::Load { worker, .. } | RouterInput::Changes { worker, .. } => Some(worker.0),
        RouterInput::Worker { up: None, .. }
        | RouterInput::Tick
        | RouterInput::Submit(_)
        | RouterInput::Cancel { .. }
        | RouterInput::FirstToken { .. }
        | RouterInput::Finished { .. }
        | RouterInput::Failed { .. }
        | RouterInput::Drain { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use pd_core::rng::Stream;

    use super::*;

    const ALL: Scope = Scope { worker: 1, peer: None, one_way: false };

    fn post(noise: Noise) -> (Post, Hits) {
        let mut post = Post::default();
        post.add_noise(0, ALL, Share::ALL, noise, Rng::new(1, Stream::Fault, 0));
        (post, Hits::default())
    }

    #[test]
    fn a_scope_covers_both_directions_or_one_and_the_peer_that_it_names() {
        assert!(ALL.covers(1, 2) && ALL.covers(2, 1) && ALL.covers(1, ROUTER) && !ALL.covers(2, 3));
        let one_way = Scope { one_way: true, ..ALL };
        assert!(one_way.covers(1, 2) && !one_way.covers(2, 1));
        let router = Scope { peer: Some(Peer::Router), ..ALL };
        assert!(router.covers(ROUTER, 1) && !router.covers(2, 1));
        let worker = Scope { peer: Some(Peer::Worker(2)), ..ALL };
        assert!(worker.covers(2, 1) && !worker.covers(3, 1) && !worker.covers(ROUTER, 1));
    }

    #[test]
    fn what_is_late_is_not_overtaken_by_what_follows_it() {
        let (mut post, mut hits) = post(Noise::Delay(100));
        let first = post.fate(Instant(10), 1, 2, Class::Stream, &mut hits);
        post.end_noise(0);
        // Not at that very instant either: it may be on its way still.
        assert!(!post.is_quiet(Instant(110)) && post.is_quiet(Instant(111)));
        let second = post.fate(Instant(20), 1, 2, Class::Stream, &mut hits);
        assert_eq!((first.at, second.at, hits.of(0)), (Some(Instant(110)), Some(Instant(110)), 1));
        // Another way is not held up.
        assert_eq!(post.fate(Instant(20), 2, 1, Class::Stream, &mut hits).at, Some(Instant(20)));
    }

    #[test]
    fn what_is_reordered_is_overtaken() {
        let (mut post, mut hits) = post(Noise::Reorder(100));
        let first = post.fate(Instant(10), 1, 2, Class::Loose, &mut hits);
        post.end_noise(0);
        let second = post.fate(Instant(20), 1, 2, Class::Loose, &mut hits);
        assert_eq!((first.at, second.at), (Some(Instant(110)), Some(Instant(20))));
    }

    #[test]
    fn streams_lose_and_repeat_nothing() {
        let (mut drop, mut hits) = post(Noise::Drop);
        assert_eq!(drop.fate(Instant(1), 1, ROUTER, Class::Stream, &mut hits).at, Some(Instant(1)));
        assert_eq!(drop.fate(Instant(1), 1, 2, Class::Loose, &mut hits).at, None);
        assert_eq!(drop.fate(Instant(1), ROUTER, 1, Class::Ask, &mut hits).at, None);
        let (mut twice, mut hits) = post(Noise::Duplicate(5));
        assert_eq!(twice.fate(Instant(1), ROUTER, 1, Class::Ask, &mut hits).copy, None);
        assert_eq!(twice.fate(Instant(1), 1, 2, Class::Loose, &mut hits).copy, Some(Instant(6)));
        assert_eq!(hits.of(0), 1);
    }
}

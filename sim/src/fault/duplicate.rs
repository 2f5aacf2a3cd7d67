//! Messages come twice: a sender that repeats itself after a timeout, a bus that delivers at least once.
//!
//! Concerns messages between workers and what they report to the router.

use std::time::Duration;

use pd_core::rng::{Rng, Stream};
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::post::{Noise, Scope};
use super::{Fault, Peer, Share};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// Messages that come twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Duplicate {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// The other end; everybody, the router included, if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// Only what the worker says, not what it hears.
    #[serde(default)]
    pub one_way: bool,
    /// Of the messages.
    pub share: Share,
    /// How long behind the first the second one comes; a millisecond by default.
    #[serde(default = "one_millisecond")]
    pub delay: Span,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

const fn one_millisecond() -> Span {
    Span(Duration::from_millis(1))
}

impl Fault for Duplicate {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.ends(self.worker, self.peer)
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let scope = Scope { worker: self.worker, peer: self.peer, one_way: self.one_way };
        let rng = Rng::new(world.faults.seed, Stream::Duplicate, u64::from(line));
        world.faults.post.add_noise(line, scope, self.share, Noise::Duplicate(self.delay.ns()), rng);
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.faults.post.end_noise(line);
    }
}

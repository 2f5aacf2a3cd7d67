//! Messages are overtaken by later ones: several connections or paths between two ends, a sender with several threads.
//!
//! Concerns messages between workers and what they report to the router.

use std::time::Duration;

use pd_core::rng::{Rng, Stream};
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong, some_time};
use super::post::{Noise, Scope};
use super::{Fault, Peer, Share};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// Messages that are overtaken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reorder {
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
    /// By how much it is late, in which time others overtake it; a millisecond by default.
    #[serde(default = "one_millisecond")]
    pub delay: Span,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

const fn one_millisecond() -> Span {
    Span(Duration::from_millis(1))
}

impl Fault for Reorder {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        some_time("delay", self.delay.0)?;
        places.ends(self.worker, self.peer)
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let scope = Scope { worker: self.worker, peer: self.peer, one_way: self.one_way };
        let rng = Rng::new(world.faults.seed, Stream::Reorder, u64::from(line));
        world.faults.post.add_noise(line, scope, self.share, Noise::Reorder(self.delay.ns()), rng);
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.faults.post.end_noise(line);
    }
}

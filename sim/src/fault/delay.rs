//! Messages are late: a congested network, a sender that is short of CPU. What follows a late one waits behind it.
//!
//! Concerns everything that is said between the two ends, requests and answers included, but no KV.

use std::time::Duration;

use pd_core::rng::{Rng, Stream};
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong, some_time};
use super::post::{Noise, Scope};
use super::{Fault, Peer, Share};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// Messages that are late.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// The other end; everybody, the router included, if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// Only what the worker says, not what it hears.
    #[serde(default)]
    pub one_way: bool,
    /// Of the messages; all by default.
    #[serde(default)]
    pub share: Share,
    /// By how much.
    pub delay: Span,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

impl Fault for Delay {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        some_time("delay", self.delay.0)?;
        places.ends(self.worker, self.peer)
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let scope = Scope { worker: self.worker, peer: self.peer, one_way: self.one_way };
        let rng = Rng::new(world.faults.seed, Stream::Delay, u64::from(line));
        world.faults.post.add_noise(line, scope, self.share, Noise::Delay(self.delay.ns()), rng);
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.faults.post.end_noise(line);
    }
}

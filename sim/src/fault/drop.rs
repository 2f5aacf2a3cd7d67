//! Messages vanish on connections that are up: a broken sender, a full buffer that nobody checks, a lossy bus.
//!
//! Messages between workers and what they report to the router are lost; a request on its way to a worker meets a closed
//! door, which the router hears of. Open streams lose nothing.

use std::time::Duration;

use pd_core::rng::{Rng, Stream};
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::post::{Noise, Scope};
use super::{Fault, Peer, Share};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// Messages that vanish.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drop {
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
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

impl Fault for Drop {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.ends(self.worker, self.peer)
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let scope = Scope { worker: self.worker, peer: self.peer, one_way: self.one_way };
        let rng = Rng::new(world.faults.seed, Stream::Drop, u64::from(line));
        world.faults.post.add_noise(line, scope, self.share, Noise::Drop, rng);
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.faults.post.end_noise(line);
    }
}

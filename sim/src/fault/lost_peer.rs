//! The connection between two workers breaks and comes back while both live on: a NIC that resets, a flow that a
//! firewall forgets, a queue pair in error (sglang #10560, #25287).
//!
//! Both ends hear that the peer is gone; pushes under way fail and what was on its way is lost. After a while, and not
//! before both have heard of it, they are connected again in the same lives and greet each other as strangers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::{Fault, Peer};
use crate::lane::Mark;
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A connection that breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LostPeer {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// Index of the other one; all of its peers if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<u32>,
    /// For how long; a second by default.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

impl Fault for LostPeer {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.pairs("lost_peer")?;
        places.ends(self.worker, self.peer.map(Peer::Worker))
    }

    fn lasts(&self) -> Option<Duration> {
        Some(self.lasts.unwrap_or(Span::seconds(1)).0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        for other in world.peers(self.worker) {
            if self.peer.is_none_or(|peer| peer == other) {
                let was_up = world.disconnect(self.worker, other, line);
                world.fabric.hits.add(line, u64::from(was_up));
            }
        }
    }

    fn again<M: Serve>(&self, world: &mut WorldOf<M>, line: u32, turn: u32) {
        if let Some(again) = world.reconnect(line) {
            world.fabric.heap.push(again, Mark::Again { line, turn: turn + 1 });
        }
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        self.again(world, line, 0);
    }
}

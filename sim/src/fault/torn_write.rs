//! Writes of a window of time are cut at 4 KiB sectors, though the disk says that all went well: a cache without
//! power-loss protection, a controller that lies about its flushes.
//!
//! The length of the object or its checksum gives it away to a reader.

use std::time::Duration;

use pd_core::rng::{Rng, Stream};
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::stores::Kind;
use super::{Fault, Share};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// Writes that are cut short.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TornWrite {
    /// Index of the store, in the order of the workers that have one.
    #[serde(default)]
    pub store: u32,
    /// Of the objects written.
    #[serde(default)]
    pub share: Share,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

impl Fault for TornWrite {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.store(self.store)
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let rng = Rng::new(world.faults.seed, Stream::TornWrite, u64::from(line));
        world.fabric.depots[self.store as usize].faults.add(line, self.share, Kind::Torn, rng);
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.fabric.depots[self.store as usize].faults.end(line);
    }
}

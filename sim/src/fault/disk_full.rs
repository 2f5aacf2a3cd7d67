//! A disk takes nothing new: something else has filled it.
//!
//! Objects that are there can be read, removed and found present; a write of a new one fails with "no space left".

use std::time::Duration;

use pd_core::rng::{Rng, Stream};
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::stores::Kind;
use super::{Fault, Share};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A disk that is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskFull {
    /// Index of the store, in the order of the workers that have one.
    #[serde(default)]
    pub store: u32,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

impl Fault for DiskFull {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.store(self.store)
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        // Nothing hangs on its draws: a full disk takes nothing at all.
        let rng = Rng::new(world.faults.seed, Stream::DiskError, u64::from(line));
        world.fabric.depots[self.store as usize].faults.add(line, Share::ALL, Kind::Full, rng);
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.fabric.depots[self.store as usize].faults.end(line);
    }
}

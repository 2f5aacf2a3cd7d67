//! Reads or writes of a disk fail with EIO: a dying device, a lost path, a network file system that is away.
//!
//! Each object of a read or write is drawn by itself; a query or a listing fails as a whole, like a read.

use std::time::Duration;

use pd_core::rng::{Rng, Stream};
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::stores::Kind;
use super::{Fault, Share};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A disk that fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskError {
    /// Index of the store, in the order of the workers that have one.
    #[serde(default)]
    pub store: u32,
    /// Of the objects read and written.
    #[serde(default)]
    pub share: Share,
    /// Reads fail.
    #[serde(default = "yes")]
    pub reads: bool,
    /// Writes fail.
    #[serde(default = "yes")]
    pub writes: bool,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

const fn yes() -> bool {
    true
}

impl Fault for DiskError {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        if !self.reads && !self.writes {
            return Err(Wrong::new("reads", "reads and writes are both false; one of them must fail"));
        }
        places.store(self.store)
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let rng = Rng::new(world.faults.seed, Stream::DiskError, u64::from(line));
        world.fabric.depots[self.store as usize].faults.add(
            line,
            self.share,
            Kind::Error { reads: self.reads, writes: self.writes },
            rng,
        );
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.fabric.depots[self.store as usize].faults.end(line);
    }
}

//! Writes land in the place of another object, though the disk says that all went well: a firmware or file system bug
//! (Bairavasundaram et al., "An Analysis of Data Corruption in the Storage Stack", FAST 2008).
//!
//! The object that was to be written is not there; that in whose place it went has a header of another page.

use std::time::Duration;

use pd_core::rng::{Rng, Stream};
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::stores::Kind;
use super::{Fault, Share};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// Writes that go astray.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MisdirectedWrite {
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

impl Fault for MisdirectedWrite {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.store(self.store)
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let rng = Rng::new(world.faults.seed, Stream::MisdirectedWrite, u64::from(line));
        world.fabric.depots[self.store as usize].faults.add(line, self.share, Kind::Misdirected, rng);
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.fabric.depots[self.store as usize].faults.end(line);
    }
}

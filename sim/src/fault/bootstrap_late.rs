//! The bootstrap registry is not there yet when workers want to register (sglang #23430: no retry; #24772: the decode
//! worker dies of it). They try again until it is; nobody knows anybody before.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Fault;
use super::places::{Places, Wrong, some_time};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A registry that comes late.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapLate {
    /// For how long it is not there.
    #[serde(rename = "for")]
    pub lasts: Span,
}

impl Fault for BootstrapLate {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        some_time("for", self.lasts.0)?;
        places.pairs("bootstrap_late")
    }

    fn lasts(&self) -> Option<Duration> {
        Some(self.lasts.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        if let Some(registry) = &mut world.faults.registry {
            registry.leave(line);
        }
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        if let Some(registry) = &mut world.faults.registry {
            registry.come_back(line);
        }
    }
}

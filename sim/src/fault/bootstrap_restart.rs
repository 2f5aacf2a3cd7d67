//! The bootstrap registry restarts and has forgotten everybody. Workers that know each other go on; each registers
//! again at its next renewal, and whoever is new meanwhile waits for it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Fault;
use super::places::{Places, Wrong};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A restart of the registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapRestart {
    /// How long it is away; a second by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_for: Option<Span>,
}

impl Fault for BootstrapRestart {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.pairs("bootstrap_restart")
    }

    fn lasts(&self) -> Option<Duration> {
        Some(self.down_for.unwrap_or(Span::seconds(1)).0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        if let Some(registry) = &mut world.faults.registry {
            registry.reset();
            registry.leave(line);
            world.fabric.hits.add(line, 1);
        }
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        if let Some(registry) = &mut world.faults.registry {
            registry.come_back(line);
        }
    }
}

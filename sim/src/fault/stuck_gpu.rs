//! No forward ends for a while: a hung collective, a driver that resets, an Xid error that clears (the watchdog's case).
//! What is on the device is as much later as the device stood still. A restart of the worker resets the device.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Fault;
use super::places::{Places, Wrong, some_time};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A device that stands still.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StuckGpu {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// For how long.
    #[serde(rename = "for")]
    pub lasts: Span,
}

impl Fault for StuckGpu {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        some_time("for", self.lasts.0)?;
        places.worker(self.worker)
    }

    fn lasts(&self) -> Option<Duration> {
        Some(self.lasts.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let node = &mut world.nodes[self.worker as usize];
        if node.pump.is_some() {
            node.lanes.stall(world.now, world.now + self.lasts.0, line, &mut world.fabric);
        }
    }
}

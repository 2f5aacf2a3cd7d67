//! Forwards take longer: a device that throttles for heat or power, a noisy neighbour. Concerns forwards that are
//! issued from here on, in this life of the worker and the next.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::{Fault, Speed};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A slow device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlowGpu {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// How fast it still is: 0.5 doubles the time of a forward.
    pub factor: Speed,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

impl Fault for SlowGpu {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        if self.factor.is_stopped() {
            return Err(Wrong::new("factor", "factor is 0; a device that stands still is a stuck_gpu"));
        }
        places.worker(self.worker)
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let node = &mut world.nodes[self.worker as usize];
        node.slow.push((line, self.factor));
        node.lanes.set_slow(&node.slow);
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let node = &mut world.nodes[self.worker as usize];
        node.slow.retain(|(other, _)| *other != line);
        node.lanes.set_slow(&node.slow);
    }
}

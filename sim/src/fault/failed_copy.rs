//! A copy between L1 and L2 fails: an uncorrectable error of host memory, a link that goes down under it. What it would
//! have written is not there.

use pd_core::op::LaneKind;
use serde::{Deserialize, Serialize};

use super::Fault;
use super::places::{Places, Wrong};
use crate::node::Serve;
use crate::world::WorldOf;

/// Copies that fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedCopy {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// Which way; both if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<Side>,
    /// How many of the next ones of this life, each way; one by default.
    #[serde(default = "one")]
    pub count: u32,
}

/// The two ways between host and device, as links call them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Load backs.
    H2d,
    /// Backups.
    D2h,
}

const fn one() -> u32 {
    1
}

impl Fault for FailedCopy {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        if self.count == 0 {
            return Err(Wrong::new("count", "count is 0; at least one copy must fail"));
        }
        places.worker(self.worker)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let node = &mut world.nodes[self.worker as usize];
        if node.pump.is_none() {
            return;
        }
        for (side, lane) in [(Side::H2d, LaneKind::CopyIn), (Side::D2h, LaneKind::CopyOut)] {
            if self.side.is_none_or(|wanted| wanted == side) {
                node.lanes.fail_copies(lane, line, self.count);
            }
        }
    }
}

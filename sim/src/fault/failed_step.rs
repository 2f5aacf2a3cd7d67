//! A forward fails: out of memory, an uncorrectable ECC error, an illegal access. What it would have written is not
//! there, what was there before is. Forwards that were issued behind it fail with it, as a stream in error does it.

use serde::{Deserialize, Serialize};

use super::Fault;
use super::places::{Places, Wrong};
use crate::node::Serve;
use crate::world::WorldOf;

/// Forwards that fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedStep {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// How many of the next ones of this life; one by default.
    #[serde(default = "one")]
    pub count: u32,
}

const fn one() -> u32 {
    1
}

impl Fault for FailedStep {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        if self.count == 0 {
            return Err(Wrong::new("count", "count is 0; at least one forward must fail"));
        }
        places.worker(self.worker)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let node = &mut world.nodes[self.worker as usize];
        if node.pump.is_some() {
            node.lanes.fail_forwards(line, self.count);
        }
    }
}

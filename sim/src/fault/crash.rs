//! The machine of a worker fails: power, kernel, hardware.
//!
//! Unlike in a [restart](super::Restart) nobody writes the operating system's cache out: of what no fsync had covered
//! in its private L3, each object is kept, torn or lost. A store that several workers share is on machines of its own
//! and is not touched. Other workers of the machine have lines of their own.

use pd_core::config::StorageMode;
use serde::{Deserialize, Serialize};

use super::Fault;
use super::places::{Places, Wrong};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A crash.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crash {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// How long the power is away; for good if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_for: Option<Span>,
}

impl Fault for Crash {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.worker(self.worker)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let was_up = world.stop(self.worker);
        world.fabric.hits.add(line, u64::from(was_up));
        let node = &mut world.nodes[self.worker as usize];
        if let Some(store) = node.spec.store
            && node.config.kv.storage != StorageMode::Shared
        {
            world.fabric.depots[store as usize].store.crash(&mut world.rng);
        }
        match self.down_for {
            Some(down_for) => world.start_later(self.worker, down_for.ns()),
            // A restart that was under way does not come back either.
            None => node.config.epoch.0 += 1,
        }
    }
}

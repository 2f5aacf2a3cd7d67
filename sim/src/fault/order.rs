//! An operator's order to a worker: flush, attach, detach, clear, drain. Not a fault, but as well timed as one.

use pd_core::event::Control;
use pd_core::op::Input;
use pd_core::router::RouterInput;
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use crate::node::Serve;
use crate::world::WorldOf;

/// Whom it is given to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
}

impl Order {
    pub(super) fn check(self, places: &Places) -> Result<(), Wrong> {
        places.worker(self.worker)
    }

    pub(super) fn give<M: Serve>(self, control: Control, world: &mut WorldOf<M>, line: u32) {
        if world.fabric.lives[self.worker as usize].is_some() {
            world.fabric.hits.add(line, 1);
        }
        if control == Control::Drain {
            // As a router learns of it from a worker's readiness: no new requests are sent there.
            let worker = world.nodes[self.worker as usize].config.worker;
            world.feed_router(RouterInput::Drain { worker });
        }
        world.post(self.worker, 0, Input::Control(control));
    }
}

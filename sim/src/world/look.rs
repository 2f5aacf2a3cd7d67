//! What can be seen of a world from outside.

use pd_core::router::Router;

use super::WorldOf;
use crate::fault::Action;
use crate::lane::Fabric;
use crate::node::Serve;

impl<M: Serve> WorldOf<M> {
    /// How many workers there are, those that are down included.
    #[must_use]
    pub fn workers_count(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// The router's machine, if there is one.
    #[must_use]
    pub fn router(&self) -> Option<&Router> {
        self.router.as_ref().map(|router| &router.pump.machine)
    }

    /// True if the script sets the clock of a worker apart from the others.
    #[must_use]
    pub fn has_skewed_clocks(&self) -> bool {
        self.script.iter().any(|(_, action)| matches!(action, Action::ClockSkew(_)))
    }

    /// Links, disks and stores.
    #[must_use]
    pub const fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// Requests that have arrived, and those of them that have not ended.
    #[must_use]
    pub fn requests_count(&self) -> (u64, u64) {
        let arrived = self.clients.records.len() as u64;
        (arrived, self.clients.live.iter().filter(|live| live.is_some()).count() as u64)
    }
}

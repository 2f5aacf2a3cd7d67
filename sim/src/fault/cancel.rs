//! The client of a request goes away: a closed tab, a timeout on the other side.

use pd_core::id::RequestId;
use serde::{Deserialize, Serialize};

use super::Fault;
use super::places::{Places, Wrong};
use crate::node::Serve;
use crate::world::WorldOf;

/// A client that goes away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// Ordinal of the request, by arrival.
    pub request: u64,
}

impl Fault for Cancel {
    fn check(&self, _: &Places) -> Result<(), Wrong> {
        Ok(())
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let is_live = world.cancel(RequestId(self.request));
        world.fabric.hits.add(line, u64::from(is_live));
    }
}

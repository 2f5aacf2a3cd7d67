//! Many clients go away at once: a proxy in front restarts, a batch job is stopped (sglang #28651 is what a storm of
//! aborts does elsewhere).

use pd_core::id::RequestId;
use pd_core::rng::Stream;
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::{Fault, Share};
use crate::node::Serve;
use crate::world::WorldOf;

/// A storm of cancels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelAll {
    /// Of the requests that are live.
    #[serde(default)]
    pub share: Share,
}

impl Fault for CancelAll {
    fn check(&self, _: &Places) -> Result<(), Wrong> {
        Ok(())
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let live: Vec<RequestId> = world.clients.live_requests().collect();
        for request in live {
            if self.share.draw(world.faults.rng(line, Stream::Disconnect)) {
                world.cancel(request);
                world.fabric.hits.add(line, 1);
            }
        }
    }
}

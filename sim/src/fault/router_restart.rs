//! The router restarts and has forgotten everything: its index, its breakers, whose requests are where.
//!
//! A gateway that dies takes its connections with it. Clients of live requests, and those that come while it is away,
//! get an error at once ([`End::RouterLost`]); whether to ask again is theirs. Workers see the streams of their requests
//! close and cancel them. The next life learns the members from the service discovery, with an empty index; its rooms
//! carry its epoch, so none is used twice.

use std::time::Duration;

use pd_core::op::Input;
use serde::{Deserialize, Serialize};

use super::Fault;
use super::places::{Places, Wrong};
use crate::node::Serve;
use crate::record::End;
use crate::units::Span;
use crate::world::WorldOf;

/// A restart of the router.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterRestart {
    /// How long it is away; a second by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_for: Option<Span>,
}

impl Fault for RouterRestart {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.router("router_restart")
    }

    fn lasts(&self) -> Option<Duration> {
        Some(self.down_for.unwrap_or(Span::seconds(1)).0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let Some(router) = &mut world.router else { return };
        world.fabric.hits.add(line, 1);
        router.restart(line);
        let latency_ns = router.latency_ns;
        world.tell_router();
        if let Some(checks) = &mut world.checks {
            checks.on_router_life();
        }
        let live: Vec<_> = world.clients.live_requests().collect();
        for request in live {
            for worker in world.clients.open_legs(request) {
                world.land(worker);
                world.clients.call_back(request, worker);
                world.post(worker, latency_ns, Input::Cancel { request });
            }
            world.end(request, End::RouterLost);
        }
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let Some(router) = &mut world.router else { return };
        router.away.retain(|other| *other != line);
        if router.away.is_empty() {
            for worker in 0..world.nodes.len() as u32 {
                if !world.faults.given_up.contains(&worker) {
                    world.report_worker(worker);
                }
            }
        }
    }
}

//! Nothing gets through between a worker and others: a switch dies, a route is withdrawn, a firewall rule is wrong.
//!
//! What is said meanwhile waits and comes in order when it heals, as TCP does it; pushes fail at once, as if the NIC's
//! retries took no time. A router that cannot reach a worker, or hears nothing of it, gives it up after a while: its
//! streams to the worker break, their requests are tried elsewhere, and the worker learns of each broken stream when it
//! can hear again. Then it is taken back in the same life.

use std::time::Duration;

use pd_core::id::WorkerId;
use pd_core::op::Input;
use pd_core::router::RouterInput;
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::post::{ROUTER, Scope};
use super::{Fault, Peer};
use crate::lane::Mark;
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// The other end; everybody, the router included, if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// Only what the worker says does not get through; it hears the others.
    #[serde(default)]
    pub one_way: bool,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
    /// How long until the router gives the worker up, if it is cut off from it; 3 s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<Span>,
}

impl Partition {
    fn scope(&self) -> Scope {
        Scope { worker: self.worker, peer: self.peer, one_way: self.one_way }
    }

    /// The ways between workers that it cuts.
    fn ways<M: Serve>(&self, world: &WorldOf<M>) -> Vec<(u32, u32)> {
        let scope = self.scope();
        let peers = world.peers(self.worker).into_iter();
        let both = peers.flat_map(|peer| [(self.worker, peer), (peer, self.worker)]);
        both.filter(|(from, to)| scope.covers(*from, *to)).collect()
    }
}

impl Fault for Partition {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.ends(self.worker, self.peer)
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.faults.post.cut(line, self.scope());
        for (from, to) in self.ways(world) {
            world.block(from, to);
        }
        if self.scope().covers(self.worker, ROUTER) {
            let at = world.now + self.patience.unwrap_or(Span::seconds(3)).0;
            world.fabric.heap.push(at, Mark::Again { line, turn: 1 });
        }
    }

    /// The router's patience is over.
    fn again<M: Serve>(&self, world: &mut WorldOf<M>, line: u32, turn: u32) {
        let is_over = self.lasts.is_some_and(|lasts| world.now >= world.script[line as usize].0 + lasts.0);
        let _ = turn;
        if is_over || world.fabric.lives[self.worker as usize].is_none() || world.router.is_none() {
            return;
        }
        world.fabric.hits.add(line, 1);
        if world.faults.given_up.insert(self.worker) {
            world.break_streams(self.worker);
            world.feed_router(RouterInput::Worker { id: WorkerId(self.worker), up: None });
        }
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.faults.post.heal(line);
        for (from, to) in self.ways(world) {
            world.unblock(from, to);
        }
        world.deliver_held();
        let post = &world.faults.post;
        let is_cut =
            [(self.worker, ROUTER), (ROUTER, self.worker)].into_iter().any(|(a, b)| post.cut_by(a, b).is_some());
        if !is_cut && world.faults.given_up.remove(&self.worker) {
            world.report_worker(self.worker);
        }
    }
}

impl<M: Serve> WorldOf<M> {
    /// The router's streams to a worker break: each of them is cancelled there as soon as it can hear.
    fn break_streams(&mut self, worker: u32) {
        for request in self.clients.legs_at(worker) {
            self.land(worker);
            self.clients.call_back(request, worker);
            let latency_ns = self.router.as_ref().map_or(0, |router| router.latency_ns);
            self.post(worker, latency_ns, Input::Cancel { request });
        }
    }
}

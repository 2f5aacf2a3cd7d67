//! What links and disks have done by now, for the lanes that wait for it.

use super::WorldOf;
use crate::node::Serve;

impl<M: Serve> WorldOf<M> {
    /// Moves the links on to the present, and tells lanes which of their flows have ended.
    pub(super) fn advance_links(&mut self) {
        let mut done = std::mem::take(&mut self.flows_done);
        self.fabric.links.advance(self.now, &mut done);
        self.tell_links();
        for flow in done.drain(..) {
            let Some(place) = self.fabric.flow_ended(flow) else { continue };
            self.land_before(place.node);
            self.nodes[place.node as usize].lanes.on_flow(self.now, place.seq, &mut self.fabric);
            self.drain(place.node);
        }
        self.flows_done = done;
    }

    /// Moves the disks on to the present, and tells lanes which of their jobs have ended.
    pub(super) fn advance_disks(&mut self) {
        let mut done = std::mem::take(&mut self.jobs_done);
        for depot in 0..self.fabric.depots.len() {
            self.fabric.depots[depot].disk.advance(self.now, &mut done);
            for job in done.drain(..) {
                let Some(place) = self.fabric.job_ended(depot, job) else { continue };
                self.land_before(place.node);
                self.nodes[place.node as usize].lanes.on_job(self.now, place.seq, &mut self.fabric);
                self.drain(place.node);
            }
        }
        self.jobs_done = done;
        self.fabric.has_disk_jobs = true;
    }
}

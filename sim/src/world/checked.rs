//! The end of a world that is checked.

use super::WorldOf;
use crate::check::Violation;
use crate::node::Serve;

impl<M: Serve> WorldOf<M> {
    /// The last look of the checkers, at all machines and at requests that have not ended.
    pub(super) fn end_checks(&mut self) -> Vec<Violation> {
        let Some(mut checks) = self.checks.take() else { return Vec::new() };
        for (index, node) in (0..).zip(&self.nodes) {
            if let Some(pump) = &node.pump {
                checks.on_end(self.now, index, &pump.machine);
            }
        }
        // If the time is over, or only a worker that does not come back could help, there is nothing to say.
        if self.until.is_none() && !self.is_over && self.clients.parked.is_empty() {
            for request in self.clients.unfinished() {
                let places = (0..).zip(&self.nodes).filter_map(|(index, node)| Some((index, node.pump.as_ref()?)));
                let places: Vec<_> = places.map(|(index, pump)| (index, pump.machine.waits(request))).collect();
                checks.unfinished(request, &places);
            }
        }
        checks.into_violations()
    }
}

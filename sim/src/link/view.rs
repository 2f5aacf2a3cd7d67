//! What flows where: for those who look into a run.

use pd_core::time::Instant;

use super::{FlowId, LinkId, Links};

/// A flow that has not ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowView {
    /// The links it crosses.
    pub links: Vec<LinkId>,
    /// Bytes to move in all.
    pub bytes: u64,
    /// Whole bytes moved so far.
    pub moved: u64,
    /// Bytes per second just now; 0 during its setup.
    pub rate: u64,
}

impl Links {
    /// A flow; none once it has ended.
    #[must_use]
    pub fn flow(&self, now: Instant, id: FlowId) -> Option<FlowView> {
        let (rate, moved) = (self.rate(id)?, self.moved(now, id)?);
        let flow = &self.flows[id.slot as usize];
        Some(FlowView { links: flow.path.iter().collect(), bytes: flow.bytes, moved, rate })
    }
}

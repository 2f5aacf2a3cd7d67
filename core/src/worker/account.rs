//! What a worker can say of itself without changing: what a request waits for, what it holds, whether it idles.
//!
//! Read by reports and by the checkers of the simulator after each step, so each answer costs O(1) or is bounded by a
//! constant.

use alloc::vec::Vec;

use crate::id::{GpuPage, OpId, PageKey, RequestId, WorkerId};
use crate::sched;
use crate::time::Instant;
use crate::transfer;
use crate::worker::Worker;

/// What an unfinished request waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waits {
    /// A command in flight.
    Op(OpId),
    /// The connection to a prefill worker.
    Peer(WorkerId),
    /// The hand-off of a prefill worker.
    Handoff(WorkerId),
    /// The pages of its decode worker.
    Want,
    /// So many pushes in flight.
    Pushes(u32),
    /// Its turn.
    Queue,
    /// Device pages.
    Memory,
    /// Its pages from L3, at most until then.
    Fetch(Instant),
    /// The next step of this worker, which asks for it itself.
    Settle,
    /// Nothing that could happen. There is no such request in a worker without mistakes.
    Nothing,
}

/// What a worker holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// Requests that have not ended, those whose pages are still on their way back included.
    pub requests: u32,
    /// Requests that wait to be admitted and count against the bound of the queue.
    pub queued: u32,
    /// Rooms open, both ends together.
    pub rooms: u32,
    /// Leases in quarantine.
    pub quarantined: u32,
    /// Commands in flight.
    pub ops: u32,
    /// Waiting requests for which L3 matters, prefetches and their pages.
    pub fetching: u32,
    /// Pages that wait to be written down to L2 or L3.
    pub writes_queued: u64,
    /// Device pages.
    pub gpu: u32,
    /// Device pages that are free.
    pub gpu_free: u32,
    /// Device pages of the tree that nothing pins.
    pub gpu_idle: u32,
    /// Host pages.
    pub host: u32,
    /// Host pages that are free.
    pub host_free: u32,
}

impl Worker {
    /// What a live request waits for; `None` for one that is not live here.
    #[must_use]
    pub fn waits(&self, request: RequestId) -> Option<Waits> {
        let at_handoff = || self.transfer.waiting_on(request);
        Some(match self.sched.waiting_on(request)? {
            sched::Wait::Op(op) if self.ops.is_live(op) => Waits::Op(op),
            // The load that it waited for has ended; it has its turn when a forward does.
            sched::Wait::Op(_) => self.sched.in_flight().map_or(Waits::Nothing, Waits::Op),
            sched::Wait::Queue => Waits::Queue,
            sched::Wait::Memory => Waits::Memory,
            sched::Wait::Fetch(until) => Waits::Fetch(until),
            sched::Wait::Peer(_) | sched::Wait::Handoff => match at_handoff() {
                Some(transfer::Wait::Peer(peer)) => Waits::Peer(peer),
                Some(transfer::Wait::Handoff(peer)) => Waits::Handoff(peer),
                Some(transfer::Wait::Want) => Waits::Want,
                Some(transfer::Wait::Pushes(count)) if count > 0 => Waits::Pushes(count),
                Some(transfer::Wait::Settle) => Waits::Settle,
                // Each end waits for the other.
                Some(transfer::Wait::Pushes(_) | transfer::Wait::Prompt | transfer::Wait::Retry) | None => {
                    Waits::Nothing
                }
            },
        })
    }

    /// What it holds.
    #[must_use]
    pub fn census(&self) -> Census {
        let mut census = self.kv.census();
        census.requests = self.sched.len() as u32;
        census.queued = self.sched.queued();
        census.rooms = self.transfer.rooms() as u32;
        census.quarantined = self.transfer.quarantined().count() as u32;
        census.ops = self.ops.live() as u32;
        census
    }

    /// A request for which a forward could be launched now, though none is in flight; `None` in a worker without
    /// mistakes. Looks at a bounded number of those that wait, and only at pages that are free already.
    #[must_use]
    pub fn runnable(&self) -> Option<RequestId> {
        self.sched.runnable(&self.kv)
    }

    /// True if a device page is not free.
    #[must_use]
    pub fn holds(&self, page: GpuPage) -> bool {
        self.kv.holds(page)
    }

    /// Keys of the objects that it believes to be in L3. Costs time in proportion to them.
    #[must_use]
    pub fn stored_keys(&self) -> Vec<PageKey> {
        self.kv.stored_keys()
    }

    /// Panics if anything is held for a move or a request that has ended. For a worker at rest: no request, no command in
    /// flight, no deadline.
    pub fn check_rest(&self) {
        assert!(self.sched.is_empty(), "a request at rest");
        assert!(self.transfer.is_idle(), "a room or a page in quarantine at rest");
        self.kv.check_rest();
    }
}

//! Sequences whose tail is fetched from L3 while their head is computed.
//!
//! ```text
//!   device   | head | head |    | rest |         the last chunk of the head ends where the tail begins
//!   L2 -> L1               |load|--^
//!   L3 -> L2 | 5 | 4 | 3 | 2 |                   batches from the end of the prompt
//! ```
//!
//! Pages are taken when no forward names the sequence: those before them are in the tree by then, where the taken ones
//! hang from them, and no forward can fail any more whose chunk is in front of them. The step that this costs is shorter
//! than the load back which follows it.

use crate::cx::Cx;
use crate::kv::{Ahead, Kv};
use crate::mutant::Mutant;

use super::Sched;

impl Sched {
    /// The token up to which a sequence with a tail may compute in the forward that is composed, which has room for
    /// `budget` tokens. Takes what is there of the tail. That of a sequence that has to wait is where it is.
    pub(super) fn border(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, slot: u32, budget: u32) -> u32 {
        let page_size = self.page_size;
        loop {
            let sequence = self.slots.at_mut(slot);
            sequence.stands_until = None;
            let pages = (sequence.committed / page_size, sequence.computed / page_size);
            let has_flight = sequence.flights > 0 && !self.config.mutation.is(Mutant::TailTakenOverFlight);
            match kv.ahead(cx, sequence.lease(), pages, budget / page_size) {
                Ahead::Head(page) => return page * page_size,
                Ahead::Here | Ahead::Soon(_) if has_flight => return sequence.computed,
                Ahead::Here => {
                    let lease = sequence.lease.as_mut().expect("a sequence that computes has a lease");
                    let served = sequence.served.as_mut().expect("told when its tail is met");
                    let good = kv.take_tail(cx, lease, pages.1, served);
                    sequence.skip_to(good * page_size);
                }
                Ahead::Soon(until) => {
                    sequence.stands_until = Some(until);
                    self.wake = Some(self.wake.map_or(until, |wake| wake.min(until)));
                    return sequence.computed;
                }
                Ahead::Nothing => {
                    self.end_tail(cx, kv, slot);
                    return u32::MAX;
                }
            }
        }
    }

    /// A sequence has met its tail, or goes on without it: tells the client where the prompt's KV comes from.
    pub(super) fn end_tail(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, slot: u32) {
        let sequence = self.slots.at_mut(slot);
        let lease = sequence.lease.as_mut().expect("a sequence that computes has a lease");
        let served = sequence.served.as_mut().expect("told when its tail is met");
        kv.end_tail(lease, served);
        sequence.is_entered = false;
        sequence.stands_until = None;
        self.announce(cx, slot);
    }
}

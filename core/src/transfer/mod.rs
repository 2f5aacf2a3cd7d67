//! The hand-off of KV from prefill to decode, both ends (signatures; the bodies land soon).

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::config::TransferConfig;
use crate::cx::Cx;
use crate::event::Refusal;
use crate::id::{Epoch, Generation, GpuPage, OpId, PageKey, RequestId, Room, Token, WorkerId};
use crate::kv::Lease;
use crate::message::{AbortReason, Message, Want};
use crate::op::{Outcome, Prompt};
use crate::time::Instant;

/// What the scheduler must know about a hand-off.
#[derive(Debug)]
pub enum TransferEvent {
    /// Source: the sink has leased its pages; the prompt may be computed.
    Wanted {
        /// Which request.
        request: RequestId,
    },
    /// Source: a sink asks for a prompt that no router announced (a retry): treat it as a submitted prefill leg whose
    /// sink is known. The scheduler answers with [`Transfer::offer`] or lets [`Transfer::refuse`] decline it.
    Asked {
        /// The sink.
        from: WorkerId,
        /// Its offer, prompt included.
        want: Box<Want>,
    },
    /// Source: all pages have landed and the hand-off is sent; the lease may be released.
    Sent {
        /// Which request.
        request: RequestId,
    },
    /// Source: the attempt is over and no write of it is in flight; the lease may be released.
    SourceFailed {
        /// Which request.
        request: RequestId,
        /// Why.
        reason: AbortReason,
    },
    /// Sink: the KV of the whole prompt is there; this is the first token.
    Landed {
        /// Which request.
        request: RequestId,
        /// The first token of the answer.
        token: Token,
    },
    /// Sink: no prefill delivers. The scheduler quarantines the lease ([`Transfer::quarantine`]) and recomputes here.
    SinkFailed {
        /// Which request.
        request: RequestId,
        /// Why.
        reason: AbortReason,
    },
    /// Sink: no remote write can land in these pages any more.
    Fenced {
        /// The pages.
        lease: Lease,
    },
}

/// Both ends of all hand-offs of one worker, and what it knows of its peers.
#[derive(Debug)]
pub struct Transfer {
    config: TransferConfig,
}

#[allow(unused_variables, clippy::todo)]
impl Transfer {
    /// No rooms, no peers.
    #[must_use]
    pub fn new(config: TransferConfig, epoch: Epoch, root: PageKey) -> Self {
        Self { config }
    }

    /// Source: a router announced a prefill leg. It becomes [`TransferEvent::Wanted`] once the sink's pages are known
    /// (at once, through [`Transfer::is_wanted`], if they are).
    ///
    /// # Errors
    /// [`Refusal::DuplicateRoom`].
    pub fn offer(
        &mut self,
        cx: &mut Cx<'_>,
        request: RequestId,
        room: Room,
        length: u32,
        deadline: Option<Instant>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// Source: declines a [`TransferEvent::Asked`].
    pub fn refuse(&mut self, cx: &mut Cx<'_>, from: WorkerId, room: Room, generation: Generation) {
        todo!()
    }

    /// Source: true once the sink's pages are known.
    #[must_use]
    pub fn is_wanted(&self, request: RequestId) -> bool {
        todo!()
    }

    /// Source: a forward was started (or cached pages were found) after which pages `from..table.len()` of the
    /// sequence's table will be complete. Pushes those that the sink lacks, ordered behind `after` (layer by layer).
    /// Pages must be offered in order and once; the call with the partial last page is the last one.
    pub fn push(&mut self, cx: &mut Cx<'_>, request: RequestId, from: u32, pages: &[GpuPage], after: &[OpId]) {
        todo!()
    }

    /// Source: the prompt is complete; hands over once all pushes have landed.
    pub fn hand_over(&mut self, cx: &mut Cx<'_>, request: RequestId, token: Token, last: Option<PageKey>) {
        todo!()
    }

    /// Sink: asks `prefill` to fill `pages` (destinations of page `have` and on) of a prompt.
    ///
    /// # Errors
    /// [`Refusal::DuplicateRoom`].
    pub fn want(
        &mut self,
        cx: &mut Cx<'_>,
        request: RequestId,
        room: Room,
        prefill: WorkerId,
        prompt: &Prompt,
        have: u32,
        pages: &[GpuPage],
        deadline: Option<Instant>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// Either end: the request will not go on here. A source answers with [`TransferEvent::SourceFailed`] once nothing
    /// is in flight (perhaps at once, in the returned events); a sink's lease goes to [`Transfer::quarantine`].
    pub fn abort(&mut self, cx: &mut Cx<'_>, request: RequestId, reason: AbortReason) -> Vec<TransferEvent> {
        todo!()
    }

    /// Sink: takes the lease of an ended attempt until no remote write can land in it ([`TransferEvent::Fenced`]).
    #[must_use]
    pub fn quarantine(&mut self, cx: &mut Cx<'_>, lease: Lease) -> Vec<TransferEvent> {
        todo!()
    }

    /// A peer's message.
    #[must_use]
    pub fn on_message(&mut self, cx: &mut Cx<'_>, from: WorkerId, message: Message) -> Vec<TransferEvent> {
        todo!()
    }

    /// A peer came up or is gone.
    #[must_use]
    pub fn on_peer(&mut self, cx: &mut Cx<'_>, peer: WorkerId, up: Option<Epoch>) -> Vec<TransferEvent> {
        todo!()
    }

    /// A push has ended.
    #[must_use]
    pub fn on_done(&mut self, cx: &mut Cx<'_>, op: OpId, outcome: Outcome) -> Vec<TransferEvent> {
        todo!()
    }

    /// Deadlines, heartbeats, repeated aborts.
    #[must_use]
    pub fn settle(&mut self, cx: &mut Cx<'_>) -> Vec<TransferEvent> {
        todo!()
    }

    /// When the hand-off wants a tick, and why.
    #[must_use]
    pub fn deadline(&self) -> Option<(Instant, &'static str)> {
        todo!()
    }

    /// Leases in quarantine.
    pub fn quarantined(&self) -> impl Iterator<Item = &Lease> {
        core::iter::empty()
    }

    /// Panics on a broken invariant.
    pub fn check(&self) {
        todo!()
    }
}

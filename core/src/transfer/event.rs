//! What the hand-off tells the scheduler.

use alloc::boxed::Box;

use crate::event::Served;
use crate::id::{RequestId, Token, WorkerId};
use crate::kv::Lease;
use crate::message::{AbortReason, Want};

/// What the scheduler must know about a hand-off.
#[derive(Debug)]
pub enum TransferEvent {
    /// Source: the sink has leased its pages; the prompt may be computed.
    Wanted {
        /// Which request.
        request: RequestId,
    },
    /// Source: a sink asks for a prompt that no router announced (a retry): treat it as a submitted prefill leg whose
    /// sink is known. The scheduler answers with [`crate::transfer::Transfer::offer`] or lets [`crate::transfer::Transfer::refuse`] decline it.
    Asked {
        /// The sink.
        from: WorkerId,
        /// Its offer, prompt included.
        want: Box<Want>,
    },
    /// Source: all pages have landed and the hand-off is sent; the lease may be released. Comes with the last push, or
    /// in the settle after [`crate::transfer::Transfer::hand_over`].
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
        /// Where the source had the prompt's KV from; none if there was no source.
        served: Option<Box<Served>>,
    },
    /// Sink: the attempt has failed and another prefill can be asked. The scheduler quarantines the lease
    /// ([`crate::transfer::Transfer::quarantine`]), takes a fresh one and calls [`crate::transfer::Transfer::want`] again, at once or later
    /// ([`crate::transfer::Transfer::next_prefill`] says whom to ask by then). If it would rather not, it calls [`crate::transfer::Transfer::abort`].
    Retry {
        /// Which request.
        request: RequestId,
        /// Whom to ask.
        prefill: WorkerId,
    },
    /// Sink: no prefill delivers. The scheduler quarantines the lease ([`crate::transfer::Transfer::quarantine`]) and recomputes here.
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

/// What a room waits for. Every room waits for something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Sink: the connection to a peer and its Hello.
    Peer(WorkerId),
    /// Sink: the hand-off.
    Handoff(WorkerId),
    /// Sink: the scheduler, to ask another prefill.
    Retry,
    /// The next settle.
    Settle,
    /// Source: the sink's pages.
    Want,
    /// Source: the scheduler, to compute the prompt.
    Prompt,
    /// Source: so many pushes in flight.
    Pushes(u32),
}

//! What workers say to each other. Every message is bounded, checked on arrival and harmless if it comes late.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::config::Mode;
use crate::event::Served;
use crate::id::{Epoch, Generation, GpuPage, PageKey, RequestId, Room, Token};
use crate::op::Prompt;

/// Version of codec and protocol. Peers of different versions refuse each other with a reason.
pub const VERSION: u32 = 2;

/// What a worker says to a peer. Ordered and reliable while the connection is up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// First message of a connection in each direction: who I am and what my KV looks like.
    Hello(Box<Hello>),
    /// Your KV cannot be used with mine; no room will be opened between us.
    Incompatible(Mismatch),
    /// Are you making progress? Answered from the step loop, so it tests what matters.
    Ping {
        /// Echoed.
        number: u64,
    },
    /// The answer.
    Pong {
        /// Of which ping.
        number: u64,
    },
    /// Sink to source: these pages are leased for the room; push what is missing into them.
    Want(Box<Want>),
    /// Source to sink: all pages of the room have landed, and here is the first token.
    Handoff(Box<Handoff>),
    /// Either end: the attempt is over. Start no write; say when the last one has ended.
    Abort {
        /// The hand-off.
        room: Room,
        /// The attempt.
        generation: Generation,
        /// The life of the sink.
        epoch: Epoch,
        /// The life of the source.
        source: Epoch,
        /// Which end says so. A source says so at once, while its writes may still be in flight: only the
        /// [`Message::AbortAck`] that follows ends them.
        by: End,
        /// Why.
        reason: AbortReason,
    },
    /// Source to sink: no write of the attempt is in flight, and none will start. Answers every abort of a sink, that
    /// of an unknown room too, and follows every abort of a source.
    AbortAck {
        /// The hand-off.
        room: Room,
        /// The attempt.
        generation: Generation,
        /// The life of the sink.
        epoch: Epoch,
        /// The life of the source.
        source: Epoch,
    },
}

codec!(enum Message {
    0 = Hello(hello), 1 = Incompatible(mismatch), 2 = Ping { number }, 3 = Pong { number }, 4 = Want(want),
    5 = Handoff(handoff), 6 = Abort { room, generation, epoch, source, by, reason },
    7 = AbortAck { room, generation, epoch, source },
});

/// Identity and KV geometry of a worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// Its life.
    pub epoch: Epoch,
    /// What it serves.
    pub mode: Mode,
    /// Its base namespace (model, weights, dtype, layout), so that equal pages mean equal bytes.
    pub root: PageKey,
    /// How its pages are cut.
    pub layout: Layout,
    /// The last attempt for which it asked anybody. A want up to this one is of an earlier connection, and void.
    pub generation: Generation,
}

codec!(struct Hello { version, epoch, mode, root, layout, generation });

/// One of the two ends of a hand-off.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum End {
    /// Where the KV comes from: the prefill worker.
    Source,
    /// Where it goes: the decode worker.
    Sink,
}

codec!(enum End { 0 = Source, 1 = Sink });

/// How the KV of one worker is cut into pages, layers and heads.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Tokens per page.
    pub page_size: u32,
    /// Element type of KV.
    pub dtype: String,
    /// Layers of the model.
    pub layers: u32,
    /// KV heads of the model (all ranks together).
    pub kv_heads: u32,
    /// Elements per head.
    pub head_dim: u32,
    /// Bytes of one page, all layers and heads, K and V.
    pub page_bytes: u64,
    /// Tensor-parallel ranks; KV heads are split evenly, or replicated where there are fewer heads than ranks.
    pub tp: u32,
}

codec!(struct Layout { page_size, dtype, layers, kv_heads, head_dim, page_bytes, tp });

/// Why two workers cannot exchange KV.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mismatch {
    /// Different protocol versions.
    Version {
        /// Of the one who refuses.
        ours: u32,
        /// Of the other.
        theirs: u32,
    },
    /// Different tokens per page.
    PageSize {
        /// Of the one who refuses.
        ours: u32,
        /// Of the other.
        theirs: u32,
    },
    /// Different element types.
    Dtype {
        /// Of the one who refuses.
        ours: String,
        /// Of the other.
        theirs: String,
    },
    /// Different numbers of layers, heads or elements per head.
    Shape,
    /// The ranks of neither side divide those of the other.
    TensorParallel {
        /// Of the one who refuses.
        ours: u32,
        /// Of the other.
        theirs: u32,
    },
    /// Other weights, or another memory layout.
    Namespace,
}

codec!(enum Mismatch {
    0 = Version { ours, theirs }, 1 = PageSize { ours, theirs }, 2 = Dtype { ours, theirs }, 3 = Shape,
    4 = TensorParallel { ours, theirs }, 5 = Namespace,
});

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { ours, theirs } => write!(f, "protocol version {theirs} does not fit ours, {ours}"),
            Self::PageSize { ours, theirs } => write!(f, "page size {theirs} does not fit ours, {ours}"),
            Self::Dtype { ours, theirs } => write!(f, "KV of type {theirs} does not fit ours, {ours}"),
            Self::Shape => f.write_str("layers, heads or page bytes differ from ours"),
            Self::TensorParallel { ours, theirs } => {
                write!(f, "{theirs} tensor-parallel ranks cannot be mapped to our {ours}")
            }
            Self::Namespace => f.write_str("weights or memory layout differ from ours"),
        }
    }
}

/// A sink's offer of pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    /// The hand-off.
    pub room: Room,
    /// The attempt. Grows with each want of a sink's life, so that one that comes late or twice is recognised.
    pub generation: Generation,
    /// The life of the sink that leased the pages.
    pub epoch: Epoch,
    /// The life of the source that is asked.
    pub source: Epoch,
    /// Whose prompt.
    pub request: RequestId,
    /// Tokens of the prompt.
    pub length: u32,
    /// Leading pages that the sink holds already and that must not be pushed.
    pub have: u32,
    /// Destination of page `have`, `have + 1`, ... up to the end of the prompt, the partial page included.
    pub pages: Vec<GpuPage>,
    /// The prompt itself, when the source was not told of the request by a router (a retry on another prefill).
    pub prompt: Option<Box<Prompt>>,
}

codec!(struct Want { room, generation, epoch, source, request, length, have, pages, prompt });

/// A source's last word on a room that went well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handoff {
    /// The hand-off.
    pub room: Room,
    /// The attempt.
    pub generation: Generation,
    /// The life of the sink for which the pages were pushed.
    pub epoch: Epoch,
    /// The life of the source that pushed them.
    pub source: Epoch,
    /// Whose prompt.
    pub request: RequestId,
    /// Tokens of the prompt, to be compared before the pages are used.
    pub length: u32,
    /// Key of the last full page, to be compared before the pages are used.
    pub last: Option<PageKey>,
    /// The first token of the answer.
    pub token: Token,
    /// Where the source had the prompt's KV from, and why it computed the rest: what the sink's client is told. Its parts
    /// have to add up to `length`.
    pub served: Box<Served>,
}

codec!(struct Handoff { room, generation, epoch, source, request, length, last, token, served });

/// Why an attempt was ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AbortReason {
    /// The client has gone.
    Cancelled,
    /// A deadline passed.
    Deadline,
    /// A lane failed.
    Lane,
    /// The other end does not know the room, or knows another prompt for it.
    Unknown,
    /// The room is in use by another request.
    Duplicate,
    /// The worker refused the request.
    Refused,
    /// The two ends cannot exchange KV.
    Incompatible,
    /// The other end is gone, lives another life, or does not answer.
    Lost,
}

codec!(enum AbortReason {
    0 = Cancelled, 1 = Deadline, 2 = Lane, 3 = Unknown, 4 = Duplicate, 5 = Refused, 6 = Incompatible, 7 = Lost,
});

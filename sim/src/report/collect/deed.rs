//! One command of a worker that has ended: what it was to do, and when it was on its device.

use pd_core::id::{OpId, RequestId};
use pd_core::op::{Command, LaneKind};
use pd_core::time::Instant;

use crate::observe::Ending;

/// A command and its time on its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deed {
    /// Index of the worker.
    pub worker: u32,
    /// Its name.
    pub op: OpId,
    /// What it was to do.
    pub what: What,
    /// Bytes of the pages that it names.
    pub bytes: u64,
    /// For whom, if for one request.
    pub request: Option<RequestId>,
    /// When the machine asked for it.
    pub issued: Instant,
    /// When the device began with it; none if it never came to that.
    pub began: Option<Instant>,
    /// When it ended.
    pub ended: Instant,
    /// How.
    pub ending: Ending,
}

/// What a command is to do, in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A pass of the model.
    Forward {
        /// Sequences in it.
        sequences: u32,
        /// Pieces of prompts among them.
        chunks: u32,
        /// Tokens of prompts.
        prefill_tokens: u32,
        /// Tokens of answers.
        decode_tokens: u32,
    },
    /// L2 to L1.
    LoadBack {
        /// Pages.
        pages: u32,
    },
    /// L1 to L2.
    Backup {
        /// Pages.
        pages: u32,
    },
    /// A question to L3.
    Query {
        /// Keys.
        pages: u32,
    },
    /// L3 to L2.
    Prefetch {
        /// Pages.
        pages: u32,
    },
    /// L2 to L3.
    Persist {
        /// Pages.
        pages: u32,
    },
    /// Removal from L3.
    Discard {
        /// Pages.
        pages: u32,
    },
    /// A listing of L3.
    Scan,
    /// Removal of everything from L3.
    Wipe,
    /// A note of uses in L3.
    Touch {
        /// Pages.
        pages: u32,
    },
    /// L1 to the L1 of a peer.
    Push {
        /// Index of the receiver.
        to: u32,
        /// Pages.
        pages: u32,
    },
}

impl What {
    /// Of a command.
    #[must_use]
    pub fn of(command: &Command) -> Self {
        let count = |length: usize| length as u32;
        match command {
            Command::Forward(batch) => {
                let (mut chunks, mut prefill_tokens, mut decode_tokens) = (0, 0, 0);
                for run in batch.runs() {
                    // As it is priced: a single token that yields the next one is a step of decode.
                    if run.count == 1 && run.sample {
                        decode_tokens += 1;
                    } else {
                        chunks += 1;
                        prefill_tokens += run.count;
                    }
                }
                Self::Forward { sequences: count(batch.runs().len()), chunks, prefill_tokens, decode_tokens }
            }
            Command::LoadBack(pages) => Self::LoadBack { pages: count(pages.len()) },
            Command::Backup(pages) => Self::Backup { pages: count(pages.len()) },
            Command::Query(keys) => Self::Query { pages: count(keys.len()) },
            Command::Prefetch(objects) => Self::Prefetch { pages: count(objects.len()) },
            Command::Persist(objects) => Self::Persist { pages: count(objects.len()) },
            Command::Discard(keys) => Self::Discard { pages: count(keys.len()) },
            Command::Scan { .. } => Self::Scan,
            Command::Wipe => Self::Wipe,
            Command::Touch(keys) => Self::Touch { pages: count(keys.len()) },
            Command::Push(push) => Self::Push { to: push.to.0, pages: count(push.pages.len()) },
        }
    }

    /// Its name in reports; forwards by what is in them.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Forward { chunks: 0, .. } => "decode",
            Self::Forward { decode_tokens: 0, .. } => "prefill",
            Self::Forward { .. } => "mixed",
            Self::LoadBack { .. } => "load back",
            Self::Backup { .. } => "backup",
            Self::Query { .. } => "query",
            Self::Prefetch { .. } => "prefetch",
            Self::Persist { .. } => "persist",
            Self::Discard { .. } => "discard",
            Self::Scan => "scan",
            Self::Wipe => "wipe",
            Self::Touch { .. } => "touch",
            Self::Push { .. } => "push",
        }
    }

    /// The lane that carried it out.
    #[must_use]
    pub const fn lane(&self) -> LaneKind {
        match self {
            Self::Forward { .. } => LaneKind::Compute,
            Self::LoadBack { .. } => LaneKind::CopyIn,
            Self::Backup { .. } => LaneKind::CopyOut,
            Self::Query { .. }
            | Self::Prefetch { .. }
            | Self::Persist { .. }
            | Self::Discard { .. }
            | Self::Scan
            | Self::Wipe
            | Self::Touch { .. } => LaneKind::Storage,
            Self::Push { .. } => LaneKind::Wire,
        }
    }

    /// Pages that it names; 0 for what names none.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        match self {
            Self::LoadBack { pages }
            | Self::Backup { pages }
            | Self::Query { pages }
            | Self::Prefetch { pages }
            | Self::Persist { pages }
            | Self::Discard { pages }
            | Self::Touch { pages }
            | Self::Push { pages, .. } => *pages,
            Self::Forward { .. } | Self::Scan | Self::Wipe => 0,
        }
    }

    /// True if it moves pages from one memory to another.
    #[must_use]
    pub const fn is_move(&self) -> bool {
        match self {
            Self::LoadBack { .. }
            | Self::Backup { .. }
            | Self::Prefetch { .. }
            | Self::Persist { .. }
            | Self::Push { .. } => true,
            Self::Forward { .. }
            | Self::Query { .. }
            | Self::Discard { .. }
            | Self::Scan
            | Self::Wipe
            | Self::Touch { .. } => false,
        }
    }
}

/// The word for how a command ended.
#[must_use]
pub const fn ending_name(ending: Ending) -> &'static str {
    match ending {
        Ending::Done => "done",
        Ending::Partly => "partly",
        Ending::Failed => "failed",
        Ending::Cut => "cut off",
    }
}

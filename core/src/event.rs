//! What a worker tells its clients, its operators and its routers.

use alloc::vec::Vec;

use crate::codec;
use crate::id::{PageKey, Token};
use crate::limits::MISSES_MAX;
use crate::op::Fault;

/// Progress of one request, towards its client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The request left the queue; where its prompt's KV comes from. If the end of it is fetched while the beginning is
    /// computed, this is told when the two have met.
    Admitted(alloc::boxed::Box<Served>),
    /// One token of the answer.
    Token(Token),
    /// The prompt's KV is with the decode worker (prefill leg only; its last event).
    HandedOver,
    /// The answer is complete or will not go on.
    Finished {
        /// Why.
        reason: Finish,
        /// Tokens generated.
        output: u32,
    },
    /// The request was not taken.
    Refused(Refusal),
    /// The sequence gave its pages back and waits to be resumed; nothing is lost.
    Retracted,
    /// The prompt's KV has come from a prefill worker, which had it from here (decode leg only; before the first token).
    /// What [`Event::Admitted`] said before is what did not have to be sent.
    Received(alloc::boxed::Box<Served>),
}

codec!(enum Event {
    0 = Admitted(served), 1 = Token(token), 2 = HandedOver, 3 = Finished { reason, output }, 4 = Refused(refusal),
    5 = Retracted, 6 = Received(served),
});

/// Why an answer ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finish {
    /// A stop token.
    Stop,
    /// The limit of tokens.
    Length,
    /// The client asked for it.
    Cancelled,
    /// The request's deadline passed.
    Deadline,
    /// It could not be served.
    Failed(Failure),
}

codec!(enum Finish { 0 = Stop, 1 = Length, 2 = Cancelled, 3 = Deadline, 4 = Failed(failure) });

/// Why a request that was taken could not be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The device or another lane failed under it.
    Lane(Fault),
    /// The pages it needs to go on cannot be had, even alone.
    Memory,
    /// The other end of its hand-off aborted, was lost or stayed silent, and it cannot be served here.
    Peer,
}

codec!(enum Failure { 0 = Lane(fault), 1 = Memory, 2 = Peer });

/// Why a request was not taken, with what the caller needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The queue is full (HTTP 429).
    QueueFull {
        /// Most requests that may wait.
        max: u32,
    },
    /// Prompt and limit can never fit the device pool (HTTP 400).
    NeverFits {
        /// Pages it would need.
        pages: u32,
        /// Pages there are.
        total: u32,
    },
    /// The prompt's length, keys and tokens do not fit together (HTTP 400).
    Malformed,
    /// Nothing to generate (HTTP 400).
    NoOutput,
    /// A request of this name is live (HTTP 409).
    DuplicateRequest,
    /// The room is in use (HTTP 409).
    DuplicateRoom,
    /// The worker's mode does not serve this leg (HTTP 400).
    WrongMode,
    /// The worker is shutting down (HTTP 503).
    Draining,
    /// The deadline had passed on arrival (HTTP 504).
    Late,
    /// The prompt leaves no room for a token within the context length (HTTP 400).
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: u32,
        /// Most tokens that a prompt may have.
        max: u32,
    },
}

codec!(enum Refusal {
    0 = QueueFull { max }, 1 = NeverFits { pages, total }, 2 = Malformed, 3 = NoOutput, 4 = DuplicateRequest,
    5 = DuplicateRoom, 6 = WrongMode, 7 = Draining, 8 = Late, 9 = PromptTooLong { tokens, max },
});

/// Where the KV of a prompt comes from. The parts add up to the prompt.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Served {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens found in L1.
    pub device: u32,
    /// Tokens found in L2.
    pub host: u32,
    /// Tokens fetched from L3 for this request.
    pub storage: u32,
    /// Tokens that are to be computed (or received from a prefill worker), by reason.
    pub misses: Vec<Miss>,
}

codec!(struct Served { prompt, device, host, storage, misses });

impl Served {
    /// A prompt of which no cache had anything.
    #[must_use]
    pub fn from_nowhere(prompt: u32) -> Self {
        let misses = Vec::from([Miss { reason: MissReason::NothingStored, tokens: prompt }]);
        Self { prompt, misses, ..Self::default() }
    }

    /// True if its parts add up to a prompt of this length. A peer may say anything.
    #[must_use]
    pub fn is_of(&self, length: u32) -> bool {
        let missed = self.misses.iter().map(|miss| u64::from(miss.tokens)).sum::<u64>();
        let found = u64::from(self.device) + u64::from(self.host) + u64::from(self.storage);
        self.prompt == length && found + missed == u64::from(length) && self.misses.len() <= MISSES_MAX
    }

    /// Adds tokens that were missed for this reason.
    pub(crate) fn miss(&mut self, reason: MissReason, tokens: u32) {
        match self.misses.iter_mut().find(|miss| miss.reason == reason) {
            Some(miss) => miss.tokens += tokens,
            None if tokens > 0 => self.misses.push(Miss { reason, tokens }),
            None => {}
        }
    }

    /// Takes tokens out of those that were missed for this reason: at most as many as there are. Returns how many, which
    /// belong elsewhere from now on.
    pub(crate) fn take_missed(&mut self, reason: MissReason, tokens: u32) -> u32 {
        let Some(at) = self.misses.iter().position(|miss| miss.reason == reason) else { return 0 };
        let taken = self.misses[at].tokens.min(tokens);
        self.misses[at].tokens -= taken;
        if self.misses[at].tokens == 0 {
            self.misses.remove(at);
        }
        taken
    }
}

/// Some tokens of a prompt and why no cache served them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Miss {
    /// Why.
    pub reason: MissReason,
    /// How many.
    pub tokens: u32,
}

codec!(struct Miss { reason, tokens });

/// Why a token's KV was not served from cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MissReason {
    /// Behind the last full page: only full pages are kept.
    PartialPage,
    /// In the page that holds the last token, which must be computed to get logits.
    LastToken,
    /// No tier holds the page, and none is known to have held it.
    NothingStored,
    /// No tier holds page `page`; later pages are there but cannot be used without it.
    Hole {
        /// Index of the missing page.
        page: u32,
    },
    /// L3 holds it, but fewer tokens than the prefetch threshold are there to be fetched.
    TooShort {
        /// The threshold in tokens.
        threshold: u32,
    },
    /// L3 holds it, but the prefetch was ended by its policy before the page arrived.
    Revoked,
    /// L3 holds it, but the prefetch did not arrive in time.
    Timeout,
    /// L3 holds it, but no host page could be freed to receive it.
    HostMemory,
    /// L3 holds it, but as many pages as the limit allows are being fetched.
    Capacity,
    /// L3 held it; the object failed its check.
    Checksum,
    /// L3 holds objects of another namespace only (dtype, page size, weights, ...).
    Namespace,
    /// L3 could not be read.
    StorageFailed,
    /// L3 was expected to hold it and does not.
    Vanished,
    /// Fetching would take longer than computing.
    Recompute,
    /// L2 holds it, but it is less than the load-back minimum.
    LoadBackMinimum,
    /// The page was dropped from L1 and L2 for want of room.
    Evicted,
    /// L3 holds it; it was computed while pages behind it were fetched.
    ComputedMeanwhile,
}

codec!(enum MissReason {
    0 = PartialPage, 1 = LastToken, 2 = NothingStored, 3 = Hole { page }, 4 = TooShort { threshold }, 5 = Revoked,
    6 = Timeout, 7 = HostMemory, 8 = Capacity, 9 = Checksum, 10 = Namespace, 11 = StorageFailed, 12 = Vanished,
    13 = Recompute, 14 = LoadBackMinimum, 15 = Evicted, 16 = ComputedMeanwhile,
});

impl MissReason {
    /// Why a read from L3 that failed in this way served nothing.
    #[must_use]
    pub const fn of_read(fault: Fault) -> Self {
        match fault {
            Fault::Missing => Self::Vanished,
            Fault::Checksum => Self::Checksum,
            Fault::Namespace => Self::Namespace,
            Fault::Prerequisite
            | Fault::Io
            | Fault::Full
            | Fault::Unreachable
            | Fault::Fenced
            | Fault::Device
            | Fault::Withdrawn => Self::StorageFailed,
        }
    }

    /// The name used in metrics, answers and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PartialPage => "partial_page",
            Self::LastToken => "last_token",
            Self::NothingStored => "nothing_stored",
            Self::Hole { .. } => "hole",
            Self::TooShort { .. } => "too_short",
            Self::Revoked => "revoked",
            Self::Timeout => "timeout",
            Self::HostMemory => "host_memory",
            Self::Capacity => "capacity",
            Self::Checksum => "checksum",
            Self::Namespace => "namespace",
            Self::StorageFailed => "storage_failed",
            Self::Vanished => "vanished",
            Self::Recompute => "recompute",
            Self::LoadBackMinimum => "load_back_minimum",
            Self::Evicted => "evicted",
            Self::ComputedMeanwhile => "computed_meanwhile",
        }
    }
}

/// An operator's order. All of them work under load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Control {
    /// Forget L1 and L2; what is in use stays until its users are done. L3 is untouched.
    Flush,
    /// Start using L3.
    AttachStorage,
    /// Stop using L3; operations in flight end first.
    DetachStorage,
    /// Remove everything of this worker's namespaces from L3.
    ClearStorage,
    /// Take no new requests.
    Drain,
}

codec!(enum Control { 0 = Flush, 1 = AttachStorage, 2 = DetachStorage, 3 = ClearStorage, 4 = Drain });

/// A tier of the cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tier {
    /// L1.
    Device,
    /// L2.
    Host,
    /// L3.
    Storage,
}

codec!(enum Tier { 0 = Device, 1 = Host, 2 = Storage });

/// A change of what a worker's cache holds, for routers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvChange {
    /// The page can be read in this tier.
    Stored {
        /// Its key; the namespace is part of it.
        key: PageKey,
        /// The key before it.
        parent: PageKey,
        /// Where.
        tier: Tier,
    },
    /// The page left this tier.
    Removed {
        /// Its key.
        key: PageKey,
        /// Where.
        tier: Tier,
    },
    /// Everything left this tier.
    Cleared {
        /// Where.
        tier: Tier,
    },
}

codec!(enum KvChange { 0 = Stored { key, parent, tier }, 1 = Removed { key, tier }, 2 = Cleared { tier } });

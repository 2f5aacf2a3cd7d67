//! Every id as a newtype, so that a host page can never be handed where a device page is meant.
//!
//! Ids are plain ordinals chosen by one owner each; nothing here is random and nothing is an address.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::codec::{Codec, DecodeError, Sink, Source};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ident), $write:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $raw);

        impl Codec for $name {
            #[inline]
            fn encode<S: Sink>(&self, sink: &mut S) {
                sink.$write(self.0);
            }
            fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
                Ok(Self(source.$write()?))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id! {
    /// One request of a client, unique for the life of the deployment.
    RequestId(u64), u64
}
id! {
    /// One worker: the leader of a tensor-parallel group, or a router.
    WorkerId(u32), u32
}
id! {
    /// One life of a process. A restart has a larger epoch; what an earlier life started is never acted upon.
    Epoch(u32), u32
}
id! {
    /// One page of the device pool (L1).
    GpuPage(u32), u32
}
id! {
    /// One page of the host pool (L2).
    HostPage(u32), u32
}
id! {
    /// One entry of the vocabulary.
    Token(u32), u32
}
id! {
    /// One prefill-to-decode hand-off (SGLang's `bootstrap_room`, a 63-bit integer).
    Room(u64), u64
}
id! {
    /// One attempt inside a room; a retry on another prefill is a new generation.
    Generation(u32), u32
}

impl WorkerId {
    /// No worker: a sink that names it as its prefill believes that the KV lands at once (SGLang's bootstrap host
    /// 2.2.2.2, for warm-up and for measuring one side alone).
    pub const FAKE: Self = Self(u32::MAX);
}

impl Room {
    /// Rooms have 63 bits; this one marks a hand-off that has no other end.
    const FAKE: u64 = 1 << 63;

    /// The same number as a room without another end: a source believes that a sink wants nothing but the hand-off.
    #[must_use]
    pub const fn fake(self) -> Self {
        Self(self.0 | Self::FAKE)
    }

    /// True if the room has no other end.
    #[must_use]
    pub const fn is_fake(self) -> bool {
        self.0 & Self::FAKE != 0
    }
}

/// Content address of one full page: a hash over its tokens, the page before it and the namespace.
///
/// Because keys are chained, two equal keys mean equal prompts from position 0 up to the end of the page. Order is
/// that of the number and means nothing. See [`crate::key`] for how one is made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageKey(pub u128);

impl Codec for PageKey {
    #[inline]
    fn encode<S: Sink>(&self, sink: &mut S) {
        // A hash is never a small number: raw bytes in the compact form, too. Two words, the upper one first.
        sink.bytes(&self.0.rotate_left(64).to_le_bytes());
    }
    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(source.bytes(16)?);
        Ok(Self(u128::from_le_bytes(bytes).rotate_left(64)))
    }
}

impl fmt::Display for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", (self.0 >> 96) as u32)
    }
}

/// One command in flight, named by the life that started it and a number that only grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct OpId {
    /// The life of the worker that started the command.
    pub epoch: Epoch,
    /// Counts commands of this life from 0.
    pub seq: u64,
}

crate::codec!(struct OpId { epoch, seq });

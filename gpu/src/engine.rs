//! What engines of all kinds say: the tokens that a forward has sampled, and why they refuse one.

use thiserror::Error;

use pd_core::id::{RequestId, Token};
use pd_sync::Busy;

use crate::cuda::CudaError;
use crate::sample::{Logprobs, SamplingError};

/// One token that a forward has sampled.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Whose.
    pub request: RequestId,
    /// Its index in the sequence.
    pub position: u32,
    /// The token.
    pub token: Token,
    /// What it and others had for probabilities, if the request asks for that.
    pub logprobs: Option<Logprobs>,
}

/// Why a request or a forward is refused. A forward that failed can be repeated: what it may have sampled before it
/// failed is sampled again, the same.
#[derive(Clone, PartialEq, Debug, Error)]
pub enum EngineError {
    /// Nobody has admitted it, or it was forgotten.
    #[error("request {0} is not admitted")]
    Unknown(RequestId),
    /// An empty prompt, one that leaves no room for a token, or one that is not made of tokens.
    #[error("request {request}: {why}")]
    Prompt {
        /// Whose.
        request: RequestId,
        /// What is wrong with it.
        why: String,
    },
    /// Its parameters make no sense.
    #[error("request {request}: {error}")]
    Sampling {
        /// Whose.
        request: RequestId,
        /// What is wrong.
        error: SamplingError,
    },
    /// A token was told for a place that is no continuation.
    #[error("request {request}: a token for position {position} of a sequence of {tokens}")]
    Position {
        /// Whose.
        request: RequestId,
        /// Where.
        position: u32,
        /// How many are known.
        tokens: u32,
    },
    /// A run covers tokens that are not known.
    #[error("request {request}: run [{start}, +{count}) of a sequence of {tokens} tokens")]
    Range {
        /// Whose.
        request: RequestId,
        /// First token.
        start: u32,
        /// How many.
        count: u32,
        /// How many are known.
        tokens: u32,
    },
    /// A run's table leaves out pages, or names some that the arena does not have.
    #[error("request {request}: its page table does not name {pages} pages of the arena")]
    Table {
        /// Whose.
        request: RequestId,
        /// How many it needs.
        pages: u32,
    },
    /// The arena's pages are of another size than the model's.
    #[error("the arena has pages of {found} bytes, the model has pages of {want}")]
    Arena {
        /// By geometry.
        want: usize,
        /// By arena.
        found: usize,
    },
    /// Somebody else uses a page in a way that excludes the forward.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// Logits are not numbers: the model or its KV is broken.
    #[error("request {request}: the logits at position {position} are not finite")]
    NotFinite {
        /// Whose.
        request: RequestId,
        /// Of which token.
        position: u32,
    },
    /// The GPU failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

//! KV between workers: pages of the source's L1 into leased pages of the sink's.
//!
//! ```text
//!  source                                            sink
//!  Transport::push(op, Push) --> queue per peer      Receiver::grant(room, generation, peer, pages)   with the want
//!     tcp     streams, chunks with crc32c  ------->  a thread per connection writes the page
//!     shared  copies into the mapping  ------------> the page itself (leases are words in the mapping)
//!     fake    nothing                                nothing, and it says so
//!  Done(op, Moved | Failed) <-- all pages settled    Receiver::revoke(room, generation)               when it ends
//! ```
//!
//! 1. **Destination first.** A page is written only while the sink's lease for this very generation stands, and the check
//!    and the beginning of the write are one atomic step on the word of the page ([`pd_sync::word`]), on every transport.
//! 2. **The sink's revocation is the fence**, not the source's answer: bytes of an ended attempt may still be in a socket
//!    buffer when the source gives up. [`Receiver::revoke`] returns when no write of the lease can land any more, so the
//!    shell revokes *before* it hands the machine the input that ends an attempt ([`Receiver::on_recv`] does both ends of
//!    that by looking at the messages).
//! 3. **Each push has exactly one answer**, from a thread of the transport, after all of its pages are settled. `Moved`
//!    means that the sink has verified and acknowledged each chunk.
//! 4. **Nobody waits while holding a page.** The sink takes a page for the copy of bytes that have arrived, never for
//!    bytes that are awaited, so a stalled source cannot delay a revocation.
//! 5. **Whatever a peer sends is refused with a reason and counted.** Malformed bytes close the connection; a write without
//!    a lease is refused chunk by chunk, since it is what honest ends do when an abort crosses a push.
//!
//! A page is one block of bytes on both ends: `Push::pieces` prices transfers between ranks that hold different heads, and
//! says nothing to a transport that moves whole pages.
//!
//! Threads, not tokio: a stream is one blocking copy loop, at memory speed, and a lane must not share its thread.

mod count;
mod fake;
mod frame;
mod lease;
mod queue;
mod receiver;
mod sender;
mod serve;
mod shared;
mod stream;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pd_core::id::{Epoch, OpId, WorkerId};
use pd_core::op::{Outcome, Push};

pub use count::Counters;
pub use fake::Fake;
pub use frame::Reject;
pub use lease::GrantError;
pub use receiver::{Receiver, ReceiverConfig};
pub use sender::Wire;

/// Takes the one answer of each push. Called from a thread of the transport; may block.
pub type Done = Arc<dyn Fn(OpId, Outcome) + Send + Sync>;

/// One life of a peer, and where its [`Receiver`] listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Who.
    pub id: WorkerId,
    /// In which life.
    pub epoch: Epoch,
    /// Host and port.
    pub address: String,
}

/// The source's end of a wire.
pub trait Transport: Send + Sync + fmt::Debug {
    /// A peer's connection is up: pushes to this life may come. Replaces an earlier life.
    fn up(&self, peer: &Endpoint);
    /// A peer is torn down: pushes to it end with [`pd_core::op::Fault::Unreachable`].
    fn down(&self, peer: WorkerId);
    /// Moves pages. Answered exactly once, never from inside this call.
    fn push(&self, op: OpId, push: Push);
    /// Takes no more pushes (they end with [`pd_core::op::Fault::Withdrawn`]) and waits until all are answered, at most
    /// until `deadline`. True if they are.
    fn drain(&self, deadline: Instant) -> bool;
    /// What was counted.
    fn counters(&self) -> Counters;
    /// False if nothing is moved, and both ends know.
    fn moves(&self) -> bool;
}

/// Limits of a source.
#[derive(Clone)]
pub struct WireConfig {
    /// Who pushes.
    pub worker: WorkerId,
    /// In which life.
    pub epoch: Epoch,
    /// Connections (or copying threads) for each peer.
    pub streams: u32,
    /// Bytes under one checksum. What fits the second-level cache is read from memory once.
    pub chunk_bytes: u32,
    /// Bytes under way on a stream before an acknowledgement is awaited; at least one page.
    pub window_bytes: u64,
    /// Longest time to connect and greet.
    pub connect_timeout: Duration,
    /// Longest time in which nothing is sent or acknowledged before a connection counts as broken.
    pub progress_timeout: Duration,
    /// Connections in a row that may fail, and connections that may break under one page, before pages fail.
    pub attempts_max: u32,
    /// Pause after the first connection that failed; doubles each time.
    pub backoff: Duration,
    /// Called before a page is written, and in the middle of it.
    #[cfg(test)]
    pub(crate) hook: Option<Hook>,
}

/// Where a transport lets a test hold it.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum At {
    /// Nothing of the page was written.
    Before,
    /// Half of it was.
    During,
}

/// Told of a destination page.
#[cfg(test)]
pub(crate) type Hook = Arc<dyn Fn(At, u32) + Send + Sync>;

impl WireConfig {
    /// Two streams, 256 KiB chunks, 10 s without progress.
    #[must_use]
    pub fn new(worker: WorkerId, epoch: Epoch) -> Self {
        Self {
            worker,
            epoch,
            streams: 2,
            chunk_bytes: 256 << 10,
            window_bytes: 8 << 20,
            connect_timeout: Duration::from_secs(3),
            progress_timeout: Duration::from_secs(10),
            attempts_max: 4,
            backoff: Duration::from_millis(50),
            #[cfg(test)]
            hook: None,
        }
    }

    #[cfg(test)]
    fn hook(&self, at: At, page: u32) {
        if let Some(hook) = &self.hook {
            hook(at, page);
        }
    }
}

impl fmt::Debug for WireConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireConfig")
            .field("worker", &self.worker)
            .field("epoch", &self.epoch)
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

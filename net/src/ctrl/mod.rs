//! What workers say to each other, and how they find each other.
//!
//! [`Peers`] keeps one connection to each peer and carries [`pd_core::message::Message`] over it, in order and complete
//! while it is up; [`bootstrap`] is where a decode worker learns which prefill worker a request means.
//!
//! ```text
//!  one peer, as its events tell it:    up(life)  recv  recv  ...  down    up(life)  recv ...
//! ```
//!
//! 1. The events of a peer come one at a time, and a `down` before the next `up`: another life is a down and an up.
//! 2. `down` comes after the last `recv` of its connection; nothing of an earlier one comes late.
//! 3. Of two connections between the same lives one survives, and both ends agree which: a newer one of the same caller
//!    replaces its older one (the caller lost it, and we have not noticed yet); of two that crossed, that of the smaller
//!    worker id stays.
//! 4. A peer that does not read is not waited for: its outbox has a limit, behind which the connection is cut.
//!
//! Threads, not tokio: an event may block (the inbox of a worker is bounded, and a peer that floods it has to wait), order
//! is that of one loop, and a deployment has tens of peers, not thousands. Heartbeats are core's own pings, answered from
//! the step loop; the socket only watches for hosts that vanish without a word.

pub mod bootstrap;
mod frame;
mod link;
mod peers;

pub use frame::FRAME_BYTES_MAX;
pub use peers::{Counters, Peers, PeersConfig};

use pd_core::id::{Epoch, WorkerId};
use pd_core::message::Message;

/// One life of a peer, as it introduces itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Life {
    /// Who.
    pub id: WorkerId,
    /// In which life.
    pub epoch: Epoch,
    /// Where its pages are pushed to: host and port of its [`crate::wire::Receiver`].
    pub wire: String,
}

/// What becomes of connections. Called from the connection's thread; may block, which holds the peer back.
pub trait Events: Send + Sync {
    /// A peer is connected.
    fn up(&self, peer: &Life);
    /// It is not any more. To be passed on once no write of this life can land.
    fn down(&self, peer: &Life);
    /// It says something.
    fn recv(&self, from: WorkerId, message: Message);
}

/// Host and port as a URL has them, and as they are bound: an IPv6 address in brackets.
#[must_use]
pub fn address(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests;

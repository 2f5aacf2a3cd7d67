//! Messages vanish on connections that are up: a broken sender, a full buffer that nobody checks, a lossy bus.
//!
//! Messages between workers and what they report to the router are lost; a request on its way to a worker meets a closed
//! door, which the router hears of. Open streams lose nothing.

use serde::{Deserialize, Serialize};

use super::post::{Noise, noisy};
use super::{Peer, Share};
use crate::units::Span;

/// Messages that vanish.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drop {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// The other end; everybody, the router included, if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// Only what the worker says, not what it hears.
    #[serde(default)]
    pub one_way: bool,
    /// Of the messages.
    pub share: Share,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

noisy!(Drop, |_| Noise::Drop);

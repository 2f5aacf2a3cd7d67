//! Messages are late: a congested network, a sender that is short of CPU. What follows a late one waits behind it.
//!
//! Concerns everything that is said between the two ends, requests and answers included, but no KV.

use serde::{Deserialize, Serialize};

use super::places::some_time;
use super::post::{Noise, noisy};
use super::{Peer, Share};
use crate::units::Span;

/// Messages that are late.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// The other end; everybody, the router included, if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// Only what the worker says, not what it hears.
    #[serde(default)]
    pub one_way: bool,
    /// Of the messages; all by default.
    #[serde(default)]
    pub share: Share,
    /// By how much.
    pub delay: Span,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

noisy!(Delay, |delay| Noise::Delay(delay.delay.ns()), |late| some_time("delay", late.delay.0));

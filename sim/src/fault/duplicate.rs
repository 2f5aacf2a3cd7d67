//! Messages come twice: a sender that repeats itself after a timeout, a bus that delivers at least once.
//!
//! Concerns messages between workers and what they report to the router.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::post::{Noise, noisy};
use super::{Peer, Share};
use crate::units::Span;

/// Messages that come twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Duplicate {
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
    /// How long behind the first the second one comes; a millisecond by default.
    #[serde(default = "one_millisecond")]
    pub delay: Span,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

const fn one_millisecond() -> Span {
    Span(Duration::from_millis(1))
}

noisy!(Duplicate, |twice| Noise::Duplicate(twice.delay.ns()));

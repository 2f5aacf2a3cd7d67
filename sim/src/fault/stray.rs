//! What is said of one attempt comes along under the name of another one, or about another prompt: a sender that mixes
//! up its rooms, a proxy that repeats what it has once forwarded.
//!
//! - Before a message that names an attempt, the same comes with a generation that is over (0, which comes before all).
//! - Or a hand-off names its attempt and another prompt: what it says of writes is true, what it offers is not what was
//!   asked for.
//! - The end of an attempt is told to the router once more, some time later, when there may be a newer attempt.

use std::time::Duration;

use pd_core::id::{Generation, PageKey, RequestId};
use pd_core::message::{Handoff, Message, Want};
use serde::{Deserialize, Serialize};

use super::post::{Noise, noisy};
use super::{Peer, Share};
use crate::units::Span;

/// Messages of another attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stray {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// The other end; everybody, the router included, if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// Only what the worker says, not what it hears.
    #[serde(default)]
    pub one_way: bool,
    /// Of the messages that name an attempt.
    pub share: Share,
    /// How long behind the first word on an attempt the router hears the second; half a second by default.
    #[serde(default = "half_a_second")]
    pub delay: Span,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

const fn half_a_second() -> Span {
    Span(Duration::from_millis(500))
}

noisy!(Stray, |stray| Noise::Stray(stray.delay.ns()));

/// What comes along with a message.
#[derive(Debug)]
pub(crate) enum Astray {
    /// This, and then the message.
    Before(Message),
    /// This only.
    Instead(Message),
}

/// What comes along with a message that names an attempt; `None` for others.
pub(crate) fn astray(message: &Message, draw: u64) -> Option<Astray> {
    let over = Generation(0);
    Some(match message {
        Message::Handoff(handoff) => {
            let handoff = Handoff::clone(handoff);
            let other = match draw % 6 {
                0 => Handoff { request: RequestId(u64::MAX - draw % 1000), ..handoff },
                1 => Handoff { length: handoff.length + 1, ..handoff },
                2 => Handoff { last: Some(PageKey(u128::from(draw))), ..handoff },
                _ => return Some(Astray::Before(Message::Handoff(Handoff { generation: over, ..handoff }.into()))),
            };
            Astray::Instead(Message::Handoff(other.into()))
        }
        Message::Want(want) => Astray::Before(Message::Want(Want { generation: over, ..Want::clone(want) }.into())),
        &Message::Abort { room, epoch, source, by, reason, .. } => {
            Astray::Before(Message::Abort { room, generation: over, epoch, source, by, reason })
        }
        &Message::AbortAck { room, epoch, source, .. } => {
            Astray::Before(Message::AbortAck { room, generation: over, epoch, source })
        }
        Message::Hello(_) | Message::Incompatible(_) | Message::Ping { .. } | Message::Pong { .. } => return None,
    })
}

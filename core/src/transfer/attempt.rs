//! The full name of an attempt, and the messages that carry it.

use crate::digest::Digest;
use crate::id::{Epoch, Generation, RequestId, Room};
use crate::message::{AbortReason, End, Handoff, Message, Want};
use crate::transfer::source::Answer;

/// One attempt to hand a request over. Everything that names another one is not about this one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Attempt {
    pub(super) room: Room,
    pub(super) generation: Generation,
    pub(super) sink: Epoch,
    pub(super) source: Epoch,
}

impl Attempt {
    pub(super) const fn of_want(want: &Want) -> Self {
        Self { room: want.room, generation: want.generation, sink: want.epoch, source: want.source }
    }

    pub(super) const fn of_handoff(handoff: &Handoff) -> Self {
        Self { room: handoff.room, generation: handoff.generation, sink: handoff.epoch, source: handoff.source }
    }

    /// True if it is between these lives.
    pub(super) fn is_between(self, source: Epoch, sink: Epoch) -> bool {
        self.source == source && self.sink == sink
    }

    pub(super) const fn abort(self, by: End, reason: AbortReason) -> Message {
        let Self { room, generation, sink: epoch, source } = self;
        Message::Abort { room, generation, epoch, source, by, reason }
    }

    pub(super) const fn ack(self) -> Message {
        let Self { room, generation, sink: epoch, source } = self;
        Message::AbortAck { room, generation, epoch, source }
    }

    pub(super) fn hand_off(self, request: RequestId, length: u32, answer: Answer) -> Message {
        let Self { room, generation, sink: epoch, source } = self;
        let Answer { token, last, served } = answer;
        let handoff = Handoff { room, generation, epoch, source, request, length, last, token, served };
        Message::Handoff(alloc::boxed::Box::new(handoff))
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        digest.value(&self.room);
        digest.value(&self.generation);
        digest.value(&self.sink);
        digest.value(&self.source);
    }
}

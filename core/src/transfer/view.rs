//! What is open between this worker and its peers: queries for those who explain a run. Nothing is kept for them.

use alloc::vec::Vec;

use crate::id::{Epoch, RequestId, Room, WorkerId};
use crate::message::End;
use crate::time::Instant;
use crate::transfer::peer::Link;
use crate::transfer::{Transfer, Wait};

/// An open hand-off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoomView {
    /// Its name.
    pub room: Room,
    /// Whose prompt.
    pub request: RequestId,
    /// Which end this worker is.
    pub end: End,
    /// What it waits for.
    pub wait: Wait,
}

/// What is known of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerView {
    /// Which worker.
    pub id: WorkerId,
    /// The latest life heard of.
    pub epoch: Epoch,
    /// How far the acquaintance has got, in a word.
    pub link: &'static str,
    /// It does not answer pings.
    pub is_silent: bool,
    /// Rooms open with it.
    pub rooms: u32,
}

/// Pages of an ended attempt that a peer may still write to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuarantineView {
    /// Whose they were.
    pub request: RequestId,
    /// How many.
    pub pages: u32,
}

impl Transfer {
    /// Open hand-offs whose request is known here, by room of either end: first as source, then as sink.
    #[must_use]
    pub fn room_views(&self) -> Vec<RoomView> {
        let sources = self.source.all().map(|(room, request)| (room, request, End::Source));
        let sinks = self.sink.all().map(|(room, request)| (room, request, End::Sink));
        let view = |(room, request, end)| {
            let wait = self.waiting_on(request)?;
            Some(RoomView { room, request, end, wait })
        };
        sources.chain(sinks).filter_map(view).collect()
    }

    /// All peers that were heard of, by name.
    pub fn peer_views(&self) -> impl Iterator<Item = PeerView> + '_ {
        self.peers.all().map(|(id, peer)| PeerView {
            id,
            epoch: peer.epoch(),
            link: match self.peers.link(id) {
                Link::Down => "down",
                Link::Greeting => "greeting",
                Link::Open { .. } => "open",
                Link::Refused(_) => "refused: its KV does not fit",
            },
            is_silent: peer.is_silent(),
            rooms: peer.rooms() as u32,
        })
    }

    /// Pages in quarantine.
    pub fn quarantine_views(&self) -> impl Iterator<Item = QuarantineView> + '_ {
        self.quarantined().map(|lease| QuarantineView { request: lease.request(), pages: lease.table().len() as u32 })
    }

    /// When the next deadline of a hand-off, a ping or a repeated abort is due.
    #[must_use]
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| at)
    }
}

//! What can be seen of the source from outside: counts, fingerprint, invariants.

use crate::digest::Digest;
use crate::id::{RequestId, Room};
use crate::transfer::Wait;
use crate::transfer::peer::Peers;
use crate::transfer::source::{Other, Source, Wanted};
use crate::transfer::timer::{Timer, Timers};

impl Source {
    pub(in crate::transfer) fn has(&self, id: Room) -> bool {
        self.rooms.contains_key(&id)
    }

    pub(in crate::transfer) fn has_early(&self, id: Room) -> bool {
        self.early.contains_key(&id)
    }

    pub(in crate::transfer) fn has_closed(&self, id: Room) -> bool {
        self.closed.contains_key(&id)
    }

    /// Rooms that a router announced, and whose they are.
    pub(in crate::transfer) fn all(&self) -> impl Iterator<Item = (Room, RequestId)> + '_ {
        self.rooms.iter().map(|(id, room)| (*id, room.offer.request))
    }

    /// Rooms open, those that only a peer has named included.
    pub(in crate::transfer) fn len(&self) -> usize {
        self.rooms.len() + self.early.len()
    }

    pub(in crate::transfer) fn is_wanted(&self, request: RequestId) -> bool {
        self.by_request
            .get(&request)
            .and_then(|id| self.rooms.get(id))
            .is_some_and(|room| room.ended.is_none() && !matches!(room.other, Other::Unknown))
    }

    pub(in crate::transfer) fn waiting_on(&self, request: RequestId) -> Option<Wait> {
        let room = self.rooms.get(self.by_request.get(&request)?)?;
        Some(match &room.other {
            _ if room.ended.is_some() || room.answer.is_some() => Wait::Pushes(room.flights.len() as u32),
            Other::Unknown => Wait::Want,
            Other::Fake | Other::Known(_) => Wait::Prompt,
        })
    }

    pub(in crate::transfer) fn digest(&self, digest: &mut Digest) {
        for (id, room) in &self.rooms {
            digest.value(id);
            digest.value(&room.offer.request);
            digest.value(&room.offer.length);
            digest.value(&room.offer.deadline);
            match &room.other {
                Other::Unknown => digest.word(0),
                Other::Fake => digest.word(1),
                Other::Known(want) => want.digest(digest),
            }
            digest.value(&room.pushed);
            for (op, flight) in &room.flights {
                digest.value(op);
                digest.value(&flight.pages);
                digest.value(&flight.after);
                digest.value(&flight.is_retry);
            }
            digest.word(u64::from(room.answer.is_some()));
            if let Some(answer) = &room.answer {
                digest.value(&answer.token);
                digest.value(&answer.last);
                digest.value(&*answer.served);
            }
            digest.value(&room.ended);
        }
        for want in self.early.values() {
            want.digest(digest);
        }
        for (id, (request, reason)) in &self.closed {
            digest.value(id);
            digest.value(request);
            digest.value(reason);
        }
    }

    pub(in crate::transfer) fn check(&self, peers: &Peers, timers: &Timers) {
        assert_eq!(self.by_request.len(), self.rooms.len(), "one room each");
        let mut bound = self.early.len();
        let mut flights = 0;
        for (id, room) in &self.rooms {
            assert_eq!(self.by_request.get(&room.offer.request), Some(id), "a room under another request");
            assert!(!self.early.contains_key(id), "a room that is both offered and not");
            assert!(timers.is_set(Timer::Source(*id)) != room.ended.is_some(), "a deadline until the end");
            assert!(
                room.ended.is_none() && room.answer.is_none() || !room.flights.is_empty(),
                "a room with nothing to come"
            );
            for op in room.flights.keys() {
                assert_eq!(self.ops.get(op), Some(id), "a push that no room waits for");
            }
            flights += room.flights.len();
            if let Other::Known(want) = &room.other {
                bound += 1;
                assert!(
                    peers.get(want.peer).is_some_and(|peer| peer.sources.contains(id)),
                    "a room that its peer ignores"
                );
                assert!(
                    room.ended.is_some() || peers.life(want.peer) == Some(want.attempt.sink),
                    "open for a life that is over"
                );
            }
        }
        for (id, want) in &self.early {
            assert!(timers.is_set(Timer::Early(*id)), "an early want without a deadline");
            assert!(peers.get(want.peer).is_some_and(|peer| peer.sources.contains(id)), "a want that its peer ignores");
        }
        for id in self.closed.keys() {
            assert!(timers.is_set(Timer::Closed(*id)), "a memory without an end");
        }
        assert_eq!(flights, self.ops.len(), "each push belongs to a room");
        assert_eq!(bound, peers.all().map(|(_, peer)| peer.sources.len()).sum::<usize>(), "rooms of peers");
    }
}

impl Wanted {
    fn digest(&self, digest: &mut Digest) {
        digest.word(2);
        digest.value(&self.peer);
        self.attempt.digest(digest);
        digest.value(&self.request);
        digest.value(&self.length);
        digest.value(&self.have);
        digest.value(&self.pages);
    }
}

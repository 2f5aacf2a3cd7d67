//! Destination pages of ended attempts, kept until no remote write can land in them.
//!
//! A page has two lifetimes, that of its request and that of its writer (sglang #24527, #35049, #38961). What ends the
//! second one:
//!
//! 1. the source's word that no write of this very attempt is in flight ([`Message::AbortAck`], or a hand-off), or
//! 2. the report that the source is torn down, or lives another life.
//!
//! Nothing else does: not a timeout, not silence, not the source's abort, which is sent while it may still write. Until
//! then the abort is repeated, and answered even by a source that knows nothing of the room.

use alloc::collections::BTreeMap;

use crate::codec::Codec;
use crate::digest::Digest;
use crate::id::{Generation, RequestId, WorkerId};
use crate::kv::Lease;
use crate::message::{AbortReason, End};
use crate::mutant::Mutant;
use crate::transfer::timer::{Timer, Timers};
use crate::transfer::{Attempt, Env, TransferEvent};

/// An ended attempt whose writes may still land.
#[derive(Debug)]
struct Fence {
    attempt: Attempt,
    source: WorkerId,
    request: RequestId,
    reason: AbortReason,
    /// The pages; `None` until the scheduler gives them up.
    lease: Option<Lease>,
}

/// All of them. A generation names an attempt uniquely, since it is never used twice in a life.
#[derive(Debug, Default)]
pub(super) struct Fences {
    all: BTreeMap<Generation, Fence>,
    /// Requests whose lease has not been given up yet.
    unleased: BTreeMap<RequestId, Generation>,
}

impl Fences {
    /// An attempt has ended here, and the source may still write.
    pub(super) fn raise(
        &mut self,
        env: &mut Env<'_, '_>,
        source: WorkerId,
        attempt: Attempt,
        request: RequestId,
        reason: AbortReason,
    ) {
        env.peers.entry(source).fences.insert(attempt.generation);
        env.timers.set(Timer::Fence(attempt.generation), env.cx.now + env.config.abort_resend);
        self.unleased.insert(request, attempt.generation);
        self.all.insert(attempt.generation, Fence { attempt, source, request, reason, lease: None });
    }

    /// Keeps the pages of a request's last attempt until they are safe, or says at once that they are.
    pub(super) fn keep(&mut self, lease: Lease) -> Option<TransferEvent> {
        match self.unleased.remove(&lease.request()) {
            Some(generation) => {
                let fence = self.all.get_mut(&generation).expect("listed while it stands");
                fence.lease = Some(lease);
                None
            }
            None => Some(TransferEvent::Fenced { lease }),
        }
    }

    /// True if the request has not given up the pages of its last attempt.
    pub(super) fn awaits(&self, request: RequestId) -> bool {
        self.unleased.contains_key(&request)
    }

    /// The source's word on an attempt. False if no fence stands for it.
    pub(super) fn on_ack(&mut self, env: &mut Env<'_, '_>, from: WorkerId, attempt: Attempt) -> bool {
        let stands = self.all.get(&attempt.generation).is_some_and(|it| it.attempt == attempt && it.source == from);
        if stands {
            self.lift(env, attempt.generation);
        }
        stands
    }

    /// True if a fence stands for this very attempt.
    pub(super) fn stands(&self, from: WorkerId, attempt: Attempt) -> bool {
        self.all.get(&attempt.generation).is_some_and(|it| it.attempt == attempt && it.source == from)
    }

    /// No write of this attempt can land any more.
    pub(super) fn lift(&mut self, env: &mut Env<'_, '_>, generation: Generation) {
        let Some(fence) = self.all.remove(&generation) else { return };
        env.timers.clear(Timer::Fence(generation));
        env.peers.unbind(fence.source, |peer| {
            peer.fences.remove(&generation);
        });
        match fence.lease {
            Some(lease) => env.events.push(TransferEvent::Fenced { lease }),
            None => {
                self.unleased.remove(&fence.request);
            }
        }
    }

    /// The source has not answered: it is asked again, for as long as it takes.
    pub(super) fn on_timer(&mut self, env: &mut Env<'_, '_>, generation: Generation) {
        let Some(fence) = self.all.get(&generation) else { return };
        if env.config.mutation.is(Mutant::FenceOnTimeout) {
            return self.lift(env, generation);
        }
        env.cx.mark("transfer.abort_again");
        env.cx.send(fence.source, fence.attempt.abort(End::Sink, fence.reason));
        env.timers.set(Timer::Fence(generation), env.cx.now + env.config.abort_resend);
    }

    /// Leases in quarantine.
    pub(super) fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.all.values().filter_map(|fence| fence.lease.as_ref())
    }

    pub(super) fn has(&self, generation: Generation) -> bool {
        self.all.contains_key(&generation)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        for fence in self.all.values() {
            fence.attempt.digest(digest);
            digest.value(&fence.source);
            digest.value(&fence.request);
            digest.value(&fence.reason);
            digest.word(u64::from(fence.lease.is_some()));
            for page in fence.lease.iter().flat_map(|lease| lease.table()) {
                page.encode(digest);
            }
        }
    }

    pub(super) fn check(&self, peers: &crate::transfer::peer::Peers, timers: &Timers) {
        for (generation, fence) in &self.all {
            assert_eq!(*generation, fence.attempt.generation, "a fence under another name");
            assert!(timers.is_set(Timer::Fence(*generation)), "a fence that nobody asks about");
            assert_eq!(peers.life(fence.source), Some(fence.attempt.source), "a fence against a life that is over");
            assert!(peers.get(fence.source).is_some_and(|peer| peer.fences.contains(generation)), "an unknown fence");
            let is_listed = self.unleased.get(&fence.request) == Some(generation);
            assert_eq!(is_listed, fence.lease.is_none(), "listed until the lease is given up");
        }
        let bound: usize = peers.all().map(|(_, peer)| peer.fences.len()).sum();
        assert_eq!(bound, self.all.len(), "each fence is bound to its peer");
    }
}

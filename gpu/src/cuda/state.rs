//! What the engine knows of requests, shared by the thread that starts forwards and the one that sees them end.
//!
//! A sequence that computes has a *slot*: a row of the page tables in the GPU's memory, and the place where its last
//! token is kept, which the next forward reads before the host has seen it. Slots are a cache of what the host knows.

use std::collections::BTreeMap;

use pd_core::id::RequestId;

use crate::engine::EngineError;
use crate::sequence::Sequence;

/// A request.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) sequence: Sequence,
    /// Tells an earlier request of the same name from this one.
    pub(super) life: u64,
    /// Tokens that forwards in flight will choose.
    pub(super) pending: u32,
    slot: Option<u32>,
    /// Entries of the slot's table that are as the sequence's.
    told: usize,
}

impl Live {
    /// Tokens, with those that are in flight.
    pub(super) fn tokens(&self) -> usize {
        self.sequence.tokens.len() + self.pending as usize
    }

    /// True if the host chooses its tokens: what they depend on is not in the GPU's memory.
    pub(super) fn is_chosen_by_host(&self) -> bool {
        let sampling = &self.sequence.sampling;
        sampling.counts_tokens()
            || sampling.logprobs.is_some()
            || !sampling.logit_bias.is_empty()
            || (sampling.min_tokens > 0 && !sampling.stop.is_empty())
    }
}

/// All requests.
#[derive(Debug)]
pub(super) struct Requests {
    live: BTreeMap<RequestId, Live>,
    lives: u64,
    free: Vec<u32>,
}

impl Requests {
    pub(super) fn new(slots: u32) -> Self {
        Self { live: BTreeMap::new(), lives: 0, free: (0..slots).rev().collect() }
    }

    pub(super) fn insert(&mut self, request: RequestId, sequence: Sequence) {
        self.remove(request);
        self.lives += 1;
        let live = Live { sequence, life: self.lives, pending: 0, slot: None, told: 0 };
        self.live.insert(request, live);
    }

    pub(super) fn remove(&mut self, request: RequestId) {
        if let Some(slot) = self.live.remove(&request).and_then(|live| live.slot) {
            self.free.push(slot);
        }
    }

    pub(super) fn get(&self, request: RequestId) -> Result<&Live, EngineError> {
        self.live.get(&request).ok_or(EngineError::Unknown(request))
    }

    pub(super) fn get_mut(&mut self, request: RequestId) -> Result<&mut Live, EngineError> {
        self.live.get_mut(&request).ok_or(EngineError::Unknown(request))
    }

    /// The request of that life, if it is still there.
    pub(super) fn find(&mut self, request: RequestId, life: u64) -> Option<&mut Live> {
        self.live.get_mut(&request).filter(|live| live.life == life)
    }

    /// Gives a request a slot, and says what has to be entered there. If none is free, one is taken from a request that
    /// is not `busy` and has nothing in flight.
    pub(super) fn place(
        &mut self,
        request: RequestId,
        is_busy: impl Fn(RequestId) -> bool,
        updates: &mut Vec<[i32; 4]>,
    ) -> Result<u32, EngineError> {
        let placed = self.get(request)?.slot;
        let slot = match placed.or_else(|| self.free.pop()) {
            Some(slot) => slot,
            None => {
                let idle = |(name, live): &(&RequestId, &mut Live)| {
                    live.slot.is_some() && live.pending == 0 && !is_busy(**name)
                };
                let taken = self.live.iter_mut().find(idle).and_then(|(_, live)| live.slot.take());
                let why = || "more sequences compute at a time than the engine was made for".to_owned();
                taken.ok_or_else(|| EngineError::Prompt { request, why: why() })?
            }
        };
        let live = self.get_mut(request)?;
        if live.slot.replace(slot).is_none() {
            live.told = 0;
        }
        let table = &live.sequence.table;
        let from = live.told.min(table.len());
        let new = table[from..].iter().zip(from..);
        updates.extend(new.map(|(page, index)| [slot as i32, index as i32, *page as i32, 0]));
        live.told = table.len();
        Ok(slot)
    }

    /// A run's pages replace those of its sequence from an index on.
    pub(super) fn truncated(&mut self, request: RequestId, from: usize) {
        if let Some(live) = self.live.get_mut(&request) {
            live.told = live.told.min(from);
        }
    }
}

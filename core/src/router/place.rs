//! Choosing one worker among candidates: plain values in, an index out.
//!
//! Cache-aware routing minimises a time, not a length: prefill of the uncached suffix plus the queue. In the Mooncake
//! conversation trace every request shares block 0, so the longest prefix alone sends everything to one worker (13.9 %
//! hits on 10 nodes, as one node has; 31.1 % by cost, Mooncake conversation trace).

use alloc::vec::Vec;
use core::cmp::Reverse;

use super::config::{Policy, RouterConfig};
use super::health::Role;
use super::load::Load;
use super::vocabulary::Cause;
use crate::cost::Cost;
use crate::id::WorkerId;
use crate::rng::Rng;

/// A worker that could be given the leg.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) id: WorkerId,
    pub(super) rank: Rank,
    /// It would serve the whole request.
    pub(super) is_whole: bool,
    /// Tokens of the prompt that it probably holds.
    pub(super) cached: u32,
    /// Pages that the index knows of it: among idle workers the emptiest takes what nobody holds.
    pub(super) held: u32,
    pub(super) load: Load,
}

/// How willingly a worker is taken. Only candidates of the best rank at hand are chosen from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rank {
    /// Nothing speaks against it.
    Good,
    /// It has failed this request before.
    Avoided,
    /// Its breaker is open.
    LastResort,
}

/// Keeps the candidates of the best rank, and says which that is.
pub(super) fn keep_best(candidates: &mut Vec<Candidate>) -> Option<Rank> {
    let best = candidates.iter().map(|candidate| candidate.rank).min()?;
    candidates.retain(|candidate| candidate.rank == best);
    Some(best)
}

/// What one prompt costs at a worker that holds so much of it.
#[derive(Debug)]
pub(super) struct Estimate<'a> {
    config: &'a RouterConfig,
    cost: &'a Cost,
    length: u32,
    /// Many workers hold equally much; the cost model is asked once for each length.
    known: &'a mut Vec<(u32, u64)>,
}

impl<'a> Estimate<'a> {
    /// For a prompt of `length` tokens. `known` is a buffer.
    pub(super) fn new(config: &'a RouterConfig, cost: &'a Cost, length: u32, known: &'a mut Vec<(u32, u64)>) -> Self {
        known.clear();
        Self { config, cost, length: length.clamp(1, LENGTH_MAX), known }
    }

    pub(super) const fn config(&self) -> &'a RouterConfig {
        self.config
    }

    pub(super) const fn cost(&self) -> &'a Cost {
        self.cost
    }

    pub(super) const fn length(&self) -> u32 {
        self.length
    }

    /// Layers that are pushed one by one.
    pub(super) fn layers(&self) -> u64 {
        self.cost.layers().max(1)
    }

    /// Tokens to compute behind `cached`: at least the last one, for its logits.
    pub(super) const fn fresh(&self, cached: u32) -> u32 {
        let fresh = self.length.saturating_sub(cached);
        if fresh == 0 { 1 } else { fresh }
    }

    /// Time to compute what is not cached.
    pub(super) fn prefill_ns(&mut self, cached: u32) -> u64 {
        if let Some(&(_, ns)) = self.known.iter().find(|&&(known, _)| known == cached) {
            return ns;
        }
        let fresh = self.fresh(cached);
        let ns = self.cost.prefill_ns(u64::from(self.length - fresh), u64::from(fresh)).min(ESTIMATE_NS_MAX);
        if self.known.len() < KNOWN_MAX {
            self.known.push((cached, ns));
        }
        ns
    }

    /// Time to send what the receiver does not hold.
    pub(super) fn transfer_ns(&self, cached: u32) -> u64 {
        let tokens = u64::from(self.length.saturating_sub(cached));
        if tokens == 0 {
            return 0;
        }
        let pages = tokens.div_ceil(u64::from(self.config.page_size));
        let descriptors = pages.saturating_mul(u64::from(self.config.page_descriptors));
        self.config.link.time_ns(tokens.saturating_mul(self.config.token_bytes), descriptors).min(ESTIMATE_NS_MAX)
    }

    /// What the running sequences of a worker add to each of its steps.
    pub(super) const fn batch_ns(&self, load: &Load) -> u64 {
        self.config.sequence_ns.saturating_mul(load.decodes as u64)
    }

    /// L / (L + m) at a worker that holds so much, per mille.
    pub(super) fn ratio_per_mille(&self, cached: u32) -> u32 {
        let reused = self.length - self.fresh(cached);
        (u64::from(reused) * 1000 / u64::from(self.length)) as u32
    }

    /// The work that is before this one at a worker.
    fn queue_ns(&self, role: Role, load: &Load) -> u64 {
        match role {
            Role::Prefill => load.prefill_ns.saturating_add(self.batch_ns(load)),
            Role::Decode => self.batch_ns(load),
        }
    }

    /// The part of the cost that a cache makes smaller.
    fn suffix_ns(&mut self, role: Role, cached: u32) -> u64 {
        match role {
            Role::Prefill => self.prefill_ns(cached),
            Role::Decode => self.transfer_ns(cached),
        }
    }
}

/// Chooses by `policy`. `turn` is the worker that was chosen last for this role.
///
/// # Panics
/// If there is no candidate.
pub(super) fn choose(
    policy: Policy,
    role: Role,
    candidates: &[Candidate],
    estimate: &mut Estimate<'_>,
    rng: &mut Rng,
    turn: &mut Option<WorkerId>,
) -> (Candidate, Cause) {
    assert!(!candidates.is_empty(), "the caller refuses before it chooses among nobody");
    let count = candidates.len() as u64;
    let (at, cause) = match policy {
        Policy::Random => (rng.below(count) as usize, Cause::Random),
        Policy::RoundRobin => {
            let next = candidates.iter().position(|candidate| Some(candidate.id) > *turn);
            (next.unwrap_or(0), Cause::RoundRobin)
        }
        Policy::PowerOfTwo if count == 1 => (0, Cause::PowerOfTwo),
        Policy::PowerOfTwo => {
            let first = rng.below(count) as usize;
            let second = (first + 1 + rng.below(count - 1) as usize) % candidates.len();
            (*[first, second].iter().min_by_key(|&&at| weight(&candidates[at])).expect("two"), Cause::PowerOfTwo)
        }
        Policy::CacheAware | Policy::AppendAware => by_cost(role, candidates, estimate),
    };
    *turn = Some(candidates[at].id);
    (candidates[at], cause)
}

/// The least cost; without regard to the cache if the load is out of balance or the cache helps little.
fn by_cost(role: Role, candidates: &[Candidate], estimate: &mut Estimate<'_>) -> (usize, Cause) {
    let config = estimate.config;
    let (mut longest, mut shortest, mut cached) = (0, u32::MAX, 0);
    for candidate in candidates {
        longest = longest.max(candidate.load.legs);
        shortest = shortest.min(candidate.load.legs);
        cached = cached.max(candidate.cached);
    }
    let is_imbalanced = longest - shortest > config.balance_abs_threshold
        && u64::from(longest) * 1000 > u64::from(shortest) * u64::from(config.balance_rel_threshold_per_mille);
    let cause = if is_imbalanced {
        Cause::Imbalance
    } else if u64::from(cached) * 1000 < u64::from(estimate.length) * u64::from(config.cache_threshold_per_mille) {
        Cause::BelowThreshold
    } else {
        Cause::LeastCost
    };
    let mut best = None;
    for (at, candidate) in candidates.iter().enumerate() {
        let queue = estimate.queue_ns(role, &candidate.load);
        let score = if cause == Cause::LeastCost {
            let queue = u128::from(queue) * u128::from(config.load_weight_per_mille) / 1000;
            // Without regard to load, the longest prefix is meant literally.
            let suffix = match config.load_weight_per_mille {
                0 => u64::from(estimate.fresh(candidate.cached)),
                _ => estimate.suffix_ns(role, candidate.cached),
            };
            u128::from(suffix) + queue
        } else {
            u128::from(queue)
        };
        // Candidates come in order of ids, so the lowest wins what is still equal.
        let legs = if cause == Cause::LeastCost && config.load_weight_per_mille == 0 { 0 } else { candidate.load.legs };
        let key = (score, legs, Reverse(candidate.cached), candidate.held);
        if best.is_none_or(|(least, _)| key < least) {
            best = Some((key, at));
        }
    }
    (best.expect("there is a candidate").1, cause)
}

fn weight(candidate: &Candidate) -> (u64, u32, WorkerId) {
    let load = &candidate.load;
    (load.prefill_tokens.saturating_add(load.decode_tokens), load.legs, candidate.id)
}

/// Longest prompt that estimates tell apart; a client's length must not overflow the cost model.
const LENGTH_MAX: u32 = 1 << 24;
/// One hour: sums over all live requests stay far below 2^64.
const ESTIMATE_NS_MAX: u64 = 3_600_000_000_000;
/// Distinct cached lengths of one prompt that are worth remembering.
const KNOWN_MAX: usize = 16;

//! One attempt of one request: candidates, choice, account, index.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::append;
use super::config::Policy;
use super::load::{Leg, Load};
use super::place::{self, Candidate, Estimate, Rank};
use super::prefix::Matches;
use super::{Ask, Cause, Live, Placed, Reason, Role, Route, Router, RouterOutput, State};
use crate::config::Mode;
use crate::id::WorkerId;
use crate::machine::Outbox;
use crate::time::Instant;

/// Buffers of a decision, kept between decisions.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    matches: Matches,
    /// Workers that compute prompts: unified ones and prefills, in order of ids.
    fronts: Vec<Candidate>,
    decodes: Vec<Candidate>,
    known: Vec<(u32, u64)>,
}

impl Scratch {
    /// All candidates of the last decision.
    pub(super) fn all(&self) -> impl Iterator<Item = &Candidate> {
        self.fronts.iter().chain(&self.decodes)
    }
}

/// Who does what, and why.
#[derive(Clone, Copy, Debug)]
struct Choice {
    compute: Candidate,
    decode: Option<Candidate>,
    cause: Cause,
    append: Option<super::AppendReason>,
}

impl Router {
    /// Routes the next attempt of a request. False if there is no worker for it.
    pub(super) fn route(&mut self, now: Instant, live: &mut Live, out: &mut Outbox<RouterOutput>) -> bool {
        let mut scratch = core::mem::take(&mut self.scratch);
        self.find_candidates(now, &live.ask, &live.avoid, &mut scratch);
        // An attempt that goes on with an answer has to compute that, too.
        let length = live.ask.length.saturating_add(live.output);
        let mut known = core::mem::take(&mut scratch.known);
        let Some(choice) = self.choose(length, &mut scratch, &mut known) else {
            scratch.known = known;
            self.scratch = scratch;
            return false;
        };

        let mut estimate = Estimate::new(&self.config, &self.cost, length, &mut known);
        let Choice { compute, decode, cause, append } = choice;
        let prefill_ns = estimate.prefill_ns(compute.cached);
        let prefill = Load { prefill_ns, prefill_tokens: u64::from(estimate.fresh(compute.cached)), ..Load::default() };
        let transfer_ns = decode.map_or(0, |decode| estimate.transfer_ns(decode.cached));
        let reason = Reason {
            cause,
            last_resort: [Some(compute), decode].into_iter().flatten().any(|one| one.rank == Rank::LastResort),
            cached: compute.cached.min(length),
            decode_cached: decode.unwrap_or(compute).cached.min(length),
            ready_ns: compute.load.prefill_ns.saturating_add(prefill_ns).saturating_add(transfer_ns),
            append,
        };
        let mut answer = Load { legs: 1, decodes: 1, decode_tokens: u64::from(length), ..Load::default() };
        let placed = match decode {
            Some(decode) => Placed {
                prefill: Some(Leg { worker: compute.id, load: Load { legs: 1, ..prefill } }),
                decode: Leg { worker: decode.id, load: answer },
            },
            None => {
                answer.add(&prefill);
                Placed { prefill: None, decode: Leg { worker: compute.id, load: answer } }
            }
        };
        scratch.known = known;
        self.scratch = scratch;

        let request = live.ask.request;
        let legs = [placed.prefill.map(|leg| (leg, Role::Prefill)), Some((placed.decode, Role::Decode))];
        for (leg, role) in legs.into_iter().flatten() {
            let worker = self.worker_mut(leg.worker);
            worker.load.add(&leg.load);
            let slot = worker.slot;
            // What a decode worker holds is of use only where somebody asks.
            if role == Role::Prefill || placed.prefill.is_none() || self.config.asks_for_decode_cache() {
                self.index.note(slot, &live.ask.keys);
            }
            self.health.on_route(leg.worker, role, request);
        }
        self.metrics.routed += 1;
        self.metrics.causes[cause as usize] += 1;
        self.metrics.last_resorts += u64::from(reason.last_resort);
        if live.attempt == 0 {
            self.metrics.prompt_tokens += u64::from(length);
            self.metrics.cached_tokens += u64::from(reason.cached);
        }
        live.state = State::Routed(placed);
        out.push(RouterOutput::Route(Box::new(Route {
            request,
            attempt: live.attempt,
            prefill: placed.prefill.map(|leg| leg.worker),
            decode: placed.decode.worker,
            room: self.next_room(),
            reason,
        })));
        true
    }

    /// Lists the workers in rotation, with what they hold of the prompt and what they have to do.
    pub(super) fn find_candidates(&self, now: Instant, ask: &Ask, avoid: &[WorkerId], scratch: &mut Scratch) {
        self.index.matches(&ask.keys, &mut scratch.matches);
        let note = ask.session.and_then(|session| self.sessions.lookup(session, &ask.keys));
        scratch.fronts.clear();
        scratch.decodes.clear();
        for (&id, worker) in &self.workers {
            if worker.is_draining {
                continue;
            }
            let role = match worker.member.mode {
                Mode::Prefill => Role::Prefill,
                Mode::Unified | Mode::Decode => Role::Decode,
            };
            let rank = if !self.health.admits(id, role) {
                Rank::LastResort
            } else if avoid.contains(&id) {
                Rank::Avoided
            } else {
                Rank::Good
            };
            let mut cached = scratch.matches.pages(worker.slot).saturating_mul(self.config.page_size);
            if let Some(note) = note.filter(|note| note.worker == id && note.epoch == worker.member.epoch) {
                cached = cached.max(note.tokens.min(ask.length));
            }
            let candidate = Candidate {
                id,
                rank,
                is_whole: worker.member.mode != Mode::Prefill,
                cached,
                held: self.index.held(worker.slot),
                load: worker.outstanding(now, &self.config),
            };
            match worker.member.mode {
                Mode::Unified | Mode::Prefill => scratch.fronts.push(candidate),
                Mode::Decode => scratch.decodes.push(candidate),
            }
        }
    }

    fn choose(&mut self, length: u32, scratch: &mut Scratch, known: &mut Vec<(u32, u64)>) -> Option<Choice> {
        let Scratch { fronts, decodes, .. } = scratch;
        let mut estimate = Estimate::new(&self.config, &self.cost, length, known);
        // A prefill is worth no more than the best decode worker that could take over from it.
        match place::keep_best(decodes) {
            None => fronts.retain(|front| front.is_whole),
            Some(best) => {
                for front in fronts.iter_mut().filter(|front| !front.is_whole) {
                    front.rank = front.rank.max(best);
                }
            }
        }
        let [prefill_turn, decode_turn] = &mut self.turns;
        let rng = &mut self.route_rng;
        if self.config.policy == Policy::AppendAware {
            return choose_append(&self.config, &mut estimate, fronts, decodes);
        }
        if place::keep_best(fronts).is_none() {
            if decodes.is_empty() {
                return None;
            }
            let (compute, _) =
                place::choose(self.config.policy, Role::Prefill, decodes, &mut estimate, rng, prefill_turn);
            return Some(Choice { compute, decode: None, cause: Cause::NoPrefill, append: None });
        }
        let (compute, cause) =
            place::choose(self.config.policy, Role::Prefill, fronts, &mut estimate, rng, prefill_turn);
        let decode = (!compute.is_whole).then(|| {
            place::choose(self.config.decode_policy, Role::Decode, decodes, &mut estimate, rng, decode_turn).0
        });
        Some(Choice { compute, decode, cause, append: None })
    }
}

/// Weighs pairs against appends, each side as far as its best rank is as good as the other's.
fn choose_append(
    config: &super::RouterConfig,
    estimate: &mut Estimate<'_>,
    fronts: &mut Vec<Candidate>,
    decodes: &[Candidate],
) -> Option<Choice> {
    let best = fronts.iter().chain(decodes).map(|one| one.rank).min()?;
    fronts.retain(|front| front.rank == best);
    let decodes = if decodes.first().is_some_and(|one| one.rank == best) { decodes } else { &[] };
    // Unified workers first, both parts in order of ids.
    fronts.sort_unstable_by_key(|front| (!front.is_whole, front.id));
    let wholes = fronts.partition_point(|front| front.is_whole);
    let (wholes, prefills) = fronts.split_at(wholes);
    let pairs = (!prefills.is_empty() && !decodes.is_empty()).then_some((prefills, decodes));
    let decision = append::decide(config, estimate, pairs, [wholes, decodes])?;
    Some(Choice {
        compute: decision.compute,
        decode: decision.decode,
        cause: decision.cause,
        append: Some(decision.reason),
    })
}

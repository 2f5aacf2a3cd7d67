//! Prefill elsewhere and transfer, or append on the worker that decodes?
//!
//! ```text
//! pair    ttft = queue(P) + prefill(L_P, m_P), pushed as it is computed: what of length - L_D is not hidden comes on top
//!         tpot = step(D)
//! append  ttft = wait(D) + queue(D) + prefill(L_D, m_D)
//!         tpot = step(D) + stall(D) / window
//! cost    = w_ttft * ttft + w_tpot * ttft(pair) * tpot / tpot(pair)
//! ```
//! `step` is a decode step of the answers under way, `wait` what is left of it (half, as arrivals know nothing of steps)
//! and the step launched behind it, `stall` what the chunks of an append keep from each answer: all their time, or with
//! mixed chunks what they add to a step. An answer feels it over `append_window_tokens`. A percent of TPOT is worth
//! `w_tpot` percent of the pair's TTFT: times of so different lengths are compared by their shares.
//!
//! L is a matter of the candidate: without a write-back of generated KV a prefill worker holds only the previous
//! prompt, and its m includes the previous answer; the decode worker's m is the new turn alone (arXiv 2603.13358).
//! Whatever the decode worker, the prefill worker that is done first is the best, so it is chosen first, then the decode
//! worker with it: 1,000 workers are 1,000 terms, not a quarter of a million.

use super::config::RouterConfig;
use super::course::{Course, Known};
use super::place::{Candidate, Estimate};
use super::vocabulary::{AppendReason, Cause, Outlook};

/// What was decided: the worker that computes and, in a pair, the one that decodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decision {
    pub(super) compute: Candidate,
    pub(super) decode: Option<Candidate>,
    pub(super) cause: Cause,
    pub(super) reason: AppendReason,
}

/// Chooses the cheaper side. `prefills` and `decodes` make the pairs, `wholes` and `decodes` are appended on; each side
/// counts only if it is allowed. `None` if neither side has a worker.
pub(super) fn decide(
    config: &RouterConfig,
    estimate: &Estimate<'_>,
    pairs: Option<(&[Candidate], &[Candidate])>,
    appends: [&[Candidate]; 2],
) -> Option<Decision> {
    let weights = [config.w_ttft_per_mille, config.w_tpot_per_mille];
    let mut known = Known::default();

    let pair = pairs.and_then(|(prefills, decodes)| {
        let ready = |worker: &Candidate, known: &mut Known| {
            let start = start_ns(estimate, worker);
            start.saturating_add(known.chunks_ns(estimate, worker.cached))
        };
        let compute = least(prefills, |worker| u128::from(ready(worker, &mut known)))?.1;
        let course = Course::new(estimate, start_ns(estimate, &compute), compute.cached);
        // What shares refer to until the pair is known.
        let tpot_ns = decodes.iter().map(|worker| estimate.answers_ns(&worker.load)).min()?;
        let scale = Outlook { ttft_ns: course.end_ns(), tpot_ns };
        let outlook = |worker: &Candidate| Outlook {
            ttft_ns: course.arrival_ns(estimate, worker.cached),
            tpot_ns: estimate.answers_ns(&worker.load),
        };
        let decode = least(decodes, |worker| outlook(worker).cost(weights, scale))?.1;
        Some((compute, decode, outlook(&decode)))
    });

    let mut outlook = |worker: &Candidate| append_outlook(estimate, &mut known, worker);
    let scale = match pair {
        Some((_, _, scale)) => scale,
        None => {
            let all = appends.iter().copied().flatten().map(&mut outlook);
            all.reduce(|one, other| Outlook {
                ttft_ns: one.ttft_ns.min(other.ttft_ns),
                tpot_ns: one.tpot_ns.min(other.tpot_ns),
            })?
        }
    };
    // Where too little is cached, there is nothing to append to: such prompts take the pair, if there is one.
    let is_append = |worker: &Candidate| estimate.ratio_per_mille(worker.cached) >= config.append_ratio_min_per_mille;
    let mut append: Option<(u128, Candidate)> = None;
    for candidates in appends {
        let side = least(candidates, |worker| {
            if pair.is_none() || is_append(worker) { outlook(worker).cost(weights, scale) } else { u128::MAX }
        });
        let side = side.filter(|(cost, _)| *cost < u128::MAX);
        append = match (append, side) {
            (Some(one), Some(other)) => Some(if other.0 < one.0 { other } else { one }),
            (one, other) => one.or(other),
        };
    }
    let append = append.map(|(_, worker)| worker);

    let ratio = |worker: Option<Candidate>| worker.map_or(0, |worker| estimate.ratio_per_mille(worker.cached));
    let reason = AppendReason {
        pair: pair.map(|(_, _, outlook)| outlook),
        append: append.as_ref().map(&mut outlook),
        pair_ratio_per_mille: ratio(pair.map(|(compute, ..)| compute)),
        append_ratio_per_mille: ratio(append),
    };
    match (pair, append) {
        (_, Some(compute)) if reason.appends(weights) => {
            Some(Decision { compute, decode: None, cause: Cause::Append, reason })
        }
        (Some((compute, decode, _)), _) => Some(Decision { compute, decode: Some(decode), cause: Cause::Pair, reason }),
        (None, _) => None,
    }
}

/// What an append on this worker is expected to take, and to do to the answers there.
fn append_outlook(estimate: &Estimate<'_>, known: &mut Known, worker: &Candidate) -> Outlook {
    let (config, load) = (estimate.config(), &worker.load);
    let step_ns = estimate.answers_ns(load);
    let start_ns = start_ns(estimate, worker);
    let (chunks_ns, stall_ns) = if load.decodes == 0 {
        (known.chunks_ns(estimate, worker.cached), 0)
    } else if config.mixed_chunk {
        let mut sum = (0_u64, 0_u64);
        for (cached, new) in estimate.chunks(worker.cached, load.decodes) {
            let ns = estimate.mixed_ns(cached, new, load);
            sum = (sum.0.saturating_add(ns), sum.1.saturating_add(ns.saturating_sub(step_ns)));
        }
        sum
    } else {
        let ns = known.chunks_ns(estimate, worker.cached);
        (ns, ns)
    };
    let window = u64::from(config.append_window_tokens.max(1));
    Outlook { ttft_ns: start_ns.saturating_add(chunks_ns), tpot_ns: step_ns.saturating_add(stall_ns / window) }
}

/// Time until a worker can begin with a prompt: what waits there, and what its answers have under way; on an idle worker
/// the host's share of the first step, which nothing hides.
fn start_ns(estimate: &Estimate<'_>, worker: &Candidate) -> u64 {
    let load = &worker.load;
    if load.prefill_ns > 0 {
        load.prefill_ns
    } else if load.decodes > 0 {
        let step_ns = estimate.present_ns(load);
        if estimate.config().overlap { step_ns + step_ns / 2 } else { step_ns / 2 }
    } else {
        estimate.first_host_ns()
    }
}

/// The candidate of least cost; among equals the one with fewer legs, then fewer pages, then the lower id.
fn least(candidates: &[Candidate], mut cost: impl FnMut(&Candidate) -> u128) -> Option<(u128, Candidate)> {
    let costs = candidates.iter().map(|worker| (cost(worker), *worker));
    costs.min_by_key(|(cost, worker)| (*cost, worker.load.legs, worker.held, worker.id))
}

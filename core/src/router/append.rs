//! Prefill elsewhere and transfer, or append on the worker that decodes?
//!
//! ```text
//! pair    w_ttft * (queue(P) + prefill(L_P, m_P) + transfer(length - L_D)) + w_tpot * batch(D)
//! append  w_ttft * (queue(D) + prefill(L_D, m_D))                          + w_tpot * (batch(D) + stall(D))
//! stall(D) = prefill(L_D, m_D) * append_slowdown * running(D)
//! ```
//! L is a matter of the candidate: without a write-back of generated KV a prefill worker holds only the previous
//! prompt, and its m includes the previous answer; the decode worker's m is the new turn alone (arXiv 2603.13358).
//! The cost of a pair is a sum over P plus a sum over D, so the best pair is the best P with the best D, and 1,000
//! workers are 1,000 terms, not a quarter of a million.

use super::config::RouterConfig;
use super::place::{Candidate, Estimate};
use super::vocabulary::{AppendReason, Cause};

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
    estimate: &mut Estimate<'_>,
    pairs: Option<(&[Candidate], &[Candidate])>,
    appends: [&[Candidate]; 2],
) -> Option<Decision> {
    let w_ttft = u128::from(config.w_ttft_per_mille);
    let w_tpot = u128::from(config.w_tpot_per_mille);

    let pair = pairs.and_then(|(prefills, decodes)| {
        let compute = least(prefills, |worker| {
            w_ttft * (u128::from(worker.load.prefill_ns) + u128::from(estimate.prefill_ns(worker.cached)))
        })?;
        let decode = least(decodes, |worker| {
            w_ttft * u128::from(estimate.transfer_ns(worker.cached))
                + w_tpot * u128::from(estimate.batch_ns(&worker.load))
        })?;
        Some((compute.0 + decode.0, compute.1, decode.1))
    });

    let mut append: Option<(u128, Candidate)> = None;
    for candidates in appends {
        let side = least(candidates, |worker| {
            let prefill = u128::from(estimate.prefill_ns(worker.cached));
            let running = u128::from(worker.load.decodes);
            let stall = prefill * u128::from(config.append_slowdown_per_mille) * running / 1000;
            w_ttft * (u128::from(worker.load.prefill_ns) + prefill)
                + w_tpot * (u128::from(estimate.batch_ns(&worker.load)) + stall)
        });
        append = match (append, side) {
            (Some(one), Some(other)) => Some(if other.0 < one.0 { other } else { one }),
            (one, other) => one.or(other),
        };
    }

    let weighted = |cost: Option<u128>| cost.map_or(u64::MAX, |cost| u64::try_from(cost / 1000).unwrap_or(u64::MAX));
    let ratio = |worker: Option<Candidate>| worker.map_or(0, |worker| estimate.ratio_per_mille(worker.cached));
    let reason = AppendReason {
        pair_ns: weighted(pair.map(|(cost, ..)| cost)),
        append_ns: weighted(append.map(|(cost, _)| cost)),
        pair_ratio_per_mille: ratio(pair.map(|(_, compute, _)| compute)),
        append_ratio_per_mille: ratio(append.map(|(_, compute)| compute)),
    };
    match (pair, append) {
        (Some((cost, compute, decode)), append) if append.is_none_or(|(other, _)| cost < other) => {
            Some(Decision { compute, decode: Some(decode), cause: Cause::Pair, reason })
        }
        (_, Some((_, compute))) => Some(Decision { compute, decode: None, cause: Cause::Append, reason }),
        (_, None) => None,
    }
}

/// The candidate of least cost; among equals the one with fewer legs, then fewer pages, then the lower id.
fn least(candidates: &[Candidate], mut cost: impl FnMut(&Candidate) -> u128) -> Option<(u128, Candidate)> {
    let costs = candidates.iter().map(|worker| (cost(worker), *worker));
    costs.min_by_key(|(cost, worker)| (*cost, worker.load.legs, worker.held, worker.id))
}

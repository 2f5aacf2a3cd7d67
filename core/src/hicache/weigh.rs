//! Which way the pages come that L3 holds of a prompt: all are fetched, all are computed, or both from the two ends.
//!
//! ```text
//!   pages   local ............. meeting ............. until
//!             |--- computed --->|<------- fetched ------|
//! ```
//!
//! The third way (Cake, arXiv 2410.03065) takes about `1 / (1 / fetch + 1 / compute)`: half of either where they are
//! equal, and hardly less than the faster one where they are far apart.

use super::{HiCache, Weighed};
use crate::config::PrefetchPolicy;
use crate::cost::Cost;

/// Some pages of a prompt that are not in L1 or L2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Tokens of the prompt.
    pub(super) length: u32,
    /// Pages before them.
    pub(super) local: u32,
    /// Pages up to their end.
    pub(super) until: u32,
}

impl HiCache {
    /// Time to bring pages from L3 through L2 into L1.
    pub(super) fn fetch_ns(&self, pages: u64) -> u64 {
        let bytes = pages.saturating_mul(self.config.page_bytes);
        let storage = self.config.storage_link.time_ns(bytes, pages);
        // The load back runs under the forward, layer by layer; its set-up does not.
        storage.saturating_add(self.config.host_link.time_ns(0, pages))
    }

    /// Time that having the pages of a span saves the prompt.
    pub(super) fn compute_ns(&self, cost: &Cost, span: Span) -> u64 {
        let page_size = u64::from(self.config.page_size);
        let cached = u64::from(span.local) * page_size;
        let all = cost.prefill_ns(cached, u64::from(span.length) - cached);
        let until = u64::from(span.until) * page_size;
        let rest = cost.prefill_ns(until, u64::from(span.length) - until);
        all.saturating_sub(rest)
    }

    /// Time of computing the pages from `from` to `to` in a forward of their own.
    pub(super) fn head_ns(&self, cost: &Cost, from: u32, to: u32) -> u64 {
        if to <= from {
            return 0;
        }
        let page_size = u64::from(self.config.page_size);
        cost.prefill_ns(u64::from(from) * page_size, u64::from(to - from) * page_size)
    }

    /// What each way takes. `stored(page)` counts the pages from there on that are to be fetched.
    pub(super) fn weigh(&self, cost: &Cost, span: Span, stored: impl Fn(u32) -> u64) -> Weighed {
        let fetch_ns = self.fetch_ns(stored(span.local));
        let compute_ns = self.compute_ns(cost, span);
        let meeting =
            meeting(span.local, span.until, |page| self.fetch_ns(stored(page)) <= self.head_ns(cost, span.local, page));
        let both_ns = self.head_ns(cost, span.local, meeting);
        let fetched = u64::from(span.until - meeting) * u64::from(self.config.page_size);
        let is_worth_it = is_share(both_ns, compute_ns, OF_COMPUTING)
            && is_share(both_ns, fetch_ns, OF_FETCHING)
            && fetched >= u64::from(self.config.prefetch_threshold);
        let may = self.config.fetch_bidirectional && self.config.prefetch_policy != PrefetchPolicy::WaitComplete;
        Weighed { fetch_ns, compute_ns, both_ns: (may && is_worth_it).then_some(both_ns) }
    }
}

/// The first page from `from` on at which who computes towards it finds those behind it fetched; `until` if there is none.
/// What is fetched is there sooner, and what is computed later, the further on the page is.
pub(super) fn meeting(from: u32, until: u32, is_fetched: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (from, until.max(from));
    while low < high {
        let middle = low.midpoint(high);
        if is_fetched(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

fn is_share(part: u64, whole: u64, (of, in_): (u64, u64)) -> bool {
    part.saturating_mul(in_) <= whole.saturating_mul(of)
}

/// Both ways at once have to take at most this share of computing all, or what is gained is within the error of the
/// estimates: not where fetching is more than four times as slow.
const OF_COMPUTING: (u64, u64) = (4, 5);
/// And this share of fetching all, since the head costs the device time that others may want: not where fetching is more
/// than twice as fast.
const OF_FETCHING: (u64, u64) = (2, 3);

#[cfg(test)]
mod tests;

//! What is weighed, against a search that tries every page.

use proptest::prelude::*;

use super::{Span, meeting};
use crate::config::{KvConfig, PrefetchPolicy};
use crate::cost::Cost;
use crate::hicache::HiCache;

const TOKEN_NS: u64 = 20_000;
const PAGE_NS: u64 = 4 * TOKEN_NS;

/// Pages of four tokens, of a disk that brings one in so many nanoseconds.
fn config(page_ns: u64) -> KvConfig {
    let mut config = KvConfig { page_size: 4, page_bytes: 1_000_000, prefetch_threshold: 4, ..KvConfig::default() };
    for (link, bytes_per_second) in
        [(&mut config.storage_link, 1_000_000_000_000_000 / page_ns), (&mut config.host_link, u64::MAX)]
    {
        (link.request_ns, link.bytes_per_second) = (0, bytes_per_second.try_into().expect("not 0"));
    }
    config
}

fn both_ns(config: &KvConfig, span: Span) -> Option<u64> {
    let cost = Cost::fixed(0, TOKEN_NS, 1_000, 1 << 20);
    HiCache::new(config).weigh(&cost, span, |page| u64::from(span.until - page)).both_ns
}

proptest! {
    #[test]
    fn the_meeting_is_the_first_page_at_which_the_tail_is_there(from in 0..50_u32, pages in 0..50_u32, at in 0..120_u32) {
        let naive = (from..from + pages).find(|&page| page >= at).unwrap_or(from + pages);
        prop_assert_eq!(meeting(from, from + pages, |page| page >= at), naive);
    }

    #[test]
    fn both_ways_at_once_are_taken_where_they_are_clearly_better(
        (local, pages, rest) in (0..20_u32, 1..200_u32, 1..40_u32),
        page_ns in 1_000..2_000_000_u64,
    ) {
        let span = Span { length: (local + pages) * 4 + rest, local, until: local + pages };
        let config = config(page_ns);
        // As the link has it, rounded once over all bytes.
        let fetch = |pages: u32| config.storage_link.time_ns(u64::from(pages) * 1_000_000, u64::from(pages));
        let naive = (0..=pages).find(|&head| fetch(pages - head) <= u64::from(head) * PAGE_NS).expect("all of it");
        let both = u64::from(naive) * PAGE_NS;
        let is_better = both * 5 <= u64::from(pages) * PAGE_NS * 4 && both * 3 <= fetch(pages) * 2 && naive < pages;
        prop_assert_eq!(both_ns(&config, span), is_better.then_some(both));
        let never = KvConfig { fetch_bidirectional: false, ..config.clone() };
        let waits = KvConfig { prefetch_policy: PrefetchPolicy::WaitComplete, ..config.clone() };
        let long = KvConfig { prefetch_threshold: (pages - naive) * 4 + 1, ..config };
        for config in [never, waits, long] {
            prop_assert_eq!(both_ns(&config, span), None);
        }
    }
}

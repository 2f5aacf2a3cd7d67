//! Hit rates of the policies on a synthetic trace of conversations that all share block 0, as the Mooncake trace does.
//!
//! Workers are modelled by the naive cache they would have (an LRU of pages, in prefix order) and a queue served at the
//! speed of the cost model, so the figures are those of real caches, not of what the router believes.

use std::collections::{BTreeMap, VecDeque};
use std::println;

use super::*;
use crate::rng::{Rng, Stream};

const WORKERS: u32 = 10;
/// Pages of 512 tokens in each worker's cache.
const CACHE_PAGES: usize = 2_000;

/// An LRU of pages.
#[derive(Default)]
struct Cache {
    used: BTreeMap<u128, u64>,
    order: BTreeMap<u64, u128>,
    clock: u64,
}

impl Cache {
    /// Leading pages that were there; all of them are afterwards.
    fn serve(&mut self, keys: &[u128]) -> usize {
        let hits = keys.iter().take_while(|key| self.used.contains_key(key)).count();
        for &key in keys.iter().rev() {
            self.clock += 1;
            if let Some(before) = self.used.insert(key, self.clock) {
                self.order.remove(&before);
            }
            self.order.insert(self.clock, key);
            if self.used.len() > CACHE_PAGES {
                let (_, oldest) = self.order.pop_first().expect("it is over its capacity");
                self.used.remove(&oldest);
            }
        }
        hits
    }
}

struct Figures {
    hits_per_mille: u64,
    /// Requests of the busiest worker, as a multiple of the mean, per mille.
    peak_per_mille: u64,
    ttft_mean_ms: u64,
}

/// Conversations of one to six turns that arrive at random; prompt n+1 goes on where n ended, block 0 is everyone's.
fn trace() -> Vec<(u64, Vec<u128>)> {
    let mut rng = Rng::new(7, Stream::Arrivals, 0);
    let mut turns = Vec::new();
    let mut start = 0;
    for session in 0..1_500_u128 {
        start += rng.below(300_000_000);
        let mut at = start;
        let mut keys = [0].to_vec();
        let mut page = 0;
        for _ in 0..=rng.below(6) {
            for _ in 0..4 + rng.below(16) {
                page += 1;
                keys.push((session + 1) << 64 | page);
            }
            turns.push((at, keys.clone()));
            at += 5_000_000_000 + rng.below(30_000_000_000);
        }
    }
    turns.sort();
    turns
}

fn run(config: RouterConfig, trace: &[(u64, Vec<u128>)]) -> Figures {
    let config = RouterConfig { page_size: 512, ..config };
    let mut router = Pump::new(Router::new(config, cost()).expect("in range"), NoTap);
    let cost = cost();
    for id in 0..WORKERS {
        let member = Member { epoch: Epoch(1), mode: Mode::Unified, pages: CACHE_PAGES as u32 };
        let up = RouterInput::Worker { id: WorkerId(id), up: Some(member) };
        assert_eq!(router.feed(Instant(0), up).count(), 0);
    }
    let mut caches: Vec<Cache> = (0..WORKERS).map(|_| Cache::default()).collect();
    let mut free_at = [0_u64; WORKERS as usize];
    let mut counts = [0_u64; WORKERS as usize];
    // (time, request, true for the end of the answer) of what is to be told.
    let mut told: BTreeMap<(u64, u64), VecDeque<bool>> = BTreeMap::new();
    let (mut hits, mut pages, mut waits) = (0, 0, 0);
    for (request, (at, keys)) in trace.iter().enumerate() {
        let request = request as u64;
        while let Some(entry) = told.first_entry().filter(|entry| entry.key().0 <= *at) {
            let ((when, request), ends) = entry.remove_entry();
            for end in ends {
                let request = RequestId(request);
                let input = if end {
                    RouterInput::Finished { request, output: 300 }
                } else {
                    RouterInput::FirstToken { request, attempt: 0 }
                };
                assert_eq!(router.feed(Instant(when), input).count(), 0);
            }
        }
        let asked = Ask { length: keys.len() as u32 * 512 + 100, ..*ask(request, keys) };
        let outputs: Vec<_> = router.feed(Instant(*at), RouterInput::Submit(Box::new(asked))).collect();
        let home = only_route(&outputs).decode.0 as usize;
        let hit = caches[home].serve(keys);
        let new = (keys.len() - hit) as u64 * 512 + 100;
        let done = free_at[home].max(*at) + cost.prefill_ns(hit as u64 * 512, new);
        free_at[home] = done;
        waits += done - at;
        counts[home] += 1;
        hits += hit as u64;
        pages += keys.len() as u64;
        told.entry((done, request)).or_default().push_back(false);
        told.entry((done + 6_000_000_000, request)).or_default().push_back(true);
    }
    let mean = trace.len() as u64 / u64::from(WORKERS);
    Figures {
        hits_per_mille: hits * 1000 / pages,
        peak_per_mille: counts.iter().max().expect("workers") * 1000 / mean,
        ttft_mean_ms: waits / trace.len() as u64 / 1_000_000,
    }
}

#[test]
fn cost_routing_beats_round_robin_and_longest_prefix_where_all_share_block_0() {
    let trace = trace();
    let base = RouterConfig::default();
    let round_robin = run(RouterConfig { policy: Policy::RoundRobin, ..base.clone() }, &trace);
    let longest = RouterConfig {
        policy: Policy::CacheAware,
        load_weight_per_mille: 0,
        cache_threshold_per_mille: 0,
        balance_abs_threshold: u32::MAX,
        ..base.clone()
    };
    let longest = run(longest, &trace);
    let threshold_off = run(RouterConfig { cache_threshold_per_mille: 0, ..base.clone() }, &trace);
    let cost = run(base, &trace);
    for (name, figures) in [
        ("round_robin", &round_robin),
        ("longest_prefix", &longest),
        ("cost, threshold 0", &threshold_off),
        ("cost", &cost),
    ] {
        let Figures { hits_per_mille, peak_per_mille, ttft_mean_ms } = figures;
        println!("{name:18} hits {hits_per_mille:4}/1000, busiest {peak_per_mille:5}/1000, ttft {ttft_mean_ms} ms");
    }
    assert!(cost.hits_per_mille > round_robin.hits_per_mille * 3 / 2);
    assert!(cost.hits_per_mille > longest.hits_per_mille * 3 / 2);
    assert!(cost.ttft_mean_ms < round_robin.ttft_mean_ms);
    assert!(cost.ttft_mean_ms < longest.ttft_mean_ms / 2);
    assert!(cost.peak_per_mille < 1_300);
    // Negative control: the longest prefix alone makes one worker hot.
    assert!(longest.peak_per_mille > 5_000);
}

//! Which worker each policy chooses, and what it says about it.

use super::*;
use crate::cost::LinkCost;
use crate::event::Tier;

fn config(policy: Policy) -> RouterConfig {
    RouterConfig { policy, ..RouterConfig::default() }
}

#[test]
fn round_robin_takes_turns_and_survives_a_change_of_members() {
    let mut net = Net::with(config(Policy::RoundRobin), &[Mode::Unified; 3]);
    let turns: Vec<_> = (0..4).map(|request| net.route(request, &[]).decode.0).collect();
    assert_eq!(turns, [0, 1, 2, 0]);
    net.finished(1);
    net.down(1);
    assert_eq!(net.route(10, &[]).decode.0, 2);
    net.up(1, Mode::Unified, 2);
    assert_eq!(net.route(11, &[]).decode.0, 0);
    assert_eq!(net.route(12, &[]).decode.0, 1);
}

#[test]
fn round_robin_counts_prefill_and_decode_workers_apart() {
    let both = RouterConfig { decode_policy: Policy::RoundRobin, ..config(Policy::RoundRobin) };
    let mut net = Net::with(both, &[Mode::Prefill, Mode::Prefill, Mode::Decode, Mode::Decode, Mode::Decode]);
    let pairs: Vec<_> = (0..4).map(|request| net.route(request, &[])).collect();
    let pairs: Vec<_> = pairs.iter().map(|route| (route.prefill.expect("a pair").0, route.decode.0)).collect();
    assert_eq!(pairs, [(0, 2), (1, 3), (0, 4), (1, 2)]);
}

#[test]
fn random_spreads_over_all_workers() {
    let mut net = Net::with(config(Policy::Random), &[Mode::Unified; 4]);
    let mut counts = [0; 4];
    for request in 0..400 {
        counts[net.route(request, &[]).decode.0 as usize] += 1;
    }
    assert!(counts.iter().all(|count| (70..130).contains(count)), "{counts:?}");
}

#[test]
fn power_of_two_keeps_queues_even() {
    let mut net = Net::with(config(Policy::PowerOfTwo), &[Mode::Unified; 8]);
    let mut counts = [0; 8];
    for request in 0..800 {
        counts[net.route(request, &[]).decode.0 as usize] += 1;
    }
    assert!(counts.iter().all(|count| (96..=104).contains(count)), "{counts:?}");
}

#[test]
fn cache_aware_returns_to_the_worker_that_holds_the_prompt() {
    let mut net = Net::with(config(Policy::CacheAware), &[Mode::Unified; 4]);
    let first: Vec<_> = (0..4).map(|request| net.route(request, &chain(request as u32, 64)).decode).collect();
    assert_eq!(first, [0, 1, 2, 3].map(WorkerId));
    for request in 0..4 {
        let route = net.route(100 + request, &chain(request as u32, 64));
        assert_eq!(route.decode, first[request as usize]);
        assert_eq!((route.reason.cause, route.reason.cached), (Cause::LeastCost, 64 * 16));
    }
}

#[test]
fn cache_aware_leaves_a_warm_worker_whose_queue_costs_more_than_the_prefill() {
    let mut net = Net::with(config(Policy::CacheAware), &[Mode::Unified; 2]);
    net.route(0, &chain(0, 64));
    let homes: Vec<_> = (1..20).map(|request| net.route(request, &chain(0, 64)).decode.0).collect();
    assert!(homes.contains(&0) && homes.contains(&1), "{homes:?}");
}

#[test]
fn cache_aware_goes_by_queue_when_the_cache_helps_little_or_load_is_out_of_balance() {
    let base = config(Policy::CacheAware);
    let mut net = Net::with(base.clone(), &[Mode::Unified; 2]);
    net.route(0, &chain(0, 1));
    let mostly_new: Vec<_> = chain(0, 1).into_iter().chain(chain(1, 9)).collect();
    let route = net.route(1, &mostly_new);
    assert_eq!((route.reason.cause, route.decode.0), (Cause::BelowThreshold, 1));

    let mut net = Net::with(RouterConfig { balance_abs_threshold: 4, ..base }, &[Mode::Unified; 2]);
    net.route(0, &chain(0, 8));
    let load = LoadReport { running: 50, ..LoadReport::default() };
    net.feed(RouterInput::Load { worker: WorkerId(0), load });
    let route = net.route(1, &chain(0, 8));
    assert_eq!((route.reason.cause, route.decode.0), (Cause::Imbalance, 1));
    // A report that is too old is not believed.
    net.now = net.now + SECOND * 6;
    assert_eq!(net.route(2, &chain(0, 8)).reason.cause, Cause::LeastCost);
}

#[test]
fn cache_events_teach_and_correct_the_router() {
    let mut net = Net::with(config(Policy::CacheAware), &[Mode::Unified; 3]);
    let keys = chain(5, 32);
    let stored = |key: &u128| KvChange::Stored { key: PageKey(*key), parent: PageKey(0), tier: Tier::Device };
    net.feed(RouterInput::Changes { worker: WorkerId(2), changes: keys.iter().map(stored).collect() });
    let route = net.route(1, &keys);
    assert_eq!((route.decode.0, route.reason.cached), (2, 32 * 16));
    net.finished(1);
    // A hole ends the prefix.
    let hole = KvChange::Removed { key: PageKey(keys[20]), tier: Tier::Device };
    net.feed(RouterInput::Changes { worker: WorkerId(2), changes: [hole].into() });
    assert_eq!(net.route(2, &keys).reason.cached, 20 * 16);
    net.finished(2);
    net.feed(RouterInput::Changes { worker: WorkerId(2), changes: [KvChange::Cleared { tier: Tier::Device }].into() });
    assert_eq!(net.route(3, &keys).reason.cached, 0);
}

/// The second turn of a conversation on one pair: the decode worker holds the `shared` pages of prompt and answer, the
/// prefill worker the half of them that was the prompt.
fn second_turn(config: RouterConfig, shared: u32, fresh: u32, running: u32) -> Route {
    let mut net = Net::with(config, &[Mode::Prefill, Mode::Decode]);
    let turn: Vec<_> = chain(0, shared);
    if shared > 0 {
        let stored = |key: &u128| KvChange::Stored { key: PageKey(*key), parent: PageKey(0), tier: Tier::Device };
        for (worker, held) in [(WorkerId(0), shared / 2), (WorkerId(1), shared)] {
            let changes = turn[..held as usize].iter().map(stored).collect();
            net.feed(RouterInput::Changes { worker, changes });
        }
    }
    net.feed(RouterInput::Load { worker: WorkerId(1), load: LoadReport { running, ..LoadReport::default() } });
    let next: Vec<_> = turn.into_iter().chain(chain(1, fresh)).collect();
    net.route(1, &next)
}

#[test]
fn append_aware_appends_short_turns_and_sends_long_ones_to_a_pair() {
    let base = config(Policy::AppendAware);
    let short = second_turn(base.clone(), 512, 4, 64);
    assert_eq!((short.prefill, short.reason.cause), (None, Cause::Append));
    let long = second_turn(base, 0, 512, 64);
    assert_eq!((long.prefill, long.reason.cause), (Some(WorkerId(0)), Cause::Pair));
    let reason = short.reason.append.expect("both sides are told");
    let sides = (reason.append.expect("an append").ttft_ns, reason.pair.expect("a pair").ttft_ns);
    assert!(sides.0 < sides.1, "{sides:?}");
    assert_eq!(reason.append_ratio_per_mille, 512 * 16 * 1000 / (516 * 16 + 1));
    assert_eq!(long.reason.append.expect("both sides are told").pair_ratio_per_mille, 0);
}

#[test]
fn a_larger_weight_of_tpot_moves_appends_to_pairs() {
    let appends = |w_tpot| {
        let weighted = RouterConfig { w_tpot_per_mille: w_tpot, ..config(Policy::AppendAware) };
        (0..40).filter(|&fresh| second_turn(weighted.clone(), 128, fresh * 16 + 1, 32).prefill.is_none()).count()
    };
    let counts = [0, 100, 300, 1000, 6000].map(appends);
    assert!(counts.is_sorted_by(|one, other| one >= other), "{counts:?}");
    assert!(counts[0] == 40 && counts[4] < counts[0], "{counts:?}");
}

#[test]
fn a_slower_link_moves_pairs_to_appends() {
    let appends = |bytes_per_second: u64| {
        let bytes_per_second = core::num::NonZeroU64::new(bytes_per_second).unwrap();
        let link = LinkCost { bytes_per_second, ..RouterConfig::default().link };
        let slow = RouterConfig { link, ..config(Policy::AppendAware) };
        (0..40).filter(|&fresh| second_turn(slow.clone(), 128, fresh * 16 + 1, 200).prefill.is_none()).count()
    };
    let counts = [380_000_000_000, 45_000_000_000, 2_700_000_000, 100_000_000].map(appends);
    assert!(counts.is_sorted(), "{counts:?}");
    assert!(counts[0] < counts[3], "{counts:?}");
}

#[test]
fn a_session_remembers_the_answer_that_only_its_decode_worker_holds() {
    let mut net = Net::with(config(Policy::AppendAware), &[Mode::Prefill, Mode::Decode, Mode::Decode]);
    let prompt = chain(0, 16);
    let asked = |request, keys: &[u128]| RouterInput::Submit(Box::new(Ask { session: Some(7), ..*ask(request, keys) }));
    let outputs = net.feed(asked(1, &prompt));
    let first = only_route(&outputs);
    net.first_token(1, 0);
    net.feed(RouterInput::Finished { request: RequestId(1), output: 160 });
    let next: Vec<_> = prompt.iter().copied().chain(chain(1, 12)).collect();
    let outputs = net.feed(asked(2, &next));
    let second = only_route(&outputs);
    assert_eq!((second.prefill, second.decode), (None, first.decode));
    assert_eq!(second.reason.cached, 16 * 16 + 1 + 160);
    net.finished(2);
    // A prompt that goes on from somewhere else does not count as the same conversation.
    let outputs = net.feed(asked(3, &chain(9, 28)));
    assert_eq!(only_route(&outputs).reason.decode_cached, 0);
}

//! Random flows over random links against a naive float solver, and laws that hold at every event.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::tests::{Net, path};
use super::*;

#[derive(Clone, Debug)]
struct Case {
    rates: Vec<u64>,
    flows: Vec<(u64, Wish)>,
    /// (at, link, rate)
    changes: Vec<(u64, u32, u64)>,
}

#[derive(Clone, Debug)]
struct Wish {
    path: BTreeSet<u32>,
    bytes: u64,
    setup_ns: u64,
    rate_max: Option<u64>,
}

impl Wish {
    fn spec(&self) -> FlowSpec {
        let links: Vec<u32> = self.path.iter().copied().collect();
        FlowSpec { path: path(&links), bytes: self.bytes, setup_ns: self.setup_ns, rate_max: self.rate_max }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn links_are_never_over_their_rate_and_no_flow_could_be_faster(case in cases()) {
        let mut net = Net::new(&case.rates);
        let mut rates = case.rates.clone();
        let mut live: Vec<(FlowId, &Wish)> = Vec::new();
        let mut inputs: Vec<(u64, usize, bool)> = Vec::new();
        inputs.extend(case.flows.iter().enumerate().map(|(index, flow)| (flow.0, index, true)));
        inputs.extend(case.changes.iter().enumerate().map(|(index, change)| (change.0, index, false)));
        inputs.sort_unstable();
        let mut inputs = inputs.into_iter().peekable();
        loop {
            let input = inputs.peek().map(|input| input.0);
            let now = match (input, net.links.next()) {
                (Some(input), Some(event)) => input.min(event.0),
                (Some(input), None) => input,
                (None, Some(event)) => event.0,
                (None, None) => break,
            };
            while let Some(&(at, index, is_flow)) = inputs.peek() && at == now {
                inputs.next();
                if is_flow {
                    let wish = &case.flows[index].1;
                    live.push((net.links.start(Instant(now), wish.spec()), wish));
                } else {
                    let (_, link, rate) = case.changes[index];
                    rates[link as usize] = rate;
                    net.links.set_rate(Instant(now), LinkId(link), rate);
                }
            }
            net.advance(now);
            net.links.check();
            live.retain(|(flow, _)| net.links.rate(*flow).is_some());
            let moving: Vec<_> = live.iter().filter(|(flow, _)| net.links.flows[flow.slot as usize].is_moving).collect();
            let expected = water_fill(&rates, &moving.iter().map(|(_, wish)| *wish).collect::<Vec<_>>());
            for ((flow, _), expected) in moving.iter().zip(expected) {
                let rate = net.links.rate(*flow).expect("live") as f64;
                // Each round of rounding leaves less than a byte per second a flow; rounds do not add up to more.
                let slack = (moving.len() * (1 + rates.len())) as f64;
                prop_assert!((rate - expected).abs() <= slack, "{rate} instead of {expected}");
            }
        }
        prop_assert_eq!(net.ends.len(), case.flows.len(), "all flows end");
        let end = Instant(net.ends.last().map_or(0, |end| end.1));
        for link in 0..case.rates.len() as u32 {
            let crossing = case.flows.iter().filter(|flow| flow.1.path.contains(&link));
            let bytes: u64 = crossing.map(|flow| flow.1.bytes).sum();
            let used = net.links.link_use(end, LinkId(link));
            prop_assert_eq!(used.bytes, bytes, "exactly the bytes asked for");
            prop_assert_eq!(net.links.links[link as usize].carried % 1_000_000_000, 0, "without a rest");
            prop_assert!(used.bytes <= used.bytes_max);
        }
    }

    #[test]
    fn the_order_of_simultaneous_starts_moves_ends_by_rounding_only(
        (wishes, order) in prop::collection::vec(wishes(4), 1..20).prop_flat_map(|wishes| {
            let order: Vec<usize> = (0..wishes.len()).collect();
            (Just(wishes), Just(order).prop_shuffle())
        })
    ) {
        let rates = [1_000_000_000, 3_000_000_000, 700_000_000, 2_000_000_000];
        let run = |order: &[usize]| {
            let mut net = Net::new(&rates);
            for index in order {
                net.links.start(Instant(5), wishes[*index].spec());
            }
            let mut ends = vec![0; order.len()];
            for (ordinal, at) in net.run() {
                ends[order[ordinal as usize]] = at;
            }
            ends
        };
        let plain: Vec<usize> = (0..wishes.len()).collect();
        for (one, other) in run(&plain).into_iter().zip(run(&order)) {
            prop_assert!(one.abs_diff(other) <= 40 + one / 100_000, "{one} against {other}");
        }
    }
}

/// Raises all rates together until a link is full or a limit is met, again and again.
fn water_fill(rates: &[u64], flows: &[&Wish]) -> Vec<f64> {
    let mut given: Vec<Option<f64>> = vec![None; flows.len()];
    loop {
        let mut level = f64::INFINITY;
        let share = |link: usize, given: &[Option<f64>]| {
            let on = |index: &usize| flows[*index].path.contains(&(link as u32));
            let used: f64 = (0..flows.len()).filter(on).filter_map(|index| given[index]).sum();
            let open = (0..flows.len()).filter(on).filter(|index| given[*index].is_none()).count();
            if open == 0 { f64::INFINITY } else { (rates[link] as f64 - used).max(0.0) / open as f64 }
        };
        for link in 0..rates.len() {
            level = level.min(share(link, &given));
        }
        for (index, flow) in flows.iter().enumerate() {
            if given[index].is_none() {
                level = level.min(flow.rate_max.map_or(f64::INFINITY, |rate| rate as f64));
            }
        }
        if level == f64::INFINITY {
            return given.into_iter().map(|rate| rate.expect("each flow crosses a link")).collect();
        }
        let full: Vec<bool> = (0..rates.len()).map(|link| share(link, &given) <= level * (1.0 + 1e-9)).collect();
        for (index, flow) in flows.iter().enumerate() {
            let is_held = flow.path.iter().any(|link| full[*link as usize])
                || flow.rate_max.is_some_and(|rate| rate as f64 <= level);
            if given[index].is_none() && is_held {
                given[index] = Some(level);
            }
        }
    }
}

fn wishes(links: u32) -> impl Strategy<Value = Wish> {
    (
        prop::collection::btree_set(0..links, 1..=(links.min(4) as usize)),
        prop_oneof![Just(0), 1_u64..100, 1_u64..1 << 24],
        prop_oneof![Just(0), 0_u64..1 << 30],
        prop::option::weighted(0.3, 100_000_000_u64..2_000_000_000),
    )
        .prop_map(|(path, bytes, setup_ns, rate_max)| Wish { path, bytes, setup_ns, rate_max })
}

fn cases() -> impl Strategy<Value = Case> {
    (1_u32..9).prop_flat_map(|links| {
        let rate = || prop_oneof![1_u64..100, 1_000_000_u64..10_000_000_000];
        let at = || prop_oneof![Just(0_u64), 0_u64..1 << 31];
        let stalls = prop::collection::vec((at(), 0..links, prop_oneof![Just(0_u64), rate()], rate()), 0..4);
        let flows = prop::collection::vec((at(), wishes(links)), 0..24);
        (prop::collection::vec(rate(), links as usize), flows, stalls).prop_map(|(rates, flows, stalls)| {
            // Each fault is followed by a repair, so that all flows end.
            let repair = |(at, link, _, rate)| (at + (1 << 30), link, rate);
            let mut changes: Vec<_> = stalls.iter().map(|(at, link, rate, _)| (*at, *link, *rate)).collect();
            changes.extend(stalls.iter().copied().map(repair));
            let last: BTreeSet<u32> = changes.iter().map(|change| change.1).collect();
            changes.extend(last.into_iter().map(|link| (1 << 33, link, 1_000_000)));
            changes.sort_unstable();
            Case { rates, flows, changes }
        })
    })
}

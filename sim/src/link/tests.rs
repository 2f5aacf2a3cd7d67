//! Links by hand: shares, set-up, changes of rate.

use super::*;

#[test]
fn a_flow_alone_takes_its_setup_and_the_bytes_over_the_rate_rounded_up() {
    for (bytes, rate, setup) in
        [(1, 1, 0), (10, 3, 7), (4096, 1 << 40, 0), (1 << 50, (1 << 20) + 7, 1), (100_000_000_000, 31, 5)]
    {
        let mut net = Net::new(&[rate]);
        net.start(0, &[0], bytes, setup);
        let ns = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(rate)) as u64;
        assert_eq!(net.run(), [(0, setup + ns)], "{bytes} bytes at {rate}");
        assert_eq!(net.links.link_use(Instant(setup + ns), LinkId(0)).bytes, bytes);
        assert_eq!(net.links.link_use(Instant(setup + ns), LinkId(0)).busy_ns, ns);
    }
}

#[test]
fn the_slowest_link_of_a_path_and_the_own_limit_bound_a_flow() {
    let mut net = Net::new(&[1_000, 500, 2_000]);
    net.start(0, &[0, 1, 2], 1_000, 0);
    assert_eq!(net.run(), [(0, 2_000_000_000)]);
    let mut net = Net::new(&[1_000]);
    net.spec(0, FlowSpec { path: path(&[0]), bytes: 1_000, setup_ns: 0, rate_max: Some(100) });
    assert_eq!(net.run(), [(0, 10_000_000_000)]);
}

#[test]
fn two_flows_share_until_the_shorter_one_ends() {
    let mut net = Net::new(&[1_000]);
    net.start(0, &[0], 1_000, 0);
    net.start(0, &[0], 3_000, 0);
    assert_eq!(net.run(), [(0, 2_000_000_000), (1, 4_000_000_000)]);
}

#[test]
fn a_late_flow_takes_half_of_what_is_left() {
    let mut net = Net::new(&[1_000]);
    net.start(0, &[0], 2_000, 0);
    net.start(1_000_000_000, &[0], 500, 0);
    assert_eq!(net.run(), [(1, 2_000_000_000), (0, 2_500_000_000)]);
}

/// Bertsekas and Gallager's line: one long flow, a narrow middle, and a flow that gets what the others cannot use.
#[test]
fn three_links_in_a_row_give_the_textbook_rates() {
    let mut net = Net::new(&[10, 4, 12]);
    let flows = [
        net.start(0, &[0, 1, 2], 1_000, 0),
        net.start(0, &[0], 1_000, 0),
        net.start(0, &[1], 1_000, 0),
        net.start(0, &[2], 1_000, 0),
    ];
    net.advance(0);
    assert_eq!(flows.map(|flow| net.links.rate(flow)), [Some(2), Some(8), Some(2), Some(10)]);
    net.links.check();
}

#[test]
fn what_rounding_leaves_goes_to_the_oldest_flow() {
    let mut net = Net::new(&[11]);
    let flows = [0; 3].map(|_| net.start(0, &[0], 100, 0));
    net.advance(0);
    assert_eq!(flows.map(|flow| net.links.rate(flow)), [Some(5), Some(3), Some(3)]);
}

/// 8 senders of equal NICs into one receiver (simllm: models without sharing were 8 times too fast).
#[test]
fn incast_of_eight_takes_eight_times_as_long() {
    let rate = 50_000_000_000;
    let bytes = 64 << 20;
    let mut single = Net::new(&[rate; 9]);
    single.start(0, &[0, 8], bytes, 0);
    let alone = single.run()[0].1;

    let mut net = Net::new(&[rate; 9]);
    for sender in 0..8 {
        net.start(0, &[sender, 8], bytes, 0);
    }
    net.advance(0);
    net.links.check();
    let ends = net.run();
    assert_eq!(ends.len(), 8);
    for (_, end) in &ends {
        assert!(*end + 8 >= 8 * alone, "{end} against {alone} alone");
    }
    let last = Instant(ends[7].1);
    assert!(net.links.link_use(last, LinkId(8)).per_mille() >= 999);
    assert_eq!(net.links.link_use(last, LinkId(0)).per_mille(), 124);
}

#[test]
fn a_change_of_rate_takes_effect_at_once_and_zero_stalls() {
    let mut net = Net::new(&[1_000]);
    let flow = net.start(0, &[0], 3_000, 0);
    net.advance(1_000_000_000);
    net.links.set_rate(Instant(1_000_000_000), LinkId(0), 0);
    net.advance(1_000_000_000);
    assert_eq!(net.links.next(), None);
    net.advance(5_000_000_000);
    assert_eq!(net.links.moved(Instant(5_000_000_000), flow), Some(1_000));
    net.links.set_rate(Instant(5_000_000_000), LinkId(0), 500);
    assert_eq!(net.run(), [(0, 9_000_000_000)]);
    let used = net.links.link_use(Instant(10_000_000_000), LinkId(0));
    assert_eq!(used, LinkUse { bytes: 3_000, bytes_max: 3_500, busy_ns: 9_000_000_000 });
    assert_eq!(used.per_mille(), 857);
}

#[test]
fn a_flow_of_no_bytes_ends_after_its_setup_without_touching_a_link() {
    let mut net = Net::new(&[0]);
    net.start(3, &[0], 0, 4);
    net.start(3, &[0], 0, 0);
    assert_eq!(net.run(), [(1, 3), (0, 7)]);
    assert_eq!(net.links.link_use(Instant(7), LinkId(0)), LinkUse::default());
}

#[test]
fn a_flow_without_links_moves_at_its_own_limit() {
    let mut net = Net::new(&[]);
    net.spec(0, FlowSpec { path: Path::default(), bytes: 10, setup_ns: 1, rate_max: Some(1_000_000_000) });
    net.spec(0, FlowSpec { path: Path::default(), bytes: 10, setup_ns: 2, rate_max: None });
    assert_eq!(net.run(), [(1, 2), (0, 11)]);
}

#[test]
fn a_cancelled_flow_reports_its_bytes_and_frees_its_share() {
    let mut net = Net::new(&[1_000]);
    let gone = net.start(0, &[0], 9_000, 0);
    net.start(0, &[0], 2_000, 0);
    let waiting = net.start(0, &[0], 1, 9_000_000_000);
    net.advance(2_000_000_000);
    let now = Instant(2_000_000_000);
    assert_eq!(net.links.cancel(now, gone), Some(1_000));
    assert_eq!(net.links.cancel(now, gone), None);
    assert_eq!(net.links.cancel(now, waiting), Some(0));
    assert_eq!(net.run(), [(1, 3_000_000_000)]);
    assert_eq!(net.links.flows_count(), 0);
    assert_eq!(net.links.link_use(Instant(3_000_000_000), LinkId(0)).bytes, 3_000);
}

#[test]
fn a_name_of_an_ended_flow_never_means_another_one() {
    let mut net = Net::new(&[1_000]);
    let older = net.start(0, &[0], 1, 0);
    net.run();
    let newer = net.start(1_000_000_000, &[0], 1, 0);
    assert_eq!(net.links.cancel(Instant(1_000_000_000), older), None);
    assert_ne!(older, newer);
    assert_eq!(net.run().len(), 2);
}

#[test]
fn a_change_reaches_the_connected_links_and_no_others() {
    let mut net = Net::new(&[100, 100, 100]);
    let near = net.start(0, &[0, 1], 1_000, 0);
    let far = net.start(0, &[2], 1_000, 0);
    net.advance(0);
    net.start(1, &[1], 1_000, 0);
    net.advance(1);
    assert_eq!((net.links.rate(near), net.links.rate(far)), (Some(50), Some(100)));
    let slot = far.slot as usize;
    assert_eq!(net.links.flows[slot].since, Instant(0), "the far flow was not even settled");
}

#[test]
fn ends_at_one_instant_come_by_start_and_a_late_driver_sees_the_same() {
    let run = |step: u64| {
        let mut net = Net::new(&[1_000_000, 700_000]);
        for flow in 0..40_u64 {
            net.start(0, if flow % 3 == 0 { &[0, 1] } else { &[0] }, 1_000 * (flow % 5), flow % 7);
        }
        let mut now = 0;
        while net.links.next().is_some() {
            net.advance(now);
            now += step;
        }
        net.ends.into_iter().map(|(flow, _)| flow).collect::<Vec<_>>()
    };
    assert_eq!(run(1_000), run(10_000_000_000));
}

#[test]
#[should_panic(expected = "first")]
fn a_driver_that_skips_an_event_is_stopped() {
    let mut net = Net::new(&[1_000]);
    net.start(0, &[0], 1, 0);
    net.start(1, &[0], 1, 0);
    net.links.start(Instant(9), FlowSpec { path: path(&[0]), bytes: 1, setup_ns: 0, rate_max: None });
}

#[test]
#[should_panic(expected = "twice")]
fn a_path_does_not_cross_a_link_twice() {
    path(&[1, 2, 1]);
}

/// Links, and the ends seen so far as (ordinal, ns).
pub(super) struct Net {
    pub(super) links: Links,
    pub(super) ends: Vec<(u64, u64)>,
}

impl Net {
    pub(super) fn new(rates: &[u64]) -> Self {
        let mut links = Links::new();
        for (index, rate) in rates.iter().enumerate() {
            links.add(&format!("link{index}"), *rate);
        }
        Self { links, ends: Vec::new() }
    }

    pub(super) fn start(&mut self, at: u64, over: &[u32], bytes: u64, setup_ns: u64) -> FlowId {
        self.spec(at, FlowSpec { path: path(over), bytes, setup_ns, rate_max: None })
    }

    pub(super) fn spec(&mut self, at: u64, flow: FlowSpec) -> FlowId {
        if at > 0 {
            self.advance(at - 1);
        }
        self.links.start(Instant(at), flow)
    }

    pub(super) fn advance(&mut self, now: u64) {
        let mut done = Vec::new();
        while let Some(at) = self.links.next()
            && at.0 <= now
        {
            self.links.advance(at, &mut done);
            self.ends.extend(done.drain(..).map(|flow| (flow.ordinal, at.0)));
        }
        self.links.advance(Instant(now), &mut done);
        assert!(done.is_empty(), "next names every event");
    }

    /// Runs to the end; all ends so far.
    pub(super) fn run(&mut self) -> Vec<(u64, u64)> {
        while let Some(at) = self.links.next() {
            self.advance(at.0);
        }
        self.ends.clone()
    }
}

pub(super) fn path(links: &[u32]) -> Path {
    Path::new(&links.iter().map(|link| LinkId(*link)).collect::<Vec<_>>())
}

//! What the world does with each fault, in small: two or three workers, a few requests, exact times where they matter.

use std::time::Duration;

use pd_core::config::{KvConfig, Mode, SchedConfig, TransferConfig, WorkerConfig};
use pd_core::cost::{Cost, LinkCost};
use pd_core::event::{Failure, Finish};
use pd_core::id::{Epoch, PageKey, Token, WorkerId};
use pd_core::key::page_keys;
use pd_core::message::Layout;
use pd_core::op::{Fault as Ended, Prompt};
use pd_core::router::RouterConfig;
use pd_core::time::Instant;

use super::*;
use crate::record::{End, Outcome};
use crate::setup::{Arrival, LinkSetup, PathSetup, Setup, Source, StepCost, WireSetup, WorkerSetup};
use crate::units::Span;
use crate::world::World;

/// Requests at fixed times, each with a prompt of its own.
#[derive(Debug)]
struct Plain {
    times: Vec<Instant>,
    taken: usize,
}

impl Source for Plain {
    fn next(&self) -> Option<Instant> {
        self.times.get(self.taken).copied()
    }
    fn take(&mut self) -> Arrival {
        self.taken += 1;
        let seed = self.taken as u64;
        let tokens: Vec<Token> = (0..40).map(|at| Token(at + 1000 * seed as u32)).collect();
        let root = PageKey(1);
        let prompt = Prompt { root, length: 40, keys: page_keys(root, 16, &tokens), tokens };
        Arrival { ordinal: seed, session: None, counted_tokens: 40, prompt, output_tokens: 20, priority: 0, seed }
    }
    fn finished(&mut self, _: Instant, _: u64, _: bool) {}
}

fn at(milliseconds: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(milliseconds)
}

fn span(milliseconds: u64) -> Span {
    Span(Duration::from_millis(milliseconds))
}

fn worker(id: u32, mode: Mode) -> WorkerSetup {
    let rate = std::num::NonZeroU64::new(1_000_000_000).expect("a rate");
    let cost =
        LinkCost { request_ns: 0, descriptor_ps: 0, bytes_per_second: rate, latency_ns: 0, descriptors_ahead: 0 };
    let link = |side: &str| vec![LinkSetup { name: format!("w{id}.nic.{side}"), bytes_per_second: 1_000_000_000 }];
    let path = PathSetup { links: Vec::new(), cost };
    let wire = WireSetup { out: link("out"), into: link("in"), cost };
    let layout = Layout {
        page_size: 16,
        dtype: "bf16".into(),
        layers: 4,
        kv_heads: 8,
        head_dim: 64,
        page_bytes: 1_000_000,
        tp: 1,
    };
    WorkerSetup {
        config: WorkerConfig {
            worker: WorkerId(id),
            epoch: Epoch(0),
            mode,
            seed: 0,
            kv: KvConfig { gpu_pages: 512, page_bytes: 1_000_000, root: PageKey(1), ..KvConfig::default() },
            sched: SchedConfig::default(),
            transfer: TransferConfig { layout, ..TransferConfig::default() },
        },
        cost: Cost::fixed(0, 1, 1, 1_000_000),
        step: StepCost::Fixed { gpu_ns: 1_000_000, cpu_ns: 0 },
        layers: 4,
        host: id,
        copy_in: path.clone(),
        copy_out: path,
        near: wire.clone(),
        far: wire,
        store: None,
        control_latency_ns: 10_000,
        start: Instant::ZERO,
    }
}

/// `prefills` prefill workers, then `decodes` decode workers, behind a router; a request every 10 ms.
fn pairs(prefills: u32, decodes: u32, requests: u64, script: Vec<(Instant, Action)>) -> Setup {
    let mode = |id| if id < prefills { Mode::Prefill } else { Mode::Decode };
    let workers: Vec<WorkerSetup> = (0..prefills + decodes).map(|id| worker(id, mode(id))).collect();
    let cost = workers[0].cost.clone();
    let mut setup = Setup::new(workers);
    setup.router = Some((RouterConfig { page_size: 16, ..RouterConfig::default() }, cost));
    setup.router_latency_ns = 10_000;
    setup.loads = vec![Box::new(Plain { times: (0..requests).map(|index| at(10 * index)).collect(), taken: 0 })];
    setup.script = script;
    setup.check = true;
    let places = setup.places();
    for (_, action) in &setup.script {
        action.check(&places).expect("the test names what there is");
    }
    setup
}

/// Runs it; every request has an end and nothing that must never happen did.
fn run(setup: Setup) -> Outcome {
    let outcome = World::new(setup).run();
    assert_eq!(outcome.violations, []);
    assert!(outcome.requests.iter().all(|record| record.end.is_some()), "{:?}", outcome.requests);
    outcome
}

fn finished(outcome: &Outcome) -> usize {
    outcome.requests.iter().filter(|record| record.is_complete()).count()
}

fn scoped(worker: u32, peer: Option<Peer>) -> Partition {
    Partition { worker, peer, ..Partition::default() }
}

#[test]
fn without_faults_all_is_well() {
    let outcome = run(pairs(1, 1, 10, Vec::new()));
    assert_eq!((finished(&outcome), outcome.transfers.len(), outcome.idle.len()), (10, 10, 0));
}

#[test]
fn a_partition_holds_messages_back_and_loses_none() {
    let partition = Partition { lasts: Some(span(500)), ..scoped(0, Some(Peer::Worker(1))) };
    let outcome = run(pairs(1, 1, 10, vec![(at(20), Action::Partition(partition))]));
    assert_eq!((finished(&outcome), outcome.lost_letters, outcome.idle.len()), (10, 0, 0));
    let late = outcome.requests.iter().filter(|record| record.first_token > Some(at(520))).count();
    assert!((7..=9).contains(&late), "{late} waited for the end of it");
}

#[test]
fn a_router_gives_a_worker_up_that_it_cannot_reach_and_takes_it_back() {
    let cut = Partition { lasts: Some(span(8_000)), patience: Some(span(100)), ..scoped(1, Some(Peer::Router)) };
    let mut setup = pairs(1, 2, 1_000, vec![(at(1_000), Action::Partition(cut))]);
    setup.workers[1].step = StepCost::Fixed { gpu_ns: 5_000_000, cpu_ns: 0 };
    let outcome = run(setup);
    assert_eq!((finished(&outcome), outcome.idle.len()), (1_000, 0));
    assert_eq!(outcome.workers[1].lives, 1);
    let on_it = |from, to| {
        let is_between = |arrival: Instant| arrival > from && arrival < to;
        outcome.requests.iter().filter(|record| is_between(record.arrival) && record.decode == Some(1)).count()
    };
    assert_eq!(on_it(at(1_110), at(8_990)), 0);
    assert!(on_it(at(9_100), at(10_000)) > 10);
    assert!(outcome.requests.iter().any(|record| record.retries > 0), "those that it had were tried again");
}

#[test]
fn dropped_messages_end_by_deadlines() {
    let drop = Drop {
        worker: 0,
        peer: Some(Peer::Worker(1)),
        one_way: false,
        share: Share::new(0.5).expect("a share"),
        lasts: None,
    };
    let outcome = run(pairs(1, 1, 20, vec![(at(5), Action::Drop(drop))]));
    assert!(outcome.lost_letters >= 5, "{} were lost", outcome.lost_letters);
    assert!(finished(&outcome) >= 5);
    assert_eq!(outcome.idle.len(), 0);
}

#[test]
fn copies_of_messages_and_overtaken_ones_change_no_answer() {
    let share = Share::new(0.5).expect("a share");
    let (worker, one_way, lasts) = (0, false, None);
    let twice = Duplicate { worker, peer: None, one_way, share, delay: span(3), lasts };
    let outcome = run(pairs(1, 1, 20, vec![(at(0), Action::Duplicate(twice))]));
    assert_eq!((finished(&outcome), outcome.idle.len()), (20, 0));
    let reorder = Reorder { worker, peer: None, one_way, share, delay: span(3), lasts };
    let outcome = run(pairs(2, 1, 20, vec![(at(0), Action::Reorder(reorder))]));
    assert_eq!(outcome.idle.len(), 0);
}

#[test]
fn late_messages_make_late_answers() {
    let delay =
        Delay { worker: 1, peer: Some(Peer::Router), one_way: true, share: Share::ALL, delay: span(70), lasts: None };
    let quick = run(pairs(1, 1, 1, Vec::new()));
    let slow = run(pairs(1, 1, 1, vec![(at(0), Action::Delay(delay))]));
    let ttft = |outcome: &Outcome| outcome.requests[0].ttft_ns().expect("it has an answer");
    assert_eq!(ttft(&slow) - ttft(&quick), 70_000_000);
}

#[test]
fn a_broken_connection_comes_back_in_the_same_lives() {
    for lasts in [span(0), span(50)] {
        let lost = LostPeer { worker: 0, peer: Some(1), lasts: Some(lasts) };
        let outcome = run(pairs(1, 1, 20, vec![(at(42), Action::LostPeer(lost))]));
        assert_eq!((finished(&outcome), outcome.idle.len()), (20, 0));
        assert!(outcome.workers.iter().all(|worker| worker.lives == 1));
        let after = outcome.transfers.iter().filter(|transfer| transfer.ended > at(100)).count();
        assert!(after >= 5, "{after} transfers over the new connection");
    }
}

#[test]
fn nobody_knows_anybody_before_the_registry_is_there() {
    let outcome = run(pairs(1, 1, 10, vec![(at(0), Action::BootstrapLate(BootstrapLate { lasts: span(2_000) }))]));
    assert_eq!((finished(&outcome), outcome.idle.len()), (10, 0));
    assert!(outcome.requests.iter().all(|record| record.first_token > Some(at(2_000))));
}

#[test]
fn those_who_know_each_other_go_on_without_the_registry() {
    let restart = BootstrapRestart { down_for: Some(span(1_000)) };
    let outcome = run(pairs(1, 1, 30, vec![(at(50), Action::BootstrapRestart(restart))]));
    assert_eq!((finished(&outcome), outcome.idle.len()), (30, 0));
    assert!(outcome.requests.iter().all(|record| record.ttft_ns() < Some(100_000_000)));
}

#[test]
fn a_worker_that_starts_late_is_used_from_then_on() {
    let mut setup = pairs(1, 2, 100, Vec::new());
    setup.workers[2].start = at(500);
    let outcome = run(setup);
    assert_eq!(finished(&outcome), 100);
    let by_it: Vec<Instant> =
        outcome.requests.iter().filter(|record| record.decode == Some(2)).map(|record| record.arrival).collect();
    assert!(by_it.len() > 10 && by_it.iter().all(|arrival| *arrival >= at(490)), "{by_it:?}");
}

#[test]
fn a_router_that_dies_takes_its_requests_with_it_and_gives_no_room_twice() {
    let restart = RouterRestart { down_for: Some(span(100)) };
    let outcome = run(pairs(1, 1, 50, vec![(at(205), Action::RouterRestart(restart))]));
    let lost: Vec<usize> = (0..50).filter(|index| outcome.requests[*index].end == Some(End::RouterLost)).collect();
    assert!((10..=15).contains(&lost.len()), "{lost:?}");
    assert_eq!(finished(&outcome), 50 - lost.len());
    let mut rooms: Vec<u64> = outcome.transfers.iter().map(|transfer| transfer.room.0).collect();
    rooms.sort_unstable();
    rooms.dedup();
    assert_eq!(rooms.len(), outcome.transfers.len(), "one push a request here, each in a room of its own");
    assert!(rooms.last() >= Some(&(1 << 40)));
}

#[test]
fn wrong_clocks_change_no_answer() {
    let skew = |worker, ahead, behind, ppm| Action::ClockSkew(ClockSkew { worker, ahead, behind, ppm, lasts: None });
    let script = |milliseconds| {
        vec![
            (at(milliseconds), skew(0, Some(Span::seconds(3_600)), None, 500)),
            (at(milliseconds), skew(1, None, Some(Span::seconds(30)), -500)),
        ]
    };
    // A clock that jumps makes the deadlines pass that it jumps over; what they end is tried again.
    assert_eq!(finished(&run(pairs(1, 1, 30, script(33)))), 30);
    let outcome = run(pairs(1, 1, 30, script(0)));
    let right = run(pairs(1, 1, 30, Vec::new()));
    let times = |outcome: &Outcome| outcome.requests.iter().map(|record| record.finished).collect::<Vec<_>>();
    assert_eq!(times(&outcome), times(&right));
}

#[test]
fn a_stuck_device_makes_its_forwards_later_by_exactly_its_time() {
    let stuck = StuckGpu { worker: 0, lasts: span(1_000) };
    let alone = |script| {
        let mut setup = Setup::new(vec![worker(0, Mode::Unified)]);
        setup.loads = vec![Box::new(Plain { times: vec![at(0)], taken: 0 })];
        setup.script = script;
        setup.check = true;
        run(setup)
    };
    let (quick, slow) = (alone(Vec::new()), alone(vec![(Instant(5_500_000), Action::StuckGpu(stuck))]));
    let late = slow.requests[0].finished.expect("it ends").ns_since(quick.requests[0].finished.expect("it ends"));
    assert_eq!((late, slow.idle.len()), (1_000_000_000, 0));
    let half = SlowGpu { worker: 0, factor: Speed::new(0.5).expect("a speed"), lasts: None };
    let slow = alone(vec![(Instant(0), Action::SlowGpu(half))]);
    assert!(slow.requests[0].e2e_ns() > quick.requests[0].e2e_ns().map(|ns| ns * 18 / 10));
    // One failure is made good by computing again; a device that goes on failing is not.
    let failing = |count| alone(vec![(Instant(5_500_000), Action::FailedStep(FailedStep { worker: 0, count }))]);
    let (once, ever) = (failing(1), failing(1_000));
    assert!(once.requests[0].is_complete() && once.requests[0].e2e_ns() > quick.requests[0].e2e_ns());
    let device = End::Finished(Finish::Failed(Failure::Lane(Ended::Device)));
    assert_eq!((ever.requests[0].end, once.idle.len() + ever.idle.len()), (Some(device), 0));
}

#[test]
fn links_slow_down_stop_and_flap_and_are_themselves_again() {
    let push_ns = |script| {
        let outcome = run(pairs(1, 1, 1, script));
        assert_eq!(outcome.idle.len(), 0);
        outcome.transfers[0].ended.ns_since(outcome.transfers[0].started)
    };
    let slow = |factor: f64, lasts| SlowLink {
        link: None,
        worker: Some(0),
        side: Some("nic.out".into()),
        factor: Speed::new(factor).expect("a speed"),
        lasts,
    };
    let quick = push_ns(Vec::new());
    assert!(push_ns(vec![(at(0), Action::SlowLink(slow(0.1, None)))]) > 9 * quick);
    let stopped = push_ns(vec![(at(0), Action::SlowLink(slow(0.0, Some(span(100)))))]);
    assert!(stopped > 95_000_000, "{stopped}");
    let flap = LinkFlap { link: Some("w1.nic".into()), worker: None, side: None, period: span(2), lasts: span(1_000) };
    let flapping = push_ns(vec![(at(0), Action::LinkFlap(flap))]);
    assert!(flapping > quick + 1_000_000 && flapping < 3 * quick + 2_000_000, "{quick} {flapping}");
    let set = SetLink { link: "w1.nic.in".into(), rate: crate::units::BytesPerSecond(100_000_000) };
    assert!(push_ns(vec![(at(0), Action::SetLink(set))]) > 9 * quick);
}

#[test]
fn nonsense_is_dropped_and_counted() {
    for worker in [0, 1] {
        let nonsense = Nonsense { worker, peer: None, count: 2_000, lasts: Some(span(150)) };
        let outcome = run(pairs(1, 1, 20, vec![(at(5), Action::Nonsense(nonsense))]));
        assert_eq!((finished(&outcome), outcome.idle.len()), (20, 0));
        let totals = &outcome.workers[worker as usize].metrics;
        assert!(totals.stale_inputs > 500, "{}", totals.stale_inputs);
        assert_eq!(outcome.transfers.len(), 20);
    }
}

#[test]
fn clients_that_go_away_all_at_once_leave_nothing_behind() {
    let outcome = run(pairs(2, 2, 100, vec![(at(500), Action::CancelAll(CancelAll::default()))]));
    let cancelled =
        outcome.requests.iter().filter(|record| record.end == Some(End::Finished(Finish::Cancelled))).count();
    assert!(cancelled >= 2, "{cancelled}");
    assert_eq!((finished(&outcome), outcome.idle.len()), (100 - cancelled, 0));
}

#[test]
fn a_crash_with_power_back_lives_again_and_one_without_does_not() {
    let crash = |down_for| vec![(at(100), Action::Crash(Crash { worker: 1, down_for }))];
    let back = run(pairs(1, 1, 20, crash(Some(span(200)))));
    assert_eq!(back.workers[1].lives, 2);
    let gone = run(pairs(1, 1, 20, crash(None)));
    assert_eq!(gone.workers[1].lives, 1);
    assert!(finished(&gone) < finished(&back) || finished(&gone) < 20);
    // Also when it comes in the middle of a restart.
    let script = vec![
        (at(100), Action::Restart(Restart::new(1, Duration::from_millis(100)))),
        (at(150), Action::Crash(Crash { worker: 1, down_for: None })),
    ];
    assert_eq!(run(pairs(1, 1, 20, script)).workers[1].lives, 1);
}

#[test]
fn an_event_that_hits_nothing_is_named() {
    let outcome = run(pairs(1, 1, 3, vec![(at(1), Action::Cancel(Cancel { request: 7 }))]));
    assert_eq!(outcome.idle.iter().map(|idle| (idle.at, idle.what)).collect::<Vec<_>>(), [(at(1), "cancel")]);
}

#[test]
fn equal_scripts_give_equal_runs_and_a_further_line_moves_no_draw_of_others() {
    let drop = |share: f64| {
        let share = Share::new(share).expect("a share");
        Action::Drop(Drop { worker: 0, peer: Some(Peer::Worker(1)), one_way: false, share, lasts: None })
    };
    let hash = |script| run(pairs(1, 1, 20, script)).hash;
    let one = hash(vec![(at(5), drop(0.3))]);
    assert_eq!(one, hash(vec![(at(5), drop(0.3))]));
    assert_eq!(one, hash(vec![(at(5), drop(0.3)), (at(6), drop(0.0))]));
    assert_ne!(one, hash(vec![(at(5), drop(0.4))]));
}

//! Retries, migration and breakers.

use super::*;

/// Opens a breaker by failing requests one after the other at `worker`, each of them then cancelled.
fn fail_at(net: &mut Net, worker: u32, count: u64, fault: RouteFault) {
    for request in 1_000..1_000 + count {
        let route = net.route(request, &[]);
        assert!(route.decode.0 == worker || route.prefill == Some(WorkerId(worker)), "{route:?}");
        net.failed(request, 0, worker, fault);
        net.feed(RouterInput::Cancel { request: RequestId(request) });
    }
}

#[test]
fn a_failed_request_is_tried_elsewhere_after_a_pause_in_a_new_room() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified; 2]);
    let first = net.route(1, &[]);
    assert!(routes(&net.failed(1, 0, first.decode.0, RouteFault::Aborted)).is_empty());
    assert!(net.is_idle());
    assert!(net.pass(Duration::from_millis(39)).is_empty());
    let outputs = net.pass(Duration::from_millis(21));
    let second = only_route(&outputs);
    assert_eq!(second.attempt, 1);
    assert_ne!(second.decode, first.decode);
    assert_ne!(second.room, first.room);
    assert_eq!(net.metrics().retried, 1);
}

#[test]
fn when_one_leg_fails_the_other_is_cancelled() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Prefill, Mode::Decode]);
    net.route(1, &[]);
    let cancel = |attempt, worker| RouterOutput::Cancel { request: RequestId(1), attempt, worker: WorkerId(worker) };
    assert_eq!(net.failed(1, 0, 0, RouteFault::Aborted), [cancel(0, 1)]);
    net.pass(SECOND);
    // A silent worker may still be at work, so it is told, too.
    assert_eq!(net.failed(1, 1, 0, RouteFault::Timeout), [cancel(1, 0), cancel(1, 1)]);
}

#[test]
fn a_late_failure_of_an_earlier_attempt_does_not_end_the_next() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Prefill, Mode::Decode]);
    net.route(1, &[]);
    net.failed(1, 0, 0, RouteFault::Aborted);
    net.pass(SECOND);
    assert!(net.failed(1, 0, 1, RouteFault::Peer).is_empty());
    assert_eq!(net.metrics().stale_inputs, 1);
    net.first_token(1, 1);
    net.finished(1);
    assert!(net.is_idle());
}

#[test]
fn pauses_grow_by_half_and_retries_end() {
    let config = RouterConfig { backoff_jitter_per_mille: 0, ..RouterConfig::default() };
    let mut net = Net::with(config, &[Mode::Unified]);
    net.route(1, &[]);
    let mut pauses = Vec::new();
    for attempt in 0..5 {
        net.failed(1, attempt, 0, RouteFault::Refused);
        let (at, why) = net.pump.deadline().expect("a retry is due");
        assert_eq!(why, "a request is to be tried again");
        pauses.push((at - net.now).as_micros());
        net.now = at;
        let outputs = net.feed(RouterInput::Tick);
        assert_eq!(only_route(&outputs).attempt, attempt + 1);
    }
    assert_eq!(pauses, [50_000, 75_000, 112_500, 168_750, 253_125]);
    let outputs = net.failed(1, 5, 0, RouteFault::Refused);
    let exhausted = RouteRefusal::RetriesExhausted { attempts: 6, fault: RouteFault::Refused };
    assert_eq!(refusal(&outputs), exhausted);
    assert_eq!(net.pump.machine.live(), 0);
}

#[test]
fn a_request_at_fault_is_refused_and_not_tried_again() {
    let mut net = Net::with(RouterConfig { breaker_failures: 1, ..RouterConfig::default() }, &[Mode::Unified]);
    net.route(1, &[]);
    let outputs = net.failed(1, 0, 0, RouteFault::BadRequest);
    assert_eq!(refusal(&outputs), RouteRefusal::BadRequest);
    assert!(!net.route(2, &[]).reason.last_resort);
}

#[test]
fn a_worker_that_dies_in_mid_stream_loses_its_requests_to_the_others_at_once() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified; 2]);
    let mut on_first = Vec::new();
    for request in 0..10 {
        if net.route(request, &[]).decode.0 == 0 {
            on_first.push(RequestId(request));
        }
        net.first_token(request, 0);
    }
    assert_eq!(on_first.len(), 5);
    let moved = routes(&net.down(0));
    assert_eq!(moved.iter().map(|route| route.request).collect::<Vec<_>>(), on_first);
    assert!(moved.iter().all(|route| route.attempt == 1 && route.decode.0 == 1));
    assert_eq!(net.metrics().migrated, 5);
}

#[test]
fn many_orphans_are_routed_a_bounded_number_at_a_step() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified]);
    for request in 0..200 {
        net.route(request, &[]);
    }
    net.up(1, Mode::Unified, 1);
    assert_eq!(routes(&net.down(0)).len(), 64);
    assert_eq!(net.pump.deadline().expect("more is due").0, net.now);
    assert_eq!(routes(&net.pass(Duration::ZERO)).len(), 136);
}

#[test]
fn a_prefill_worker_that_dies_after_the_hand_over_takes_nothing_with_it() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Prefill, Mode::Decode]);
    net.route(1, &[]);
    net.route(2, &[]);
    net.first_token(1, 0);
    let outputs = net.down(0);
    let cancel = RouterOutput::Cancel { request: RequestId(2), attempt: 0, worker: WorkerId(1) };
    assert_eq!(outputs[0], cancel);
    let moved = routes(&outputs);
    assert_eq!((moved.len(), moved[0].request, moved[0].prefill), (1, RequestId(2), None));
}

#[test]
fn a_restart_is_a_loss_and_a_new_member() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified]);
    net.route(1, &chain(1, 8));
    // The new life takes over at once, and with an empty cache.
    let moved = routes(&net.up(0, Mode::Unified, 2));
    assert_eq!((moved.len(), moved[0].attempt, moved[0].reason.cached), (1, 1, 0));
    // An earlier life that announces itself late is not believed.
    net.up(0, Mode::Prefill, 1);
    assert_eq!(net.metrics().workers_refused, 1);
    net.route(2, &[]);
}

#[test]
fn without_any_worker_a_live_request_waits_for_one_and_spends_no_attempt() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified]);
    net.route(1, &[]);
    net.route(2, &[]);
    net.down(0);
    // Longer than all retries together.
    assert!(net.pass(SECOND * 59).is_empty());
    let moved = routes(&net.up(0, Mode::Unified, 2));
    assert_eq!(moved.iter().map(|route| route.attempt).collect::<Vec<_>>(), [1, 1]);
    // Anew, with all of its patience.
    net.down(0);
    assert!(net.pass(SECOND * 59).is_empty());
    let refused = net.pass(SECOND);
    assert_eq!(refused.len(), 2);
    assert_eq!((net.metrics().refused_no_workers, net.metrics().refused_retries), (2, 0));
    assert!(net.pump.deadline().is_none());
}

#[test]
fn ten_failures_in_a_row_open_a_breaker_and_three_successes_close_it() {
    let mut net = Net::with(RouterConfig { policy: Policy::RoundRobin, ..RouterConfig::default() }, &[Mode::Unified]);
    fail_at(&mut net, 0, 9, RouteFault::Connection);
    assert_eq!(net.metrics().breakers_opened, 0);
    fail_at(&mut net, 0, 1, RouteFault::Connection);
    assert_eq!(net.metrics().breakers_opened, 1);
    net.up(1, Mode::Unified, 1);
    for request in 0..20 {
        assert_eq!(net.route(request, &[]).decode.0, 1);
    }
    assert_eq!(net.pump.deadline().map(|(_, why)| why), Some("a breaker becomes half-open"));
    net.pass(SECOND * 60);
    // Half-open: one probe at a time.
    for round in 1..=3 {
        let homes: Vec<_> = (0..4).map(|n| net.route(100 * round + n, &[])).collect();
        let probes: Vec<_> = homes.iter().filter(|route| route.decode.0 == 0).collect();
        assert_eq!(probes.len(), 1, "round {round}");
        net.finished(probes[0].request.0);
    }
    let homes: Vec<_> = (0..4).map(|n| net.route(1000 + n, &[]).decode.0).collect();
    assert_eq!(homes.iter().filter(|&&home| home == 0).count(), 2);
}

#[test]
fn a_failed_probe_opens_the_breaker_again() {
    let mut net = Net::with(RouterConfig { policy: Policy::RoundRobin, ..RouterConfig::default() }, &[Mode::Unified]);
    fail_at(&mut net, 0, 10, RouteFault::Timeout);
    net.up(1, Mode::Unified, 1);
    net.pass(SECOND * 60);
    let probe = (0..2).map(|n| net.route(n, &[])).find(|route| route.decode.0 == 0).expect("one of two is the probe");
    net.failed(probe.request.0, 0, 0, RouteFault::Timeout);
    assert_eq!(net.metrics().breakers_opened, 2);
    assert!((10..20).all(|request| net.route(request, &[]).decode.0 == 1));
}

#[test]
fn a_cancelled_probe_makes_room_for_the_next() {
    let mut net = Net::with(RouterConfig { policy: Policy::RoundRobin, ..RouterConfig::default() }, &[Mode::Unified]);
    fail_at(&mut net, 0, 10, RouteFault::Timeout);
    net.up(1, Mode::Unified, 1);
    net.pass(SECOND * 60);
    for round in 0..5 {
        let probe = (0..2).map(|n| net.route(2 * round + n, &[])).find(|route| route.decode.0 == 0);
        net.feed(RouterInput::Cancel { request: probe.expect("one of two is the probe").request });
    }
}

#[test]
fn failures_far_apart_or_a_success_between_them_open_nothing() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified]);
    for _ in 0..5 {
        fail_at(&mut net, 0, 9, RouteFault::Connection);
        net.route(1, &[]);
        net.finished(1);
    }
    for _ in 0..5 {
        fail_at(&mut net, 0, 9, RouteFault::Connection);
        net.pass(SECOND * 121);
    }
    assert_eq!(net.metrics().breakers_opened, 0);
}

#[test]
fn busy_workers_and_failed_peers_open_no_breaker() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified]);
    fail_at(&mut net, 0, 50, RouteFault::Refused);
    fail_at(&mut net, 0, 50, RouteFault::Peer);
    assert_eq!(net.metrics().breakers_opened, 0);
}

#[test]
fn a_decode_failure_never_counts_against_the_prefill_and_vice_versa() {
    let two = [Mode::Prefill, Mode::Prefill, Mode::Decode, Mode::Decode];
    for (bad, other) in [(0, 1), (2, 3)] {
        let mut net = Net::with(RouterConfig::default(), &two);
        for request in 0..400 {
            let route = net.route(request, &[]);
            if route.prefill == Some(WorkerId(bad)) || route.decode.0 == bad {
                net.failed(request, 0, bad, RouteFault::Connection);
                net.feed(RouterInput::Cancel { request: RequestId(request) });
            } else {
                net.first_token(request, 0);
                net.finished(request);
            }
        }
        assert_eq!(net.metrics().breakers_opened, 1);
        let health = &net.pump.machine.health;
        for (worker, role) in [(0, Role::Prefill), (1, Role::Prefill), (2, Role::Decode), (3, Role::Decode)] {
            assert_eq!(health.admits(WorkerId(worker), role), worker != bad);
        }
        let route = net.route(1000, &[]);
        assert!(route.prefill == Some(WorkerId(other)) || route.decode.0 == other);
    }
}

#[test]
fn the_last_worker_is_tried_in_spite_of_its_breaker_and_a_success_brings_it_back() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified]);
    fail_at(&mut net, 0, 10, RouteFault::Connection);
    for request in 0..3 {
        let route = net.route(request, &[]);
        // The first success makes the breaker half-open, and the next request is its probe.
        assert_eq!(route.reason.last_resort, request == 0);
        net.finished(request);
    }
    assert!(!net.route(9, &[]).reason.last_resort);
    assert_eq!(net.metrics().last_resorts, 1);
}

#[test]
fn nothing_is_held_against_a_new_life() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified]);
    fail_at(&mut net, 0, 10, RouteFault::Connection);
    net.up(0, Mode::Unified, 2);
    assert!(!net.route(1, &[]).reason.last_resort);
}

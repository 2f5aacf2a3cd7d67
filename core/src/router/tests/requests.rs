//! The life of a request that nothing goes wrong with, and what is refused at the door.

use super::*;

#[test]
fn a_pair_serves_one_request_and_the_accounts_return_to_zero() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Prefill, Mode::Decode]);
    let route = net.route(1, &chain(1, 4));
    assert_eq!((route.prefill, route.decode), (Some(WorkerId(0)), WorkerId(1)));
    assert!(!net.is_idle());
    net.first_token(1, 0);
    assert_eq!(net.pump.machine.workers[&WorkerId(0)].load, load::Load::default());
    net.finished(1);
    assert!(net.is_idle());
    assert_eq!(net.pump.machine.live(), 0);
}

#[test]
fn a_unified_worker_serves_the_whole_request() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified]);
    let route = net.route(1, &chain(1, 4));
    assert_eq!((route.prefill, route.decode), (None, WorkerId(0)));
    net.first_token(1, 0);
    let load = net.pump.machine.workers[&WorkerId(0)].load;
    assert_eq!((load.prefill_ns, load.prefill_tokens, load.legs, load.decodes), (0, 0, 1, 1));
    net.finished(1);
    assert!(net.is_idle());
}

#[test]
fn without_a_prefill_worker_the_decode_worker_does_it_all() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Decode]);
    let route = net.route(1, &chain(1, 4));
    assert_eq!((route.prefill, route.decode, route.reason.cause), (None, WorkerId(0), Cause::NoPrefill));
}

#[test]
fn a_prefill_worker_alone_can_serve_nothing() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Prefill]);
    let outputs = net.submit(1, &[]);
    assert_eq!(refusal(&outputs), RouteRefusal::NoWorkers);
    assert_eq!(net.pump.machine.live(), 0);
}

#[test]
fn a_live_name_is_refused_and_the_live_request_goes_on() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified]);
    net.route(1, &[]);
    let outputs = net.submit(1, &[]);
    assert_eq!(refusal(&outputs), RouteRefusal::DuplicateRequest);
    assert_eq!(net.pump.machine.live(), 1);
    net.finished(1);
    net.route(1, &[]);
}

#[test]
fn more_live_requests_than_the_bound_are_refused() {
    let config = RouterConfig { live_requests_max: 2, ..RouterConfig::default() };
    let mut net = Net::with(config, &[Mode::Unified]);
    net.route(1, &[]);
    net.route(2, &[]);
    let outputs = net.submit(3, &[]);
    assert_eq!(refusal(&outputs), RouteRefusal::Overloaded { max: 2 });
    net.finished(1);
    net.route(3, &[]);
}

#[test]
fn a_request_that_does_not_fit_together_is_refused() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified]);
    for broken in
        [Ask { length: 0, ..*ask(1, &[]) }, Ask { limit: 0, ..*ask(1, &[]) }, Ask { length: 15, ..*ask(1, &[7]) }]
    {
        let outputs = net.feed(RouterInput::Submit(Box::new(broken)));
        assert_eq!(refusal(&outputs), RouteRefusal::Malformed);
    }
}

#[test]
fn the_longest_prompt_a_client_can_claim_breaks_nothing() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Prefill, Mode::Decode]);
    for request in 0..100 {
        let asked = Ask { length: u32::MAX, limit: u32::MAX, ..*ask(request, &[1]) };
        let outputs = net.feed(RouterInput::Submit(Box::new(asked)));
        assert_eq!(routes(&outputs).len(), 1);
    }
    let load = LoadReport { running: u32::MAX, waiting: u32::MAX, waiting_tokens: u64::MAX, running_tokens: u64::MAX };
    for worker in [WorkerId(0), WorkerId(1)] {
        net.feed(RouterInput::Load { worker, load });
    }
    net.route(100, &[1]);
}

#[test]
fn inputs_about_strangers_are_dropped_and_counted() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified]);
    net.first_token(9, 0);
    net.finished(9);
    net.failed(9, 0, 0, RouteFault::Connection);
    net.feed(RouterInput::Cancel { request: RequestId(9) });
    net.feed(RouterInput::Load { worker: WorkerId(9), load: LoadReport::default() });
    net.feed(RouterInput::Changes { worker: WorkerId(9), changes: Vec::new() });
    net.feed(RouterInput::Drain { worker: WorkerId(9) });
    net.down(9);
    assert_eq!(net.metrics().stale_inputs, 8);
}

#[test]
fn a_cancelled_request_is_taken_off_both_workers() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Prefill, Mode::Decode]);
    net.route(1, &[]);
    let outputs = net.feed(RouterInput::Cancel { request: RequestId(1) });
    let cancel = |worker| RouterOutput::Cancel { request: RequestId(1), attempt: 0, worker: WorkerId(worker) };
    assert_eq!(outputs, [cancel(0), cancel(1)]);
    assert!(net.is_idle());
}

#[test]
fn rooms_are_never_given_twice_not_even_by_the_next_life() {
    let mut rooms = Vec::new();
    for epoch in [1, 2, (1 << 23) - 1] {
        let mut net = Net::with(RouterConfig { epoch: Epoch(epoch), ..RouterConfig::default() }, &[Mode::Unified]);
        rooms.extend((0..100).map(|request| net.route(request, &[]).room));
    }
    assert!(rooms.iter().all(|room| room.0 < 1 << 63));
    rooms.sort_unstable();
    rooms.dedup();
    assert_eq!(rooms.len(), 300);
    assert!(Router::new(RouterConfig { epoch: Epoch(1 << 23), ..RouterConfig::default() }, cost()).is_err());
}

#[test]
fn a_drained_worker_gets_no_new_requests_and_finishes_those_it_has() {
    let mut net = Net::with(RouterConfig::default(), &[Mode::Unified]);
    net.route(1, &[]);
    net.feed(RouterInput::Drain { worker: WorkerId(0) });
    let outputs = net.submit(2, &[]);
    assert_eq!(refusal(&outputs), RouteRefusal::NoWorkers);
    net.finished(1);
    // Its next life is in rotation.
    net.up(0, Mode::Unified, 2);
    net.route(2, &[]);
}

#[test]
fn equal_inputs_give_equal_states_and_another_seed_another_order() {
    let run = |seed| {
        let config = RouterConfig { policy: Policy::Random, seed, ..RouterConfig::default() };
        let mut net = Net::with(config, &[Mode::Unified; 5]);
        for request in 0..50 {
            net.route(request, &chain(request as u32 % 7, 5));
        }
        let mut digest = Digest::new();
        net.pump.machine.digest(&mut digest);
        (net.pump.fingerprint(), digest.finish())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

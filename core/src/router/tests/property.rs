#![allow(clippy::disallowed_types, reason = "prop_oneof! makes an Arc")]
//! Random workers, requests and failures against what must always hold.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Act {
    Submit { request: u64, chain: u32, pages: u32, session: Option<u64> },
    Cancel { request: u64 },
    FirstToken { request: u64 },
    Finished { request: u64 },
    Failed { request: u64, prefill: bool, fault: RouteFault, stale: bool },
    Up { worker: u32 },
    Down { worker: u32 },
    Drain { worker: u32 },
    Load { worker: u32, running: u32, waiting: u32 },
    Pass { ms: u64 },
}

const FAULTS: [RouteFault; 6] = [
    RouteFault::Connection,
    RouteFault::Refused,
    RouteFault::Aborted,
    RouteFault::Timeout,
    RouteFault::Peer,
    RouteFault::BadRequest,
];

fn act() -> impl Strategy<Value = Act> {
    let request = || 0_u64..12;
    let worker = || 0_u32..6;
    prop_oneof![
        6 => (request(), 0_u32..4, 0_u32..6, proptest::option::of(0_u64..3))
            .prop_map(|(request, chain, pages, session)| Act::Submit { request, chain, pages, session }),
        1 => request().prop_map(|request| Act::Cancel { request }),
        4 => request().prop_map(|request| Act::FirstToken { request }),
        3 => request().prop_map(|request| Act::Finished { request }),
        5 => (request(), any::<bool>(), proptest::sample::select(&FAULTS), proptest::bool::weighted(0.1))
            .prop_map(|(request, prefill, fault, stale)| Act::Failed { request, prefill, fault, stale }),
        3 => worker().prop_map(|worker| Act::Up { worker }),
        2 => worker().prop_map(|worker| Act::Down { worker }),
        1 => worker().prop_map(|worker| Act::Drain { worker }),
        1 => (worker(), 0_u32..200, 0_u32..9)
            .prop_map(|(worker, running, waiting)| Act::Load { worker, running, waiting }),
        4 => (1_u64..3000).prop_map(|ms| Act::Pass { ms }),
    ]
}

/// What the test knows of the outside world.
#[derive(Default)]
struct World {
    up: BTreeSet<u32>,
    drained: BTreeSet<u32>,
    /// Live requests and the route each of them has.
    live: BTreeMap<u64, Option<Route>>,
    rooms: BTreeSet<u64>,
    epoch: u32,
}

fn mode(worker: u32) -> Mode {
    [Mode::Prefill, Mode::Decode, Mode::Unified][worker as usize % 3]
}

impl World {
    /// Holds the outputs against what is allowed. Breakers are asked of the router before each step.
    fn see(&mut self, outputs: &[RouterOutput], net: &Net) {
        for output in outputs {
            match output {
                RouterOutput::Route(route) => {
                    let current = self.live.get_mut(&route.request.0).expect("only live requests are routed");
                    assert!(current.is_none(), "one live route per request");
                    assert!(self.rooms.insert(route.room.0), "a room is given once");
                    for worker in route.prefill.into_iter().chain([route.decode]) {
                        assert!(self.up.contains(&worker.0), "down workers get nothing");
                        assert!(!self.drained.contains(&worker.0), "drained workers get nothing");
                    }
                    assert!(route.prefill.is_none_or(|prefill| mode(prefill.0) == Mode::Prefill));
                    assert_ne!(mode(route.decode.0), Mode::Prefill);
                    let metrics = net.metrics();
                    assert!(!route.reason.last_resort || metrics.breakers_opened > 0);
                    *current = Some((**route).clone());
                }
                RouterOutput::Cancel { request, attempt, worker } => {
                    if let Some(Some(route)) = self.live.get(&request.0) {
                        assert_eq!(*attempt, route.attempt);
                        assert!(route.prefill == Some(*worker) || route.decode == *worker);
                    }
                }
                RouterOutput::Refuse { request, refusal } => {
                    if *refusal != RouteRefusal::DuplicateRequest {
                        assert!(self.live.remove(&request.0).is_some(), "refused once");
                    }
                }
            }
        }
    }

    fn forget_routes(&mut self, hit: impl Fn(&Route) -> bool) {
        for route in self.live.values_mut() {
            route.take_if(|route| hit(route));
        }
    }
}

/// Workers that are in rotation with a closed breaker, by role.
fn healthy(net: &Net, world: &World, role: Role) -> BTreeSet<u32> {
    let serves = |worker: u32| (mode(worker) == Mode::Prefill) == (role == Role::Prefill);
    let ready = |&worker: &u32| {
        serves(worker) && !world.drained.contains(&worker) && net.pump.machine.health.admits(WorkerId(worker), role)
    };
    world.up.iter().copied().filter(ready).collect()
}

fn play(net: &mut Net, world: &mut World, act: &Act) {
    match *act {
        Act::Submit { request, chain: number, pages, session } => {
            let [prefills, others] = [Role::Prefill, Role::Decode].map(|role| healthy(net, world, role));
            let is_new = !world.live.contains_key(&request);
            if is_new {
                world.live.insert(request, None);
            }
            let asked = Ask { session, ..*ask(request, &chain(number, pages)) };
            let outputs = net.feed(RouterInput::Submit(Box::new(asked)));
            world.see(&outputs, net);
            if let [RouterOutput::Route(route)] = &outputs[..]
                && !route.reason.last_resort
            {
                assert!(others.contains(&route.decode.0));
                assert!(route.prefill.is_none_or(|prefill| prefills.contains(&prefill.0)));
            } else if is_new && world.live.len() < 10 {
                // Unless there was no worker at all, or every healthy way was closed.
                assert!(others.is_empty() || others.iter().all(|&other| mode(other) == Mode::Decode));
            }
        }
        Act::Cancel { request } => {
            let outputs = net.feed(RouterInput::Cancel { request: RequestId(request) });
            world.see(&outputs, net);
            world.live.remove(&request);
        }
        Act::FirstToken { request } => {
            let attempt = world.live.get(&request).and_then(|route| route.as_ref()).map_or(0, |route| route.attempt);
            assert!(net.first_token(request, attempt).is_empty());
            if let Some(Some(route)) = world.live.get_mut(&request) {
                route.prefill = None;
            }
        }
        Act::Finished { request } => {
            assert!(net.finished(request).is_empty());
            world.live.remove(&request);
        }
        Act::Failed { request, prefill, fault, stale } => {
            let Some(Some(route)) = world.live.get(&request) else { return };
            let worker = route.prefill.filter(|_| prefill).unwrap_or(route.decode);
            let attempt = if stale { route.attempt + 1 } else { route.attempt };
            let outputs = net.failed(request, attempt, worker.0, fault);
            if stale {
                assert!(outputs.is_empty());
            } else {
                world.live.insert(request, None);
                world.see(&outputs, net);
            }
        }
        Act::Up { worker } => {
            world.epoch += 1;
            world.forget_routes(|route| route.prefill == Some(WorkerId(worker)) || route.decode.0 == worker);
            world.up.insert(worker);
            world.drained.remove(&worker);
            let outputs = net.up(worker, mode(worker), world.epoch);
            world.see(&outputs, net);
        }
        Act::Down { worker } => {
            world.forget_routes(|route| route.prefill == Some(WorkerId(worker)) || route.decode.0 == worker);
            world.up.remove(&worker);
            world.drained.remove(&worker);
            let outputs = net.down(worker);
            world.see(&outputs, net);
        }
        Act::Drain { worker } => {
            if world.up.contains(&worker) {
                world.drained.insert(worker);
            }
            assert!(net.feed(RouterInput::Drain { worker: WorkerId(worker) }).is_empty());
        }
        Act::Load { worker, running, waiting } => {
            let load = LoadReport { running, waiting, waiting_tokens: u64::from(waiting) * 500, running_tokens: 1 };
            assert!(net.feed(RouterInput::Load { worker: WorkerId(worker), load }).is_empty());
        }
        Act::Pass { ms } => {
            let outputs = net.pass(Duration::from_millis(ms));
            world.see(&outputs, net);
        }
    }
    assert_eq!(net.pump.machine.live(), world.live.len());
    for (request, route) in &world.live {
        let live = &net.pump.machine.live[&RequestId(*request)];
        assert_eq!(matches!(live.state, State::Routed(_)), route.is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Every request is finished, refused, cancelled or live; and once all is over the accounts are zero.
    #[test]
    fn every_request_ends_once_and_the_accounts_return_to_zero(
        acts in proptest::collection::vec(act(), 1..200),
        policy in proptest::sample::select(&[
            Policy::Random, Policy::RoundRobin, Policy::PowerOfTwo, Policy::CacheAware, Policy::AppendAware,
        ]),
    ) {
        let config = RouterConfig {
            policy, breaker_failures: 2, index_entries_max: 30, live_requests_max: 10, ..RouterConfig::default()
        };
        let mut net = Net::new(config);
        let mut world = World::default();
        for act in &acts {
            play(&mut net, &mut world, act);
        }
        // Those that wait get their attempts or are refused; then everybody finishes.
        // Those that find no worker wait for one as long again.
        play(&mut net, &mut world, &Act::Pass { ms: 60_000 });
        play(&mut net, &mut world, &Act::Pass { ms: 60_000 });
        for request in world.live.keys().copied().collect::<Vec<_>>() {
            assert!(world.live[&request].is_some());
            play(&mut net, &mut world, &Act::Finished { request });
        }
        prop_assert!(net.is_idle());
        let metrics = net.metrics();
        prop_assert_eq!(metrics.requests, metrics.finished + metrics.refused + metrics.cancelled);
    }
}

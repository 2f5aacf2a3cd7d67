//! Tests of the router. [`Net`] feeds it through a pump and checks all invariants after each step.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use super::*;
use crate::codec::Codec;
use crate::config::Mode;
use crate::id::{Epoch, PageKey};
use crate::pump::{NoTap, Pump};

mod failure;
mod index;
mod policy;
mod property;
mod requests;
mod trace;

/// A router under test.
struct Net {
    pump: Pump<Router, NoTap>,
    now: Instant,
}

impl Net {
    fn new(config: RouterConfig) -> Self {
        let router = Router::new(config, cost()).expect("the test's configuration is in range");
        Self { pump: Pump::new(router, NoTap), now: Instant::ZERO }
    }

    /// A router of this policy with workers 0, 1, ... of these modes.
    fn with(config: RouterConfig, modes: &[Mode]) -> Self {
        let mut net = Self::new(config);
        for (id, &mode) in modes.iter().enumerate() {
            net.up(id as u32, mode, 1);
        }
        net
    }

    fn feed(&mut self, input: RouterInput) -> Vec<RouterOutput> {
        let bytes = input.to_bytes();
        assert_eq!(RouterInput::from_bytes(&bytes).as_ref(), Ok(&input));
        let outputs: Vec<_> = self.pump.feed(self.now, input).collect();
        for output in &outputs {
            assert_eq!(RouterOutput::from_bytes(&output.to_bytes()).as_ref(), Ok(output));
        }
        self.pump.machine.check();
        outputs
    }

    fn up(&mut self, id: u32, mode: Mode, epoch: u32) -> Vec<RouterOutput> {
        let member = Member { epoch: Epoch(epoch), mode, pages: 0 };
        self.feed(RouterInput::Worker { id: WorkerId(id), up: Some(member) })
    }

    fn down(&mut self, id: u32) -> Vec<RouterOutput> {
        self.feed(RouterInput::Worker { id: WorkerId(id), up: None })
    }

    fn submit(&mut self, request: u64, keys: &[u128]) -> Vec<RouterOutput> {
        self.feed(RouterInput::Submit(ask(request, keys)))
    }

    /// Submits a request that is expected to be routed.
    fn route(&mut self, request: u64, keys: &[u128]) -> Route {
        let outputs = self.submit(request, keys);
        only_route(&outputs)
    }

    fn first_token(&mut self, request: u64, attempt: u32) -> Vec<RouterOutput> {
        self.feed(RouterInput::FirstToken { request: RequestId(request), attempt })
    }

    fn finished(&mut self, request: u64) -> Vec<RouterOutput> {
        self.feed(RouterInput::Finished { request: RequestId(request), output: 8 })
    }

    fn failed(&mut self, request: u64, attempt: u32, worker: u32, fault: RouteFault) -> Vec<RouterOutput> {
        let worker = WorkerId(worker);
        self.feed(RouterInput::Failed { request: RequestId(request), attempt, worker, fault, output: 0 })
    }

    /// Lets time pass, ticking at each deadline on the way.
    fn pass(&mut self, span: Duration) -> Vec<RouterOutput> {
        let end = self.now + span;
        let mut outputs = Vec::new();
        while let Some((at, _)) = self.pump.deadline().filter(|&(at, _)| at <= end) {
            self.now = self.now.max(at);
            outputs.extend(self.feed(RouterInput::Tick));
        }
        self.now = end;
        outputs
    }

    fn metrics(&self) -> &RouterMetrics {
        self.pump.machine.metrics()
    }

    fn is_idle(&self) -> bool {
        self.pump.machine.workers.values().all(|worker| worker.load == load::Load::default())
    }
}

/// What prefills cost in these tests.
fn cost() -> Cost {
    Cost::fixed(2_000_000, 20_000, 10_000_000, 1 << 30)
}

/// A request of 16 tokens per key, and one more.
fn ask(request: u64, keys: &[u128]) -> Box<Ask> {
    Box::new(Ask {
        request: RequestId(request),
        keys: keys.iter().copied().map(PageKey).collect(),
        length: keys.len() as u32 * 16 + 1,
        limit: 100,
        ..Ask::default()
    })
}

fn only_route(outputs: &[RouterOutput]) -> Route {
    match outputs {
        [RouterOutput::Route(route)] => (**route).clone(),
        other => panic!("expected one route, got {other:?}"),
    }
}

fn routes(outputs: &[RouterOutput]) -> Vec<Route> {
    let route = |output: &RouterOutput| match output {
        RouterOutput::Route(route) => Some((**route).clone()),
        RouterOutput::Cancel { .. } | RouterOutput::Refuse { .. } => None,
    };
    outputs.iter().filter_map(route).collect()
}

fn refusal(outputs: &[RouterOutput]) -> RouteRefusal {
    match outputs {
        [RouterOutput::Refuse { refusal, .. }] => *refusal,
        other => panic!("expected one refusal, got {other:?}"),
    }
}

/// `count` keys that no other `chain` shares.
fn chain(chain: u32, count: u32) -> Vec<u128> {
    (0..count).map(|page| u128::from(chain) << 64 | u128::from(page + 1)).collect()
}

const SECOND: Duration = Duration::from_secs(1);

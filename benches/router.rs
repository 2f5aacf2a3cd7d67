//! One routing decision: the account, the index and the output included.
//!
//! Budget: 3 us among 16 workers and 100 us among 1,000, for a prompt of 24 pages. Prompts are drawn from conversations
//! that share their first page, or their first twelve (a system prompt).

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use pd_core::config::Mode;
use pd_core::cost::Cost;
use pd_core::id::{Epoch, PageKey, RequestId, WorkerId};
use pd_core::machine::{Machine, Outbox};
use pd_core::router::{Ask, Member, Policy, Router, RouterConfig, RouterInput, RouterOutput};
use pd_core::time::Instant;

/// Pages of each prompt.
const PAGES: u64 = 24;

fn ask(request: u64, conversation: u64, shared: u64) -> Box<Ask> {
    let key = |page: u64| {
        let chain = if page < shared { 0 } else { conversation + 1 };
        // Spread like hashes, equal for equal (chain, page).
        PageKey(u128::from(chain << 32 | page).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
    };
    Box::new(Ask {
        request: RequestId(request),
        keys: (0..PAGES).map(key).collect(),
        length: PAGES as u32 * 512 + 100,
        limit: 400,
        ..Ask::default()
    })
}

fn cost() -> Cost {
    Cost::fixed(2_000_000, 20_000, 10_000_000, 1 << 30)
}

struct Bench {
    router: Router,
    out: Outbox<RouterOutput>,
    requests: u64,
    conversations: u64,
    shared: u64,
}

impl Bench {
    /// Half of the workers prefill, half decode; the index has seen every conversation.
    fn new(policy: Policy, workers: u32, conversations: u64, shared: u64) -> Self {
        let config = RouterConfig { policy, page_size: 512, ..RouterConfig::default() };
        let router = Router::new(config, cost()).expect("the configuration is in range");
        let mut bench = Self { router, out: Outbox::default(), requests: 0, conversations, shared };
        for id in 0..workers {
            let mode = if id % 2 == 0 { Mode::Prefill } else { Mode::Decode };
            let member = Member { epoch: Epoch(1), mode, pages: 0 };
            bench.feed(RouterInput::Worker { id: WorkerId(id), up: Some(member) });
        }
        let _ = bench.submit(conversations);
        bench
    }

    /// Time of `count` submits. A hundred at a time are live, so that load has a say; their ends are not counted.
    fn submit(&mut self, count: u64) -> Duration {
        let mut spent = Duration::ZERO;
        let mut left = count;
        while left > 0 {
            let batch = left.min(100);
            let asks: Vec<_> = (0..batch).map(|_| self.next()).collect();
            let start = std::time::Instant::now();
            for ask in asks {
                self.feed(RouterInput::Submit(ask));
            }
            spent += start.elapsed();
            for request in self.requests - batch..self.requests {
                self.feed(RouterInput::Finished { request: RequestId(request), output: 300 });
            }
            left -= batch;
        }
        spent
    }

    fn next(&mut self) -> Box<Ask> {
        self.requests += 1;
        let conversation = self.requests.wrapping_mul(7_919) % self.conversations;
        ask(self.requests - 1, conversation, self.shared)
    }

    fn feed(&mut self, input: RouterInput) {
        self.router.step(Instant(self.requests), input, &mut self.out);
        black_box(self.out.drain().count());
    }
}

fn decisions(c: &mut Criterion) {
    let mut group = c.benchmark_group("router");
    let policies = [
        ("random", Policy::Random),
        ("round_robin", Policy::RoundRobin),
        ("power_of_two", Policy::PowerOfTwo),
        ("cache_aware", Policy::CacheAware),
        ("append_aware", Policy::AppendAware),
    ];
    // Workers, conversations, shared pages.
    for (workers, conversations, shared) in
        [(16, 2_000, 1), (16, 100_000, 1), (16, 2_000, 12), (1_000, 2_000, 1), (1_000, 20_000, 12)]
    {
        for (name, policy) in policies {
            let mut bench = Bench::new(policy, workers, conversations, shared);
            let id = format!("{workers} workers, {conversations} conversations, {shared} shared/{name}");
            group.bench_function(id, |b| b.iter_custom(|count| bench.submit(count)));
        }
    }
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);

//! What the cache index costs at the size of a large worker: a tree of 10^6 pages, prompts of 32k tokens.
//!
//! The tree is made of 64 system prompts of 1k tokens each and of conversations that fork off them and off one another
//! at random depths, up to 32k tokens. `lookup` is the budget to watch: it runs for each waiting request in each step,
//! and should stay below 5 us.
//!
//! `cargo bench --bench radix -- --warm-up-time 1 --measurement-time 3`

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pd_core::evict::{Evictor, Policy};
use pd_core::id::PageKey;
use pd_core::radix::{PageId, Radix};
use pd_core::rng::{Rng, Stream};

const PAGES: usize = 1_000_000;
const PROMPT_TOKENS: usize = 32 * 1024;
const SYSTEM_TOKENS: usize = 1024;
const SYSTEM_PROMPTS: u64 = 64;
const PAGE_SIZES: [usize; 2] = [16, 64];

/// About the size of the tier state that the cache keeps for a page.
type Payload = [u64; 12];

struct Bed {
    radix: Radix<Payload>,
    lru: Evictor,
    /// Chains of full length that are in the tree.
    prompts: Vec<Vec<PageKey>>,
    draws: Rng,
    stamp: u64,
    out: Vec<PageId>,
}

fn benches(criterion: &mut Criterion) {
    for page_size in PAGE_SIZES {
        let mut bed = Bed::new(page_size);
        let count = PROMPT_TOKENS / page_size;
        eprintln!("page size {page_size}: {} pages in {} nodes", bed.radix.len(), bed.radix.nodes());
        let mut group = criterion.benchmark_group("radix");

        // Another prompt each time: the keys of the tree are not in the first-level cache.
        for (name, known) in [("lookup_full", count), ("lookup_half", count / 2)] {
            let probes: Vec<Vec<PageKey>> = bed.prompts.iter().map(|prompt| bed.diverge(prompt, known)).collect();
            let mut next = probes.iter().cycle();
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::new(name, page_size), |bencher| {
                bencher.iter(|| bed.radix.lookup(black_box(next.next().expect("a cycle does not end"))));
            });
        }

        let lasts: Vec<PageId> = bed.prompts.iter().filter_map(|prompt| bed.radix.lookup(prompt).last).collect();
        let mut next = lasts.iter().cycle();
        let mut path = Vec::with_capacity(count);
        group.bench_function(BenchmarkId::new("path", page_size), |bencher| {
            bencher.iter(|| {
                path.clear();
                bed.radix.path(*next.next().expect("a cycle does not end"), &mut path);
                path.len()
            });
        });

        // A chain behind a system prompt; it is taken out again outside the measurement. `insert_known` finds
        // everything, `insert_split` shares one half of a prompt and cuts a node there.
        let new: Vec<Vec<PageKey>> = (0..64).map(|_| bed.chain(None, count)).collect();
        let split: Vec<Vec<PageKey>> = bed.prompts.iter().map(|prompt| bed.diverge(prompt, count / 2)).collect();
        for (name, chains) in [("insert_new", &new), ("insert_split", &split), ("insert_known", &bed.prompts)] {
            let mut next = chains.iter().cycle();
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::new(name, page_size), |bencher| {
                bencher.iter_custom(|times| {
                    let mut took = std::time::Duration::ZERO;
                    for _ in 0..times {
                        let keys = next.next().expect("a cycle does not end");
                        bed.out.clear();
                        let start = std::time::Instant::now();
                        let new = bed.radix.insert(None, black_box(keys), &mut bed.out);
                        took += start.elapsed();
                        for &page in bed.out.iter().rev().take(new as usize) {
                            bed.radix.remove(page);
                        }
                    }
                    took
                });
            });
        }

        // All pages of one prompt; throughput is per page.
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("touch_lru_path", page_size), |bencher| {
            let last = lasts[0];
            bencher.iter_batched(
                || {
                    bed.stamp += 1;
                    bed.stamp
                },
                |stamp| {
                    path.clear();
                    bed.radix.path(last, &mut path);
                    for &page in &path {
                        bed.lru.touched(page, stamp);
                    }
                },
                BatchSize::SmallInput,
            );
        });

        // Each iteration evicts one page; when a thousand are gone as many new ones come, outside the measurement.
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("evict_lru", page_size), |bencher| {
            bencher.iter_custom(|times| {
                let mut took = std::time::Duration::ZERO;
                let mut left = times;
                while left > 0 {
                    let batch = left.min(1000);
                    let start = std::time::Instant::now();
                    for _ in 0..batch {
                        black_box(bed.evict());
                    }
                    took += start.elapsed();
                    left -= batch;
                    bed.refill();
                }
                took
            });
        });
        group.finish();
        bed.radix.check();
        bed.lru.check();
    }
}

impl Bed {
    fn new(page_size: usize) -> Self {
        let mut bed = Self {
            radix: Radix::with_capacity(PAGES as u32 + 8192),
            lru: Evictor::new(Policy::Lru, PAGES as u32),
            prompts: Vec::new(),
            draws: Rng::new(1, Stream::Content, 0),
            stamp: 0,
            out: Vec::new(),
        };
        let count = PROMPT_TOKENS / page_size;
        let system: Vec<Vec<PageKey>> =
            (0..SYSTEM_PROMPTS).map(|_| bed.chain(None, SYSTEM_TOKENS / page_size)).collect();
        while bed.radix.len() < PAGES {
            // Three in four fork off an earlier conversation.
            let trunk = if bed.prompts.is_empty() || bed.draws.chance(250) {
                system[bed.draws.below(SYSTEM_PROMPTS) as usize].clone()
            } else {
                let mut trunk = bed.prompts[bed.draws.below(bed.prompts.len() as u64) as usize].clone();
                trunk.truncate(1 + bed.draws.below(count as u64) as usize);
                trunk
            };
            let more = count.saturating_sub(trunk.len());
            let more = bed.chain(trunk.last().copied(), more);
            let prompt = [trunk, more].concat();
            bed.admit(&prompt);
            bed.prompts.push(prompt);
        }
        bed.radix.check();
        bed
    }

    /// Evicts one page as the cache does it: the page before it may become the end of its chain.
    fn evict(&mut self) -> PageId {
        let page = self.lru.victim().expect("the tree is full");
        let key = self.radix.key(page);
        let parent = self.radix.parent(page);
        self.radix.remove(page);
        self.lru.evicted(page, key);
        if let Some(parent) = parent.filter(|&parent| self.radix.children(parent) == 0) {
            self.lru.offer(parent);
        }
        page
    }

    /// New conversations, or old ones that go on elsewhere, until the tree is full.
    fn refill(&mut self) {
        while self.radix.len() < PAGES {
            let index = self.draws.below(self.prompts.len() as u64) as usize;
            let count = self.prompts[index].len();
            let mut prompt = self.prompts[index].clone();
            prompt.truncate(self.draws.below(count as u64) as usize);
            let more = self.chain(prompt.last().copied(), count - prompt.len());
            prompt.extend(more);
            self.admit(&prompt);
            self.prompts[index] = prompt;
        }
    }

    fn admit(&mut self, keys: &[PageKey]) {
        self.stamp += 1;
        self.out.clear();
        let new = self.radix.insert(None, keys, &mut self.out) as usize;
        let known = self.out.len() - new;
        for &page in &self.out[..known] {
            self.lru.withdraw(page);
            self.lru.touched(page, self.stamp);
        }
        for (&page, &key) in self.out[known..].iter().zip(&keys[known..]) {
            self.lru.admitted(page, key, self.stamp, 0);
        }
        if let Some(&last) = self.out.last().filter(|&&last| self.radix.children(last) == 0) {
            self.lru.offer(last);
        }
    }

    /// A prompt that shares `known` pages with another one.
    fn diverge(&self, prompt: &[PageKey], known: usize) -> Vec<PageKey> {
        let mut keys = prompt[..known].to_vec();
        let mut parent = keys.last().copied().unwrap_or_default();
        while keys.len() < prompt.len() {
            parent = mix(parent, u64::MAX);
            keys.push(parent);
        }
        keys
    }

    /// New keys behind `parent`.
    fn chain(&mut self, parent: Option<PageKey>, count: usize) -> Vec<PageKey> {
        let mut parent = mix(parent.unwrap_or_default(), self.draws.next());
        (0..count)
            .map(|_| {
                parent = mix(parent, 1);
                parent
            })
            .collect()
    }
}

/// Stands in for the hash of a page.
fn mix(parent: PageKey, number: u64) -> PageKey {
    let product = (parent.0 ^ u128::from(number) << 64 | 1).wrapping_mul(0x2d99_787f_cb1c_6cf4_d6e8_feb8_6659_fd93);
    PageKey((product ^ product >> 67).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

criterion_group!(group, benches);
criterion_main!(group);

//! Cost of the parts of the simulator that every event pays for: link flows and the event queue.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pd_core::time::Instant;
use pd_sim::disk::{Disk, DiskSpec};
use pd_sim::heap::Heap;
use pd_sim::link::{FlowId, FlowSpec, LinkId, Links, Path};

criterion_group!(benches, links, heap, disk);
criterion_main!(benches);

fn links(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("links");
    group.throughput(Throughput::Elements(1));
    group.bench_function("one flow over 4 idle links, start to end", |bencher| {
        let mut world = World::new(4);
        let path = world.path(0..4);
        bencher.iter(|| {
            world.start(path, 1 << 20);
            world.drain();
        });
    });
    group.bench_function("one flow over 4 of 1000 idle links", |bencher| {
        let mut world = World::new(1000);
        let mut first = 0;
        bencher.iter(|| {
            first = (first + 37) % 996;
            let path = world.path(first..first + 4);
            world.start(path, 1 << 20);
            world.drain();
        });
    });
    group.bench_function("64 concurrent on one link, one ends and one starts", |bencher| {
        let mut world = World::new(1);
        let path = world.path(0..1);
        bencher.iter(|| world.replace(path, 64));
    });
    group.bench_function("64 concurrent over 16 NICs (tx, rx), one ends and one starts", |bencher| {
        let mut world = World::new(32);
        bencher.iter(|| {
            let pair = world.started;
            let path = Path::new(&[LinkId(pair % 16), LinkId(16 + (pair * 7 + pair / 16) % 16)]);
            world.replace(path, 64);
        });
    });
    group.finish();
}

fn heap(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("heap");
    group.throughput(Throughput::Elements(1));
    for outstanding in [64_u64, 1024, 65_536] {
        group.bench_function(format!("pop and push, {outstanding} outstanding, 8 B"), |bencher| {
            bencher.iter_custom(|count| hold::<1>(outstanding, count));
        });
        group.bench_function(format!("pop and push, {outstanding} outstanding, 64 B"), |bencher| {
            bencher.iter_custom(|count| hold::<8>(outstanding, count));
        });
    }
    group.finish();
}

fn disk(criterion: &mut Criterion) {
    let spec = DiskSpec {
        read_bytes_per_second: 7_000_000_000,
        write_bytes_per_second: 5_000_000_000,
        read_iops: 1_000_000,
        write_iops: 250_000,
        read_latency_ns: 92_000,
        write_latency_ns: 21_000,
        queue_depth: 32,
        fsync_ns: 40_000,
    };
    let mut group = criterion.benchmark_group("disk");
    for pages in [1, 1000_u32] {
        group.throughput(Throughput::Elements(u64::from(pages)));
        group.bench_function(format!("read of {pages} pages of 16 kB, start to end"), |bencher| {
            let (mut disk, mut now, mut done) = (Disk::new(spec), Instant::ZERO, Vec::new());
            bencher.iter(|| {
                disk.read(now, u64::from(pages) * 16_384, pages);
                while let Some(at) = disk.next() {
                    now = at;
                    disk.advance(now, &mut done);
                }
                done.clear();
            });
        });
    }
    group.finish();
}

/// The hold model: each event schedules one a pseudo-random while later.
fn hold<const WORDS: usize>(outstanding: u64, count: u64) -> std::time::Duration {
    let mut heap = Heap::new();
    let mut state = 1_u64;
    let mut later = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 44
    };
    for event in 0..outstanding {
        heap.push(Instant(later()), [event; WORDS]);
    }
    let start = std::time::Instant::now();
    for _ in 0..count {
        let (at, event) = heap.pop().expect("as many as before");
        heap.push(at.after_ns(later()), black_box(event));
    }
    start.elapsed()
}

struct World {
    links: Links,
    now: Instant,
    done: Vec<FlowId>,
    started: u32,
}

impl World {
    fn new(links: u32) -> Self {
        let mut world = Self { links: Links::new(), now: Instant::ZERO, done: Vec::new(), started: 0 };
        for link in 0..links {
            world.links.add(&format!("link{link}"), 50_000_000_000);
        }
        world
    }

    fn path(&self, links: std::ops::Range<u32>) -> Path {
        let mut ids = [LinkId(0); 8];
        let count = links.len();
        for (id, link) in ids.iter_mut().zip(links) {
            *id = LinkId(link);
        }
        Path::new(&ids[..count])
    }

    fn start(&mut self, path: Path, bytes: u64) {
        self.started += 1;
        self.links.start(self.now, FlowSpec { path, bytes, setup_ns: 10_000, rate_max: None });
    }

    fn step(&mut self) {
        self.now = self.links.next().expect("flows are live");
        self.links.advance(self.now, &mut self.done);
    }

    fn drain(&mut self) {
        while self.links.next().is_some() {
            self.step();
        }
        self.done.clear();
    }

    /// Keeps `count` flows alive: runs until one ends, or fills up.
    fn replace(&mut self, path: Path, count: u32) {
        let bytes = (1 << 20) + u64::from(self.started * 7919 % 1024) * 1024;
        while self.links.flows_count() >= count {
            self.step();
        }
        self.done.clear();
        self.start(path, bytes);
    }
}

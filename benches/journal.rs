//! What `--journal` costs a worker's thread: one step of 64 running sequences, as it is and with the journal's tap.
//!
//! Target: under 2 % of serving. A forward of 64 sequences takes milliseconds on any device; the tap's microsecond is to
//! stay below 2 % of it, and of a step's own time it may be more.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant as Clock};

use criterion::{Criterion, criterion_group, criterion_main};
use pd_core::batch::{Batch, Sampled};
use pd_core::config::{KvConfig, Mode, SchedConfig, TransferConfig, WorkerConfig};
use pd_core::cost::Cost;
use pd_core::id::{Epoch, OpId, PageKey, RequestId, Token, WorkerId};
use pd_core::op::{Command, Input, Leg, Outcome, Output, Prompt, Submit};
use pd_core::pump::{NoTap, Pump, Step, Tap};
use pd_core::time::Instant;
use pd_core::worker::Worker;
use pd_sim::journal::{Detail, Header, Life, Who, Writer};

criterion_group!(benches, step);
criterion_main!(benches);

const RUNNING: u64 = 64;
const LIMIT: u32 = 4000;

/// As in `pd serve`: blocks go to a thread that writes them.
struct Pipe(SyncSender<Vec<u8>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(|_| std::io::Error::other("no reader"))?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Journal(Writer<Pipe>);

impl Journal {
    fn begin(config: &WorkerConfig, cost: &Cost) -> Self {
        let (blocks, written) = sync_channel::<Vec<u8>>(64);
        std::thread::spawn(move || {
            let mut file = std::fs::File::create(std::env::temp_dir().join("pd-bench.pdj")).expect("a file");
            written.into_iter().try_for_each(|block| file.write_all(&block)).expect("a disk");
        });
        let mut writer = Writer::new(Pipe(blocks), &Header::new("bench", Detail::Inputs)).expect("a header");
        writer.launch(Instant::ZERO, Who::Worker(0), &Life::worker(config, cost)).expect("a life");
        Self(writer)
    }
}

impl Tap<Worker> for Journal {
    fn before(&mut self, at: Instant, input: &Input) {
        self.0.worker_input(at, 0, input);
    }
    fn after(&mut self, _: &Worker, step: Step) {
        self.0.answer(step.outputs).expect("written");
    }
}

struct World<T> {
    pump: Pump<Worker, T>,
    now: Instant,
    forwards: VecDeque<(OpId, Box<Batch>)>,
    steps: u32,
}

impl<T: Tap<Worker>> World<T> {
    fn new(tap: impl FnOnce(&WorkerConfig, &Cost) -> T) -> Self {
        let pages = (64 + LIMIT).div_ceil(16);
        let config = WorkerConfig {
            worker: WorkerId(1),
            epoch: Epoch(0),
            mode: Mode::Unified,
            seed: 1,
            kv: KvConfig { gpu_pages: pages * (RUNNING as u32 + 1), ..KvConfig::default() },
            sched: SchedConfig { reserve_steps: LIMIT, ..SchedConfig::default() },
            transfer: TransferConfig::default(),
        };
        let cost = Cost::fixed(2_000_000, 20_000, 5_000_000, 1 << 20);
        let tap = tap(&config, &cost);
        let pump = Pump::new(Worker::new(config, cost).expect("a worker"), tap);
        let mut world = Self { pump, now: Instant::ZERO, forwards: VecDeque::new(), steps: 0 };
        for request in 0..RUNNING {
            let keys = (0..4).map(|page| PageKey(u128::from(request) << 32 | page)).collect();
            let prompt = Prompt { root: PageKey(0), length: 64, keys, tokens: Vec::new() };
            let submit = Submit {
                request: RequestId(request),
                prompt,
                limit: LIMIT,
                stop: vec![Token(1)],
                priority: 0,
                deadline: None,
                leg: Leg::Whole,
            };
            world.feed(Input::Submit(Box::new(submit)));
        }
        for _ in 0..16 {
            world.step();
        }
        assert!(world.forwards.iter().all(|(_, batch)| batch.samples() == RUNNING as usize));
        world
    }

    fn feed(&mut self, input: Input) -> Duration {
        let begin = Clock::now();
        self.pump.step(self.now, input);
        let spent = begin.elapsed();
        for output in self.pump.drain() {
            if let Output::Start { op, command: Command::Forward(batch), .. } = output {
                self.forwards.push_back((op, batch));
            }
        }
        spent
    }

    fn step(&mut self) -> Duration {
        self.now = Instant(self.now.0 + 5_000_000);
        self.steps += 1;
        let (op, mut batch) = self.forwards.pop_front().expect("a forward is in flight");
        batch.sample(|_| Token(9));
        self.feed(Input::Done { op, outcome: Outcome::Sampled(Sampled(batch)) })
    }
}

fn step(criterion: &mut Criterion) {
    fn measure<T: Tap<Worker>>(count: u64, new: impl Fn() -> World<T>) -> Duration {
        let mut world = new();
        let mut spent = Duration::ZERO;
        for _ in 0..count {
            if world.steps > LIMIT - 20 {
                world = new();
            }
            spent += world.step();
        }
        spent
    }
    let mut group = criterion.benchmark_group("step: 64 running");
    group.bench_function("alone", |bencher| {
        bencher.iter_custom(|count| measure(count, || World::new(|_, _| NoTap)));
    });
    group.bench_function("with a journal", |bencher| {
        bencher.iter_custom(|count| measure(count, || World::new(Journal::begin)));
    });
    group.finish();
}

//! Worlds of a toy machine: one batch at a time, all live requests in it, no cache, no pages of its own accounting.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Duration;

use pd_core::batch::{Batch, Run};
use pd_core::config::WorkerConfig;
use pd_core::cost::{Cost, LinkCost};
use pd_core::digest::Digest;
use pd_core::event::{Event, Finish, Miss, MissReason, Served};
use pd_core::id::{Epoch, GpuPage, OpId, RequestId};
use pd_core::machine::{Machine, Outbox};
use pd_core::metrics::Metrics;
use pd_core::op::{Command, Outcome as Ended, Prompt, Submit};
use pd_core::router::LoadReport;

use super::*;
use crate::fault::{Cancel, Restart};
use crate::journal::replay::{Replayed, replay_on};
use crate::journal::{Detail, Header, Reader, Recorder};
use crate::record::{End, Outcome};
use crate::setup::{Arrival, PathSetup, Source, StepCost, WireSetup, WorkerSetup};

#[derive(Debug)]
pub(super) struct Toy {
    epoch: Epoch,
    next: u64,
    page_size: u32,
    is_busy: bool,
    live: Vec<Sequence>,
    metrics: Metrics,
    pages: u32,
}

#[derive(Debug)]
struct Sequence {
    submit: Submit,
    /// Tokens whose KV is there.
    done: u32,
    made: u32,
    pages: u32,
    first_page: u32,
}

impl Toy {
    fn forward(&mut self, out: &mut Outbox<Output>) {
        if self.is_busy || self.live.is_empty() {
            return;
        }
        let mut batch = Box::<Batch>::default();
        for sequence in &mut self.live {
            let end = sequence.submit.prompt.length + sequence.made;
            let want = end.div_ceil(self.page_size);
            let pages: Vec<_> = (sequence.pages..want).map(|page| GpuPage(sequence.first_page + page)).collect();
            let count = end - sequence.done;
            batch.push(Run::new(sequence.submit.request, sequence.done, count, true, sequence.pages), &pages);
            sequence.pages = want;
            sequence.done = end;
        }
        let op = OpId { epoch: self.epoch, seq: self.next };
        self.next += 1;
        self.is_busy = true;
        out.push(Output::Start { op, after: Vec::new(), command: Command::Forward(batch) });
    }
}

impl Machine for Toy {
    type Input = Input;
    type Output = Output;

    fn step(&mut self, _now: Instant, input: Input, out: &mut Outbox<Output>) {
        match input {
            Input::Submit(submit) => {
                let prompt = submit.prompt.length;
                let misses = vec![Miss { reason: MissReason::NothingStored, tokens: prompt }];
                let served = Served { prompt, misses, ..Served::default() };
                out.push(Output::Emit { request: submit.request, event: Event::Admitted(Box::new(served)) });
                let first_page = self.pages;
                self.pages += (submit.prompt.length + submit.limit).div_ceil(self.page_size);
                self.live.push(Sequence { submit: *submit, done: 0, made: 0, pages: 0, first_page });
            }
            Input::Done { outcome: Ended::Sampled(sampled), .. } => {
                self.is_busy = false;
                self.metrics.forwards += 1;
                for (sequence, &token) in self.live.iter_mut().zip(sampled.tokens()) {
                    sequence.made += 1;
                    out.push(Output::Emit { request: sequence.submit.request, event: Event::Token(token) });
                    if sequence.made == sequence.submit.limit {
                        let event = Event::Finished { reason: Finish::Length, output: sequence.made };
                        out.push(Output::Emit { request: sequence.submit.request, event });
                    }
                }
                self.live.retain(|sequence| sequence.made < sequence.submit.limit);
            }
            Input::Cancel { request } => {
                assert!(!self.is_busy || !self.live.is_empty(), "a busy toy has requests");
                out.push(Output::Emit { request, event: Event::Finished { reason: Finish::Cancelled, output: 0 } });
            }
            Input::Tick | Input::Peer { .. } | Input::Recv { .. } | Input::Done { .. } | Input::Control(_) => {}
        }
        // A sequence that joins while a batch is out would not be in it: batches are whole or not at all.
        if !self.is_busy {
            self.forward(out);
        }
    }

    fn deadline(&self) -> Option<(Instant, &'static str)> {
        None
    }

    fn digest(&self, digest: &mut Digest) {
        digest.word(self.next);
    }

    fn check(&self) {}
}

impl Serve for Toy {
    fn launch(config: WorkerConfig, _cost: Cost) -> Self {
        Self {
            epoch: config.epoch,
            next: 0,
            page_size: config.kv.page_size,
            is_busy: false,
            live: Vec::new(),
            metrics: Metrics::default(),
            pages: 0,
        }
    }
    fn metrics(&self) -> &Metrics {
        &self.metrics
    }
    fn load(&self) -> LoadReport {
        LoadReport::default()
    }
}

/// Requests at fixed times; each may wait for the end of the previous one.
#[derive(Debug)]
pub(super) struct Fixed {
    pub(super) at: Vec<Instant>,
    pub(super) taken: usize,
    pub(super) is_closed: bool,
    pub(super) is_free: bool,
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
    pub(super) ended: BTreeMap<u64, bool>,
}

impl Source for Fixed {
    fn next(&self) -> Option<Instant> {
        self.at.get(self.taken).copied().filter(|_| self.is_free)
    }
    fn take(&mut self) -> Arrival {
        self.taken += 1;
        self.is_free = !self.is_closed;
        let length = self.prompt_tokens;
        let tokens: Vec<_> = (0..length).map(|at| pd_core::id::Token(at + 100 * self.taken as u32)).collect();
        let root = pd_core::id::PageKey(1);
        let prompt = Prompt { root, length, keys: pd_core::key::page_keys(root, 16, &tokens), tokens };
        let seed = self.taken as u64;
        let output_tokens = self.output_tokens;
        Arrival { ordinal: seed, session: None, counted_tokens: length, prompt, output_tokens, priority: 0, seed }
    }
    fn finished(&mut self, now: Instant, ordinal: u64, is_complete: bool) {
        self.ended.insert(ordinal, is_complete);
        if self.is_closed {
            self.is_free = true;
            if let Some(at) = self.at.get_mut(self.taken) {
                *at = (*at).max(now);
            }
        }
    }
}

pub(super) fn load(count: u64, gap_ns: u64, is_closed: bool) -> Box<dyn Source> {
    Box::new(Fixed {
        at: (0..count).map(|index| Instant(index * gap_ns)).collect(),
        taken: 0,
        is_closed,
        is_free: true,
        prompt_tokens: 40,
        output_tokens: 10,
        ended: BTreeMap::new(),
    })
}

pub(super) fn setup(loads: Vec<Box<dyn Source>>) -> Setup {
    let rate = NonZeroU64::new(1_000_000_000).expect("a rate");
    let cost =
        LinkCost { request_ns: 0, descriptor_ps: 0, descriptors_ahead: 0, bytes_per_second: rate, latency_ns: 0 };
    let path = PathSetup { links: Vec::new(), cost };
    let wire = WireSetup { out: Vec::new(), into: Vec::new(), cost };
    let mut config = WorkerConfig {
        worker: pd_core::id::WorkerId(0),
        epoch: Epoch(0),
        mode: pd_core::config::Mode::Unified,
        seed: 0,
        kv: pd_core::config::KvConfig::default(),
        sched: pd_core::config::SchedConfig::default(),
        transfer: pd_core::config::TransferConfig::default(),
    };
    config.kv.gpu_pages = 4096;
    let worker = WorkerSetup {
        config,
        cost: Cost::fixed(0, 1, 1, 1_000_000),
        step: StepCost::Fixed { gpu_ns: 900, cpu_ns: 100 },
        layers: 4,
        host: 0,
        copy_in: path.clone(),
        copy_out: path,
        near: wire.clone(),
        far: wire,
        store: None,
        control_latency_ns: 10,
        start: Instant::ZERO,
    };
    Setup { loads, ..Setup::new(vec![worker]) }
}

fn run(setup: Setup) -> Outcome {
    WorldOf::<Toy>::new(setup).run()
}

#[test]
fn a_request_alone_takes_a_forward_per_token() {
    let outcome = run(setup(vec![load(1, 0, false)]));
    let record = &outcome.requests[0];
    assert_eq!((record.ttft_ns(), record.e2e_ns(), record.tpot_ns()), (Some(1_000), Some(10_000), Some(1_000)));
    assert_eq!((record.tokens, record.end), (10, Some(End::Finished(Finish::Length))));
    assert_eq!((outcome.itl.count(), outcome.itl.sum()), (9, 9_000));
    assert_eq!((outcome.workers[0].lanes.forwards, outcome.workers[0].lanes.forward_busy_ns), (10, 9_000));
}

#[test]
fn a_closed_loop_sends_the_next_request_when_the_previous_one_has_ended() {
    let outcome = run(setup(vec![load(3, 0, true)]));
    let arrivals: Vec<u64> = outcome.requests.iter().map(|record| record.arrival.0).collect();
    assert_eq!(arrivals, [0, 10_000, 20_000]);
    assert_eq!(outcome.ended, Instant(30_000));
}

#[test]
fn equal_setups_give_equal_hashes_and_other_loads_do_not() {
    let hash = |gap| run(setup(vec![load(20, gap, false), load(5, 777, true)])).hash;
    assert_eq!(hash(1_500), hash(1_500));
    assert_ne!(hash(1_500), hash(1_501));
}

#[test]
fn requests_of_a_worker_that_restarts_are_continued_after_it() {
    let mut setup = setup(vec![load(3, 2_000, false)]);
    setup.script = vec![(Instant(5_500), Action::Restart(Restart::new(0, Duration::from_micros(20))))];
    setup.check = true;
    let outcome = run(setup);
    assert_eq!(outcome.violations, []);
    assert!(outcome.requests.iter().all(|record| record.is_complete() && record.tokens == 10));
    assert_eq!(outcome.requests[0].retries, 1);
    assert_eq!(outcome.workers[0].lives, 2);
    // What was streamed before the restart is not streamed again.
    assert_eq!(outcome.itl.count(), 27);
}

#[test]
fn a_cancelled_request_ends_as_such() {
    let mut setup = setup(vec![load(1, 0, false)]);
    setup.script = vec![(Instant(3_500), Action::Cancel(Cancel { request: 0 }))];
    let outcome = run(setup);
    assert_eq!(outcome.requests[0].end, Some(End::Finished(Finish::Cancelled)));
    assert_eq!(outcome.requests[0].tokens, 3);
}

#[test]
fn a_run_ends_at_its_time_even_with_requests_left() {
    let mut setup = setup(vec![load(5, 1_000_000, false)]);
    setup.until = Some(Instant(2_500_000));
    let outcome = run(setup);
    assert_eq!(outcome.requests.len(), 3);
    assert!(outcome.ended <= Instant(2_500_000));
}

#[test]
fn a_recorded_run_replays_step_by_step() {
    let mut world = WorldOf::<Toy>::new(setup(vec![load(10, 1_700, false)]));
    let recorder = Rc::new(RefCell::new(Recorder::new(Vec::new(), &Header::new("toys", Detail::Outputs))));
    world.observe(Box::new(Rc::clone(&recorder)));
    let outcome = world.run();
    let (bytes, written) = recorder.borrow_mut().finish_into(outcome.ended).expect("memory takes all");
    assert_eq!(bytes.len() as u64, written.bytes);
    let mut replayed = Replayed::default();
    replay_on::<Toy, _>(&mut Reader::new(&bytes[..]).expect("a journal"), &mut replayed).expect("the same machine");
    assert_eq!(replayed.total(), outcome.workers[0].steps);
    assert!(replayed.total() > 20);
}

#[test]
fn pages_that_hold_something_else_are_reported() {
    let mut setup = setup(vec![load(1, 0, false)]);
    setup.check = true;
    let mut world = WorldOf::<Toy>::new(setup);
    world.begin();
    while world.now() < Instant(4_500) && world.turn() {}
    let memory = world.fabric.memory.as_mut().expect("checked");
    memory.fetched(crate::memory::Cell::gpu(0, GpuPage(1)), Some(pd_core::id::PageKey(99)));
    while world.turn() {}
    let outcome = world.finish();
    let first = &outcome.violations[0];
    assert_eq!((first.worker, first.request, first.page), (Some(0), Some(RequestId(0)), Some(1)));
}

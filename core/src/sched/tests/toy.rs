//! A scheduler with a real cache and a toy device whose KV has contents.
//!
//! The KV of a position is a hash of all tokens up to it, and the next token is a function of that hash, so a wrong
//! page, a page reused too early or a skipped position changes the answer, and is seen when it is read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::vec::Vec;

use crate::batch::Run;
use crate::config::WorkerConfig;
use crate::cost::Cost;
use crate::cx::Owner;
use crate::event::{Event, Finish};
use crate::id::{GpuPage, HostPage, OpId, PageKey, RequestId, Token, WorkerId};
use crate::kv::{Kv, Lease};
use crate::message::Message;
use crate::op::{Command, Fault, LaneKind, Leg, Outcome, Output, Prompt, Submit};
use crate::sched::Sched;
use crate::testkit::{Bench, prompt};
use crate::time::Instant;
use crate::transfer::{Transfer, TransferEvent};

pub(super) const ROOT: PageKey = PageKey(7);

#[derive(Clone, Debug)]
pub(super) struct Started {
    pub(super) op: OpId,
    pub(super) after: Vec<OpId>,
    pub(super) command: Command,
}

pub(super) struct Toy {
    pub(super) config: WorkerConfig,
    pub(super) bench: Bench,
    pub(super) sched: Sched,
    pub(super) kv: Kv,
    pub(super) transfer: Transfer,
    pub(super) lane: VecDeque<Started>,
    pub(super) forwards: Vec<Started>,
    pub(super) events: Vec<(RequestId, Event)>,
    pub(super) sent: VecDeque<(WorkerId, Message)>,
    /// Pages that have arrived at peers.
    pub(super) pushed: Vec<(WorkerId, GpuPage, Vec<u64>)>,
    failed: BTreeSet<OpId>,
    /// Leases that the scheduler does not know.
    pub(super) outside: Vec<Lease>,
    pub(super) device: BTreeMap<GpuPage, Vec<u64>>,
    host: BTreeMap<HostPage, Vec<u64>>,
    pub(super) store: BTreeMap<PageKey, Vec<u64>>,
    /// Requests under which a forward failed, until their table is told again: what they compute means nothing.
    poisoned: BTreeSet<RequestId>,
    histories: BTreeMap<RequestId, Vec<Token>>,
    tables: BTreeMap<RequestId, Vec<GpuPage>>,
    prompts: BTreeMap<RequestId, (Vec<Token>, u32, Vec<Token>)>,
}

pub(super) fn hash(before: u64, token: Token) -> u64 {
    (before ^ u64::from(token.0)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_add(1)
}

pub(super) fn sampled(hash: u64) -> Token {
    Token((hash >> 40) as u32 % 97)
}

/// What an undisturbed run answers.
pub(super) fn answer(tokens: &[Token], limit: u32, stop: &[Token]) -> Vec<Token> {
    let mut state = tokens.iter().fold(0, |before, &token| hash(before, token));
    let mut answer = Vec::new();
    while (answer.len() as u32) < limit {
        let token = sampled(state);
        answer.push(token);
        if stop.contains(&token) {
            break;
        }
        state = hash(state, token);
    }
    answer
}

impl Toy {
    pub(super) fn new(config: WorkerConfig) -> Self {
        config.check().expect("the test's configuration is in range");
        Self {
            bench: Bench::new(Cost::fixed(2_000_000, 20_000, 10_000_000, 1 << 20)),
            sched: Sched::new(&config),
            kv: Kv::new(config.kv.clone()),
            transfer: super::transfer(&config),
            config,
            lane: VecDeque::new(),
            forwards: Vec::new(),
            events: Vec::new(),
            sent: VecDeque::new(),
            pushed: Vec::new(),
            failed: BTreeSet::new(),
            outside: Vec::new(),
            device: BTreeMap::new(),
            host: BTreeMap::new(),
            store: BTreeMap::new(),
            poisoned: BTreeSet::new(),
            histories: BTreeMap::new(),
            tables: BTreeMap::new(),
            prompts: BTreeMap::new(),
        }
    }

    pub(super) fn submit(&mut self, request: u64, tokens: &[u32], limit: u32) {
        self.submit_with(request, tokens, limit, |_| {});
    }

    pub(super) fn submit_with(&mut self, request: u64, tokens: &[u32], limit: u32, change: impl Fn(&mut Submit)) {
        let request = RequestId(request);
        let mut submit = Submit {
            request,
            prompt: prompt(ROOT, self.config.kv.page_size, tokens),
            limit,
            stop: Vec::new(),
            priority: 0,
            deadline: None,
            leg: Leg::Whole,
        };
        change(&mut submit);
        if !self.histories.contains_key(&request) {
            let tokens: Vec<Token> = tokens.iter().copied().map(Token).collect();
            self.prompts.insert(request, (tokens.clone(), limit, submit.stop.clone()));
            self.histories.insert(request, tokens);
        }
        self.sched.submit(&mut self.bench.cx(), &mut self.kv, &mut self.transfer, submit);
        self.settle();
    }

    pub(super) fn cancel(&mut self, request: u64) {
        self.sched.cancel(
            &mut self.bench.cx(),
            &mut self.kv,
            &mut self.transfer,
            RequestId(request),
            Finish::Cancelled,
        );
        self.settle();
    }

    pub(super) fn settle(&mut self) {
        let events = super::settle_transfer(&mut self.transfer, &mut self.bench.cx());
        self.route(events);
        self.sched.settle(&mut self.bench.cx(), &mut self.kv, &mut self.transfer);
        self.kv.settle(&mut self.bench.cx());
        for output in self.bench.outputs() {
            match output {
                Output::Start { op, after, command } => {
                    let started = Started { op, after, command };
                    if matches!(started.command, Command::Forward(_)) {
                        self.forwards.push(started.clone());
                    }
                    self.lane.push_back(started);
                }
                Output::Emit { request, event } => {
                    if let Event::Token(token) = event {
                        self.hear(request, token);
                    }
                    self.events.push((request, event));
                }
                Output::Send { to, message } => self.sent.push_back((to, message)),
                Output::Publish(_) => {}
            }
        }
        self.sched.check();
        self.kv.check(self.sched.leases().chain(self.transfer.quarantined()).chain(&self.outside));
    }

    pub(super) fn route(&mut self, events: Vec<TransferEvent>) {
        for event in events {
            self.sched.on_transfer(&mut self.bench.cx(), &mut self.kv, &mut self.transfer, event);
        }
    }

    /// Commands in flight that may end now: the first of each lane, or any of L3's, if what it is ordered behind has ended.
    pub(super) fn ready(&self) -> Vec<OpId> {
        let mut lanes: Vec<LaneKind> = Vec::new();
        let mut ready = Vec::new();
        for started in &self.lane {
            let lane = started.command.lane();
            if lane != LaneKind::Storage && lanes.contains(&lane) {
                continue;
            }
            lanes.push(lane);
            if !self.lane.iter().any(|other| started.after.contains(&other.op)) {
                ready.push(started.op);
            }
        }
        ready
    }

    pub(super) fn complete(&mut self, op: OpId, fault: Option<Fault>) {
        let index = self.lane.iter().position(|started| started.op == op).expect("it is in flight");
        let started = self.lane.remove(index).expect("found above");
        let fault =
            if started.after.iter().any(|op| self.failed.contains(op)) { Some(Fault::Prerequisite) } else { fault };
        let outcome = if let Some(fault) = fault {
            self.failed.insert(op);
            self.poison(&started.command);
            Outcome::Failed(fault)
        } else {
            self.carry_out(&started.command)
        };
        self.done(op, outcome);
    }

    fn done(&mut self, op: OpId, outcome: Outcome) {
        let owner = self.bench.ops.finish(op).expect("it is in flight");
        match owner {
            Owner::Sched => {
                self.sched.on_forward(&mut self.bench.cx(), &mut self.kv, &mut self.transfer, op, outcome);
            }
            Owner::Kv => {
                for event in self.kv.on_done(&mut self.bench.cx(), op, outcome) {
                    self.sched.on_kv(&mut self.bench.cx(), &mut self.kv, &mut self.transfer, event);
                }
            }
            Owner::Transfer => {
                let events = self.transfer.on_done(&mut self.bench.cx(), op, outcome);
                self.route(events);
            }
        }
        self.settle();
    }

    /// A peer will ask for a request that was never submitted here.
    pub(super) fn expect(&mut self, request: RequestId, prompt: &Prompt) {
        self.prompts.entry(request).or_insert_with(|| (prompt.tokens.clone(), 1, Vec::new()));
        self.histories.entry(request).or_insert_with(|| prompt.tokens.clone());
    }

    /// The first token of a hand-off was sampled elsewhere.
    fn hear(&mut self, request: RequestId, token: Token) {
        let place = self.prompts[&request].0.len() + self.tokens(request.0).len();
        let history = self.histories.get_mut(&request).expect("submitted");
        if history.len() == place {
            history.push(token);
        }
    }

    /// A driver keeps the tables of a forward that fails; the KV is not there.
    fn poison(&mut self, command: &Command) {
        if let Command::Forward(batch) = command {
            for run in batch.runs() {
                self.tell(run, batch.pages(run));
                self.poisoned.insert(run.request);
            }
        }
    }

    fn tell(&mut self, run: &Run, pages: &[GpuPage]) {
        let table = self.tables.entry(run.request).or_default();
        table.truncate(run.table_from as usize);
        assert_eq!(table.len(), run.table_from as usize, "no page of the table is left out");
        table.extend(pages);
        if run.table_from == 0 {
            self.poisoned.remove(&run.request);
        }
    }

    fn carry_out(&mut self, command: &Command) -> Outcome {
        let page_size = self.config.kv.page_size as usize;
        match command {
            Command::Forward(batch) => {
                let mut tokens = Vec::new();
                for run in batch.runs() {
                    self.tell(run, batch.pages(run));
                    let table = &self.tables[&run.request];
                    if self.poisoned.contains(&run.request) {
                        for position in run.start..run.start + run.count {
                            let page = table[position as usize / page_size];
                            self.device.entry(page).or_insert_with(|| std::vec![0; page_size])
                                [position as usize % page_size] = 1;
                        }
                        tokens.extend(run.sample.then_some(Token(999)));
                        continue;
                    }
                    let history = self.histories.get_mut(&run.request).expect("submitted");
                    let mut state = 0;
                    for position in 0..(run.start + run.count) as usize {
                        state = hash(state, history[position]);
                        let page =
                            self.device.entry(table[position / page_size]).or_insert_with(|| std::vec![0; page_size]);
                        let cell = &mut page[position % page_size];
                        if position < run.start as usize {
                            assert_eq!(*cell, state, "{} reads position {position} of another prefix", run.request);
                        }
                        *cell = state;
                    }
                    if run.sample {
                        history.truncate((run.start + run.count) as usize);
                        history.push(sampled(state));
                        tokens.push(sampled(state));
                    }
                }
                Outcome::Sampled(tokens.into_iter().collect())
            }
            Command::LoadBack(pages) => {
                for (from, to) in pages {
                    self.device.insert(*to, self.host[from].clone());
                }
                Outcome::Moved
            }
            Command::Backup(pages) => {
                for (from, to) in pages {
                    self.host.insert(*to, self.device[from].clone());
                }
                Outcome::Moved
            }
            Command::Push(push) => {
                for (from, to) in &push.pages {
                    self.pushed.push((push.to, *to, self.device[from].clone()));
                }
                Outcome::Moved
            }
            Command::Query(keys) => Outcome::Found(keys.iter().map(|key| self.store.contains_key(key)).collect()),
            Command::Prefetch(objects) => {
                let mut failed = Vec::new();
                for (index, object) in (0..).zip(objects) {
                    match self.store.get(&object.key) {
                        Some(content) => _ = self.host.insert(object.page, content.clone()),
                        None => failed.push((index, Fault::Missing)),
                    }
                }
                if failed.is_empty() { Outcome::Moved } else { Outcome::Partly(failed) }
            }
            Command::Persist(objects) => {
                for object in objects {
                    self.store.insert(object.key, self.host[&object.page].clone());
                }
                Outcome::Moved
            }
            Command::Scan { .. } => Outcome::Scanned {
                keys: self.store.keys().map(|&key| (key, 0)).collect(),
                next: None,
                foreign: 0,
                torn: 0,
            },
            Command::Wipe => {
                self.store.clear();
                Outcome::Moved
            }
            Command::Discard(_) | Command::Touch(_) => panic!("these tests have no quota"),
        }
    }

    /// Completes the oldest command that may end; false if nothing is in flight.
    pub(super) fn turn(&mut self) -> bool {
        let Some(&op) = self.ready().first() else {
            assert!(self.lane.is_empty(), "commands wait for each other");
            return false;
        };
        self.complete(op, None);
        true
    }

    /// Goes on until nothing moves any more, deadlines included.
    pub(super) fn run(&mut self) {
        for _ in 0..100_000 {
            if self.turn() {
                continue;
            }
            let deadlines = [self.sched.deadline(), self.kv.deadline(), self.transfer.deadline()];
            let Some((at, _)) = deadlines.into_iter().flatten().min() else { return };
            self.advance(at);
        }
        panic!("it never comes to rest");
    }

    pub(super) fn advance(&mut self, at: Instant) {
        self.bench.now = at.max(self.bench.now);
        self.settle();
    }

    pub(super) fn tokens(&self, request: u64) -> Vec<Token> {
        let mut tokens = Vec::new();
        for (other, event) in &self.events {
            if let Event::Token(token) = event
                && *other == RequestId(request)
            {
                tokens.push(*token);
            }
        }
        tokens
    }

    pub(super) fn of(&self, request: u64) -> Vec<Event> {
        self.events.iter().filter(|(other, _)| *other == RequestId(request)).map(|(_, event)| event.clone()).collect()
    }

    /// How the request ended. Panics unless it ended exactly once, with its last event.
    pub(super) fn ending(&self, request: u64) -> Event {
        let events = self.of(request);
        let is_end = |event: &&Event| matches!(event, Event::Finished { .. } | Event::Refused(_) | Event::HandedOver);
        assert_eq!(events.iter().filter(is_end).count(), 1, "request {request} ends once: {events:?}");
        assert!(events.last().as_ref().is_some_and(is_end), "nothing follows the end of request {request}");
        events.last().cloned().expect("it has an end")
    }

    /// The request answered what an undisturbed run answers, as far as it came.
    pub(super) fn check_answer(&self, request: u64) {
        let (tokens, limit, stop) = &self.prompts[&RequestId(request)];
        let expected = answer(tokens, *limit, stop);
        let got = self.tokens(request);
        assert_eq!(got[..], expected[..got.len()], "tokens in order, without gap or repeat");
        if let Event::Finished { reason, output } = self.ending(request) {
            assert_eq!(output as usize, got.len(), "the end counts the tokens");
            if matches!(reason, Finish::Stop | Finish::Length) {
                assert_eq!(got, expected, "a complete answer of request {request}");
            }
        } else {
            assert!(got.is_empty(), "who is refused hears nothing");
        }
    }

    /// Everything is at rest and all pages are either free or cache.
    pub(super) fn check_rest(&self) {
        assert!(self.sched.is_empty(), "all requests have ended");
        assert_eq!(self.sched.leases().count(), 0, "no lease is left");
        assert_eq!(self.kv.available(), self.kv.total(), "every page is free or can be freed");
    }

    /// (start, count, sample) of each run of each forward so far.
    pub(super) fn runs(&self) -> Vec<Vec<(u64, u32, u32, bool)>> {
        let mut all = Vec::new();
        for started in &self.forwards {
            if let Command::Forward(batch) = &started.command {
                all.push(batch.runs().iter().map(|run| (run.request.0, run.start, run.count, run.sample)).collect());
            }
        }
        all
    }
}

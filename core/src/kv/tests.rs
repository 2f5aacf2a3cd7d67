//! The cache with a toy device, host and store that remember what is in each page.
//!
//! Every page of memory holds the key of what was last written into it. When a sequence is admitted, the pages it is
//! told to read must hold the keys of its prompt: a wrong, stale or unfinished page is seen at once.

mod cases;
mod model;
mod races;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::config::{KvConfig, StorageMode};
use crate::cost::Cost;
use crate::cx::Owner;
use crate::event::Served;
use crate::id::{GpuPage, HostPage, OpId, PageKey, RequestId, Token};
use crate::kv::{Full, Kv, KvEvent, Lease};
use crate::op::{Command, Fault, Outcome, Output, Prompt};
use crate::testkit::{self, Bench};

const ROOT: PageKey = PageKey(7);
/// What is in memory that a command failed to fill.
const GARBAGE: PageKey = PageKey(0);

/// What a test wants done with an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Well,
    Badly(Fault),
}

/// A cache, its memories, and its operations in flight.
struct Rig {
    bench: Bench,
    kv: Kv,
    gpu: BTreeMap<GpuPage, PageKey>,
    host: BTreeMap<HostPage, PageKey>,
    store: BTreeSet<PageKey>,
    flying: BTreeMap<OpId, Command>,
    events: Vec<KvEvent>,
    leases: Vec<(Lease, Prompt)>,
    request: u64,
}

impl Rig {
    fn new(config: KvConfig) -> Self {
        let mut rig = Self {
            bench: Bench::new(Cost::fixed(2_000_000, 20_000, 10_000_000, 1 << 20)),
            kv: Kv::new(config),
            gpu: BTreeMap::new(),
            host: BTreeMap::new(),
            store: BTreeSet::new(),
            flying: BTreeMap::new(),
            events: Vec::new(),
            leases: Vec::new(),
            request: 0,
        };
        rig.settle();
        rig
    }

    /// Pages of 4 tokens; no thresholds, so that a few pages are enough to see everything.
    fn config(gpu_pages: u32, host_pages: u32, storage: StorageMode) -> KvConfig {
        KvConfig {
            page_size: 4,
            page_bytes: 4096,
            gpu_pages,
            host_pages,
            root: ROOT,
            storage,
            prefetch_threshold: 4,
            load_back_threshold: 1,
            prefetch_capacity_per_mille: 1000,
            fetch_by_cost: false,
            ..KvConfig::default()
        }
    }

    fn prompt(&self, tokens: &[u32]) -> Prompt {
        testkit::prompt(ROOT, self.kv.config().page_size, tokens)
    }

    fn settle(&mut self) {
        self.kv.settle(&mut self.bench.cx());
        for output in self.bench.outputs() {
            if let Output::Start { op, command, .. } = output {
                self.spoil(&command);
                self.flying.insert(op, command);
            }
        }
        self.kv.check(self.leases.iter().map(|(lease, _)| lease));
    }

    /// Ends one operation and carries it out in the toy memories.
    fn end(&mut self, op: OpId, how: End) {
        let command = self.flying.remove(&op).expect("an operation in flight");
        let outcome = match how {
            End::Badly(fault) => {
                self.spoil(&command);
                Outcome::Failed(fault)
            }
            End::Well => self.carry_out(&command),
        };
        assert_eq!(self.bench.ops.finish(op), Some(Owner::Kv));
        let events = self.kv.on_done(&mut self.bench.cx(), op, outcome);
        for event in events {
            let KvEvent::Shorter { request, load, pages } = event;
            let is_hit = |lease: &Lease| lease.request() == request && lease.loading().contains(&load);
            if let Some((lease, _)) = self.leases.iter_mut().find(|(lease, _)| is_hit(lease)) {
                self.kv.shorten(lease, pages);
                self.events.push(event);
            }
        }
        self.settle();
    }

    /// Starts: what a command will write is bad from now on. Fails: it stays bad.
    fn spoil(&mut self, command: &Command) {
        match command {
            Command::LoadBack(pages) => {
                for (_, gpu) in pages {
                    self.gpu.insert(*gpu, GARBAGE);
                }
            }
            Command::Backup(pages) => {
                for (_, host) in pages {
                    self.host.insert(*host, GARBAGE);
                }
            }
            Command::Prefetch(objects) => {
                for object in objects {
                    self.host.insert(object.page, GARBAGE);
                }
            }
            Command::Forward(_)
            | Command::Push(_)
            | Command::Query(_)
            | Command::Persist(_)
            | Command::Discard(_)
            | Command::Scan { .. }
            | Command::Touch(_)
            | Command::Wipe => {}
        }
    }

    fn carry_out(&mut self, command: &Command) -> Outcome {
        match command {
            Command::LoadBack(pages) => {
                for (host, gpu) in pages {
                    self.gpu.insert(*gpu, self.host.get(host).copied().unwrap_or(GARBAGE));
                }
                Outcome::Moved
            }
            Command::Backup(pages) => {
                for (gpu, host) in pages {
                    self.host.insert(*host, self.gpu.get(gpu).copied().unwrap_or(GARBAGE));
                }
                Outcome::Moved
            }
            Command::Query(keys) => Outcome::Found(keys.iter().map(|key| self.store.contains(key)).collect()),
            Command::Prefetch(objects) => {
                let mut failed = Vec::new();
                for (index, object) in objects.iter().enumerate() {
                    if self.store.contains(&object.key) {
                        self.host.insert(object.page, object.key);
                    } else {
                        failed.push((index as u32, Fault::Missing));
                    }
                }
                if failed.is_empty() { Outcome::Moved } else { Outcome::Partly(failed) }
            }
            Command::Persist(objects) => {
                for object in objects {
                    assert_eq!(self.host[&object.page], object.key, "what is written is what is named");
                    self.store.insert(object.key);
                }
                Outcome::Moved
            }
            Command::Discard(keys) => {
                for key in keys {
                    self.store.remove(key);
                }
                Outcome::Moved
            }
            Command::Scan { .. } => Outcome::Scanned {
                keys: self.store.iter().map(|&key| (key, 0)).collect(),
                next: None,
                foreign: 0,
                torn: 0,
            },
            Command::Touch(_) => Outcome::Moved,
            Command::Wipe => {
                self.store.clear();
                Outcome::Moved
            }
            Command::Forward(_) | Command::Push(_) => panic!("the cache starts neither"),
        }
    }

    /// Ends everything until nothing is in flight.
    fn drain(&mut self) {
        while let Some((&op, _)) = self.flying.first_key_value() {
            self.end(op, End::Well);
        }
    }

    fn ops(&self, want: fn(&Command) -> bool) -> Vec<OpId> {
        self.flying.iter().filter(|(_, command)| want(command)).map(|(op, _)| *op).collect()
    }

    fn next_request(&mut self) -> RequestId {
        self.request += 1;
        RequestId(self.request)
    }

    fn admit(&mut self, request: RequestId, prompt: &Prompt) -> Result<Served, Full> {
        let admitted = self.kv.acquire(&mut self.bench.cx(), request, prompt, prompt.length + 1, false);
        let Ok((lease, served)) = admitted else {
            self.settle();
            return Err(Full);
        };
        let accounted: u32 = served.misses.iter().map(|miss| miss.tokens).sum();
        assert_eq!(
            served.device + served.host + served.storage + accounted,
            prompt.length,
            "every token has a source or a reason: {served:?}"
        );
        self.leases.push((lease, prompt.clone()));
        self.settle();
        Ok(served)
    }

    /// What the device would read for the cached part of a lease, once its loads are done.
    fn assert_content(&self, at: usize) {
        let (lease, prompt) = &self.leases[at];
        if lease.loading().iter().any(|op| self.bench.ops.is_live(*op)) {
            return;
        }
        let pages = (lease.cached_tokens() / self.kv.config().page_size) as usize;
        for (page, key) in lease.table()[..pages].iter().zip(&prompt.keys) {
            assert_eq!(self.gpu.get(page), Some(key), "page {page} holds another page's KV");
        }
    }

    /// Computes and publishes the prompt of a lease.
    fn compute(&mut self, at: usize) {
        self.compute_some(at, u32::MAX, 0);
    }

    /// Computes what is not cached, publishes at most so many pages.
    fn compute_some(&mut self, at: usize, pages: u32, priority: i32) {
        self.assert_content(at);
        let page_size = self.kv.config().page_size as usize;
        let (lease, prompt) = &mut self.leases[at];
        let from = lease.published_pages() as usize;
        // Neither what was cached nor what was published is written again: others may read it.
        let good = from.max(lease.cached_tokens() as usize / page_size);
        let to = prompt.keys.len().min(from.saturating_add(pages as usize));
        for (page, key) in lease.table().iter().zip(&prompt.keys).take(to).skip(good) {
            self.gpu.insert(*page, *key);
        }
        let keys = &prompt.keys[from.min(to)..to];
        let tokens: &[Token] = &prompt.tokens[from * page_size..];
        self.kv.publish(&mut self.bench.cx(), lease, ROOT, keys, tokens, priority);
        self.settle();
    }

    fn release(&mut self, at: usize) {
        let (lease, _) = self.leases.remove(at);
        self.kv.release(lease);
        self.settle();
    }

    /// One request from arrival to the end, alone.
    fn serve(&mut self, tokens: &[u32]) -> Served {
        let prompt = self.prompt(tokens);
        let request = self.next_request();
        self.kv.enter(&mut self.bench.cx(), request, &prompt, true);
        self.settle();
        self.drain();
        let served = self.admit(request, &prompt).expect("the pool is large enough for one");
        self.drain();
        self.compute(self.leases.len() - 1);
        self.release(self.leases.len() - 1);
        self.drain();
        served
    }

    /// A new life over the same store.
    fn restart(&mut self) {
        let config = self.kv.config().clone();
        let store = core::mem::take(&mut self.store);
        *self = Self { store, ..Self::new(config) };
        // The scan of the new life was started against an empty store; it ends against the real one.
        self.drain();
    }
}

fn tokens(range: core::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

impl Kv {
    /// Panics if something is held although nothing is under way and no lease lives.
    fn check_idle(&self) {
        self.hicache.check_idle(&self.tiers);
    }
}

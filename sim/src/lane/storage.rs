//! The storage lane: what the store holds, in the time that its disk takes.
//!
//! Commands run side by side and end in any order. A persist is written, then made durable by an fsync, then done. What
//! a prefetch finds is decided when its read ends, object by object.

use pd_core::id::PageKey;
use pd_core::op::{Command, Fault, Object, Outcome};
use pd_core::time::Instant;

use super::fabric::Depot;
use super::{Fabric, Lanes, Mark, Work};
use crate::fault::{Hits, Written};
use crate::memory::{Cell, Tag};
use crate::store::StoreFault;

/// One command of the storage lane.
#[derive(Debug)]
pub(super) struct StorageJob {
    command: Command,
    stage: Stage,
    pub(super) begun: Option<Instant>,
    failed: Vec<(u32, Fault)>,
    /// What the sources held at the start; empty unless contents are checked.
    before: Vec<Tag>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Waiting,
    /// Its read, write or latency.
    Moving,
    /// Its fsync, which covers what was put before the mark.
    Syncing(u64),
}

impl StorageJob {
    pub(super) const fn new(command: Command) -> Self {
        Self { command, stage: Stage::Waiting, begun: None, failed: Vec::new(), before: Vec::new() }
    }
}

impl Lanes {
    /// Starts a storage command if it can start.
    pub(super) fn run_storage(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        let op = self.op(seq);
        let (waiting, is_doomed) = (op.waiting, op.is_doomed);
        if self.job(seq).stage != Stage::Waiting {
            return;
        }
        if is_doomed {
            self.fail(now, seq, Fault::Prerequisite, fabric);
        } else if waiting == 0 {
            match self.spec.store {
                None => self.fail(now, seq, Fault::Unreachable, fabric),
                Some(store) => self.begin_storage(now, seq, store as usize, fabric),
            }
        }
    }

    /// The latency of a command without a disk job is over.
    pub(super) fn on_storage_timer(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        self.on_storage_job(now, seq, fabric);
    }

    /// The read, the write or the fsync of a command has ended.
    pub(super) fn on_storage_job(&mut self, now: Instant, seq: u64, fabric: &mut Fabric) {
        let (node, root, page_bytes, place) = (self.spec.node, self.spec.root, self.spec.page_bytes, self.place(seq));
        let index = self.spec.store.expect("a storage command runs on a store") as usize;
        let Work::Storage(job) = &mut self.op(seq).work else { unreachable!("this operation is of the storage lane") };
        let depot = &mut fabric.depots[index];
        if fails(depot, &mut fabric.hits, &job.command) {
            self.fail(now, seq, Fault::Io, fabric);
            return;
        }
        let outcome = match &job.command {
            Command::Query(keys) => {
                let is_ours = |key: &PageKey| depot.store.object(*key).is_some_and(|object| object.namespace == root);
                Outcome::Found(keys.iter().map(is_ours).collect())
            }
            Command::Discard(keys) => {
                for key in keys {
                    depot.store.remove(*key);
                }
                Outcome::Moved
            }
            Command::Scan { after } => {
                let page = depot.store.scan(root, *after, SCAN_OBJECTS);
                Outcome::Scanned { keys: page.keys, next: page.next, foreign: page.foreign, torn: page.torn }
            }
            Command::Touch(keys) => {
                depot.store.touch(keys);
                Outcome::Moved
            }
            Command::Wipe => {
                let keys: Vec<PageKey> =
                    depot.store.iter().filter(|(_, object)| object.namespace == root).map(|(key, _)| key).collect();
                for key in keys {
                    depot.store.remove(key);
                }
                Outcome::Moved
            }
            Command::Prefetch(objects) => {
                let mut failed = Vec::new();
                for (at, object) in (0..).zip(objects) {
                    let fails = depot.faults.fails_read(&mut fabric.hits);
                    let found = if fails { Err(Fault::Io) } else { read(depot, object.key, root) };
                    if let Some(memory) = &mut fabric.memory {
                        memory.delivered(now, Cell::host(node, object.page), object.key, found.ok());
                    }
                    failed.extend(found.err().map(|fault| (at, fault)));
                }
                moved(failed)
            }
            Command::Persist(objects) => match job.stage {
                Stage::Syncing(mark) => {
                    depot.store.sync(mark);
                    moved(std::mem::take(&mut job.failed))
                }
                Stage::Waiting | Stage::Moving => {
                    for (at, object) in (0..).zip(objects) {
                        if let Err(fault) = write(depot, &mut fabric.hits, object, root, page_bytes) {
                            job.failed.push((at, fault));
                        }
                    }
                    if let Some(memory) = &mut fabric.memory {
                        for (object, before) in objects.iter().zip(&job.before) {
                            let content = memory.persisted(now, Cell::host(node, object.page), object.key, *before);
                            depot.store.corrupt(object.key, content);
                        }
                    }
                    job.stage = Stage::Syncing(depot.store.mark());
                    let sync = depot.disk.fsync(now);
                    depot.jobs.insert(sync, place);
                    fabric.has_disk_jobs = true;
                    return;
                }
            },
            Command::Forward(_) | Command::LoadBack(_) | Command::Backup(_) | Command::Push(_) => {
                unreachable!("this command is not of the storage lane")
            }
        };
        self.finish(now, seq, outcome, fabric);
    }

    fn begin_storage(&mut self, now: Instant, seq: u64, store: usize, fabric: &mut Fabric) {
        let (node, root, page_bytes, place) = (self.spec.node, self.spec.root, self.spec.page_bytes, self.place(seq));
        let job = self.job(seq);
        job.stage = Stage::Moving;
        job.begun = Some(now);
        let depot = &mut fabric.depots[store];
        let latency = match &job.command {
            Command::Prefetch(objects) => {
                if let Some(memory) = &mut fabric.memory {
                    memory.filling(cells(node, objects));
                }
                let count = objects.iter().filter(|object| depot.store.contains(object.key)).count() as u32;
                if count > 0 {
                    let read = depot.disk.read(now, u64::from(count) * page_bytes, count);
                    depot.jobs.insert(read, place);
                    fabric.has_disk_jobs = true;
                    return;
                }
                depot.query_ns
            }
            Command::Persist(objects) => {
                if let Some(memory) = &mut fabric.memory {
                    job.before = cells(node, objects).map(|cell| memory.tag(cell)).collect();
                }
                let is_new = |object: &&Object| depot.store.get(object.key, root).is_err();
                let count = objects.iter().filter(is_new).count() as u32;
                if count > 0 {
                    let write = depot.disk.write(now, u64::from(count) * page_bytes, count);
                    depot.jobs.insert(write, place);
                    fabric.has_disk_jobs = true;
                    return;
                }
                depot.query_ns
            }
            Command::Query(_) | Command::Discard(_) | Command::Scan { .. } | Command::Wipe | Command::Touch(_) => {
                depot.query_ns
            }
            Command::Forward(_) | Command::LoadBack(_) | Command::Backup(_) | Command::Push(_) => {
                unreachable!("this command is not of the storage lane")
            }
        };
        fabric.heap.push(now.after_ns(latency), Mark::Timer(place));
    }

    fn job(&mut self, seq: u64) -> &mut StorageJob {
        let Work::Storage(job) = &mut self.op(seq).work else { unreachable!("this operation is of the storage lane") };
        job
    }
}

fn cells(node: u32, objects: &[Object]) -> impl Iterator<Item = Cell> {
    objects.iter().map(move |object| Cell::host(node, object.page))
}

/// Whose KV a reader gets.
fn read(depot: &Depot, key: PageKey, root: PageKey) -> Result<PageKey, Fault> {
    depot.store.get(key, root).map(|object| object.content).map_err(|fault| match fault {
        StoreFault::Missing => Fault::Missing,
        StoreFault::Torn => Fault::Checksum,
        StoreFault::Foreign if depot.store.object(key).is_some_and(|object| object.namespace == root) => {
            Fault::Checksum
        }
        StoreFault::Foreign => Fault::Namespace,
    })
}

/// Draws whether a command fails as a whole; reads and writes of objects are drawn one by one.
fn fails(depot: &mut Depot, hits: &mut Hits, command: &Command) -> bool {
    match command {
        Command::Query(_) | Command::Scan { .. } => depot.faults.fails_read(hits),
        Command::Discard(_) | Command::Wipe | Command::Touch(_) => depot.faults.fails_write(hits),
        Command::Prefetch(_)
        | Command::Persist(_)
        | Command::Forward(_)
        | Command::LoadBack(_)
        | Command::Backup(_)
        | Command::Push(_) => false,
    }
}

/// Puts an object where it belongs, or where a fault has it.
fn write(depot: &mut Depot, hits: &mut Hits, object: &Object, root: PageKey, bytes: u64) -> Result<(), Fault> {
    let key = object.key;
    if depot.store.get(key, root).is_ok() {
        return Ok(());
    }
    if depot.faults.fails_write(hits) {
        return Err(Fault::Io);
    }
    if depot.faults.is_full(hits) {
        return Err(Fault::Full);
    }
    let written = depot.faults.write(&depot.store, key, bytes, hits);
    if let Written::Astray(victim) = written {
        depot.store.misdirect(victim, key);
        return Ok(());
    }
    depot.store.put(key, object.parent, root, bytes).map_err(|_| Fault::Full)?;
    if let Written::Torn(bytes) = written {
        depot.store.cut(key, bytes);
    }
    Ok(())
}

fn moved(failed: Vec<(u32, Fault)>) -> Outcome {
    if failed.is_empty() { Outcome::Moved } else { Outcome::Partly(failed) }
}

/// Objects that one scan looks at.
pub(super) const SCAN_OBJECTS: u32 = 4096;

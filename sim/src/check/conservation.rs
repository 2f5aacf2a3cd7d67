//! Nothing is lost and nothing is there twice, in each tier.
//!
//! 1. Device pages are free, idle in the tree or pinned; at rest none is pinned, no room is open and nothing is in
//!    quarantine. The recount itself is the machine's (`Machine::check`).
//! 2. A worker believes in L3 only what it was told: what a scan listed, a query found, a persist reported as durable or
//!    a prefetch delivered. What really is in L3 is the store's matter and may have faults; this is about belief.
//! 3. Where L1 is written down when its pages are dropped (write back, exclusive L2), no page is dropped without a copy
//!    in L2, unless L2 has no room. Watched while changes are published; not after a flush or a failed copy, which may
//!    drop pages on purpose.

use std::collections::{BTreeMap, BTreeSet};

use pd_core::config::{HostPolicy, KvConfig, WritePolicy};
use pd_core::event::{Control, KvChange, Tier};
use pd_core::id::PageKey;
use pd_core::metrics::Metrics;
use pd_core::op::{Command, Fault, Outcome};
use pd_core::worker::Census;

use super::{About, Checker, Log};

/// What is known of one life of a worker.
#[derive(Debug, Default)]
struct Held {
    /// What it was told that L3 holds.
    told: BTreeSet<PageKey>,
    /// What it says that L2 holds.
    host: BTreeSet<PageKey>,
    /// Pages may be dropped without a copy.
    drops_on_purpose: bool,
    without_room: u64,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Conservation {
    workers: Vec<Held>,
}

impl Conservation {
    pub(super) fn new(workers: usize) -> Self {
        Self { workers: (0..workers).map(|_| Held::default()).collect() }
    }

    pub(super) fn on_life(&mut self, worker: u32) {
        self.workers[worker as usize] = Held::default();
    }

    pub(super) fn control(&mut self, worker: u32, control: Control) {
        match control {
            Control::Flush => self.workers[worker as usize].drops_on_purpose = true,
            Control::AttachStorage | Control::DetachStorage | Control::ClearStorage | Control::Drain => {}
        }
    }

    /// A command for L3 leaves.
    pub(super) fn storage_started(&mut self, log: &mut Log, worker: u32, command: &Command) {
        let held = &mut self.workers[worker as usize];
        match command {
            Command::Prefetch(objects) => {
                if let Some(object) = objects.iter().find(|object| !held.told.contains(&object.key)) {
                    let what = format!("fetches {:?}, which L3 was never said to hold", object.key);
                    log.report(Checker::Conservation, About::worker(worker), what);
                }
            }
            Command::Discard(keys) => keys.iter().for_each(|key| _ = held.told.remove(key)),
            Command::Wipe => held.told.clear(),
            Command::Forward(_)
            | Command::LoadBack(_)
            | Command::Backup(_)
            | Command::Query(_)
            | Command::Persist(_)
            | Command::Scan { .. }
            | Command::Touch(_)
            | Command::Push(_) => {}
        }
    }

    /// A command for L3 has ended.
    pub(super) fn storage_ended(&mut self, worker: u32, command: &Command, outcome: &Outcome) {
        let held = &mut self.workers[worker as usize];
        match (command, outcome) {
            (Command::Persist(objects), Outcome::Moved) => held.told.extend(objects.iter().map(|object| object.key)),
            (Command::Persist(objects), Outcome::Partly(failed)) => {
                let failed: BTreeMap<u32, Fault> = failed.iter().copied().collect();
                let good = (0..).zip(objects).filter(|(index, _)| !failed.contains_key(index));
                held.told.extend(good.map(|(_, object)| object.key));
            }
            (Command::Query(keys), Outcome::Found(found)) => {
                held.told.extend(keys.iter().zip(found).filter(|(_, found)| **found).map(|(key, _)| *key));
            }
            (Command::Scan { .. }, Outcome::Scanned { keys, .. }) => held.told.extend(keys.iter().map(|(key, _)| *key)),
            // What could not be removed counts as there again.
            (Command::Discard(keys), Outcome::Partly(failed)) => {
                held.told.extend(failed.iter().filter_map(|(index, _)| keys.get(*index as usize)));
            }
            (Command::Discard(keys), Outcome::Failed(_)) => held.told.extend(keys),
            (_, _) => {}
        }
    }

    /// What the worker's index of L3 counts as present.
    pub(super) fn believes(&mut self, log: &mut Log, worker: u32, keys: &[PageKey]) {
        let told = &self.workers[worker as usize].told;
        if let Some(key) = keys.iter().find(|key| !told.contains(key)) {
            let what = format!("counts {key:?} as stored, and nobody has said so");
            log.report(Checker::Conservation, About::worker(worker), what);
        }
    }

    /// The worker tells routers what its tiers hold.
    pub(super) fn changed(
        &mut self,
        log: &mut Log,
        worker: u32,
        config: &KvConfig,
        changes: &[KvChange],
        metrics: &Metrics,
    ) {
        let by_eviction = config.write_policy == WritePolicy::WriteBack || config.host_policy == HostPolicy::Exclusive;
        if !by_eviction || config.host_pages == 0 {
            return;
        }
        let held = &mut self.workers[worker as usize];
        let mark = |name| metrics.marks.get(name).copied().unwrap_or(0);
        let without_room = mark("kv.write_back_without_room");
        held.drops_on_purpose |= mark("hicache.backup_failed") + mark("hicache.load_back_failed") > 0;
        for change in changes {
            match change {
                KvChange::Stored { key, tier: Tier::Host, .. } => _ = held.host.insert(*key),
                KvChange::Removed { key, tier: Tier::Host } => _ = held.host.remove(key),
                KvChange::Cleared { tier: Tier::Host } => held.host.clear(),
                KvChange::Removed { key, tier: Tier::Device } => {
                    let is_excused = held.drops_on_purpose || without_room > held.without_room;
                    if !held.host.contains(key) && !is_excused {
                        let what = format!("drops {key:?} from L1, which was never written down");
                        log.report(Checker::Conservation, About::worker(worker), what);
                    }
                }
                KvChange::Stored { .. } | KvChange::Removed { .. } | KvChange::Cleared { .. } => {}
            }
        }
        held.without_room = without_room;
    }

    pub(super) fn settle(&mut self, log: &mut Log, worker: u32, census: &Census, is_at_rest: bool) {
        let about = About::worker(worker);
        let Census { gpu, gpu_free, gpu_idle, host, host_free, rooms, quarantined, fetching, .. } = *census;
        if gpu_free + gpu_idle > gpu || host_free > host {
            let what = format!("{gpu_free} free and {gpu_idle} idle pages of {gpu}, {host_free} of {host} host pages");
            log.report(Checker::Conservation, about, what);
        }
        if !is_at_rest {
            return;
        }
        if gpu_free + gpu_idle != gpu {
            let what = format!("at rest {} of {gpu} pages are neither free nor idle", gpu - gpu_free - gpu_idle);
            log.report(Checker::Conservation, about, what);
        }
        if rooms + quarantined + fetching > 0 {
            let what =
                format!("at rest {rooms} rooms, {quarantined} leases in quarantine, {fetching} fetches are left");
            log.report(Checker::Conservation, about, what);
        }
    }
}

//! Where it happened: workers, their lives and devices, and what the script did to them.

use std::collections::BTreeMap;

use pd_core::config::WorkerConfig;
use pd_core::cost::LinkCost;
use pd_core::id::Epoch;
use pd_core::op::LaneKind;
use pd_core::time::Instant;

use crate::disk::DiskSpec;
use crate::setup::{Action, Setup};

/// A deployment and what happened to it.
#[derive(Clone, Debug)]
pub struct Site {
    /// Workers, by index.
    pub workers: Vec<WorkerSite>,
    /// L3 stores.
    pub stores: Vec<StoreSite>,
    /// Requests go through a router.
    pub has_router: bool,
    /// What the script has done.
    pub actions: Vec<(Instant, Action)>,
}

/// One worker.
#[derive(Clone, Debug)]
pub struct WorkerSite {
    /// What its present life was told.
    pub config: Box<WorkerConfig>,
    /// Its present life, if it is up.
    pub life: Option<u32>,
    /// When its lives began.
    pub lives: Vec<(Instant, u32)>,
    /// What scans of L3 have found, by life.
    pub scans: BTreeMap<u32, Scan>,
    /// Index of its store.
    pub store: Option<u32>,
    /// L2 to L1.
    pub copy_in: LinkCost,
    /// To workers of the same machine, and of others.
    pub wires: [LinkCost; 2],
    host: u32,
}

/// What was found in L3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scan {
    /// When the last part was listed.
    pub at: Instant,
    /// Objects of this worker's namespaces.
    pub present: u64,
    /// Of others.
    pub foreign: u64,
    /// Broken ones.
    pub torn: u64,
}

/// One store.
#[derive(Clone, Debug)]
pub struct StoreSite {
    /// Its name.
    pub name: String,
    /// Its disk.
    pub disk: DiskSpec,
}

impl StoreSite {
    /// The most that reads of objects of so many bytes get, in bytes per second.
    #[must_use]
    pub fn read_rate(&self, object_bytes: u64) -> u64 {
        self.disk.read_bytes_per_second.min(self.disk.read_iops.saturating_mul(object_bytes))
    }
}

impl Site {
    /// Of a setup, before it runs.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        let workers = setup.workers.iter().map(|worker| WorkerSite {
            config: Box::new(worker.config.clone()),
            life: None,
            lives: Vec::new(),
            scans: BTreeMap::new(),
            store: worker.store,
            copy_in: worker.copy_in.cost,
            wires: [worker.near.cost, worker.far.cost],
            host: worker.host,
        });
        let stores = setup.stores.iter().map(|store| StoreSite { name: store.name.clone(), disk: store.disk });
        Self {
            workers: workers.collect(),
            stores: stores.collect(),
            has_router: setup.router.is_some(),
            actions: Vec::new(),
        }
    }

    pub(super) fn lives(&mut self, now: Instant, worker: u32, epoch: Option<Epoch>) {
        let worker = &mut self.workers[worker as usize];
        worker.life = epoch.map(|epoch| epoch.0);
        worker.lives.extend(epoch.map(|epoch| (now, epoch.0)));
    }

    pub(super) fn scanned(&mut self, at: Instant, worker: u32, present: u64, foreign: u32, torn: u32) {
        let worker = &mut self.workers[worker as usize];
        let scan = worker.scans.entry(worker.life.unwrap_or_default());
        let scan = scan.or_insert(Scan { at, present: 0, foreign: 0, torn: 0 });
        scan.at = at;
        scan.present += present;
        scan.foreign += u64::from(foreign);
        scan.torn += u64::from(torn);
    }

    /// True if two commands use the same device: by worker, receiver and lane.
    pub(super) fn share(
        &self,
        one: u32,
        one_to: Option<u32>,
        other: u32,
        other_to: Option<u32>,
        lane: LaneKind,
        other_lane: LaneKind,
    ) -> bool {
        if lane != other_lane {
            return false;
        }
        match lane {
            LaneKind::Storage => {
                let store = |worker: u32| self.workers[worker as usize].store;
                store(one).is_some() && store(one) == store(other)
            }
            LaneKind::Wire => one == other || one_to == other_to,
            LaneKind::Compute | LaneKind::CopyIn | LaneKind::CopyOut => one == other,
        }
    }

    /// The wire between two workers.
    #[must_use]
    pub fn wire(&self, from: u32, to: u32) -> LinkCost {
        let (source, sink) = (&self.workers[from as usize], &self.workers[to as usize]);
        source.wires[usize::from(source.host != sink.host)]
    }

    /// What the script did last to a worker before an instant that ended its life.
    #[must_use]
    pub fn ended_by(&self, worker: u32, before: Instant) -> Option<&(Instant, Action)> {
        self.actions.iter().rev().find(|(at, action)| {
            let is_end = matches!(action, Action::Restart(_) | Action::Crash(_)) && action.describe().0 == Some(worker);
            is_end && *at <= before
        })
    }

    /// When an operator last made a worker forget L1 and L2, between two instants.
    #[must_use]
    pub fn flushed(&self, worker: u32, from: Instant, to: Instant) -> Option<Instant> {
        let is_flush = |action: &Action| matches!(action, Action::Flush(order) if order.worker == worker);
        self.actions.iter().rev().find(|(at, action)| is_flush(action) && *at >= from && *at <= to).map(|(at, _)| *at)
    }
}

/// What the script does, in words.
#[must_use]
pub(super) fn action(action: &Action) -> String {
    let (worker, text) = action.describe();
    match (action, worker) {
        (Action::Restart(restart), Some(worker)) => format!(
            "worker {worker} is restarted{}{}",
            restart.down_for.map_or_else(String::new, |span| format!(", away for {:?}", span.0)),
            if restart.change.is_some() { ", and comes back with another configuration or namespace" } else { "" }
        ),
        (Action::Crash(_), Some(worker)) => format!("the machine of worker {worker} fails"),
        (Action::StoreRemove(damage), _) => format!("objects vanish from store {}", damage.store),
        (Action::StoreTear(damage), _) => format!("objects of store {} are cut short", damage.store),
        (Action::StoreWipe(damage), _) => format!("store {} is emptied", damage.store),
        (Action::Cancel(cancel), _) => format!("the client of request {} goes away", cancel.request),
        (_, _) => text,
    }
}

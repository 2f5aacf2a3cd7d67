//! The bootstrap registry between workers: the core's own [`Registry`], asked over the network.
//!
//! It is in the world if the script has a fault of it. Then workers learn of each other through it alone: each registers
//! when it starts, renews its lease, and is told at each of these times who else is there. While it is away nobody new
//! is learnt; those who know each other go on.

use std::time::Duration;

use pd_core::config::Mode;
use pd_core::id::Epoch;
use pd_core::time::nanos;
use pd_core::transfer::registry::{Registration, Registry, RegistryConfig, RegistryError};

use crate::lane::Mark;
use crate::node::Serve;
use crate::world::WorldOf;

/// The registry, or the place where it should be.
#[derive(Debug)]
pub(crate) struct Bootstrap {
    registry: Registry,
    /// The lines of the script because of which it is away.
    away: Vec<u32>,
    /// Registrations and renewals that are due some time.
    pending: usize,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { registry: Registry::new(RegistryConfig::default()), away: Vec::new(), pending: 0 }
    }
}

impl Bootstrap {
    pub(super) fn leave(&mut self, line: u32) {
        self.away.push(line);
    }

    pub(super) fn come_back(&mut self, line: u32) {
        self.away.retain(|other| *other != line);
    }

    /// All registrations are lost.
    pub(super) fn reset(&mut self) {
        self.registry = Registry::new(RegistryConfig::default());
    }
}

impl<M: Serve> WorldOf<M> {
    /// A worker that has started registers a moment later.
    pub(crate) fn register_later(&mut self, node: u32, epoch: Epoch, delay_ns: u64) {
        let Some(bootstrap) = &mut self.faults.registry else { return };
        bootstrap.pending += 1;
        self.fabric.heap.push(self.now.after_ns(delay_ns.max(1)), Mark::Register { node, epoch });
    }

    /// A worker registers or renews its lease, and learns who else is there.
    pub(crate) fn register(&mut self, node: u32, epoch: Epoch) {
        let Some(bootstrap) = &mut self.faults.registry else { return };
        bootstrap.pending -= 1;
        if self.fabric.lives[node as usize] != Some(epoch) {
            return;
        }
        let config = &self.nodes[node as usize].config;
        let lease = RegistryConfig::default().lease;
        let mut pause = lease / 3;
        let mut found: Vec<u32> = Vec::new();
        if bootstrap.away.is_empty() {
            let renewed = bootstrap.registry.renew(self.now, config.worker, epoch);
            let registered = renewed.or_else(|error| match error {
                RegistryError::NotFound => bootstrap.registry.register(self.now, registration(config)),
                RegistryError::Incompatible { .. }
                | RegistryError::OldEpoch { .. }
                | RegistryError::Full { .. }
                | RegistryError::Endpoint { .. }
                | RegistryError::NotReady { .. } => Err(error),
            });
            let other = match config.mode {
                Mode::Prefill => Some(Mode::Decode),
                Mode::Decode => Some(Mode::Prefill),
                Mode::Unified => None,
            };
            if let (Ok(_), Some(other)) = (registered, other)
                && let Ok(others) = bootstrap.registry.discover(self.now, other)
            {
                found.extend(others.map(|registration| registration.worker.0));
            }
        } else {
            for line in &bootstrap.away {
                self.fabric.hits.add(*line, 1);
            }
            pause = RETRY;
        }
        for other in found {
            self.learn(node, other);
        }
        // Renewals alone do not keep a world going in which nothing else happens any more.
        let pending = self.faults.registry.as_ref().map_or(0, |bootstrap| bootstrap.pending);
        let is_alive =
            self.fabric.heap.len() > pending || self.fabric.links.next().is_some() || self.disks_next.is_some();
        if is_alive {
            self.register_later(node, epoch, nanos(pause));
        }
    }
}

fn registration(config: &pd_core::config::WorkerConfig) -> Registration {
    Registration {
        worker: config.worker,
        epoch: config.epoch,
        mode: config.mode,
        root: config.kv.root,
        layout: config.transfer.layout.clone(),
        endpoint: config.worker.to_string(),
    }
}

/// Between two tries of a worker that the registry does not answer.
const RETRY: Duration = Duration::from_secs(1);

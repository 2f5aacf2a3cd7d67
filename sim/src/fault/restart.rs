//! The process of a worker ends and starts again with the next epoch: an upgrade, an OOM kill, an assertion.
//!
//! L1 and L2 are lost, L3 stays with all that was written: the operating system lives and writes its cache out.

use std::time::Duration;

use pd_core::config::WorkerConfig;
use pd_core::id::PageKey;
use serde::{Deserialize, Serialize};

use super::Fault;
use super::places::{Places, Wrong};
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A restart.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// Index of the worker.
    #[serde(default)]
    pub worker: u32,
    /// How long it is away; a second by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_for: Option<Span>,
    /// The element type of KV afterwards; the scenario layer makes a [`Change`] of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// What is different afterwards.
    #[serde(skip)]
    pub change: Option<Box<Change>>,
}

/// What differs in the next life of a worker.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Change {
    /// A new root of its namespace: another model, dtype or layout.
    pub root: Option<PageKey>,
    /// A whole new configuration; `worker` and `epoch` are kept.
    pub config: Option<Box<WorkerConfig>>,
}

impl Restart {
    /// A restart that changes nothing.
    #[must_use]
    pub fn new(worker: u32, down_for: Duration) -> Self {
        Self { worker, down_for: Some(Span(down_for)), ..Self::default() }
    }
}

impl Fault for Restart {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.worker(self.worker)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.stop(self.worker);
        if let Some(change) = &self.change {
            world.nodes[self.worker as usize].change(change);
        }
        world.start_later(self.worker, self.down_for.unwrap_or(Span::seconds(1)).ns());
        world.fabric.hits.add(line, 1);
    }
}

impl<M: Serve> crate::node::Node<M> {
    fn change(&mut self, change: &Change) {
        let (worker, epoch) = (self.config.worker, self.config.epoch);
        if let Some(config) = &change.config {
            self.config.clone_from(config);
            self.config.worker = worker;
            self.config.epoch = epoch;
        }
        if let Some(root) = change.root {
            self.config.kv.root = root;
        }
        self.spec.root = self.config.kv.root;
        self.spec.page_bytes = self.config.kv.page_bytes;
    }
}

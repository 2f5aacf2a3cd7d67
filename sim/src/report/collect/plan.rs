//! What a report has to know of a world before it runs: names and sizes.

use pd_core::config::Mode;

use crate::setup::Setup;

/// Names and sizes of a world.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// By index.
    pub workers: Vec<WorkerPlan>,
}

/// One worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerPlan {
    /// What it does.
    pub mode: Mode,
    /// Pages of L1.
    pub device_pages: u32,
    /// Pages of L2.
    pub host_pages: u32,
    /// Index of its L3.
    pub store: Option<u32>,
}

impl Plan {
    /// Of a world.
    #[must_use]
    pub fn of(setup: &Setup) -> Self {
        let workers = setup.workers.iter().map(|worker| WorkerPlan {
            mode: worker.config.mode,
            device_pages: worker.config.kv.gpu_pages,
            host_pages: worker.config.kv.host_pages,
            store: worker.store,
        });
        Self { workers: workers.collect() }
    }
}

/// The word for what a worker does.
#[must_use]
pub const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Unified => "unified",
        Mode::Prefill => "prefill",
        Mode::Decode => "decode",
    }
}

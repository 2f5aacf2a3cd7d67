//! Values over time: of a worker's tiers, queues and GPU, and of a link.

use pd_core::time::Instant;

use super::WorkerPlan;
use crate::observe::{Gauge, LinkRate};
use crate::report::series::Level;

/// Values of one worker over time.
#[derive(Clone, Debug)]
pub struct WorkerLevels {
    /// L1 pages that are not free.
    pub device_used: Level,
    /// L1 pages that cannot be freed.
    pub device_pinned: Level,
    /// L2 pages that are not free.
    pub host_used: Level,
    /// L2 pages that a command reads or writes.
    pub host_pinned: Level,
    /// Objects that the worker knows in L3.
    pub stored: Level,
    /// Requests that are admitted.
    pub running: Level,
    /// Requests that are not admitted.
    pub waiting: Level,
    /// 1 while a forward is on the GPU.
    pub busy: Level,
    /// Pages of L1, the most that there were.
    pub device_total: u32,
    /// Pages of L2, the most that there were.
    pub host_total: u32,
    last: Gauge,
}

/// What one link carries over time.
#[derive(Clone, Debug)]
pub struct LinkLevel {
    /// Bytes per second.
    pub rate: Level,
    /// What it could carry at most, when it was fastest.
    pub capacity: u64,
}

impl WorkerLevels {
    pub(super) fn new(plan: &WorkerPlan, limit: usize) -> Self {
        let level = || Level::new(limit);
        Self {
            device_used: level(),
            device_pinned: level(),
            host_used: level(),
            host_pinned: level(),
            stored: level(),
            running: level(),
            waiting: level(),
            busy: level(),
            device_total: plan.device_pages,
            host_total: plan.host_pages,
            last: Gauge::default(),
        }
    }

    /// Name, unit and values of each series.
    pub fn series(&self) -> [(&'static str, &'static str, &Level); 8] {
        [
            ("L1 used", "pages", &self.device_used),
            ("L1 pinned", "pages", &self.device_pinned),
            ("L2 used", "pages", &self.host_used),
            ("L2 pinned", "pages", &self.host_pinned),
            ("L3 objects", "pages", &self.stored),
            ("running", "requests", &self.running),
            ("waiting", "requests", &self.waiting),
            ("GPU busy", "0 or 1", &self.busy),
        ]
    }

    #[inline]
    pub(super) fn set(&mut self, now: Instant, gauge: &Gauge) {
        if self.last == *gauge {
            return;
        }
        self.last = *gauge;
        let pages = &gauge.pages;
        self.device_used.set(now, u64::from(pages.device_used));
        self.device_pinned.set(now, u64::from(pages.device_pinned));
        self.host_used.set(now, u64::from(pages.host_used));
        self.host_pinned.set(now, u64::from(pages.host_pinned));
        self.stored.set(now, pages.stored);
        self.running.set(now, u64::from(gauge.running));
        self.waiting.set(now, u64::from(gauge.waiting));
        self.device_total = self.device_total.max(pages.device_total);
        self.host_total = self.host_total.max(pages.host_total);
    }

    /// A forward was on the GPU. Forwards of a worker follow each other.
    pub(super) fn forward(&mut self, began: Instant, ended: Instant) {
        self.busy.set(began, 1);
        self.busy.set(ended, 0);
    }

    /// The process is gone, and with it what it held.
    pub(super) fn clear(&mut self, now: Instant) {
        self.set(now, &Gauge::default());
    }
}

impl LinkLevel {
    pub(super) fn new(limit: usize) -> Self {
        Self { rate: Level::new(limit), capacity: 0 }
    }

    pub(super) fn set(&mut self, now: Instant, rate: LinkRate) {
        self.rate.set(now, rate.bytes_per_second);
        self.capacity = self.capacity.max(rate.capacity);
    }
}

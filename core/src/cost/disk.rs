//! What one operation costs on an idle store: an NVMe drive, the page cache, an object store.
//!
//! Owns the form `max(bytes / bandwidth, 1 / iops) + latency`; queues and faults belong to the driver.

use alloc::string::String;
use core::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

use super::fixed::saturate;

/// One kind of store, as a file says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The name that scenarios refer to.
    pub name: String,
    /// Sequential reads.
    pub read_bytes_per_second: NonZeroU64,
    /// Sequential writes, sustained.
    pub write_bytes_per_second: NonZeroU64,
    /// Small reads a second with a full queue.
    pub read_operations_per_second: NonZeroU64,
    /// Small writes a second with a full queue, sustained.
    pub write_operations_per_second: NonZeroU64,
    /// One read alone.
    pub read_latency_ns: u64,
    /// One write alone.
    pub write_latency_ns: u64,
    /// Operations in flight beyond which more do not help.
    pub queue_depth: NonZeroU32,
    /// Making earlier writes durable.
    pub fsync_ns: u64,
}

impl Disk {
    /// Nanoseconds that a read occupies the store, without its latency.
    #[must_use]
    pub fn read_service_ns(&self, bytes: u64) -> u64 {
        service_ns(bytes, self.read_bytes_per_second, self.read_operations_per_second)
    }

    /// Nanoseconds that a write occupies the store, without its latency.
    #[must_use]
    pub fn write_service_ns(&self, bytes: u64) -> u64 {
        service_ns(bytes, self.write_bytes_per_second, self.write_operations_per_second)
    }

    /// Nanoseconds of a read that has the store to itself.
    #[must_use]
    pub fn read_ns(&self, bytes: u64) -> u64 {
        self.read_service_ns(bytes).saturating_add(self.read_latency_ns)
    }

    /// Nanoseconds of a write that has the store to itself; it is not durable before an fsync.
    #[must_use]
    pub fn write_ns(&self, bytes: u64) -> u64 {
        self.write_service_ns(bytes).saturating_add(self.write_latency_ns)
    }
}

fn service_ns(bytes: u64, bytes_per_second: NonZeroU64, operations_per_second: NonZeroU64) -> u64 {
    let wire = saturate((u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(bytes_per_second.get())));
    wire.max(1_000_000_000_u64.div_ceil(operations_per_second.get()))
}

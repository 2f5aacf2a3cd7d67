//! How full the tiers of one worker are, for those who watch it. Decides nothing.

use super::Kv;

/// Pages by tier at one instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Occupancy {
    /// L1 pages that are not free, those of the cache included.
    pub device_used: u32,
    /// L1 pages that cannot be freed: sequences compute over them, or a command reads or writes them.
    pub device_pinned: u32,
    /// L1 pages in all.
    pub device_total: u32,
    /// L2 pages that are not free.
    pub host_used: u32,
    /// L2 pages that a command reads or writes.
    pub host_pinned: u32,
    /// L2 pages in all.
    pub host_total: u32,
    /// Objects that the worker knows in L3.
    pub stored: u64,
}

impl Kv {
    /// How full each tier is. Costs a few loads.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let (device_used, host_used) = self.used();
        Occupancy {
            device_used,
            device_pinned: self.total() - self.available(),
            device_total: self.total(),
            host_used,
            host_pinned: self.tiers.host.pinned_count(),
            host_total: self.tiers.host.total(),
            stored: self.stored(),
        }
    }
}

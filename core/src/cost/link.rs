//! What a transfer costs on a link that nobody else uses.
//!
//! Owns the linear form; sharing of a link between transfers belongs to the driver.

use alloc::string::String;
use core::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use super::fixed::saturate;

/// One kind of link, as a file says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The name that scenarios refer to.
    pub name: String,
    /// Fixed host work of one transfer.
    pub request_ns: u64,
    /// Host or engine work of one descriptor, a contiguous piece.
    pub descriptor_ps: u64,
    /// Reached bandwidth in one direction.
    pub bytes_per_second: NonZeroU64,
    /// From the last byte sent to the last byte visible.
    pub latency_ns: u64,
}

impl Link {
    /// Its constants without its name.
    #[must_use]
    pub fn cost(&self) -> LinkCost {
        LinkCost {
            request_ns: self.request_ns,
            descriptor_ps: self.descriptor_ps,
            bytes_per_second: self.bytes_per_second,
            latency_ns: self.latency_ns,
        }
    }
}

/// `request + descriptors * descriptor + bytes / bandwidth + latency`
///
/// Descriptors are posted before their bytes move, so the terms add; a lane that posts while bytes flow is cheaper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkCost {
    /// Fixed host work of one transfer.
    pub request_ns: u64,
    /// Work of one descriptor.
    pub descriptor_ps: u64,
    /// Reached bandwidth in one direction.
    pub bytes_per_second: NonZeroU64,
    /// From the last byte sent to the last byte visible.
    pub latency_ns: u64,
}

impl LinkCost {
    /// Nanoseconds of one transfer that has the link to itself.
    #[must_use]
    pub fn time_ns(&self, bytes: u64, descriptors: u64) -> u64 {
        self.request_ns
            .saturating_add(saturate(u128::from(descriptors) * u128::from(self.descriptor_ps) / 1_000))
            .saturating_add(self.wire_ns(bytes))
            .saturating_add(self.latency_ns)
    }

    /// Nanoseconds that the bytes alone occupy the link, rounded up.
    #[must_use]
    pub fn wire_ns(&self, bytes: u64) -> u64 {
        saturate((u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.bytes_per_second.get())))
    }
}

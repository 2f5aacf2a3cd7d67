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
    /// Descriptors that are posted before the first byte moves; the rest are posted while bytes flow. 0 for all.
    #[serde(default)]
    pub descriptors_ahead: u32,
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
            descriptors_ahead: self.descriptors_ahead,
            bytes_per_second: self.bytes_per_second,
            latency_ns: self.latency_ns,
        }
    }
}

/// `request + ahead * descriptor + max(bytes / bandwidth, (descriptors - ahead) * descriptor) + latency`
///
/// Descriptors are posted before their bytes move, so the terms add, up to what the queues of the device hold (`ahead`):
/// those beyond are posted as earlier ones end, hidden behind bytes unless posting is the slower of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkCost {
    /// Fixed host work of one transfer.
    pub request_ns: u64,
    /// Work of one descriptor.
    pub descriptor_ps: u64,
    /// Descriptors that are posted before the first byte moves; 0 for all.
    #[serde(default)]
    pub descriptors_ahead: u32,
    /// Reached bandwidth in one direction.
    pub bytes_per_second: NonZeroU64,
    /// From the last byte sent to the last byte visible.
    pub latency_ns: u64,
}

impl LinkCost {
    /// Nanoseconds of one transfer that has the link to itself.
    #[must_use]
    pub fn time_ns(&self, bytes: u64, descriptors: u64) -> u64 {
        let moving_ns = self.wire_ns(bytes).max(self.posting_ns(descriptors - self.ahead(descriptors)));
        self.setup_ns(descriptors).saturating_add(moving_ns)
    }

    /// Nanoseconds in which nothing moves: the request, the descriptors posted ahead, the latency.
    #[must_use]
    pub fn setup_ns(&self, descriptors: u64) -> u64 {
        self.request_ns.saturating_add(self.posting_ns(self.ahead(descriptors))).saturating_add(self.latency_ns)
    }

    /// The most bytes per second that one transfer gets: the bandwidth, or less if posting the rest of its descriptors
    /// is slower.
    #[must_use]
    pub fn rate(&self, bytes: u64, descriptors: u64) -> u64 {
        let posting_ns = self.posting_ns(descriptors - self.ahead(descriptors));
        if posting_ns <= self.wire_ns(bytes) {
            return self.bytes_per_second.get();
        }
        saturate(u128::from(bytes) * 1_000_000_000 / u128::from(posting_ns)).max(1)
    }

    /// Descriptors posted before the first byte.
    fn ahead(&self, descriptors: u64) -> u64 {
        match self.descriptors_ahead {
            0 => descriptors,
            ahead => descriptors.min(u64::from(ahead)),
        }
    }

    fn posting_ns(&self, descriptors: u64) -> u64 {
        saturate(u128::from(descriptors) * u128::from(self.descriptor_ps) / 1_000)
    }

    /// Nanoseconds that the bytes alone occupy the link, rounded up.
    #[must_use]
    pub fn wire_ns(&self, bytes: u64) -> u64 {
        saturate((u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.bytes_per_second.get())))
    }
}

//! Placeholder until the cost branch is merged (same API subset).
use alloc::boxed::Box;
/// Cost of one link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct LinkCost {
    /// Per request.
    pub request_ns: u64,
    /// Per descriptor, picoseconds.
    pub descriptor_ps: u64,
    /// Bandwidth.
    pub bytes_per_second: u64,
    /// Latency.
    pub latency_ns: u64,
}
impl LinkCost {
    /// Time.
    #[must_use]
    pub fn time_ns(&self, bytes: u64, descriptors: u64) -> u64 {
        self.latency_ns
            + self.request_ns
            + descriptors * self.descriptor_ps / 1000
            + (u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1))) as u64
    }
}
/// Cost model.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    _private: Option<Box<u8>>,
}
impl Cost {
    /// Estimate of computing `new` tokens behind `cached`.
    #[must_use]
    pub fn prefill_ns(&self, cached: u64, new: u64) -> u64 {
        2_000_000 + new * 20_000 + new * cached * 2
    }
}

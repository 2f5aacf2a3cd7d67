//! Wall time as the machines see it: nanoseconds since the process began to serve.

use pd_core::time::Instant;

/// The clock of one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    zero: std::time::Instant,
}

impl Clock {
    /// Zero is now.
    pub(crate) fn start() -> Self {
        Self { zero: std::time::Instant::now() }
    }

    /// Monotonic.
    pub(crate) fn now(self) -> Instant {
        Instant(u64::try_from(self.zero.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

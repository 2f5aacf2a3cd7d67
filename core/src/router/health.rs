//! Circuit breakers: one for each worker and role.
//!
//! A decode failure is never held against the worker as a prefill, nor against the prefill of the pair (sglang
//! #31206). A worker without a recent failure has no entry, so a healthy deployment pays nothing.
//!
//! ```text
//!              failures within the window            time
//!   closed ───────────────────────────────> open ───────────> half-open ── successes ──> closed
//!      ^   success: count starts again        ^                   │ one probe at a time
//!      └── success while tried as last resort: half-open          └── failure ──> open
//! ```
//! Invariant: `timers` has exactly the open breakers.

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use super::config::RouterConfig;
use crate::codec;
use crate::digest::Digest;
use crate::id::{RequestId, WorkerId};
use crate::time::Instant;

/// The part that a worker plays in a route. Serving the whole of a request counts as decode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// It computes the prompt for another worker.
    Prefill,
    /// It generates.
    Decode,
}

codec!(enum Role { 0 = Prefill, 1 = Decode });

/// All breakers.
#[derive(Debug)]
pub(super) struct Health {
    breakers: BTreeMap<(WorkerId, Role), Breaker>,
    timers: BTreeSet<(Instant, WorkerId, Role)>,
    failures_max: u32,
    window: Duration,
    open: Duration,
    successes: u32,
}

/// What is held against a worker in a role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BreakerView {
    /// Nothing speaks against it yet.
    Closed {
        /// Failures since the last success.
        failures: u32,
    },
    /// It gets nothing as long as there is another one.
    Open {
        /// Until then.
        until: Instant,
    },
    /// It gets one request at a time.
    HalfOpen {
        /// How many of them went well.
        successes: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Breaker {
    /// Some failures since the last success, the first of them at `since`.
    Closed { failures: u32, since: Instant },
    /// In rotation again at `until`.
    Open { until: Instant },
    /// In rotation for one request at a time.
    HalfOpen { successes: u32, probe: Option<RequestId> },
}

codec!(enum Breaker { 0 = Closed { failures, since }, 1 = Open { until }, 2 = HalfOpen { successes, probe } });

impl Health {
    pub(super) const fn new(config: &RouterConfig) -> Self {
        Self {
            breakers: BTreeMap::new(),
            timers: BTreeSet::new(),
            failures_max: config.breaker_failures,
            window: config.breaker_window,
            open: config.breaker_open,
            successes: config.breaker_successes,
        }
    }

    /// True if the worker may be given a leg of this role.
    pub(super) fn admits(&self, worker: WorkerId, role: Role) -> bool {
        if self.breakers.is_empty() {
            return true;
        }
        match self.breakers.get(&(worker, role)) {
            None | Some(Breaker::Closed { .. } | Breaker::HalfOpen { probe: None, .. }) => true,
            Some(Breaker::Open { .. } | Breaker::HalfOpen { probe: Some(_), .. }) => false,
        }
    }

    /// All breakers that have an entry, by worker and role.
    pub(super) fn views(&self) -> impl Iterator<Item = (WorkerId, Role, BreakerView)> + '_ {
        self.breakers.iter().map(|(&(worker, role), breaker)| {
            let view = match *breaker {
                Breaker::Closed { failures, .. } => BreakerView::Closed { failures },
                Breaker::Open { until } => BreakerView::Open { until },
                Breaker::HalfOpen { successes, .. } => BreakerView::HalfOpen { successes },
            };
            (worker, role, view)
        })
    }

    /// A leg of `request` goes to the worker; if the breaker is half-open, it is the probe.
    pub(super) fn on_route(&mut self, worker: WorkerId, role: Role, request: RequestId) {
        if let Some(Breaker::HalfOpen { probe, .. }) = self.breakers.get_mut(&(worker, role)) {
            probe.get_or_insert(request);
        }
    }

    /// The leg is over, in whatever way: another probe may be sent.
    pub(super) fn on_end(&mut self, worker: WorkerId, role: Role, request: RequestId) {
        if let Some(Breaker::HalfOpen { probe, .. }) = self.breakers.get_mut(&(worker, role)) {
            probe.take_if(|probe| *probe == request);
        }
    }

    /// A leg ended well.
    pub(super) fn on_success(&mut self, worker: WorkerId, role: Role) {
        let Some(breaker) = self.breakers.get_mut(&(worker, role)) else { return };
        let successes = match breaker {
            Breaker::Closed { .. } => self.successes,
            Breaker::Open { until } => {
                self.timers.remove(&(*until, worker, role));
                *breaker = Breaker::HalfOpen { successes: 1, probe: None };
                1
            }
            Breaker::HalfOpen { successes, .. } => {
                *successes += 1;
                *successes
            }
        };
        if successes >= self.successes {
            self.breakers.remove(&(worker, role));
        }
    }

    /// A leg ended badly. True if that opened the breaker.
    pub(super) fn on_failure(&mut self, now: Instant, worker: WorkerId, role: Role) -> bool {
        let fresh = Breaker::Closed { failures: 0, since: now };
        let breaker = self.breakers.entry((worker, role)).or_insert(fresh);
        match breaker {
            Breaker::Closed { failures, since } => {
                if now - *since > self.window {
                    (*failures, *since) = (0, now);
                }
                *failures += 1;
                if *failures < self.failures_max {
                    return false;
                }
            }
            // Tried as the last resort; the time of the next probe stands.
            Breaker::Open { .. } => return false,
            Breaker::HalfOpen { .. } => {}
        }
        let until = now + self.open;
        *breaker = Breaker::Open { until };
        self.timers.insert((until, worker, role));
        true
    }

    /// Makes the breakers half-open whose time has come.
    pub(super) fn on_time(&mut self, now: Instant) {
        while let Some(&(until, worker, role)) = self.timers.first() {
            if until > now {
                return;
            }
            self.timers.pop_first();
            self.breakers.insert((worker, role), Breaker::HalfOpen { successes: 0, probe: None });
        }
    }

    /// The worker is gone, or lives a new life: nothing is held against it.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        for role in [Role::Prefill, Role::Decode] {
            if let Some(Breaker::Open { until }) = self.breakers.remove(&(worker, role)) {
                self.timers.remove(&(until, worker, role));
            }
        }
    }

    /// When the next breaker becomes half-open.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|&(until, ..)| until)
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        for (key, breaker) in &self.breakers {
            digest.value(key);
            digest.value(breaker);
        }
    }

    /// Panics if timers and breakers disagree, or an entry is of no known worker.
    pub(super) fn check(&self, knows: impl Fn(WorkerId) -> bool) {
        let open = self.breakers.iter().filter_map(|(&(worker, role), breaker)| match breaker {
            Breaker::Open { until } => Some((*until, worker, role)),
            Breaker::Closed { .. } | Breaker::HalfOpen { .. } => None,
        });
        assert!(open.collect::<BTreeSet<_>>() == self.timers);
        assert!(self.breakers.keys().all(|&(worker, _)| knows(worker)));
    }
}

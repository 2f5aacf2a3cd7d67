//! What a worker has to do: the router's own account of what it sent there, and the worker's reports.
//!
//! Each leg remembers what it added, so that taking it away leaves exactly what was there before.

use super::config::RouterConfig;
use super::prefix::Slot;
use super::vocabulary::{LoadReport, Member};
use crate::codec;
use crate::cost::Cost;
use crate::digest::Digest;
use crate::id::WorkerId;
use crate::time::Instant;

/// A worker that can be reached.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) member: Member,
    pub(super) slot: Slot,
    /// It gets no new requests.
    pub(super) is_draining: bool,
    pub(super) load: Load,
    report: Option<Report>,
}

/// Work that is outstanding at a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Load {
    /// Legs.
    pub(super) legs: u32,
    /// Legs that decode or will.
    pub(super) decodes: u32,
    /// Estimated time of prefills that are not over.
    pub(super) prefill_ns: u64,
    /// Tokens that those have to compute.
    pub(super) prefill_tokens: u64,
    /// Tokens of KV that the decodes need.
    pub(super) decode_tokens: u64,
}

codec!(struct Load { legs, decodes, prefill_ns, prefill_tokens, decode_tokens });

/// A worker's share of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Leg {
    pub(super) worker: WorkerId,
    /// What it added to the worker's account.
    pub(super) load: Load,
}

codec!(struct Leg { worker, load });

#[derive(Clone, Copy, Debug)]
struct Report {
    at: Instant,
    load: LoadReport,
    /// Estimate for `waiting_tokens`.
    waiting_ns: u64,
}

impl Worker {
    pub(super) fn new(member: Member, slot: Slot) -> Self {
        Self { member, slot, is_draining: false, load: Load::default(), report: None }
    }

    pub(super) fn on_report(&mut self, now: Instant, load: LoadReport, cost: &Cost) {
        // Many prompts, not one long one: the mean keeps the quadratic part honest.
        let count = u64::from(load.waiting.max(1));
        let waiting_ns = match load.waiting_tokens {
            0 => 0,
            tokens => cost.prefill_ns(0, (tokens / count).max(1)).saturating_mul(count),
        };
        self.report = Some(Report { at: now, load, waiting_ns });
    }

    /// The account and the last report, whichever says more: a report knows of other routers, but comes late.
    pub(super) fn outstanding(&self, now: Instant, config: &RouterConfig) -> Load {
        let own = self.load;
        match &self.report {
            Some(Report { at, load, waiting_ns }) if now - *at <= config.load_report_max_age => Load {
                legs: own.legs.max(load.running.saturating_add(load.waiting)),
                decodes: own.decodes.max(load.running),
                prefill_ns: own.prefill_ns.max(*waiting_ns),
                prefill_tokens: own.prefill_tokens.max(load.waiting_tokens),
                decode_tokens: own.decode_tokens.max(load.running_tokens),
            },
            Some(_) | None => own,
        }
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        digest.value(&self.member);
        digest.value(&self.is_draining);
        digest.value(&self.load);
        digest.value(&self.report.map(|report| (report.at, report.load)));
    }
}

impl Load {
    pub(super) fn add(&mut self, other: &Self) {
        self.legs += other.legs;
        self.decodes += other.decodes;
        self.prefill_ns = self.prefill_ns.checked_add(other.prefill_ns).expect("584 years of prefill");
        self.prefill_tokens += other.prefill_tokens;
        self.decode_tokens += other.decode_tokens;
    }

    /// Takes away what was added.
    pub(super) fn remove(&mut self, other: &Self) {
        self.legs -= other.legs;
        self.decodes -= other.decodes;
        self.prefill_ns -= other.prefill_ns;
        self.prefill_tokens -= other.prefill_tokens;
        self.decode_tokens -= other.decode_tokens;
    }
}

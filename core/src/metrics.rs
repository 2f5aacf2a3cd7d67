//! Counters of one worker: plain values, no exporter.

use alloc::collections::BTreeMap;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What has happened since the start of this life.
        #[derive(Clone, Debug, Default)]
        pub struct Metrics {
            $($(#[$doc])* pub $name: u64,)*
            /// Named rare branches that were taken; see [`Metrics::mark`].
            pub marks: BTreeMap<&'static str, u64>,
        }

        impl Metrics {
            /// Name and value of each counter, in the order of declaration.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }

            /// Adds the counts of another worker.
            pub fn merge(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
                for (mark, count) in &other.marks {
                    *self.marks.entry(mark).or_default() += count;
                }
            }
        }
    };
}

counters! {
    /// Requests that were taken.
    requests,
    /// Requests that were refused.
    refused,
    /// Requests that ended well.
    finished,
    /// Requests that were cancelled or ran out of time.
    cancelled,
    /// Requests that failed.
    failed,
    /// Times a sequence gave its pages back.
    retractions,
    /// Forward passes.
    forwards,
    /// Prompt tokens computed here.
    computed_tokens,
    /// Tokens generated here.
    generated_tokens,
    /// Prompt tokens found in L1.
    device_hit_tokens,
    /// Prompt tokens found in L2.
    host_hit_tokens,
    /// Prompt tokens fetched from L3.
    storage_hit_tokens,
    /// Pages copied L1 to L2.
    backup_pages,
    /// Pages copied L2 to L1.
    load_back_pages,
    /// Pages read from L3.
    prefetch_pages,
    /// Pages written to L3.
    persist_pages,
    /// Pages that L3 failed to deliver.
    prefetch_failed_pages,
    /// Pages that L3 failed to take.
    persist_failed_pages,
    /// Pages removed from L3 to stay under the quota.
    discard_pages,
    /// Pages dropped from L1.
    device_evicted_pages,
    /// Pages dropped from L2.
    host_evicted_pages,
    /// Pages pushed to peers.
    push_pages,
    /// Hand-offs completed as source.
    handoffs_sent,
    /// Hand-offs completed as sink.
    handoffs_received,
    /// Hand-offs that ended badly, as source or sink.
    handoffs_failed,
    /// Attempts repeated on another prefill.
    handoff_retries,
    /// Prompts recomputed here because no prefill delivered.
    local_recomputes,
    /// Inputs of an earlier life, an unknown peer or a closed room, dropped.
    stale_inputs,
}

/// All names that [`Metrics::mark`] is called with, in order: a gate on any other name is a misspelling, and a swarm says
/// which it never reached. A test holds them against the sources.
pub const MARKS: &[&str] = &[
    "hicache.backup_failed",
    "hicache.backup_without_room",
    "hicache.discard_failed",
    "hicache.load_back_failed",
    "hicache.persist_failed",
    "hicache.persist_retried",
    "hicache.prefetch",
    "hicache.prefetch_bidirectional",
    "hicache.prefetch_hole",
    "hicache.prefetch_parked",
    "hicache.prefetch_revoked",
    "hicache.prefetch_slower_than_computing",
    "hicache.prefetch_timeout",
    "hicache.prefetch_too_short",
    "hicache.query_failed",
    "hicache.scan_failed",
    "hicache.scanned",
    "hicache.tail_late",
    "kv.tail_taken",
    "kv.write_back",
    "kv.write_back_without_room",
    "sched.admission_undone",
    "sched.came_again",
    "sched.forward_failed",
    "sched.no_prefill_left",
    "sched.starved",
    "transfer.abort_again",
    "transfer.abort_of_unknown",
    "transfer.handoff_of_another",
    "transfer.incompatible",
    "transfer.push_again",
    "transfer.silent",
    "transfer.want_refused",
];

impl Metrics {
    /// Notes that a named rare branch was taken, so that a test can tell whether it ran.
    pub fn mark(&mut self, name: &'static str) {
        debug_assert!(MARKS.binary_search(&name).is_ok(), "add the mark {name} to MARKS, in order");
        *self.marks.entry(name).or_default() += 1;
    }
}

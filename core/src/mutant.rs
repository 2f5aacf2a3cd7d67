//! Deliberate mistakes, each a line, to show that the checkers of the simulator would see them.
//!
//! A checker that has never caught anything proves nothing. Each mutant is a mistake that somebody has made or nearly
//! made; the table says what it does and which checker has to catch it. Configurations carry a [`Mutation`], which is
//! empty and costs nothing unless the feature `mutants` is on (it is in tests): then `Mutation::of` makes one.
//!
//! Checkers are named as `pd-sim` names them (`check::Checker`). `machine` is the machine itself: an assertion, or
//! [`crate::machine::Machine::check`].

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $part:literal, $by:literal;)*) => {
        /// A deliberate mistake.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Mutant {
            $($(#[$doc])* $name,)*
        }

        impl Mutant {
            /// All of them, part by part.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The part of core that it is planted in.
            #[must_use]
            pub const fn part(self) -> &'static str {
                match self { $(Self::$name => $part,)* }
            }

            /// The checker that has to catch it.
            #[must_use]
            pub const fn caught_by(self) -> &'static str {
                match self { $(Self::$name => $by,)* }
            }
        }
    };
}

mutants! {
    /// A page that enters the tree is not pinned by the sequence that computes over it.
    PublishLosesPin = "publish_loses_pin", "kv", "machine";
    /// The last page of a sequence does not return to the pool.
    ReleaseForgetsPage = "release_forgets_page", "kv", "machine";
    /// Pages are published when their forward is launched, not when it has ended.
    PublishBeforeDone = "publish_before_done", "kv", "content";
    /// A page found in L1 counts as found in L2, too.
    HitCountedTwice = "hit_counted_twice", "kv", "lifecycle";
    /// A page that is pinned may still be chosen to be dropped.
    EvictPinned = "evict_pinned", "kv", "machine";
    /// A page is written to L3 while the copy to L2 is under way.
    PersistBeforeBackup = "persist_before_backup", "hicache", "content";
    /// Pages that are on their way back from L2 count as there: forwards do not wait for them.
    LoadBackDoneAtStart = "load_back_done_at_start", "hicache", "content";
    /// A page that L3 failed to deliver is taken for a good one.
    PrefetchUnchecked = "prefetch_unchecked", "hicache", "content";
    /// Under write back, L1 drops pages of which there is no other copy.
    WriteBackDropsDirty = "write_back_drops_dirty", "hicache", "conservation";
    /// An object counts as stored while it is being written.
    PresentBeforeDurable = "present_before_durable", "hicache", "conservation";
    /// What a fetch that was given up had reserved stays reserved (sglang #15439).
    FetchLeaksCapacity = "fetch_leaks_capacity", "hicache", "machine";
    /// A sequence takes pages of its tail that are still on their way from L3.
    TailTakenEarly = "tail_taken_early", "hicache", "machine";
    /// A sequence takes pages of its tail while the pages before them are being computed.
    TailTakenOverFlight = "tail_taken_over_flight", "sched", "machine";
    /// A prefill worker does not push the pages that it has not computed itself.
    TailNotPushed = "tail_not_pushed", "sched", "machine";
    /// A request that comes to an idle worker waits for the next one.
    LostWakeup = "lost_wakeup", "sched", "progress";
    /// A prefill leg is not queued when its sink asks for it.
    WantedForgotten = "wanted_forgotten", "sched", "progress";
    /// A retracted sequence is not queued again.
    RetractionForgets = "retraction_forgets", "sched", "machine";
    /// An admitted request stays in the queue.
    DoubleAdmit = "double_admit", "sched", "machine";
    /// The place of a request that has ended is not given to another.
    BudgetLeak = "budget_leak", "sched", "machine";
    /// A request that waits for L3 blocks those behind it.
    FetchBlocksOthers = "fetch_blocks_others", "sched", "work";
    /// The first token of an answer is told twice.
    TokenTwice = "token_twice", "sched", "lifecycle";
    /// A token that was sampled for a request that has ended is told.
    TokenAfterEnd = "token_after_end", "sched", "lifecycle";
    /// The deadline of a request is kept and never looked at.
    DeadlineIgnored = "deadline_ignored", "sched", "time";
    /// Lives are not compared when a message is taken.
    EpochIgnored = "epoch_ignored", "transfer", "epoch";
    /// A sink takes the hand-off of any attempt of its room.
    GenerationIgnored = "generation_ignored", "transfer", "handoff";
    /// A sink's abort is not acknowledged.
    AckLost = "ack_lost", "transfer", "handoff";
    /// A timeout is taken for proof that nothing is written any more.
    FenceOnTimeout = "fence_on_timeout", "transfer", "handoff";
    /// The source's abort is taken for proof that nothing is written any more.
    FenceOnSourceAbort = "fence_on_source_abort", "transfer", "handoff";
    /// The source acknowledges while it still writes.
    AckBeforeDrained = "ack_before_drained", "transfer", "handoff";
    /// A want that comes twice is taken twice.
    BelieveCopies = "believe_copies", "transfer", "handoff";
    /// The hand-off leaves before the last push has landed.
    HandoffBeforeLanded = "handoff_before_landed", "transfer", "handoff";
    /// Peers of other weights are taken for equals.
    NamespaceIgnored = "namespace_ignored", "transfer", "content";
    /// The failure of an earlier attempt ends the present one.
    AttemptIgnored = "attempt_ignored", "router", "epoch";
    /// The workers of a cancelled request are not told.
    CancelDropped = "cancel_dropped", "router", "lifecycle";
    /// A room is given to two requests.
    RoomReused = "room_reused", "router", "handoff";
}

impl Mutant {
    /// The mutant of a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
    }
}

/// What a configuration carries: the mistake to make, if any. Without the feature `mutants` there is no other value than
/// the default one, it takes no room, and every question it is asked is answered by the compiler.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mutation {
    #[cfg(any(test, feature = "mutants"))]
    mutant: Option<Mutant>,
}

impl Mutation {
    /// The mutation that makes this mistake.
    #[cfg(any(test, feature = "mutants"))]
    #[must_use]
    pub const fn of(mutant: Mutant) -> Self {
        Self { mutant: Some(mutant) }
    }

    /// True if this mistake is to be made.
    #[cfg(any(test, feature = "mutants"))]
    #[inline]
    pub(crate) fn is(self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// True if this mistake is to be made: never.
    #[cfg(not(any(test, feature = "mutants")))]
    #[expect(clippy::unused_self, reason = "asked as where there are mutants")]
    #[inline(always)]
    pub(crate) const fn is(self, _: Mutant) -> bool {
        false
    }
}

#[cfg(not(any(test, feature = "mutants")))]
const _: () = assert!(size_of::<Mutation>() == 0, "a mutation costs nothing where there are none");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_is_found_by_its_name() {
        for &mutant in Mutant::ALL {
            assert_eq!(Mutant::parse(mutant.name()), Some(mutant));
            assert!(Mutation::of(mutant).is(mutant));
            assert!(!Mutation::default().is(mutant));
        }
        assert_eq!(Mutant::parse("none"), None);
    }
}

//! Counters of one router.

use super::vocabulary::Cause;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What has happened since the start of this life.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct RouterMetrics {
            $($(#[$doc])* pub $name: u64,)*
            /// Routes by [`Cause`], in the order of [`Cause::ALL`].
            pub causes: [u64; Cause::ALL.len()],
        }

        impl RouterMetrics {
            /// Adds the counts of another life.
            pub fn merge(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
                for (count, other) in self.causes.iter_mut().zip(other.causes) {
                    *count += other;
                }
            }

            /// Name and value of each counter: those above, then the routes by cause.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                let causes = Cause::ALL.map(|cause| (cause.name(), self.causes[cause as usize]));
                [$((stringify!($name), self.$name)),*].into_iter().chain(causes)
            }
        }
    };
}

counters! {
    /// Requests that were submitted.
    requests,
    /// Routes given, attempts after the first included.
    routed,
    /// Attempts after the first that came before any token.
    retried,
    /// Attempts after the first that go on with an answer.
    migrated,
    /// Requests whose client has its whole answer.
    finished,
    /// Requests whose client went away.
    cancelled,
    /// Requests refused, for whatever reason.
    refused,
    /// Requests refused because no worker could be tried.
    refused_no_workers,
    /// Requests refused because too many were live.
    refused_overloaded,
    /// Requests given up after the last retry.
    refused_retries,
    /// Routes to a worker whose breaker was open, for want of another.
    last_resorts,
    /// Times a breaker opened.
    breakers_opened,
    /// Workers that went away.
    workers_lost,
    /// Workers that were not taken: too many, or of an earlier life.
    workers_refused,
    /// Inputs about unknown requests, workers or earlier attempts, dropped.
    stale_inputs,
    /// Prompt tokens routed, first attempts only.
    prompt_tokens,
    /// Of those, tokens that the computing worker probably held.
    cached_tokens,
}

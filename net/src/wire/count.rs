//! What both ends count.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counted since the start.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The same, while it is being counted.
        #[derive(Debug, Default)]
        pub(super) struct Counts {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counts {
            pub(super) fn read(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counts! {
    /// Pages that have landed.
    pages,
    /// Their bytes.
    bytes,
    /// Pages that went on over another connection, because the first one broke under them.
    resent,
    /// Connections that were made or taken.
    connections,
    /// Connections that broke, or whose other end made no progress.
    broken,
    /// Greetings that were refused, by us or by the other end.
    rejected,
    /// Connections that were closed because what came was malformed.
    malformed,
    /// Payloads whose checksum was wrong.
    damaged,
    /// Writes that were refused because no lease stood for them.
    fenced,
    /// Writes that were refused because the page was in use: a mistake of whoever leased it.
    busy,
    /// Peers that could not be reached through shared memory and are reached through TCP.
    fallbacks,
    /// Pushes that were answered without moving anything.
    faked,
}

impl Counts {
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

//! Seeded randomness: one stream per consumer, integers only.
//!
//! A new draw in one place must not shift the draws of another, so each consumer has its own [`Stream`]. Streams are
//! appended, never reordered.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Who draws. The number is part of every recorded run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Stream {
    /// Order of a random scheduling policy.
    Schedule = 1,
    /// Choice of a router.
    Route = 2,
    /// Jitter of retries.
    Backoff = 3,
    /// Arrival times of a load.
    Arrivals = 16,
    /// Lengths of a load.
    Lengths = 17,
    /// Jitter inside the time buckets of a trace.
    Trace = 18,
    /// Latency draws of disks and stores.
    Disk = 19,
    /// Latency draws of networks.
    Network = 20,
    /// Faults.
    Fault = 21,
    /// Contents of a load: which prefix a request shares.
    Content = 22,
    /// Think times of sessions.
    Think = 23,
    /// Service times of queueing oracles.
    Service = 24,
    /// Messages that are dropped.
    Drop = 25,
    /// Messages that come twice.
    Duplicate = 26,
    /// Messages that are overtaken.
    Reorder = 27,
    /// Messages that are late.
    Delay = 28,
    /// Reads and writes of a disk that fail.
    DiskError = 29,
    /// Writes that are cut short.
    TornWrite = 30,
    /// Objects that rot.
    BitRot = 31,
    /// Writes that go elsewhere.
    MisdirectedWrite = 32,
    /// Messages that make no sense.
    Nonsense = 33,
    /// Clients that go away.
    Disconnect = 34,
    /// Messages of other attempts.
    Stray = 35,
    /// Plans of a swarm.
    Swarm = 64,
    /// Steps that a measured cost is held against.
    Probe = 65,
}

/// A deterministic generator (ChaCha8), equal on every platform.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The generator of one consumer under the seed of the run; `entity` tells equal consumers apart (a worker's id).
    #[must_use]
    pub fn new(seed: u64, stream: Stream, entity: u64) -> Self {
        let mut key = [0_u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&(stream as u64).to_le_bytes());
        key[16..24].copy_from_slice(&entity.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// A uniform 64-bit value.
    #[expect(clippy::should_implement_trait, reason = "a generator has no end, and is not iterated")]
    pub fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A uniform value below `bound`, by multiplication and rejection (Lemire, ACM TOMACS 2019).
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a choice among nothing");
        loop {
            let product = u128::from(self.next()) * u128::from(bound);
            let low = product as u64;
            if low >= bound || low >= bound.wrapping_neg() % bound {
                return (product >> 64) as u64;
            }
        }
    }

    /// True `per_mille` times in a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let chosen = self.below(last as u64 + 1) as usize;
            items.swap(last, chosen);
        }
    }

    /// Where the stream is, for state digests.
    #[must_use]
    pub fn position(&self) -> u128 {
        self.0.get_word_pos()
    }
}

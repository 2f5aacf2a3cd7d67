//! One flow: what it has to move, over which links, and how far it is.

use pd_core::time::Instant;

use super::LinkId;
use super::queue::NEVER;

/// Names a flow of one `Links`; never used twice. Orders by start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowId {
    pub(super) ordinal: u64,
    pub(super) slot: u32,
}

/// The links that a flow crosses, each once; the order does not matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Path {
    links: [LinkId; PATH_LINKS_MAX],
    pub(super) count: u8,
}

/// What a flow has to move, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowSpec {
    /// The links it crosses. Without any, only `rate_max` slows it down.
    pub path: Path,
    /// Bytes to move; a flow of 0 bytes is done after its setup.
    pub bytes: u64,
    /// Time before the first byte moves: per-request cost + descriptors * per-descriptor cost.
    pub setup_ns: u64,
    /// The most bytes per second that its ends can handle.
    pub rate_max: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) ordinal: u64,
    pub(super) path: Path,
    pub(super) rate_max: Option<u64>,
    pub(super) bytes: u64,
    /// Nano-bytes left at `since`.
    pub(super) left: u128,
    pub(super) since: Instant,
    pub(super) rate: u64,
    pub(super) is_moving: bool,
    /// Scratch of [`Fair`]: the rate to come, and the round that saw this flow.
    pub(super) fresh: u64,
    pub(super) seen: u64,
}

impl Path {
    /// A path over these links.
    ///
    /// # Panics
    /// If there are more than [`PATH_LINKS_MAX`], or one of them twice.
    #[must_use]
    pub fn new(links: &[LinkId]) -> Self {
        assert!(links.len() <= PATH_LINKS_MAX, "a path over {} links", links.len());
        let mut path = Self::default();
        for &link in links {
            assert!(!path.iter().any(|other| other == link), "a path crosses {link:?} twice");
            path.links[path.count as usize] = link;
            path.count += 1;
        }
        path
    }

    /// The links in the order given.
    pub fn iter(&self) -> impl Iterator<Item = LinkId> + use<> {
        self.links.into_iter().take(self.count as usize)
    }
}

impl Flow {
    pub(super) fn new(ordinal: u64, now: Instant, spec: FlowSpec) -> Self {
        Self {
            ordinal,
            path: spec.path,
            rate_max: spec.rate_max,
            bytes: spec.bytes,
            left: u128::from(spec.bytes) * NANO,
            since: now.after_ns(spec.setup_ns),
            rate: 0,
            is_moving: false,
            fresh: 0,
            seen: 0,
        }
    }

    /// Nano-bytes moved from `since` to `now`.
    #[inline]
    pub(super) fn progress(&self, now: Instant) -> u128 {
        (u128::from(self.rate) * u128::from(now.ns_since(self.since))).min(self.left)
    }

    /// Whole bytes moved until `now`.
    pub(super) fn moved(&self, now: Instant) -> u64 {
        whole(u128::from(self.bytes) * NANO - (self.left - self.progress(now)))
    }

    /// When nothing is left, at this rate.
    pub(super) fn end(&self) -> u64 {
        if self.rate == 0 {
            return NEVER;
        }
        // A division of 128 bits costs tens of ns; below 18 GB it is not needed.
        let ns = match u64::try_from(self.left) {
            Ok(left) => left.div_ceil(self.rate),
            Err(_) => u64::try_from(self.left.div_ceil(u128::from(self.rate))).unwrap_or(NEVER),
        };
        self.since.after_ns(ns).0
    }
}

/// The whole bytes of a count of nano-bytes.
pub(super) fn whole(nano_bytes: u128) -> u64 {
    u64::try_from(nano_bytes / NANO).unwrap_or(u64::MAX)
}

/// Links on one path at most: copy engine, switch, NIC, port on each side.
pub const PATH_LINKS_MAX: usize = 8;
const NANO: u128 = 1_000_000_000;

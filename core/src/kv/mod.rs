//! The cache of one worker, as scheduler and hand-off see it (signatures; the bodies land on main soon).

mod lease;

use alloc::vec::Vec;

use crate::config::KvConfig;
use crate::cx::Cx;
use crate::event::{Control, Served};
use crate::id::{OpId, PageKey, RequestId, Token};
use crate::op::{Outcome, Prompt};
use crate::time::Instant;

pub use lease::Lease;

/// Not enough device pages can be freed now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// What a lookup would find, in pages of the prompt. Looking changes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hit {
    /// Leading pages in L1.
    pub device: u32,
    /// Pages behind those that are in L2 (or L1), without a gap.
    pub host: u32,
}

/// Whether a waiting request may be admitted as far as the cache is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetch {
    /// Nothing is on its way, or it is not worth waiting for.
    Go,
    /// Its pages are being fetched from L3; ask again at the instant, or after the next step that ends an operation.
    Wait(Instant),
}

/// What the scheduler must know about something that the cache did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvEvent {
    /// A load back for this admitted request failed: only `pages` leading pages of its table are good. Forwards that
    /// named the load in `after` fail with `Fault::Prerequisite`.
    Shorter {
        /// Which request.
        request: RequestId,
        /// Good pages.
        pages: u32,
    },
}

/// Radix cache, pools and HiCache controller of one worker.
#[derive(Debug)]
pub struct Kv {
    config: KvConfig,
}

#[allow(unused_variables, clippy::todo)]
impl Kv {
    /// An empty cache. With a private L3 the first `settle` starts a scan.
    #[must_use]
    pub fn new(config: KvConfig) -> Self {
        Self { config }
    }

    /// Its configuration.
    #[must_use]
    pub const fn config(&self) -> &KvConfig {
        &self.config
    }

    /// What L1 and L2 hold of a prompt. Never splits, touches or pins.
    #[must_use]
    pub fn lookup(&self, prompt: &Prompt) -> Hit {
        todo!()
    }

    /// Device pages that are free or can be freed at once.
    #[must_use]
    pub fn available(&self) -> u32 {
        todo!()
    }

    /// Device pages in all.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.config.gpu_pages
    }

    /// A request starts to wait: its pages may be fetched from L3. Call [`Kv::leave`] when it stops waiting without
    /// having been admitted; `acquire` ends the waiting too.
    pub fn enter(&mut self, cx: &mut Cx<'_>, request: RequestId, prompt: &Prompt) {
        todo!()
    }

    /// Asked when the request could be admitted. The first `Wait` starts the clock of the prefetch deadline.
    pub fn ready(&mut self, cx: &mut Cx<'_>, request: RequestId) -> Fetch {
        todo!()
    }

    /// The request no longer waits. Pages on their way still arrive, as cache.
    pub fn leave(&mut self, cx: &mut Cx<'_>, request: RequestId) {
        todo!()
    }

    /// Admits a request: pins what is cached of its prompt in L1, starts to load back what is in L2, and makes room
    /// for `tokens` tokens in all. At least the last token of the prompt is left to compute, unless `whole` (a sink,
    /// which computes nothing, may use a fully cached prompt). Says where each token comes from.
    ///
    /// # Errors
    /// [`Full`], and nothing has changed.
    pub fn acquire(
        &mut self,
        cx: &mut Cx<'_>,
        request: RequestId,
        prompt: &Prompt,
        tokens: u32,
        whole: bool,
    ) -> Result<(Lease, Served), Full> {
        todo!()
    }

    /// Makes room for `tokens` tokens in all.
    ///
    /// # Errors
    /// [`Full`], and nothing has changed.
    pub fn grow(&mut self, cx: &mut Cx<'_>, lease: &mut Lease, tokens: u32) -> Result<(), Full> {
        todo!()
    }

    /// Offers the next full pages of a sequence to the tree: `keys[i]` is page `lease.published_pages() + i`, whose KV
    /// is committed; `tokens` are their tokens (or empty where only keys are known). `parent` is the key before the
    /// first of them (the root of the namespace for page 0). `last` says that the sequence is at a natural end
    /// (prompt complete, finished, retracted); intermediate chunks do not count as uses.
    pub fn publish(
        &mut self,
        cx: &mut Cx<'_>,
        lease: &mut Lease,
        parent: PageKey,
        keys: &[PageKey],
        tokens: &[Token],
        priority: i32,
    ) {
        todo!()
    }

    /// Asks that the published pages of a lease be copied to L2 whatever the write policy, because their sequence is
    /// about to be retracted.
    pub fn save(&mut self, cx: &mut Cx<'_>, lease: &Lease) {
        todo!()
    }

    /// Gives the pages back. Published pages stay as cache, others become free (those that an operation still names
    /// once it has ended).
    pub fn release(&mut self, cx: &mut Cx<'_>, lease: Lease) {
        todo!()
    }

    /// A command of the cache has ended.
    pub fn on_done(&mut self, cx: &mut Cx<'_>, op: OpId, outcome: Outcome) -> Vec<KvEvent> {
        todo!()
    }

    /// An operator's order.
    pub fn control(&mut self, cx: &mut Cx<'_>, control: Control) {
        todo!()
    }

    /// Starts what can be started: backups, persists, fetches, the scan, retries, discards.
    pub fn settle(&mut self, cx: &mut Cx<'_>) {
        todo!()
    }

    /// When the cache wants a tick, and why.
    #[must_use]
    pub fn deadline(&self) -> Option<(Instant, &'static str)> {
        todo!()
    }

    /// Panics on a broken invariant; recounts every page of every tier. `leases` are all leases that live.
    pub fn check<'a>(&self, leases: impl Iterator<Item = &'a Lease>) {
        todo!()
    }
}

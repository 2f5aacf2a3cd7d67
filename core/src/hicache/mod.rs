//! The HiCache controller: moves pages between L1 (device), L2 (host) and L3 (storage).
//!
//! Words: *backup* L1 -> L2, *persist* L2 -> L3, *prefetch* L3 -> L2, *load back* L2 -> L1.
//!
//! Invariants:
//!
//! 1. Both ends of a move are pinned from its start until its completion; a time limit ends a wait, never a move
//!    (sglang #31427, #26728, #31296).
//! 2. A copy can be read only after the completion of the move that filled it (sglang #12073).
//! 3. Completions are handled when they arrive, whether or not anything is scheduled (sglang #20560, #20049, #35869).
//! 4. A failed write is remembered per page and tried again; a page that turns out to be missing from L3 is written
//!    when it is next in L2 (sglang #39444, #39701).
//! 5. L3 is asked first, host pages are reserved after (sglang #31402); what is reserved is counted exactly, so the
//!    capacity limit cannot creep (sglang #15439, #30053).

mod batches;
mod control;
mod fetch;
mod index;
mod tail;
mod view;
mod wait;
mod weigh;
mod writes;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use crate::config::{KvConfig, StorageMode};
use crate::cx::Cx;
use crate::digest::Digest;
use crate::id::{OpId, PageKey, RequestId};
use crate::kv::KvEvent;
use crate::kv::tiers::{BatchId, Tiers};
use crate::op::{Command, Fault, Outcome};
use crate::radix::PageId;
use crate::time::{Instant, earlier};

use self::batches::Batch;
pub use self::fetch::State as FetchStage;
pub(crate) use self::fetch::Waiting;
pub(crate) use self::index::{Index, Stored};
pub use self::tail::Ahead;
pub use self::view::{FetchPlan, MoveView, Prospect, StorageView, Weighed};

/// A move in flight and the pages it pins.
#[derive(Debug)]
enum Move {
    /// L1 -> L2.
    Backup(Vec<PageId>),
    /// L2 -> L1, for these requests, some of which may have given the pages back; those from the given one on are not
    /// good if it fails.
    LoadBack { pages: Vec<PageId>, users: Vec<(RequestId, u32)> },
    /// L2 -> L3.
    Persist { pages: Vec<PageId>, era: u64 },
    /// L3 -> L2.
    Fetch { batch: BatchId, era: u64 },
    /// Which keys does L3 hold?
    Query(RequestId),
    /// What does L3 hold?
    Scan,
    /// Remove from L3.
    Discard(Vec<PageKey>),
    /// Remove everything from L3.
    Wipe,
    /// Note uses in L3.
    Touch,
}

/// Whether L3 is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Storage {
    /// Not attached.
    Off,
    /// The index is being rebuilt; the key is where the scan goes on, the operation the one that is awaited.
    Scanning { next: Option<PageKey>, scan: Option<OpId> },
    /// Attached.
    On,
}

/// State of the controller. Tree, pools and context are lent to it.
#[derive(Debug)]
pub(crate) struct HiCache {
    config: KvConfig,
    storage: Storage,
    pub(crate) index: Index,
    moves: BTreeMap<OpId, Move>,
    /// Requests that wait and for which L3 matters.
    pub(crate) waiting: BTreeMap<RequestId, Waiting>,
    /// Waiting requests whose prefetch found no room; oldest first.
    parked: VecDeque<RequestId>,
    batches: BTreeMap<BatchId, Batch>,
    /// Batches that wait for a place in the storage lane.
    batch_queue: VecDeque<BatchId>,
    batch_number: u64,
    /// Host pages that prefetches hold.
    fetching_pages: u32,
    backup_queue: VecDeque<(PageId, PageKey)>,
    persist_queue: VecDeque<(PageId, PageKey)>,
    /// Failed writes by the time of their next attempt.
    retries: BTreeSet<(Instant, PageKey)>,
    /// Attempts and place of pages whose last write failed.
    failed: BTreeMap<PageKey, (u32, PageId)>,
    scan_not_before: Instant,
    /// Counts attaches, detaches and clears: what a command of an earlier era says about L3 no longer holds.
    era: u64,
    /// Wipes in flight. L3 orders nothing, so nothing is written meanwhile.
    wipes: u32,
    /// Failed discards are not tried again before.
    discard_not_before: Option<Instant>,
    /// Uses that L3 has not been told of, oldest first; each from the root on.
    touches: VecDeque<Vec<PageKey>>,
    touched_keys: usize,
    storage_ops: u32,
    backup_ops: u32,
}

/// Most backups in flight: one that runs and one behind it keep the copy engine busy.
const BACKUP_OPS_MAX: u32 = 2;
/// Most pages of one backup, so that pins on L1 are not held for long.
const BACKUP_PAGES_MAX: usize = 256;

impl HiCache {
    pub(crate) fn new(config: &KvConfig) -> Self {
        let storage = match config.storage {
            StorageMode::None => Storage::Off,
            StorageMode::Private => Storage::Scanning { next: None, scan: None },
            StorageMode::Shared => Storage::On,
        };
        Self {
            storage,
            index: Index::new(config.storage_pages_max),
            config: config.clone(),
            moves: BTreeMap::new(),
            waiting: BTreeMap::new(),
            parked: VecDeque::new(),
            batches: BTreeMap::new(),
            batch_queue: VecDeque::new(),
            batch_number: 0,
            fetching_pages: 0,
            backup_queue: VecDeque::new(),
            persist_queue: VecDeque::new(),
            retries: BTreeSet::new(),
            failed: BTreeMap::new(),
            scan_not_before: Instant::ZERO,
            era: 0,
            wipes: 0,
            discard_not_before: None,
            touches: VecDeque::new(),
            touched_keys: 0,
            storage_ops: 0,
            backup_ops: 0,
        }
    }

    pub(crate) const fn has_storage(&self) -> bool {
        !matches!(self.storage, Storage::Off)
    }

    /// Waiting requests for which L3 matters, prefetches and their pages.
    pub(crate) fn fetching(&self) -> u32 {
        self.waiting.len() as u32 + self.batches.len() as u32 + self.fetching_pages
    }

    /// Pages in the queues of writes.
    pub(crate) fn writes_queued(&self) -> u64 {
        (self.backup_queue.len() + self.persist_queue.len()) as u64
    }

    pub(crate) const fn has_host(&self) -> bool {
        self.config.host_pages > 0
    }

    /// Starts a load back of pages whose host copies are readable and whose device copies are attached and pinned by
    /// the caller. `first` is the index in the sequence of the first of them.
    pub(crate) fn load_back(
        &mut self,
        cx: &mut Cx<'_>,
        tiers: &mut Tiers,
        request: RequestId,
        first: u32,
        pages: Vec<PageId>,
    ) -> OpId {
        let mut moves = Vec::with_capacity(pages.len());
        for &page in &pages {
            tiers.pin_host(page);
            tiers.pin_device(page);
            let residence = tiers.radix.get(page);
            let host = residence.host.expect("pinned above");
            moves.push((host, residence.device.expect("attached by the caller")));
        }
        cx.metrics.load_back_pages += pages.len() as u64;
        let op = cx.start(crate::cx::Owner::Kv, Vec::new(), Command::LoadBack(moves));
        for &page in &pages {
            tiers.radix.get_mut(page).loading = Some(op);
        }
        self.moves.insert(op, Move::LoadBack { pages, users: alloc::vec![(request, first)] });
        op
    }

    /// Another sequence uses pages that a load back still fills.
    pub(crate) fn share_load(&mut self, op: OpId, request: RequestId, first: u32) {
        if let Some(Move::LoadBack { users, .. }) = self.moves.get_mut(&op) {
            match users.iter_mut().find(|(user, _)| *user == request) {
                Some((_, from)) => *from = first.min(*from),
                None => users.push((request, first)),
            }
        }
    }

    /// Takes a completion.
    pub(crate) fn on_done(
        &mut self,
        cx: &mut Cx<'_>,
        tiers: &mut Tiers,
        op: OpId,
        outcome: Outcome,
        events: &mut Vec<KvEvent>,
    ) {
        let Some(done) = self.moves.remove(&op) else {
            cx.metrics.stale_inputs += 1;
            return;
        };
        match done {
            Move::Backup(pages) => self.backed_up(cx, tiers, &pages, &outcome),
            Move::LoadBack { pages, users } => self.loaded(cx, tiers, op, (&pages, &users), &outcome, events),
            Move::Persist { pages, era } => self.persisted(cx, tiers, &pages, era, &outcome),
            Move::Fetch { batch, era } => self.fetched(cx, tiers, batch, era, &outcome),
            Move::Query(request) => self.answered(cx, tiers, op, request, outcome),
            Move::Scan => self.scanned(cx, tiers, op, outcome),
            Move::Discard(keys) => self.discarded(cx, &keys, &outcome),
            Move::Wipe => {
                self.storage_ops -= 1;
                self.wipes -= 1;
            }
            Move::Touch => self.storage_ops -= 1,
        }
    }

    fn loaded(
        &mut self,
        cx: &mut Cx<'_>,
        tiers: &mut Tiers,
        load: OpId,
        (pages, users): (&[PageId], &[(RequestId, u32)]),
        outcome: &Outcome,
        events: &mut Vec<KvEvent>,
    ) {
        let good = *outcome == Outcome::Moved;
        // From the end of the chain, so that a copy that is given up is one.
        for &page in pages.iter().rev() {
            let residence = tiers.radix.get_mut(page);
            residence.loading = None;
            residence.dead = residence.dead || !good;
            let (key, dead) = (tiers.radix.key(page), tiers.radix.get(page).dead);
            tiers.unpin_host(page);
            if good && !dead {
                tiers.announce(page, crate::event::Tier::Device);
                if self.gives_up_host_copy(tiers, page, key) {
                    tiers.drop_host_failed(page);
                }
            }
            tiers.unpin_device(page);
        }
        if !good {
            cx.mark("hicache.load_back_failed");
            events.extend(users.iter().map(|&(request, pages)| KvEvent::Shorter { request, load, pages }));
        }
    }

    /// The items of a command that failed, whatever form the outcome has.
    fn failures(outcome: &Outcome, count: usize) -> BTreeMap<u32, Fault> {
        match outcome {
            Outcome::Moved => BTreeMap::new(),
            Outcome::Partly(failed) => failed.iter().copied().collect(),
            Outcome::Failed(fault) => (0..count as u32).map(|index| (index, *fault)).collect(),
            Outcome::Sampled(_) | Outcome::Found(_) | Outcome::Scanned { .. } => {
                (0..count as u32).map(|index| (index, Fault::Io)).collect()
            }
        }
    }

    /// Starts what can be started.
    pub(crate) fn settle(&mut self, cx: &mut Cx<'_>, tiers: &mut Tiers) {
        self.settle_scan(cx);
        self.settle_retries(cx, tiers);
        self.settle_backups(cx, tiers);
        self.settle_parked(cx, tiers);
        self.settle_fetches(cx, tiers);
        self.settle_persists(cx, tiers);
        self.settle_quota(cx);
    }

    /// When a tick is wanted.
    pub(crate) fn deadline(&self) -> Option<(Instant, &'static str)> {
        let scan = matches!(self.storage, Storage::Scanning { scan: None, .. })
            .then_some((self.scan_not_before, "scan of the storage"));
        let retry = self.retries.first().map(|&(at, _)| (at, "retry of a failed write"));
        let discard = self.discard_not_before.map(|at| (at, "retry of a failed discard"));
        earlier(earlier(scan, retry), discard)
    }

    /// Pages of the host pool that moves and queues account for are in the tree; what is left to recount is the rest.
    pub(crate) fn check(&self, tiers: &Tiers) {
        self.index.check();
        let held: u32 = self.batches.values().map(|batch| batch.pages.len() as u32).sum();
        assert_eq!(held, self.fetching_pages, "host pages held by prefetches");
        let queued = self.batches.values().filter(|batch| batch.op.is_none()).count();
        assert_eq!(queued, self.batch_queue.len(), "prefetch batches that wait");
        for (id, batch) in &self.batches {
            for &page in &batch.pages {
                assert_eq!(
                    tiers.radix.get(page).filling,
                    crate::kv::tiers::HostFill::Fetch(*id),
                    "a page of a prefetch is filled by it"
                );
            }
        }
        let storage = self.moves.values().filter(|one| !matches!(one, Move::Backup(_) | Move::LoadBack { .. })).count();
        assert_eq!(storage as u32, self.storage_ops, "storage operations in flight");
        for (request, waiting) in &self.waiting {
            waiting.check(*request, &self.batches);
        }
    }

    pub(crate) fn digest(&self, digest: &mut Digest) {
        self.index.digest(digest);
        for op in self.moves.keys() {
            digest.value(op);
        }
        for (request, waiting) in &self.waiting {
            digest.value(request);
            waiting.digest(digest);
        }
        for id in &self.batch_queue {
            digest.word(id.0);
        }
        for (page, _) in self.backup_queue.iter().chain(&self.persist_queue) {
            digest.word(u64::from(page.0));
        }
        for (at, key) in &self.retries {
            digest.value(at);
            digest.value(key);
        }
        digest.word(u64::from(self.fetching_pages));
    }
}

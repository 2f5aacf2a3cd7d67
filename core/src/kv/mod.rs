//! The cache of one worker, as scheduler and hand-off see it: lookup, lease, publish, release.
//!
//! ```text
//!            ┌ Kv ───────────────────────────────────────────────┐
//!  sched ───▶│ lease: page tables   tiers: tree, pools, eviction │──▶ LoadBack, Backup
//!            │ served: where tokens come from                    │
//!            │ hicache (lent the tiers): moves, L3               │──▶ Query, Prefetch, Persist, ...
//!            └───────────────────────────────────────────────────┘
//! ```

mod account;
mod lease;
mod occupancy;
mod served;
mod tail;
#[cfg(test)]
mod tests;
pub(crate) mod tiers;
mod view;

use alloc::vec::Vec;

use crate::config::KvConfig;
use crate::cx::Cx;
use crate::digest::Digest;
use crate::event::{Control, Served, Tier};
use crate::hicache::HiCache;
use crate::id::{OpId, PageKey, RequestId, Token};
use crate::limits::CHANGES_PER_PUBLISH;
use crate::mutant::Mutant;
use crate::op::{Outcome, Output, Prompt};
use crate::radix::PageId;
use crate::time::Instant;

pub use self::lease::Lease;
pub use self::occupancy::Occupancy;
use self::tiers::Tiers;
pub use self::view::TierView;
pub use crate::hicache::{Ahead, FetchPlan, FetchStage, MoveView, Prospect, StorageView, Weighed};

/// Not enough device pages can be freed now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// What a lookup would find, in pages of the prompt. Looking changes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hit {
    /// Leading pages in L1.
    pub device: u32,
    /// Pages behind those that are in L2, without a gap.
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
    /// named the load in `after` fail with [`crate::op::Fault::Prerequisite`]. Call [`Kv::shorten`] and compute on
    /// from there.
    Shorter {
        /// Which request.
        request: RequestId,
        /// Which load. A lease that is not filled by it is as good as before: the request has another one by now.
        load: OpId,
        /// Good pages.
        pages: u32,
    },
}

/// Radix cache, pools and HiCache controller of one worker.
#[derive(Debug)]
pub struct Kv {
    config: KvConfig,
    tiers: Tiers,
    hicache: HiCache,
}

impl Kv {
    /// An empty cache. With a private L3 the first `settle` starts a scan.
    #[must_use]
    pub fn new(config: KvConfig) -> Self {
        Self { tiers: Tiers::new(&config), hicache: HiCache::new(&config), config }
    }

    /// Its configuration.
    #[must_use]
    pub const fn config(&self) -> &KvConfig {
        &self.config
    }

    /// What L1 and L2 hold of a prompt. Never splits, touches or pins.
    #[must_use]
    pub fn lookup(&self, prompt: &Prompt) -> Hit {
        let mut path = Vec::new();
        if let Some(last) = self.tiers.radix.lookup(&prompt.keys).last {
            self.tiers.radix.path(last, &mut path);
        }
        self.measure(&path)
    }

    fn measure(&self, path: &[PageId]) -> Hit {
        let residences = || path.iter().map(|&page| self.tiers.radix.get(page));
        let device = residences().take_while(|page| page.device.is_some() && !page.dead).count();
        let host = residences().skip(device).take_while(|page| page.readable_host().is_some()).count();
        Hit { device: device as u32, host: host as u32 }
    }

    /// Device pages that are free or can be freed, at once or (a write back) after a copy.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.tiers.gpu.free_count() + self.tiers.idle
    }

    /// Device pages in all.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.tiers.gpu.total()
    }

    /// Pages for so many tokens.
    #[must_use]
    pub fn pages(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.config.page_size)
    }

    /// Pages in use: (device, host), those of the cache included.
    #[must_use]
    pub fn used(&self) -> (u32, u32) {
        (self.tiers.gpu.total() - self.tiers.gpu.free_count(), self.tiers.host.total() - self.tiers.host.free_count())
    }

    /// Objects that the index of L3 counts as present.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.hicache.index.present()
    }

    /// A request starts to wait: its pages may be fetched from L3. Call [`Kv::leave`] when it stops waiting without
    /// having been admitted; `acquire` ends the waiting too, unless the lease has a tail. `computes`: what no cache has is
    /// computed here, so that it can be meanwhile.
    pub fn enter(&mut self, cx: &mut Cx<'_>, request: RequestId, prompt: &Prompt, computes: bool) {
        self.hicache.enter(cx, &mut self.tiers, request, prompt, computes);
    }

    /// Asked when the request could be admitted. The first `Wait` starts the clock of the prefetch deadline. `is_busy`:
    /// others would have to wait for what it computes.
    pub fn ready(&mut self, cx: &mut Cx<'_>, request: RequestId, is_busy: bool) -> Fetch {
        self.hicache.ready(cx, &mut self.tiers, request, is_busy)
    }

    /// The request no longer waits, or no longer for its tail. Pages on their way still arrive, as cache.
    pub fn leave(&mut self, request: RequestId) {
        self.hicache.leave(&mut self.tiers, request);
    }

    /// Admits a request: pins what is cached of its prompt in L1, starts to load back what is in L2, and makes room
    /// for `tokens` tokens in all. At least the last token of the prompt is left to compute, unless `whole` (a sink,
    /// which computes nothing, may use a fully cached prompt). Says where each token comes from.
    ///
    /// # Errors
    /// [`Full`], and the request holds nothing.
    pub fn acquire(
        &mut self,
        cx: &mut Cx<'_>,
        request: RequestId,
        prompt: &Prompt,
        tokens: u32,
        whole: bool,
    ) -> Result<(Lease, Served), Full> {
        let page_size = self.config.page_size;
        let full_pages = prompt.keys.len() as u32;
        let cap = if whole { full_pages } else { (prompt.length - 1) / page_size };
        let mut path = Vec::new();
        let found = self.tiers.radix.lookup(&prompt.keys);
        if let Some(last) = found.last {
            self.tiers.radix.path(last, &mut path);
        }
        let known = path.len() as u32;
        let reach = self.reach(&path);
        path.truncate(cap as usize);
        let mut hit = self.measure(&path);
        let refusal = self.refuse_load(cx, prompt, hit);
        if refusal.is_some() {
            hit.host = 0;
        }
        path.truncate((hit.device + hit.host) as usize);

        for &page in &path[..hit.device as usize] {
            self.tiers.pin_device(page);
            if self.config.mutation.is(Mutant::EvictPinned) {
                self.tiers.l1.offer(page);
            }
        }
        for &page in &path[hit.device as usize..] {
            self.tiers.pin_host(page);
        }
        let need = self.pages(tokens).max(hit.device + hit.host) - hit.device;
        let room = self.make_room(cx, need);
        for &page in path[hit.device as usize..].iter().rev() {
            self.tiers.unpin_host(page);
        }
        if !room {
            for &page in path[..hit.device as usize].iter().rev() {
                self.tiers.unpin_device(page);
            }
            return Err(Full);
        }

        let has_tail = refusal.is_none() && self.hicache.has_tail(request, hit.device + hit.host);
        let left = if has_tail { None } else { self.hicache.leave(&mut self.tiers, request) };
        let waited = left.as_ref().or_else(|| self.hicache.waiting.get(&request));
        let served = self.served(prompt, &path, hit, (known, reach), refusal, waited, whole);
        let mut lease = Lease {
            request,
            table: Vec::with_capacity((hit.device + need) as usize),
            entries: Vec::with_capacity(full_pages.max(1) as usize),
            published: hit.device + hit.host,
            cached: (hit.device + hit.host) * page_size,
            loading: Vec::new(),
            has_tail,
        };
        for (index, &page) in path[..hit.device as usize].iter().enumerate() {
            let residence = self.tiers.radix.get(page);
            lease.table.push(residence.device.expect("pinned above"));
            if let Some(op) = residence.loading {
                self.hicache.share_load(op, request, index as u32);
                if lease.loading.last() != Some(&op) {
                    lease.loading.push(op);
                }
            }
        }
        if hit.host > 0 {
            let loads = path[hit.device as usize..].to_vec();
            for &page in &loads {
                let gpu = self.tiers.gpu.allocate().expect("room was made");
                self.tiers.attach_device(page, gpu, 0);
                self.tiers.pin_device(page);
                lease.table.push(gpu);
            }
            let load = self.hicache.load_back(cx, &mut self.tiers, request, hit.device, loads);
            if !self.config.mutation.is(Mutant::LoadBackDoneAtStart) {
                lease.loading.push(load);
            }
        }
        lease.entries.extend(path.iter().map(|page| page.0));
        while (lease.table.len() as u32) < hit.device + need {
            lease.table.push(self.tiers.gpu.allocate().expect("room was made"));
        }
        self.use_pages(&path);
        cx.metrics.device_hit_tokens += u64::from(served.device);
        cx.metrics.host_hit_tokens += u64::from(served.host);
        cx.metrics.storage_hit_tokens += u64::from(served.storage);
        Ok((lease, served))
    }

    /// Notes a use of each page, and writes down what the policy wants written.
    fn use_pages(&mut self, path: &[PageId]) {
        let stamp = self.tiers.next_stamp();
        for &page in path {
            self.tiers.touch(page, stamp);
            if self.hicache.has_host() {
                self.hicache.used(&mut self.tiers, page);
            }
        }
        self.hicache.note_use(&self.tiers, path);
    }

    /// Frees device pages until `count` are free. What has to be saved first is saved, and its room comes later.
    fn make_room(&mut self, cx: &mut Cx<'_>, count: u32) -> bool {
        if self.available() < count {
            return false;
        }
        while self.tiers.gpu.free_count() < count {
            let Some(victim) = self.tiers.l1.victim() else { return false };
            if self.hicache.must_save(&self.tiers, victim) {
                let short = count - self.tiers.gpu.free_count();
                let run = self.unsaved_run(victim, short);
                if self.hicache.backup(cx, &mut self.tiers, &run) == run.len() {
                    cx.mark("kv.write_back");
                    continue;
                }
                // L2 had no room for the end of the run: it is given up, nobody waits for ever.
                cx.mark("kv.write_back_without_room");
            }
            self.tiers.drop_device(victim);
        }
        true
    }

    /// The end of a chain that is to be saved before it is dropped: up to `count` idle pages without a host copy,
    /// parents first.
    fn unsaved_run(&self, end: PageId, count: u32) -> Vec<PageId> {
        let mut run = alloc::vec![end];
        let mut next = self.tiers.radix.parent(end);
        while let Some(page) = next
            && (run.len() as u32) < count
        {
            let residence = self.tiers.radix.get(page);
            let idle = residence.device.is_some_and(|gpu| self.tiers.gpu.pins(gpu) == 0);
            if !idle || residence.device_children != 1 || residence.host.is_some() {
                break;
            }
            run.push(page);
            next = self.tiers.radix.parent(page);
        }
        run.reverse();
        run
    }

    /// Makes room for `tokens` tokens in all.
    ///
    /// # Errors
    /// [`Full`], and the lease is as it was.
    pub fn grow(&mut self, cx: &mut Cx<'_>, lease: &mut Lease, tokens: u32) -> Result<(), Full> {
        let have = lease.table.len() as u32;
        let want = self.pages(tokens);
        if want <= have {
            return Ok(());
        }
        if !self.make_room(cx, want - have) {
            return Err(Full);
        }
        for _ in have..want {
            lease.table.push(self.tiers.gpu.allocate().expect("room was made"));
        }
        Ok(())
    }

    /// Offers the next full pages of a sequence to the tree: `keys[i]` is page `lease.published_pages() + i`, whose KV
    /// is committed; `tokens` are their tokens (or empty where only keys are known). `root` is the root key of the
    /// prompt's namespace.
    ///
    /// A page that the tree has from somebody else meanwhile stays with the sequence until its release: forwards in
    /// flight may read it.
    ///
    /// # Panics
    /// If the lease has fewer pages than that.
    pub fn publish(
        &mut self,
        _cx: &mut Cx<'_>,
        lease: &mut Lease,
        root: PageKey,
        keys: &[PageKey],
        tokens: &[Token],
        priority: i32,
    ) {
        if keys.is_empty() {
            return;
        }
        let page_size = self.config.page_size as usize;
        let from = lease.published as usize;
        assert!(from + keys.len() <= lease.table.len(), "only pages that the sequence has can be published");
        let parent = from.checked_sub(1).map(|last| PageId(lease.entries[last]));
        let mut pages = Vec::with_capacity(keys.len());
        self.tiers.radix.insert(parent, keys, &mut pages);
        let stamp = self.tiers.next_stamp();
        for (offset, &page) in pages.iter().enumerate() {
            let gpu = lease.table[from + offset];
            let residence = self.tiers.radix.get_mut(page);
            residence.root = root;
            if residence.tokens.is_empty()
                && let Some(page_tokens) = tokens.get(offset * page_size..(offset + 1) * page_size)
            {
                residence.tokens = page_tokens.to_vec();
            }
            let is_known = residence.device.is_some();
            match residence.device {
                None => {
                    residence.dead = false;
                    self.tiers.attach_device(page, gpu, priority);
                    if !self.config.mutation.is(Mutant::PublishLosesPin) {
                        self.tiers.pin_device(page);
                    }
                    self.tiers.announce(page, Tier::Device);
                    self.tiers.reconsider_host(page);
                }
                Some(same) if same == gpu => {
                    // Computed again into the page that a failed load had left bad; the sequence pins it already.
                    residence.dead = false;
                    self.tiers.announce(page, Tier::Device);
                    self.tiers.reconsider_host(page);
                }
                // Somebody else's copy; pinned once, so that the place in the tree stays.
                Some(_) if from + offset < lease.entries.len() => {}
                Some(_) => self.tiers.pin_device(page),
            }
            if let Some(slot) = lease.entries.get_mut(from + offset) {
                *slot = page.0;
            } else {
                lease.entries.push(page.0);
            }
            self.tiers.l1.raise_priority(page, priority);
            if is_known {
                self.tiers.touch(page, stamp);
            }
            if self.hicache.has_host() {
                self.hicache.used(&mut self.tiers, page);
            }
        }
        lease.published += keys.len() as u32;
    }

    /// After [`KvEvent::Shorter`]: only `pages` leading pages are good; the rest is to be computed and published again.
    pub fn shorten(&mut self, lease: &mut Lease, pages: u32) {
        lease.published = lease.published.min(pages);
        lease.cached = lease.cached.min(pages * self.config.page_size);
    }

    /// Asks that the published pages of a lease be copied to L2 whatever the write policy, because their sequence is
    /// about to be retracted.
    pub fn save(&mut self, lease: &Lease) {
        for &entry in &lease.entries[..lease.published as usize] {
            self.hicache.queue_backup(&mut self.tiers, PageId(entry));
        }
    }

    /// Gives the pages back. Published pages stay as cache, the others become free.
    pub fn release(&mut self, lease: Lease) {
        if lease.has_tail {
            self.hicache.leave(&mut self.tiers, lease.request);
        }
        let stamp = self.tiers.next_stamp();
        let forgotten = usize::from(self.config.mutation.is(Mutant::ReleaseForgetsPage));
        for index in (lease.entries.len()..lease.table.len().saturating_sub(forgotten)).rev() {
            self.tiers.gpu.release(lease.table[index]);
        }
        for (index, &entry) in lease.entries.iter().enumerate().rev() {
            let page = PageId(entry);
            let own = lease.table[index];
            self.tiers.refresh(page, stamp);
            let shared = self.tiers.radix.get(page).device;
            self.tiers.unpin_device(page);
            if shared != Some(own) {
                self.tiers.gpu.release(own);
            }
        }
    }

    /// A command of the cache has ended.
    pub fn on_done(&mut self, cx: &mut Cx<'_>, op: OpId, outcome: Outcome) -> Vec<KvEvent> {
        let mut events = Vec::new();
        self.hicache.on_done(cx, &mut self.tiers, op, outcome, &mut events);
        events
    }

    /// An operator's order.
    pub fn control(&mut self, cx: &mut Cx<'_>, control: Control) {
        match control {
            Control::Flush => self.tiers.flush(),
            Control::AttachStorage => self.hicache.attach(&mut self.tiers),
            Control::DetachStorage => self.hicache.detach(&mut self.tiers),
            Control::ClearStorage => self.hicache.clear(cx, &mut self.tiers),
            Control::Drain => {}
        }
    }

    /// Starts what can be started: backups, persists, fetches, the scan, retries, discards.
    pub fn settle(&mut self, cx: &mut Cx<'_>) {
        if self.hicache.has_host() {
            self.hicache.settle(cx, &mut self.tiers);
        }
        cx.metrics.device_evicted_pages = self.tiers.device_evicted;
        cx.metrics.host_evicted_pages = self.tiers.host_evicted;
        if !self.tiers.changes.is_empty() {
            let mut changes = core::mem::take(&mut self.tiers.changes);
            while !changes.is_empty() {
                let rest = changes.split_off(changes.len().min(CHANGES_PER_PUBLISH));
                cx.out.push(Output::Publish(changes));
                changes = rest;
            }
        }
    }

    /// When the cache wants a tick, and why.
    #[must_use]
    pub fn deadline(&self) -> Option<(Instant, &'static str)> {
        self.hicache.deadline()
    }

    /// Feeds all state that can change the future.
    pub fn digest(&self, digest: &mut Digest) {
        self.tiers.digest(digest);
        self.hicache.digest(digest);
    }

    /// Panics on a broken invariant; recounts every page of every tier. `leases` are all leases that live.
    pub fn check<'a>(&self, leases: impl Iterator<Item = &'a Lease>) {
        let (device, host) = self.tiers.check();
        self.hicache.check(&self.tiers);
        let mut private = 0;
        for lease in leases {
            for (index, &gpu) in lease.table.iter().enumerate() {
                assert!(self.tiers.gpu.is_allocated(gpu), "{:?} holds a device page that is free", lease.request);
                match lease.entries.get(index) {
                    None => private += 1,
                    Some(&entry) => {
                        let shared = self.tiers.radix.get(PageId(entry)).device;
                        let shared = shared.expect("the tree keeps what a lease pins");
                        assert!(self.tiers.gpu.pins(shared) > 0, "a page of a lease is pinned");
                        private += u32::from(shared != gpu);
                    }
                }
            }
        }
        let (gpu, hosts) = (&self.tiers.gpu, &self.tiers.host);
        assert_eq!(gpu.total(), gpu.free_count() + device + private, "device pages: free + tree + private");
        assert_eq!(hosts.total(), hosts.free_count() + host, "host pages: free + tree");
    }
}

//! Where each page of the tree is: the radix tree, the two memory pools and what may leave them.
//!
//! Invariants, recounted by [`Tiers::check`]:
//!
//! 1. State and pins belong to pages, never to tree nodes; a split cannot lose them (sglang #16946, #38480).
//! 2. A page may leave a tier only when nothing pins it there, nothing fills it, and no child of it is in that tier:
//!    each tier holds prefixes, and what is dropped is always the end of a chain.
//! 3. `idle` counts the device pages of the tree that nothing pins: with the free ones they are what can be had.
//! 4. A page that no tier holds stays in the tree only while a child needs it as a place to hang from.

use alloc::vec::Vec;

use crate::config::KvConfig;
use crate::digest::Digest;
use crate::event::{KvChange, Tier};
use crate::evict::Evictor;
use crate::id::{GpuPage, HostPage, OpId, PageKey, Token};
use crate::pool::Pool;
use crate::radix::{PageId, Radix};

/// A batch of a prefetch, started or not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct BatchId(pub(crate) u64);

/// What is being written into a page's host copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum HostFill {
    /// Nothing: the copy, if there is one, can be read.
    #[default]
    None,
    /// L1's copy.
    Backup,
    /// L3's object.
    Fetch(BatchId),
}

/// In which tiers one page of the tree is, and what is under way.
///
/// ```text
///   L1:  absent ──load back──▶ loading ──done──▶ present ──evict──▶ absent
///           └───────────publish────────────────────▲
///   L2:  absent ──backup / fetch──▶ filling ──done──▶ present ──evict──▶ absent
/// ```
#[derive(Debug, Default)]
pub(crate) struct Residence {
    pub(crate) device: Option<GpuPage>,
    /// The load back that fills the device copy.
    pub(crate) loading: Option<OpId>,
    pub(crate) host: Option<HostPage>,
    pub(crate) filling: HostFill,
    /// Child pages with a device copy.
    pub(crate) device_children: u32,
    /// Child pages with a host copy.
    pub(crate) host_children: u32,
    /// Waits to be copied to L2.
    pub(crate) backup_queued: bool,
    /// Waits to be written to L3.
    pub(crate) persist_queued: bool,
    /// Flushed, or its load failed: must not be found, and leaves as soon as nothing pins it.
    pub(crate) dead: bool,
    /// Fetched from L3 and not used yet.
    pub(crate) fetched: bool,
    /// The last copy of it to L2 failed.
    pub(crate) unsavable: bool,
    /// Was in L1 or L2 and was dropped.
    pub(crate) dropped: bool,
    /// Root key of the chain.
    pub(crate) root: PageKey,
    pub(crate) tokens: Vec<Token>,
}

impl Residence {
    /// The host copy, if it can be read.
    pub(crate) fn readable_host(&self) -> Option<HostPage> {
        if self.filling == HostFill::None && !self.dead { self.host } else { None }
    }
}

/// Radix tree, pools and eviction order of L1 and L2.
#[derive(Debug)]
pub(crate) struct Tiers {
    pub(crate) radix: Radix<Residence>,
    pub(crate) gpu: Pool<GpuPage>,
    pub(crate) host: Pool<HostPage>,
    pub(crate) l1: Evictor,
    pub(crate) l2: Evictor,
    /// Device pages of the tree that nothing pins.
    pub(crate) idle: u32,
    /// Counts uses; the order of eviction hangs on it, not on time.
    stamp: u64,
    events: bool,
    pub(crate) changes: Vec<KvChange>,
    pub(crate) device_evicted: u64,
    pub(crate) host_evicted: u64,
    /// Host pages came free, or can be freed, since the flag was cleared.
    pub(crate) host_freed: bool,
}

impl Tiers {
    pub(crate) fn new(config: &KvConfig) -> Self {
        let pages = config.gpu_pages.saturating_add(config.host_pages).min(1 << 20);
        let mut l1 = Evictor::new(config.device_eviction, config.gpu_pages);
        let mut l2 = Evictor::new(config.host_eviction, config.host_pages);
        l1.reserve(pages);
        if config.host_pages > 0 {
            l2.reserve(pages);
        }
        Self {
            radix: Radix::with_capacity(pages),
            gpu: Pool::new(config.gpu_pages),
            host: Pool::new(config.host_pages),
            l1,
            l2,
            idle: 0,
            stamp: 0,
            events: config.kv_events,
            changes: Vec::new(),
            device_evicted: 0,
            host_evicted: 0,
            host_freed: false,
        }
    }

    /// The stamp of a new use.
    pub(crate) fn next_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// The key before a page: its parent's, or the root of its namespace.
    pub(crate) fn parent_key(&self, page: PageId) -> PageKey {
        self.radix.parent(page).map_or_else(|| self.radix.get(page).root, |parent| self.radix.key(parent))
    }

    /// Notes a use of a page in each tier that holds it.
    pub(crate) fn touch(&mut self, page: PageId, stamp: u64) {
        let residence = self.radix.get(page);
        let (device, host) = (residence.device.is_some(), residence.host.is_some());
        if device {
            self.l1.touched(page, stamp);
        }
        if host {
            self.l2.touched(page, stamp);
        }
    }

    /// Notes the end of a use: what was used last leaves last.
    pub(crate) fn refresh(&mut self, page: PageId, stamp: u64) {
        let residence = self.radix.get(page);
        let (device, host) = (residence.device.is_some(), residence.host.is_some());
        if device {
            self.l1.refreshed(page, stamp);
        }
        if host {
            self.l2.refreshed(page, stamp);
        }
    }

    // ---- L1 ----------------------------------------------------------------------------------------------------

    /// Gives a page of the tree its device copy, which nothing pins yet.
    pub(crate) fn attach_device(&mut self, page: PageId, gpu: GpuPage, priority: i32) {
        let stamp = self.stamp;
        let key = self.radix.key(page);
        let residence = self.radix.get_mut(page);
        assert!(residence.device.is_none(), "a page has one device copy");
        residence.device = Some(gpu);
        residence.dropped = false;
        residence.fetched = false;
        residence.unsavable = false;
        if let Some(parent) = self.radix.parent(page) {
            self.radix.get_mut(parent).device_children += 1;
            self.l1.withdraw(parent);
        }
        self.idle += 1;
        self.l1.admitted(page, key, stamp, priority);
    }

    /// Tells routers that a page can be read in a tier.
    pub(crate) fn announce(&mut self, page: PageId, tier: Tier) {
        if self.events {
            let key = self.radix.key(page);
            let parent = self.parent_key(page);
            self.changes.push(KvChange::Stored { key, parent, tier });
        }
    }

    /// Pins the device copy of a page.
    pub(crate) fn pin_device(&mut self, page: PageId) {
        let gpu = self.radix.get(page).device.expect("only a device copy that is there can be pinned");
        if self.gpu.pins(gpu) == 0 {
            self.idle -= 1;
            self.l1.withdraw(page);
        }
        self.gpu.pin(gpu);
    }

    /// Takes one pin off the device copy of a page.
    pub(crate) fn unpin_device(&mut self, page: PageId) {
        let gpu = self.radix.get(page).device.expect("a pinned device copy stays");
        if self.gpu.unpin(gpu) == 0 {
            self.idle += 1;
            self.reconsider_device(page);
        }
    }

    /// After a pin or a child is gone: the page may have become the end of its chain in L1. A hidden one goes, and so
    /// may those before it, in a loop: chains are as long as prompts.
    fn reconsider_device(&mut self, page: PageId) {
        let mut next = Some(page);
        while let Some(page) = next {
            let residence = self.radix.get(page);
            let Some(gpu) = residence.device else { return };
            if residence.device_children > 0 || self.gpu.pins(gpu) > 0 {
                return;
            }
            if !residence.dead {
                self.l1.offer(page);
                return;
            }
            next = self.detach_device(page);
        }
    }

    /// Takes the device copy away and frees its page.
    ///
    /// # Panics
    /// If something pins it or a child needs it.
    pub(crate) fn drop_device(&mut self, page: PageId) {
        if let Some(parent) = self.detach_device(page) {
            self.reconsider_device(parent);
        }
    }

    /// The work of [`Tiers::drop_device`] on the page alone. Returns the page before it, which has lost a child.
    fn detach_device(&mut self, page: PageId) -> Option<PageId> {
        let key = self.radix.key(page);
        let residence = self.radix.get_mut(page);
        assert_eq!(residence.device_children, 0, "what is dropped is the end of a chain");
        let gpu = residence.device.take().expect("only a device copy that is there can be dropped");
        residence.dropped = true;
        self.idle -= 1;
        self.gpu.release(gpu);
        self.l1.withdraw(page);
        self.l1.evicted(page, key);
        self.device_evicted += 1;
        if self.events {
            self.changes.push(KvChange::Removed { key, tier: Tier::Device });
        }
        let parent = self.radix.parent(page);
        if let Some(parent) = parent {
            self.radix.get_mut(parent).device_children -= 1;
        }
        self.prune(page);
        parent.filter(|&parent| self.radix.contains(parent))
    }

    // ---- L2 ----------------------------------------------------------------------------------------------------

    /// Gives a page of the tree a host page that is being filled; the filler pins it.
    pub(crate) fn attach_host(&mut self, page: PageId, host: HostPage, filling: HostFill, priority: i32) {
        let stamp = self.stamp;
        let key = self.radix.key(page);
        let residence = self.radix.get_mut(page);
        assert!(residence.host.is_none(), "a page has one host copy");
        assert_ne!(filling, HostFill::None, "a host copy begins by being filled");
        residence.host = Some(host);
        residence.filling = filling;
        if let Some(parent) = self.radix.parent(page) {
            self.radix.get_mut(parent).host_children += 1;
            self.l2.withdraw(parent);
        }
        self.host.pin(host);
        self.l2.admitted(page, key, stamp, priority);
    }

    /// The filler of a host copy is done; on failure the copy goes.
    pub(crate) fn filled_host(&mut self, page: PageId, good: bool) {
        let residence = self.radix.get_mut(page);
        let host = residence.host.expect("a copy that is being filled stays");
        assert_ne!(residence.filling, HostFill::None, "filled once");
        residence.filling = HostFill::None;
        let keep = good && !residence.dead;
        if keep {
            residence.dropped = false;
        }
        self.host.unpin(host);
        if keep {
            self.announce(page, Tier::Host);
            self.reconsider_host(page);
        } else {
            self.radix.get_mut(page).fetched = false;
            self.drop_host_failed(page);
        }
    }

    /// Pins the host copy of a page.
    pub(crate) fn pin_host(&mut self, page: PageId) {
        let host = self.radix.get(page).host.expect("only a host copy that is there can be pinned");
        self.host.pin(host);
        self.l2.withdraw(page);
    }

    /// Takes one pin off the host copy of a page.
    pub(crate) fn unpin_host(&mut self, page: PageId) {
        let host = self.radix.get(page).host.expect("a pinned host copy stays");
        if self.host.unpin(host) == 0 {
            self.reconsider_host(page);
        }
    }

    /// As [`Tiers::reconsider_device`], for L2.
    pub(crate) fn reconsider_host(&mut self, page: PageId) {
        let mut next = Some(page);
        while let Some(page) = next {
            let residence = self.radix.get(page);
            let Some(host) = residence.host else { return };
            if residence.host_children > 0 || residence.filling != HostFill::None || self.host.pins(host) > 0 {
                return;
            }
            if !residence.dead {
                self.host_freed = true;
                self.l2.offer(page);
                return;
            }
            self.note_host_drop(page);
            next = self.detach_host(page);
        }
    }

    fn note_host_drop(&mut self, page: PageId) {
        self.host_evicted += 1;
        if self.events {
            let key = self.radix.key(page);
            self.changes.push(KvChange::Removed { key, tier: Tier::Host });
        }
    }

    /// Takes the host copy away and frees its page.
    ///
    /// # Panics
    /// If something pins it or a child needs it.
    pub(crate) fn drop_host(&mut self, page: PageId) {
        assert_eq!(self.radix.get(page).host_children, 0, "what is dropped is the end of a chain");
        self.note_host_drop(page);
        self.drop_host_failed(page);
    }

    /// As [`Tiers::drop_host`], for a copy that never became readable or is given up on purpose: children may still
    /// hang from it, which leaves a hole that the next write heals.
    pub(crate) fn drop_host_failed(&mut self, page: PageId) {
        if let Some(parent) = self.detach_host(page) {
            self.reconsider_host(parent);
        }
    }

    fn detach_host(&mut self, page: PageId) -> Option<PageId> {
        let key = self.radix.key(page);
        let residence = self.radix.get_mut(page);
        let host = residence.host.take().expect("only a host copy that is there can be dropped");
        residence.dropped = residence.dropped || residence.device.is_none();
        residence.persist_queued = false;
        self.host.release(host);
        self.host_freed = true;
        self.l2.withdraw(page);
        self.l2.evicted(page, key);
        let parent = self.radix.parent(page);
        if let Some(parent) = parent {
            self.radix.get_mut(parent).host_children -= 1;
        }
        self.prune(page);
        parent.filter(|&parent| self.radix.contains(parent))
    }

    /// Frees host pages until `count` are free; what L2 holds only as a copy of L1 or L3 costs nothing to lose.
    pub(crate) fn make_host_room(&mut self, count: u32) -> bool {
        while self.host.free_count() < count {
            let Some(victim) = self.l2.victim() else { return false };
            self.drop_host(victim);
        }
        true
    }

    // ---- both --------------------------------------------------------------------------------------------------

    /// Removes pages that no tier holds and no child needs, from the end of the chain upwards.
    fn prune(&mut self, page: PageId) {
        let mut next = Some(page);
        while let Some(page) = next {
            let residence = self.radix.get(page);
            if residence.device.is_some() || residence.host.is_some() || self.radix.children(page) > 0 {
                return;
            }
            next = self.radix.parent(page);
            self.radix.remove(page);
        }
    }

    /// Forgets everything that nothing pins; the rest is hidden and goes when its last pin does.
    pub(crate) fn flush(&mut self) {
        let pages: Vec<PageId> = self.radix.iter().collect();
        for &page in &pages {
            self.radix.get_mut(page).dead = true;
        }
        // Ends of chains first: each drop makes its parent an end.
        for page in pages {
            if !self.radix.contains(page) {
                continue;
            }
            self.l1.withdraw(page);
            self.reconsider_device(page);
            if self.radix.contains(page) {
                self.l2.withdraw(page);
                self.reconsider_host(page);
            }
        }
        if self.events {
            self.changes.clear();
            self.changes.push(KvChange::Cleared { tier: Tier::Device });
            self.changes.push(KvChange::Cleared { tier: Tier::Host });
        }
    }

    pub(crate) fn digest(&self, digest: &mut Digest) {
        self.radix.digest(digest);
        self.gpu.digest(digest);
        self.host.digest(digest);
        self.l1.digest(digest);
        self.l2.digest(digest);
        digest.word(self.stamp);
        for page in self.radix.iter() {
            let residence = self.radix.get(page);
            digest.word(residence.device.map_or(u64::MAX, |gpu| u64::from(gpu.0)));
            digest.word(residence.host.map_or(u64::MAX, |host| u64::from(host.0)));
            digest.word(
                u64::from(residence.loading.is_some())
                    | u64::from(residence.backup_queued) << 1
                    | u64::from(residence.persist_queued) << 2
                    | u64::from(residence.dead) << 3
                    | u64::from(residence.fetched) << 4
                    | u64::from(residence.filling != HostFill::None) << 5
                    | u64::from(residence.unsavable) << 6,
            );
        }
    }

    /// Recounts everything. Returns the device and the host pages that the tree holds.
    ///
    /// # Panics
    /// If a count, a link or the eviction order is wrong.
    pub(crate) fn check(&self) -> (u32, u32) {
        self.radix.check();
        self.gpu.audit();
        self.host.audit();
        self.l1.check();
        self.l2.check();
        let (mut device, mut host, mut idle) = (0, 0, 0);
        for page in self.radix.iter() {
            let residence = self.radix.get(page);
            let (mut device_children, mut host_children) = (0, 0);
            self.radix.for_each_child(page, |child| {
                let child = self.radix.get(child);
                device_children += u32::from(child.device.is_some());
                host_children += u32::from(child.host.is_some());
            });
            assert_eq!(device_children, residence.device_children, "device children of {page:?}");
            assert_eq!(host_children, residence.host_children, "host children of {page:?}");
            assert!(
                residence.device.is_some() || residence.host.is_some() || self.radix.children(page) > 0,
                "{page:?} is in no tier and holds up nothing"
            );
            if let Some(gpu) = residence.device {
                device += 1;
                assert!(self.gpu.is_allocated(gpu), "{page:?} has a device page that is free");
                if self.gpu.pins(gpu) == 0 {
                    idle += 1;
                    assert!(residence.loading.is_none(), "{page:?} is being loaded without a pin");
                }
                let end = self.gpu.pins(gpu) == 0 && residence.device_children == 0;
                assert_eq!(end, self.l1.is_candidate(page), "{page:?} may leave L1: {end}");
                if let Some(parent) = self.radix.parent(page) {
                    assert!(self.radix.get(parent).device.is_some(), "{page:?} is in L1 and the page before it is not");
                }
            }
            if let Some(copy) = residence.host {
                host += 1;
                assert!(self.host.is_allocated(copy), "{page:?} has a host page that is free");
                let end =
                    self.host.pins(copy) == 0 && residence.host_children == 0 && residence.filling == HostFill::None;
                assert_eq!(end, self.l2.is_candidate(page), "{page:?} may leave L2: {end}");
            } else {
                assert_eq!(residence.filling, HostFill::None, "{page:?} fills a host page it does not have");
            }
        }
        assert_eq!(idle, self.idle, "idle device pages");
        (device, host)
    }
}

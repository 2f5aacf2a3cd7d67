//! Pages that come from L3 behind those that their sequence computes: what lies ahead of it, and taking what is there.
//!
//! ```text
//!   table     [ computed, published ][ own, empty ........ ][ own ]
//!   tree      [ pinned .............][ L1 | L2 | L2 | L2 ]
//!                                    └─ taken: pinned and swapped │ loaded back into the own page
//! ```

use crate::cx::Cx;
use crate::event::{MissReason, Served};
use crate::hicache::Ahead;

use super::{Kv, Lease};

impl Kv {
    /// What lies ahead of a sequence that has `committed` pages, and `computed` ones when its forwards in flight are done;
    /// the next forward has room for `room` pages. For a lease with a tail.
    pub fn ahead(&mut self, cx: &mut Cx<'_>, lease: &Lease, (committed, computed): (u32, u32), room: u32) -> Ahead {
        self.hicache.ahead(cx, &mut self.tiers, lease.request, (committed, computed), room)
    }

    /// After [`Ahead::Here`]: the sequence, all of whose `from` pages are published, takes those behind them that are
    /// there. Its own pages in their place become free or are loaded into; no forward may name them, and the device is to
    /// be told of the table again. Returns how many pages are good now, or will be when the loads are done.
    ///
    /// # Panics
    /// If pages before `from` are not published.
    pub fn take_tail(&mut self, cx: &mut Cx<'_>, lease: &mut Lease, from: u32, served: &mut Served) -> u32 {
        let first = from as usize;
        assert_eq!((lease.published, lease.entries.len()), (from, first), "all that is before is in the tree");
        let run = self.hicache.tail_here(&self.tiers, lease.request, from);
        let shared = run.iter().take_while(|&&page| self.tiers.radix.get(page).device.is_some()).count();
        let (shared, loads) = run.split_at(shared);
        for (index, &page) in (first..).zip(shared) {
            self.tiers.pin_device(page);
            let residence = self.tiers.radix.get(page);
            let theirs = residence.device.expect("pinned above");
            let own = core::mem::replace(&mut lease.table[index], theirs);
            if let Some(op) = residence.loading {
                self.hicache.share_load(op, lease.request, index as u32);
                if lease.loading.last() != Some(&op) {
                    lease.loading.push(op);
                }
            }
            self.tiers.gpu.release(own);
        }
        let fetched = loads.iter().filter(|&&page| self.tiers.radix.get(page).fetched).count() as u32;
        let own = &lease.table[first + shared.len()..];
        for (&page, &gpu) in loads.iter().zip(own) {
            self.tiers.attach_device(page, gpu, 0);
            self.tiers.pin_device(page);
        }
        if !loads.is_empty() {
            let behind = from + shared.len() as u32;
            let load = self.hicache.load_back(cx, &mut self.tiers, lease.request, behind, loads.to_vec());
            lease.loading.push(load);
        }
        lease.entries.extend(run.iter().map(|page| page.0));
        lease.published += run.len() as u32;
        self.hicache.tail_taken(lease.request);
        self.use_pages(&run);

        let page_size = self.config.page_size;
        let (device, storage) = (shared.len() as u32 * page_size, fetched * page_size);
        let host = loads.len() as u32 * page_size - storage;
        served.take_missed(MissReason::ComputedMeanwhile, device + host + storage);
        served.device += device;
        served.host += host;
        served.storage += storage;
        cx.metrics.device_hit_tokens += u64::from(device);
        cx.metrics.host_hit_tokens += u64::from(host);
        cx.metrics.storage_hit_tokens += u64::from(storage);
        cx.mark("kv.tail_taken");
        lease.published
    }

    /// After [`Ahead::Nothing`]: the sequence has met its tail or passed it. What L3 failed to deliver has that as its
    /// reason.
    pub fn end_tail(&mut self, lease: &mut Lease, served: &mut Served) {
        lease.has_tail = false;
        let waited = self.hicache.leave(&mut self.tiers, lease.request);
        if let Some((reason, pages)) = waited.and_then(|waited| waited.lost()) {
            let tokens = served.take_missed(MissReason::ComputedMeanwhile, pages * self.config.page_size);
            served.miss(reason, tokens);
        }
    }
}

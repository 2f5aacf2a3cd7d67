//! Where the KV of a prompt comes from, and a reason for every token that no cache serves.

use alloc::vec::Vec;

use super::{Hit, Kv};
use crate::cx::Cx;
use crate::event::{Miss, MissReason, Served};
use crate::hicache::Waiting;
use crate::mutant::Mutant;
use crate::op::Prompt;
use crate::radix::PageId;

impl Kv {
    /// A reason not to load back what L2 holds, if there is one.
    pub(super) fn refuse_load(&self, cx: &Cx<'_>, prompt: &Prompt, hit: Hit) -> Option<MissReason> {
        if hit.host == 0 {
            return None;
        }
        let page_size = self.config.page_size;
        if hit.host * page_size < self.config.load_back_threshold {
            return Some(MissReason::LoadBackMinimum);
        }
        if self.config.fetch_by_cost {
            let bytes = u64::from(hit.host) * self.config.page_bytes;
            let load = self.config.host_link.time_ns(bytes, u64::from(hit.host));
            let (near, far) = (u64::from(hit.device * page_size), u64::from((hit.device + hit.host) * page_size));
            let length = u64::from(prompt.length).max(far + 1);
            let saved = cx.cost.prefill_ns(near, length - near).saturating_sub(cx.cost.prefill_ns(far, length - far));
            if load > saved {
                return Some(MissReason::Recompute);
            }
        }
        None
    }

    /// Pages up to the last one that L1 or L2 can serve, holes included.
    pub(super) fn reach(&self, path: &[PageId]) -> u32 {
        let readable = |&page: &PageId| {
            let residence = self.tiers.radix.get(page);
            !residence.dead && (residence.device.is_some() || residence.readable_host().is_some())
        };
        path.iter().rposition(readable).map_or(0, |last| last as u32 + 1)
    }

    /// Accounts for every token of the prompt. `path` are the pages that are used, `known` how many leading pages the
    /// tree has a place for, and up to where it holds some that can be read.
    #[expect(clippy::too_many_arguments, reason = "a leaf that is given all it needs, and keeps nothing")]
    pub(super) fn served(
        &self,
        prompt: &Prompt,
        path: &[PageId],
        hit: Hit,
        known: (u32, u32),
        refusal: Option<MissReason>,
        waited: Option<&Waiting>,
        whole: bool,
    ) -> Served {
        let page_size = self.config.page_size;
        let used = hit.device + hit.host;
        let full = prompt.keys.len() as u32;
        let fetched =
            path[hit.device as usize..].iter().filter(|&&page| self.tiers.radix.get(page).fetched).count() as u32;
        let twice = if self.config.mutation.is(Mutant::HitCountedTwice) { hit.device } else { 0 };
        let mut served = Served {
            prompt: prompt.length,
            device: hit.device * page_size,
            host: (hit.host - fetched + twice) * page_size,
            storage: fetched * page_size,
            misses: Vec::new(),
        };
        let mut miss = |reason, tokens| {
            if tokens > 0 {
                served.misses.push(Miss { reason, tokens });
            }
        };
        let cap = if whole { full } else { (prompt.length - 1) / page_size };
        if used < cap {
            let stored_until = waited.map_or(used, |waited| waited.stored_until.min(cap)).max(used);
            if let Some(reason) = refusal {
                // L2 has the next pages; how many does not matter to the reader, the rest has the same fate.
                miss(reason, (cap - used) * page_size);
            } else {
                let has_tail = waited.is_some_and(|waited| waited.has_tail());
                let reason = waited.and_then(|waited| waited.reason).unwrap_or(MissReason::Evicted);
                let reason = if has_tail { MissReason::ComputedMeanwhile } else { reason };
                miss(reason, (stored_until - used) * page_size);
                miss(self.absent(prompt, stored_until, cap, known), (cap - stored_until) * page_size);
            }
        }
        miss(MissReason::LastToken, (full - cap.max(used)) * page_size);
        miss(MissReason::PartialPage, prompt.length % page_size);
        served
    }

    /// Why no tier holds page `first` and those behind it.
    fn absent(&self, prompt: &Prompt, first: u32, cap: u32, (known, reach): (u32, u32)) -> MissReason {
        if first >= cap {
            return MissReason::NothingStored;
        }
        let index = &self.hicache.index;
        let in_memory = reach > first + 1;
        let later = || prompt.keys[first as usize + 1..].iter().any(|&key| index.has(key));
        if in_memory || (!index.is_empty() && later()) {
            return MissReason::Hole { page: first };
        }
        if known > first {
            return MissReason::Evicted;
        }
        if index.present() == 0 && index.torn > 0 {
            return MissReason::Checksum;
        }
        if index.present() == 0 && index.foreign > 0 {
            return MissReason::Namespace;
        }
        MissReason::NothingStored
    }
}

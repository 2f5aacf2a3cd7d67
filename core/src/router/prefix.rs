//! Which worker probably holds which page: fed by routing decisions and by the KV changes that workers publish.
//!
//! Owns (page key, worker) pairs; knows nothing of load, health or cost. A worker's *slot* is one life of it.
//!
//! ```text
//!            key 0      key 1      key 2      key 3
//! slot 0     held       held       -          held       matches 2: the hole ends the prefix, key 3 is no use
//! slot 1     held       held       held       -          matches 3
//! slot 2     -          held       held       held       matches 0
//! ```
//! All slots are matched in one walk along the prompt: the set of slots that hold every key so far is intersected with
//! the holders of the next key, 64 slots to the word, and a slot that drops out has its length. The walk costs
//! keys x slots / 64 plus once each slot, it stays right when events punch holes, and a system prompt of 128 pages
//! that 1,000 workers hold is 2,048 words, not 128,000 list entries.
//!
//! Invariants: (1) no more pairs than `entries_max`, and no more of a slot than its capacity; (2) each slot's pairs form
//! one list from the most to the least recently used; (3) a node without holders does not exist.
//! Memory is about 66 bytes for a pair whose key has one holder, 40 where two share a key.

use alloc::vec::Vec;

use super::holders::{Holder, Holders};
use crate::codec::Sink;
use crate::digest::Digest;
use crate::event::Tier;
use crate::id::PageKey;
use crate::table::{NONE, Table};

/// One life of a worker, as the index names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Slot(u16);

/// Who holds what.
#[derive(Debug)]
pub(super) struct Index {
    table: Table,
    nodes: Vec<Node>,
    nodes_free: Vec<u32>,
    pairs: Vec<Pair>,
    pairs_free: Vec<u32>,
    slots: Vec<List>,
    entries: u32,
    entries_max: u32,
    /// Slots in use.
    open: u32,
}

/// How many leading pages each slot holds. A buffer that the caller keeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Matches {
    pages: Vec<u32>,
    active: Vec<u64>,
    mask: Vec<u64>,
}

impl Matches {
    /// Leading pages of the prompt that `slot` holds.
    pub(super) fn pages(&self, slot: Slot) -> u32 {
        self.pages[usize::from(slot.0)]
    }
}

#[derive(Debug)]
struct Node {
    key: PageKey,
    holders: Holders,
}

/// A holder's place in the order of use of its slot.
#[derive(Clone, Copy, Debug)]
struct Pair {
    node: u32,
    newer: u32,
    older: u32,
}

/// The pairs of one slot.
#[derive(Clone, Debug)]
struct List {
    newest: u32,
    oldest: u32,
    count: u32,
    max: u32,
    is_open: bool,
}

/// The page was sent there by a routing decision; no event has confirmed it yet.
const ASSUMED: u8 = 8;

const fn tier_bit(tier: Tier) -> u8 {
    match tier {
        Tier::Device => 1,
        Tier::Host => 2,
        Tier::Storage => 4,
    }
}

impl Index {
    /// An empty index for at most `entries_max` pairs. `salt` keeps clients from aiming at one bucket of the table.
    pub(super) fn new(entries_max: u32, salt: u64) -> Self {
        Self {
            table: Table::new(salt),
            nodes: Vec::new(),
            nodes_free: Vec::new(),
            pairs: Vec::new(),
            pairs_free: Vec::new(),
            slots: Vec::new(),
            entries: 0,
            entries_max,
            open: 0,
        }
    }

    /// A slot for one life of a worker whose cache has room for `pages` pages (0: not known, no bound of its own).
    pub(super) fn open(&mut self, pages: u32) -> Slot {
        let max = if pages == 0 { u32::MAX } else { pages };
        let list = List { newest: NONE, oldest: NONE, count: 0, max, is_open: true };
        let slot = self.slots.iter().position(|list| !list.is_open).unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(list);
        } else {
            self.slots[slot] = list;
        }
        self.open += 1;
        Slot(u16::try_from(slot).expect("WORKERS_MAX fits 16 bits"))
    }

    /// Forgets a life and all it held.
    pub(super) fn close(&mut self, slot: Slot) {
        while self.slots[usize::from(slot.0)].oldest != NONE {
            self.evict(slot.0);
        }
        let list = &mut self.slots[usize::from(slot.0)];
        assert!(list.is_open);
        list.is_open = false;
        self.open -= 1;
    }

    /// A prompt goes to `slot`: it will hold these keys. The first key becomes the most recently used, so that chains
    /// are forgotten from their ends.
    pub(super) fn note(&mut self, slot: Slot, keys: &[PageKey]) {
        for &key in keys.iter().rev() {
            self.hold(slot.0, key, ASSUMED);
        }
    }

    /// The worker says that it can read the page in `tier`.
    pub(super) fn stored(&mut self, slot: Slot, key: PageKey, tier: Tier) {
        self.hold(slot.0, key, tier_bit(tier));
    }

    /// The worker says that the page left `tier`. A page that left L1 is not assumed any more.
    pub(super) fn removed(&mut self, slot: Slot, key: PageKey, tier: Tier) {
        let Some(node) = self.find(key) else { return };
        let Some(at) = self.nodes[node as usize].holders.position(slot.0) else { return };
        self.lose(node, at, slot.0, tier);
    }

    /// The worker says that `tier` is empty. Costs time in proportion to what it held.
    pub(super) fn cleared(&mut self, slot: Slot, tier: Tier) {
        let mut pair = self.slots[usize::from(slot.0)].newest;
        while pair != NONE {
            let Pair { node, older, .. } = self.pairs[pair as usize];
            let at = self.nodes[node as usize].holders.position(slot.0).expect("a listed pair has its holder");
            self.lose(node, at, slot.0, tier);
            pair = older;
        }
    }

    /// Finds for each open slot how many leading keys it holds.
    pub(super) fn matches(&self, keys: &[PageKey], into: &mut Matches) {
        let words = self.slots.len().div_ceil(64);
        into.pages.clear();
        into.pages.resize(self.slots.len(), 0);
        into.active.clear();
        into.active.resize(words, u64::MAX);
        into.mask.clear();
        into.mask.resize(words, 0);
        let Matches { pages, active, mask } = into;
        for (index, &key) in keys.iter().enumerate() {
            let holders = self.find(key).map(|node| &self.nodes[node as usize].holders);
            let mut any = 0;
            let bits = match holders.and_then(Holders::bits) {
                Some(bits) => bits,
                None => {
                    mask.fill(0);
                    for holder in holders.map_or(&[][..], Holders::as_slice) {
                        mask[usize::from(holder.slot) / 64] |= 1 << (holder.slot % 64);
                    }
                    &mask[..]
                }
            };
            for (word, active) in active.iter_mut().enumerate() {
                let stay = *active & bits.get(word).copied().unwrap_or(0);
                // Lengths start at 0, so those that drop out at the first key have theirs.
                let mut gone = if index == 0 { 0 } else { *active & !stay };
                while gone != 0 {
                    pages[word * 64 + gone.trailing_zeros() as usize] = index as u32;
                    gone &= gone - 1;
                }
                *active = stay;
                any |= stay;
            }
            if any == 0 {
                return;
            }
        }
        if keys.is_empty() {
            return;
        }
        for (word, active) in active.iter_mut().enumerate() {
            while *active != 0 {
                pages[word * 64 + active.trailing_zeros() as usize] = keys.len() as u32;
                *active &= *active - 1;
            }
        }
    }

    /// Pairs of one slot.
    pub(super) fn held(&self, slot: Slot) -> u32 {
        self.slots[usize::from(slot.0)].count
    }

    /// Pairs held.
    pub(super) const fn entries(&self) -> u32 {
        self.entries
    }

    /// Feeds every pair, slot by slot in order of use.
    pub(super) fn digest(&self, digest: &mut Digest) {
        for (slot, list) in self.slots.iter().enumerate() {
            digest.u32(list.count);
            digest.u8(u8::from(list.is_open));
            let mut pair = list.newest;
            while pair != NONE {
                let Pair { node, older, .. } = self.pairs[pair as usize];
                let node = &self.nodes[node as usize];
                let at = node.holders.position(slot as u16).expect("a listed pair has its holder");
                digest.u64(node.key.0 as u64);
                digest.u64((node.key.0 >> 64) as u64);
                digest.u8(node.holders.as_slice()[at].tiers);
                pair = older;
            }
        }
    }

    /// Panics if lists, holders, table and counts disagree.
    pub(super) fn check(&self) {
        let mut entries = 0;
        for (slot, list) in self.slots.iter().enumerate() {
            assert!(list.count <= list.max);
            assert!(list.is_open || list.count == 0);
            let (mut pair, mut newer, mut count) = (list.newest, NONE, 0);
            while pair != NONE {
                let entry = self.pairs[pair as usize];
                assert_eq!(entry.newer, newer);
                let node = &self.nodes[entry.node as usize];
                assert_eq!(self.find(node.key), Some(entry.node));
                let at = node.holders.position(slot as u16).expect("a listed pair has its holder");
                assert_eq!(node.holders.as_slice()[at].pair, pair);
                assert_ne!(node.holders.as_slice()[at].tiers, 0);
                assert!(node.holders.bits().is_none_or(|bits| bits[slot / 64] & 1 << (slot % 64) != 0));
                (newer, pair, count) = (pair, entry.older, count + 1);
            }
            assert_eq!(list.oldest, newer);
            assert_eq!(list.count, count);
            entries += count;
        }
        assert_eq!(entries, self.entries);
        assert!(entries <= self.entries_max);
        assert_eq!(entries as usize, self.pairs.len() - self.pairs_free.len());
        assert_eq!(self.table.count() as usize, self.nodes.len() - self.nodes_free.len());
        assert_eq!(self.open as usize, self.slots.iter().filter(|list| list.is_open).count());
    }

    fn find(&self, key: PageKey) -> Option<u32> {
        self.table.find(key, |node| self.nodes[node as usize].key)
    }

    /// `slot` holds `key` in the tiers of `bits` from here on, and has just used it.
    fn hold(&mut self, slot: u16, key: PageKey, bits: u8) {
        if let Some(node) = self.find(key) {
            let holders = &mut self.nodes[node as usize].holders;
            if let Some(at) = holders.position(slot) {
                let holder = holders.get_mut(at);
                holder.tiers |= bits;
                let pair = holder.pair;
                self.touch(slot, pair);
                return;
            }
        }
        self.make_room(slot);
        let node = self.find(key).unwrap_or_else(|| self.add_node(key));
        let entry = Pair { node, newer: NONE, older: NONE };
        let pair = place(&mut self.pairs, &mut self.pairs_free, entry);
        self.nodes[node as usize].holders.insert(Holder { pair, slot, tiers: bits });
        self.link(slot, pair);
        self.entries += 1;
        self.slots[usize::from(slot)].count += 1;
    }

    /// Evicts until one more pair of `slot` fits: the slot's own oldest when it is over its capacity or over its even
    /// share of a full index, else the oldest of the slot that has most.
    fn make_room(&mut self, slot: u16) {
        let list = &self.slots[usize::from(slot)];
        if list.count >= list.max {
            self.evict(slot);
        } else if self.entries >= self.entries_max {
            let share = self.entries_max / self.open.max(1);
            let victim = if list.count > 0 && list.count >= share {
                slot
            } else {
                let counts = self.slots.iter().map(|list| list.count);
                let (most, _) = counts.enumerate().max_by_key(|&(slot, count)| (count, slot)).expect("slots exist");
                most as u16
            };
            self.evict(victim);
        }
    }

    fn evict(&mut self, slot: u16) {
        let pair = self.slots[usize::from(slot)].oldest;
        let node = self.pairs[pair as usize].node;
        let at = self.nodes[node as usize].holders.position(slot).expect("a listed pair has its holder");
        self.drop_pair(node, at, slot);
    }

    fn lose(&mut self, node: u32, at: usize, slot: u16, tier: Tier) {
        let gone = if tier == Tier::Device { tier_bit(tier) | ASSUMED } else { tier_bit(tier) };
        let holder = self.nodes[node as usize].holders.get_mut(at);
        holder.tiers &= !gone;
        if holder.tiers == 0 {
            self.drop_pair(node, at, slot);
        }
    }

    fn drop_pair(&mut self, node: u32, at: usize, slot: u16) {
        let holders = &mut self.nodes[node as usize].holders;
        let pair = holders.remove(at).pair;
        if holders.as_slice().is_empty() {
            let key = self.nodes[node as usize].key;
            self.table.remove(key, |node| self.nodes[node as usize].key);
            self.nodes_free.push(node);
        }
        self.unlink(slot, pair);
        self.pairs_free.push(pair);
        self.entries -= 1;
        self.slots[usize::from(slot)].count -= 1;
    }

    fn add_node(&mut self, key: PageKey) -> u32 {
        let fresh = Node { key, holders: Holders::default() };
        let node = place(&mut self.nodes, &mut self.nodes_free, fresh);
        self.table.insert(key, node);
        node
    }

    /// Exact order of use, since the worker's own cache keeps that order: with second chances instead of moves the
    /// hits of `tests/trace.rs` fell from 35 % to 31 %, for 0.3 us less.
    fn touch(&mut self, slot: u16, pair: u32) {
        if self.slots[usize::from(slot)].newest != pair {
            self.unlink(slot, pair);
            self.link(slot, pair);
        }
    }

    fn link(&mut self, slot: u16, pair: u32) {
        let list = &mut self.slots[usize::from(slot)];
        let older = core::mem::replace(&mut list.newest, pair);
        if older == NONE {
            list.oldest = pair;
        } else {
            self.pairs[older as usize].newer = pair;
        }
        self.pairs[pair as usize].newer = NONE;
        self.pairs[pair as usize].older = older;
    }

    fn unlink(&mut self, slot: u16, pair: u32) {
        let Pair { newer, older, .. } = self.pairs[pair as usize];
        let list = &mut self.slots[usize::from(slot)];
        if newer == NONE {
            list.newest = older;
        } else {
            self.pairs[newer as usize].older = older;
        }
        if older == NONE {
            list.oldest = newer;
        } else {
            self.pairs[older as usize].newer = newer;
        }
    }
}

/// Puts `item` where something was, or at the end.
fn place<T>(items: &mut Vec<T>, free: &mut Vec<u32>, item: T) -> u32 {
    match free.pop() {
        Some(at) => {
            items[at as usize] = item;
            at
        }
        None => {
            items.push(item);
            (items.len() - 1) as u32
        }
    }
}

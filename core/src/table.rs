//! Finds the entry of a page key in one or two memory accesses. Used where millions of keys are looked up and never
//! listed: the router's prefix index, the index of L3, and the simulator's stores.
//!
//! Open addressing over node numbers, each beside 32 bits of its key's hash: a probe that meets another key leaves that
//! key's node alone (one memory access for a key that is not there, two for one that is), and growing moves numbers
//! only. A page key is a hash already, so its own bits (salted) are the address. This is
//! not the hash map that core forbids: the address is a function of salt and key alone, and nothing iterates it. A
//! B-tree of four million keys takes five dependent cache misses per key, 24 keys would take more than the 3 us that a
//! whole decision may.
//!
//! Split in 256 parts that grow one by one, so that no single decision pays for moving all of it.

use alloc::vec;
use alloc::vec::Vec;

use crate::id::PageKey;

/// No node.
pub const NONE: u32 = u32::MAX;

/// From key to node; the keys themselves are with the nodes.
#[derive(Debug)]
pub struct Table {
    parts: Vec<Part>,
    salt: u64,
    count: u32,
}

#[derive(Clone, Debug, Default)]
struct Part {
    slots: Vec<Slot>,
    count: u32,
}

/// A node and the lower half of its key's hash, from which its place follows too.
#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u32,
    node: u32,
}

impl Table {
    /// An empty table; equal salts give equal places.
    #[must_use]
    pub fn new(salt: u64) -> Self {
        Self { parts: vec![Part::default(); PARTS], salt, count: 0 }
    }

    /// The node of `key`; `key_of` says which key a node has.
    #[inline]
    #[must_use]
    pub fn find(&self, key: PageKey, key_of: impl Fn(u32) -> PageKey) -> Option<u32> {
        let (part, at) = self.locate(key, &key_of)?;
        let node = self.parts[part].slots[at].node;
        (node != NONE).then_some(node)
    }

    /// Adds a key that is not there. The node must not be [`NONE`].
    pub fn insert(&mut self, key: PageKey, node: u32) {
        let hash = self.hash(key);
        let part = &mut self.parts[part_of(hash)];
        // At most three quarters full: probes stay short.
        if (part.count as usize + 1) * 4 > part.slots.len() * 3 {
            let size = (part.slots.len() * 2).max(8);
            let old = core::mem::replace(&mut part.slots, vec![Slot::FREE; size]);
            for slot in old.into_iter().filter(|slot| slot.node != NONE) {
                part.put(slot);
            }
        }
        part.put(Slot { hash: hash as u32, node });
        part.count += 1;
        self.count += 1;
    }

    /// Removes a key that is there.
    ///
    /// # Panics
    /// If it is not.
    pub fn remove(&mut self, key: PageKey, key_of: impl Fn(u32) -> PageKey) {
        let (part, mut hole) = self.locate(key, &key_of).expect("only known keys are removed");
        let part = &mut self.parts[part];
        let mask = part.slots.len() - 1;
        // Moves later entries of the run back where their probe would otherwise meet the hole.
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let slot = part.slots[at];
            if slot.node == NONE {
                break;
            }
            let home = slot.hash as usize & mask;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                part.slots[hole] = slot;
                hole = at;
            }
        }
        part.slots[hole] = Slot::FREE;
        part.count -= 1;
        self.count -= 1;
    }

    /// Keys held.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Part and place of `key`, or of the gap where its probe ends.
    #[inline]
    fn locate(&self, key: PageKey, key_of: &impl Fn(u32) -> PageKey) -> Option<(usize, usize)> {
        let hash = self.hash(key);
        let part = part_of(hash);
        let slots = &self.parts[part].slots;
        let mask = slots.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let slot = slots[at];
            if slot.node == NONE || (slot.hash == hash as u32 && key_of(slot.node) == key) {
                return Some((part, at));
            }
            at = (at + 1) & mask;
        }
    }

    const fn hash(&self, key: PageKey) -> u64 {
        hash_of(key, self.salt)
    }
}

impl Slot {
    const FREE: Self = Self { hash: 0, node: NONE };
}

impl Part {
    fn put(&mut self, slot: Slot) {
        let mask = self.slots.len() - 1;
        let mut at = slot.hash as usize & mask;
        while self.slots[at].node != NONE {
            at = (at + 1) & mask;
        }
        self.slots[at] = slot;
    }
}

const PARTS: usize = 256;

/// Keys of a simulation may be small numbers, so the bits are mixed once more.
const fn hash_of(key: PageKey, salt: u64) -> u64 {
    let folded = (key.0 as u64 ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (key.0 >> 64) as u64;
    let mixed = (folded ^ folded >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    mixed ^ mixed >> 32
}

const fn part_of(hash: u64) -> usize {
    (hash >> 56) as usize
}

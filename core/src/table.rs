//! Finds the entry of a page key in one or two memory accesses. Used where millions of keys are looked up and never
//! listed: the router's prefix index and the index of L3.
//!
//! Open addressing over node numbers. A page key is a hash already, so its own bits (salted) are the address. This is
//! not the hash map that core forbids: the address is a function of salt and key alone, and nothing iterates it. A
//! B-tree of four million keys takes five dependent cache misses per key, 24 keys would take more than the 3 us that a
//! whole decision may.
//!
//! Split in 256 parts that grow one by one, so that no single decision pays for moving all of it.

use alloc::vec;
use alloc::vec::Vec;

use crate::id::PageKey;

/// No node.
pub(crate) const NONE: u32 = u32::MAX;

/// From key to node; the keys themselves are with the nodes.
#[derive(Debug)]
pub(crate) struct Table {
    parts: Vec<Part>,
    salt: u64,
    count: u32,
}

#[derive(Clone, Debug, Default)]
struct Part {
    nodes: Vec<u32>,
    count: u32,
}

impl Table {
    pub(crate) fn new(salt: u64) -> Self {
        Self { parts: vec![Part::default(); PARTS], salt, count: 0 }
    }

    /// The node of `key`; `key_of` says which key a node has.
    pub(crate) fn find(&self, key: PageKey, key_of: impl Fn(u32) -> PageKey) -> Option<u32> {
        let (part, at) = self.locate(key, &key_of)?;
        let node = self.parts[part].nodes[at];
        (node != NONE).then_some(node)
    }

    /// Adds a key that is not there.
    pub(crate) fn insert(&mut self, key: PageKey, node: u32, key_of: impl Fn(u32) -> PageKey) {
        let hash = self.hash(key);
        let salt = self.salt;
        let part = &mut self.parts[part_of(hash)];
        // At most three quarters full: probes stay short.
        if (part.count as usize + 1) * 4 > part.nodes.len() * 3 {
            let size = (part.nodes.len() * 2).max(8);
            let old = core::mem::replace(&mut part.nodes, vec![NONE; size]);
            for node in old.into_iter().filter(|&node| node != NONE) {
                part.put(hash_of(key_of(node), salt), node);
            }
        }
        part.put(hash, node);
        part.count += 1;
        self.count += 1;
    }

    /// Removes a key that is there.
    pub(crate) fn remove(&mut self, key: PageKey, key_of: impl Fn(u32) -> PageKey) {
        let (part, mut hole) = self.locate(key, &key_of).expect("only known keys are removed");
        let salt = self.salt;
        let part = &mut self.parts[part];
        let mask = part.nodes.len() - 1;
        // Moves later entries of the run back where their probe would otherwise meet the hole.
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let node = part.nodes[at];
            if node == NONE {
                break;
            }
            let home = hash_of(key_of(node), salt) as usize & mask;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                part.nodes[hole] = node;
                hole = at;
            }
        }
        part.nodes[hole] = NONE;
        part.count -= 1;
        self.count -= 1;
    }

    /// Keys held.
    pub(crate) const fn count(&self) -> u32 {
        self.count
    }

    /// Part and place of `key`, or of the gap where its probe ends.
    fn locate(&self, key: PageKey, key_of: &impl Fn(u32) -> PageKey) -> Option<(usize, usize)> {
        let hash = self.hash(key);
        let part = part_of(hash);
        let nodes = &self.parts[part].nodes;
        let mask = nodes.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        while nodes[at] != NONE && key_of(nodes[at]) != key {
            at = (at + 1) & mask;
        }
        Some((part, at))
    }

    const fn hash(&self, key: PageKey) -> u64 {
        hash_of(key, self.salt)
    }
}

impl Part {
    fn put(&mut self, hash: u64, node: u32) {
        let mask = self.nodes.len() - 1;
        let mut at = hash as usize & mask;
        while self.nodes[at] != NONE {
            at = (at + 1) & mask;
        }
        self.nodes[at] = node;
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

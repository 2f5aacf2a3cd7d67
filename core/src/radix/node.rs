//! One run of pages without a fork, and how two runs are compared.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::id::PageKey;

use super::PageId;

/// Index of a node in the slab of nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NodeId(pub(super) u32);

/// The node above all chains. It holds no page and is never freed.
pub(super) const ROOT: NodeId = NodeId(0);

/// In a slot: no node, the slot is free.
pub(super) const FREE: NodeId = NodeId(u32::MAX);

impl NodeId {
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Pages that follow one another. Keys and pages are arrays of their own: a lookup reads only keys, and a path is
/// copied out as a slice.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) keys: Vec<PageKey>,
    pub(super) pages: Vec<PageId>,
    /// The page before the first one.
    pub(super) parent: Option<PageId>,
    /// Depth of the first page.
    pub(super) depth: u32,
    /// By the first key of each child. An empty map has no allocation, so leaves pay for none.
    pub(super) children: BTreeMap<PageKey, NodeId>,
}

impl Node {
    pub(super) const fn len(&self) -> usize {
        self.keys.len()
    }

    /// Gives memory back once three quarters are unused; pages that leave one by one do not each pay for a copy.
    pub(super) fn shrink(&mut self) {
        if self.keys.capacity() > KEPT_MIN && self.keys.capacity() / 4 >= self.len() {
            self.keys.shrink_to(self.len() * 2);
            self.pages.shrink_to(self.len() * 2);
        }
    }
}

/// Number of leading keys that are equal, by bisection: in chains, a key that is equal has only equal ones before it.
///
/// Whatever the keys are, a result below both lengths is an index at which they do differ.
pub(super) fn common_prefix(ours: &[PageKey], theirs: &[PageKey]) -> usize {
    let shorter = ours.len().min(theirs.len());
    if shorter == 0 || ours[shorter - 1] == theirs[shorter - 1] {
        return shorter;
    }
    // Keys at `differ` are known to differ; keys before `equal` are equal.
    let (mut equal, mut differ) = (0, shorter - 1);
    while equal < differ {
        let middle = equal + (differ - equal) / 2;
        if ours[middle] == theirs[middle] {
            equal = middle + 1;
        } else {
            differ = middle;
        }
    }
    equal
}

/// Capacity that a shrinking node keeps without asking.
const KEPT_MIN: usize = 16;

//! The index of all known pages: a compressed radix tree over chained page keys.
//!
//! Owns which page follows which, and one payload per page for the caller (tier state, pins). Knows nothing of tiers,
//! of eviction or of what a payload means, and never reads one.
//!
//! A node is only a run of pages without a fork, kept in two contiguous arrays. Everything that lasts belongs to a
//! page: its slot holds the payload and its depth, neither of which a split or a merge touches, so that no pin and no
//! operation in flight can be lost with a node (sglang #16946, #38480).
//!
//! ```text
//!   depth     0   1   2   3   4
//!   node 1    a   b ┬─────────────  keys [a b],   pages [0 1]
//!   node 2          ├ c   d   e     keys [c d e], pages [2 3 4], parent: page 1
//!   node 3          └ x             keys [x],     pages [5],     parent: page 1
//! ```
//!
//! Invariants, all in [`Radix::check`]:
//!
//! 1. A node holds at least one page; it has no child or at least two. A lone child is merged into its parent, so the
//!    shape follows from the set of chains and long uptime does not crumble a chain into nodes of one page.
//! 2. The parent of a node is a page (the last one before it), never a node: a split leaves it true.
//! 3. A slot names its node and its absolute depth; the place within the node is the difference.
//! 4. Slots and nodes are live or in a free list, never both, never neither.
//!
//! Keys are chained ([`crate::key`]): two keys that are equal at one depth mean that all keys before them are equal.
//! A lookup therefore compares the last key of a run first and bisects on a difference: two comparisons a node on a
//! hit and about eleven in a run of 2,048, instead of 2,048. Keys that form no chain (a faulty peer) find the wrong
//! length at worst; the tree stays sound.

use alloc::vec::Vec;
use core::fmt;

use crate::codec::{Codec, DecodeError, Sink, Source};
use crate::id::PageKey;

use node::{Node, NodeId, ROOT, common_prefix};

mod check;
mod node;
mod reshape;
#[cfg(test)]
mod tests;

/// One page of the tree: its index in the slab. Recycled after [`Radix::remove`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PageId(pub u32);

impl PageId {
    const fn index(self) -> usize {
        self.0 as usize
    }
}

impl Codec for PageId {
    #[inline]
    fn encode<S: Sink>(&self, sink: &mut S) {
        sink.u32(self.0);
    }
    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        Ok(Self(source.u32()?))
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How much of a chain the tree knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Match {
    /// Leading pages.
    pub pages: u32,
    /// The last of them; `None` if there are none.
    pub last: Option<PageId>,
}

/// A compressed radix tree over chained page keys with a payload `P` per page.
#[derive(Clone, Debug)]
pub struct Radix<P> {
    slots: Vec<Slot<P>>,
    /// Reused from the end.
    free_slots: Vec<PageId>,
    /// The root is at index 0 and holds no page.
    nodes: Vec<Node>,
    /// Reused from the end.
    free_nodes: Vec<NodeId>,
}

/// What outlives every change of the nodes around a page.
#[derive(Clone, Debug)]
struct Slot<P> {
    /// [`node::FREE`] if the slot is free.
    node: NodeId,
    /// Pages before this one in its chain.
    depth: u32,
    payload: P,
}

impl<P: Default> Default for Radix<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Default> Radix<P> {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(0)
    }

    /// An empty tree whose slab has room for `pages` pages, so that growing does not copy a large slab at some
    /// unlucky step.
    #[must_use]
    pub fn with_capacity(pages: u32) -> Self {
        Self {
            slots: Vec::with_capacity(pages as usize),
            free_slots: Vec::new(),
            nodes: alloc::vec![Node::default()],
            free_nodes: Vec::new(),
        }
    }

    /// Makes the chain `keys` exist behind `parent` (`None`: from the start) and appends the page of each key to
    /// `out`. Returns how many are new; these are the last ones and have a default payload.
    ///
    /// Splits a node where the chain leaves it midway, at the cost of the shorter half. A chain that goes on from
    /// the end of a leaf extends it in place.
    ///
    /// # Panics
    /// If `parent` is not in the tree, or the slab would exceed 2^32 - 1 pages.
    pub fn insert(&mut self, parent: Option<PageId>, keys: &[PageKey], out: &mut Vec<PageId>) -> u32 {
        let (mut id, mut offset) = match parent {
            None => (ROOT, 0),
            Some(page) => (self.slot(page).node, self.offset(page) + 1),
        };
        let mut rest = keys;
        while let Some(first) = rest.first() {
            if offset == self.nodes[id.index()].len() {
                let Some(&child) = self.nodes[id.index()].children.get(first) else { break };
                (id, offset) = (child, 0);
            }
            let run = &self.nodes[id.index()];
            let count = common_prefix(&run.keys[offset..], rest);
            out.extend_from_slice(&run.pages[offset..offset + count]);
            rest = &rest[count..];
            offset += count;
            if offset < run.len() {
                break;
            }
        }
        if !rest.is_empty() {
            self.append(id, offset, rest, out);
        }
        rest.len() as u32
    }

    /// Takes a page out and returns its payload. The last page of a node takes the node with it.
    ///
    /// # Panics
    /// If the page is not in the tree or has a child page.
    pub fn remove(&mut self, page: PageId) -> P {
        assert_eq!(self.children(page), 0, "{page:?} holds up other pages");
        let slot = &mut self.slots[page.index()];
        let id = core::mem::replace(&mut slot.node, node::FREE);
        let payload = core::mem::take(&mut slot.payload);
        self.free_slots.push(page);
        let run = &mut self.nodes[id.index()];
        let key = run.keys.pop().expect("a node holds at least one page");
        let popped = run.pages.pop();
        assert_eq!(popped, Some(page), "a page without children is the last one of its node");
        if run.keys.is_empty() {
            self.delete(id, key);
        } else {
            run.shrink();
        }
        payload
    }

    /// The caller's payload.
    ///
    /// # Panics
    /// If the page is not in the tree.
    #[must_use]
    pub fn get(&self, page: PageId) -> &P {
        &self.slot(page).payload
    }

    /// The caller's payload.
    ///
    /// # Panics
    /// If the page is not in the tree.
    pub fn get_mut(&mut self, page: PageId) -> &mut P {
        assert!(self.contains(page), "{page:?} is not in the tree");
        &mut self.slots[page.index()].payload
    }

    /// The longest prefix of the chain `keys` that is in the tree. Only looks.
    #[must_use]
    pub fn lookup(&self, keys: &[PageKey]) -> Match {
        let mut found = Match::default();
        let mut run = &self.nodes[ROOT.index()];
        let mut rest = keys;
        while let Some(&child) = rest.first().and_then(|first| run.children.get(first)) {
            run = &self.nodes[child.index()];
            let count = common_prefix(&run.keys, rest);
            found.pages += count as u32;
            found.last = Some(run.pages[count - 1]);
            if count < run.len() {
                break;
            }
            rest = &rest[count..];
        }
        found
    }

    /// Appends the pages from the start of the chain to `last` to `out`, in order.
    ///
    /// # Panics
    /// If `last` is not in the tree.
    pub fn path(&self, last: PageId, out: &mut Vec<PageId>) {
        let start = out.len();
        let mut end = start + self.depth(last) as usize + 1;
        out.resize(end, PageId::default());
        let mut next = Some(last);
        while let Some(page) = next {
            let run = &self.nodes[self.slot(page).node.index()];
            let pages = &run.pages[..=self.offset(page)];
            out[end - pages.len()..end].copy_from_slice(pages);
            end -= pages.len();
            next = run.parent;
        }
        assert_eq!(end, start, "the depths of a chain count its pages");
    }

    /// Pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free_slots.len()
    }

    /// No pages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Nodes, without the root.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes.len() - self.free_nodes.len() - 1
    }

    /// Whether the page is in the tree.
    #[must_use]
    pub fn contains(&self, page: PageId) -> bool {
        self.slots.get(page.index()).is_some_and(|slot| slot.node != node::FREE)
    }

    /// The page before this one. O(1).
    ///
    /// # Panics
    /// If the page is not in the tree.
    #[must_use]
    pub fn parent(&self, page: PageId) -> Option<PageId> {
        let run = &self.nodes[self.slot(page).node.index()];
        match self.offset(page) {
            0 => run.parent,
            offset => Some(run.pages[offset - 1]),
        }
    }

    /// How many pages follow directly behind this one. O(1).
    ///
    /// # Panics
    /// If the page is not in the tree.
    #[must_use]
    pub fn children(&self, page: PageId) -> u32 {
        let run = &self.nodes[self.slot(page).node.index()];
        if self.offset(page) + 1 < run.len() { 1 } else { run.children.len() as u32 }
    }

    /// Calls `each` with the pages directly behind this one, in the order of their keys.
    ///
    /// # Panics
    /// If the page is not in the tree.
    pub fn for_each_child(&self, page: PageId, mut each: impl FnMut(PageId)) {
        let run = &self.nodes[self.slot(page).node.index()];
        match run.pages.get(self.offset(page) + 1) {
            Some(&next) => each(next),
            None => run.children.values().for_each(|child| each(self.nodes[child.index()].pages[0])),
        }
    }

    /// Index of the page in its chain, from 0. O(1).
    ///
    /// # Panics
    /// If the page is not in the tree.
    #[must_use]
    pub fn depth(&self, page: PageId) -> u32 {
        self.slot(page).depth
    }

    /// The page's key.
    ///
    /// # Panics
    /// If the page is not in the tree.
    #[must_use]
    pub fn key(&self, page: PageId) -> PageKey {
        self.nodes[self.slot(page).node.index()].keys[self.offset(page)]
    }

    /// All pages, ordered by their id.
    pub fn iter(&self) -> impl Iterator<Item = PageId> + '_ {
        let pages = self.slots.iter().zip(0..);
        pages.filter(|(slot, _)| slot.node != node::FREE).map(|(_, index)| PageId(index))
    }

    /// The slot of a page that is in the tree.
    fn slot(&self, page: PageId) -> &Slot<P> {
        let slot = self.slots.get(page.index()).filter(|slot| slot.node != node::FREE);
        slot.unwrap_or_else(|| panic!("{page:?} is not in the tree"))
    }

    /// Place of a page in its node.
    fn offset(&self, page: PageId) -> usize {
        let slot = self.slot(page);
        (slot.depth - self.nodes[slot.node.index()].depth) as usize
    }
}

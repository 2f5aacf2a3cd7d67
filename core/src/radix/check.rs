//! The tree looked at as a whole: its invariants and its fingerprint.

use alloc::vec;

use crate::digest::Digest;

use super::node::{FREE, ROOT};
use super::{Radix, node::NodeId};

impl<P: Default> Radix<P> {
    /// Walks the whole tree.
    ///
    /// # Panics
    /// If an invariant of the module is broken.
    pub fn check(&self) {
        let mut seen = vec![false; self.nodes.len()];
        let mut pages = 0;
        let mut open = vec![ROOT];
        while let Some(id) = open.pop() {
            assert!(!core::mem::replace(&mut seen[id.index()], true), "{id:?} is reached twice");
            pages += self.check_node(id);
            open.extend(self.nodes[id.index()].children.values());
        }
        assert_eq!(pages, self.len(), "pages that the nodes hold and slots in use");
        for id in &self.free_nodes {
            assert!(!core::mem::replace(&mut seen[id.index()], true), "{id:?} is free and in use, or free twice");
            assert_eq!(self.nodes[id.index()].keys.capacity(), 0, "a free node keeps no memory");
        }
        assert!(seen.iter().all(|&seen| seen), "a node is neither in the tree nor free");
        let mut freed = vec![false; self.slots.len()];
        for page in &self.free_slots {
            assert_eq!(self.slots[page.index()].node, FREE, "{page:?} is free and in use");
            assert!(!core::mem::replace(&mut freed[page.index()], true), "{page:?} is free twice");
        }
        assert_eq!(self.iter().count(), self.len(), "slots in use and slots not in the free list");
    }

    /// Returns the node's pages.
    fn check_node(&self, id: NodeId) -> usize {
        let run = &self.nodes[id.index()];
        assert_eq!(run.keys.len(), run.pages.len(), "each page has a key");
        if id == ROOT {
            assert!(run.keys.is_empty(), "the root holds no page");
        } else {
            assert!(!run.keys.is_empty(), "{id:?} holds no page");
            assert_ne!(run.children.len(), 1, "{id:?} has a lone child");
        }
        for (depth, page) in (run.depth..).zip(&run.pages) {
            let slot = &self.slots[page.index()];
            assert_eq!(slot.node, id, "node of {page:?}");
            assert_eq!(slot.depth, depth, "depth of {page:?}");
        }
        for (key, child) in &run.children {
            let below = &self.nodes[child.index()];
            assert_eq!(below.keys.first(), Some(key), "a child is known by its first key");
            assert_eq!(below.parent, run.pages.last().copied(), "the parent of a node is the page before it");
            assert_eq!(below.depth, run.depth + run.len() as u32, "depth of {child:?}");
        }
        run.len()
    }

    /// Adds everything that can change what the tree does next. Payloads are the caller's matter, and the shape of
    /// the nodes follows from the chains.
    pub fn digest(&self, digest: &mut Digest) {
        digest.word(self.slots.len() as u64);
        for page in self.iter() {
            digest.value(&page);
            digest.value(&self.key(page));
            digest.value(&self.parent(page));
        }
        for page in &self.free_slots {
            digest.value(page);
        }
    }
}

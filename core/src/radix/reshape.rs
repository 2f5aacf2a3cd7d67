//! How nodes grow, split, merge and go. Nothing here moves a payload or changes the depth of a page.

use alloc::vec::Vec;

use crate::id::PageKey;

use super::node::{FREE, Node, NodeId, ROOT};
use super::{PageId, Radix, Slot};

impl<P: Default> Radix<P> {
    /// Adds new pages behind the first `offset` pages of a node.
    pub(super) fn append(&mut self, id: NodeId, offset: usize, keys: &[PageKey], out: &mut Vec<PageId>) {
        let above = if offset < self.nodes[id.index()].len() { self.split(id, offset) } else { id };
        let run = &self.nodes[above.index()];
        let id = if above == ROOT || !run.children.is_empty() {
            let leaf = Node {
                parent: run.pages.last().copied(),
                depth: run.depth + run.len() as u32,
                keys: Vec::with_capacity(keys.len()),
                pages: Vec::with_capacity(keys.len()),
                ..Node::default()
            };
            let leaf = self.create(leaf);
            let shadowed = self.nodes[above.index()].children.insert(keys[0], leaf);
            assert_eq!(shadowed, None, "a child of this key would have been followed");
            leaf
        } else {
            above
        };
        let run = &mut self.nodes[id.index()];
        let depths = run.depth + run.len() as u32..;
        run.keys.extend_from_slice(keys);
        for (_, depth) in keys.iter().zip(depths) {
            let page = match self.free_slots.pop() {
                Some(page) => {
                    let slot = &mut self.slots[page.index()];
                    (slot.node, slot.depth) = (id, depth);
                    page
                }
                None => {
                    let page = PageId(u32::try_from(self.slots.len()).expect("fewer than 2^32 pages"));
                    self.slots.push(Slot { node: id, depth, payload: P::default() });
                    page
                }
            };
            run.pages.push(page);
            out.push(page);
        }
    }

    /// Cuts a node before its page `at` and returns the node that holds the upper half.
    ///
    /// The longer half keeps the node's id and its arrays, so the slots of the shorter one are all that is rewritten:
    /// `min(at, len - at)` slots and at most one memmove of the rest. Children of the node are not visited, because
    /// they name a page as their parent.
    ///
    /// ```text
    ///   before   a b c d e f          after, at = 2      a b        new id
    ///            └ id ─────┘                                └ c d e f   id
    /// ```
    pub(super) fn split(&mut self, id: NodeId, at: usize) -> NodeId {
        let run = &mut self.nodes[id.index()];
        assert!(at > 0, "the upper half of a split holds a page");
        assert!(at < run.len(), "the lower half of a split holds a page");
        let upper_last = Some(run.pages[at - 1]);
        let upper_first = run.keys[0];
        let lower_first = run.keys[at];
        if at < run.len() - at {
            let upper = Node {
                keys: run.keys.drain(..at).collect(),
                pages: run.pages.drain(..at).collect(),
                parent: core::mem::replace(&mut run.parent, upper_last),
                depth: run.depth,
                ..Node::default()
            };
            run.depth += at as u32;
            run.shrink();
            let upper_parent = self.node_of(upper.parent);
            let upper = self.create(upper);
            self.nodes[upper.index()].children.insert(lower_first, id);
            self.nodes[upper_parent.index()].children.insert(upper_first, upper);
            self.relabel(upper, 0);
            upper
        } else {
            let lower = Node {
                keys: run.keys.split_off(at),
                pages: run.pages.split_off(at),
                parent: upper_last,
                depth: run.depth + at as u32,
                children: core::mem::take(&mut run.children),
            };
            run.shrink();
            let lower = self.create(lower);
            self.nodes[id.index()].children.insert(lower_first, lower);
            self.relabel(lower, 0);
            id
        }
    }

    /// Frees an empty leaf whose first key was `key`.
    pub(super) fn delete(&mut self, id: NodeId, key: PageKey) {
        let above = self.node_of(self.nodes[id.index()].parent);
        let children = &mut self.nodes[above.index()].children;
        let removed = children.remove(&key);
        assert_eq!(removed, Some(id), "a node is known to the node above it by its first key");
        let lone = children.len() == 1;
        self.free(id);
        if lone && above != ROOT {
            self.merge(above);
        }
    }

    /// Joins a node with its only child. As in a split, the longer half keeps its id.
    fn merge(&mut self, upper: NodeId) {
        let (_, &lower) = self.nodes[upper.index()].children.first_key_value().expect("a merge has a lower half");
        let upper_len = self.nodes[upper.index()].len();
        if self.nodes[lower.index()].len() <= upper_len {
            let mut tail = self.free(lower);
            let run = &mut self.nodes[upper.index()];
            run.keys.append(&mut tail.keys);
            run.pages.append(&mut tail.pages);
            run.children = tail.children;
            self.relabel(upper, upper_len);
        } else {
            let head = self.free(upper);
            let above = self.node_of(head.parent);
            let replaced = self.nodes[above.index()].children.insert(head.keys[0], lower);
            assert_eq!(replaced, Some(upper), "a node is known to the node above it by its first key");
            let run = &mut self.nodes[lower.index()];
            run.parent = head.parent;
            run.depth = head.depth;
            run.keys.splice(..0, head.keys);
            run.pages.splice(..0, head.pages);
            for page in &run.pages[..upper_len] {
                self.slots[page.index()].node = lower;
            }
        }
    }

    /// Tells the pages of a node, from `start` on, that they are in it.
    fn relabel(&mut self, id: NodeId, start: usize) {
        for page in &self.nodes[id.index()].pages[start..] {
            self.slots[page.index()].node = id;
        }
    }

    /// The node of a page, the root for none.
    fn node_of(&self, page: Option<PageId>) -> NodeId {
        page.map_or(ROOT, |page| self.slots[page.index()].node)
    }

    fn create(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.free_nodes.pop() {
            self.nodes[id.index()] = node;
            return id;
        }
        let id = NodeId(self.nodes.len() as u32);
        assert_ne!(id, FREE, "fewer than 2^32 nodes");
        self.nodes.push(node);
        id
    }

    /// Gives an id back and returns what was in it; an unused node keeps no memory.
    fn free(&mut self, id: NodeId) -> Node {
        assert_ne!(id, ROOT, "the root stays");
        self.free_nodes.push(id);
        core::mem::take(&mut self.nodes[id.index()])
    }
}

//! What each page of each worker holds, as tags: which page of which text, and how much of it.
//!
//! Owns the check that a forward reads exactly the KV of its own sequence. Lanes tell it what moves; it knows nothing of
//! time or of why. Off unless a world is checked.
//!
//! ```text
//!   Empty --forward, copy, fetch start--> Filling --end--> Page { key, filled }
//! ```
//!
//! 1. A page's key is the chained key that it has (or will have) when it is full; answers are a pure function, so the key
//!    of a half-filled page is known.
//! 2. A copy must find its source as it was at its start: pages in use by an operation do not change hands.

use std::collections::BTreeMap;

use pd_core::batch::Batch;
use pd_core::id::{GpuPage, HostPage, PageKey, RequestId, Token};
use pd_core::key::page_key;
use pd_core::op::Prompt;
use pd_core::time::Instant;

use crate::setup::Answer;

/// All pages of all workers.
#[derive(Debug)]
pub struct Memory {
    nodes: Vec<NodeMemory>,
    texts: Vec<Text>,
    answer: Answer,
    violations: Vec<Violation>,
}

/// A page of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell {
    node: u32,
    is_host: bool,
    page: u32,
}

/// What a page holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tag {
    /// Nothing that anybody may read.
    #[default]
    Empty,
    /// Something is being written to it.
    Filling,
    /// The first `filled` tokens of a page.
    Page {
        /// Its key once full.
        key: PageKey,
        /// How many.
        filled: u32,
    },
}

/// Something that must never happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// When.
    pub at: Instant,
    /// Index of the worker.
    pub worker: u32,
    /// Whose sequence, if one is concerned.
    pub request: Option<RequestId>,
    /// Page of the sequence or, without a request, of the pool.
    pub page: u32,
    /// What is wrong.
    pub what: String,
}

#[derive(Debug, Default)]
struct NodeMemory {
    page_size: u32,
    gpu: Vec<Tag>,
    host: Vec<Tag>,
    tables: BTreeMap<RequestId, Vec<GpuPage>>,
}

/// What the sequence of a request consists of.
#[derive(Debug, Default)]
struct Text {
    /// Of the answer.
    seed: u64,
    root: PageKey,
    length: u32,
    /// Grows over the answer as it is asked for.
    keys: Vec<PageKey>,
    /// Tokens behind the full pages of the prompt.
    tail: Vec<Token>,
    tail_from: u32,
}

impl Cell {
    /// A page of L1.
    #[must_use]
    pub const fn gpu(node: u32, page: GpuPage) -> Self {
        Self { node, is_host: false, page: page.0 }
    }

    /// A page of L2.
    #[must_use]
    pub const fn host(node: u32, page: HostPage) -> Self {
        Self { node, is_host: true, page: page.0 }
    }
}

impl Memory {
    /// No workers, no requests.
    #[must_use]
    pub const fn new(answer: Answer) -> Self {
        Self { nodes: Vec::new(), texts: Vec::new(), answer, violations: Vec::new() }
    }

    /// A worker starts a life with empty pools; `node` is a known one or the next.
    pub fn boot(&mut self, node: u32, page_size: u32, gpu_pages: u32, host_pages: u32) {
        let index = node as usize;
        if index == self.nodes.len() {
            self.nodes.push(NodeMemory::default());
        }
        self.nodes[index] = NodeMemory {
            page_size,
            gpu: vec![Tag::Empty; gpu_pages as usize],
            host: vec![Tag::Empty; host_pages as usize],
            tables: BTreeMap::new(),
        };
    }

    /// A request is known from here on. Requests are told in order of their names; a second telling replaces the first.
    pub fn tell(&mut self, request: RequestId, prompt: &Prompt, seed: u64) {
        let index = request.0 as usize;
        if index >= self.texts.len() {
            self.texts.resize_with(index + 1, Text::default);
        }
        self.texts[index] = Text {
            seed,
            root: prompt.root,
            length: prompt.length,
            keys: prompt.keys.clone(),
            tail: prompt.tokens.clone(),
            tail_from: prompt.length - prompt.tokens.len() as u32,
        };
    }

    /// The sequence of a request has left a worker, or has a new page table there.
    pub fn forget(&mut self, node: u32, request: RequestId) {
        self.nodes[node as usize].tables.remove(&request);
    }

    /// A forward has ended: it has read what came before each run and has written the run.
    pub fn forward(&mut self, now: Instant, node: u32, batch: &Batch) {
        for run in batch.runs() {
            let memory = &mut self.nodes[node as usize];
            let page_size = memory.page_size;
            let table = memory.tables.entry(run.request).or_default();
            table.truncate(run.table_from as usize);
            table.extend_from_slice(batch.pages(run));
            let table = std::mem::take(table);
            let end = run.start + run.count;
            if table.len() < end.div_ceil(page_size) as usize {
                self.report(now, node, Some(run.request), table.len() as u32, "has no page in the table".into());
                continue;
            }
            for page in 0..end.div_ceil(page_size) {
                let key = self.key(run.request, page, page_size);
                let cell = Cell::gpu(node, table[page as usize]);
                let read = run.start.saturating_sub(page * page_size).min(page_size);
                let tag = self.tag(cell);
                let good = matches!(tag, Tag::Page { key: have, filled } if have == key && filled >= read);
                if read > 0 && !good {
                    let what = format!("holds {tag:?} where {read} tokens of {key:?} are read (L1 page {})", cell.page);
                    self.report(now, node, Some(run.request), page, what);
                }
                let written = (end - page * page_size).min(page_size);
                if written > read {
                    let filled = match tag {
                        Tag::Page { key: have, filled } if have == key => filled.max(written),
                        Tag::Page { .. } | Tag::Empty | Tag::Filling => written,
                    };
                    *self.slot(cell) = Tag::Page { key, filled };
                }
            }
            self.nodes[node as usize].tables.insert(run.request, table);
        }
    }

    /// A copy of finished pages starts: notes what the sources hold and spoils the destinations.
    pub fn copying(&mut self, cells: &[(Cell, Cell)]) -> Vec<Tag> {
        let before = cells.iter().map(|(source, _)| self.tag(*source)).collect();
        self.filling(cells.iter().map(|(_, sink)| *sink));
        before
    }

    /// A copy has ended. Without `before` its sources were still being written when it started.
    pub fn copied(&mut self, now: Instant, cells: &[(Cell, Cell)], before: &[Tag]) {
        for (index, (source, sink)) in cells.iter().enumerate() {
            let tag = self.tag(*source);
            if !matches!(tag, Tag::Page { .. }) {
                self.report(now, source.node, None, source.page, format!("is copied while it holds {tag:?}"));
            } else if before.get(index).is_some_and(|before| *before != tag) {
                let what = format!("changed from {:?} to {tag:?} while it was copied", before[index]);
                self.report(now, source.node, None, source.page, what);
            }
            if self.tag(*sink) != Tag::Filling {
                let what = format!("was written by two at once and holds {:?}", self.tag(*sink));
                self.report(now, sink.node, None, sink.page, what);
            }
            *self.slot(*sink) = tag;
        }
    }

    /// Something is being written to pages.
    pub fn filling(&mut self, cells: impl Iterator<Item = Cell>) {
        for cell in cells {
            *self.slot(cell) = Tag::Filling;
        }
    }

    /// A fetch from L3 has ended with the KV of `content`, or with nothing.
    pub fn fetched(&mut self, cell: Cell, content: Option<PageKey>) {
        let filled = self.nodes[cell.node as usize].page_size;
        *self.slot(cell) = content.map_or(Tag::Empty, |key| Tag::Page { key, filled });
    }

    /// A page has been written to L3 under `key`; returns whose KV that really was.
    pub fn persisted(&mut self, now: Instant, cell: Cell, key: PageKey, before: Tag) -> PageKey {
        let tag = self.tag(cell);
        let full = self.nodes[cell.node as usize].page_size;
        if tag != before || tag != (Tag::Page { key, filled: full }) {
            let what = format!("is stored as {key:?} and held {before:?}, then {tag:?}");
            self.report(now, cell.node, None, cell.page, what);
        }
        match tag {
            Tag::Page { key, .. } => key,
            Tag::Empty | Tag::Filling => PageKey::default(),
        }
    }

    /// What a page holds.
    #[must_use]
    pub fn tag(&self, cell: Cell) -> Tag {
        let node = &self.nodes[cell.node as usize];
        if cell.is_host { node.host[cell.page as usize] } else { node.gpu[cell.page as usize] }
    }

    /// What went wrong so far.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    fn slot(&mut self, cell: Cell) -> &mut Tag {
        let node = &mut self.nodes[cell.node as usize];
        if cell.is_host { &mut node.host[cell.page as usize] } else { &mut node.gpu[cell.page as usize] }
    }

    /// The key that a page of a sequence has once it is full.
    fn key(&mut self, request: RequestId, page: u32, page_size: u32) -> PageKey {
        let answer = self.answer;
        let Some(text) = self.texts.get_mut(request.0 as usize) else { return PageKey::default() };
        while text.keys.len() <= page as usize {
            let start = text.keys.len() as u32 * page_size;
            let token = |position: u32| match position.checked_sub(text.length) {
                Some(index) => answer(text.seed, index),
                None => text.tail[(position - text.tail_from) as usize],
            };
            let tokens: Vec<Token> = (start..start + page_size).map(token).collect();
            let parent = text.keys.last().copied().unwrap_or(text.root);
            text.keys.push(page_key(parent, &tokens));
        }
        text.keys[page as usize]
    }

    fn report(&mut self, at: Instant, worker: u32, request: Option<RequestId>, page: u32, what: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { at, worker, request, page, what });
        }
    }
}

/// Violations kept; the first ones are those that tell.
const VIOLATIONS_MAX: usize = 1000;

#[cfg(test)]
mod tests;

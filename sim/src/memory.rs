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
//! 3. A forward costs what it adds. The pages before it were looked at when they entered the table or were written; if
//!    any page of any table has been overwritten since (which a machine without mistakes does not do), all are looked at
//!    again.

use std::collections::BTreeMap;

use pd_core::batch::{Batch, Run};
use pd_core::id::{GpuPage, HostPage, PageKey, RequestId, Token};
use pd_core::key::page_key;
use pd_core::op::Prompt;
use pd_core::time::Instant;

use crate::check::{Checker, Violation};
use crate::setup::Answers;

/// All pages of all workers.
#[derive(Debug)]
pub struct Memory {
    nodes: Vec<NodeMemory>,
    texts: Vec<Text>,
    answers: Answers,
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
    /// What was computed behind a failure that its worker had not heard of. A push that left while it was computed
    /// carries it, as nobody could know; to read it, to copy it later or to hand it over is a violation like any other.
    Void,
    /// The first `filled` tokens of a page.
    Page {
        /// Its key once full.
        key: PageKey,
        /// How many.
        filled: u32,
    },
}

#[derive(Debug, Default)]
struct NodeMemory {
    page_size: u32,
    gpu: Vec<Tag>,
    host: Vec<Tag>,
    /// By device page: tables that name it.
    users: Vec<u32>,
    tables: BTreeMap<RequestId, Table>,
    /// Counts pages that were overwritten while a table named them.
    version: u64,
}

/// The page table of a sequence as the device knows it.
#[derive(Debug, Default)]
struct Table {
    pages: Vec<GpuPage>,
    /// Leading full pages that were found good as of `version`.
    verified: u32,
    version: u64,
    /// The sequence has ended, and a forward in flight still names it.
    is_closing: bool,
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
    pub const fn new(answers: Answers) -> Self {
        Self { nodes: Vec::new(), texts: Vec::new(), answers, violations: Vec::new() }
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
            users: vec![0; gpu_pages as usize],
            tables: BTreeMap::new(),
            version: 0,
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

    /// The sequence of a request has left a worker. `is_named`: a forward in flight still names it.
    pub fn forget(&mut self, node: u32, request: RequestId, is_named: bool) {
        let node = &mut self.nodes[node as usize];
        if is_named {
            if let Some(table) = node.tables.get_mut(&request) {
                table.is_closing = true;
            }
        } else if let Some(mut table) = node.tables.remove(&request) {
            node.cut(&mut table, 0);
        }
    }

    /// A request is computed for from the begin of its table on: what is left of a former table, whose last forward
    /// failed, is over.
    pub fn begin(&mut self, node: u32, request: RequestId, is_named: bool) {
        let is_left = self.nodes[node as usize].tables.get(&request).is_some_and(|table| table.is_closing);
        if is_left && !is_named {
            self.forget(node, request, false);
        }
    }

    /// A forward has ended: it has read what came before each run and has written the run. `is_named` tells whether
    /// another forward in flight names a request. `void`: requests of which the forward before this one failed; what is
    /// written for them is worth nothing, and nobody may read it.
    pub fn forward(
        &mut self,
        now: Instant,
        node: u32,
        batch: &Batch,
        void: &[RequestId],
        is_named: impl Fn(RequestId) -> bool,
    ) {
        for run in batch.runs() {
            let mut table = self.take_table(node, batch, run);
            if void.contains(&run.request) {
                self.spoil_run(node, run, &table);
            } else {
                self.run(now, node, run, &mut table);
            }
            self.put_table(node, run.request, table, &is_named);
        }
    }

    /// A forward has failed: it has told the device of pages and has written nothing.
    pub fn forward_failed(&mut self, node: u32, batch: &Batch, is_named: impl Fn(RequestId) -> bool) {
        for run in batch.runs() {
            let table = self.take_table(node, batch, run);
            self.put_table(node, run.request, table, &is_named);
        }
    }

    /// The table of a run, with the pages that the run tells of.
    fn take_table(&mut self, node: u32, batch: &Batch, run: &Run) -> Table {
        let memory = &mut self.nodes[node as usize];
        let mut table = memory.tables.get_mut(&run.request).map(std::mem::take).unwrap_or_default();
        memory.extend(&mut table, run.table_from, batch.pages(run));
        table
    }

    fn put_table(&mut self, node: u32, request: RequestId, mut table: Table, is_named: &impl Fn(RequestId) -> bool) {
        let memory = &mut self.nodes[node as usize];
        if table.is_closing && !is_named(request) {
            memory.tables.remove(&request);
            memory.cut(&mut table, 0);
        } else if let Some(place) = memory.tables.get_mut(&request) {
            *place = table;
        } else {
            memory.tables.insert(request, table);
        }
    }

    /// Whatever was in the places of the run is gone; what is before them in the first page stays.
    fn spoil_run(&mut self, node: u32, run: &Run, table: &Table) {
        let page_size = self.nodes[node as usize].page_size;
        let pages = run.start / page_size..(run.start + run.count).div_ceil(page_size);
        for page in pages {
            let Some(gpu) = table.pages.get(page as usize) else { return };
            let cell = Cell::gpu(node, *gpu);
            let before = run.start.saturating_sub(page * page_size);
            let left = match self.tag(cell) {
                Tag::Page { key, filled } if before > 0 => Tag::Page { key, filled: filled.min(before) },
                Tag::Page { .. } | Tag::Empty | Tag::Filling | Tag::Void => Tag::Void,
            };
            self.set(cell, left);
        }
    }

    fn run(&mut self, now: Instant, node: u32, run: &Run, table: &mut Table) {
        let page_size = self.nodes[node as usize].page_size;
        let end = run.start + run.count;
        if table.pages.len() < end.div_ceil(page_size) as usize {
            let page = table.pages.len() as u32;
            return self.report(now, node, Some(run.request), page, "has no page in the table".into());
        }
        let read_pages = run.start / page_size;
        for page in table.verified.min(read_pages)..end.div_ceil(page_size) {
            let key = self.key(run.request, page, page_size);
            let cell = Cell::gpu(node, table.pages[page as usize]);
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
                    Tag::Page { .. } | Tag::Empty | Tag::Filling | Tag::Void => written,
                };
                self.set(cell, Tag::Page { key, filled });
            }
        }
        table.verified = table.verified.max(end / page_size);
        table.version = self.nodes[node as usize].version;
    }

    /// Pages of a sequence are handed over: page `first` and on of a text of `length` tokens are to be in `pages`.
    pub fn handed_over(
        &mut self,
        now: Instant,
        node: u32,
        request: RequestId,
        length: u32,
        first: u32,
        pages: &[GpuPage],
    ) {
        let page_size = self.nodes[node as usize].page_size;
        for (page, gpu) in (first..).zip(pages) {
            let key = self.key(request, page, page_size);
            let needed = length.saturating_sub(page * page_size).min(page_size);
            let tag = self.tag(Cell::gpu(node, *gpu));
            if !matches!(tag, Tag::Page { key: have, filled } if have == key && filled >= needed) {
                let what =
                    format!("is handed over with {tag:?} where {needed} tokens of {key:?} belong (L1 page {gpu})");
                self.report(now, node, Some(request), page, what);
            }
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
            let is_known = !before.is_empty();
            if !matches!(tag, Tag::Page { .. }) && (is_known || tag != Tag::Void) {
                self.report(now, source.node, None, source.page, format!("is copied while it holds {tag:?}"));
            } else if before.get(index).is_some_and(|before| *before != tag) {
                let what = format!("changed from {:?} to {tag:?} while it was copied", before[index]);
                self.report(now, source.node, None, source.page, what);
            }
            if self.tag(*sink) != Tag::Filling {
                let what = format!("was written by two at once and holds {:?}", self.tag(*sink));
                self.report(now, sink.node, None, sink.page, what);
            }
            self.set(*sink, tag);
        }
    }

    /// Something is being written to pages.
    pub fn filling(&mut self, cells: impl Iterator<Item = Cell>) {
        for cell in cells {
            self.set(cell, Tag::Filling);
        }
    }

    /// A fetch from L3 has ended with the KV of `content`, or with nothing.
    pub fn fetched(&mut self, cell: Cell, content: Option<PageKey>) {
        let filled = self.nodes[cell.node as usize].page_size;
        self.set(cell, content.map_or(Tag::Empty, |key| Tag::Page { key, filled }));
    }

    /// As [`fetched`](Self::fetched), of the object `key`: whoever asked is told that it is good.
    pub fn delivered(&mut self, now: Instant, cell: Cell, key: PageKey, content: Option<PageKey>) {
        if let Some(content) = content.filter(|content| *content != key) {
            self.report(now, cell.node, None, cell.page, format!("is filled with {content:?}, asked for as {key:?}"));
        }
        self.fetched(cell, content);
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
            Tag::Empty | Tag::Filling | Tag::Void => PageKey::default(),
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

    fn set(&mut self, cell: Cell, tag: Tag) {
        let node = &mut self.nodes[cell.node as usize];
        let page = cell.page as usize;
        if cell.is_host {
            node.host[page] = tag;
            return;
        }
        if node.users[page] > 0
            && let Tag::Page { key: old, filled: had } = node.gpu[page]
            && !matches!(tag, Tag::Page { key, filled } if key == old && filled >= had)
        {
            node.version += 1;
        }
        node.gpu[page] = tag;
    }

    /// The key that a page of a sequence has once it is full.
    fn key(&mut self, request: RequestId, page: u32, page_size: u32) -> PageKey {
        let Some(text) = self.texts.get_mut(request.0 as usize) else { return PageKey::default() };
        while text.keys.len() <= page as usize {
            let start = text.keys.len() as u32 * page_size;
            let token = |position: u32| match position.checked_sub(text.length) {
                Some(index) => self.answers.token(text.seed, index),
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
            let (worker, page) = (Some(worker), Some(page));
            self.violations.push(Violation { checker: Checker::Content, at, worker, request, page, what });
        }
    }
}

impl NodeMemory {
    /// Takes over what a run tells the device of the table of its sequence.
    fn extend(&mut self, table: &mut Table, from: u32, pages: &[GpuPage]) {
        self.cut(table, from);
        for page in pages {
            self.users[page.0 as usize] += 1;
        }
        table.pages.extend_from_slice(pages);
        if table.version != self.version {
            table.verified = 0;
        }
    }

    fn cut(&mut self, table: &mut Table, length: u32) {
        for page in table.pages.drain((length as usize).min(table.pages.len())..) {
            self.users[page.0 as usize] -= 1;
        }
        table.verified = table.verified.min(length);
    }
}

/// Violations kept; the first ones are those that tell.
const VIOLATIONS_MAX: usize = 1000;

#[cfg(test)]
mod tests;

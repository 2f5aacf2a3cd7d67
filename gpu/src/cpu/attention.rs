//! Attention over pages.
//!
//! Work is cut into some queries of one sequence times one head of keys: few enough that their scores stay in the
//! second-level cache. Scores are kept whole, not folded page by page, so that a result depends neither on the size of
//! pages nor on how queries were grouped: masked weights are exact zeros, which change no sum.

use rayon::prelude::*;

use super::forward::Exec;
use super::pages::Held;

/// One row of queries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query {
    /// Which of the held sequences.
    pub(super) run: usize,
    /// Its token's index in the sequence.
    pub(super) position: usize,
}

/// What a layer asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) layer: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Tokens that a query looks back, itself included.
    pub(super) window: Option<usize>,
}

/// Consecutive queries of one sequence.
#[derive(Clone, Copy, Debug)]
struct Block {
    first: usize,
    count: usize,
}

#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
    totals: Vec<f32>,
}

/// Rows of scores that are computed together.
const ROWS: usize = 16;

/// Multiply-adds below which other threads are left asleep.
const SERIAL: usize = 1 << 19;

/// For each row of `q` (`q_stride` apart) the mix of values that its heads ask for: rows of `heads * head_dim`.
pub(super) fn attend(
    exec: Exec,
    shape: Shape,
    held: &[Held<'_>],
    rows: &[Query],
    (q, q_stride): (&[f32], usize),
    out: &mut [f32],
) {
    let width = shape.heads * shape.head_dim;
    assert_eq!(out.len(), rows.len() * width, "room for each query");
    let group = shape.heads / shape.kv_heads;
    let mut blocks: Vec<Block> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        match blocks.last_mut() {
            Some(last) if rows[last.first].run == row.run && last.count < (ROWS / group).max(1) => last.count += 1,
            Some(_) | None => blocks.push(Block { first: index, count: 1 }),
        }
    }
    let out = Out { data: out.as_mut_ptr(), width, rows: rows.len() };
    let work = |scratch: &mut Scratch, item: usize| {
        let (block, head) = (blocks[item / shape.kv_heads], item % shape.kv_heads);
        let rows = &rows[block.first..][..block.count];
        let q = &q[block.first * q_stride..];
        scratch.block(exec, shape, &held[rows[0].run], head, rows, (q, q_stride));
        for (row, sums) in scratch.sums.chunks_exact(group * shape.head_dim).enumerate() {
            // SAFETY: each item writes its own rows and heads.
            unsafe { out.store(block.first + row, head * group * shape.head_dim, sums) };
        }
    };
    let items = blocks.len() * shape.kv_heads;
    let products: usize = rows.iter().map(|row| (row.position + 1) * width * 2).sum();
    if exec.threads == 1 || products < SERIAL {
        let mut scratch = Scratch::default();
        (0..items).for_each(|item| work(&mut scratch, item));
    } else {
        (0..items).into_par_iter().for_each_init(Scratch::default, work);
    }
}

impl Scratch {
    /// Leaves in `sums`, for each row and each head of the group, the mix of values.
    fn block(
        &mut self,
        exec: Exec,
        shape: Shape,
        held: &Held<'_>,
        head: usize,
        rows: &[Query],
        (q, q_stride): (&[f32], usize),
    ) {
        let (group, dim) = (shape.heads / shape.kv_heads, shape.head_dim);
        let lowest = |position: usize| shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        // Positions keep their lanes in the sums of `softmax` if a block begins at a multiple of 16.
        let begin = rows.iter().map(|row| lowest(row.position)).min().unwrap_or(0) / 16 * 16;
        let end = rows.iter().map(|row| row.position + 1).max().unwrap_or(0);
        let scale = 1.0 / (dim as f32).sqrt();
        self.queries.clear();
        for row in 0..rows.len() {
            let heads = &q[row * q_stride + head * group * dim..][..group * dim];
            self.queries.extend(heads.iter().map(|value| value * scale));
        }
        let lines = rows.len() * group;
        self.scores.resize(lines * (end - begin), 0.0);
        self.sums.resize(lines * dim, 0.0);
        let keys = held.vectors(shape.layer, false, head, begin..end);
        // SAFETY: the pages are held, and the pass writes none of them while it attends.
        unsafe { exec.isa.scores(&self.queries, keys, &mut self.scores) };
        self.totals.clear();
        for (line, scores) in self.scores.chunks_exact_mut(end - begin).enumerate() {
            let position = rows[line / group].position;
            let (from, to) = (lowest(position) - begin.min(lowest(position)), position + 1 - begin);
            self.totals.push(exec.isa.softmax(scores, from, to));
        }
        let values = held.vectors(shape.layer, true, head, begin..end);
        // SAFETY: as above.
        unsafe { exec.isa.mix(&self.scores, values, &mut self.sums) };
        for (sums, total) in self.sums.chunks_exact_mut(dim).zip(&self.totals) {
            let scale = 1.0 / total;
            // Adding zero makes one zero of two: masked values may have left either.
            sums.iter_mut().for_each(|sum| *sum = *sum * scale + 0.0);
        }
    }
}

/// The result, of which threads write different parts.
struct Out {
    data: *mut f32,
    width: usize,
    rows: usize,
}

// SAFETY: see `store`, the only access.
unsafe impl Sync for Out {}

impl Out {
    /// # Safety
    /// Nobody else may touch this part of the row meanwhile.
    unsafe fn store(&self, row: usize, from: usize, values: &[f32]) {
        assert!(row < self.rows && from + values.len() <= self.width, "a part of a row");
        // SAFETY: within the result, and nobody else touches it.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.width + from), values.len()) }
            .copy_from_slice(values);
    }
}

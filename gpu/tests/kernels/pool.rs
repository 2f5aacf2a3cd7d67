//! Paged KV in several layouts, and attention over it in f64.

use std::ops::Range;

use crate::check::{Draw, POISON, value};

/// How pages are laid out, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layout {
    /// [page][layer of 2][K, V][head][token][dim], the second layer in use.
    PageFirst,
    /// [K, V][page][token][head][dim].
    TokenFirst,
}

/// KV of several sequences. What is no token's is NaN: other layers, the rest of a last page, pages of nobody.
pub(crate) struct Pool {
    pub(crate) data: Vec<u16>,
    pub(crate) table: Vec<i32>,
    /// Pages a row of the table.
    pub(crate) pages_max: usize,
    pub(crate) page_shift: usize,
    pub(crate) dim: usize,
    /// Where K and V of this layer begin.
    pub(crate) k_at: usize,
    pub(crate) v_at: usize,
    pub(crate) page_stride: usize,
    pub(crate) head_stride: usize,
    pub(crate) token_stride: usize,
}

impl Pool {
    pub(crate) fn new(
        draw: &mut Draw,
        layout: Layout,
        page_shift: usize,
        heads: usize,
        dim: usize,
        lens: &[usize],
    ) -> Self {
        let page = 1 << page_shift;
        let pages_max = lens.iter().map(|len| len.div_ceil(page)).max().unwrap_or(0).max(1);
        let pages = pages_max * lens.len() + 2;
        let block = heads * page * dim;
        let (k_at, v_at, page_stride, head_stride, token_stride, size) = match layout {
            Layout::PageFirst => (2 * block, 3 * block, 4 * block, page * dim, dim, 4 * block * pages),
            Layout::TokenFirst => (0, block * pages, block, dim, heads * dim, 2 * block * pages),
        };
        let order = draw.shuffled(pages);
        let table = (0..lens.len() * pages_max).map(|index| order[index] as i32).collect();
        let mut pool = Self {
            data: vec![POISON; size],
            table,
            pages_max,
            page_shift,
            dim,
            k_at,
            v_at,
            page_stride,
            head_stride,
            token_stride,
        };
        for (row, len) in lens.iter().enumerate() {
            for token in 0..*len {
                for head in 0..heads {
                    let (k, v) = (draw.values(dim, 0.0, 1.5), draw.values(dim, 0.3, 1.0));
                    pool.put(row, token, head, &k, &v);
                }
            }
        }
        // A table names nothing behind a sequence's last page.
        for (row, len) in lens.iter().enumerate() {
            for entry in &mut pool.table[row * pages_max..][len.div_ceil(page)..pages_max] {
                *entry = i32::MAX / 2;
            }
        }
        pool
    }

    pub(crate) fn pages(&self) -> usize {
        let tensors = if self.k_at == 0 { 2 } else { 1 };
        self.data.len() / (self.page_stride * tensors)
    }

    /// Writes K and V of a head of a token.
    pub(crate) fn put(&mut self, row: usize, token: usize, head: usize, k: &[u16], v: &[u16]) {
        let at = self.place(row, token, head);
        self.data[self.k_at + at..][..self.dim].copy_from_slice(k);
        self.data[self.v_at + at..][..self.dim].copy_from_slice(v);
    }

    /// Where a head of a token is, from the start of K or V.
    fn place(&self, row: usize, token: usize, head: usize) -> usize {
        let page = self.table[row * self.pages_max + (token >> self.page_shift)] as usize;
        page * self.page_stride + head * self.head_stride + (token & ((1 << self.page_shift) - 1)) * self.token_stride
    }

    /// The output of one query head over some tokens of a sequence.
    pub(crate) fn attend(&self, q: &[u16], row: usize, keys: Range<usize>, kv_head: usize) -> Vec<f64> {
        let scale = 1.0 / (self.dim as f64).sqrt();
        let scores: Vec<f64> = keys
            .clone()
            .map(|token| {
                let k = &self.data[self.k_at + self.place(row, token, kv_head)..][..self.dim];
                q.iter().zip(k).map(|(q, k)| value(*q) * value(*k)).sum::<f64>() * scale
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        let mut out = vec![0.0; self.dim];
        for (token, score) in keys.zip(&scores) {
            let v = &self.data[self.v_at + self.place(row, token, kv_head)..][..self.dim];
            for (out, v) in out.iter_mut().zip(v) {
                *out += (score - largest).exp() / sum * value(*v);
            }
        }
        out
    }

    /// log2(e) / sqrt(dim), as kernels want it.
    pub(crate) fn scale_log2(&self) -> f32 {
        (std::f64::consts::LOG2_E / (self.dim as f64).sqrt()) as f32
    }
}

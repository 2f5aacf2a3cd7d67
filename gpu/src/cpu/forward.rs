//! One pass of the model over rows of tokens of any sequences, in the order of the layers.
//!
//! ```text
//!   x = embedding
//!   each layer    n = norm(x);  q, k, v = n * qkv;  norms of heads, rotation;  k, v -> pages
//!                 x += attention(q, pages) * out;   x += (silu(gate) * up)(norm(x)) * down
//!   logits = norm(x) * output                            only of rows that are sampled
//! ```
//! Keys and values are read back from the pages, rounded as stored: it makes no difference whether this pass wrote them.

use rayon::prelude::*;

use pd_core::id::Token;

use super::attention::{Query, Shape, attend};
use super::kernel::{Isa, math};
use super::matrix::Write;
use super::model::{Layer, Linear, Model};
use super::pages::Held;

/// How to compute: none of it changes a bit of the result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exec {
    pub(super) isa: Isa,
    /// Threads of the pool that the caller is in; 1 to stay alone.
    pub(super) threads: usize,
}

/// One token to compute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) token: Token,
    pub(super) query: Query,
    /// True if its logits are wanted.
    pub(super) sampled: bool,
}

/// Memory that passes reuse.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    x: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    gate_up: Vec<f32>,
    inner: Vec<f32>,
    rotation: Vec<f32>,
    queries: Vec<Query>,
    /// One line for each sampled row.
    pub(super) logits: Vec<f32>,
}

/// Elements of a row-wise step below which other threads are left asleep.
const SERIAL: usize = 1 << 16;

impl Model {
    /// Computes all rows, writes their keys and values, and leaves the logits of sampled rows in the buffers.
    pub(super) fn forward(&self, exec: Exec, rows: &[Row], held: &mut [Held<'_>], buffers: &mut Buffers) {
        let config = &self.config;
        let hidden = config.hidden;
        buffers.embed(self, rows);
        for (index, layer) in self.layers.iter().enumerate() {
            norm_rows(exec, &buffers.x, &layer.norm, config.eps, &mut buffers.normed);
            layer.qkv.apply(exec, &buffers.normed, Write::Set, &mut buffers.qkv);
            self.rotate(exec, layer, &buffers.rotation, &mut buffers.qkv);
            self.store(index, rows, held, &buffers.qkv);
            if index + 1 == self.layers.len() {
                buffers.keep_sampled(rows, hidden, layer.qkv.matrix.outputs);
            }
            let shape = Shape {
                layer: index,
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                window: layer.window,
            };
            let mixed = resized(&mut buffers.mixed, buffers.queries.len() * config.heads * config.head_dim);
            attend(exec, shape, held, &buffers.queries, (&buffers.qkv, layer.qkv.matrix.outputs), mixed);
            layer.out.apply(exec, mixed, Write::Add, &mut buffers.x);
            norm_rows(exec, &buffers.x, &layer.ffn_norm, config.eps, &mut buffers.normed);
            layer.gate_up.apply(exec, &buffers.normed, Write::Set, &mut buffers.gate_up);
            let inner = resized(&mut buffers.inner, buffers.queries.len() * config.ffn);
            each_row(exec, inner, config.ffn, |row, inner| {
                exec.isa.silu(&buffers.gate_up[row * 2 * config.ffn..][..2 * config.ffn], inner);
            });
            layer.down.apply(exec, inner, Write::Add, &mut buffers.x);
        }
        norm_rows(exec, &buffers.x, &self.norm, config.eps, &mut buffers.normed);
        let logits = resized(&mut buffers.logits, buffers.queries.len() * config.vocab);
        self.output().product(exec, &buffers.normed, None, Write::Set, logits);
    }

    /// Norms and rotates the heads of queries and keys.
    fn rotate(&self, exec: Exec, layer: &Layer, rotation: &[f32], qkv: &mut [f32]) {
        let config = &self.config;
        let (dim, half) = (config.head_dim, config.head_dim / 2);
        each_row(exec, qkv, layer.qkv.matrix.outputs, |row, qkv| {
            let (cos, sin) = rotation[row * dim..][..dim].split_at(half);
            let rotated = &mut qkv[..(config.heads + config.kv_heads) * dim];
            for (index, head) in rotated.chunks_exact_mut(dim).enumerate() {
                if let Some((queries, keys)) = &layer.head_norms {
                    let weight = if index < config.heads { queries } else { keys };
                    let mut normed = [0.0; HEAD_MAX];
                    exec.isa.rms_norm(head, weight, config.eps, &mut normed[..dim]);
                    head.copy_from_slice(&normed[..dim]);
                }
                math::rotate(head, cos, sin);
            }
        });
    }

    /// Writes the keys and values of all rows into pages.
    fn store(&self, layer: usize, rows: &[Row], held: &mut [Held<'_>], qkv: &[f32]) {
        let config = &self.config;
        let width = (config.heads + 2 * config.kv_heads) * config.head_dim;
        for (row, qkv) in rows.iter().zip(qkv.chunks_exact(width)) {
            let (_, stored) = qkv.split_at(config.heads * config.head_dim);
            for (index, vector) in stored.chunks_exact(config.head_dim).enumerate() {
                let (values, head) = (index >= config.kv_heads, index % config.kv_heads);
                held[row.query.run].write(layer, values, head, row.query.position, vector);
            }
        }
    }
}

/// Most elements of a head; `Config::parse` refuses more.
const HEAD_MAX: usize = 1024;

impl Linear {
    fn apply(&self, exec: Exec, x: &[f32], write: Write, y: &mut Vec<f32>) {
        let y = resized(y, x.len() / self.matrix.inputs * self.matrix.outputs);
        self.matrix.product(exec, x, self.bias.as_deref(), write, y);
    }
}

impl Buffers {
    /// The embeddings of all rows and how their positions rotate heads.
    fn embed(&mut self, model: &Model, rows: &[Row]) {
        let hidden = model.config.hidden;
        let x = resized(&mut self.x, rows.len() * hidden);
        self.queries.clear();
        self.rotation.clear();
        for (row, x) in rows.iter().zip(x.chunks_exact_mut(hidden)) {
            model.embedding.row(row.token.0 as usize, x);
            self.queries.push(row.query);
            // The angle is rounded to f32, as the models were trained; its sine and cosine are exact to f32.
            let angles = model.frequencies.iter().map(|frequency| f64::from(row.query.position as f32 * frequency));
            self.rotation.extend(angles.clone().map(|angle| angle.cos() as f32));
            self.rotation.extend(angles.map(|angle| angle.sin() as f32));
        }
    }

    /// Drops the rows that nobody samples: what the last layer has stored is all that is wanted of them.
    fn keep_sampled(&mut self, rows: &[Row], hidden: usize, width: usize) {
        let mut kept = 0;
        for (row, _) in rows.iter().enumerate().filter(|(_, row)| row.sampled) {
            self.x.copy_within(row * hidden..(row + 1) * hidden, kept * hidden);
            self.qkv.copy_within(row * width..(row + 1) * width, kept * width);
            self.queries[kept] = self.queries[row];
            kept += 1;
        }
        self.x.truncate(kept * hidden);
        self.qkv.truncate(kept * width);
        self.queries.truncate(kept);
    }
}

fn resized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}

fn norm_rows(exec: Exec, x: &[f32], weight: &[f32], eps: f32, out: &mut Vec<f32>) {
    let width = weight.len();
    each_row(exec, resized(out, x.len()), width, |row, out| {
        exec.isa.rms_norm(&x[row * width..][..width], weight, eps, out);
    });
}

fn each_row(exec: Exec, data: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if exec.threads == 1 || data.len() < SERIAL {
        data.chunks_exact_mut(width).enumerate().for_each(|(row, data)| work(row, data));
    } else {
        data.par_chunks_exact_mut(width).enumerate().with_min_len(8).for_each(|(row, data)| work(row, data));
    }
}

//! Weights as kernels read them, and products with them.
//!
//! ```text
//!   on disk   [output][input]
//!   packed    [output / 32][input][output % 32]     the last panel filled up with zeros; one stream per panel
//! ```
//! A product reads each panel once from memory for all rows that fit into the cache beside it; panels are what threads
//! divide among themselves. Estimate for one row (decode): 64 bytes of bf16 per 32 multiply-adds, bound by memory.

use bytemuck::{Pod, Zeroable};
use half::bf16;
use rayon::prelude::*;

use super::forward::Exec;
use super::kernel::{PANEL, Rows, TILE_ROWS};
use crate::geometry::Element;
use crate::weights::{LoadError, Tensor};

/// A matrix of weights.
pub(super) struct Matrix {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    element: Element,
    lines: Vec<Line>,
}

/// What a product does with what was there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Write {
    /// Overwrites it.
    Set,
    /// Adds to it.
    Add,
}

/// A cache line: panels begin on one.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Products below this many multiply-adds are not worth waking another thread (about 10 us).
pub(super) const SERIAL: usize = 1 << 20;

/// Rows whose inputs should stay in the second-level cache while panels pass: half a megabyte.
const ROWS_BYTES: usize = 512 << 10;

impl Matrix {
    /// Packs tensors of `inputs` columns, one below the other.
    ///
    /// # Errors
    /// [`LoadError::NotFinite`].
    pub(super) fn pack(parts: &[(Tensor<'_>, usize)], inputs: usize, element: Element) -> Result<Self, LoadError> {
        let outputs = parts.iter().map(|(_, rows)| rows).sum();
        let per_panel = inputs * PANEL * element.bytes() / size_of::<Line>();
        let mut lines = vec![Line::zeroed(); per_panel * usize::div_ceil(outputs, PANEL)];
        lines.par_chunks_mut(per_panel).enumerate().try_for_each(|(panel, lines)| {
            let mut row = vec![0.0; inputs];
            for column in 0..PANEL.min(outputs - panel * PANEL) {
                let (tensor, index) = locate(parts, panel * PANEL + column);
                tensor.read(index * inputs, &mut row)?;
                match element {
                    Element::F32 => {
                        let slots = bytemuck::cast_slice_mut::<Line, f32>(lines);
                        slots[column..].iter_mut().step_by(PANEL).zip(&row).for_each(|(slot, value)| *slot = *value);
                    }
                    Element::Bf16 => {
                        let slots = bytemuck::cast_slice_mut::<Line, bf16>(lines);
                        let values = row.iter().map(|value| bf16::from_f32(*value));
                        slots[column..].iter_mut().step_by(PANEL).zip(values).for_each(|(slot, value)| *slot = value);
                    }
                }
            }
            Ok::<(), LoadError>(())
        })?;
        Ok(Self { outputs, inputs, element, lines })
    }

    /// One row of the matrix as it was before packing: an embedding.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.outputs && out.len() == self.inputs, "row {row} of {}", self.outputs);
        let panel = self.panel(row / PANEL);
        match self.element {
            Element::F32 => {
                let values = bytemuck::cast_slice::<u8, f32>(panel);
                out.iter_mut().zip(values[row % PANEL..].iter().step_by(PANEL)).for_each(|(out, value)| *out = *value);
            }
            Element::Bf16 => {
                let values = bytemuck::cast_slice::<u8, bf16>(panel);
                let values = values[row % PANEL..].iter().step_by(PANEL).map(|value| value.to_f32());
                out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
            }
        }
    }

    /// `y = x * matrix (+ bias)`, or that added to `y`, for all rows of `x`.
    pub(super) fn product(&self, exec: Exec, x: &[f32], bias: Option<&[f32]>, write: Write, y: &mut [f32]) {
        let rows = x.len() / self.inputs;
        assert_eq!(x.len(), rows * self.inputs, "whole rows");
        assert_eq!(y.len(), rows * self.outputs, "room for each result");
        assert!(bias.is_none_or(|bias| bias.len() == self.outputs), "a bias for each output");
        if rows == 0 {
            return;
        }
        let panels = self.outputs.div_ceil(PANEL);
        let columns = Columns { y: y.as_mut_ptr(), rows, outputs: self.outputs, bias, write };
        let group = (ROWS_BYTES / (self.inputs * 4) / TILE_ROWS * TILE_ROWS).max(TILE_ROWS);
        let work = |range: std::ops::Range<usize>| {
            let mut out = [[0.0; PANEL]; TILE_ROWS];
            for first in (0..rows).step_by(group) {
                let last = rows.min(first + group);
                for panel in range.clone() {
                    let weights = self.panel(panel);
                    for row in (first..last).step_by(TILE_ROWS) {
                        let count = TILE_ROWS.min(last - row);
                        let x = Rows { data: &x[row * self.inputs..], rows: count, stride: self.inputs };
                        exec.isa.tile(x, self.inputs, weights, self.element == Element::Bf16, &mut out);
                        // SAFETY: ranges of panels are disjoint, so nobody else touches these columns.
                        unsafe { columns.store(row, panel * PANEL, &out[..count]) };
                    }
                }
            }
        };
        if exec.threads == 1 || rows * self.inputs * self.outputs < SERIAL {
            return work(0..panels);
        }
        // Four pieces for each thread, so that one that is held up does not hold up all.
        let pieces = panels.min(exec.threads * 4);
        (0..pieces).into_par_iter().for_each(|piece| work(piece * panels / pieces..(piece + 1) * panels / pieces));
    }

    fn panel(&self, panel: usize) -> &[u8] {
        let bytes = self.inputs * PANEL * self.element.bytes();
        &bytemuck::cast_slice(&self.lines)[panel * bytes..][..bytes]
    }
}

/// The result of a product, of which threads write different columns.
struct Columns<'a> {
    y: *mut f32,
    rows: usize,
    outputs: usize,
    bias: Option<&'a [f32]>,
    write: Write,
}

// SAFETY: see `store`, the only access.
unsafe impl Sync for Columns<'_> {}

impl Columns<'_> {
    /// Writes what a tile computed for some rows and the columns from `column` on.
    ///
    /// # Safety
    /// Nobody else may touch these columns meanwhile.
    unsafe fn store(&self, row: usize, column: usize, tile: &[[f32; PANEL]]) {
        let width = PANEL.min(self.outputs - column);
        assert!(row + tile.len() <= self.rows, "rows within the result");
        for (index, values) in tile.iter().enumerate() {
            let at = (row + index) * self.outputs + column;
            // SAFETY: the result has `rows * outputs` elements, and nobody else touches these.
            let out = unsafe { std::slice::from_raw_parts_mut(self.y.add(at), width) };
            let bias = self.bias.map(|bias| &bias[column..][..width]);
            for (slot, out) in out.iter_mut().enumerate() {
                let value = bias.map_or(values[slot], |bias| values[slot] + bias[slot]);
                *out = match self.write {
                    Write::Set => value,
                    Write::Add => *out + value,
                };
            }
        }
    }
}

fn locate<'a>(parts: &[(Tensor<'a>, usize)], row: usize) -> (Tensor<'a>, usize) {
    let mut row = row;
    for (tensor, rows) in parts {
        if row < *rows {
            return (*tensor, row);
        }
        row -= rows;
    }
    unreachable!("a row within the parts")
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} x {} {})", self.outputs, self.inputs, self.element)
    }
}

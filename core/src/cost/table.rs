//! Tables of times and the lines between their points.
//!
//! Owns interpolation: `Curve` is a precomputed function of a token count that the hot path reads, [`Tables`] are
//! measured points of a file. Knows nothing of what the times mean.
//!
//! 1. A `Curve` never decreases.
//! 2. Below the first point a table is constant; beyond the last it goes on as straight as it ended.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::CostError;
use super::fixed::{mul_div, saturate};

/// Measured times of one shape of model on `tp` GPUs; what is absent falls back to formulas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tables {
    /// Each [`super::Model::name`] that has this shape.
    pub models: Vec<String>,
    /// GPUs that shared it.
    pub tp: u32,
    /// `[tokens, ns]`: the four projections of one layer together.
    #[serde(default)]
    pub layer_gemm_ns: Vec<[u64; 2]>,
    /// `[rows, ns]`: the output head.
    #[serde(default)]
    pub head_gemm_ns: Vec<[u64; 2]>,
    /// One layer by batch (rows) and mean context (columns).
    pub decode_attention_ns: Option<Grid>,
    /// One layer by cached (rows) and new tokens (columns) of a single chunk.
    pub prefill_attention_ns: Option<Grid>,
}

/// Nanoseconds at the crossings of two ascending axes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// The first axis.
    pub rows: Vec<u64>,
    /// The second axis.
    pub columns: Vec<u64>,
    /// One list per row.
    pub ns: Vec<Vec<u64>>,
}

impl Tables {
    /// Whether axes ascend and no time is smaller than the one before it.
    pub(super) fn possible(&self) -> Result<(), CostError> {
        for (table, points) in
            [("tables.layer_gemm_ns", &self.layer_gemm_ns), ("tables.head_gemm_ns", &self.head_gemm_ns)]
        {
            for (row, pair) in points.windows(2).enumerate() {
                if pair[0][0] >= pair[1][0] || pair[0][1] > pair[1][1] {
                    return Err(CostError::Table { table, row: row + 1 });
                }
            }
        }
        for (table, grid) in [
            ("tables.decode_attention_ns", &self.decode_attention_ns),
            ("tables.prefill_attention_ns", &self.prefill_attention_ns),
        ] {
            if let Some(grid) = grid {
                grid.possible(table)?;
            }
        }
        Ok(())
    }
}

impl Grid {
    /// Picoseconds at a point; both coordinates are multiplied by [`Grid::STEPS`] so that means keep their fraction.
    #[must_use]
    pub(super) fn ps(&self, row_steps: u64, column_steps: u64) -> u64 {
        let (row, down, height) = cell(&self.rows, row_steps);
        let first = line(&self.columns, &self.ns[row], column_steps);
        if down == 0 {
            return first;
        }
        let second = line(&self.columns, &self.ns[row + 1], column_steps);
        // Rows of a measured grid may cross by noise once extended; a smaller second row counts as equal.
        first.saturating_add(share(second.saturating_sub(first), down, height))
    }

    /// Like [`ps`](Self::ps), for points of one row whose column grows: most are in the cell of the one before.
    pub(super) fn next_ps(&self, row_steps: u64, column_steps: u64, cursor: &mut Cursor) -> u64 {
        if !(cursor.start..cursor.end).contains(&column_steps) {
            *cursor = self.cursor(row_steps, column_steps);
        }
        let into = column_steps - cursor.start;
        let at =
            |low: u64, rise: u64| if into == 0 { low } else { low.saturating_add(share(rise, into, cursor.width)) };
        let first = at(cursor.first.0, cursor.first.1);
        if cursor.down == 0 {
            return first;
        }
        let second = at(cursor.second.0, cursor.second.1);
        first.saturating_add(share(second.saturating_sub(first), cursor.down, cursor.height))
    }

    fn cursor(&self, row_steps: u64, column_steps: u64) -> Cursor {
        let (row, down, height) = cell(&self.rows, row_steps);
        let (index, into, width) = cell(&self.columns, column_steps);
        let side = |row: usize| {
            let ns = &self.ns[row];
            let low = ns[index].saturating_mul(1_000);
            (low, ns.get(index + 1).map_or(0, |after| (after - ns[index]).saturating_mul(1_000)))
        };
        // A coordinate before the first column counts as that column, one behind the last goes on along the last line.
        let start = column_steps - into;
        let is_last = index + 2 >= self.columns.len();
        let end = if is_last { u64::MAX } else { self.columns[index + 1] * Self::STEPS };
        let is_before = into == 0 && column_steps < self.columns[index] * Self::STEPS;
        let end = if is_before { column_steps + 1 } else { end };
        Cursor {
            start,
            end,
            width,
            down,
            height,
            first: side(row),
            second: side(if down == 0 { row } else { row + 1 }),
        }
    }

    /// Steps of a coordinate per unit.
    pub const STEPS: u64 = 256;

    fn possible(&self, table: &'static str) -> Result<(), CostError> {
        let ascends = |axis: &[u64]| !axis.is_empty() && axis.windows(2).all(|pair| pair[0] < pair[1]);
        let is_large = |axis: &[u64]| axis.iter().any(|&value| value > AXIS_MAX);
        if !ascends(&self.rows) || !ascends(&self.columns) || self.rows.len() != self.ns.len() {
            return Err(CostError::Table { table, row: 0 });
        }
        if is_large(&self.rows) || is_large(&self.columns) {
            return Err(CostError::Table { table, row: 0 });
        }
        for (row, times) in self.ns.iter().enumerate() {
            let is_below = row > 0 && times.iter().zip(&self.ns[row - 1]).any(|(time, above)| time < above);
            let is_falling = times.windows(2).any(|pair| pair[0] > pair[1]);
            if times.len() != self.columns.len() || is_falling || is_below {
                return Err(CostError::Table { table, row });
            }
        }
        Ok(())
    }
}

/// A cell of a [`Grid`]: the columns from `start` to `end`, and both of its rows as their low end and their rise.
#[derive(Clone, Debug, Default)]
pub(super) struct Cursor {
    start: u64,
    end: u64,
    width: u64,
    down: u64,
    height: u64,
    first: (u64, u64),
    second: (u64, u64),
}

/// Picoseconds of a measured list of `[count, ns]` at a count.
#[must_use]
pub(super) fn ps_of_points(points: &[[u64; 2]], count: u64) -> u64 {
    let last = points.len() - 1;
    let index = points.partition_point(|point| point[0] <= count).saturating_sub(1).min(last.saturating_sub(1));
    let [x, y] = points[index];
    let Some(&[x_after, y_after]) = points.get(index + 1) else { return y.saturating_mul(1_000) };
    let rise = (y_after - y).saturating_mul(1_000);
    y.saturating_mul(1_000).saturating_add(share(rise, count.saturating_sub(x), x_after - x))
}

/// A function of a count, precomputed: exact up to 256, then 64 points an octave with lines between them.
#[derive(Clone, Debug)]
pub(super) struct Curve(Vec<u64>);

impl Curve {
    /// Samples `ps`; where it falls, the curve stays level.
    pub(super) fn new(ps: impl Fn(u64) -> u64) -> Self {
        let mut points = Vec::with_capacity(POINTS);
        let mut highest = 0;
        for index in 0..POINTS {
            highest = ps(count_at(index as u64)).max(highest);
            points.push(highest);
        }
        Self(points)
    }

    /// Picoseconds at a count.
    #[inline]
    pub(super) fn ps(&self, count: u64) -> u64 {
        if count < EXACT {
            return self.0[count as usize];
        }
        let count = count.min(COUNT_MAX - 1);
        let shift = count.ilog2() - OCTAVE_BITS;
        let index = index_of(count) as usize;
        let low = self.0[index];
        let rest = count & ((1 << shift) - 1);
        low + saturate((u128::from(self.0[index + 1] - low) * u128::from(rest)) >> shift)
    }
}

/// Which cell of an axis holds a coordinate in [`Grid::STEPS`]: its index, the way into it and its width.
fn cell(axis: &[u64], steps: u64) -> (usize, u64, u64) {
    if axis.len() == 1 {
        return (0, 0, 1);
    }
    let whole = steps / Grid::STEPS;
    let index = axis.partition_point(|&value| value <= whole).saturating_sub(1).min(axis.len() - 2);
    let start = axis[index] * Grid::STEPS;
    (index, steps.saturating_sub(start), axis[index + 1] * Grid::STEPS - start)
}

fn line(axis: &[u64], ns: &[u64], steps: u64) -> u64 {
    let (index, into, width) = cell(axis, steps);
    let low = ns[index].saturating_mul(1_000);
    if into == 0 {
        return low;
    }
    low.saturating_add(share((ns[index + 1] - ns[index]).saturating_mul(1_000), into, width))
}

/// `of * part / whole` without overflow.
fn share(of: u64, part: u64, whole: u64) -> u64 {
    mul_div(of, part, whole)
}

/// The count of a point of a `Curve`.
fn count_at(index: u64) -> u64 {
    if index < EXACT {
        return index;
    }
    let octave = (index - EXACT) >> OCTAVE_BITS;
    let step = (index - EXACT) & ((1 << OCTAVE_BITS) - 1);
    (EXACT << octave) + (step << (octave + 2))
}

/// The point of a `Curve` at or below a count of at least [`EXACT`].
fn index_of(count: u64) -> u64 {
    let octave = u64::from(count.ilog2()) - u64::from(EXACT.ilog2());
    EXACT + (octave << OCTAVE_BITS) + ((count - (EXACT << octave)) >> (octave + 2))
}

/// A step has fewer tokens than this; `Curve` is level beyond.
pub const COUNT_MAX: u64 = 1 << 22;
const EXACT: u64 = 256;
const OCTAVE_BITS: u32 = 6;
const POINTS: usize = (EXACT + ((COUNT_MAX.ilog2() - EXACT.ilog2()) << OCTAVE_BITS) as u64 + 1) as usize;
const AXIS_MAX: u64 = 1 << 40;

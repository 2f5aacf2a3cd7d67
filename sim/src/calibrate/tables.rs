//! Tables that give measured points back.

use std::collections::BTreeMap;

use pd_core::cost::hardware::Hardware;
use pd_core::cost::{Cost, Grid, Tables};

use super::{CalibrateError, Measured};

/// The hardware with tables for the model that was measured.
pub(super) fn fill(measured: &Measured, hardware: Hardware) -> Result<Hardware, CalibrateError> {
    let layers = f64::from(measured.model.layers.max(1));
    let pair = pair_ns(measured);
    let chunk = |new: u32| pair * f64::from(new).powi(2);
    let decodes = matrix(measured.decodes.iter().map(|point| (point.sequences, point.context, point.ns)), layers);
    let least_context = *decodes.columns.first().unwrap_or(&1);
    let batch_max = *decodes.rows.last().unwrap_or(&1);
    let mut tables = Tables {
        models: vec![measured.model.name.clone()],
        tp: 1,
        layer_gemm_ns: Vec::new(),
        head_gemm_ns: measured.heads.clone(),
        decode_attention_ns: None,
        prefill_attention_ns: None,
    };
    level_points(&mut tables.head_gemm_ns);
    for [rows, ns] in &mut tables.head_gemm_ns {
        // Logits are a part of the step that they belong to, whatever noise says of a small difference.
        let step =
            decodes.rows.iter().position(|batch| u64::from(*batch) == *rows).map(|row| decodes.ns[row][0] * layers);
        *ns = step.map_or(*ns, |step| (*ns).min((step * HEAD_SHARE_MAX) as u64));
    }
    level_points(&mut tables.head_gemm_ns);
    let mut body: BTreeMap<u32, f64> = BTreeMap::new();
    for (row, batch) in decodes.ns.iter().zip(&decodes.rows) {
        body.insert(*batch, row[0] - head_ns(&tables.head_gemm_ns, *batch) / layers);
    }
    let alone = || measured.prefills.iter().filter(|point| point.cached == 0 && point.new > batch_max);
    for point in alone() {
        body.insert(point.new, point.ns as f64 / layers - chunk(point.new));
    }
    tables.decode_attention_ns = Some(decodes.grid(|_, row, ns| ns - row[0]));
    let prefills = matrix(measured.prefills.iter().map(|point| (point.cached, point.new, point.ns)), layers);
    tables.prefill_attention_ns = Some(prefills.grid(|(cached, new), _, ns| {
        // Where kernels of little work wait for their launches, the pairs are all that is known.
        let pairs = pair * f64::from(new) * (2.0 * f64::from(cached) + f64::from(new));
        if cached == 0 { pairs } else { (ns - at(&body, new)).max(pairs) }
    }));
    // What formulas add to a table, and what levelling took from it, is found by asking.
    for _ in 0..ROUNDS {
        tables.layer_gemm_ns = body.iter().map(|(tokens, ns)| [u64::from(*tokens), ns.max(1.0) as u64]).collect();
        level_points(&mut tables.layer_gemm_ns);
        let cost = Cost::new(&Hardware { tables: vec![tables.clone()], ..hardware.clone() }, &measured.model, 1)?;
        for point in measured.decodes.iter().filter(|point| point.context == least_context) {
            let off = cost.decode_step_ns(u64::from(point.sequences), u64::from(point.sequences * point.context))
                as f64
                - point.ns as f64;
            *body.entry(point.sequences).or_default() -= off / layers;
        }
        for point in alone() {
            *body.entry(point.new).or_default() -= (point.ns_by(&cost) as f64 - point.ns as f64) / layers;
        }
    }
    Ok(Hardware { tables: vec![tables], ..hardware })
}

/// Nanoseconds of a layer for twice a pair of tokens that attend to each other.
fn pair_ns(measured: &Measured) -> f64 {
    let layers = f64::from(measured.model.layers.max(1));
    let of = |cached: u32, new: u32| {
        let point = measured.prefills.iter().find(|point| point.cached == cached && point.new == new);
        point.map(|point| point.ns as f64)
    };
    let behind = measured.prefills.iter().filter(|point| point.cached > 0);
    let far = behind.max_by_key(|point| (u64::from(point.new) * u64::from(point.cached), point.new));
    far.and_then(|far| {
        let more = far.ns as f64 - of(0, far.new)?;
        Some((more / (2.0 * f64::from(far.cached) * f64::from(far.new) * layers)).max(0.0))
    })
    .unwrap_or(0.0)
}

/// Measured times of a layer by two axes, without holes.
struct Matrix {
    rows: Vec<u32>,
    columns: Vec<u32>,
    ns: Vec<Vec<f64>>,
}

/// What was not measured goes on as the line through the two points before it, in its row.
fn matrix(points: impl Iterator<Item = (u32, u32, u64)>, layers: f64) -> Matrix {
    let points: BTreeMap<(u32, u32), f64> =
        points.map(|(row, column, ns)| ((row, column), ns as f64 / layers)).collect();
    let distinct = |of: fn(&(u32, u32)) -> u32| {
        let mut values: Vec<u32> = points.keys().map(of).collect();
        values.sort_unstable();
        values.dedup();
        values
    };
    let (rows, columns) = (distinct(|key| key.0), distinct(|key| key.1));
    let mut ns: Vec<Vec<f64>> = Vec::new();
    for row in &rows {
        let mut line: Vec<f64> = Vec::with_capacity(columns.len());
        for (index, column) in columns.iter().enumerate() {
            let guess = || {
                let slope = |from: &[f64], index: usize| {
                    (from[index - 1] - from[index - 2]) / f64::from(columns[index - 1] - columns[index - 2])
                };
                match (index, ns.last()) {
                    (0, Some(above)) => above[0],
                    (0, None) => 0.0,
                    (1, Some(above)) => line[0] + above[1] - above[0],
                    (1, None) => line[0],
                    _ => line[index - 1] + slope(&line, index) * f64::from(column - columns[index - 1]),
                }
            };
            line.push(points.get(&(*row, *column)).copied().unwrap_or_else(guess));
        }
        ns.push(line);
    }
    Matrix { rows, columns, ns }
}

impl Matrix {
    /// The times of something within, none smaller than the one before it or above it.
    fn grid(&self, of: impl Fn((u32, u32), &[f64], f64) -> f64) -> Grid {
        let mut grid: Vec<Vec<u64>> = Vec::new();
        for (row, times) in self.rows.iter().zip(&self.ns) {
            let mut line = Vec::with_capacity(times.len());
            for (index, (column, ns)) in self.columns.iter().zip(times).enumerate() {
                let left = line.last().copied().unwrap_or(0);
                let above = grid.last().map_or(0, |above| above[index]);
                line.push((of((*row, *column), times, *ns).max(0.0) as u64).max(left).max(above));
            }
            grid.push(line);
        }
        let axis = |values: &[u32]| values.iter().map(|&value| u64::from(value)).collect();
        Grid { rows: axis(&self.rows), columns: axis(&self.columns), ns: grid }
    }
}

/// The nearest times that never fall: neighbours that do are replaced by their mean (pool adjacent violators).
fn level_points(points: &mut [[u64; 2]]) {
    points.sort_unstable();
    // Each pool: the sum of its times and how many there are.
    let mut pools: Vec<(u64, u64)> = Vec::with_capacity(points.len());
    for point in points.iter() {
        let mut pool = (point[1], 1);
        while let Some(&(sum, count)) = pools.last()
            && sum * pool.1 >= pool.0 * count
        {
            pool = (pool.0 + sum, pool.1 + count);
            pools.pop();
        }
        pools.push(pool);
    }
    let levels = pools.into_iter().flat_map(|(sum, count)| std::iter::repeat_n(sum / count, count as usize));
    for (point, level) in points.iter_mut().zip(levels) {
        point[1] = level;
    }
}

/// Between two of the points, as the cost model reads them.
fn at(points: &BTreeMap<u32, f64>, tokens: u32) -> f64 {
    let below = points.range(..=tokens).next_back();
    let above = points.range(tokens..).next();
    match (below, above) {
        (Some((x, y)), Some((x_after, y_after))) if x_after > x => {
            y + (y_after - y) * f64::from(tokens - x) / f64::from(x_after - x)
        }
        (Some((_, y)), _) | (None, Some((_, y))) => *y,
        (None, None) => 0.0,
    }
}

fn head_ns(heads: &[[u64; 2]], rows: u32) -> f64 {
    let points = heads.iter().map(|[rows, ns]| (*rows as u32, *ns as f64)).collect();
    at(&points, rows)
}

const ROUNDS: usize = 3;
/// A vocabulary as large as all layers.
const HEAD_SHARE_MAX: f64 = 0.5;

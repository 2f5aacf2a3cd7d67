//! Constants by least squares.

use std::ops::RangeInclusive;

use pd_core::cost::hardware::Hardware;
use pd_core::cost::{Cost, CostError};

use super::Measured;

/// One constant of the formulas: how to read it and how to set it.
struct Knob {
    read: fn(&Hardware) -> u64,
    write: fn(&mut Hardware, u64),
    /// What is possible.
    range: RangeInclusive<u64>,
}

macro_rules! knobs {
    ($($($field:ident).+ as $kind:ident in $range:expr;)*) => {
        [$(Knob {
            read: |hardware| u64::from(hardware.$($field).+),
            // Within `range`, which fits.
            write: |hardware, value| hardware.$($field).+ = value as $kind,
            range: $range,
        }),*]
    };
}

/// The constants of `start` that come closest to all points: the mean square of the logarithms of ratios, walked down one
/// constant after the other in steps that shrink.
pub(super) fn constants(measured: &Measured, start: &Hardware) -> Result<Hardware, CostError> {
    let knobs = knobs! {
        gemm.base_ps as u64 in 0..=PS_MAX;
        gemm.compute_per_mille as u64 in 1..=1_000;
        gemm.memory_per_mille as u64 in 1..=1_000;
        gemm.pad_bytes as u64 in 0..=1 << 32;
        gemm.q_per_mille as u32 in 1_000..=8_000;
        prefill_attention.compute_per_mille as u64 in 1..=1_000;
        prefill_attention.new_overhead_tokens as u64 in 0..=1 << 16;
        prefill_attention.context_overhead_tokens as u64 in 0..=1 << 16;
        decode_attention.base_ps as u64 in 0..=PS_MAX;
        decode_attention.per_head_ps as u64 in 0..=PS_MAX;
        decode_attention.memory_per_mille as u64 in 1..=1_000;
        elementwise.kernel_ps as u64 in 0..=PS_MAX;
        launch.kernel_ns as u64 in 0..=PS_MAX / 1_000;
    };
    let mut best = start.clone();
    let mut least = distance(measured, &best)?;
    let mut factor = 2.0;
    for _ in 0..ROUNDS {
        let before = least;
        for knob in &knobs {
            for factor in [factor, 1.0 / factor] {
                let now = (knob.read)(&best);
                let value = ((now as f64 * factor).round() as u64).clamp(*knob.range.start(), *knob.range.end());
                if value == now {
                    continue;
                }
                let mut tried = best.clone();
                (knob.write)(&mut tried, value);
                let found = distance(measured, &tried)?;
                if found < least {
                    (best, least) = (tried, found);
                    break;
                }
            }
        }
        if least > before * 0.999 {
            factor = f64::sqrt(factor);
        }
    }
    Ok(best)
}

fn distance(measured: &Measured, hardware: &Hardware) -> Result<f64, CostError> {
    let cost = Cost::new(hardware, &measured.model, 1)?;
    let of = |error: f64| f64::ln(1.0 + error).powi(2);
    let decodes = measured.decodes.iter().map(|point| of(point.step().error(&cost)));
    let prefills =
        measured.prefills.iter().map(|point| of(point.ns_by(&cost).max(1) as f64 / point.ns.max(1) as f64 - 1.0));
    Ok(decodes.chain(prefills).sum::<f64>() / (measured.decodes.len() + measured.prefills.len()) as f64)
}

/// The line through `[x, y]` by least squares, as its value at 0 and its slope, none below 0.
pub(super) fn line(points: &[[u64; 2]]) -> (u64, u64) {
    let count = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point[0] as f64, y + point[1] as f64));
    let (x, y) = (x / count, y / count);
    let (mut up, mut along) = (0.0, 0.0);
    for point in points {
        let offset = point[0] as f64 - x;
        up += offset * (point[1] as f64 - y);
        along += offset * offset;
    }
    let slope = if along > 0.0 { (up / along).max(0.0) } else { 0.0 };
    ((y - slope * x).max(0.0) as u64, slope as u64)
}

const ROUNDS: usize = 40;
/// One second.
const PS_MAX: u64 = 1_000_000_000_000;

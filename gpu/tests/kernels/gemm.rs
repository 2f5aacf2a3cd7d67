//! Projections of few rows.

use crate::arguments;
use crate::check::{Checked, Draw, POISON, close, holds, same, value};
use crate::emu::{Argument, Buffer, Job, Map, Program, SEQK, SKINNY, Shape};

/// A kernel, how many rows of x it takes, how many outputs a CTA computes.
struct Kernel {
    name: &'static str,
    rows_max: usize,
    outputs: usize,
    block: usize,
    shared_bytes: usize,
    is_mapped: bool,
}

const fn seqk(name: &'static str, rows_max: usize, stages: usize) -> Kernel {
    let shared_bytes = 1024 + stages * (8192 + rows_max * 128);
    Kernel { name, rows_max, outputs: 64, block: 160, shared_bytes, is_mapped: true }
}

const SEQK_KERNELS: [Kernel; 5] = [
    seqk("seqk_wgmma_8", 8, 24),
    seqk("seqk_wgmma_16", 16, 22),
    seqk("seqk_wgmma_32", 32, 18),
    seqk("seqk_wgmma_64", 64, 13),
    Kernel { name: "seqk_mma_8", rows_max: 8, outputs: 32, block: 64, shared_bytes: 98_304, is_mapped: false },
];
const SKINNY_KERNELS: [Kernel; 2] = [
    Kernel { name: "skinny_n1r1", rows_max: 8, outputs: 16, block: 256, shared_bytes: 4_608, is_mapped: false },
    Kernel { name: "skinny_n1r2", rows_max: 8, outputs: 32, block: 256, shared_bytes: 9_216, is_mapped: false },
];

struct Problem {
    n: usize,
    k: usize,
    w: Vec<u16>,
    /// 64 rows.
    x: Vec<u16>,
    residual: Option<Vec<u16>>,
}

impl Problem {
    fn new(seed: u64, n: usize, k: usize, adds: bool) -> Self {
        let mut draw = Draw::new(seed);
        let residual = adds.then(|| draw.values(64 * n, 0.0, 2.0));
        Self { n, k, w: draw.values(n * k, 0.0, 0.2), x: draw.values(64 * k, 0.0, 1.0), residual }
    }

    fn run(&self, program: &Program, kernel: &Kernel, rows: usize, seed: u64) -> Result<Vec<u16>, String> {
        let (n, k) = (self.n, self.k);
        let mut job = Job::new(seed);
        // A row more than is there: it must stay as it was.
        let y = job.poisoned::<u16>((rows + 1) * n);
        let w = job.buffer(&self.w);
        let x = job.buffer(&self.x[..rows * k]);
        let map = |buffer: Buffer, height: usize, tile: usize| Map {
            buffer,
            offset: 0,
            dims: [k as u64, height as u64, 1, 1],
            strides: [2 * k as u64, (2 * k * height) as u64, (2 * k * height) as u64],
            tile: [64, tile as u64, 1, 1],
        };
        let residual: Option<Buffer> = self.residual.as_ref().map(|residual| job.buffer(&residual[..rows * n]));
        let inputs: [Argument; 2] = if kernel.is_mapped {
            [map(w, n, 64).into(), map(x, rows, kernel.rows_max).into()]
        } else {
            [w.into(), x.into()]
        };
        let arguments: &[Argument] = arguments![inputs[0], inputs[1], y, residual, rows as i32, n as i32, k as i32];
        let Kernel { block, shared_bytes, .. } = *kernel;
        job.launch(kernel.name, Shape { grid: [n.div_ceil(kernel.outputs), 1], block, shared_bytes }, arguments);
        let mut out: Vec<u16> = job.run(program)?.get(y);
        let behind = out.split_off(rows * n);
        same("what is behind the last row", &behind, &vec![POISON; n])?;
        Ok(out)
    }

    fn want(&self, rows: usize) -> Vec<f64> {
        let mut want = Vec::new();
        for m in 0..rows {
            for n in 0..self.n {
                let x = self.x[m * self.k..][..self.k].iter();
                let sum: f64 = x.zip(&self.w[n * self.k..]).map(|(x, w)| value(*x) * value(*w)).sum();
                want.push(sum + self.residual.as_ref().map_or(0.0, |residual| value(residual[m * self.n + n])));
            }
        }
        want
    }
}

/// What mutants are shown.
pub(crate) fn seqk_is_right(program: &Program) -> Checked {
    let problem = Problem::new(1, 64, 2048, true);
    for kernel in [&SEQK_KERNELS[0], &SEQK_KERNELS[3], &SEQK_KERNELS[4]] {
        close(kernel.name, &problem.run(program, kernel, 5, 1)?, &problem.want(5))?;
    }
    Ok(())
}

/// What mutants are shown.
pub(crate) fn skinny_is_right(program: &Program) -> Checked {
    let problem = Problem::new(2, 64, 1280, true);
    close("skinny", &problem.run(program, &SKINNY_KERNELS[1], 5, 1)?, &problem.want(5))
}

#[test]
fn seqk_multiplies_and_a_row_has_the_same_bits_at_every_height() {
    holds(SEQK, |program| {
        // More steps than the deepest ring; sizes that no tile divides.
        for (n, k, adds) in [(128, 1664, true), (72, 200, false)] {
            let problem = Problem::new((n + k) as u64, n, k, adds);
            let mut first: Option<Vec<u16>> = None;
            for kernel in &SEQK_KERNELS {
                for rows in [1, kernel.rows_max / 2 + 1, kernel.rows_max] {
                    let out = problem.run(program, kernel, rows, rows as u64)?;
                    close(&format!("{} {rows} x {n} x {k}", kernel.name), &out, &problem.want(rows))?;
                    let first = first.get_or_insert_with(|| out[..n].to_vec());
                    same(&format!("row 0 of {} {rows}", kernel.name), &out[..n], first)?;
                }
            }
        }
        seqk_is_right(program)
    });
}

#[test]
fn skinny_multiplies_and_a_row_has_the_same_bits_at_every_height() {
    holds(SKINNY, |program| {
        for (n, k, adds) in [(64, 256, false), (32, 2304, true)] {
            let problem = Problem::new((n + k) as u64, n, k, adds);
            for kernel in &SKINNY_KERNELS {
                let whole = problem.run(program, kernel, 8, 1)?;
                close(&format!("{} {n} x {k}", kernel.name), &whole, &problem.want(8))?;
                for rows in [1, 5] {
                    let out = problem.run(program, kernel, rows, 2)?;
                    same(&format!("{} {rows} of 8 rows", kernel.name), &out, &whole[..rows * n])?;
                }
            }
        }
        skinny_is_right(program)
    });
}

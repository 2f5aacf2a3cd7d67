//! Projections of few rows.

use half::bf16;

use crate::arguments;
use crate::check::{Checked, Draw, POISON, close, holds, same, value};
use crate::emu::{Argument, Buffer, Job, Map, Program, SEQK, Shape};

/// A kernel, how many rows of x it takes, how many blocks of 64 along K a stage of its ring has.
struct Kernel {
    name: &'static str,
    rows_max: usize,
    blocks: usize,
}

const KERNELS: [Kernel; 4] = [
    Kernel { name: "seqk_wgmma_8", rows_max: 8, blocks: 4 },
    Kernel { name: "seqk_wgmma_16", rows_max: 16, blocks: 4 },
    Kernel { name: "seqk_wgmma_32", rows_max: 32, blocks: 2 },
    Kernel { name: "seqk_wgmma_64", rows_max: 64, blocks: 2 },
];

/// How outputs are shared out.
#[derive(Clone, Copy, Debug)]
struct Tiling {
    /// Rows of weights a tile.
    outputs: usize,
    /// Of the ring, or as many as shared memory has room for.
    stages: Option<usize>,
    ctas: usize,
}

/// Of every height, with rings from the shortest to the deepest, and with several tiles for a CTA.
const TILINGS: [Tiling; 5] = [
    Tiling { outputs: 64, stages: None, ctas: 2 },
    Tiling { outputs: 56, stages: Some(2), ctas: 1 },
    Tiling { outputs: 48, stages: Some(3), ctas: 2 },
    Tiling { outputs: 32, stages: Some(5), ctas: 3 },
    Tiling { outputs: 32, stages: None, ctas: 1 },
];

struct Problem {
    n: usize,
    k: usize,
    w: Vec<u16>,
    /// 64 rows.
    x: Vec<u16>,
}

impl Problem {
    fn new(seed: u64, n: usize, k: usize) -> Self {
        let mut draw = Draw::new(seed);
        Self { n, k, w: draw.values(n * k, 0.0, 0.2), x: draw.values(64 * k, 0.0, 1.0) }
    }

    fn run(
        &self,
        program: &Program,
        kernel: &Kernel,
        tiling: Tiling,
        rows: usize,
        residual: Option<&[u16]>,
    ) -> Result<Vec<u16>, String> {
        let (n, k, outputs) = (self.n, self.k, tiling.outputs);
        let mut job = Job::new((rows + outputs) as u64);
        // A row more than is there: it must stay as it was. The residual is in y, as in a layer.
        let mut before = residual.map_or(vec![POISON; rows * n], |residual| residual[..rows * n].to_vec());
        before.resize((rows + 1) * n, POISON);
        let y = job.buffer(&before);
        let w = job.buffer(&self.w);
        let x = job.buffer(&self.x[..rows * k]);
        let map = |buffer: Buffer, height: usize, tile: usize| Map {
            buffer,
            offset: 0,
            dims: [k as u64, height as u64, 1, 1],
            strides: [2 * k as u64, (2 * k * height) as u64, (2 * k * height) as u64],
            tile: [64, tile as u64, 1, 1],
        };
        let stage = kernel.blocks * (outputs + kernel.rows_max) * 128;
        let beside = 1024 + (64 - outputs) * 128;
        let stages = tiling.stages.unwrap_or(((232_448 - beside) / stage).min(64));
        let arguments: &[Argument] = arguments![
            map(w, n, outputs),
            map(x, rows, kernel.rows_max),
            y,
            residual.map(|_| y),
            rows as i32,
            n as i32,
            k as i32,
            outputs as i32,
            stages as i32,
        ];
        let ctas = tiling.ctas.min(n.div_ceil(outputs));
        let shape = Shape { grid: [ctas, 1], block: 160, shared_bytes: beside + stages * stage };
        job.launch(kernel.name, shape, arguments);
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
                want.push(x.zip(&self.w[n * self.k..]).map(|(x, w)| value(*x) * value(*w)).sum());
            }
        }
        want
    }

    /// Right in every tiling; the first rows have the same bits in each; a residual is added to what is rounded.
    fn check(&self, program: &Program, kernel: &Kernel, rows: usize, first: &mut Option<Vec<u16>>) -> Checked {
        for tiling in TILINGS {
            let what = format!("{} {rows} x {} x {} {tiling:?}", kernel.name, self.n, self.k);
            let out = self.run(program, kernel, tiling, rows, None)?;
            close(&what, &out, &self.want(rows))?;
            let first = first.get_or_insert_with(|| out.clone());
            let same_rows = first.len().min(out.len());
            same(&format!("{what}: in another tiling"), &out[..same_rows], &first[..same_rows])?;

            let residual = Draw::new(self.n as u64).values(rows * self.n, 0.0, 2.0);
            let added = self.run(program, kernel, tiling, rows, Some(&residual))?;
            let sum = |(out, residual): (&u16, &u16)| {
                bf16::from_f32(bf16::from_bits(*out).to_f32() + bf16::from_bits(*residual).to_f32()).to_bits()
            };
            let want: Vec<u16> = out.iter().zip(&residual).map(sum).collect();
            same(&format!("{what}: with a residual"), &added, &want)?;
        }
        Ok(())
    }
}

/// What mutants are shown.
pub(crate) fn is_right(program: &Program) -> Checked {
    let problem = Problem::new(1, 120, 1088);
    [&KERNELS[0], &KERNELS[3]].into_iter().try_for_each(|kernel| problem.check(program, kernel, 5, &mut None))
}

#[test]
fn seqk_multiplies_and_a_row_has_the_same_bits_in_every_tiling() {
    holds(SEQK, |program| {
        // Several steps and less than one; sizes that neither tiles nor stages divide.
        for (n, k) in [(128, 1664), (72, 200)] {
            let problem = Problem::new((n + k) as u64, n, k);
            let mut first = None;
            for kernel in &KERNELS {
                for rows in [kernel.rows_max, kernel.rows_max / 2 + 1] {
                    problem.check(program, kernel, rows, &mut first)?;
                }
            }
        }
        is_right(program)
    });
}

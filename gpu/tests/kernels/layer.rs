//! The small kernels of a layer.

use crate::arguments;
use crate::check::{Checked, Draw, POISON, bits, close, holds, rounded, same, value};
use crate::emu::{Argument, Buffer, Job, LAYER, Program, Shape};
use crate::pool::{Layout, Pool};

fn values(bits: &[u16]) -> Vec<f64> {
    bits.iter().copied().map(value).collect()
}

/// What the kernel computes, in f64, with the roundings that are part of a model.
fn norm(row: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    row.iter().zip(weight).map(|(x, w)| rounded(x / (mean + eps).sqrt()) * w).collect()
}

#[test]
fn embed_takes_tokens_from_the_host_or_from_the_step_before() {
    holds(LAYER, |program| {
        for hidden in [8, 24, 4096] {
            let mut draw = Draw::new(hidden as u64);
            let table = draw.values(7 * hidden, 0.0, 1.0);
            let mut job = Job::new(1);
            let out = job.poisoned::<u16>(5 * hidden);
            let arguments: &[Argument] = arguments![
                job.buffer(&[6, -1, 0, -1, -1]),
                job.buffer(&[3, 2, 5]),
                job.buffer(&[-1, 2, 0, -1, 1]),
                job.buffer(&table),
                out,
                hidden as i32,
            ];
            job.launch("embed", Shape { grid: [5, 1], block: 256, shared_bytes: 0 }, arguments);
            let got = job.run(program)?.get::<u16>(out);
            for (row, token) in [Some(6), Some(5), Some(0), None, Some(2)].into_iter().enumerate() {
                let want = token.map_or(vec![0; hidden], |token| table[token * hidden..][..hidden].to_vec());
                same(&format!("row {row} of {hidden}"), &got[row * hidden..][..hidden], &want)?;
            }
        }
        Ok(())
    });
}

struct Norm {
    hidden: usize,
    rows: usize,
    block: usize,
    adds: bool,
}

fn check_norm(program: &Program, case: &Norm) -> Checked {
    let Norm { hidden, rows, block, adds } = *case;
    let what = format!("{rows} x {hidden} by {block}");
    let mut draw = Draw::new((hidden + rows) as u64);
    let residual = draw.values(rows * hidden, 0.1, 3.0);
    let x = draw.values(rows * hidden, 0.0, 1.0);
    let weight = draw.values(hidden, 1.0, 0.5);
    let eps = 1e-5_f32;
    let sums: Vec<f64> =
        residual.iter().zip(&x).map(|(r, x)| if adds { rounded(value(*r) + value(*x)) } else { value(*r) }).collect();
    let mut want = Vec::new();
    for row in sums.chunks(hidden) {
        want.extend(norm(row, &values(&weight), f64::from(eps)));
    }
    let shape = Shape { grid: [rows, 1], block, shared_bytes: 64 };

    let mut job = Job::new(2);
    let (kept, weights) = (job.buffer(&residual), job.buffer(&weight));
    let added: Option<Buffer> = adds.then(|| job.buffer(&x));
    let out = job.poisoned::<u16>(rows * hidden);
    job.launch("rmsnorm_residual", shape, arguments![kept, added, weights, out, hidden as i32, eps]);
    let done = job.run(program)?;
    close(&what, &done.get::<u16>(out), &want)?;
    let sums: Vec<u16> = sums.iter().copied().map(bits).collect();
    same(&format!("{what}: residual"), &done.get::<u16>(kept), &sums)
}

/// What mutants are shown.
pub(crate) fn norm_is_right(program: &Program) -> Checked {
    check_norm(program, &Norm { hidden: 1000, rows: 3, block: 96, adds: true })
}

#[test]
fn norms_are_right_for_every_width() {
    holds(LAYER, |program| {
        for (hidden, block) in [(8, 32), (136, 32), (1000, 96), (2048, 128), (4096, 512), (16384, 512)] {
            check_norm(program, &Norm { hidden, rows: 2, block, adds: true })?;
        }
        check_norm(program, &Norm { hidden: 896, rows: 3, block: 64, adds: false })
    });
}

#[test]
fn a_norm_that_its_block_cannot_hold_is_refused() {
    holds(LAYER, |program| {
        let died = check_norm(program, &Norm { hidden: 2048, rows: 1, block: 32, adds: true });
        assert!(died.is_err_and(|error| error.contains("trap")));
        Ok(())
    });
}

struct Rope {
    hq: usize,
    hkv: usize,
    dim: usize,
    layout: Layout,
    page_shift: usize,
    bias: bool,
    norms: bool,
}

fn check_rope(program: &Program, case: &Rope, seed: u64) -> Checked {
    const ROWS: usize = 5;
    let Rope { hq, hkv, dim, .. } = *case;
    let what = format!("{hq}/{hkv} heads of {dim}");
    let mut draw = Draw::new(seed);
    let heads = hq + 2 * hkv;
    // No tokens: the pool is poison all over.
    let mut pool = Pool::new(&mut draw, case.layout, case.page_shift, hkv, dim, &[0, 0, 0]);
    let page = 1 << case.page_shift;
    let qkv = draw.values(ROWS * heads * dim, 0.0, 2.0);
    let bias = draw.values(heads * dim, 0.0, 1.0);
    let (qw, kw) = (draw.values(dim, 1.0, 0.3), draw.values(dim, 1.0, 0.3));
    let positions = [3, 0, 9, 4, 9];
    let places: Vec<usize> = draw.shuffled(pool.pages() * page);
    let slots = [places[0] as i64, places[1] as i64, -1, places[2] as i64, places[3] as i64];
    let half = dim / 2;
    let turns: Vec<[f32; 2]> = (0..10 * half)
        .map(|index| {
            let angle = (index / half) as f64 * 10_f64.powf(-((index % half) as f64) / half as f64);
            [angle.cos() as f32, angle.sin() as f32]
        })
        .collect();

    let mut job = Job::new(seed);
    let bias_at: Option<Buffer> = case.bias.then(|| job.buffer(&bias));
    let (qw_at, kw_at): (Option<Buffer>, Option<Buffer>) =
        if case.norms { (Some(job.buffer(&qw)), Some(job.buffer(&kw))) } else { (None, None) };
    let qout = job.poisoned::<u16>(ROWS * hq * dim);
    let kv = job.buffer(&pool.data);
    let arguments: &[Argument] = arguments![
        job.buffer(&qkv),
        bias_at,
        job.buffer(&positions),
        job.buffer(&slots),
        job.buffer(&turns),
        qw_at,
        kw_at,
        qout,
        Argument::At(kv, 2 * pool.k_at as u64),
        Argument::At(kv, 2 * pool.v_at as u64),
        pool.page_stride as i64,
        pool.head_stride as i64,
        pool.token_stride as i64,
        case.page_shift as i32,
        hq as i32,
        hkv as i32,
        dim as i32,
        ROWS as i32,
        1e-6_f32,
    ];
    let shape = Shape { grid: [(ROWS * heads).div_ceil(8), 1], block: 256, shared_bytes: 0 };
    job.launch("rope_kv_write", shape, arguments);
    let done = job.run(program)?;

    let (got_q, got_kv) = (done.get::<u16>(qout), done.get::<u16>(kv));
    let mut written = Vec::new();
    for row in 0..ROWS {
        for head in 0..heads {
            let mut x = values(&qkv[(row * heads + head) * dim..][..dim]);
            if case.bias {
                for (x, bias) in x.iter_mut().zip(&bias[head * dim..]) {
                    *x = rounded(*x + value(*bias));
                }
            }
            let is_v = head >= hq + hkv;
            if case.norms && !is_v {
                let weight = values(if head < hq { &qw } else { &kw });
                x = norm(&x, &weight, 1e-6).into_iter().map(rounded).collect();
            }
            if !is_v {
                for pair in 0..half {
                    let [cos, sin] = turns[positions[row] as usize * half + pair].map(f64::from);
                    let (a, b) = (x[pair], x[pair + half]);
                    (x[pair], x[pair + half]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
            if head < hq {
                close(&format!("{what}: q of row {row}"), &got_q[(row * hq + head) * dim..][..dim], &x)?;
                continue;
            }
            let Ok(slot) = usize::try_from(slots[row]) else { continue };
            let kv_head = if is_v { head - hq - hkv } else { head - hq };
            let at = if is_v { pool.v_at } else { pool.k_at }
                + slot / page * pool.page_stride
                + kv_head * pool.head_stride
                + slot % page * pool.token_stride;
            close(&format!("{what}: kv of row {row}"), &got_kv[at..][..dim], &x)?;
            written.push(at);
        }
    }
    for at in written {
        pool.data[at..][..dim].copy_from_slice(&got_kv[at..][..dim]);
    }
    let poison = pool.data.iter().filter(|x| **x == POISON).count();
    assert!(poison > 0, "there are places that nobody may write");
    same(&format!("{what}: what is nobody's"), &got_kv, &pool.data)
}

const ROPE: Rope =
    Rope { hq: 4, hkv: 2, dim: 128, layout: Layout::PageFirst, page_shift: 2, bias: false, norms: false };

/// What mutants are shown.
pub(crate) fn rope_is_right(program: &Program) -> Checked {
    check_rope(program, &ROPE, 5)
}

#[test]
fn rope_writes_heads_of_every_size_into_their_pages() {
    holds(LAYER, |program| {
        for dim in [8, 64, 72, 128, 256] {
            check_rope(program, &Rope { dim, ..ROPE }, dim as u64)?;
            check_rope(program, &Rope { dim, norms: true, hq: 5, hkv: 1, ..ROPE }, dim as u64 + 1)?;
        }
        check_rope(program, &Rope { bias: true, layout: Layout::TokenFirst, page_shift: 0, ..ROPE }, 3)?;
        check_rope(program, &Rope { bias: true, norms: true, dim: 96, page_shift: 4, ..ROPE }, 4)
    });
}

#[test]
fn silu_mul_gates() {
    holds(LAYER, |program| {
        for (rows, width) in [(1, 8), (3, 1032), (2, 14336)] {
            let mut draw = Draw::new(width as u64);
            let gate_up = draw.values(rows * 2 * width, 0.0, 6.0);
            let mut job = Job::new(4);
            let out = job.poisoned::<u16>(rows * width);
            let n8 = rows * width / 8;
            let arguments: &[Argument] = arguments![job.buffer(&gate_up), out, n8 as i64, width as i32];
            let shape = Shape { grid: [n8.div_ceil(256), 1], block: 256, shared_bytes: 0 };
            job.launch("silu_mul", shape, arguments);
            let mut want = Vec::new();
            for row in gate_up.chunks(2 * width) {
                let (gates, ups) = row.split_at(width);
                want.extend(gates.iter().zip(ups).map(|(gate, up)| {
                    let gate = value(*gate);
                    rounded(gate / (1.0 + (-gate).exp())) * value(*up)
                }));
            }
            close(&format!("{rows} x {width}"), &job.run(program)?.get::<u16>(out), &want)?;
        }
        Ok(())
    });
}

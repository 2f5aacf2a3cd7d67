//! The attention that serves every shape.

use crate::arguments;
use crate::check::{Checked, Draw, close, holds, same};
use crate::emu::{ANY, Argument, Job, Program, Shape};
use crate::pool::{Layout, Pool};

struct Case {
    hq: usize,
    hkv: usize,
    dim: usize,
    page_shift: usize,
    layout: Layout,
    /// Keys that a row looks back, itself among them; all of them for 0.
    window: usize,
}

const CASE: Case = Case { hq: 4, hkv: 2, dim: 64, page_shift: 2, layout: Layout::PageFirst, window: 0 };

fn check(program: &Program, case: &Case) -> Checked {
    let Case { hq, hkv, dim, page_shift, layout, window } = *case;
    let what = format!("{hq}/{hkv} heads of {dim}, pages of {}, window of {window}", 1 << page_shift);
    let mut draw = Draw::new((dim * 16 + page_shift) as u64);
    let lens = [1, 40, 97];
    let pool = Pool::new(&mut draw, layout, page_shift, hkv, dim, &lens);
    // Rows of a prompt and of decoding in one batch; the one without keys is padding.
    let rows = [[1, 40], [2, 31], [2, 32], [2, 33], [0, 1], [0, 0], [2, 97]];
    let q = draw.values(rows.len() * hq * dim, 0.0, 1.5);
    let run = |rows: &[[i32; 2]], q: &[u16], seed| -> Result<Vec<u16>, String> {
        let mut job = Job::new(seed);
        let out = job.poisoned::<u16>(rows.len() * hq * dim);
        let kv = job.buffer(&pool.data);
        let arguments: &[Argument] = arguments![
            job.buffer(q),
            Argument::At(kv, 2 * pool.k_at as u64),
            Argument::At(kv, 2 * pool.v_at as u64),
            job.buffer(&pool.table),
            job.buffer(rows),
            out,
            pool.page_stride as i64,
            pool.head_stride as i64,
            pool.token_stride as i64,
            pool.pages_max as i32,
            page_shift as i32,
            hq as i32,
            hkv as i32,
            dim as i32,
            rows.len() as i32,
            window as i32,
            pool.scale_log2(),
        ];
        let shape = Shape { grid: [(rows.len() * hq).div_ceil(4), 1], block: 128, shared_bytes: 16 * dim };
        job.launch("attention_any", shape, arguments);
        Ok(job.run(program)?.get(out))
    };
    let out = run(&rows, &q, 1)?;
    for (index, [row, keys]) in rows.iter().enumerate() {
        for head in 0..hq {
            let at = (index * hq + head) * dim;
            let keys = *keys as usize;
            let first = if window > 0 { keys.saturating_sub(window) } else { 0 };
            let want = pool.attend(&q[at..][..dim], *row as usize, first..keys, head / (hq / hkv));
            close(&format!("{what}: row {row}, {keys} keys"), &out[at..][..dim], &want)?;
        }
    }
    let width = hq * dim;
    let alone = run(&rows[3..4], &q[3 * width..][..width], 2)?;
    same(&format!("{what}: a row alone"), &alone, &out[3 * width..][..width])
}

/// What mutants are shown.
pub(crate) fn is_right(program: &Program) -> Checked {
    check(program, &CASE)
}

#[test]
fn attention_any_serves_heads_and_pages_of_every_size() {
    holds(ANY, |program| {
        for (dim, page_shift) in [(8, 0), (40, 1), (64, 4), (128, 2), (256, 8)] {
            check(program, &Case { hq: 6, hkv: 2, dim, page_shift, ..CASE })?;
            check(program, &Case { hq: 9, hkv: 1, dim, page_shift, layout: Layout::TokenFirst, ..CASE })?;
        }
        is_right(program)
    });
}

/// What mutants are shown.
pub(crate) fn windows_are_right(program: &Program) -> Checked {
    // The key alone, within a block of 32, about its length and that of contexts, longer than any.
    [1, 5, 31, 32, 33, 64, 96, 97, 500].into_iter().try_for_each(|window| check(program, &Case { window, ..CASE }))
}

#[test]
fn attention_any_looks_back_as_far_as_its_window() {
    holds(ANY, windows_are_right);
}

//! The attention that serves every shape.

use crate::arguments;
use crate::check::{Checked, Draw, close, holds, same};
use crate::emu::{ANY, Argument, Job, Program, Shape};
use crate::pool::{Layout, Pool};

fn check(program: &Program, hq: usize, hkv: usize, dim: usize, page_shift: usize, layout: Layout) -> Checked {
    let what = format!("{hq}/{hkv} heads of {dim}, pages of {}", 1 << page_shift);
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
            let want = pool.attend(&q[at..][..dim], *row as usize, *keys as usize, head / (hq / hkv));
            close(&format!("{what}: row {row}, {keys} keys"), &out[at..][..dim], &want)?;
        }
    }
    let width = hq * dim;
    let alone = run(&rows[3..4], &q[3 * width..][..width], 2)?;
    same(&format!("{what}: a row alone"), &alone, &out[3 * width..][..width])
}

/// What mutants are shown.
pub(crate) fn is_right(program: &Program) -> Checked {
    check(program, 4, 2, 64, 2, Layout::PageFirst)
}

#[test]
fn attention_any_serves_heads_and_pages_of_every_size() {
    holds(ANY, |program| {
        for (dim, page_shift) in [(8, 0), (40, 1), (64, 4), (128, 2), (256, 8)] {
            check(program, 6, 2, dim, page_shift, Layout::PageFirst)?;
            check(program, 9, 1, dim, page_shift, Layout::TokenFirst)?;
        }
        is_right(program)
    });
}

//! Decode attention: every way to split, page and batch.

use crate::arguments;
use crate::check::{Checked, Draw, POISON, close, holds, same};
use crate::emu::{Argument, DECODE, Job, Program, Shape};
use crate::pool::{Layout, Pool};

struct Case {
    layout: Layout,
    page_shift: usize,
    hq: usize,
    hkv: usize,
    dim: usize,
    lens: &'static [usize],
    /// Tokens a part, a multiple of 16.
    split: usize,
    ctas: usize,
}

const CASE: Case = Case {
    layout: Layout::PageFirst,
    page_shift: 4,
    hq: 8,
    hkv: 2,
    dim: 128,
    lens: &[1, 16, 17, 63, 130, 200],
    split: 64,
    ctas: 5,
};

/// The outputs of some of the rows of a pool as one batch; rows that are not in it must stay as they were.
fn run(program: &Program, case: &Case, pool: &Pool, q: &[u16], rows: &[usize], seed: u64) -> Result<Vec<u16>, String> {
    let (mut work, mut parts) = (Vec::new(), Vec::new());
    let width = case.hq * case.dim;
    let mut batch_q: Vec<u16> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let len = case.lens[*row];
        parts.push([work.len() as i32, len.div_ceil(case.split) as i32]);
        for first in (0..len).step_by(case.split) {
            work.push([index as i32, *row as i32, first as i32, case.split.min(len - first) as i32]);
        }
        batch_q.extend(&q[row * width..][..width]);
    }
    let groups = (case.hq / case.hkv).div_ceil(8);
    let mut job = Job::new(seed);
    let pool_at = job.buffer(&pool.data);
    let out = job.poisoned::<u16>(rows.len() * width);
    let arrived = job.buffer(&vec![0_u32; rows.len() * case.hkv * groups]);
    let po = job.poisoned::<f32>(work.len() * width);
    let pml = job.poisoned::<[f32; 2]>(work.len() * case.hq);
    let arguments: Vec<Argument> = arguments![
        job.buffer(&batch_q),
        Argument::At(pool_at, 2 * pool.k_at as u64),
        Argument::At(pool_at, 2 * pool.v_at as u64),
        job.buffer(&pool.table),
        job.buffer(&[work.len() as i32]),
        job.buffer(&work),
        job.buffer(&parts),
        out,
        po,
        pml,
        arrived,
        pool.page_stride as i64,
        pool.head_stride as i64,
        pool.token_stride as i64,
        pool.pages_max as i32,
        pool.page_shift as i32,
        case.hq as i32,
        case.hkv as i32,
        pool.scale_log2(),
    ]
    .to_vec();
    let (kernel, shared_bytes) = if case.dim == 128 { ("decode_d128", 114_960) } else { ("decode_d64", 106_768) };
    let shape = Shape { grid: [case.ctas, 1], block: 128, shared_bytes };
    // Twice: a graph replays with the counters that the first run left.
    job.launch(kernel, shape, &arguments);
    job.launch(kernel, shape, &arguments);
    let done = job.run(program)?;
    same("arrivals", &done.get::<u32>(arrived), &vec![0; rows.len() * case.hkv * groups])?;
    Ok(done.get(out))
}

fn check(program: &Program, case: &Case, seed: u64) -> Checked {
    let mut draw = Draw::new(seed);
    let pool = Pool::new(&mut draw, case.layout, case.page_shift, case.hkv, case.dim, case.lens);
    let q = draw.values(case.lens.len() * case.hq * case.dim, 0.0, 1.5);
    let rows: Vec<usize> = (0..case.lens.len()).collect();
    let out = run(program, case, &pool, &q, &rows, seed)?;
    let what = format!("pages of {} {:?} {}/{} heads", 1 << case.page_shift, case.layout, case.hq, case.hkv);
    for (row, len) in case.lens.iter().enumerate() {
        for head in 0..case.hq {
            let at = (row * case.hq + head) * case.dim;
            let want = pool.attend(&q[at..][..case.dim], row, *len, head / (case.hq / case.hkv));
            close(&format!("{what}, {len} tokens, head {head}"), &out[at..][..case.dim], &want)?;
        }
    }
    // Other company, another order, another grid: the same bits.
    let mut some: Vec<usize> = draw.shuffled(case.lens.len());
    some.truncate(case.lens.len().div_ceil(2));
    let other = run(program, &Case { ctas: case.ctas + 2, ..*case }, &pool, &q, &some, seed + 1)?;
    let width = case.hq * case.dim;
    for (index, row) in some.iter().enumerate() {
        same(
            &format!("{what}, row {row} in another batch"),
            &other[index * width..][..width],
            &out[row * width..][..width],
        )?;
    }
    Ok(())
}

/// The case that mutants are shown.
pub(crate) fn is_right(program: &Program) -> Checked {
    check(program, &CASE, 1)
}

#[test]
fn decode_is_attention_over_every_page_size() {
    holds(DECODE, |program| {
        for page_shift in 0..=8 {
            check(program, &Case { page_shift, ..CASE }, 10 + page_shift as u64)?;
        }
        check(program, &Case { layout: Layout::TokenFirst, ..CASE }, 30)?;
        check(program, &Case { layout: Layout::TokenFirst, page_shift: 2, ..CASE }, 31)
    });
}

#[test]
fn decode_serves_any_number_of_query_heads_a_kv_head() {
    holds(DECODE, |program| {
        for (hq, hkv) in [(1, 1), (5, 1), (10, 2), (16, 2), (12, 1), (3, 3)] {
            check(program, &Case { hq, hkv, lens: &[5, 77, 128], ..CASE }, 40 + hq as u64)?;
        }
        Ok(())
    });
}

#[test]
fn decode_serves_heads_of_64() {
    holds(DECODE, |program| {
        for (page_shift, layout) in [(4, Layout::PageFirst), (2, Layout::PageFirst), (6, Layout::TokenFirst)] {
            check(program, &Case { page_shift, layout, dim: 64, ..CASE }, 50 + page_shift as u64)?;
        }
        Ok(())
    });
}

/// 40 tiles a warp: more than the page ids that a warp holds at a time.
pub(crate) fn long_is_right(program: &Program) -> Checked {
    check(program, &Case { hq: 2, hkv: 1, lens: &[2600, 1], split: 4096, ctas: 1, ..CASE }, 60)
}

#[test]
fn a_long_part_and_few_or_many_ctas_change_nothing() {
    holds(DECODE, |program| {
        long_is_right(program)?;
        check(program, &Case { split: 16, lens: &[100, 333], ctas: 64, ..CASE }, 61)
    });
}

#[test]
fn rows_without_work_stay_as_they_are() {
    holds(DECODE, |program| {
        let case = Case { lens: &[0, 20], ..CASE };
        let mut draw = Draw::new(70);
        let pool = Pool::new(&mut draw, case.layout, case.page_shift, case.hkv, case.dim, case.lens);
        let q = draw.values(2 * case.hq * case.dim, 0.0, 1.0);
        let out = run(program, &case, &pool, &q, &[0, 1], 70)?;
        same("padding", &out[..case.hq * case.dim], &vec![POISON; case.hq * case.dim])
    });
}

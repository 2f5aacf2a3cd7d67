//! Prefill attention: every way to page, batch and cut a prompt into chunks.

use crate::arguments;
use crate::check::{Checked, Draw, close, holds, same};
use crate::emu::{Argument, Job, Map, PREFILL, Program, Shape};
use crate::pool::{Layout, Pool};

const DIM: usize = 128;

struct Case {
    layout: Layout,
    page_shift: usize,
    hq: usize,
    hkv: usize,
    /// (tokens before, tokens computed) of each sequence.
    seqs: &'static [(usize, usize)],
    /// CTAs, or as many as there are tiles.
    ctas: Option<usize>,
}

const CASE: Case = Case {
    layout: Layout::PageFirst,
    page_shift: 4,
    hq: 4,
    hkv: 1,
    seqs: &[(0, 1), (100, 37), (0, 70), (125, 5)],
    ctas: None,
};

/// `q` has a row for each token of a chunk, chunk after chunk; (row of the pool's table, before, count) a chunk.
fn run(
    program: &Program,
    case: &Case,
    pool: &Pool,
    q: &[u16],
    chunks: &[[usize; 3]],
    seed: u64,
) -> Result<Vec<u16>, String> {
    let g = case.hq / case.hkv;
    let (mut seqs, mut tiles, mut first) = (Vec::new(), Vec::new(), 0);
    for (index, [row, before, count]) in chunks.iter().enumerate() {
        seqs.push([first as i32, *count as i32, (before + count) as i32, *row as i32]);
        for tile in 0..(count * g).div_ceil(128) {
            let last = (tile * 128 + 127) / g;
            tiles.push((before + last.min(count - 1), [index as i32, tile as i32]));
        }
        first += count;
    }
    tiles.sort_by_key(|(keys, _)| std::cmp::Reverse(*keys));
    let work: Vec<[i32; 2]> = tiles.into_iter().map(|(_, tile)| tile).collect();
    let mut job = Job::new(seed);
    let kv = job.buffer(&pool.data);
    let page = 1 << case.page_shift;
    let map = |at: usize| Map {
        buffer: kv,
        offset: 2 * at as u64,
        dims: [DIM as u64, page, case.hkv as u64, pool.pages() as u64],
        strides: [pool.token_stride, pool.head_stride, pool.page_stride].map(|stride| 2 * stride as u64),
        tile: [64, page, 1, 1],
    };
    let out = job.poisoned::<u16>(q.len());
    let arguments: &[Argument] = arguments![
        map(pool.k_at),
        map(pool.v_at),
        job.buffer(q),
        job.buffer(&pool.table),
        job.buffer(&seqs),
        job.buffer(&work),
        work.len() as i32,
        out,
        pool.pages_max as i32,
        case.page_shift as i32,
        case.hq as i32,
        g as i32,
        pool.scale_log2(),
    ];
    let ctas = case.ctas.unwrap_or(work.len() * case.hkv);
    job.launch("prefill_wgmma", Shape { grid: [ctas, 1], block: 384, shared_bytes: 164_864 }, arguments);
    Ok(job.run(program)?.get(out))
}

fn check(program: &Program, case: &Case, seed: u64) -> Checked {
    let mut draw = Draw::new(seed);
    let lens: Vec<usize> = case.seqs.iter().map(|(before, count)| before + count).collect();
    let pool = Pool::new(&mut draw, case.layout, case.page_shift, case.hkv, DIM, &lens);
    let width = case.hq * DIM;
    let tokens: usize = case.seqs.iter().map(|(_, count)| count).sum();
    let q = draw.values(tokens * width, 0.0, 1.5);
    let whole: Vec<[usize; 3]> =
        case.seqs.iter().enumerate().map(|(row, (before, count))| [row, *before, *count]).collect();
    let out = run(program, case, &pool, &q, &whole, seed)?;
    let what = format!("pages of {}, {}/{} heads", 1 << case.page_shift, case.hq, case.hkv);
    let mut index = 0;
    for [row, before, count] in &whole {
        for token in 0..*count {
            for head in 0..case.hq {
                let at = index * width + head * DIM;
                let want = pool.attend(&q[at..][..DIM], *row, 0..before + token + 1, head / (case.hq / case.hkv));
                close(&format!("{what}: {before} + {token} of {count}"), &out[at..][..DIM], &want)?;
            }
            index += 1;
        }
    }
    // Cut at random, and each sequence alone: the same bits. What a chunk has not reached is not there for it.
    let mut first = 0;
    for [row, before, count] in whole {
        let cut = draw.below(count);
        for [from, to] in [[0, cut], [cut, count]] {
            if from < to {
                let part = &q[(first + from) * width..(first + to) * width];
                let got = run(program, case, &pool, part, &[[row, before + from, to - from]], seed + 1)?;
                let want = &out[(first + from) * width..(first + to) * width];
                same(&format!("{what}: {before} + {from}..{to} of {count} alone"), &got, want)?;
            }
        }
        first += count;
    }
    Ok(())
}

/// What mutants are shown: several schedules, for some mistakes show only when copies land in a certain order.
pub(crate) fn is_right(program: &Program) -> Checked {
    (1..=4).try_for_each(|seed| check(program, &Case { seqs: &[(100, 37), (140, 3)], ctas: Some(2), ..CASE }, seed))
}

#[test]
fn prefill_is_causal_attention_over_every_page_size() {
    holds(PREFILL, |program| {
        for page_shift in 3..=7 {
            check(program, &Case { page_shift, seqs: &[(100, 37), (125, 5)], ..CASE }, page_shift as u64)?;
        }
        check(program, &Case { layout: Layout::TokenFirst, ..CASE }, 20)
    });
}

#[test]
fn prefill_serves_any_number_of_query_heads_a_kv_head() {
    holds(PREFILL, |program| {
        for (hq, hkv) in [(1, 1), (2, 2), (5, 1), (16, 2)] {
            check(program, &Case { hq, hkv, seqs: &[(0, 30), (250, 9)], ..CASE }, 30 + hq as u64)?;
        }
        Ok(())
    });
}

#[test]
fn prefill_by_few_ctas_gives_the_bits_of_many() {
    holds(PREFILL, |program| {
        check(program, &Case { ctas: Some(1), ..CASE }, 40)?;
        check(program, &Case { ctas: Some(3), hq: 4, hkv: 2, seqs: &[(0, 150), (300, 70), (0, 1)], ..CASE }, 41)
    });
}

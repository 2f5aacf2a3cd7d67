//! Decode attention: every way to cut, page and batch.

use crate::arguments;
use crate::check::{Checked, Draw, POISON, bits, close, holds, same};
use crate::emu::{Argument, DECODE, Job, Program, Shape};
use crate::pool::{Layout, Pool};

struct Case {
    layout: Layout,
    page_shift: usize,
    hq: usize,
    hkv: usize,
    dim: usize,
    lens: &'static [usize],
}

const CASE: Case = Case {
    layout: Layout::PageFirst,
    page_shift: 4,
    hq: 8,
    hkv: 2,
    dim: 128,
    // Within a tile, a block and several; blocks of which not every warp has tokens.
    lens: &[1, 17, 63, 200, 256, 270, 800],
};
/// Tokens of a block, which is never cut.
const BLOCK: usize = 256;

/// How the contexts of a batch are shared out.
#[derive(Clone, Copy)]
struct Cut<'a> {
    ctas: usize,
    /// Of each unit of each row in turn, over and over: bit b is set if there is a cut behind block b.
    behind: &'a [u32],
}

const WHOLE: Cut<'static> = Cut { ctas: 3, behind: &[0] };
/// Three bits, for as many cuts as four blocks have; the order gives neighbours of a row different ones.
const EVERY_WAY: [u32; 8] = [0b111, 0b001, 0b000, 0b010, 0b110, 0b011, 0b100, 0b101];

/// The outputs of some of the rows of a pool as one batch; rows without context must stay as they were.
fn run(
    program: &Program,
    case: &Case,
    pool: &Pool,
    q: &[u16],
    rows: &[usize],
    cut: Cut<'_>,
    seed: u64,
) -> Result<Vec<u16>, String> {
    let width = case.hq * case.dim;
    let units = case.hkv * (case.hq / case.hkv).div_ceil(8);
    let (mut work, mut lengths, mut leaves) = (Vec::new(), Vec::new(), 0);
    let mut batch_q: Vec<u16> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let blocks = case.lens[*row].div_ceil(BLOCK);
        lengths.push([*row as i32, case.lens[*row] as i32]);
        batch_q.extend(&q[row * width..][..width]);
        for unit in 0..units {
            let behind = cut.behind[(index * units + unit) % cut.behind.len()];
            let ends: Vec<usize> = (1..=blocks).filter(|end| *end == blocks || behind >> (end - 1) & 1 == 1).collect();
            let mut first = 0;
            for end in &ends {
                let (unit, count) = (unit << 16 | index, (end - first) << 16 | first);
                // Where one piece has it all, nobody looks for leaves.
                let leaf = if ends.len() > 1 { leaves } else { i32::MAX as usize };
                work.push([unit as i32, count as i32, ends.len() as i32, leaf as i32]);
                first = *end;
            }
            if ends.len() > 1 {
                leaves += blocks;
            }
        }
    }
    // Shares of any size, some of them empty.
    let mut draw = Draw::new(seed);
    let mut starts: Vec<i32> = (1..cut.ctas).map(|_| draw.below(work.len() + 1) as i32).collect();
    starts.extend([0, work.len() as i32]);
    starts.sort_unstable();

    let mut job = Job::new(seed);
    let pool_at = job.buffer(&pool.data);
    let out = job.poisoned::<u16>(rows.len() * width);
    let arrived = job.buffer(&vec![0_u32; rows.len() * units]);
    let leaf_floats = 4 * (case.dim / 16 + 1) * 32 * 4;
    let arguments: Vec<Argument> = arguments![
        job.buffer(&batch_q),
        Argument::At(pool_at, 2 * pool.k_at as u64),
        Argument::At(pool_at, 2 * pool.v_at as u64),
        job.buffer(&pool.table),
        job.buffer(&starts),
        job.buffer(&work),
        job.buffer(&lengths),
        out,
        job.poisoned::<f32>(leaves * leaf_floats),
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
    let (kernel, shared_bytes) = if case.dim == 128 { ("decode_d128", 115_216) } else { ("decode_d64", 106_768) };
    let shape = Shape { grid: [cut.ctas, 1], block: 128, shared_bytes };
    // Twice: a graph replays with the counters that the first run left.
    job.launch(kernel, shape, &arguments);
    job.launch(kernel, shape, &arguments);
    let done = job.run(program)?;
    same("arrivals", &done.get::<u32>(arrived), &vec![0; rows.len() * units])?;
    Ok(done.get(out))
}

fn check(program: &Program, case: &Case, seed: u64) -> Checked {
    let mut draw = Draw::new(seed);
    let pool = Pool::new(&mut draw, case.layout, case.page_shift, case.hkv, case.dim, case.lens);
    let q = draw.values(case.lens.len() * case.hq * case.dim, 0.0, 1.5);
    let rows: Vec<usize> = (0..case.lens.len()).collect();
    let out = run(program, case, &pool, &q, &rows, WHOLE, seed)?;
    let what = format!("pages of {} {:?} {}/{} heads", 1 << case.page_shift, case.layout, case.hq, case.hkv);
    for (row, len) in case.lens.iter().enumerate() {
        for head in 0..case.hq {
            let at = (row * case.hq + head) * case.dim;
            let want = pool.attend(&q[at..][..case.dim], row, 0..*len, head / (case.hq / case.hkv));
            close(&format!("{what}, {len} tokens, head {head}"), &out[at..][..case.dim], &want)?;
        }
    }
    // Cut in every way; in other company, another order, another grid: the same bits.
    let width = case.hq * case.dim;
    let mut some: Vec<usize> = draw.shuffled(case.lens.len());
    some.truncate(case.lens.len().div_ceil(2));
    for (rows, cut) in [(&rows, Cut { ctas: 6, behind: &EVERY_WAY }), (&some, Cut { ctas: 1, behind: &EVERY_WAY[..7] })]
    {
        let other = run(program, case, &pool, &q, rows, cut, seed + 1)?;
        for (index, row) in rows.iter().enumerate() {
            let what = format!("{what}, row {row}, cut, in a batch of {}", rows.len());
            same(&what, &other[index * width..][..width], &out[row * width..][..width])?;
        }
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
        for page_shift in 0..=6 {
            check(program, &Case { page_shift, lens: &[1, 200, 270], ..CASE }, 10 + page_shift as u64)?;
        }
        check(program, &Case { layout: Layout::TokenFirst, ..CASE }, 30)?;
        check(program, &Case { layout: Layout::TokenFirst, page_shift: 2, lens: &[77, 513], ..CASE }, 31)
    });
}

#[test]
fn decode_serves_any_number_of_query_heads_a_kv_head() {
    holds(DECODE, |program| {
        for (hq, hkv) in [(1, 1), (5, 1), (10, 2), (16, 2), (12, 1), (3, 3)] {
            check(program, &Case { hq, hkv, lens: &[5, 77, 300], ..CASE }, 40 + hq as u64)?;
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

/// What mutants are shown: every way to cut a row, and many ways to share it out. The same numbers with both signs, and
/// of many sizes, are added up: what is left is the rounding, so that no other order has the same bits.
pub(crate) fn order_is_right(program: &Program) -> Checked {
    let case = Case { hq: 2, hkv: 1, lens: &[800], ..CASE };
    let mut draw = Draw::new(60);
    let mut pool = Pool::new(&mut draw, case.layout, case.page_shift, case.hkv, case.dim, case.lens);
    let k = draw.values(case.dim, 0.0, 1.0);
    for pair in draw.shuffled(800).chunks(2) {
        let v: Vec<f64> = (0..case.dim).map(|_| (1.0 + draw.unit()) * f64::from(1 << draw.below(20))).collect();
        for (token, sign) in pair.iter().zip([1.0, -1.0]) {
            let v: Vec<u16> = v.iter().map(|v| bits(sign * v)).collect();
            pool.put(0, *token, 0, &k, &v);
        }
    }
    let q = draw.values(case.hq * case.dim, 0.0, 1.5);
    let whole = run(program, &case, &pool, &q, &[0], WHOLE, 1)?;
    for behind in EVERY_WAY {
        for ctas in [1, 2, 4, 9] {
            let cut = Cut { ctas, behind: &[behind] };
            let out = run(program, &case, &pool, &q, &[0], cut, u64::from(behind) + ctas as u64)?;
            same(&format!("cuts {behind:03b} among {ctas} CTAs"), &out, &whole)?;
        }
    }
    Ok(())
}

#[test]
fn a_row_has_the_same_bits_however_it_is_cut() {
    holds(DECODE, order_is_right);
}

/// 40 tiles a warp: more than the page ids that a warp holds at a time.
pub(crate) fn long_is_right(program: &Program) -> Checked {
    check(program, &Case { hq: 2, hkv: 1, lens: &[2600, 1], ..CASE }, 61)
}

#[test]
fn a_long_context_is_read_to_its_end() {
    holds(DECODE, long_is_right);
}

#[test]
fn rows_without_work_stay_as_they_are() {
    holds(DECODE, |program| {
        let case = Case { lens: &[0, 20], ..CASE };
        let mut draw = Draw::new(70);
        let pool = Pool::new(&mut draw, case.layout, case.page_shift, case.hkv, case.dim, case.lens);
        let q = draw.values(2 * case.hq * case.dim, 0.0, 1.0);
        let out = run(program, &case, &pool, &q, &[0, 1], WHOLE, 70)?;
        same("padding", &out[..case.hq * case.dim], &vec![POISON; case.hq * case.dim])
    });
}

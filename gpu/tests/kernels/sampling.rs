//! From logits to tokens: greedy, drawn, filtered.

use crate::arguments;
use crate::check::{Checked, Draw, bits, holds, same, value};
use crate::emu::{Argument, Job, Program, SAMPLE, Shape};

const FILTERED: Shape = Shape { grid: [1, 1], block: 1024, shared_bytes: 193_536 };
const HOST_CHOOSES: u32 = 1;

/// What a row asks for, in the kernel's order.
#[derive(Clone, Copy)]
struct Row {
    temperature: f32,
    top_p: f32,
    min_p: f32,
    top_k: u32,
    seed: u64,
    position: u32,
    slot: i32,
    flags: u32,
}

const GREEDY: Row = Row { temperature: 0.0, top_p: 1.0, min_p: 0.0, top_k: 0, seed: 0, position: 0, slot: 0, flags: 0 };
const DRAWN: Row = Row { temperature: 1.0, ..GREEDY };

impl Row {
    fn words(&self) -> [u32; 9] {
        [
            self.temperature.to_bits(),
            self.top_p.to_bits(),
            self.min_p.to_bits(),
            self.top_k,
            self.seed as u32,
            (self.seed >> 32) as u32,
            self.position,
            self.slot as u32,
            self.flags,
        ]
    }
}

#[derive(PartialEq, Debug)]
struct Chosen {
    next: Vec<i32>,
    last: Vec<i32>,
    finite: Vec<i32>,
}

/// Both kernels over a batch, as a step launches them.
fn choose(program: &Program, logits: &[Vec<u16>], rows: &[Row], splits: usize, seed: u64) -> Result<Chosen, String> {
    let vocabulary = logits[0].len();
    let stride = vocabulary.next_multiple_of(8);
    let mut flat = Vec::new();
    for row in logits {
        flat.extend(row);
        // What follows a row in memory would win.
        flat.resize(flat.len().next_multiple_of(8), bits(1e9));
    }
    let words: Vec<[u32; 9]> = rows.iter().map(Row::words).collect();
    let mut job = Job::new(seed);
    let (logits, asked) = (job.buffer(&flat), job.buffer(&words));
    let arrived = job.buffer(&vec![0_u32; rows.len()]);
    let parts = job.poisoned::<[f32; 2]>(rows.len() * splits);
    let next = job.poisoned::<i32>(rows.len());
    let last = job.poisoned::<i32>(rows.len() + 2);
    let finite = job.poisoned::<i32>(rows.len());
    let (v, s) = (vocabulary as i32, stride as i32);
    let vectors = (stride / 8).div_ceil(splits) as i32;
    let arguments: &[Argument] = arguments![logits, asked, parts, arrived, next, last, finite, v, s, vectors];
    job.launch("sample_greedy_gumbel", Shape { grid: [splits, rows.len()], block: 512, shared_bytes: 128 }, arguments);
    let arguments: &[Argument] = arguments![logits, asked, next, last, finite, v, s];
    job.launch("sample_filtered", Shape { grid: [rows.len(), 1], ..FILTERED }, arguments);
    let done = job.run(program)?;
    same("arrivals", &done.get::<u32>(arrived), &vec![0; rows.len()])?;
    Ok(Chosen { next: done.get(next), last: done.get(last), finite: done.get(finite) })
}

fn logits(draw: &mut Draw, vocabulary: usize, width: f64) -> Vec<u16> {
    draw.values(vocabulary, 0.0, width)
}

/// The tokens that may be drawn, by the definition: sorted, cut where a filter ends.
fn kept(logits: &[u16], row: &Row) -> Vec<usize> {
    let largest = logits.iter().map(|x| value(*x)).fold(f64::NEG_INFINITY, f64::max);
    let mass = |token: usize| ((value(logits[token]) - largest) / f64::from(row.temperature)).exp();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| value(logits[*b]).total_cmp(&value(logits[*a])).then(a.cmp(b)));
    let total: f64 = order.iter().map(|token| mass(*token)).sum();
    let limit = if row.top_k == 0 { logits.len() } else { row.top_k as usize };
    let mut before = 0.0;
    let mut kept = Vec::new();
    for token in order.into_iter().take(limit) {
        let is_out = row.top_p < 1.0 && before > f64::from(row.top_p) * total;
        if is_out || mass(token) < f64::from(row.min_p) {
            break;
        }
        before += mass(token);
        kept.push(token);
    }
    kept
}

/// Draws at many positions; the counts by token fit the probabilities among those that may be drawn.
fn draws_fit(program: &Program, logits: &[u16], row: &Row, draws: usize) -> Checked {
    let rows: Vec<Row> = (0..draws)
        .map(|index| {
            let seed = row.seed + ((index as u64 % 3) << 40);
            Row { position: index as u32, seed, slot: index as i32, ..*row }
        })
        .collect();
    let chosen = choose(program, &vec![logits.to_vec(); draws], &rows, 1, 9)?;
    let may = kept(logits, row);
    let largest = value(logits[may[0]]);
    let mass: Vec<f64> =
        may.iter().map(|token| ((value(logits[*token]) - largest) / f64::from(row.temperature)).exp()).collect();
    let total: f64 = mass.iter().sum();
    let mut counts = vec![0.0; may.len()];
    for token in &chosen.next {
        let Some(place) = may.iter().position(|may| *may as i32 == *token) else {
            return Err(format!("token {token} may not be drawn, only {may:?}"));
        };
        counts[place] += 1.0;
    }
    let chi: f64 = mass
        .iter()
        .zip(&counts)
        .map(|(mass, count)| {
            let want = mass / total * draws as f64;
            (count - want) * (count - want) / want
        })
        .sum();
    // Seeds are fixed, so this cannot fail now and then: six deviations of chi-square leave no chance to a wrong kernel.
    let degrees = may.len() as f64 - 1.0;
    if chi < degrees + 6.0 * (2.0 * degrees).sqrt() + 1e-9 {
        Ok(())
    } else {
        Err(format!("chi-square {chi:.0} at {degrees} degrees: {counts:?}"))
    }
}

/// What mutants are shown.
pub(crate) fn ties_are_right(program: &Program) -> Checked {
    for (vocabulary, splits) in [(5, 1), (1003, 3), (9000, 2)] {
        let mut draw = Draw::new(vocabulary as u64);
        let mut all: Vec<Vec<u16>> = (0..4).map(|_| logits(&mut draw, vocabulary, 8.0)).collect();
        for x in [1, vocabulary - 1] {
            all[1][x] = bits(9.5);
        }
        all[2].fill(bits(-3.0));
        all[3].fill(bits(-3e38));
        all[3][vocabulary / 2] = bits(-2e38);
        let rows: Vec<Row> = (0..4).map(|slot| Row { slot, ..GREEDY }).collect();
        let chosen = choose(program, &all, &rows, splits, 1)?;
        let first = (0..vocabulary).rev().max_by(|a, b| value(all[0][*a]).total_cmp(&value(all[0][*b])));
        let want = [first.expect("tokens") as i32, 1, 0, vocabulary as i32 / 2];
        same(&format!("of {vocabulary}"), &chosen.next, &want)?;
        same("last", &chosen.last[..4], &want)?;
        same("finite", &chosen.finite, &[1; 4])?;
    }
    Ok(())
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    holds(SAMPLE, ties_are_right);
}

#[test]
fn rows_that_are_padding_broken_or_the_hosts_are_told_apart() {
    holds(SAMPLE, |program| {
        let mut draw = Draw::new(2);
        let mut all: Vec<Vec<u16>> = (0..7).map(|_| logits(&mut draw, 700, 8.0)).collect();
        all[1][699] = f16(f64::NAN);
        all[2][3] = f16(f64::INFINITY);
        all[4][400] = f16(f64::NEG_INFINITY);
        all[5][0] = f16(f64::NAN);
        all[6][77] = bits(50.0);
        let filtered = Row { top_k: 5, ..DRAWN };
        let rows = [
            Row { slot: -1, ..GREEDY },
            Row { slot: 1, ..GREEDY },
            Row { slot: 2, ..filtered },
            Row { slot: 3, flags: HOST_CHOOSES, ..filtered },
            Row { slot: 4, ..DRAWN },
            Row { slot: 5, flags: HOST_CHOOSES, ..GREEDY },
            Row { slot: 8, ..filtered },
        ];
        let chosen = choose(program, &all, &rows, 2, 2)?;
        same("finite", &chosen.finite, &[-1, 0, 0, 1, 0, 0, 1])?;
        same("next", &chosen.next, &[-1, 0, 0, -1, 0, -1, 77])?;
        same("last", &chosen.last, &[-1, 0, 0, -1, 0, -1, -1, -1, 77])
    });
}

fn f16(x: f64) -> u16 {
    half::bf16::from_f64(x).to_bits()
}

/// What mutants are shown.
pub(crate) fn draws_are_right(program: &Program) -> Checked {
    let mut draw = Draw::new(3);
    let some = logits(&mut draw, 9, 2.0);
    draws_fit(program, &some, &Row { seed: 1, temperature: 0.8, ..DRAWN }, 400)
}

#[test]
fn draws_follow_the_softmax_at_a_temperature() {
    holds(SAMPLE, |program| {
        draws_are_right(program)?;
        let mut draw = Draw::new(4);
        let some = logits(&mut draw, 30, 2.0);
        draws_fit(program, &some, &Row { seed: 99, temperature: 2.5, ..DRAWN }, 400)
    });
}

/// What mutants are shown.
pub(crate) fn filters_are_right(program: &Program) -> Checked {
    let mut draw = Draw::new(5);
    // Steps of a half: many equals, so that a cut goes through them.
    let some: Vec<u16> = (0..24).map(|_| bits((draw.unit() * 4.0).round() / 2.0)).collect();
    for row in [
        Row { top_k: 3, ..DRAWN },
        Row { top_k: 7, ..DRAWN },
        Row { top_p: 0.5, ..DRAWN },
        Row { top_p: 0.93, temperature: 0.7, ..DRAWN },
        Row { min_p: 0.2, ..DRAWN },
        Row { min_p: 0.05, top_p: 0.9, top_k: 9, temperature: 1.3, ..DRAWN },
    ] {
        draws_fit(program, &some, &row, 16)?;
    }
    // Three of eight equals reach 0.3.
    draws_fit(program, &[bits(1.5); 8], &Row { top_p: 0.3, ..DRAWN }, 40)
}

#[test]
fn filters_keep_what_their_definition_keeps() {
    holds(SAMPLE, |program| {
        filters_are_right(program)?;
        // Logits of both signs and zeros of both signs; a vocabulary of one.
        let zeros = [bits(0.0), bits(-0.0), bits(-1.0), bits(-0.0), bits(-30.0)];
        draws_fit(program, &zeros, &Row { top_k: 4, ..DRAWN }, 20)?;
        draws_fit(program, &zeros, &Row { top_p: 0.1, ..DRAWN }, 4)?;
        draws_fit(program, &[bits(2.0)], &Row { top_p: 0.9, ..DRAWN }, 2)?;
        // Everything is equal: the cut is by id alone, through many threads' pieces.
        draws_fit(program, &[bits(1.5); 3000], &Row { top_k: 2500, ..DRAWN }, 6)
    });
}

#[test]
fn a_filter_that_keeps_everything_draws_what_no_filter_draws() {
    holds(SAMPLE, |program| {
        let mut draw = Draw::new(6);
        let all: Vec<Vec<u16>> = (0..6).map(|_| logits(&mut draw, 4000, 1.0)).collect();
        let plain: Vec<Row> = (0..6).map(|slot| Row { slot, seed: 5, position: slot as u32, ..DRAWN }).collect();
        let loose: Vec<Row> = plain.iter().map(|row| Row { top_k: 4000, min_p: 1e-6, ..*row }).collect();
        let (a, b) = (choose(program, &all, &plain, 3, 1)?, choose(program, &all, &loose, 1, 2)?);
        same("draws", &a.next, &b.next)?;
        // And in other company.
        let alone = choose(program, &all[4..5], &[Row { slot: 0, ..plain[4] }], 2, 3)?;
        same("alone", &alone.next, &a.next[4..5])?;
        assert!(a.next.windows(2).any(|pair| pair[0] != pair[1]), "draws differ by position");
        Ok(())
    });
}

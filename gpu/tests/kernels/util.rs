//! Dummy weights, comparisons, tables of pages, rows picked out.

use half::bf16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::arguments;
use crate::check::{Checked, Draw, POISON, holds, same};
use crate::emu::{Argument, Job, Program, Shape, UTIL};

const fn threads(ctas: usize) -> Shape {
    Shape { grid: [ctas, 1], block: 256, shared_bytes: 0 }
}

/// What mutants are shown.
pub(crate) fn draws_are_right(program: &Program) -> Checked {
    // Less than a block of the stream, less than a CTA, more than one.
    for (count, middle, width) in [(5, 1.0_f32, 0.1_f32), (1000, 0.0, 0.037), (2 * 4096 + 23, 0.3, 1.7)] {
        let mut key = [0; 32];
        ChaCha8Rng::seed_from_u64(count as u64).fill_bytes(&mut key);
        let (words, _) = key.as_chunks::<8>();
        let [a, b, c, d] = [0, 1, 2, 3].map(|index| u64::from_le_bytes(words[index]));
        let mut job = Job::new(1);
        let out = job.poisoned::<u16>(count + 3);
        let arguments: &[Argument] = arguments![out, count as u64, a, b, c, d, middle, width];
        job.launch("draw_bf16", threads(count.div_ceil(4096)), arguments);
        let mut rng = ChaCha8Rng::from_seed(key);
        let mut want: Vec<u16> = (0..count)
            .map(|_| {
                let unit = (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
                bf16::from_f32(middle + width * unit).to_bits()
            })
            .collect();
        want.extend([POISON; 3]);
        same(&format!("{count} weights"), &job.run(program)?.get::<u16>(out), &want)?;
    }
    Ok(())
}

#[test]
fn dummy_weights_are_the_words_of_a_stream() {
    holds(UTIL, draws_are_right);
}

/// What mutants are shown.
pub(crate) fn counts_are_right(program: &Program) -> Checked {
    // Equal as bits, whatever they stand for: a NaN is itself, zeros of two signs are two things.
    let left: Vec<u16> = (0..1500).map(|index| [0x7fff, 0, 0x3f80, 0x8000][index % 4]).collect();
    let mut right = left.clone();
    for place in [0, 1, 255, 256, 700, 1021, 1499] {
        right[place] ^= 0x8000;
    }
    let mut job = Job::new(2);
    let count = job.buffer(&[40_u32]);
    let arguments: &[Argument] = arguments![job.buffer(&left), job.buffer(&right), 1500_u64, count];
    job.launch("count_differences", threads(2), arguments);
    same("differences", &job.run(program)?.get::<u32>(count), &[47])
}

#[test]
fn differences_are_counted_on_top_of_those_before() {
    holds(UTIL, counts_are_right);
}

/// What mutants are shown.
pub(crate) fn tables_are_right(program: &Program) -> Checked {
    const PAGES_MAX: usize = 90;
    let places = Draw::new(3).shuffled(5 * PAGES_MAX);
    // More than a CTA has threads.
    let updates: Vec<[i32; 4]> = places[..300]
        .iter()
        .zip(1000..)
        .map(|(place, page)| [(place / PAGES_MAX) as i32, (place % PAGES_MAX) as i32, page, 0])
        .collect();
    let mut want = vec![-1; 5 * PAGES_MAX];
    for (place, page) in places[..299].iter().zip(1000..) {
        want[*place] = page;
    }
    let mut job = Job::new(3);
    let table = job.poisoned::<i32>(5 * PAGES_MAX);
    let arguments: &[Argument] = arguments![job.buffer(&updates), 299, table, PAGES_MAX as i32];
    job.launch("update_tables", threads(2), arguments);
    same("tables", &job.run(program)?.get::<i32>(table), &want)
}

#[test]
fn pages_are_entered_where_updates_say_and_no_more_of_them_than_said() {
    holds(UTIL, tables_are_right);
}

/// What mutants are shown.
pub(crate) fn rows_are_right(program: &Program) -> Checked {
    for width in [8, 2056] {
        let from = Draw::new(4).values(5 * width, 0.0, 1.0);
        let picks = [4, -1, 0, 4];
        let mut job = Job::new(4);
        let to = job.poisoned::<u16>((picks.len() + 1) * width);
        let arguments: &[Argument] = arguments![job.buffer(&from), job.buffer(&picks), to, width as i32];
        job.launch("gather_rows", threads(picks.len()), arguments);
        let mut want = Vec::new();
        for pick in picks {
            want.extend(usize::try_from(pick).map_or(vec![0; width], |row| from[row * width..][..width].to_vec()));
        }
        want.resize((picks.len() + 1) * width, POISON);
        same(&format!("rows of {width}"), &job.run(program)?.get::<u16>(to), &want)?;
    }
    Ok(())
}

#[test]
fn rows_are_picked_and_padded_with_zeros() {
    holds(UTIL, rows_are_right);
}

/// What mutants are shown.
pub(crate) fn pieces_are_right(program: &Program) -> Checked {
    // Less than a part of a piece, a whole one, two and a bit; more blocks than parts and fewer.
    for (vectors, ctas) in [(3, 4), (4096, 2), (2 * 4096 + 5, 3)] {
        let (elements, pieces) = (vectors * 8, [(2, 0), (0, 3), (3, 1)]);
        let from = Draw::new(5).values(4 * elements, 0.0, 1.0);
        let bytes = (elements * 2) as u64;
        let offsets: Vec<u64> = pieces.iter().flat_map(|(from, to)| [from * bytes, to * bytes]).collect();
        let mut job = Job::new(5);
        let to = job.poisoned::<u16>(4 * elements);
        let arguments: &[Argument] =
            arguments![job.buffer(&offsets), pieces.len() as i32, vectors as i32, job.buffer(&from), to];
        job.launch("push_pieces", Shape { grid: [ctas, 1], block: 512, shared_bytes: 0 }, arguments);
        let mut want = vec![POISON; 4 * elements];
        for (source, target) in pieces.map(|(source, target)| (source as usize, target as usize)) {
            want[target * elements..][..elements].copy_from_slice(&from[source * elements..][..elements]);
        }
        same(&format!("pieces of {vectors} vectors"), &job.run(program)?.get::<u16>(to), &want)?;
    }
    Ok(())
}

#[test]
fn pieces_land_where_they_belong_and_nothing_else_does() {
    holds(UTIL, pieces_are_right);
}

//! Copies of pages, and weights from a seed.

use crate::arguments;
use crate::check::{Draw, close, holds, same, value};
use crate::emu::{Argument, Job, PAGES, Program, Shape};

#[test]
fn pages_arrive_whole_and_nowhere_else() {
    holds(PAGES, |program| {
        // One vector, one round of loads and a rest, several rounds.
        for bytes in [16, 9 * 1024, 40_000] {
            let mut draw = Draw::new(bytes as u64);
            let source = draw.values(4 * bytes / 2, 0.0, 1.0);
            let mut job = Job::new(1);
            let from = job.buffer(&source);
            let to = job.poisoned::<u16>(5 * bytes / 2);
            let pairs = job.buffer(&[[0_u64; 2]; 3]);
            let mut want = vec![0xffff; 5 * bytes / 2];
            for (index, (sink, page)) in [(4, 1), (0, 3), (2, 0)].into_iter().enumerate() {
                job.put_address(pairs, 16 * index, to, sink * bytes);
                job.put_address(pairs, 16 * index + 8, from, page * bytes);
                want[sink * bytes / 2..][..bytes / 2].copy_from_slice(&source[page * bytes / 2..][..bytes / 2]);
            }
            let shape = Shape { grid: [2, 1], block: 512, shared_bytes: 0 };
            job.launch("copy_pages", shape, arguments![pairs, 3, bytes as i64]);
            same(&format!("{bytes} bytes"), &job.run(program)?.get::<u16>(to), &want)?;
        }
        Ok(())
    });
}

fn filled(program: &Program, count: usize, seed: u64, ctas: usize) -> Result<Vec<u16>, String> {
    let mut job = Job::new(1);
    let out = job.poisoned::<u16>(count);
    let arguments: &[Argument] = arguments![out, count as u64, seed, 1.0_f32, 0.5_f32];
    job.launch("fill_bf16", Shape { grid: [ctas, 1], block: 256, shared_bytes: 0 }, arguments);
    Ok(job.run(program)?.get(out))
}

#[test]
fn dummy_weights_are_uniform_and_a_function_of_seed_and_index() {
    holds(PAGES, |program| {
        let (many, some) = (filled(program, 20_001, 7, 3)?, filled(program, 5_000, 7, 1)?);
        same("a shorter tensor", &many[..5_000], &some)?;
        let other = filled(program, 5_000, 7 + (1 << 32), 1)?;
        let equal = other.iter().zip(&some).filter(|(a, b)| a == b).count();
        assert!(equal < 200, "another seed gives other weights: {equal} are equal");
        let mut tenths = [0; 10];
        for x in &many {
            let place = (value(*x) - 0.5) * 10.0;
            assert!((0.0..=10.0).contains(&place), "{} is in the interval", value(*x));
            tenths[(place as usize).min(9)] += 1;
        }
        let spread = tenths.iter().map(|count| f64::from(*count) / 2000.1).collect::<Vec<_>>();
        assert!(spread.iter().all(|share| (0.9..1.1).contains(share)), "{spread:?}");
        let product: Vec<f64> = many.windows(2).map(|pair| (value(pair[0]) - 1.0) * (value(pair[1]) - 1.0)).collect();
        let correlation = product.iter().sum::<f64>() / product.len() as f64 * 12.0;
        assert!(correlation.abs() < 0.03, "neighbours are independent: {correlation}");
        close("the middle", &[crate::check::bits(many.iter().map(|x| value(*x)).sum::<f64>() / 20_001.0)], &[1.0])
    });
}

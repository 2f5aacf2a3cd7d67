//! Random inputs, and comparisons of outputs with references.

use half::bf16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a check found wrong.
pub(crate) type Checked = Result<(), String>;

/// Runs a check with the unit's program, if there is a compiler.
pub(crate) fn holds(unit: crate::emu::Unit, check: impl FnOnce(&crate::emu::Program) -> Checked) {
    if let Some(program) = crate::emu::program(unit) {
        check(&program).expect("the kernel does what its reference does");
    }
}

/// Random numbers for one test.
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in [-1, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        f64::from(self.0.next_u32()) / 2_f64.powi(31) - 1.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((u64::from(self.0.next_u32()) * end as u64) >> 32) as usize
    }

    /// bf16 values, uniform around `middle`.
    pub(crate) fn values(&mut self, count: usize, middle: f64, width: f64) -> Vec<u16> {
        (0..count).map(|_| bits(middle + width * self.unit())).collect()
    }

    /// The numbers below `count` in random order.
    pub(crate) fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..count).collect();
        for index in (1..count).rev() {
            all.swap(index, self.below(index + 1));
        }
        all
    }
}

pub(crate) const POISON: u16 = 0xffff;

pub(crate) fn bits(value: f64) -> u16 {
    bf16::from_f64(value).to_bits()
}

pub(crate) fn value(bits: u16) -> f64 {
    bf16::from_bits(bits).to_f64()
}

pub(crate) fn rounded(value: f64) -> f64 {
    bf16::from_f64(value).to_f64()
}

/// A bf16 output against its reference. Rounding to bf16 alone is 1.7e-3 of the whole.
pub(crate) fn close(what: &str, got: &[u16], want: &[f64]) -> Checked {
    if got.len() != want.len() {
        return Err(format!("{what}: {} values, not {}", got.len(), want.len()));
    }
    let scale = (want.iter().map(|x| x * x).sum::<f64>() / want.len() as f64).sqrt();
    let mut squares = 0.0;
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (value(*got) - want).abs();
        let fits = error <= 0.02 * want.abs() + 0.02 * scale;
        if !fits {
            return Err(format!("{what}: element {index} is {}, not {want}", value(*got)));
        }
        squares += error * error;
    }
    let relative = (squares / want.len() as f64).sqrt() / scale;
    if want.is_empty() || relative < 5e-3 || scale == 0.0 {
        Ok(())
    } else {
        Err(format!("{what}: relative error {relative:.2e}"))
    }
}

/// Fails with the first place where two results differ.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: &[T], want: &[T]) -> Checked {
    if got.len() != want.len() {
        return Err(format!("{what}: {} values, not {}", got.len(), want.len()));
    }
    match got.iter().zip(want).position(|(got, want)| got != want) {
        None => Ok(()),
        Some(at) => Err(format!("{what}: element {at} is {:?}, not {:?}", got[at], want[at])),
    }
}

//! Which way each matrix product is computed at each number of rows.
//!
//! **One bit class for all.** A product's result for a row must not depend on how many rows there are, or a request's
//! answer would depend on its company. So at the start each candidate's result is compared, bit by bit, with that of one
//! reference, and only what is equal is used: cuBLASLt's algorithms that do not split k, and for few rows our own kernel,
//! which sums in the same order and reads weights faster. Among equals the fastest wins. [`Class::Any`] gives that up: the
//! fastest wins at each number of rows, whatever order it sums in.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::blas::{Algorithm, Blas, Form, Problem};
use super::driver::{Buffer, Context, Event, Result, Stream};
use super::error::CudaError;
use super::kernels::{Kernels, ORDERED_HEIGHTS, ORDERED_ROWS, Ordered};
use super::module::TensorMap;

/// A weight matrix in memory, with its tilings.
pub(super) struct Matrix {
    pub(super) buffer: Buffer,
    pub(super) form: Form,
    /// For the kernel of few rows, by height of a tile; none if rows are not whole 16-byte vectors.
    maps: Vec<TensorMap>,
}

/// Which results count as right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// The reference's bits.
    One,
    /// All that the library and our kernel compute.
    Any,
}

/// The chosen ways.
pub(super) struct Products {
    blas: Blas,
    class: Class,
    ways: BTreeMap<(Form, usize), Way>,
}

enum Way {
    Blas(Problem, Algorithm),
    /// Our kernel for up to `width` rows, with tiles of a height.
    Ordered {
        width: usize,
        height: usize,
    },
}

/// Rows of inputs, with a tiling of their first rows for each width of our kernel.
pub(super) struct Inputs {
    pub(super) buffer: Buffer,
    maps: Vec<(usize, TensorMap)>,
}

impl Inputs {
    /// Room for some rows of `k` elements.
    pub(super) fn new(context: &Arc<Context>, rows: usize, k: usize, what: &str) -> Result<Self> {
        let rows = rows.max(ORDERED_WIDTH);
        let buffer = Buffer::zeroed(context, rows * k * 2, what)?;
        let mut maps = Vec::new();
        if k.is_multiple_of(8) {
            for width in ORDERED_ROWS {
                maps.push((width, Self::map(buffer.address(), k, width)?));
            }
        }
        Ok(Self { buffer, maps })
    }

    fn map(address: u64, k: usize, width: usize) -> Result<TensorMap> {
        let row = k as u64 * 2;
        let strides = [row, row * width as u64, row * width as u64];
        TensorMap::new(address, [k as u64, width as u64, 1, 1], strides, [64, width as u32, 1, 1])
    }
}

impl Matrix {
    pub(super) fn new(buffer: Buffer, form: Form) -> Result<Self> {
        let Form { n, k, .. } = form;
        let has_maps = n.is_multiple_of(8) && k.is_multiple_of(8);
        let row = k as u64 * 2;
        let map = |height: usize| {
            let (sizes, strides) = ([k as u64, n as u64, 1, 1], [row, row * n as u64, row * n as u64]);
            TensorMap::new(buffer.address(), sizes, strides, [64, height as u32, 1, 1])
        };
        let maps = ORDERED_HEIGHTS.into_iter().filter(|_| has_maps).map(map).collect::<Result<_>>()?;
        Ok(Self { buffer, form, maps })
    }
}

/// To so many rows a forward is filled up: so few numbers have to be prepared, and rows that are not there cost little.
pub(super) const fn padded_rows(rows: usize) -> usize {
    let step = match rows {
        0..=1 => return 1,
        2..=4 => 2,
        5..=32 => 4,
        33..=128 => 8,
        129..=512 => 16,
        513..=1024 => 64,
        _ => 256,
    };
    rows.next_multiple_of(step)
}

/// All that [`padded_rows`] gives up to a number of rows.
pub(super) fn paddings(most: usize) -> Vec<usize> {
    let mut list = Vec::new();
    let mut rows = 1;
    while list.last().is_none_or(|last| *last < most) {
        list.push(padded_rows(rows));
        rows = padded_rows(rows) + 1;
    }
    list
}

impl Products {
    /// Prepares products of these matrices (all of one form in a list) for up to so many rows.
    ///
    /// # Errors
    /// [`CudaError::Variant`] if there is no way that gives the reference's bits.
    pub(super) fn prepare(
        context: &Arc<Context>,
        stream: &Stream,
        kernels: &Kernels,
        forms: &[(Vec<&Matrix>, usize)],
        class: Class,
    ) -> Result<Self> {
        let mut products = Self { blas: Blas::open(context)?, class, ways: BTreeMap::new() };
        let bench = Bench { context, stream, kernels, differences: Buffer::zeroed(context, 256, "a count")? };
        for (matrices, most) in forms {
            products.prepare_form(&bench, matrices, padded_rows(*most))?;
        }
        Ok(products)
    }

    /// The library's version.
    pub(super) fn version(&self) -> usize {
        self.blas.version
    }

    fn prepare_form(&mut self, bench: &Bench<'_>, matrices: &[&Matrix], most: usize) -> Result<()> {
        let form = matrices[0].form;
        let Form { n, k, .. } = form;
        let inputs = Inputs::new(bench.context, most, k, "trial inputs")?;
        bench.kernels.draw_bf16(bench.stream, inputs.buffer.address(), most * k, [7; 8], 0.0, 1.0)?;
        let compared = most.min(COMPARED_ROWS);
        let room = |rows: usize, what: &str| Buffer::zeroed(bench.context, rows * n * 2, what);
        // What a product is added to counts for its bits.
        let before = room(compared, "what products are added to")?;
        bench.kernels.draw_bf16(bench.stream, before.address(), compared * n, [9; 8], 0.0, 4.0)?;
        let trial = Trial {
            form,
            matrices,
            inputs: &inputs,
            reference: room(compared.max(ORDERED_WIDTH), "reference products")?,
            outputs: room(most.max(ORDERED_WIDTH), "trial products")?,
            before,
            compared,
        };
        self.refer(bench, &trial)?;
        let mut ordered = None;
        for rows in paddings(most) {
            let width = ORDERED_ROWS.into_iter().find(|width| rows <= *width);
            // One choice serves all numbers of rows of a width: it is memory that takes the time.
            if let Some(width) = width.filter(|width| ordered.as_ref().is_none_or(|(of, _)| of != width)) {
                ordered = Some((width, self.best_ordered(bench, &trial, width)?));
            }
            let ordered = ordered.as_ref().filter(|(of, _)| Some(*of) == width).and_then(|(_, best)| *best);
            let way = self.best(bench, &trial, rows, ordered)?;
            self.ways.insert((form, rows), way);
        }
        Ok(())
    }

    /// Computes what all others are compared with: by our kernel, or where it does not run by the library.
    fn refer(&self, bench: &Bench<'_>, trial: &Trial<'_>) -> Result<()> {
        let Form { n, k, adds } = trial.form;
        let matrix = trial.matrices[0];
        let (inputs, reference) = (trial.inputs.buffer.address(), trial.reference.address());
        bench.stream.copy(reference, trial.before.address(), trial.compared * n * 2)?;
        let Some(map) = matrix.maps.last().filter(|_| bench.kernels.has_ordered()) else {
            let problem = Problem::new(trial.form, trial.compared)?;
            let first = self.blas.algorithms(&problem, 1, false)?;
            let first = first.first().ok_or(CudaError::Variant { n, k, rows: trial.compared })?;
            // SAFETY: the trial's buffers have room for these rows of k and n elements.
            return unsafe { self.blas.run(bench.stream, &problem, first, matrix.buffer.address(), inputs, reference) };
        };
        for from in (0..trial.compared).step_by(ORDERED_WIDTH) {
            let rows = ORDERED_WIDTH.min(trial.compared - from);
            let rows_map = Inputs::map(inputs + (from * k * 2) as u64, k, ORDERED_WIDTH)?;
            let out = reference + (from * n * 2) as u64;
            let product =
                Ordered { width: ORDERED_WIDTH, height: ORDERED_HEIGHTS[ORDERED_HEIGHTS.len() - 1], rows, n, k };
            bench.kernels.ordered(bench.stream, product, map, &rows_map, out, adds)?;
        }
        Ok(())
    }

    /// The height of our kernel's tiles that is fastest, with its time.
    fn best_ordered(&self, bench: &Bench<'_>, trial: &Trial<'_>, width: usize) -> Result<Option<(f32, usize)>> {
        let mut best: Option<(f32, usize)> = None;
        if trial.matrices[0].maps.is_empty() || !bench.kernels.has_ordered() {
            return Ok(None);
        }
        for height in ORDERED_HEIGHTS {
            let way = Way::Ordered { width, height };
            if let Some(ms) = self.time(bench, trial, &way, width.min(trial.compared))?
                && best.is_none_or(|(least, _)| ms < least)
            {
                best = Some((ms, height));
            }
        }
        Ok(best)
    }

    /// The fastest way for a number of rows that is right.
    fn best(&self, bench: &Bench<'_>, trial: &Trial<'_>, rows: usize, ordered: Option<(f32, usize)>) -> Result<Way> {
        let Form { n, k, .. } = trial.form;
        let width = ORDERED_ROWS.into_iter().find(|width| rows <= *width);
        let mut best = ordered.zip(width).map(|((ms, height), width)| (ms, Way::Ordered { width, height }));
        let few = if rows <= ORDERED_WIDTH { CANDIDATES } else { CANDIDATES_TIMED };
        for most in [few, CANDIDATES_MAX] {
            let may_split = self.class == Class::Any;
            for algorithm in self.blas.algorithms(&Problem::new(trial.form, rows)?, most, may_split)? {
                let way = Way::Blas(Problem::new(trial.form, rows)?, algorithm);
                if rows > TIMED_ROWS {
                    // With many rows the library's first choice is the right one.
                    if self.is_right(bench, trial, &way, rows)? {
                        return Ok(way);
                    }
                } else if let Some(ms) = self.time(bench, trial, &way, rows)?
                    && best.as_ref().is_none_or(|(least, _)| ms < *least)
                {
                    best = Some((ms, way));
                }
            }
            if let Some((_, way)) = best {
                return Ok(way);
            }
        }
        Err(CudaError::Variant { n, k, rows })
    }

    /// True if it gives the reference's bits, or if these do not matter, anything.
    fn is_right(&self, bench: &Bench<'_>, trial: &Trial<'_>, way: &Way, rows: usize) -> Result<bool> {
        let (compared, n) = (rows.min(trial.compared), trial.form.n);
        let outputs = trial.outputs.address();
        bench.stream.copy(outputs, trial.before.address(), compared * n * 2)?;
        // An algorithm that the library does not like after all is none.
        let started = self.way(bench.stream, bench.kernels, way, trial.matrices[0], trial.inputs, outputs, rows);
        if self.class == Class::Any {
            return Ok(started.is_ok());
        }
        Ok(started.is_ok() && bench.is_equal(&trial.outputs, &trial.reference, compared * n)?)
    }

    /// Milliseconds of one product, of several in a row; `None` if it is not right.
    fn time(&self, bench: &Bench<'_>, trial: &Trial<'_>, way: &Way, rows: usize) -> Result<Option<f32>> {
        if !self.is_right(bench, trial, way, rows)? {
            return Ok(None);
        }
        let outputs = trial.outputs.address();
        let (begin, end) = (Event::new(bench.context, true)?, Event::new(bench.context, true)?);
        begin.record(bench.stream)?;
        for at in 0..TRIALS {
            // Weights of other layers: these are not in the cache.
            let matrix = trial.matrices[at % trial.matrices.len()];
            self.way(bench.stream, bench.kernels, way, matrix, trial.inputs, outputs, rows)?;
        }
        end.record(bench.stream)?;
        end.wait()?;
        Ok(Some(begin.ms_until(&end)? / TRIALS as f32))
    }

    /// Starts `outputs = inputs * matrix^T` (added to what is there, if the form says so) for padded rows.
    ///
    /// # Safety
    /// `outputs` is the address of memory for `rows` rows that lives until the product has ended, as do the others.
    pub(super) unsafe fn run(
        &self,
        stream: &Stream,
        kernels: &Kernels,
        matrix: &Matrix,
        inputs: &Inputs,
        outputs: u64,
        rows: usize,
    ) -> Result<()> {
        let way = self.ways.get(&(matrix.form, rows));
        let way = way.ok_or(CudaError::Variant { n: matrix.form.n, k: matrix.form.k, rows })?;
        self.way(stream, kernels, way, matrix, inputs, outputs, rows)
    }

    #[expect(clippy::too_many_arguments, reason = "a product has this many parts")]
    fn way(
        &self,
        stream: &Stream,
        kernels: &Kernels,
        way: &Way,
        matrix: &Matrix,
        inputs: &Inputs,
        outputs: u64,
        rows: usize,
    ) -> Result<()> {
        let Form { n, k, adds } = matrix.form;
        match way {
            Way::Blas(problem, algorithm) => {
                let (weights, inputs) = (matrix.buffer.address(), inputs.buffer.address());
                // SAFETY: the matrix has its form's size, inputs and outputs room for these rows; see `run`.
                unsafe { self.blas.run(stream, problem, algorithm, weights, inputs, outputs) }
            }
            Way::Ordered { width, height } => {
                let (width, height) = (*width, *height);
                let at = ORDERED_HEIGHTS.into_iter().position(|of| of == height).expect("one of the heights");
                let (_, rows_map) = inputs.maps.iter().find(|(of, _)| *of == width).expect("a tiling of each width");
                kernels.ordered(
                    stream,
                    Ordered { width, height, rows, n, k },
                    &matrix.maps[at],
                    rows_map,
                    outputs,
                    adds,
                )
            }
        }
    }
}

/// What trials are made with.
struct Bench<'a> {
    context: &'a Arc<Context>,
    stream: &'a Stream,
    kernels: &'a Kernels,
    differences: Buffer,
}

impl Bench<'_> {
    fn is_equal(&self, left: &Buffer, right: &Buffer, elements: usize) -> Result<bool> {
        self.stream.fill(self.differences.address(), 0, 4)?;
        self.kernels.count_differences(
            self.stream,
            left.address(),
            right.address(),
            elements,
            self.differences.address(),
        )?;
        self.stream.wait()?;
        let mut count = [0_u8; 4];
        self.differences.read(0, &mut count)?;
        Ok(count == [0; 4])
    }
}

/// A form under trial.
struct Trial<'a> {
    form: Form,
    matrices: &'a [&'a Matrix],
    inputs: &'a Inputs,
    reference: Buffer,
    outputs: Buffer,
    before: Buffer,
    /// Rows that are compared.
    compared: usize,
}

/// Rows that are compared with the reference: more than any tile has.
const COMPARED_ROWS: usize = 256;
/// Algorithms that are timed for each number of rows.
const CANDIDATES: usize = 3;
/// The same, for numbers of rows that our kernel does not take.
const CANDIDATES_TIMED: usize = 8;
/// Algorithms that are tried where none of the first is right.
const CANDIDATES_MAX: usize = 32;
/// Up to so many rows candidates are timed.
const TIMED_ROWS: usize = 512;
const TRIALS: usize = 6;
/// The widest product of our kernel.
const ORDERED_WIDTH: usize = ORDERED_ROWS[ORDERED_ROWS.len() - 1];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paddings_are_what_rows_are_padded_to() {
        for most in [1, 3, 64, 300, 2048] {
            let list = paddings(most);
            assert!(list.is_sorted() && *list.last().unwrap() >= most);
            for rows in 1..=most {
                let padded = padded_rows(rows);
                assert!(padded >= rows && padded <= rows + rows / 2 + 1, "{rows} rows become {padded}");
                assert!(list.contains(&padded), "{rows} rows become {padded}, which is not prepared");
            }
        }
    }
}

//! Which way each matrix product is computed at each number of rows.
//!
//! **One bit class for all.** A product's result for a row must not depend on how many rows there are, or a request's
//! answer would depend on its company. So at the start each candidate's result is compared, bit by bit, with that of one
//! reference, and only what is equal is used: cuBLASLt's algorithms that do not split k, and for few rows our own kernel,
//! which sums in the same order and reads weights faster. Among equals the fastest wins.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::blas::{Algorithm, Blas, Form, Problem};
use super::driver::{Buffer, Context, Event, Result, Stream};
use super::error::CudaError;
use super::kernels::{Kernels, ORDERED_ROWS};
use super::module::TensorMap;

/// A weight matrix in memory, with its tiling.
pub(super) struct Matrix {
    pub(super) buffer: Buffer,
    pub(super) form: Form,
    /// For the kernel of few rows, if its rows have whole 16-byte vectors.
    map: Option<TensorMap>,
}

/// The chosen ways.
pub(super) struct Products {
    blas: Blas,
    ways: BTreeMap<(Form, usize), Way>,
    /// Most rows that were prepared, per form.
    most: BTreeMap<Form, usize>,
}

enum Way {
    Blas(Problem, Algorithm),
    /// Our kernel for up to so many rows.
    Ordered(usize),
}

/// Rows of inputs, with a tiling of their first rows for each width of our kernel.
pub(super) struct Inputs {
    pub(super) buffer: Buffer,
    maps: Vec<(usize, TensorMap)>,
}

impl Inputs {
    /// Room for some rows of `k` elements.
    pub(super) fn new(context: &Arc<Context>, rows: usize, k: usize, what: &str) -> Result<Self> {
        let rows = rows.max(ORDERED_ROWS[ORDERED_ROWS.len() - 1]);
        let buffer = Buffer::zeroed(context, rows * k * 2, what)?;
        let mut maps = Vec::new();
        if k.is_multiple_of(8) {
            let stride = k as u64 * 2;
            for width in ORDERED_ROWS {
                let sizes = [k as u64, width as u64, 1, 1];
                let strides = [stride, stride * width as u64, stride * width as u64];
                maps.push((width, TensorMap::new(buffer.address(), sizes, strides, [64, width as u32, 1, 1])?));
            }
        }
        Ok(Self { buffer, maps })
    }
}

impl Matrix {
    pub(super) fn new(buffer: Buffer, form: Form) -> Result<Self> {
        let Form { n, k, .. } = form;
        let map = if n.is_multiple_of(8) && k.is_multiple_of(8) {
            let row = k as u64 * 2;
            Some(TensorMap::new(
                buffer.address(),
                [k as u64, n as u64, 1, 1],
                [row, row * n as u64, row * n as u64],
                [64, 64, 1, 1],
            )?)
        } else {
            None
        };
        Ok(Self { buffer, form, map })
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
    ) -> Result<Self> {
        let mut products = Self { blas: Blas::open(context)?, ways: BTreeMap::new(), most: BTreeMap::new() };
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
        let reference = Buffer::zeroed(bench.context, compared * n * 2, "reference products")?;
        let outputs = Buffer::zeroed(bench.context, most * n * 2, "trial products")?;
        // What a product is added to counts for its bits.
        let before = Buffer::zeroed(bench.context, compared * n * 2, "what products are added to")?;
        bench.kernels.draw_bf16(bench.stream, before.address(), compared * n, [9; 8], 0.0, 4.0)?;
        bench.stream.copy(reference.address(), before.address(), compared * n * 2)?;
        let problem = Problem::new(form, compared)?;
        let first = self.blas.algorithms(&problem, 1)?;
        let first = first.first().ok_or(CudaError::Variant { n, k, rows: compared })?;
        // SAFETY: `Inputs` and the buffers above have room for these rows of k and n elements.
        unsafe {
            let weights = matrices[0].buffer.address();
            self.blas.run(bench.stream, &problem, first, weights, inputs.buffer.address(), reference.address())?;
        }
        for rows in paddings(most) {
            let problem = Problem::new(form, rows)?;
            let candidates = self.blas.algorithms(&problem, CANDIDATES)?;
            let mut best: Option<(f32, Way)> = None;
            let widths = ORDERED_ROWS.into_iter().filter(|width| rows <= *width).take(1);
            let ways = widths
                .filter(|_| matrices[0].map.is_some())
                .map(Way::Ordered)
                .chain(candidates.into_iter().map(|algorithm| Way::Blas(Problem::new(form, rows).expect("described before"), algorithm)));
            for way in ways {
                let trial = |matrix: &Matrix, outputs: &Buffer| self.start(bench, &way, matrix, &inputs, outputs.address(), rows);
                bench.stream.copy(outputs.address(), before.address(), rows.min(compared) * n * 2)?;
                if trial(matrices[0], &outputs).is_err() || !bench.is_equal(&outputs, &reference, rows.min(compared) * n)? {
                    continue;
                }
                // With many rows the library's first choice is the right one; see gpu.md of the measurements.
                if rows > TIMED_ROWS {
                    best = Some((0.0, way));
                    break;
                }
                let ms = bench.time(|at| trial(matrices[at % matrices.len()], &outputs))?;
                if best.as_ref().is_none_or(|(least, _)| ms < *least) {
                    best = Some((ms, way));
                }
            }
            let (_, way) = best.ok_or(CudaError::Variant { n, k, rows })?;
            self.ways.insert((form, rows), way);
        }
        self.most.insert(form, most);
        Ok(())
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

    fn start(&self, bench: &Bench<'_>, way: &Way, matrix: &Matrix, inputs: &Inputs, outputs: u64, rows: usize) -> Result<()> {
        self.way(bench.stream, bench.kernels, way, matrix, inputs, outputs, rows)
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
            Way::Ordered(width) => {
                let map = matrix.map.as_ref().expect("chosen for matrices that have one");
                let (_, rows_map) = inputs.maps.iter().find(|(of, _)| of == width).expect("a tiling of each width");
                kernels.ordered(stream, *width, map, rows_map, outputs, adds, rows, n, k)
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
        self.kernels.count_differences(self.stream, left.address(), right.address(), elements, self.differences.address())?;
        self.stream.wait()?;
        let mut count = [0_u8; 4];
        self.differences.read(0, &mut count)?;
        Ok(count == [0; 4])
    }

    /// Milliseconds of one start, of several in a row.
    fn time(&self, start: impl Fn(usize) -> Result<()>) -> Result<f32> {
        let (begin, end) = (Event::new(self.context, true)?, Event::new(self.context, true)?);
        begin.record(self.stream)?;
        (0..TRIALS).try_for_each(start)?;
        end.record(self.stream)?;
        end.wait()?;
        Ok(begin.ms_until(&end)? / TRIALS as f32)
    }
}

/// Rows that are compared with the reference: more than any tile has.
const COMPARED_ROWS: usize = 256;
/// Algorithms that are tried for each number of rows.
const CANDIDATES: usize = 4;
/// Up to so many rows candidates are timed.
const TIMED_ROWS: usize = 256;
const TRIALS: usize = 12;

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

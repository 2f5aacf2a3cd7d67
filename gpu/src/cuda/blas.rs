//! Matrix products by cuBLASLt: `Y[m, n] = X[m, k] W[n, k]^T (+ Y)` in bf16 with f32 sums.
//!
//! Unless asked otherwise, only algorithms that sum each element in one piece are asked for (no split of k): on Hopper
//! these give a row the same bits whatever the number of rows, which [`super::products`] checks at the start.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::cublaslt::sys;

use super::driver::{Buffer, Context, Result, Stream};
use super::error::CudaError;
use super::library;

macro_rules! lt {
    ($function:ident($($argument:expr),* $(,)?); $about:expr) => {
        // SAFETY: handles are alive and pointers are to live values of the sizes named; see the function that calls.
        check(unsafe { sys::$function($($argument),*) }, stringify!($function), || $about)
    };
}

fn check(status: sys::cublasStatus_t, call: &'static str, about: impl FnOnce() -> String) -> Result<()> {
    if status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        Ok(())
    } else {
        Err(CudaError::Blas { call, about: about(), status: format!("{status:?}") })
    }
}

/// The library and its working memory. One stream at a time may use it.
pub(crate) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    /// The library's version, part of what results depend on.
    pub(crate) version: usize,
}

// SAFETY: the library's handles may be used from any thread.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// The form of a product.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Form {
    /// Outputs.
    pub(crate) n: usize,
    /// Inputs.
    pub(crate) k: usize,
    /// True if it is added to what is there.
    pub(crate) adds: bool,
}

/// A form with a number of rows, as the library describes it.
pub(crate) struct Problem {
    form: Form,
    rows: usize,
    description: sys::cublasLtMatmulDesc_t,
    weights: sys::cublasLtMatrixLayout_t,
    inputs: sys::cublasLtMatrixLayout_t,
    outputs: sys::cublasLtMatrixLayout_t,
}

// SAFETY: descriptions are plain memory of the library that is only read after they are made.
unsafe impl Send for Problem {}
// SAFETY: as above.
unsafe impl Sync for Problem {}

/// A way to compute a problem.
#[derive(Clone, Copy)]
pub(crate) struct Algorithm(sys::cublasLtMatmulAlgo_t);

impl Blas {
    /// Opens the library.
    ///
    /// # Errors
    /// [`CudaError::Library`], [`CudaError::Blas`], or no memory.
    pub(crate) fn open(context: &Arc<Context>) -> Result<Self> {
        library::blas()?;
        context.bind()?;
        let mut handle = std::ptr::null_mut();
        lt!(cublasLtCreate(&mut handle); String::new())?;
        // SAFETY: the library is loaded; the call takes nothing.
        let version = unsafe { sys::cublasLtGetVersion() };
        Ok(Self { handle, workspace: Buffer::new(context, WORKSPACE_BYTES, "cuBLASLt's workspace")?, version })
    }

    /// Ways to compute a problem, in the order of the library's expectation; those that split k only if `may_split`.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn algorithms(&self, problem: &Problem, most: usize, may_split: bool) -> Result<Vec<Algorithm>> {
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
        let about = || problem.to_string();
        let mut preference = std::ptr::null_mut();
        lt!(cublasLtMatmulPreferenceCreate(&mut preference); about())?;
        let workspace = self.workspace.bytes();
        let schemes = if may_split { sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_MASK as u32 } else { 0 };
        // SAFETY: all bytes zero is a valid result: it consists of numbers.
        let mut found = vec![unsafe { std::mem::zeroed::<sys::cublasLtMatmulHeuristicResult_t>() }; most];
        let mut count = 0;
        let asked = [
            (P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast::<c_void>(), size_of::<usize>()),
            (P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const schemes).cast::<c_void>(), size_of::<u32>()),
        ]
        .into_iter()
        .try_for_each(|(attribute, value, bytes)| {
            lt!(cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, bytes); about())
        })
        .and_then(|()| {
            lt!(cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                problem.description,
                problem.weights,
                problem.inputs,
                problem.outputs,
                problem.outputs,
                preference,
                most as i32,
                found.as_mut_ptr(),
                &mut count,
            ); about())
        });
        // SAFETY: created above, used no more.
        unsafe { sys::cublasLtMatmulPreferenceDestroy(preference) };
        asked?;
        let sound = found.iter().take(count as usize);
        Ok(sound
            .filter(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS)
            .map(|result| Algorithm(result.algo))
            .collect())
    }

    /// Starts a product.
    ///
    /// # Errors
    /// What the library says.
    ///
    /// # Safety
    /// The addresses are of matrices of the problem's sizes, which live until the product has ended.
    pub(crate) unsafe fn run(
        &self,
        stream: &Stream,
        problem: &Problem,
        algorithm: &Algorithm,
        weights: u64,
        inputs: u64,
        outputs: u64,
    ) -> Result<()> {
        let (alpha, beta) = (1_f32, if problem.form.adds { 1_f32 } else { 0_f32 });
        lt!(cublasLtMatmul(
            self.handle,
            problem.description,
            (&raw const alpha).cast(),
            weights as *const c_void,
            problem.weights,
            inputs as *const c_void,
            problem.inputs,
            (&raw const beta).cast(),
            outputs as *const c_void,
            problem.outputs,
            outputs as *mut c_void,
            problem.outputs,
            &algorithm.0,
            self.workspace.address() as *mut c_void,
            self.workspace.bytes(),
            stream.raw.cast(),
        ); problem.to_string())
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: created by `open`, used no more.
        unsafe { sys::cublasLtDestroy(self.handle) };
    }
}

impl Problem {
    /// Describes a product of `rows` rows.
    ///
    /// # Errors
    /// What the library says.
    pub(crate) fn new(form: Form, rows: usize) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as D;
        let null = std::ptr::null_mut();
        let mut problem =
            Self { form, rows, description: null, weights: null.cast(), inputs: null.cast(), outputs: null.cast() };
        let about = || format!("{} x {}, {rows} rows", form.n, form.k);
        let (sums, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F);
        lt!(cublasLtMatmulDescCreate(&mut problem.description, sums, scale); about())?;
        // The library's matrices are column-major: ours are their transposes.
        for (attribute, transposed) in
            [(D::CUBLASLT_MATMUL_DESC_TRANSA, 1_i32), (D::CUBLASLT_MATMUL_DESC_TRANSB, 0_i32)]
        {
            let value = (&raw const transposed).cast::<c_void>();
            lt!(cublasLtMatmulDescSetAttribute(problem.description, attribute, value, size_of::<i32>()); about())?;
        }
        let Form { n, k, .. } = form;
        let bf16 = sys::cudaDataType_t::CUDA_R_16BF;
        for (layout, height, width) in
            [(&mut problem.weights, k, n), (&mut problem.inputs, k, rows), (&mut problem.outputs, n, rows)]
        {
            lt!(cublasLtMatrixLayoutCreate(layout, bf16, height as u64, width as u64, height as i64); about())?;
        }
        Ok(problem)
    }
}

impl Drop for Problem {
    fn drop(&mut self) {
        // SAFETY: each was created by `new`, or is null, and is used no more.
        unsafe {
            for layout in [self.weights, self.inputs, self.outputs] {
                if !layout.is_null() {
                    sys::cublasLtMatrixLayoutDestroy(layout);
                }
            }
            if !self.description.is_null() {
                sys::cublasLtMatmulDescDestroy(self.description);
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}, {} rows", self.form.n, self.form.k, self.rows)
    }
}

/// What cuBLASLt recommends on Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

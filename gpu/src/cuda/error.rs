//! What can go wrong with a GPU: each error names the call, its sizes, and what to do.

use thiserror::Error;

use crate::weights::LoadError;

/// Why the GPU, or something of it, cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CudaError {
    /// A library of NVIDIA's is not on this machine, or cannot be loaded.
    #[error("{library} cannot be loaded: {why}; looked at {places}; {hint}")]
    Library {
        /// Which.
        library: &'static str,
        /// What the loader says of the last attempt.
        why: String,
        /// Where it was looked for.
        places: String,
        /// What to do.
        hint: &'static str,
    },
    /// A call of the driver failed.
    #[error("{call} ({about}): {name} ({code}): {text}{hint}")]
    Call {
        /// Which.
        call: &'static str,
        /// Sizes and names.
        about: String,
        /// The driver's name of the error.
        name: String,
        /// Its number.
        code: u32,
        /// The driver's words.
        text: String,
        /// What to do, if that is known.
        hint: &'static str,
    },
    /// A call of cuBLASLt failed.
    #[error("{call} ({about}): {status}")]
    Blas {
        /// Which.
        call: &'static str,
        /// Sizes.
        about: String,
        /// The library's name of the error.
        status: String,
    },
    /// A kernel set does not compile.
    #[error("NVRTC cannot compile the kernels {set} for {arch}: {log}")]
    Compile {
        /// Which set.
        set: &'static str,
        /// For which architecture.
        arch: String,
        /// The compiler's words.
        log: String,
    },
    /// The GPU has not enough memory.
    #[error("{what} needs {wanted} bytes, the GPU has {free} free of {total}: {hint}")]
    Memory {
        /// What for.
        what: String,
        /// How much.
        wanted: u64,
        /// How much there is.
        free: u64,
        /// How much the GPU has in all.
        total: u64,
        /// What to do.
        hint: &'static str,
    },
    /// The GPU or the model is of a kind that the engine does not know.
    #[error("{0}")]
    Unsupported(String),
    /// The start-up check found that results depend on the batch.
    #[error("the product {n} x {k} has no algorithm whose result for a row is the same with {rows} rows as alone")]
    Variant {
        /// Outputs.
        n: usize,
        /// Inputs.
        k: usize,
        /// Rows.
        rows: usize,
    },
}

impl From<CudaError> for LoadError {
    fn from(error: CudaError) -> Self {
        Self::Engine { why: error.to_string() }
    }
}

//! The CUDA engine: forwards over paged KV on one NVIDIA GPU.
//!
//! **One batch ahead.** [`CudaEngine::submit`] starts a forward and returns; [`Finisher::finish`], on another thread, waits
//! for its tokens. A forward that continues one in flight reads the token that it needs where that one leaves it, in the
//! GPU's memory, so that the host is never between two forwards. Only sequences whose tokens the host chooses (penalties,
//! biases, log-probabilities) wait for it.
//!
//! **Results do not depend on company.** A row's products have the same bits in any number of rows (`products`, checked
//! at each start); attention sums in an order that the row's own length decides (`step`); prompts and generated tokens
//! have a kernel each, chosen by what a token is. So KV that was loaded, received, or computed in other chunks is the
//! same KV.
//!
//! **Nothing of CUDA is needed to build or to start.** Libraries are found at run time ([`library`]); kernels are
//! compiled for the GPU at hand and kept on disk.
//!
//! ```text
//!   submit:  plan -> lists --copy--> [ tables ] -> decode steps: a recorded graph | else: kernel by kernel -> tokens
//!   finish:  wait for the copy of the tokens, tell sequences, fill the batch
//! ```

mod blas;
mod buffers;
mod compile;
pub(crate) mod driver;
mod error;
mod finish;
mod forward;
mod kernels;
pub mod library;
mod lists;
mod model;
mod module;
mod pool;
mod products;
mod report;
mod state;
mod step;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use pd_core::batch::Batch;
use pd_core::id::{RequestId, Token};

use crate::engine::EngineError;
use crate::geometry::{Element, Geometry};
use crate::sample::Sampling;
use crate::sequence::Sequence;
use crate::weights::{LoadError, Weights};
use buffers::{Buffers, Limits};
use driver::Stream;
pub use driver::{Context, devices};
pub use error::CudaError;
use finish::Ring;
pub use finish::{Finisher, Flight};
use kernels::{Heads, Kernels};
use model::Model;
use module::Graph;
pub use pool::{CopyLane, CudaPool, Pinned};
use products::{Class, Matrix, Products};
pub use report::{GpuReport, Report};
use state::Requests;
use step::{Shape, Step};

/// A model in a GPU's memory, for any number of engines.
pub struct CudaModel {
    context: Arc<Context>,
    kernels: Kernels,
    model: Model,
    /// Of the weights.
    fingerprint: String,
}

/// How an engine is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CudaOptions {
    /// Tokens of a page, a power of two of at most 256.
    pub page_size: u32,
    /// Most tokens that a forward computes.
    pub rows_max: u32,
    /// Most sequences that compute at a time.
    pub sequences_max: u32,
    /// Most tokens of a sequence; `None` for the model's own limit.
    pub context: Option<u32>,
    /// Take the fastest product at each number of rows: a sequence's bits then depend on its company.
    pub fast_math: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self { page_size: 16, rows_max: 8192, sequences_max: 256, context: None, fast_math: false }
    }
}

/// A model, pages of KV and the sequences that it is computing.
pub struct CudaEngine {
    model: Arc<CudaModel>,
    geometry: Geometry,
    heads: Heads,
    shape: Shape,
    limits: Limits,
    products: Products,
    buffers: Buffers,
    stream: Stream,
    pool: Option<Arc<CudaPool>>,
    /// Recorded decode steps, by padded rows.
    graphs: BTreeMap<usize, Graph>,
    shared: Arc<Shared>,
    fingerprint: String,
    step: Step,
    updates: Vec<[i32; 4]>,
}

/// What the thread that starts forwards and the one that sees them end have in common.
pub(crate) struct Shared {
    requests: Mutex<Requests>,
    ring: Mutex<Ring>,
    /// A forward's tokens are known.
    settled: Condvar,
    /// A place is free.
    landed: Condvar,
    vocab: usize,
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CudaModel {
    /// Brings a model to a GPU.
    ///
    /// # Errors
    /// [`LoadError::Engine`] with what the GPU, its libraries or its memory lack.
    pub fn load(ordinal: u32, weights: &Weights) -> Result<Arc<Self>, LoadError> {
        let context = Context::open(ordinal)?;
        let kernels = Kernels::load(&context)?;
        let stream = Stream::new(&context)?;
        let model = Model::load(&context, &stream, &kernels, weights)?;
        Ok(Arc::new(Self { context, kernels, model, fingerprint: weights.fingerprint() }))
    }

    /// The GPU that it is on.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Bytes of its weights.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.model.bytes
    }
}

impl CudaEngine {
    /// An engine without pages: see [`CudaEngine::allocate`].
    ///
    /// # Errors
    /// What the GPU's memory or the kernels lack; [`CudaError::Variant`] if no way to compute is free of its batch.
    pub fn new(model: &Arc<CudaModel>, options: CudaOptions) -> Result<Self, CudaError> {
        let config = &model.model.config;
        let page_size = options.page_size;
        if !page_size.is_power_of_two() || page_size > 256 {
            return Err(CudaError::Unsupported(format!(
                "pages of {page_size} tokens; the kernels take 1, 2, 4, to 256"
            )));
        }
        let context = options.context.map_or(config.context, |tokens| config.context.min(tokens as usize));
        let geometry = Geometry::of(config, Element::Bf16, page_size, context);
        let heads = Heads { queries: geometry.heads, kv: geometry.kv_heads, dim: geometry.head_dim };
        let shape = Shape {
            page_size,
            heads_per_kv: heads.queries / heads.kv,
            units: Kernels::decode_units(heads) as u32,
            blocks: model.kernels.decode_blocks(),
            leaves_max: buffers::LEAVES_MAX as u32,
        };
        let limits = Limits::new(options.rows_max, options.sequences_max, geometry.context, page_size);
        let stream = Stream::new(&model.context)?;
        let layers = &model.model.layers;
        let all = |of: fn(&model::Layer) -> &Matrix| (layers.iter().map(of).collect::<Vec<_>>(), limits.rows);
        let forms = [
            all(|layer| &layer.qkv),
            all(|layer| &layer.out),
            all(|layer| &layer.gate_up),
            all(|layer| &layer.down),
            (vec![model.model.output()], limits.picks),
        ];
        let class = if options.fast_math { Class::Any } else { Class::One };
        let products = Products::prepare(&model.context, &stream, &model.kernels, &forms, class)?;
        let buffers = Buffers::new(&model.context, config, heads, &limits)?;
        let ring = Ring::new(&model.context, heads, &limits)?;
        // KV of either kind is none of the other's.
        let numerics = if options.fast_math { NUMERICS_FAST } else { NUMERICS };
        let fingerprint = format!("{}.bf16.{numerics}.lt{}", model.fingerprint, products.version());
        Ok(Self {
            model: Arc::clone(model),
            heads,
            shape,
            products,
            buffers,
            stream,
            pool: None,
            graphs: BTreeMap::new(),
            shared: Arc::new(Shared {
                requests: Mutex::new(Requests::new(limits.slots)),
                ring: Mutex::new(ring),
                settled: Condvar::new(),
                landed: Condvar::new(),
                vocab: geometry.vocab as usize,
            }),
            fingerprint,
            step: Step::default(),
            updates: Vec::new(),
            limits,
            geometry,
        })
    }

    /// Makes room for KV, and records the forwards of each number of sequences.
    ///
    /// # Errors
    /// [`CudaError::Memory`], or what recording meets.
    pub fn allocate(&mut self, pages: u32) -> Result<Arc<CudaPool>, CudaError> {
        let pool = CudaPool::new(&self.model, &self.geometry, pages)?;
        self.pool = Some(Arc::clone(&pool));
        self.record()?;
        Ok(pool)
    }

    /// Bytes that are free for KV: a share of all that the GPU has, less what is taken.
    ///
    /// # Errors
    /// If the GPU does not answer.
    pub fn kv_bytes(&self, fraction: f64) -> Result<u64, CudaError> {
        let (free, total) = self.model.context.memory()?;
        let kept = (total as f64 * (1.0 - fraction)) as u64;
        Ok(free.saturating_sub(kept))
    }

    /// The model's shape.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Weights, their type in memory, kernels and libraries: what the namespace of page keys takes for the model.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Most tokens of a forward.
    #[must_use]
    pub fn rows_max(&self) -> u32 {
        self.limits.rows as u32
    }

    /// Numbers of rows that decode steps were recorded for; all others are padded to the next.
    pub fn graph_batches(&self) -> impl Iterator<Item = u32> {
        self.graphs.keys().map(|rows| *rows as u32)
    }

    /// The GPU that it computes on.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.model.context
    }

    /// The other end: what sees forwards end.
    #[must_use]
    pub fn finisher(&self) -> Finisher {
        Finisher::new(Arc::clone(&self.model.context), Arc::clone(&self.shared))
    }

    /// Learns of a request. A request that is known already begins anew.
    ///
    /// # Errors
    /// [`EngineError::Prompt`] or [`EngineError::Sampling`]; the request is not known then.
    pub fn admit(&mut self, request: RequestId, prompt: &[Token], sampling: Sampling) -> Result<(), EngineError> {
        let sequence = Sequence::admit(&self.geometry, request, prompt, sampling)?;
        self.shared.requests().insert(request, sequence);
        Ok(())
    }

    /// Learns a token that somebody else sampled. Telling it again changes nothing; the last token may be replaced.
    ///
    /// # Errors
    /// [`EngineError::Unknown`], [`EngineError::Position`] if it continues nothing, [`EngineError::Prompt`] if it is no
    /// token.
    pub fn set_token(&mut self, request: RequestId, position: u32, token: Token) -> Result<(), EngineError> {
        self.shared.requests().get_mut(request)?.sequence.set(&self.geometry, request, position, token)
    }

    /// Forgets a request; nothing happens if it is not known.
    pub fn forget(&mut self, request: RequestId) {
        self.shared.requests().remove(request);
    }

    /// Computes a batch and waits for it.
    ///
    /// # Errors
    /// As [`CudaEngine::submit`] and [`Finisher::finish`].
    pub fn forward(&mut self, batch: &mut Batch) -> Result<Vec<crate::Sample>, EngineError> {
        let flight = self.submit(Box::new(std::mem::take(batch))).map_err(|(error, back)| {
            *batch = *back;
            error
        })?;
        let (back, samples) = self.finisher().finish(flight);
        *batch = *back;
        samples
    }
}

impl fmt::Debug for CudaEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaEngine")
            .field("gpu", &self.model.context)
            .field("model", &self.fingerprint)
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CudaModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaModel")
            .field("gpu", &self.context)
            .field("bytes", &self.model.bytes)
            .finish_non_exhaustive()
    }
}

/// Variables of the environment that the engine reads: where libraries are, and where compiled kernels are kept.
pub const VARIABLES: [&str; 2] = ["PD_CUDA_LIB_PATH", "PD_CACHE_DIR"];

/// Names the order of sums and the rounding of kernels: to be changed with them.
const NUMERICS: &str = "cuda1";
/// The same where sums may be made in any order.
const NUMERICS_FAST: &str = "cuda1-fast";

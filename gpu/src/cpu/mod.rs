//! The CPU engine: forwards over paged KV, for any mix of prefill chunks and decode steps.
//!
//! **Results do not depend on company.** The logits of a sequence are the same bits in any batch, cut into any chunks,
//! with any number of threads, and whether the KV before it was computed here, loaded back or received: each number has
//! one order of summation (see `kernel`), and keys and values are always read from pages. So a cache hit changes no
//! answer, and a decode worker goes on exactly as the prefill worker would have.
//!
//! A request's token is either told ([`CpuEngine::admit`], [`CpuEngine::set_token`]) or sampled by a forward.

mod attention;
mod forward;
mod kernel;
mod matrix;
mod model;
mod pages;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use pd_core::batch::{Batch, Run};
use pd_core::id::{RequestId, Token};
use pd_sync::Arena;

use crate::engine::{EngineError, Sample};
use crate::geometry::{Element, Geometry};
use crate::sample::Sampling;
use crate::sequence::Sequence;
use crate::weights::{LoadError, Weights};
use attention::Query;
use forward::{Buffers, Exec, Row};
pub use kernel::Isa;
pub(crate) use kernel::math::exp;
use model::Model;
use pages::Held;

/// How an engine is built.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Tokens of a page.
    pub page_size: u32,
    /// Element type of KV.
    pub kv: Element,
    /// Element type of weights in memory; `None` keeps bf16 as bf16 and makes f32 of all else.
    pub weights: Option<Element>,
    /// Threads that compute; `None` for as many as the machine runs at once.
    pub threads: Option<NonZeroUsize>,
    /// Instruction set; `None` for the best. All give the same bits.
    pub isa: Option<Isa>,
}

impl Default for Options {
    fn default() -> Self {
        Self { page_size: 16, kv: Element::Bf16, weights: None, threads: None, isa: None }
    }
}

/// A model and the sequences that it is computing.
pub struct CpuEngine {
    model: Arc<Model>,
    geometry: Geometry,
    isa: Isa,
    /// `None` if the caller's thread computes alone.
    pool: Option<Arc<rayon::ThreadPool>>,
    sequences: BTreeMap<RequestId, Sequence>,
    buffers: Buffers,
    rows: Vec<Row>,
}

impl CpuEngine {
    /// Packs a model's weights and starts threads.
    ///
    /// # Errors
    /// [`LoadError::NotFinite`] for broken weights, [`LoadError::Engine`] for options that make no sense.
    pub fn new(weights: &Weights, options: Options) -> Result<Self, LoadError> {
        let config = weights.config();
        if options.page_size == 0 || options.page_size as usize > config.context.next_power_of_two() {
            let why = format!("pages of {} tokens; the context has {}", options.page_size, config.context);
            return Err(LoadError::Engine { why });
        }
        let threads =
            options.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        let pool = if threads == 1 {
            None
        } else {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|index| format!("pd-cpu-{index}"));
            Some(Arc::new(pool.build().map_err(|error| LoadError::Engine { why: error.to_string() })?))
        };
        let pack = || Model::pack(weights, options.weights);
        let model = match &pool {
            Some(pool) => pool.install(pack)?,
            None => pack()?,
        };
        let geometry = Geometry::of(config, options.kv, options.page_size, config.context);
        Ok(Self {
            model: Arc::new(model),
            geometry,
            isa: options.isa.unwrap_or_else(Isa::best),
            pool,
            sequences: BTreeMap::new(),
            buffers: Buffers::default(),
            rows: Vec::new(),
        })
    }

    /// Another engine over the same weights and threads, without sequences: a second worker in the same process.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self {
            model: Arc::clone(&self.model),
            geometry: self.geometry.clone(),
            isa: self.isa,
            pool: self.pool.clone(),
            sequences: BTreeMap::new(),
            buffers: Buffers::default(),
            rows: Vec::new(),
        }
    }

    /// The model's shape.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Weights, their type in memory and the order of summation: what the namespace of page keys takes for the model.
    /// Reading it costs nothing.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.model.fingerprint
    }

    /// Learns of a request. A request that is known already begins anew.
    ///
    /// # Errors
    /// [`EngineError::Prompt`] or [`EngineError::Sampling`]; the request is not known then.
    pub fn admit(&mut self, request: RequestId, prompt: &[Token], sampling: Sampling) -> Result<(), EngineError> {
        let sequence = Sequence::admit(&self.geometry, request, prompt, sampling)?;
        self.sequences.insert(request, sequence);
        Ok(())
    }

    /// Learns a token that somebody else sampled. Telling it again changes nothing; the last token may be replaced.
    ///
    /// # Errors
    /// [`EngineError::Unknown`], [`EngineError::Position`] if it continues nothing, [`EngineError::Prompt`] if it is no
    /// token.
    pub fn set_token(&mut self, request: RequestId, position: u32, token: Token) -> Result<(), EngineError> {
        let sequence = self.sequences.get_mut(&request).ok_or(EngineError::Unknown(request))?;
        sequence.set(&self.geometry, request, position, token)
    }

    /// Forgets a request; nothing happens if it is not known.
    pub fn forget(&mut self, request: RequestId) {
        self.sequences.remove(&request);
    }

    /// The known tokens of a request.
    #[must_use]
    pub fn tokens(&self, request: RequestId) -> Option<&[Token]> {
        self.sequences.get(&request).map(|sequence| sequence.tokens.as_slice())
    }

    /// Computes a batch: writes KV into its pages, samples, and fills the tokens into the batch.
    ///
    /// # Errors
    /// [`EngineError::Arena`] and all that a run can have wrong, found before anything has changed;
    /// [`EngineError::Busy`], or a page that is not there, with page tables already extended; and
    /// [`EngineError::NotFinite`] after the pass.
    pub fn forward(&mut self, batch: &mut Batch, kv: &Arena) -> Result<Vec<Sample>, EngineError> {
        let want = self.geometry.page_bytes(self.geometry.page_size);
        if kv.page_bytes() != want {
            return Err(EngineError::Arena { want, found: kv.page_bytes() });
        }
        for run in batch.runs() {
            self.check(run)?;
        }
        for run in batch.runs() {
            if let Some(sequence) = self.sequences.get_mut(&run.request) {
                sequence.extend(run, batch.pages(run));
            }
        }
        self.compute(batch, kv)?;
        let samples = self.sample(batch)?;
        let mut tokens = samples.iter().map(|sample| sample.token);
        batch.sample(|_| tokens.next().expect("a token for each run that samples"));
        Ok(samples)
    }

    fn check(&self, run: &Run) -> Result<(), EngineError> {
        let sequence = self.sequences.get(&run.request).ok_or(EngineError::Unknown(run.request))?;
        sequence.check(run, &self.geometry, 0)
    }

    fn compute(&mut self, batch: &Batch, kv: &Arena) -> Result<(), EngineError> {
        let Self { model, geometry, sequences, buffers, rows, .. } = self;
        rows.clear();
        let mut held = Vec::with_capacity(batch.runs().len());
        for (index, run) in batch.runs().iter().enumerate() {
            let sequence = sequences.get(&run.request).ok_or(EngineError::Unknown(run.request))?;
            let (start, end) = (run.start as usize, (run.start + run.count) as usize);
            held.push(Held::hold(kv, geometry, run.request, &sequence.table, start, end)?);
            rows.extend(sequence.tokens[start..end].iter().enumerate().map(|(offset, token)| {
                let position = start + offset;
                Row { token: *token, query: Query { run: index, position }, sampled: run.sample && position + 1 == end }
            }));
        }
        match &self.pool {
            // Not even the largest product of a small step is worth waking threads.
            Some(pool) if model.is_worth_threads(rows) => {
                let exec = Exec { isa: self.isa, threads: pool.current_num_threads() };
                pool.install(|| model.forward(exec, rows, &mut held, buffers));
            }
            Some(_) | None => model.forward(Exec { isa: self.isa, threads: 1 }, rows, &mut held, buffers),
        }
        Ok(())
    }

    fn sample(&mut self, batch: &Batch) -> Result<Vec<Sample>, EngineError> {
        let vocab = self.geometry.vocab as usize;
        let mut samples = Vec::with_capacity(batch.samples());
        let runs = batch.runs().iter().filter(|run| run.sample);
        for (run, logits) in runs.zip(self.buffers.logits.chunks_exact_mut(vocab)) {
            let (request, position) = (run.request, run.start + run.count);
            let sequence = self.sequences.get_mut(&request).ok_or(EngineError::Unknown(request))?;
            let sampled = sequence.sample(position as usize, logits);
            let (token, logprobs) = sampled.ok_or(EngineError::NotFinite { request, position })?;
            samples.push(Sample { request, position, token, logprobs });
        }
        Ok(samples)
    }
}

impl fmt::Debug for CpuEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, geometry, isa, pool, sequences, .. } = self;
        f.debug_struct("CpuEngine")
            .field("model", &model.fingerprint)
            .field("geometry", geometry)
            .field("isa", isa)
            .field("threads", &pool.as_ref().map_or(1, |pool| pool.current_num_threads()))
            .field("sequences", &sequences.len())
            .finish_non_exhaustive()
    }
}

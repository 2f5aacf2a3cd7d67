//! The engine behind a worker: the CPU's or a GPU's, chosen when the model is loaded.

use std::sync::Arc;

use pd_core::cost::{Cost, DecodePolynomial, Polynomial};
use pd_core::id::Epoch;
use pd_gpu::cuda::{CopyLane, CudaModel, CudaOptions, CudaPool, Pinned};
use pd_gpu::{CpuEngine, CudaEngine, Geometry};
use pd_sync::{Arena, Device};

use super::trial::{Shape, Trial};

/// A model in memory, for any number of workers.
pub(crate) enum Loaded {
    Cpu { engine: Box<CpuEngine>, cost: Cost },
    Cuda { model: Arc<CudaModel>, options: CudaOptions },
}

/// One worker's engine, before it has memory for KV.
pub(crate) enum Engine {
    Cpu { engine: Box<CpuEngine>, cost: Cost },
    Cuda(Box<CudaEngine>),
}

/// One worker's engine with its L1.
pub(crate) enum Ready {
    Cpu { engine: Box<CpuEngine>, cost: Cost, device: Arc<Arena> },
    Cuda { engine: Box<CudaEngine>, device: Arc<Arena>, pool: Arc<CudaPool> },
}

impl Loaded {
    /// A model on the CPU, which all its workers share: what steps cost is measured here, once.
    ///
    /// # Errors
    /// If the engine cannot compute.
    pub(crate) fn cpu(engine: CpuEngine) -> Result<Self, String> {
        // In memory of its own: that of a worker is taken from the system when it is used.
        let geometry = engine.geometry();
        let pages = ((CACHED_CHUNKS + 1) * CPU_TOKENS + MEASURED_STEPS).div_ceil(geometry.page_size) + 1;
        let arena = Arena::new(geometry.page_bytes(geometry.page_size), pages);
        let arena = arena.map_err(|error| error.to_string())?;
        let cost = measure(&mut Trial::cpu(&mut engine.sibling(), &arena), CPU_TOKENS, 0)?;
        Ok(Self::Cpu { engine: Box::new(engine), cost })
    }

    /// An engine for a worker.
    ///
    /// # Errors
    /// What the GPU lacks.
    pub(crate) fn engine(&self) -> Result<Engine, String> {
        match self {
            Self::Cpu { engine, cost } => Ok(Engine::Cpu { engine: Box::new(engine.sibling()), cost: cost.clone() }),
            Self::Cuda { model, options } => {
                let engine = CudaEngine::new(model, *options).map_err(|error| error.to_string())?;
                Ok(Engine::Cuda(Box::new(engine)))
            }
        }
    }

    /// Where it computes, for the banner.
    pub(crate) fn device(&self) -> String {
        match self {
            Self::Cpu { .. } => "CPU".to_owned(),
            Self::Cuda { model, .. } => {
                let context = model.context();
                format!("GPU {}, {}", context.ordinal(), context.name)
            }
        }
    }
}

impl Engine {
    pub(crate) fn geometry(&self) -> &Geometry {
        match self {
            Self::Cpu { engine, .. } => engine.geometry(),
            Self::Cuda(engine) => engine.geometry(),
        }
    }

    pub(crate) fn fingerprint(&self) -> &str {
        match self {
            Self::Cpu { engine, .. } => engine.fingerprint(),
            Self::Cuda(engine) => engine.fingerprint(),
        }
    }

    /// Bytes that its device has for KV, if that is not the machine's memory.
    ///
    /// # Errors
    /// What the GPU says.
    pub(crate) fn device_bytes(&self, fraction: f64) -> Result<Option<u64>, String> {
        match self {
            Self::Cpu { .. } => Ok(None),
            Self::Cuda(engine) => engine.kv_bytes(fraction).map(Some).map_err(|error| error.to_string()),
        }
    }

    /// Gives it pages: on the CPU those that `memory` makes, on a GPU its own, which peers of this host may write if this
    /// is the epoch to share them for.
    ///
    /// # Errors
    /// What there is no memory for.
    pub(crate) fn with_pages(
        self,
        pages: u32,
        shared: Option<Epoch>,
        memory: impl FnOnce() -> Result<Arc<Arena>, String>,
    ) -> Result<Ready, String> {
        match self {
            Self::Cpu { engine, cost } => Ok(Ready::Cpu { engine, cost, device: memory()? }),
            Self::Cuda(mut engine) => {
                let pool = engine.allocate(pages).map_err(|error| error.to_string())?;
                let memory = Arc::clone(&pool) as Arc<dyn Device>;
                let device = shared.map(|epoch| {
                    Arena::over_shared(Arc::clone(&memory), pool.page_bytes(), pages, epoch.0).unwrap_or_else(|error| {
                        tracing::warn!("the GPU's memory cannot be shared ({error}): peers on this host use TCP");
                        Arena::over(Arc::clone(&memory), pool.page_bytes(), pages)
                    })
                });
                let device = device.unwrap_or_else(|| Arena::over(Arc::clone(&memory), pool.page_bytes(), pages));
                Ok(Ready::Cuda { engine, device: Arc::new(device), pool })
            }
        }
    }
}

impl Ready {
    /// The pages of L1.
    pub(crate) fn device(&self) -> &Arc<Arena> {
        match self {
            Self::Cpu { device, .. } | Self::Cuda { device, .. } => device,
        }
    }

    /// Lanes of copies between L1 and an L2, one for each direction, if L1 is a GPU's.
    ///
    /// # Errors
    /// If the system does not let the GPU have L2's memory.
    pub(crate) fn copy_lanes(&self, host: &Arc<Arena>) -> Result<Option<[CopyLane; 2]>, String> {
        let Self::Cuda { pool, .. } = self else { return Ok(None) };
        let pinned = Arc::new(Pinned::new(pool, host).map_err(|error| error.to_string())?);
        let lane = || CopyLane::new(pool, &pinned).map_err(|error| error.to_string());
        Ok(Some([lane()?, lane()?]))
    }

    /// To measure steps with, before anybody uses the engine.
    pub(crate) fn trial(&mut self) -> Trial<'_> {
        match self {
            Self::Cpu { engine, device, .. } => Trial::cpu(engine, device),
            Self::Cuda { engine, pool, .. } => Trial::cuda(engine, pool.pages()),
        }
    }

    /// The numbers of sequences, up to one, that decode steps are padded to.
    pub(crate) fn graph_batches(&self, most: u32) -> Vec<u32> {
        match self {
            Self::Cpu { .. } => (1..=most).collect(),
            Self::Cuda { engine, .. } => engine.graph_batches().filter(|batch| *batch <= most).collect(),
        }
    }

    /// What steps cost, measured with two chunks and a few steps, before anybody uses the engine; for a CPU when the model
    /// was loaded. Policies compare it with the cost of loading KV, so an estimate will do.
    ///
    /// # Errors
    /// If the engine cannot compute.
    pub(crate) fn cost(&mut self) -> Result<Cost, String> {
        match self {
            Self::Cpu { cost, .. } => Ok(cost.clone()),
            Self::Cuda { engine, pool, .. } => {
                let tokens = CUDA_TOKENS.min(engine.rows_max());
                measure(&mut Trial::cuda(engine, pool.pages()), tokens, 1)
            }
        }
    }
}

/// A cost that computes like this engine, as far as two chunks and some decode steps tell. The first times of a CPU are
/// good enough; a GPU gets its kernels ready first.
fn measure(trial: &mut Trial<'_>, tokens: u32, warm: u32) -> Result<Cost, String> {
    let context = trial.geometry().context;
    let chunk = tokens.min(context / 2).max(1);
    let room = u64::from(context).min(trial.tokens()).saturating_sub(u64::from(chunk) + 1);
    let cached = (CACHED_CHUNKS * chunk).min(room as u32);
    let mut of = |shape: &Shape, count| {
        let times = trial.steps(shape, warm, count)?;
        Ok::<_, String>(times.iter().map(|times| times.step_ns).min().unwrap_or(u64::MAX))
    };
    let decode_ns = of(&Shape { contexts: vec![chunk], ..Shape::default() }, MEASURED_STEPS)?.max(1);
    let prefill = |cached| Shape { chunks: vec![[cached, chunk]], ends: 1, ..Shape::default() };
    let first_ns = of(&prefill(0), 1)?;
    let behind_ns = of(&prefill(cached), 1)?;
    let (chunk, cached) = (u64::from(chunk), u64::from(cached));
    let ps = |ns: u64| ns.saturating_mul(1_000);
    let pair_ps = ps(behind_ns.saturating_sub(first_ns)) / (2 * cached * chunk).max(1);
    let token_ps = ps(first_ns.saturating_sub(decode_ns)).saturating_sub(pair_ps * chunk * chunk) / chunk;
    let decode = DecodePolynomial { step_ps: ps(decode_ns), ..DecodePolynomial::default() };
    Ok(Cost::polynomial(Polynomial {
        prefill_request_ps: ps(decode_ns),
        prefill_token_ps: token_ps.max(1_000),
        prefill_pair_ps: pair_ps,
        decode_small: decode,
        decode_large: decode,
        large_batch: u64::MAX,
        kv_bytes_per_token: 1,
        kv_tokens: u64::from(context),
        ..Polynomial::default()
    }))
}

/// What is computed to see what computing costs, on a CPU.
const CPU_TOKENS: u32 = 64;
/// And on a GPU: enough to fill it.
const CUDA_TOKENS: u32 = 4096;
/// Once behind nothing, once behind so many times as many tokens: a prompt for which attention counts, as it does where
/// loading is weighed against computing.
const CACHED_CHUNKS: u32 = 3;
const MEASURED_STEPS: u32 = 4;

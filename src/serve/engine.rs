//! The engine behind a worker: the CPU's or a GPU's, chosen when the model is loaded.

use std::sync::Arc;
use std::time::Instant;

use pd_core::batch::{Batch, Run};
use pd_core::cost::Cost;
use pd_core::id::{Epoch, GpuPage, RequestId, Token};
use pd_gpu::cuda::{CopyLane, CudaModel, CudaOptions, CudaPool, Pinned};
use pd_gpu::{CpuEngine, CudaEngine, EngineError, Geometry, Sampling};
use pd_sync::{Arena, Device};

/// A model in memory, for any number of workers.
pub(crate) enum Loaded {
    Cpu(Box<CpuEngine>),
    Cuda { model: Arc<CudaModel>, options: CudaOptions },
}

/// One worker's engine, before it has memory for KV.
pub(crate) enum Engine {
    Cpu(Box<CpuEngine>),
    Cuda(Box<CudaEngine>),
}

/// One worker's engine with its L1.
pub(crate) enum Ready {
    Cpu { engine: Box<CpuEngine>, device: Arc<Arena> },
    Cuda { engine: Box<CudaEngine>, device: Arc<Arena>, pool: Arc<CudaPool> },
}

impl Loaded {
    /// An engine for a worker.
    ///
    /// # Errors
    /// What the GPU lacks.
    pub(crate) fn engine(&self) -> Result<Engine, String> {
        match self {
            Self::Cpu(engine) => Ok(Engine::Cpu(Box::new(engine.sibling()))),
            Self::Cuda { model, options } => {
                let engine = CudaEngine::new(model, *options).map_err(|error| error.to_string())?;
                Ok(Engine::Cuda(Box::new(engine)))
            }
        }
    }

    /// Where it computes, for the banner.
    pub(crate) fn device(&self) -> String {
        match self {
            Self::Cpu(_) => "CPU".to_owned(),
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
            Self::Cpu(engine) => engine.geometry(),
            Self::Cuda(engine) => engine.geometry(),
        }
    }

    pub(crate) fn fingerprint(&self) -> &str {
        match self {
            Self::Cpu(engine) => engine.fingerprint(),
            Self::Cuda(engine) => engine.fingerprint(),
        }
    }

    /// Bytes that its device has for KV, if that is not the machine's memory.
    ///
    /// # Errors
    /// What the GPU says.
    pub(crate) fn device_bytes(&self, fraction: f64) -> Result<Option<u64>, String> {
        match self {
            Self::Cpu(_) => Ok(None),
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
            Self::Cpu(engine) => Ok(Ready::Cpu { engine, device: memory()? }),
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

    /// What steps cost, measured with one chunk and a few steps, before anybody uses the engine. Policies compare it with
    /// the cost of loading KV, so an estimate will do.
    ///
    /// # Errors
    /// If the engine cannot compute.
    pub(crate) fn measure(&mut self) -> Result<Cost, String> {
        match self {
            Self::Cpu { engine, .. } => {
                // In memory of its own: that of the worker is taken from the system when it is used.
                let geometry = engine.geometry();
                let pages = (CPU_TOKENS + MEASURED_STEPS).div_ceil(geometry.page_size) + 1;
                let arena = Arena::new(geometry.page_bytes(geometry.page_size), pages);
                let arena = arena.map_err(|error| error.to_string())?;
                Trial::Cpu(&mut engine.sibling(), &arena).measure(CPU_TOKENS)
            }
            Self::Cuda { engine, pool, .. } => {
                let room = (pool.pages() * engine.geometry().page_size).saturating_sub(MEASURED_STEPS);
                let tokens = CUDA_TOKENS.min(room).min(engine.rows_max());
                Trial::Cuda(engine).measure(tokens)
            }
        }
    }
}

/// An engine that is measured.
enum Trial<'a> {
    Cpu(&'a mut CpuEngine, &'a Arena),
    Cuda(&'a mut CudaEngine),
}

impl Trial<'_> {
    fn measure(mut self, tokens: u32) -> Result<Cost, String> {
        let geometry = match &self {
            Self::Cpu(engine, _) => engine.geometry().clone(),
            Self::Cuda(engine) => engine.geometry().clone(),
        };
        let chunk = tokens.min(geometry.context / 2).max(1);
        let pages = (chunk + MEASURED_STEPS).div_ceil(geometry.page_size);
        let request = RequestId(0);
        let prompt: Vec<Token> = (0..chunk).map(|at| Token(at % geometry.vocab)).collect();
        let table: Vec<GpuPage> = (0..pages).map(GpuPage).collect();
        // The first time, what is only made ready at its first use is in the way.
        let mut best = (u64::MAX, u64::MAX);
        for _ in 0..TRIALS {
            self.admit(request, &prompt).map_err(|error| error.to_string())?;
            best.0 = best.0.min(self.step(Run::new(request, 0, chunk, true, 0), &table)?);
            for at in 0..MEASURED_STEPS {
                best.1 = best.1.min(self.step(Run::new(request, chunk + at, 1, true, pages), &[])?);
            }
            self.forget(request);
        }
        let (prefill, decode) = best;
        let token_ns = prefill.saturating_sub(decode) / u64::from(chunk);
        Ok(Cost::fixed(decode.max(1), token_ns.max(1), decode.max(1), u64::from(geometry.context)))
    }

    fn admit(&mut self, request: RequestId, prompt: &[Token]) -> Result<(), EngineError> {
        match self {
            Self::Cpu(engine, _) => engine.admit(request, prompt, Sampling::greedy()),
            Self::Cuda(engine) => engine.admit(request, prompt, Sampling::greedy()),
        }
    }

    fn forget(&mut self, request: RequestId) {
        match self {
            Self::Cpu(engine, _) => engine.forget(request),
            Self::Cuda(engine) => engine.forget(request),
        }
    }

    /// Nanoseconds of a forward.
    fn step(&mut self, run: Run, pages: &[GpuPage]) -> Result<u64, String> {
        let mut batch = Batch::default();
        batch.push(run, pages);
        let begin = Instant::now();
        let computed = match self {
            Self::Cpu(engine, arena) => engine.forward(&mut batch, arena),
            Self::Cuda(engine) => engine.forward(&mut batch),
        };
        computed.map_err(|error| error.to_string())?;
        Ok(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// What is computed to see what computing costs, on a CPU.
const CPU_TOKENS: u32 = 64;
/// And on a GPU: a prompt for which attention counts, as it does where loading is weighed against computing.
const CUDA_TOKENS: u32 = 8192;
const MEASURED_STEPS: u32 = 4;
const TRIALS: u32 = 2;

//! A model that was loaded: its engine and its text.

use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pd_gpu::cuda::{CudaModel, CudaOptions};
use pd_gpu::{CpuEngine, Element, ModelSource, Options as EngineOptions, Weights};
use pd_net::store::read_bytes_per_second;
use pd_net::text::{Files, Text};

use super::engine::Loaded;
use super::options::{Device, Dtype, LoadFormat, Options};
use super::plan::{CUDA_CHUNK_TOKENS, CUDA_RUNNING_MAX, bytes};
use super::tiny;
use crate::progress::bar;

/// A model, ready for workers of this process.
pub(crate) struct Model {
    pub(crate) engine: Loaded,
    pub(crate) text: Arc<Text>,
    /// Name in answers.
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) model_type: String,
    pub(crate) architectures: Vec<String>,
    /// What was loaded, for the banner.
    pub(crate) about: String,
    /// Bytes per second at which the folder of L3 can be read, measured before anybody uses it.
    pub(crate) storage_reads: Option<u64>,
}

impl Model {
    /// Loads what the options name.
    ///
    /// # Errors
    /// What is wrong with the folder, with file and tensor.
    pub(crate) fn load(options: &Options) -> Result<Self, String> {
        let begin = Instant::now();
        let (weights, config) = open(options)?;
        let text = match &options.model_path {
            Some(folder) => Text::from_folder(folder),
            None => Text::from_files(&tiny_files()),
        };
        let text = Arc::new(text.map_err(|error| error.to_string())?);
        let engine = load(options, &weights)?;
        let facts: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
        let path = options.model_path.as_ref().map_or_else(|| "built in".to_owned(), |path| path.display().to_string());
        let name = options.served_model_name.clone().unwrap_or_else(|| name(options));
        let what = if is_dummy(options) { "random weights" } else { "weights" };
        let about = format!("{path}, {what} {}, in {:.2} s", bytes(weights.bytes()), begin.elapsed().as_secs_f64());
        if !std::io::stderr().is_terminal() {
            // Where there is no bar to see.
            tracing::info!("loaded {about}");
        }
        let architectures = facts["architectures"].as_array().into_iter().flatten();
        Ok(Self {
            engine,
            text,
            name,
            path,
            model_type: facts["model_type"].as_str().unwrap_or("llama").to_owned(),
            architectures: architectures.filter_map(|name| Some(name.as_str()?.to_owned())).collect(),
            about,
            storage_reads: options.hicache_storage_dir.as_deref().and_then(read_bytes_per_second),
        })
    }
}

/// The weights that the options name, and the text of their config.json.
///
/// # Errors
/// What is wrong with the folder, with file and tensor.
pub(crate) fn open(options: &Options) -> Result<(Weights, Vec<u8>), String> {
    let dummy = |config: &[u8], file: &Path| {
        let text = String::from_utf8(config.to_vec()).map_err(|_| format!("{}: not UTF-8", file.display()))?;
        Ok::<_, String>(ModelSource::Dummy { config: text, seed: options.random_seed.unwrap_or(0) })
    };
    let (source, config) = match &options.model_path {
        Some(folder) => {
            let file = folder.join("config.json");
            let config = std::fs::read(&file).map_err(|error| missing(folder, &file, &error))?;
            let source = if is_dummy(options) { dummy(&config, &file)? } else { ModelSource::Folder(folder.clone()) };
            (source, config)
        }
        None if is_dummy(options) => (dummy(tiny::CONFIG, Path::new(tiny::NAME))?, tiny::CONFIG.to_vec()),
        None => (tiny::source(), tiny::CONFIG.to_vec()),
    };
    Ok((Weights::open(&source).map_err(|error| error.to_string())?, config))
}

/// The name of a model that was given none.
pub(crate) fn name(options: &Options) -> String {
    match &options.model_path {
        Some(folder) => {
            folder.file_name().map_or_else(|| folder.display().to_string(), |name| name.to_string_lossy().into_owned())
        }
        None => tiny::NAME.to_owned(),
    }
}

fn is_dummy(options: &Options) -> bool {
    options.load_format.unwrap_or_default() == LoadFormat::Dummy
}

/// Brings weights to where they are computed with.
///
/// # Errors
/// Which option cannot be met, or what the device lacks.
pub(crate) fn load(options: &Options, weights: &Weights) -> Result<Loaded, String> {
    let kv = match options.kv_cache_dtype.unwrap_or_default() {
        Dtype::Float32 => Element::F32,
        Dtype::Auto | Dtype::Bfloat16 => Element::Bf16,
    };
    let in_memory = match options.dtype.unwrap_or_default() {
        Dtype::Auto => None,
        Dtype::Bfloat16 => Some(Element::Bf16),
        Dtype::Float32 => Some(Element::F32),
    };
    let page_size = options.page_size.unwrap_or(PAGE_TOKENS);
    if !page_size.is_power_of_two() {
        return Err(format!("--page-size is {page_size}; it must be a power of two"));
    }
    let on_cpu = || {
        if options.fast_math == Some(true) {
            return Err("a CPU has one kind of products: leave out --fast-math, or take --device cuda".into());
        }
        let threads = options.threads.and_then(|threads| NonZeroUsize::new(threads as usize));
        let engine = EngineOptions { page_size, kv, weights: in_memory, threads, isa: None };
        let engine = watched(weights, || CpuEngine::new(weights, engine));
        engine.map_err(|error| error.to_string()).and_then(Loaded::cpu)
    };
    let on_gpu = |ordinal: u32| {
        if kv == Element::F32 || in_memory == Some(Element::F32) {
            return Err(
                "a GPU computes in bfloat16: leave out --dtype and --kv-cache-dtype, or take --device cpu".into()
            );
        }
        let model = watched(weights, || CudaModel::load(ordinal, weights)).map_err(|error| error.to_string())?;
        let sequences_max = options.max_running_requests.unwrap_or(CUDA_RUNNING_MAX);
        let chunk = options.chunked_prefill_size.unwrap_or(CUDA_CHUNK_TOKENS);
        let rows_max = chunk.saturating_add(sequences_max);
        let (context, fast_math) = (options.context_length, options.fast_math.unwrap_or(false));
        let options = CudaOptions { page_size, rows_max, sequences_max, context, fast_math };
        Ok(Loaded::Cuda { model, options })
    };
    match options.device.unwrap_or_default() {
        Device::Cpu => on_cpu(),
        Device::Cuda(ordinal) => on_gpu(ordinal),
        // The model inside pd is for trying things out: it leaves GPUs to others.
        Device::Auto if options.model_path.is_none() => on_cpu(),
        Device::Auto => match pd_gpu::cuda::devices() {
            Ok(count) if count > 0 && kv == Element::Bf16 && in_memory != Some(Element::F32) => on_gpu(0),
            Ok(_) => on_cpu(),
            Err(error) => {
                tracing::info!("computing on the CPU: {error}");
                on_cpu()
            }
        },
    }
}

/// Packs weights and shows how far that is.
fn watched<T: Send>(weights: &Weights, pack: impl FnOnce() -> T + Send) -> T {
    let watcher = std::thread::current();
    std::thread::scope(|scope| {
        let packing = scope.spawn(|| {
            let packed = pack();
            watcher.unpark();
            packed
        });
        let bar = bar(&bytes(weights.bytes()), "loading {prefix} [{bar:30}] {percent} % ({elapsed}, {eta} left)");
        bar.set_length(1000);
        while !bar.is_hidden() && !packing.is_finished() {
            bar.set_position((weights.share_read() * 1000.0) as u64);
            std::thread::park_timeout(LOOK);
        }
        bar.finish_and_clear();
        packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn tiny_files() -> Files {
    Files {
        tokenizer: tiny::TOKENIZER.to_vec(),
        config: Some(tiny::TOKENIZER_CONFIG.to_vec()),
        template: None,
        template_json: None,
        model: Some(tiny::CONFIG.to_vec()),
        generation: Some(tiny::GENERATION.to_vec()),
    }
}

fn missing(folder: &Path, file: &Path, error: &std::io::Error) -> String {
    let hint = if folder.exists() {
        "a model is a folder with config.json, tokenizer.json and safetensors"
    } else {
        "there is no such folder; pd downloads nothing, `hf download` does"
    };
    format!("cannot read {}: {error}; {hint}", file.display())
}

/// Tokens per page unless said otherwise.
const PAGE_TOKENS: u32 = 16;
/// Time between two looks at how far the weights are.
const LOOK: Duration = Duration::from_millis(100);

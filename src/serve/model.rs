//! A model that was loaded: its engine and its text.

use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pd_core::batch::{Batch, Run};
use pd_core::cost::Cost;
use pd_core::id::{GpuPage, RequestId, Token};
use pd_gpu::{CpuEngine, Element, ModelSource, Options as EngineOptions, Sampling, Weights};
use pd_net::text::{Files, Text};
use pd_sync::Arena;

use super::options::{Dtype, LoadFormat, Options};
use super::plan::bytes;
use super::tiny;
use crate::progress::bar;

/// A model, ready for workers of this process.
pub(crate) struct Model {
    pub(crate) engine: CpuEngine,
    pub(crate) text: Arc<Text>,
    /// Name in answers.
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) model_type: String,
    pub(crate) architectures: Vec<String>,
    /// What steps cost here.
    pub(crate) cost: Cost,
    /// What was loaded, for the banner.
    pub(crate) about: String,
}

impl Model {
    /// Loads what the options name.
    ///
    /// # Errors
    /// What is wrong with the folder, with file and tensor.
    pub(crate) fn load(options: &Options) -> Result<Self, String> {
        let begin = Instant::now();
        let is_dummy = options.load_format.unwrap_or_default() == LoadFormat::Dummy;
        let (source, config) = match &options.model_path {
            Some(folder) => {
                let file = folder.join("config.json");
                let config = std::fs::read(&file).map_err(|error| missing(folder, &file, &error))?;
                if is_dummy {
                    let text =
                        String::from_utf8(config.clone()).map_err(|_| format!("{}: not UTF-8", file.display()))?;
                    (ModelSource::Dummy { config: text, seed: options.random_seed.unwrap_or(0) }, config)
                } else {
                    (ModelSource::Folder(folder.clone()), config)
                }
            }
            None if is_dummy => {
                let text = String::from_utf8_lossy(tiny::CONFIG).into_owned();
                (ModelSource::Dummy { config: text, seed: options.random_seed.unwrap_or(0) }, tiny::CONFIG.to_vec())
            }
            None => (tiny::source(), tiny::CONFIG.to_vec()),
        };
        let weights = Weights::open(&source).map_err(|error| error.to_string())?;
        let text = match &options.model_path {
            Some(folder) => Text::from_folder(folder),
            None => Text::from_files(&tiny_files()),
        };
        let text = Arc::new(text.map_err(|error| error.to_string())?);
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
        let threads = options.threads.and_then(|threads| NonZeroUsize::new(threads as usize));
        let engine = EngineOptions { page_size, kv, weights: in_memory, threads, isa: None };
        let engine = watched(&weights, || CpuEngine::new(&weights, engine)).map_err(|error| error.to_string())?;
        let facts: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
        let path = options.model_path.as_ref().map_or_else(|| "built in".to_owned(), |path| path.display().to_string());
        let name = options.served_model_name.clone().unwrap_or_else(|| match &options.model_path {
            Some(folder) => folder.file_name().map_or_else(|| path.clone(), |name| name.to_string_lossy().into_owned()),
            None => tiny::NAME.to_owned(),
        });
        let what = if is_dummy { "random weights" } else { "weights" };
        let about = format!("{path}, {what} {}, in {:.2} s", bytes(weights.bytes()), begin.elapsed().as_secs_f64());
        if !std::io::stderr().is_terminal() {
            // Where there is no bar to see.
            tracing::info!("loaded {about}");
        }
        let architectures = facts["architectures"].as_array().into_iter().flatten();
        let cost = measure(&engine)?;
        Ok(Self {
            engine,
            text,
            name,
            path,
            model_type: facts["model_type"].as_str().unwrap_or("llama").to_owned(),
            architectures: architectures.filter_map(|name| Some(name.as_str()?.to_owned())).collect(),
            cost,
            about,
        })
    }
}

/// What steps cost on this machine, measured with one chunk and a few steps. Policies compare it with the cost of
/// loading KV, so an estimate will do.
fn measure(engine: &CpuEngine) -> Result<Cost, String> {
    let mut engine = engine.sibling();
    let geometry = engine.geometry().clone();
    let page_size = geometry.page_size;
    let chunk = MEASURED_TOKENS.min(geometry.context / 2).max(1);
    let pages = (chunk + MEASURED_STEPS).div_ceil(page_size) + 1;
    let arena = Arena::new(geometry.page_bytes(page_size), pages).map_err(|error| error.to_string())?;
    let request = RequestId(0);
    let prompt: Vec<Token> = (0..chunk).map(|at| Token(at % geometry.vocab)).collect();
    engine.admit(request, &prompt, Sampling::greedy()).map_err(|error| error.to_string())?;
    let table: Vec<GpuPage> = (0..pages).map(GpuPage).collect();
    let mut step = |start: u32, count: u32, told: u32, pages: &[GpuPage]| {
        let mut batch = Batch::default();
        batch.push(Run::new(request, start, count, true, told), pages);
        let begin = Instant::now();
        engine.forward(&mut batch, &arena).map_err(|error| error.to_string())?;
        Ok::<u64, String>(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    };
    let prefill = step(0, chunk, 0, &table)?;
    let mut decode = u64::MAX;
    for at in 0..MEASURED_STEPS {
        decode = decode.min(step(chunk + at, 1, pages, &[])?);
    }
    let token_ns = prefill.saturating_sub(decode) / u64::from(chunk);
    Ok(Cost::fixed(decode.max(1), token_ns.max(1), decode.max(1), u64::from(geometry.context)))
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
/// What is computed to see what computing costs.
const MEASURED_TOKENS: u32 = 64;
const MEASURED_STEPS: u32 = 4;
/// Time between two looks at how far the weights are.
const LOOK: Duration = Duration::from_millis(100);

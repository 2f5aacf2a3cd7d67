//! What `pd serve` can be told.
//!
//! Names are SGLang's wherever the meaning is the same.

use std::path::PathBuf;

use pd_core::config::{HostPolicy, Mode, PrefetchPolicy, SchedulePolicy, WritePolicy};
use pd_core::evict::Policy;
use pd_sim::units::{Bytes, Count, Span};
use serde::Deserialize;

use crate::settings::{choice, options, quantity};

options! {
    /// What a worker was told.
    Options {
        /// Model: a Hugging Face folder; without one, the tiny model inside pd.
        #[arg(visible_alias = "model", env = "PD_MODEL_PATH", value_name = "DIR", help_heading = "Model")]
        model_path: PathBuf,
        /// Name of the model in answers; the folder's by default.
        #[arg(env = "PD_SERVED_MODEL_NAME", value_name = "NAME", help_heading = "Model")]
        served_model_name: String,
        /// auto: the folder's weights; dummy: random ones from its config.json, the same for the same --random-seed.
        #[arg(env = "PD_LOAD_FORMAT", value_parser = choice::<LoadFormat>, value_name = "auto|dummy", help_heading = "Model")]
        load_format: LoadFormat,
        /// Element type of the weights in memory: auto takes that of the files.
        #[arg(env = "PD_DTYPE", value_parser = choice::<Dtype>, value_name = "auto|bfloat16|float32", help_heading = "Model")]
        dtype: Dtype,
        /// Element type of KV; part of its identity. auto: bfloat16.
        #[arg(env = "PD_KV_CACHE_DTYPE", value_parser = choice::<Dtype>, value_name = "auto|bfloat16|float32", help_heading = "Model")]
        kv_cache_dtype: Dtype,
        /// Most tokens of a prompt and its answer together; the model's own limit by default.
        #[arg(env = "PD_CONTEXT_LENGTH", value_name = "TOKENS", help_heading = "Model")]
        context_length: u32,
        /// Seed of dummy weights and of requests that bring none.
        #[arg(env = "PD_RANDOM_SEED", value_name = "N", help_heading = "Model")]
        random_seed: u64,

        /// auto: a GPU if there is one and --model-path is given, else the CPU; cuda:1 takes the second GPU.
        #[arg(env = "PD_DEVICE", value_parser = choice::<Device>, value_name = "auto|cpu|cuda|cuda:N", help_heading = "Model")]
        device: Device,
        /// On a GPU: the fastest product for each number of rows, whatever order it sums in. A few percent faster, and a
        /// request's tokens depend on what is computed beside it.
        #[arg(env = "PD_FAST_MATH", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", help_heading = "Model")]
        fast_math: bool,
        /// Threads that compute; as many as the machine has by default.
        #[arg(env = "PD_THREADS", value_name = "N", help_heading = "Model")]
        threads: u32,

        /// unified: whole requests; prefill: up to the first token, then the KV goes to a decode worker; decode: from there.
        #[arg(visible_alias = "disaggregation-mode", env = "PD_MODE", value_parser = choice::<Mode>, value_name = "unified|prefill|decode", help_heading = "Serving")]
        mode: Mode,
        /// Address to listen at.
        #[arg(env = "PD_HOST", value_name = "ADDRESS", help_heading = "Serving")]
        host: String,
        /// Port of the API; 0 takes a free one.
        #[arg(env = "PD_PORT", value_name = "PORT", help_heading = "Serving")]
        port: u16,
        /// Requests must bring it as a bearer token.
        #[arg(env = "PD_API_KEY", hide_env_values = true, value_name = "KEY", help_heading = "Serving")]
        api_key: String,
        /// Most sequences computed at once.
        #[arg(env = "PD_MAX_RUNNING_REQUESTS", value_name = "N", help_heading = "Serving")]
        max_running_requests: u32,
        /// Most requests that wait; more are refused with 429.
        #[arg(env = "PD_MAX_QUEUED_REQUESTS", value_name = "N", help_heading = "Serving")]
        max_queued_requests: u32,
        /// Most prompt tokens of one forward.
        #[arg(env = "PD_CHUNKED_PREFILL_SIZE", value_name = "TOKENS", help_heading = "Serving")]
        chunked_prefill_size: u32,
        /// Order of admission.
        #[arg(env = "PD_SCHEDULE_POLICY", value_parser = choice::<SchedulePolicy>, value_name = "POLICY", help_heading = "Serving")]
        schedule_policy: SchedulePolicy,
        /// Decode rows ride along with prefill chunks.
        #[arg(env = "PD_ENABLE_MIXED_CHUNK", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", help_heading = "Serving")]
        enable_mixed_chunk: bool,
        /// Wait for each forward before the next is planned.
        #[arg(env = "PD_DISABLE_OVERLAP_SCHEDULE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", help_heading = "Serving")]
        disable_overlap_schedule: bool,
        /// Deadline of each request, like 60s; none by default.
        #[arg(env = "PD_REQUEST_TIMEOUT", value_parser = quantity::<Span>, value_name = "SPAN", help_heading = "Serving")]
        request_timeout: Span,

        /// Tokens per page.
        #[arg(env = "PD_PAGE_SIZE", value_name = "TOKENS", help_heading = "KV cache")]
        page_size: u32,
        /// Tokens of L1, like 64k; by default eight contexts, or what a quarter of the free
        /// memory holds; on a GPU what --mem-fraction-static leaves.
        #[arg(env = "PD_MAX_TOTAL_TOKENS", value_parser = quantity::<Count>, value_name = "TOKENS", help_heading = "KV cache")]
        max_total_tokens: Count,
        /// Share of a GPU's memory for model and L1 together; 0.88 by default.
        #[arg(env = "PD_MEM_FRACTION_STATIC", value_name = "SHARE", help_heading = "KV cache")]
        mem_fraction_static: f64,
        /// What L1 drops first.
        #[arg(env = "PD_RADIX_EVICTION_POLICY", value_parser = choice::<Policy>, value_name = "POLICY", help_heading = "KV cache")]
        radix_eviction_policy: Policy,
        /// Tokens of L2 per token of L1; 0 for no L2. By default 2 where there is an L3, else 0.
        #[arg(env = "PD_HICACHE_RATIO", value_name = "RATIO", help_heading = "KV cache")]
        hicache_ratio: f64,
        /// Size of L2, like 4GiB (a plain number: GB); overrides --hicache-ratio.
        #[arg(env = "PD_HICACHE_SIZE", value_parser = gigabytes, value_name = "BYTES", help_heading = "KV cache")]
        hicache_size: Bytes,
        /// When pages are written down.
        #[arg(env = "PD_HICACHE_WRITE_POLICY", value_parser = choice::<WritePolicy>, value_name = "write_through|write_through_selective|write_back", help_heading = "KV cache")]
        hicache_write_policy: WritePolicy,
        /// Whether L2 keeps copies of what L1 has.
        #[arg(env = "PD_HICACHE_HOST_POLICY", value_parser = choice::<HostPolicy>, value_name = "inclusive|exclusive", help_heading = "KV cache")]
        hicache_host_policy: HostPolicy,
        /// Folder of L3; without one there is no L3. Workers of one host may share it.
        #[arg(env = "PD_HICACHE_STORAGE_DIR", value_name = "DIR", help_heading = "KV cache")]
        hicache_storage_dir: PathBuf,
        /// Most bytes of L3, like 64GiB (a plain number: GB).
        #[arg(env = "PD_HICACHE_STORAGE_SIZE", value_parser = gigabytes, value_name = "BYTES", help_heading = "KV cache")]
        hicache_storage_size: Bytes,
        /// How long requests wait for L3.
        #[arg(env = "PD_HICACHE_STORAGE_PREFETCH_POLICY", value_parser = choice::<PrefetchPolicy>, value_name = "best_effort|wait_complete|timeout", help_heading = "KV cache")]
        hicache_storage_prefetch_policy: PrefetchPolicy,
        /// Fewest tokens worth a prefetch from L3.
        #[arg(env = "PD_PREFETCH_THRESHOLD", value_name = "TOKENS", help_heading = "KV cache")]
        prefetch_threshold: u32,
        /// Tell routers what comes into the cache and leaves it: GET /kv_events.
        #[arg(env = "PD_ENABLE_KV_EVENTS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", help_heading = "KV cache")]
        enable_kv_events: bool,

        /// What carries KV between workers. auto: shared memory on one host, TCP elsewhere; fake: nothing, for measuring one
        /// side alone.
        #[arg(env = "PD_DISAGGREGATION_TRANSFER_BACKEND", value_parser = choice::<Backend>, value_name = "auto|tcp|shm|fake", help_heading = "Disaggregation")]
        disaggregation_transfer_backend: Backend,
        /// Port of a prefill worker's bootstrap server.
        #[arg(env = "PD_DISAGGREGATION_BOOTSTRAP_PORT", value_name = "PORT", help_heading = "Disaggregation")]
        disaggregation_bootstrap_port: u16,
        /// Longest wait for the other end of a hand-off to show up.
        #[arg(env = "PD_DISAGGREGATION_BOOTSTRAP_TIMEOUT", value_parser = quantity::<Span>, value_name = "SPAN", help_heading = "Disaggregation")]
        disaggregation_bootstrap_timeout: Span,
        /// Longest wait for a hand-off.
        #[arg(env = "PD_DISAGGREGATION_WAITING_TIMEOUT", value_parser = quantity::<Span>, value_name = "SPAN", help_heading = "Disaggregation")]
        disaggregation_waiting_timeout: Span,

        /// Record each input of the worker for `pd replay`.
        #[arg(env = "PD_JOURNAL", value_name = "FILE", help_heading = "Observing")]
        journal: PathBuf,
    }
}

/// What computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Device {
    /// A GPU where that makes sense.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number, as the driver counts.
    Cuda(u32),
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let ordinal = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        match (text.as_str(), ordinal) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(ordinal)) => Ok(Self::Cuda(ordinal)),
            (_, None) => {
                Err(serde::de::Error::custom(format!("unknown device {text:?}, expected auto, cpu, cuda or cuda:N")))
            }
        }
    }
}

/// Where weights come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LoadFormat {
    /// The files of the folder.
    #[default]
    Auto,
    /// A seed.
    Dummy,
}

/// An element type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Dtype {
    /// As things are.
    #[default]
    Auto,
    /// Brain float.
    #[serde(alias = "bf16")]
    Bfloat16,
    /// IEEE single.
    #[serde(alias = "fp32")]
    Float32,
}

/// What carries KV between workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Backend {
    /// Shared memory where both ends see it, else TCP.
    #[default]
    Auto,
    /// TCP.
    Tcp,
    /// Shared memory.
    Shm,
    /// Nothing.
    Fake,
}

/// Bytes with a unit, or a plain number of GB, as SGLang takes them.
fn gigabytes(text: &str) -> Result<Bytes, String> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_plain { quantity(&format!("{text}GB")) } else { quantity(text) }
}

//! The keys of a scenario file. Names are the ones that users of SGLang type wherever the meaning is the same.

use std::collections::BTreeMap;

use pd_core::config::{HostPolicy, Mode, PrefetchPolicy, SchedulePolicy, StorageMode, TransferBackend, WritePolicy};
use pd_core::evict::Policy as Eviction;
use pd_core::router::Policy as RoutePolicy;
use serde::{Deserialize, Serialize};

use crate::append_map::MapConfig;
use crate::fault::Action;
use crate::load::LoadConfig;
use crate::sweep::SweepConfig;
use crate::units::{Bytes, BytesPerSecond, Count, Span};

/// A whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// What the scenario shows, for its readers.
    pub about: String,
    /// Seed of the run.
    #[serde(default = "one")]
    pub seed: u64,
    /// When to stop; without it the run ends when nothing is left to do.
    pub until: Option<Span>,
    /// Check all invariants after every event.
    #[serde(default)]
    pub check: bool,
    /// Name or path of the model.
    pub model: String,
    /// What connects the workers.
    #[serde(default)]
    pub network: Network,
    /// Groups of equal workers.
    pub worker: Vec<Worker>,
    /// Who chooses among several workers.
    pub router: Option<Router>,
    /// What the clients do.
    #[serde(default)]
    pub load: Vec<LoadConfig>,
    /// What happens besides.
    #[serde(default)]
    pub event: Vec<Event>,
    /// Gates.
    #[serde(default)]
    pub expect: BTreeMap<String, String>,
    /// The same again with changes.
    #[serde(default)]
    pub variant: Vec<Variant>,
    /// The same again, many times, and compared.
    pub sweep: Option<SweepConfig>,
    /// Which side should compute appends, cell by cell.
    pub append_map: Option<MapConfig>,
}

impl File {
    /// Reads a text that is no file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_text(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    /// Reads a table.
    pub(super) fn deserialize_table(table: &toml::Table) -> Result<Self, toml::de::Error> {
        table.clone().try_into()
    }
}

const fn one() -> u64 {
    1
}

/// What connects the workers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Between GPUs of one machine.
    pub near: String,
    /// Between machines: one NIC per worker.
    pub far: String,
    /// Between GPU and host memory.
    pub host_link: String,
    /// Bandwidth of the fabric that all machines share; without it only NICs limit.
    pub fabric: Option<BytesPerSecond>,
    /// Least time of a control message.
    pub control_latency: Span,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            near: "nvlink4".to_owned(),
            far: "net_400g".to_owned(),
            host_link: "pcie5".to_owned(),
            fabric: None,
            control_latency: Span(std::time::Duration::from_micros(50)),
        }
    }
}

/// A group of equal workers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// How many.
    #[serde(default = "one_worker")]
    pub count: u32,
    /// Which legs they serve.
    #[serde(default)]
    pub mode: Mode,
    /// Name or path of the GPU.
    #[serde(default = "h200")]
    pub gpu: String,
    /// Tensor-parallel ranks of each.
    #[serde(default = "one_worker")]
    pub tp: u32,
    /// Workers per machine; those of one machine share its host link and reach each other over `near`.
    #[serde(default = "one_worker")]
    pub per_machine: u32,
    /// Index of the machine of the first of them; a new one by default. Groups on one machine reach each other over
    /// `near`.
    pub machine: Option<u32>,
    /// When they start; with the run by default.
    pub start: Option<Span>,
    /// Instead of a GPU: fixed service times, for oracles.
    pub service: Option<Service>,

    /// Element type of KV; part of its identity.
    #[serde(default = "bf16")]
    pub dtype: String,
    /// Tokens per page.
    #[serde(default = "sixty_four")]
    pub page_size: u32,
    /// Share of GPU memory for weights and KV.
    #[serde(default = "nine_tenths")]
    pub mem_fraction_static: f64,
    /// Tokens of L1; overrides `mem_fraction_static`.
    pub max_total_tokens: Option<Count>,
    /// What L1 drops first.
    #[serde(default)]
    pub radix_eviction_policy: Eviction,

    /// Tokens of L2 per token of L1; 0 for no L2.
    #[serde(default)]
    pub hicache_ratio: f64,
    /// Bytes of L2; overrides `hicache_ratio`.
    pub hicache_size: Option<Bytes>,
    /// When pages are written down.
    #[serde(default)]
    pub hicache_write_policy: WritePolicy,
    /// Whether L2 keeps copies of what L1 has.
    #[serde(default)]
    pub hicache_host_policy: HostPolicy,
    /// What L2 drops first.
    #[serde(default)]
    pub hicache_eviction_policy: Eviction,
    /// L3.
    pub hicache_storage: Option<Storage>,
    /// How long requests wait for L3.
    #[serde(default)]
    pub hicache_storage_prefetch_policy: PrefetchPolicy,
    /// Fewest tokens worth a prefetch.
    pub prefetch_threshold: Option<u32>,
    /// Constant part of the prefetch deadline.
    pub prefetch_timeout_base: Option<Span>,
    /// Part of the prefetch deadline per 1,024 tokens.
    pub prefetch_timeout_per_ki_token: Option<Span>,
    /// Longest prefetch deadline.
    pub prefetch_timeout_max: Option<Span>,
    /// Most pages being fetched, as a share of L2.
    pub prefetch_capacity: Option<f64>,
    /// Fewest tokens worth a load back.
    pub load_back_threshold: Option<u32>,
    /// Fetch and load only what arrives sooner than it could be computed.
    pub fetch_by_cost: Option<bool>,
    /// Where neither is much the faster: compute a prompt from its head while it is fetched from its end.
    pub fetch_bidirectional: Option<bool>,

    /// Order of admission.
    #[serde(default)]
    pub schedule_policy: SchedulePolicy,
    /// Most prompt tokens of one forward.
    pub chunked_prefill_size: Option<u32>,
    /// Most sequences admitted at once.
    pub max_running_requests: Option<u32>,
    /// Most requests that may wait.
    pub max_queued_requests: Option<u32>,
    /// Decode rows ride along with prefill chunks.
    #[serde(default)]
    pub enable_mixed_chunk: bool,
    /// Most tokens of a prompt and its answer together, instead of the model's own limit: a longer prompt is refused, an
    /// answer ends there.
    pub context_length: Option<Count>,
    /// Wait for each forward before the next is planned.
    #[serde(default)]
    pub disable_overlap_schedule: bool,
    /// Steps for which each admitted sequence is guaranteed its pages.
    pub reserve_steps: Option<u32>,
    /// Deadline of each request.
    pub request_timeout: Option<Span>,

    /// What carries KV between workers.
    #[serde(default)]
    pub disaggregation_transfer_backend: TransferBackend,
    /// A prefill worker sends each chunk layer by layer while it computes; if false, all of a prompt once it is done.
    #[serde(default = "yes")]
    pub disaggregation_layerwise: bool,
    /// Longest wait for the other end of a hand-off to show up.
    pub disaggregation_bootstrap_timeout: Option<Span>,
    /// Longest wait for a hand-off.
    pub disaggregation_waiting_timeout: Option<Span>,
    /// Between two questions to a peer whether it makes progress; it is lost when it has answered none of two.
    pub disaggregation_heartbeat_interval: Option<Span>,
    /// Other prefills to try before the prompt is recomputed on the decode worker.
    pub handoff_retries: Option<u32>,
}

const fn yes() -> bool {
    true
}
const fn one_worker() -> u32 {
    1
}
const fn sixty_four() -> u32 {
    64
}
const fn nine_tenths() -> f64 {
    0.9
}
fn h200() -> String {
    "h200".to_owned()
}
fn bf16() -> String {
    "bf16".to_owned()
}

/// Fixed service times.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Of each forward with prompts.
    #[serde(default = "no_time")]
    pub prefill: Span,
    /// Of each prompt token.
    #[serde(default = "no_time")]
    pub prefill_token: Span,
    /// Of each unit of (cached + new)^2 - cached^2 of a prompt's chunks, in picoseconds.
    #[serde(default)]
    pub prefill_pair_ps: u64,
    /// Of each forward without prompts.
    #[serde(default = "no_time")]
    pub decode: Span,
    /// Of each sequence that decodes, in addition.
    #[serde(default = "no_time")]
    pub decode_sequence: Span,
    /// Of each token of context that decoding reads, in picoseconds.
    #[serde(default)]
    pub decode_context_token_ps: u64,
    /// Host work of each forward.
    #[serde(default = "no_time")]
    pub host: Span,
    /// Host work of each sequence of a forward.
    #[serde(default = "no_time")]
    pub host_sequence: Span,
    /// Nothing else takes time: copies, storage, links and control messages are instantaneous.
    #[serde(default)]
    pub ideal_links: bool,
}

const fn no_time() -> Span {
    Span(std::time::Duration::ZERO)
}

/// L3 of a group of workers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// Name or path of the disk.
    pub disk: String,
    /// Private to each worker, or one store that the group shares.
    #[serde(default = "private")]
    pub mode: StorageMode,
    /// Most tokens kept; the least recently used go first.
    pub max_tokens: Option<Count>,
    /// Most bytes that the disk takes.
    pub capacity: Option<Bytes>,
}

const fn private() -> StorageMode {
    StorageMode::Private
}

/// The router.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// How the worker that computes the prompt is chosen.
    #[serde(default)]
    pub policy: RoutePolicy,
    /// How the decode worker of a pair is chosen.
    #[serde(default = "power_of_two")]
    pub decode_policy: RoutePolicy,
    /// Feed the prefix index from the workers' KV events, too.
    #[serde(default)]
    pub kv_events: bool,
    /// Share of the prompt below which a cached prefix does not decide: the shortest queue does. 1 for queues alone.
    pub cache_threshold: Option<f64>,
    /// Weight of a worker's queue against the request's own prefill; 0 for pure longest prefix.
    pub load_weight: Option<f64>,
    /// Weight of the time to first token in the choice between a pair and an append.
    pub w_ttft: Option<f64>,
    /// Weight of what running sequences lose in that choice.
    pub w_tpot: Option<f64>,
    /// Share of a prompt that has to be cached on a worker for an append there; 0 weighs whole prompts, too.
    pub append_ratio_min: Option<f64>,
    /// How often workers say how busy they are, "0s" for never; each second if appends are weighed, else never.
    pub load_report: Option<Span>,
    /// Attempts after the first one.
    pub retries: Option<u32>,
    /// Most live requests.
    pub max_live_requests: Option<u32>,
}

const fn power_of_two() -> RoutePolicy {
    RoutePolicy::PowerOfTwo
}

/// Something that happens at its time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Span,
    /// What, with its own keys; an unknown one is refused there.
    #[serde(flatten)]
    pub action: Action,
}

/// The same scenario with changes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its name.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// Keys (dotted, list items by index) and their new values.
    #[serde(default)]
    pub set: toml::Table,
    /// Events in addition.
    #[serde(default)]
    pub event: Vec<Event>,
    /// Gates instead of the file's.
    #[serde(default)]
    pub expect: BTreeMap<String, String>,
}

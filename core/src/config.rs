//! What a worker is told at its start: parsed once, checked once, never changed.

use core::num::NonZeroU64;
use core::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec;
use crate::cost::LinkCost;
use crate::evict::Policy;
use crate::id::{Epoch, PageKey, WorkerId};
use crate::limits::{HANDOFF_RETRIES_MAX, PAGE_SIZE_MAX};
use crate::message::Layout;
use crate::mutant::Mutation;

/// Which legs of requests a worker serves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Prefill and decode in one worker.
    #[default]
    Unified,
    /// Prefill, then hand over.
    Prefill,
    /// Take over, then decode.
    Decode,
}

codec!(enum Mode { 0 = Unified, 1 = Prefill, 2 = Decode });

/// When pages are copied from L1 to L2 (and from there to L3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WritePolicy {
    /// As soon as they are complete.
    #[default]
    WriteThrough,
    /// On their second use.
    WriteThroughSelective,
    /// When L1 needs their room.
    WriteBack,
}

/// How long a request waits for its pages from L3.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefetchPolicy {
    /// While the rest arrives sooner than it could be computed.
    BestEffort,
    /// Until all have arrived or failed.
    WaitComplete,
    /// Until a deadline that grows with the pages asked for.
    #[default]
    Timeout,
}

/// Whether a page may be in L1 and L2 at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostPolicy {
    /// L2 keeps its copy: a drop from L1 costs nothing, capacity is that of L2.
    #[default]
    Inclusive,
    /// L2 gives its copy up once L1 has it (and L3, if attached): capacity is the sum.
    Exclusive,
}

/// Who else writes to the L3 that a worker uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageMode {
    /// There is no L3.
    #[default]
    None,
    /// Nobody: its index is rebuilt by a scan at the start, then kept in memory.
    Private,
    /// Others: what is in it is asked.
    Shared,
}

/// The cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvConfig {
    /// Tokens per page, 1 to 1,024.
    pub page_size: u32,
    /// Bytes of one page, all layers and ranks, K and V.
    pub page_bytes: u64,
    /// Pages of L1.
    pub gpu_pages: u32,
    /// Pages of L2; 0 for none.
    pub host_pages: u32,
    /// Root key of this worker's base namespace.
    pub root: PageKey,
    /// What L1 drops first.
    pub device_eviction: Policy,
    /// What L2 drops first.
    pub host_eviction: Policy,
    /// Whether L2 keeps copies of what L1 has.
    pub host_policy: HostPolicy,
    /// When pages are written down.
    pub write_policy: WritePolicy,
    /// Uses after which [`WritePolicy::WriteThroughSelective`] writes a page.
    pub write_through_hits: u32,
    /// How long requests wait for L3.
    pub prefetch_policy: PrefetchPolicy,
    /// L3.
    pub storage: StorageMode,
    /// Most pages in a private L3; beyond it the least recently used are discarded.
    pub storage_pages_max: u64,
    /// Fewest tokens worth a prefetch.
    pub prefetch_threshold: u32,
    /// Constant part of the prefetch deadline.
    pub prefetch_timeout_base: Duration,
    /// Part of the prefetch deadline per 1,024 tokens asked for.
    pub prefetch_timeout_per_ki_token: Duration,
    /// Longest prefetch deadline.
    pub prefetch_timeout_max: Duration,
    /// Most pages being fetched, as a share of L2 in per mille.
    pub prefetch_capacity_per_mille: u32,
    /// Fewest tokens worth a load back.
    pub load_back_threshold: u32,
    /// First pause before a failed write is tried again; doubles with each failure.
    pub write_retry_base: Duration,
    /// Longest such pause.
    pub write_retry_max: Duration,
    /// Cost of the path between L3 and L2, for the decision to fetch or to compute.
    pub storage_link: LinkCost,
    /// Cost of the path between L2 and L1, likewise.
    pub host_link: LinkCost,
    /// Fetch only what arrives sooner than it could be computed.
    pub fetch_by_cost: bool,
    /// Under `fetch_by_cost`, where neither way is much the faster: compute a prompt from its head while it is fetched from
    /// its end (Cake, arXiv 2410.03065). [`PrefetchPolicy::WaitComplete`] waits for all all the same.
    #[serde(default = "yes")]
    pub fetch_bidirectional: bool,
    /// Publish changes for routers.
    pub kv_events: bool,
    /// A deliberate mistake, in tests of the checkers.
    #[serde(skip)]
    pub mutation: Mutation,
}

/// In which order waiting requests are admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SchedulePolicy {
    /// By arrival.
    #[default]
    Fcfs,
    /// Longest cached prefix (L1 and L2) first; by arrival when many wait.
    Lpm,
    /// Depth first over the radix tree, heaviest subtree first.
    DfsWeight,
    /// Shuffled.
    Random,
    /// By priority, then arrival.
    Priority,
    /// Highest response ratio (waiting + service) / service first: ages everything, starves nothing.
    Hrrn,
}

/// The scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedConfig {
    /// Order of admission.
    pub policy: SchedulePolicy,
    /// Most prompt tokens of one forward; a longer prompt is computed in chunks. A multiple of the page size.
    pub chunked_prefill_size: u32,
    /// Most prompt tokens of one forward when prompts are not cut.
    pub max_prefill_tokens: u32,
    /// Most sequences admitted at once.
    pub max_running_requests: u32,
    /// Most requests that may wait; one more is refused.
    pub max_queued_requests: u32,
    /// Decode rows ride along with prefill chunks.
    pub mixed_chunk: bool,
    /// Launch a forward before the previous one has ended.
    pub overlap: bool,
    /// Steps for which each admitted sequence is guaranteed its pages.
    pub reserve_steps: u32,
    /// Share of the remaining limit that running sequences are expected to use, in per mille, at the start.
    pub new_token_ratio_init_per_mille: u32,
    /// The same after it has decayed.
    pub new_token_ratio_min_per_mille: u32,
    /// Decode steps of the decay.
    pub new_token_ratio_decay_steps: u32,
    /// Largest remaining limit that the estimate believes.
    pub clip_max_new_tokens: u32,
    /// Waiting requests beyond which [`SchedulePolicy::Lpm`] and [`SchedulePolicy::DfsWeight`] go by arrival.
    pub sort_max: u32,
    /// A cached prefix up to this many tokens lets a request wait for a leader with the same prompt.
    pub in_batch_check_tokens: u32,
    /// Shared tokens with an earlier waiting request that make it worth waiting.
    pub in_batch_share_tokens: u32,
    /// Requests that may overtake a blocked head before it is served first.
    pub bypass_max: u32,
    /// Deadline of requests that bring none; zero for none.
    pub default_deadline: Duration,
    /// Most tokens of a prompt and its answer together. A prompt that leaves no room for a token is refused, an answer
    /// ends where the room does.
    pub context_length: u32,
    /// A deliberate mistake, in tests of the checkers.
    #[serde(skip)]
    pub mutation: Mutation,
}

/// What carries KV between workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferBackend {
    /// The wire lane.
    #[default]
    Wire,
    /// Nothing: both ends believe that a peer answers at once. For measuring one side alone.
    Fake,
}

/// The hand-off between prefill and decode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferConfig {
    /// What carries the pages.
    pub backend: TransferBackend,
    /// How this worker's KV is cut.
    pub layout: Layout,
    /// A source pushes each chunk layer by layer while it is computed; otherwise the whole prompt once all of it is.
    pub layerwise: bool,
    /// Longest wait of a source for the sink's pages, and of either end for the other's connection.
    pub bootstrap_timeout: Duration,
    /// Longest wait of a sink for the hand-off.
    pub waiting_timeout: Duration,
    /// Pause between pings to a peer with open rooms.
    pub heartbeat_interval: Duration,
    /// Unanswered pings after which a peer counts as lost.
    pub heartbeat_failures_max: u32,
    /// Longest wait for an acknowledged abort before the peer is asked again.
    pub abort_resend: Duration,
    /// Other prefills to try before the prompt is recomputed here.
    pub retries_max: u32,
    /// Most rooms open at once, both ends together, those that only a peer has named included.
    pub rooms_max: u32,
    /// A deliberate mistake, in tests of the checkers.
    #[serde(skip)]
    pub mutation: Mutation,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// Its name.
    pub worker: WorkerId,
    /// Which life this is.
    pub epoch: Epoch,
    /// What it serves.
    pub mode: Mode,
    /// Seed of the run.
    pub seed: u64,
    /// The cache.
    pub kv: KvConfig,
    /// The scheduler.
    pub sched: SchedConfig,
    /// The hand-off.
    pub transfer: TransferConfig,
}

/// What is wrong with a configuration, in the words of its keys.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ConfigError {
    /// A value outside its range.
    #[error("{key} is {value}; it must be {must}")]
    Range {
        /// The key.
        key: &'static str,
        /// What it is.
        value: u64,
        /// What it may be.
        must: &'static str,
    },
    /// A choice that does not fit here.
    #[error("{key} is {value}; it must be {must}")]
    Choice {
        /// The key.
        key: &'static str,
        /// What it is, by name.
        value: &'static str,
        /// What it may be.
        must: &'static str,
    },
}

impl ConfigError {
    /// The key to change.
    #[must_use]
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Range { key, .. } | Self::Choice { key, .. } => key,
        }
    }
}

/// What configurations that were written down before the key existed are read with.
const fn yes() -> bool {
    true
}

impl Default for KvConfig {
    /// SGLang's defaults where there are any; no tiers below L1.
    fn default() -> Self {
        Self {
            page_size: 16,
            page_bytes: 16 * 131_072,
            gpu_pages: 1024,
            host_pages: 0,
            root: PageKey(0),
            device_eviction: Policy::Lru,
            host_eviction: Policy::Lru,
            host_policy: HostPolicy::Inclusive,
            write_policy: WritePolicy::WriteThrough,
            write_through_hits: 2,
            prefetch_policy: PrefetchPolicy::Timeout,
            storage: StorageMode::None,
            storage_pages_max: u64::MAX,
            prefetch_threshold: 256,
            prefetch_timeout_base: Duration::from_secs(2),
            prefetch_timeout_per_ki_token: Duration::from_millis(100),
            prefetch_timeout_max: Duration::from_secs(30),
            prefetch_capacity_per_mille: 500,
            load_back_threshold: 10,
            write_retry_base: Duration::from_millis(500),
            write_retry_max: Duration::from_secs(60),
            storage_link: LinkCost {
                request_ns: 100_000,
                descriptor_ps: 0,
                descriptors_ahead: 0,
                bytes_per_second: NonZeroU64::new(7_000_000_000).expect("not 0"),
                latency_ns: 0,
            },
            host_link: LinkCost {
                request_ns: 10_000,
                descriptor_ps: 0,
                descriptors_ahead: 0,
                bytes_per_second: NonZeroU64::new(50_000_000_000).expect("not 0"),
                latency_ns: 0,
            },
            fetch_by_cost: true,
            fetch_bidirectional: yes(),
            kv_events: false,
            mutation: Mutation::default(),
        }
    }
}

impl Default for SchedConfig {
    /// SGLang's defaults for a GPU of the H100 class, with pages guaranteed for the next 32 steps.
    fn default() -> Self {
        Self {
            policy: SchedulePolicy::Fcfs,
            chunked_prefill_size: 8192,
            max_prefill_tokens: 16384,
            max_running_requests: 2048,
            max_queued_requests: 100_000,
            mixed_chunk: false,
            overlap: true,
            reserve_steps: 32,
            new_token_ratio_init_per_mille: 700,
            new_token_ratio_min_per_mille: 98,
            new_token_ratio_decay_steps: 600,
            clip_max_new_tokens: 4096,
            sort_max: 128,
            in_batch_check_tokens: 32,
            in_batch_share_tokens: 32,
            bypass_max: 64,
            default_deadline: Duration::ZERO,
            context_length: u32::MAX,
            mutation: Mutation::default(),
        }
    }
}

impl Default for TransferConfig {
    /// SGLang's timeouts.
    fn default() -> Self {
        Self {
            backend: TransferBackend::Wire,
            layout: Layout::default(),
            layerwise: true,
            bootstrap_timeout: Duration::from_secs(300),
            waiting_timeout: Duration::from_secs(300),
            heartbeat_interval: Duration::from_secs(5),
            heartbeat_failures_max: 2,
            abort_resend: Duration::from_secs(1),
            retries_max: 1,
            rooms_max: 100_000,
            mutation: Mutation::default(),
        }
    }
}

impl WorkerConfig {
    /// Has the worker make a deliberate mistake.
    pub const fn mutate(&mut self, mutation: Mutation) {
        self.kv.mutation = mutation;
        self.sched.mutation = mutation;
        self.transfer.mutation = mutation;
    }

    /// Checks what no single type can.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let kv = &self.kv;
        let sched = &self.sched;
        let range = |ok: bool, key, value, must| if ok { Ok(()) } else { Err(ConfigError::Range { key, value, must }) };
        range(
            kv.page_size.is_power_of_two() && kv.page_size <= PAGE_SIZE_MAX,
            "page_size",
            u64::from(kv.page_size),
            "a power of two from 1 to 1024",
        )?;
        range(kv.gpu_pages >= 2, "gpu_pages", u64::from(kv.gpu_pages), "at least 2")?;
        range(kv.page_bytes > 0, "page_bytes", kv.page_bytes, "more than 0")?;
        range(
            kv.prefetch_capacity_per_mille <= 1000,
            "prefetch_capacity_per_mille",
            u64::from(kv.prefetch_capacity_per_mille),
            "at most 1000",
        )?;
        range(
            kv.storage == StorageMode::None || kv.host_pages > 0,
            "host_pages",
            u64::from(kv.host_pages),
            "more than 0 when storage is attached, since L3 is reached through L2",
        )?;
        range(
            sched.chunked_prefill_size >= kv.page_size && sched.chunked_prefill_size.is_multiple_of(kv.page_size),
            "chunked_prefill_size",
            u64::from(sched.chunked_prefill_size),
            "a positive multiple of page_size",
        )?;
        range(sched.context_length >= 2, "context_length", u64::from(sched.context_length), "at least 2")?;
        range(sched.max_running_requests > 0, "max_running_requests", 0, "more than 0")?;
        range(sched.reserve_steps > 0, "reserve_steps", 0, "more than 0")?;
        range(
            sched.new_token_ratio_min_per_mille <= sched.new_token_ratio_init_per_mille
                && sched.new_token_ratio_init_per_mille <= 1000,
            "new_token_ratio_init_per_mille",
            u64::from(sched.new_token_ratio_init_per_mille),
            "between new_token_ratio_min_per_mille and 1000",
        )?;
        range(self.transfer.heartbeat_failures_max > 0, "heartbeat_failures_max", 0, "more than 0")?;
        range(!self.transfer.heartbeat_interval.is_zero(), "heartbeat_interval", 0, "more than 0")?;
        range(!self.transfer.abort_resend.is_zero(), "abort_resend", 0, "more than 0")?;
        range(
            self.transfer.retries_max <= HANDOFF_RETRIES_MAX,
            "retries_max",
            u64::from(self.transfer.retries_max),
            "at most 3",
        )
    }
}

//! What a router is told at its start.

use core::num::NonZeroU64;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::cost::LinkCost;
use crate::id::Epoch;
use crate::limits::PAGE_SIZE_MAX;
use crate::mutant::Mutation;

/// How a worker is chosen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// By a draw.
    Random,
    /// In turn.
    RoundRobin,
    /// The less loaded of two draws.
    PowerOfTwo,
    /// Least cost of the uncached suffix plus the queue.
    #[default]
    CacheAware,
    /// Chooses pair and mode at once: a prefill worker and a transfer, or an append on the decode worker.
    AppendAware,
}

impl Policy {
    /// The name that configurations use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round_robin",
            Self::PowerOfTwo => "power_of_two",
            Self::CacheAware => "cache_aware",
            Self::AppendAware => "append_aware",
        }
    }
}

/// One router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouterConfig {
    /// Which life of the router this is, below 2^23. Unique among the routers of a deployment: it is the upper part of
    /// each room.
    pub epoch: Epoch,
    /// Seed of the run.
    pub seed: u64,
    /// How the worker that computes the prompt is chosen.
    pub policy: Policy,
    /// How the decode worker of a pair is chosen.
    pub decode_policy: Policy,
    /// Tokens per page key.
    pub page_size: u32,
    /// Bytes of KV per token, all layers and ranks.
    pub token_bytes: u64,
    /// Descriptors that one page is cut into on the link between workers.
    pub page_descriptors: u32,
    /// Cost of the link between workers.
    pub link: LinkCost,
    /// Share of the prompt, per mille, below which a cached prefix does not decide: the shortest queue does.
    /// SGLang's `cache_threshold` 0.3.
    pub cache_threshold_per_mille: u32,
    /// Requests by which the longest may exceed the shortest queue, as long as the ratio does not, too.
    pub balance_abs_threshold: u32,
    /// Ratio of the longest to the shortest queue, per mille, beyond which (with the former) the shortest is taken.
    /// SGLang's `balance_rel_threshold` 1.5.
    pub balance_rel_threshold_per_mille: u32,
    /// Weight of a worker's queue against the request's own prefill; 0 for pure longest prefix.
    pub load_weight_per_mille: u32,
    /// Time that each running sequence adds to a decode step (85,000 to 115,000 ns for 8B on one H100).
    pub sequence_ns: u64,
    /// Weight of the time to first token in the append decision.
    pub w_ttft_per_mille: u32,
    /// Weight of what running sequences lose in the append decision.
    pub w_tpot_per_mille: u32,
    /// Tokens of each running sequence over which it feels an append: how many an append has to itself. 256 are the
    /// answers of the measurements of PPD (arXiv 2603.13358, figure 6).
    pub append_window_tokens: u32,
    /// Share of a prompt, per mille, that has to be cached on a worker for an append there; 0 weighs whole prompts, too.
    pub append_ratio_min_per_mille: u32,
    /// Most prompt tokens of one step of a worker; see [`crate::config::SchedConfig`] for this and the next two.
    pub chunk_tokens: u32,
    /// Decode rows ride along with prefill chunks on workers.
    pub mixed_chunk: bool,
    /// Workers launch a step before the previous one has ended.
    pub overlap: bool,
    /// Prefill workers push layer by layer while they compute.
    pub layerwise: bool,
    /// Most live requests; one more is refused.
    pub live_requests_max: u32,
    /// Most (key, worker) pairs of the index.
    pub index_entries_max: u32,
    /// Most conversations whose last worker is remembered.
    pub sessions_max: u32,
    /// Attempts after the first one.
    pub retries_max: u32,
    /// How long a request whose next attempt finds no worker waits for one. SGLang's `queue_timeout_secs`.
    pub queue_timeout: Duration,
    /// First pause before a retry.
    pub backoff_base: Duration,
    /// Growth of the pause, per mille.
    pub backoff_growth_per_mille: u32,
    /// Longest pause, before jitter.
    pub backoff_max: Duration,
    /// Largest share by which a pause is lengthened or shortened, per mille.
    pub backoff_jitter_per_mille: u32,
    /// Consecutive failures that open a breaker.
    pub breaker_failures: u32,
    /// Time within which they must happen.
    pub breaker_window: Duration,
    /// How long a breaker stays open.
    pub breaker_open: Duration,
    /// Successes that close a half-open breaker.
    pub breaker_successes: u32,
    /// Age beyond which a load report is not believed.
    pub load_report_max_age: Duration,
    /// A deliberate mistake, in tests of the checkers.
    #[serde(skip)]
    pub mutation: Mutation,
}

impl Default for RouterConfig {
    /// SGLang's defaults where there are any; KV of Llama-3.1-8B over one 400 Gb/s NIC.
    fn default() -> Self {
        Self {
            epoch: Epoch(0),
            seed: 0,
            policy: Policy::CacheAware,
            decode_policy: Policy::PowerOfTwo,
            page_size: 16,
            token_bytes: 131_072,
            page_descriptors: 1,
            link: LinkCost {
                request_ns: 100_000,
                descriptor_ps: 1_000_000,
                descriptors_ahead: 0,
                bytes_per_second: NonZeroU64::new(45_000_000_000).expect("not 0"),
                latency_ns: 10_000,
            },
            cache_threshold_per_mille: 300,
            balance_abs_threshold: 64,
            balance_rel_threshold_per_mille: 1500,
            load_weight_per_mille: 1000,
            sequence_ns: 115_000,
            w_ttft_per_mille: 1000,
            w_tpot_per_mille: 1000,
            append_window_tokens: 256,
            append_ratio_min_per_mille: 0,
            chunk_tokens: 8192,
            mixed_chunk: false,
            overlap: true,
            layerwise: true,
            live_requests_max: 100_000,
            index_entries_max: 4_000_000,
            sessions_max: 100_000,
            retries_max: 5,
            queue_timeout: Duration::from_secs(60),
            backoff_base: Duration::from_millis(50),
            backoff_growth_per_mille: 1500,
            backoff_max: Duration::from_secs(30),
            backoff_jitter_per_mille: 200,
            breaker_failures: 10,
            breaker_window: Duration::from_secs(120),
            breaker_open: Duration::from_secs(60),
            breaker_successes: 3,
            load_report_max_age: Duration::from_secs(5),
            mutation: Mutation::default(),
        }
    }
}

impl RouterConfig {
    /// Checks what no single type can.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let range = |ok: bool, key, value, must| if ok { Ok(()) } else { Err(ConfigError::Range { key, value, must }) };
        range(self.epoch.0 < EPOCHS_MAX, "epoch", u64::from(self.epoch.0), "below 2^23: rooms have 63 bits")?;
        range(
            self.page_size.is_power_of_two() && self.page_size <= PAGE_SIZE_MAX,
            "page_size",
            u64::from(self.page_size),
            "a power of two from 1 to 1024",
        )?;
        if self.decode_policy == Policy::AppendAware {
            return Err(ConfigError::Choice {
                key: "decode_policy",
                value: self.decode_policy.name(),
                must: "another one: append_aware belongs in policy and chooses the decode worker, too",
            });
        }
        range(
            self.cache_threshold_per_mille <= 1000,
            "cache_threshold_per_mille",
            u64::from(self.cache_threshold_per_mille),
            "at most 1000",
        )?;
        range(
            self.balance_rel_threshold_per_mille >= 1000,
            "balance_rel_threshold_per_mille",
            u64::from(self.balance_rel_threshold_per_mille),
            "at least 1000",
        )?;
        range(
            self.backoff_growth_per_mille >= 1000 && self.backoff_growth_per_mille <= 10_000,
            "backoff_growth_per_mille",
            u64::from(self.backoff_growth_per_mille),
            "from 1000 to 10000",
        )?;
        range(
            self.backoff_jitter_per_mille <= 1000,
            "backoff_jitter_per_mille",
            u64::from(self.backoff_jitter_per_mille),
            "at most 1000",
        )?;
        range(self.retries_max <= 100, "retries_max", u64::from(self.retries_max), "at most 100")?;
        range(self.append_window_tokens > 0, "append_window_tokens", 0, "more than 0")?;
        range(
            self.append_ratio_min_per_mille <= 1000,
            "append_ratio_min_per_mille",
            u64::from(self.append_ratio_min_per_mille),
            "at most 1000",
        )?;
        range(self.chunk_tokens > 0, "chunk_tokens", 0, "more than 0")?;
        range(self.breaker_failures > 0, "breaker_failures", 0, "more than 0")?;
        range(self.breaker_successes > 0, "breaker_successes", 0, "more than 0")?;
        range(self.live_requests_max > 0, "live_requests_max", 0, "more than 0")?;
        range(self.index_entries_max > 0, "index_entries_max", 0, "more than 0")
    }
}

impl RouterConfig {
    /// True if what decode workers hold has a say, so that the index must remember it.
    pub(super) fn asks_for_decode_cache(&self) -> bool {
        self.policy == Policy::AppendAware || self.decode_policy == Policy::CacheAware
    }
}

/// Lives of routers that rooms can tell apart.
const EPOCHS_MAX: u32 = 1 << 23;

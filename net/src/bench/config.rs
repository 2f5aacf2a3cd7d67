//! What a benchmark is told, under the names that users of `sglang.bench_serving` and `vllm bench serve` type.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::client::target::Target;

/// Which API is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// `/v1/completions`.
    #[default]
    #[serde(alias = "openai", alias = "sglang-oai", alias = "vllm")]
    OpenaiCompletions,
    /// `/v1/chat/completions`.
    #[serde(alias = "sglang-oai-chat", alias = "vllm-chat")]
    OpenaiChat,
    /// `/generate`.
    Sglang,
}

impl Backend {
    /// The name in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenaiCompletions => "openai",
            Self::OpenaiChat => "openai-chat",
            Self::Sglang => "sglang",
        }
    }

    /// Where it is asked, unless told otherwise.
    #[must_use]
    pub const fn endpoint(self) -> &'static str {
        match self {
            Self::OpenaiCompletions => "/v1/completions",
            Self::OpenaiChat => "/v1/chat/completions",
            Self::Sglang => "/generate",
        }
    }
}

/// Where the prompts come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatasetName {
    /// Random prompts as text, about one word a token; exact with a tokenizer.
    #[default]
    Random,
    /// Random prompts as token ids; not for chats.
    RandomIds,
    /// Groups of prompts that share a system prompt.
    #[serde(alias = "prefix_repetition")]
    GeneratedSharedPrefix,
    /// Conversations: each turn's prompt is all that was said before and a new question.
    MultiTurn,
    /// Rows that the caller has read from a trace, with their times.
    #[serde(alias = "mooncake")]
    Trace,
    /// Prompts from a JSONL file (`{"prompt": ..., "output_len": ...}`) or a text file, one a line.
    #[serde(alias = "custom")]
    Prompts,
}

impl DatasetName {
    /// The name in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RandomIds => "random-ids",
            Self::GeneratedSharedPrefix => "generated-shared-prefix",
            Self::MultiTurn => "multi-turn",
            Self::Trace => "trace",
            Self::Prompts => "prompts",
        }
    }
}

/// A time that a good request keeps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SloMetric {
    /// Time to first token.
    Ttft,
    /// Mean time per token after the first.
    Tpot,
    /// Time of the whole request.
    E2el,
}

/// A limit that requests are to keep to: `ttft:200`.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Slo {
    /// Of what.
    pub metric: SloMetric,
    /// Milliseconds.
    pub limit_ms: f64,
}

/// A benchmark. Each key is a flag of the peers' with underscores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BenchConfig {
    /// The server: `http://host:port`.
    pub base_url: String,
    /// Which API is asked.
    pub backend: Backend,
    /// Where it is asked; the backend's usual path if absent.
    pub endpoint: Option<String>,
    /// The model; the first one of `/v1/models` if absent.
    pub model: Option<String>,
    /// Sent as `Authorization: Bearer`.
    pub api_key: Option<String>,
    /// Copied into the result.
    pub tag: Option<String>,
    /// Where the prompts come from.
    pub dataset_name: DatasetName,
    /// The file of `prompts`.
    pub dataset_path: Option<PathBuf>,
    /// Requests; conversations of `multi-turn`.
    pub num_prompts: usize,
    /// Tokens of a random prompt.
    pub random_input_len: u32,
    /// Tokens of its answer.
    pub random_output_len: u32,
    /// Lengths are drawn between this share of the length and the length; 1 for all equal.
    pub random_range_ratio: f64,
    /// Token ids are drawn below this.
    pub vocab_size: u32,
    /// Groups that share a system prompt.
    pub gsp_num_groups: usize,
    /// Prompts of each group.
    pub gsp_prompts_per_group: usize,
    /// Tokens of a system prompt.
    pub gsp_system_prompt_len: u32,
    /// Tokens of a question.
    pub gsp_question_len: u32,
    /// Tokens of an answer.
    pub gsp_output_len: u32,
    /// Turns of a conversation.
    pub turns: usize,
    /// Time between an answer and the next question.
    pub think_time_secs: f64,
    /// Trace times are divided by this.
    pub trace_speed: f64,
    /// Tokens of an answer to a line of a prompts file that does not say.
    pub output_len: u32,
    /// Requests per second; absent for all at once.
    pub request_rate: Option<f64>,
    /// Shape of the gamma distribution of the gaps: 1 for a Poisson process, less for bursts.
    pub burstiness: f64,
    /// Most requests under way.
    pub max_concurrency: Option<usize>,
    /// Requests before the measured ones.
    pub warmup_requests: usize,
    /// Lets answers end by themselves, not at their length.
    pub disable_ignore_eos: bool,
    /// Asks for answers in one piece: time to first token is the whole time.
    pub disable_stream: bool,
    /// Sampling temperature.
    pub temperature: f64,
    /// Fields that are added to each body.
    pub extra_request_body: serde_json::Map<String, serde_json::Value>,
    /// Limits of good requests.
    pub goodput: Vec<Slo>,
    /// Longest time for one request.
    pub request_timeout_secs: f64,
    /// Time between two reports on the run.
    pub progress_interval_secs: f64,
    /// Seed of prompts and times.
    pub seed: u64,
}

/// A key that cannot be what it is.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{key} is {value}: {must}")]
pub struct BenchConfigError {
    /// The key to change.
    pub key: &'static str,
    /// What it is.
    pub value: String,
    /// What it must be.
    pub must: String,
}

impl Default for BenchConfig {
    fn default() -> Self {
        Self {
            base_url: "http://127.0.0.1:30000".into(),
            backend: Backend::default(),
            endpoint: None,
            model: None,
            api_key: None,
            tag: None,
            dataset_name: DatasetName::default(),
            dataset_path: None,
            num_prompts: 1000,
            random_input_len: 1024,
            random_output_len: 128,
            random_range_ratio: 1.0,
            vocab_size: 8000,
            gsp_num_groups: 64,
            gsp_prompts_per_group: 16,
            gsp_system_prompt_len: 2048,
            gsp_question_len: 128,
            gsp_output_len: 256,
            turns: 4,
            think_time_secs: 0.0,
            trace_speed: 1.0,
            output_len: 256,
            request_rate: None,
            burstiness: 1.0,
            max_concurrency: None,
            warmup_requests: 1,
            disable_ignore_eos: false,
            disable_stream: false,
            temperature: 0.0,
            extra_request_body: serde_json::Map::new(),
            goodput: Vec::new(),
            request_timeout_secs: 6.0 * 3600.0,
            progress_interval_secs: 5.0,
            seed: 1,
        }
    }
}

impl BenchConfig {
    /// Checks what no single type can.
    ///
    /// # Errors
    /// The first key that is wrong, with what it must be.
    pub fn check(&self) -> Result<(), BenchConfigError> {
        self.target()?;
        for (key, value, min, max) in [
            ("random_range_ratio", self.random_range_ratio, 0.0, 1.0),
            ("think_time_secs", self.think_time_secs, 0.0, 86_400.0),
            ("trace_speed", self.trace_speed, 1e-6, 1e6),
            ("request_rate", self.request_rate.unwrap_or(1.0), 1e-6, 1e6),
            ("burstiness", self.burstiness, 0.01, 1e4),
            ("temperature", self.temperature, 0.0, 100.0),
            ("request_timeout_secs", self.request_timeout_secs, 0.001, 604_800.0),
            ("progress_interval_secs", self.progress_interval_secs, 0.001, 86_400.0),
        ] {
            // A NaN is in no range.
            if !(min..=max).contains(&value) {
                return Err(wrong(key, value, format!("it must be from {min} to {max}")));
            }
        }
        for (key, value, max) in [
            ("num_prompts", self.num_prompts as u64, REQUESTS_MAX),
            ("random_input_len", self.random_input_len.into(), TOKENS_MAX),
            ("random_output_len", self.random_output_len.into(), TOKENS_MAX),
            ("vocab_size", self.vocab_size.into(), u64::from(u32::MAX)),
            ("gsp_num_groups", self.gsp_num_groups as u64, REQUESTS_MAX),
            ("gsp_prompts_per_group", self.gsp_prompts_per_group as u64, REQUESTS_MAX),
            ("gsp_system_prompt_len", self.gsp_system_prompt_len.into(), TOKENS_MAX),
            ("gsp_question_len", self.gsp_question_len.into(), TOKENS_MAX),
            ("gsp_output_len", self.gsp_output_len.into(), TOKENS_MAX),
            ("output_len", self.output_len.into(), TOKENS_MAX),
            ("turns", self.turns as u64, 10_000),
            ("max_concurrency", self.max_concurrency.unwrap_or(1) as u64, REQUESTS_MAX),
        ] {
            if value == 0 || value > max {
                return Err(wrong(key, value, format!("it must be from 1 to {max}")));
            }
        }
        if self.dataset_name == DatasetName::RandomIds && self.backend == Backend::OpenaiChat {
            return Err(wrong("dataset_name", "random-ids", "a chat has no token ids; use random"));
        }
        if self.dataset_name == DatasetName::Prompts && self.dataset_path.is_none() {
            return Err(wrong("dataset_path", "absent", "the dataset prompts needs a file"));
        }
        if let Some(endpoint) = self.endpoint.as_ref().filter(|endpoint| !endpoint.starts_with('/')) {
            return Err(wrong("endpoint", endpoint, "it must start with /"));
        }
        if self.api_key.as_ref().is_some_and(|key| !key.bytes().all(|byte| (b'!'..=b'~').contains(&byte))) {
            // The key itself stays out of logs.
            return Err(wrong("api_key", "(hidden)", "it must be visible ASCII"));
        }
        Ok(())
    }

    pub(super) fn target(&self) -> Result<Target, BenchConfigError> {
        Target::parse(&self.base_url).map_err(|error| wrong("base_url", format!("{:?}", self.base_url), error.why))
    }
}

impl TryFrom<String> for Slo {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fail = || format!("{text:?} is no limit; write ttft:200, tpot:50 or e2el:5000 (milliseconds)");
        let (name, limit) = text.split_once(':').ok_or_else(fail)?;
        let metric = match name {
            "ttft" => SloMetric::Ttft,
            "tpot" => SloMetric::Tpot,
            "e2el" | "e2e" => SloMetric::E2el,
            _ => return Err(fail()),
        };
        let limit_ms: f64 = limit.parse().map_err(|_| fail())?;
        if !limit_ms.is_finite() || limit_ms < 0.0 {
            return Err(fail());
        }
        Ok(Self { metric, limit_ms })
    }
}

impl From<Slo> for String {
    fn from(slo: Slo) -> Self {
        slo.to_string()
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.metric {
            SloMetric::Ttft => "ttft",
            SloMetric::Tpot => "tpot",
            SloMetric::E2el => "e2el",
        };
        write!(f, "{name}:{}", self.limit_ms)
    }
}

fn wrong(key: &'static str, value: impl ToString, must: impl Into<String>) -> BenchConfigError {
    BenchConfigError { key, value: value.to_string(), must: must.into() }
}

const REQUESTS_MAX: u64 = 10_000_000;
const TOKENS_MAX: u64 = 16_000_000;

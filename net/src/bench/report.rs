//! What a run has shown: as a table, and as JSON under the keys that the peers' plots read.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use super::call::RequestRecord;
use super::config::{BenchConfig, SloMetric};
use super::stats::Spread;

/// A run that is over.
#[derive(Clone, Debug)]
pub struct BenchReport {
    /// What was run.
    pub config: BenchConfig,
    /// The model that was asked.
    pub model: String,
    /// What the server says of itself; null if it does not.
    pub server_info: Value,
    /// Seconds from the first request to the end of the last.
    pub duration: f64,
    /// One for each request, in order of their start.
    pub records: Vec<RequestRecord>,
    /// Requests that were answered.
    pub completed: usize,
    /// Requests that were not.
    pub failed: usize,
    /// Why, and how often.
    pub errors: BTreeMap<String, usize>,
    /// Tokens of the prompts of answered requests.
    pub input_tokens: u64,
    /// Tokens of their answers.
    pub output_tokens: u64,
    /// Tokens of those prompts that were cached; absent if the server never said.
    pub cached_tokens: Option<u64>,
    /// Milliseconds to the first token.
    pub ttft_ms: Spread,
    /// Mean milliseconds per token after the first, over requests.
    pub tpot_ms: Spread,
    /// Milliseconds between tokens.
    pub itl_ms: Spread,
    /// Milliseconds of whole requests.
    pub e2e_ms: Spread,
    /// Requests that kept to all limits; absent without limits.
    pub good: Option<usize>,
    /// Most tokens that came within one second.
    pub max_output_tokens_per_s: f64,
    /// Most requests under way at once.
    pub max_concurrent_requests: usize,
}

impl BenchReport {
    pub(super) fn new(
        config: BenchConfig,
        model: String,
        server_info: Value,
        duration: f64,
        mut records: Vec<RequestRecord>,
    ) -> Self {
        records.sort_by(|one, other| {
            one.start.total_cmp(&other.start).then((one.script, one.turn).cmp(&(other.script, other.turn)))
        });
        let good = |record: &&RequestRecord| record.error.is_none();
        let answered = || records.iter().filter(good);
        let mut errors = BTreeMap::new();
        for error in records.iter().filter_map(|record| record.error.as_ref()) {
            *errors.entry(error.clone()).or_default() += 1;
        }
        let cached: Vec<u32> = answered().filter_map(|record| record.cached_tokens).collect();
        let completed = answered().count();
        let spread = |values: Vec<f64>| Spread::of(values).in_ms();
        Self {
            completed,
            failed: records.len() - completed,
            errors,
            input_tokens: answered().map(|record| u64::from(record.prompt_tokens)).sum(),
            output_tokens: answered().map(|record| u64::from(record.output_tokens)).sum(),
            cached_tokens: (!cached.is_empty()).then(|| cached.into_iter().map(u64::from).sum()),
            ttft_ms: spread(answered().map(|record| record.ttft).collect()),
            tpot_ms: spread(answered().filter_map(RequestRecord::tpot).collect()),
            itl_ms: spread(answered().flat_map(|record| record.itl.iter().copied()).collect()),
            e2e_ms: spread(answered().map(|record| record.latency).collect()),
            good: (!config.goodput.is_empty()).then(|| answered().filter(|record| keeps(&config, record)).count()),
            max_output_tokens_per_s: busiest_second(answered()),
            max_concurrent_requests: most_at_once(&records),
            config,
            model,
            server_info,
            duration,
            records,
        }
    }

    /// 0 if every request was answered, else 1.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        (self.failed > 0 || self.completed == 0) as u8
    }

    fn per_second(&self, count: f64) -> f64 {
        if self.duration > 0.0 { count / self.duration } else { 0.0 }
    }

    /// Share of prompt tokens that were cached; absent if the server never said.
    #[must_use]
    pub fn cache_hit_rate(&self) -> Option<f64> {
        let cached = self.cached_tokens?;
        Some(if self.input_tokens == 0 { 0.0 } else { cached as f64 / self.input_tokens as f64 })
    }

    /// One object under the keys of `vllm bench serve --save-result`; with `detailed`, those of `--save-detailed`, too.
    /// `date` is the caller's: nothing here reads a wall clock.
    #[must_use]
    pub fn vllm_json(&self, date: &str, detailed: bool) -> Value {
        let config = &self.config;
        let mut result = json!({
            "date": date,
            "endpoint_type": config.backend.name(),
            "backend": config.backend.name(),
            "label": config.tag,
            "model_id": self.model,
            "tokenizer_id": self.model,
            "num_prompts": self.records.len(),
            "request_rate": rate(config),
            "burstiness": config.burstiness,
            "max_concurrency": config.max_concurrency,
            "duration": self.duration,
            "completed": self.completed,
            "failed": self.failed,
            "total_input_tokens": self.input_tokens,
            "total_output_tokens": self.output_tokens,
            "request_throughput": self.per_second(self.completed as f64),
            "request_goodput": self.good.map(|good| self.per_second(good as f64)),
            "output_throughput": self.per_second(self.output_tokens as f64),
            "total_token_throughput": self.per_second((self.input_tokens + self.output_tokens) as f64),
            "max_output_tokens_per_s": self.max_output_tokens_per_s,
            "max_concurrent_requests": self.max_concurrent_requests,
            "rtfx": 0.0,
            "total_cached_tokens": self.cached_tokens,
            "cache_hit_rate": self.cache_hit_rate(),
        });
        if let Some(fields) = result.as_object_mut() {
            for (name, spread) in
                [("ttft", self.ttft_ms), ("tpot", self.tpot_ms), ("itl", self.itl_ms), ("e2el", self.e2e_ms)]
            {
                put(fields, name, &spread, &["mean", "median", "std", "p50", "p90", "p95", "p99"]);
            }
            if detailed {
                let each = |value: fn(&RequestRecord) -> Value| self.records.iter().map(value).collect::<Vec<_>>();
                for (name, values) in [
                    ("input_lens", each(|record| json!(record.prompt_tokens))),
                    ("output_lens", each(|record| json!(record.output_tokens))),
                    ("ttfts", each(|record| json!(record.ttft))),
                    ("itls", each(|record| json!(record.itl))),
                    ("latencies", each(|record| json!(record.latency))),
                    ("start_times", each(|record| json!(record.start))),
                    ("queue_times", each(|record| json!(record.queue))),
                    ("errors", each(|record| json!(record.error.as_deref().unwrap_or("")))),
                ] {
                    fields.insert(name.to_owned(), Value::Array(values));
                }
            }
        }
        result
    }

    /// One object under the keys of `sglang.bench_serving --output-file`. A rate without bound is null: JSON has no
    /// infinity.
    #[must_use]
    pub fn sglang_json(&self) -> Value {
        let config = &self.config;
        let latencies: f64 = self.records.iter().map(|record| record.latency).sum();
        let mut result = json!({
            "tag": config.tag,
            "backend": config.backend.name(),
            "dataset_name": config.dataset_name.name(),
            "request_rate": rate(config),
            "max_concurrency": config.max_concurrency,
            "sharegpt_output_len": null,
            "random_input_len": config.random_input_len,
            "random_output_len": config.random_output_len,
            "random_range_ratio": config.random_range_ratio,
            "server_info": self.server_info,
            "duration": self.duration,
            "completed": self.completed,
            "failed": self.failed,
            "total_input_tokens": self.input_tokens,
            "total_input_text_tokens": self.input_tokens,
            "total_input_vision_tokens": 0,
            "total_output_tokens": self.output_tokens,
            "total_output_tokens_retokenized": self.output_tokens,
            "request_throughput": self.per_second(self.completed as f64),
            "input_throughput": self.per_second(self.input_tokens as f64),
            "output_throughput": self.per_second(self.output_tokens as f64),
            "total_throughput": self.per_second((self.input_tokens + self.output_tokens) as f64),
            "concurrency": self.per_second(latencies),
            "accept_length": null,
            "max_output_tokens_per_s": self.max_output_tokens_per_s,
            "max_concurrent_requests": self.max_concurrent_requests,
            "total_cached_tokens": self.cached_tokens,
            "cache_hit_rate": self.cache_hit_rate(),
        });
        if let Some(fields) = result.as_object_mut() {
            for (name, spread) in
                [("e2e_latency", self.e2e_ms), ("ttft", self.ttft_ms), ("tpot", self.tpot_ms), ("itl", self.itl_ms)]
            {
                put(fields, name, &spread, &["mean", "median", "std", "p90", "p95", "p99"]);
            }
        }
        result
    }

    /// One line of JSON for each request.
    #[must_use]
    pub fn records_jsonl(&self) -> String {
        // Numbers and text: nothing that JSON cannot hold.
        self.records.iter().filter_map(|record| Some(serde_json::to_string(record).ok()? + "\n")).collect()
    }
}

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "{name:<38}{value:>14}");
        row("Successful requests", self.completed.to_string())?;
        row("Failed requests", self.failed.to_string())?;
        row("Benchmark duration (s)", format!("{:.2}", self.duration))?;
        row("Total input tokens", self.input_tokens.to_string())?;
        row("Total generated tokens", self.output_tokens.to_string())?;
        if let (Some(cached), Some(rate)) = (self.cached_tokens, self.cache_hit_rate()) {
            row("Cached input tokens", cached.to_string())?;
            row("Cache hit rate (%)", format!("{:.1}", rate * 100.0))?;
        }
        row("Request throughput (req/s)", format!("{:.2}", self.per_second(self.completed as f64)))?;
        if let Some(good) = self.good {
            row("Request goodput (req/s)", format!("{:.2}", self.per_second(good as f64)))?;
        }
        row("Output token throughput (tok/s)", format!("{:.2}", self.per_second(self.output_tokens as f64)))?;
        let total = (self.input_tokens + self.output_tokens) as f64;
        row("Total token throughput (tok/s)", format!("{:.2}", self.per_second(total)))?;
        row("Peak output throughput (tok/s)", format!("{:.2}", self.max_output_tokens_per_s))?;
        row("Peak concurrent requests", self.max_concurrent_requests.to_string())?;
        writeln!(
            f,
            "{:<10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "(ms)", "mean", "median", "p90", "p95", "p99", "std"
        )?;
        for (name, one) in [("TTFT", self.ttft_ms), ("TPOT", self.tpot_ms), ("ITL", self.itl_ms), ("E2E", self.e2e_ms)]
        {
            writeln!(
                f,
                "{name:<10}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10.2}",
                one.mean, one.median, one.p90, one.p95, one.p99, one.std
            )?;
        }
        let mut errors: Vec<_> = self.errors.iter().collect();
        errors.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (error, count) in errors.iter().take(ERRORS_SHOWN) {
            writeln!(f, "failed {count} times: {error}")?;
        }
        if errors.len() > ERRORS_SHOWN {
            writeln!(f, "and {} other errors", errors.len() - ERRORS_SHOWN)?;
        }
        Ok(())
    }
}

/// True if a request kept to all limits. One without a second token has no time per token to exceed.
fn keeps(config: &BenchConfig, record: &RequestRecord) -> bool {
    config.goodput.iter().all(|slo| {
        let seconds = match slo.metric {
            SloMetric::Ttft => record.ttft,
            SloMetric::Tpot => record.tpot().unwrap_or(0.0),
            SloMetric::E2el => record.latency,
        };
        seconds * 1000.0 <= slo.limit_ms
    })
}

fn put(fields: &mut Map<String, Value>, name: &str, spread: &Spread, parts: &[&str]) {
    for part in parts {
        let value = match *part {
            "mean" => spread.mean,
            "median" | "p50" => spread.median,
            "std" => spread.std,
            "p90" => spread.p90,
            "p95" => spread.p95,
            _ => spread.p99,
        };
        fields.insert(format!("{part}_{name}_ms"), json!(value));
    }
}

/// vLLM writes a rate without bound as a word.
fn rate(config: &BenchConfig) -> Value {
    config.request_rate.map_or_else(|| json!("inf"), |rate| json!(rate))
}

/// Most tokens within one second of the run.
fn busiest_second<'a>(records: impl Iterator<Item = &'a RequestRecord>) -> f64 {
    let mut seconds: BTreeMap<u64, u64> = BTreeMap::new();
    for record in records {
        let mut at = record.start + record.ttft;
        *seconds.entry(at as u64).or_default() += 1;
        for gap in &record.itl {
            at += gap;
            *seconds.entry(at as u64).or_default() += 1;
        }
    }
    seconds.into_values().max().unwrap_or(0) as f64
}

fn most_at_once(records: &[RequestRecord]) -> usize {
    let mut edges: Vec<(f64, i32)> =
        records.iter().flat_map(|record| [(record.start, 1), (record.start + record.latency, -1)]).collect();
    // An end at the time of a start comes first.
    edges.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
    let (mut now, mut most) = (0_i32, 0_i32);
    for (_, step) in edges {
        now += step;
        most = most.max(now);
    }
    most.max(0) as usize
}

const ERRORS_SHOWN: usize = 5;

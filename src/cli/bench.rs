//! `pd bench`: load for a server, and what it makes of it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use pd_core::id::Token;
use pd_net::bench::{self, Backend, BenchConfig, BenchInputs, DatasetName, Detokenize, Slo, TraceRow};
use pd_net::text::Text;
use pd_sim::trace::{Content, Format, Trace};
use serde::Deserialize;

use super::bad_input;
use super::process::runtime;
use crate::settings::{File, Part, choice, options, overlay};

/// Measure a server: load as sglang.bench_serving and vllm bench serve make it, latencies and goodput
///
/// Flags go before PD_BENCH_* variables, these before --config, whose keys are the flags with underscores, and more
/// (warmup_requests, burstiness, extra_request_body, ...).
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// TOML file with settings.
    #[arg(long, env = "PD_BENCH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server.
    #[arg(long, env = "PD_BENCH_BASE_URL", value_name = "URL")]
    base_url: Option<String>,
    /// Which API is asked.
    #[arg(long, env = "PD_BENCH_BACKEND", value_parser = choice::<Backend>, value_name = "openai-completions|openai-chat|sglang")]
    backend: Option<Backend>,
    /// The model; the server's first one by default.
    #[arg(long, env = "PD_BENCH_MODEL", value_name = "NAME")]
    model: Option<String>,
    /// Bearer token.
    #[arg(long, env = "PD_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Where prompts come from.
    #[arg(long, env = "PD_BENCH_DATASET_NAME", value_parser = choice::<DatasetName>, value_name = "random|random-ids|generated-shared-prefix|multi-turn|trace|prompts")]
    dataset_name: Option<DatasetName>,
    /// File of prompts, or trace.
    #[arg(long, env = "PD_BENCH_DATASET_PATH", value_name = "FILE")]
    dataset_path: Option<PathBuf>,
    /// Trace times are divided by this.
    #[arg(long, env = "PD_BENCH_TRACE_SPEED", value_name = "FACTOR")]
    trace_speed: Option<f64>,
    /// Requests, or conversations.
    #[arg(long, env = "PD_BENCH_NUM_PROMPTS", value_name = "N")]
    num_prompts: Option<usize>,
    /// Tokens of a random prompt.
    #[arg(long, env = "PD_BENCH_RANDOM_INPUT_LEN", value_name = "TOKENS")]
    random_input_len: Option<u32>,
    /// Tokens of its answer.
    #[arg(long, env = "PD_BENCH_RANDOM_OUTPUT_LEN", value_name = "TOKENS")]
    random_output_len: Option<u32>,
    /// Lengths are drawn between this share of the length and the length.
    #[arg(long, env = "PD_BENCH_RANDOM_RANGE_RATIO", value_name = "SHARE")]
    random_range_ratio: Option<f64>,
    /// Turns of a conversation.
    #[arg(long, env = "PD_BENCH_TURNS", value_name = "N")]
    turns: Option<usize>,
    /// Requests per second; all at once by default.
    #[arg(long, env = "PD_BENCH_REQUEST_RATE", value_name = "RATE")]
    request_rate: Option<f64>,
    /// Most requests under way.
    #[arg(long, env = "PD_BENCH_MAX_CONCURRENCY", value_name = "N")]
    max_concurrency: Option<usize>,
    /// What a good request keeps, in milliseconds: ttft:200 tpot:50 e2el:5000.
    #[arg(long, env = "PD_BENCH_GOODPUT", value_delimiter = ',', num_args = 1.., value_parser = choice::<Slo>, value_name = "METRIC:MS")]
    goodput: Vec<Slo>,
    /// Seed of prompts and times.
    #[arg(long, env = "PD_BENCH_SEED", value_name = "N")]
    seed: Option<u64>,
    #[command(flatten)]
    own: Own,
}

options! {
    /// What is done besides asking.
    Own {
        /// What kind of trace the file is; mooncake by default.
        #[arg(env = "PD_BENCH_TRACE_FORMAT", value_parser = choice::<Format>, value_name = "mooncake|azure|burstgpt|bailian|vidur|tokens")]
        trace_format: Format,
        /// Model folder whose tokenizer makes the text of random prompts exact.
        #[arg(env = "PD_BENCH_TOKENIZER", value_name = "DIR")]
        tokenizer: PathBuf,
        /// Print the result as JSON, with the keys of this peer.
        #[arg(env = "PD_BENCH_JSON", value_parser = choice::<Peer>, value_name = "sglang|vllm")]
        json: Peer,
        /// Write one JSON line per request.
        #[arg(env = "PD_BENCH_OUTPUT_FILE", value_name = "FILE")]
        output_file: PathBuf,
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Peer {
    Sglang,
    Vllm,
}

/// What a file says to `pd bench`.
pub(super) fn read(file: &File) -> Result<(Own, BenchConfig), String> {
    Ok((file.part::<Own>()?, file.rest(&[Own::KEYS])?))
}

impl Bench {
    pub(super) fn run(self) -> ExitCode {
        match self.measure() {
            Ok(code) => code,
            Err(error) => bad_input(&error),
        }
    }

    fn measure(self) -> Result<ExitCode, String> {
        let (own, mut config) = read(&File::read(self.config.as_deref())?)?;
        let own = self.own.over(own);
        overlay!(self => config;
            set base_url, backend, dataset_name, trace_speed, num_prompts, random_input_len, random_output_len,
                random_range_ratio, turns, seed;
            some model, api_key, dataset_path, request_rate, max_concurrency;
            list goodput,
        );
        config.check().map_err(|error| error.to_string())?;
        let tokenizer = own.tokenizer.as_deref().map(tokenizer).transpose()?;
        let trace = match (config.dataset_name, &config.dataset_path) {
            (DatasetName::Trace, Some(path)) => rows(path, own.trace_format.unwrap_or(Format::Mooncake))?,
            (DatasetName::Trace, None) => return Err("--dataset-name trace needs --dataset-path".into()),
            _ => Vec::new(),
        };
        let report = runtime()?
            .block_on(bench::run(config, BenchInputs { trace, tokenizer }, |progress| eprintln!("{progress}")))
            .map_err(|error| error.to_string())?;
        match own.json {
            None => println!("{report}"),
            Some(Peer::Sglang) => println!("{}", report.sglang_json()),
            Some(Peer::Vllm) => println!("{}", report.vllm_json(&bench::date_now(), false)),
        }
        if let Some(path) = own.output_file {
            std::fs::write(&path, report.records_jsonl())
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        Ok(ExitCode::from(report.exit_code()))
    }
}

/// A model's tokenizer, the other way round.
#[derive(Debug)]
struct Decoder(Arc<Text>);

impl Detokenize for Decoder {
    fn text(&self, ids: &[u32]) -> String {
        let tokens: Vec<Token> = ids.iter().copied().map(Token).collect();
        self.0.decode(&tokens, false)
    }
}

fn tokenizer(folder: &Path) -> Result<Box<dyn Detokenize>, String> {
    let text = Text::from_folder(folder).map_err(|error| error.to_string())?;
    Ok(Box::new(Decoder(Arc::new(text))))
}

fn rows(path: &Path, format: Format) -> Result<Vec<TraceRow>, String> {
    let trace = Trace::read(path, format, None).map_err(|error| error.to_string())?;
    let row = |row: &pd_sim::trace::Row| {
        let (blocks, block_tokens) = match &row.content {
            Content::Blocks { block, ids } => (ids.clone(), *block),
            Content::Tokens { .. } | Content::Opaque => (Vec::new(), 1),
        };
        TraceRow {
            at: Duration::from_nanos(row.at_ns),
            prompt_tokens: row.prompt_tokens,
            output_tokens: row.output_tokens,
            blocks,
            block_tokens,
        }
    };
    Ok(trace.rows.iter().map(row).collect())
}

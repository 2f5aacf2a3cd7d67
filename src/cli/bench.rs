//! `pd bench`: load for a server, and what it makes of it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use pd_core::id::Token;
use pd_net::bench::{self, Backend, BenchConfig, BenchInputs, DatasetName, Detokenize, Slo, TraceRow};
use pd_net::text::Text;
use pd_sim::trace::{Content, Format, Trace};

use super::serve::runtime;
use crate::serve::options::choice;

/// Measure a server: load as sglang.bench_serving and vllm bench serve make it, latencies and goodput
///
/// Keys of --config are the flags with underscores, and more (warmup_requests, burstiness, extra_request_body, ...).
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// TOML file with settings; flags go before it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server.
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// Which API is asked.
    #[arg(long, value_parser = choice::<Backend>, value_name = "openai-completions|openai-chat|sglang")]
    backend: Option<Backend>,
    /// The model; the server's first one by default.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Bearer token.
    #[arg(long, env = "PD_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Where prompts come from.
    #[arg(long, value_parser = choice::<DatasetName>, value_name = "random|random-ids|generated-shared-prefix|multi-turn|trace|prompts")]
    dataset_name: Option<DatasetName>,
    /// File of prompts, or trace.
    #[arg(long, value_name = "FILE")]
    dataset_path: Option<PathBuf>,
    /// What kind of trace the file is.
    #[arg(long, value_parser = choice::<Format>, value_name = "mooncake|azure|burstgpt|bailian|vidur|tokens", default_value = "mooncake")]
    trace_format: Format,
    /// Trace times are divided by this.
    #[arg(long, value_name = "FACTOR")]
    trace_speed: Option<f64>,
    /// Model folder whose tokenizer makes the text of random prompts exact.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Requests, or conversations.
    #[arg(long, value_name = "N")]
    num_prompts: Option<usize>,
    /// Tokens of a random prompt.
    #[arg(long, value_name = "TOKENS")]
    random_input_len: Option<u32>,
    /// Tokens of its answer.
    #[arg(long, value_name = "TOKENS")]
    random_output_len: Option<u32>,
    /// Lengths are drawn between this share of the length and the length.
    #[arg(long, value_name = "SHARE")]
    random_range_ratio: Option<f64>,
    /// Turns of a conversation.
    #[arg(long, value_name = "N")]
    turns: Option<usize>,
    /// Requests per second; all at once by default.
    #[arg(long, value_name = "RATE")]
    request_rate: Option<f64>,
    /// Most requests under way.
    #[arg(long, value_name = "N")]
    max_concurrency: Option<usize>,
    /// What a good request keeps, in milliseconds: ttft:200 tpot:50 e2el:5000.
    #[arg(long, num_args = 1.., value_parser = choice::<Slo>, value_name = "METRIC:MS")]
    goodput: Vec<Slo>,
    /// Seed of prompts and times.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print the result as JSON, with the keys of this peer.
    #[arg(long, value_name = "PEER")]
    json: Option<Peer>,
    /// Write one JSON line per request.
    #[arg(long, value_name = "FILE")]
    output_file: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Peer {
    Sglang,
    Vllm,
}

impl Bench {
    pub(super) fn run(self) -> ExitCode {
        match self.measure() {
            Ok(code) => code,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::from(2)
            }
        }
    }

    fn measure(self) -> Result<ExitCode, String> {
        let (json, output, format) = (self.json, self.output_file.clone(), self.trace_format);
        let tokenizer = self.tokenizer.as_deref().map(tokenizer).transpose()?;
        let config = self.settings()?;
        config.check().map_err(|error| error.to_string())?;
        let trace = match (config.dataset_name, &config.dataset_path) {
            (DatasetName::Trace, Some(path)) => rows(path, format)?,
            (DatasetName::Trace, None) => return Err("--dataset-name trace needs --dataset-path".into()),
            _ => Vec::new(),
        };
        let report = runtime()?
            .block_on(bench::run(config, BenchInputs { trace, tokenizer }, |progress| eprintln!("{progress}")))
            .map_err(|error| error.to_string())?;
        match json {
            None => println!("{report}"),
            Some(Peer::Sglang) => println!("{}", report.sglang_json()),
            Some(Peer::Vllm) => println!("{}", report.vllm_json(&bench::date_now(), false)),
        }
        if let Some(path) = output {
            std::fs::write(&path, report.records_jsonl())
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        Ok(ExitCode::from(report.exit_code()))
    }

    fn settings(self) -> Result<BenchConfig, String> {
        let mut config = match &self.config {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
                toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?
            }
            None => BenchConfig::default(),
        };
        macro_rules! set {
            ($($name:ident),*) => {
                $(if let Some(value) = self.$name { config.$name = value; })*
            };
        }
        set!(base_url, backend, dataset_name, trace_speed, num_prompts, random_input_len, random_output_len);
        set!(random_range_ratio, turns, seed);
        macro_rules! set_some {
            ($($name:ident),*) => {
                $(if self.$name.is_some() { config.$name = self.$name; })*
            };
        }
        set_some!(model, api_key, dataset_path, request_rate, max_concurrency);
        if !self.goodput.is_empty() {
            config.goodput = self.goodput;
        }
        Ok(config)
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

//! `pd trace`: what is in a recorded workload, and the same in another format.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use pd_sim::trace::{Format, Spread, Trace, stats};

use super::bad_input;
use super::sim::print;

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Say how many requests there are, how long prompts and answers are, and what a cache without bounds would hit.
    Stats {
        #[command(flatten)]
        source: Source,
        /// Tokens of a page, for traces that know tokens; those that know blocks are counted in their blocks.
        #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
        page: u32,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Write it in another format; says what that format cannot hold.
    Convert {
        #[command(flatten)]
        source: Source,
        /// The format to write.
        #[arg(long, value_enum)]
        to: Name,
        /// Where to.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Source {
    /// The trace, plain or gzipped.
    file: PathBuf,
    /// Its format; told by the file's name if not given.
    #[arg(long, value_enum)]
    format: Option<Name>,
    /// Tokens of a block of a mooncake (512) or bailian (16) trace.
    #[arg(long, value_name = "N")]
    block: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Name {
    /// JSON lines with hash_ids, milliseconds (Mooncake, FAST'25).
    Mooncake,
    /// CSV of the Azure LLM inference traces of 2023.
    Azure,
    /// CSV of BurstGPT.
    Burstgpt,
    /// JSON lines with hash_ids, seconds (Alibaba qwen-bailian).
    Bailian,
    /// CSV of Vidur.
    Vidur,
    /// JSON lines with token ids.
    Tokens,
}

impl Name {
    const fn format(self) -> Format {
        match self {
            Self::Mooncake => Format::Mooncake,
            Self::Azure => Format::Azure,
            Self::Burstgpt => Format::Burstgpt,
            Self::Bailian => Format::Bailian,
            Self::Vidur => Format::Vidur,
            Self::Tokens => Format::Tokens,
        }
    }
}

impl Source {
    fn read(&self) -> Result<Trace, String> {
        let name = self.file.to_string_lossy().to_lowercase();
        let told = [
            ("azure", Format::Azure),
            ("burstgpt", Format::Burstgpt),
            ("bailian", Format::Bailian),
            ("qwen_trace", Format::Bailian),
            ("vidur", Format::Vidur),
            ("mooncake", Format::Mooncake),
            ("conversation_trace", Format::Mooncake),
            ("toolagent_trace", Format::Mooncake),
            ("synthetic_trace", Format::Mooncake),
            ("sharegpt", Format::Tokens),
        ];
        let told = told.iter().find(|(part, _)| name.contains(part)).map(|(_, format)| *format);
        let Some(format) = self.format.map(Name::format).or(told) else {
            return Err(format!(
                "{}: the name does not tell the format; say --format mooncake, azure, burstgpt, bailian, vidur or tokens",
                self.file.display()
            ));
        };
        Trace::read(&self.file, format, self.block).map_err(|error| error.to_string())
    }
}

impl TraceArgs {
    /// Runs the command; 2 for bad input.
    pub(crate) fn run(&self) -> ExitCode {
        let done = match &self.command {
            What::Stats { source, page, json } => source.read().map(|trace| show(&trace, *page, *json)),
            What::Convert { source, to, out } => source.read().and_then(|trace| convert(&trace, *to, out)),
        };
        match done {
            Ok(text) if print(&text) => ExitCode::SUCCESS,
            Ok(_) => ExitCode::from(1),
            Err(problem) => bad_input(&problem),
        }
    }
}

fn show(trace: &Trace, page: u32, json: bool) -> String {
    let stats = stats(trace, page);
    let hits = stats.hits;
    let percent = |of: u64, all: u64| 100.0 * of as f64 / (all as f64).max(1.0);
    if json {
        let spread = |spread: Spread| {
            serde_json::json!({"mean": spread.mean, "p50": spread.p50, "p90": spread.p90, "p99": spread.p99,
                "max": spread.max, "sum": spread.sum})
        };
        let object = serde_json::json!({
            "requests": stats.rows, "seconds": stats.span_ns as f64 / 1e9, "requests_per_second": stats.rate(),
            "prompt_tokens": spread(stats.prompt), "output_tokens": spread(stats.output),
            "hit_blocks_percent": percent(hits.hit_blocks, hits.blocks),
            "hit_tokens_percent": percent(hits.hit_tokens, hits.tokens),
        });
        return format!("{object}\n");
    }
    let line = |name: &str, spread: Spread| {
        format!(
            "{name:<14} mean {}, p50 {}, p90 {}, p99 {}, max {}, sum {}\n",
            spread.mean, spread.p50, spread.p90, spread.p99, spread.max, spread.sum
        )
    };
    let mut text =
        format!("requests       {} in {:.1} s, {:.2} a second\n", stats.rows, stats.span_ns as f64 / 1e9, stats.rate());
    text += &line("prompt tokens", stats.prompt);
    text += &line("output tokens", stats.output);
    text += &if hits.blocks == 0 {
        "hits           not known: the trace says nothing of contents\n".to_owned()
    } else {
        format!(
            "hits           {:.2} % of blocks, {:.2} % of tokens, in a cache without bounds\n",
            percent(hits.hit_blocks, hits.blocks),
            percent(hits.hit_tokens, hits.tokens)
        )
    };
    text
}

fn convert(trace: &Trace, to: Name, out: &PathBuf) -> Result<String, String> {
    let wrong = |error: std::io::Error| format!("{} cannot be written: {error}", out.display());
    let mut file = BufWriter::new(File::create_new(out).map_err(wrong)?);
    let loss = trace.write(to.format(), &mut file).map_err(wrong)?;
    file.flush().map_err(wrong)?;
    let mut text = format!("{}: {} requests\n", out.display(), trace.rows.len());
    if loss.contents > 0 {
        text +=
            &format!("lost: what {} prompts share; the format, or its block size, does not hold it\n", loss.contents);
    }
    if loss.arrivals > 0 {
        text += &format!("lost: fractions of milliseconds of {} arrivals\n", loss.arrivals);
    }
    Ok(text)
}

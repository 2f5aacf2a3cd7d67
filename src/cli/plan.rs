//! `pd plan`: flags, progress, exit codes.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use pd_sim::parallel;
use pd_sim::plan::{self, Goal, Plan as Planner, Tier};
use pd_sim::scenario::schema::File;
use pd_sim::scenario::{Document, Overrides};
use pd_sim::units;

use super::bad_input;
use super::sim::print;
use crate::progress::bar;

/// Finds the deployment of so many GPUs with the largest goodput.
///
/// Goodput is the largest request rate at which the promised share of requests has its first token and its other tokens
/// in time, found by bisection with the same requests for all deployments. All splits into prefill and decode workers,
/// all group sizes and deployments without a split are screened; the best few are raced with all seeds. Of the best one
/// the plan says what limits it and what more of each resource would buy.
///
/// Eight GPUs take about a minute on two cores; --span, --seeds and --precision trade time for certainty.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// A scenario for model, workers, network and load; its own deployment is replaced. Without it, the flags say all.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Name or path of the model.
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    model: Option<String>,
    /// Name or path of the GPU; h200 if not given.
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    gpu: Option<String>,
    /// Tokens of a prompt: a number, or for instance { uniform = [100, 4000] }.
    #[arg(long, value_name = "TOKENS", conflicts_with_all = ["file", "trace"])]
    isl: Option<String>,
    /// Tokens of an answer, likewise.
    #[arg(long, value_name = "TOKENS", conflicts_with_all = ["file", "trace"])]
    osl: Option<String>,
    /// A recorded workload instead of --isl and --osl.
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    trace: Option<PathBuf>,
    /// Its format: mooncake, azure or tokens.
    #[arg(long, value_name = "FORMAT", default_value = "mooncake", requires = "trace")]
    trace_format: String,
    /// Folder with hw/ and models/, for plans without a scenario.
    #[arg(long, value_name = "DIR", default_value = "scenarios", conflicts_with = "file")]
    library: PathBuf,
    /// GPUs to deploy; as many as the scenario has if not given.
    #[arg(long, value_name = "N")]
    gpus: Option<u32>,
    /// Sizes of groups of GPUs to choose from.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,2,4,8")]
    tp: Vec<u32>,
    /// Links between workers to choose from, by name or path.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    links: Vec<String>,
    /// Tiers to choose from: none, 64GB (host memory of each GPU), 64GB+nvme_gen5.
    #[arg(long, value_name = "TIER,..", value_delimiter = ',', value_parser = Tier::parse)]
    tiers: Vec<Tier>,
    /// Longest time to the first token.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    slo_ttft: Duration,
    /// Longest time per token behind the first.
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = duration)]
    slo_tpot: Duration,
    /// Share of requests that must have both.
    #[arg(long, value_name = "SHARE", default_value = "0.9")]
    attain: f64,
    /// For how long requests arrive in each run.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    span: Duration,
    /// Runs with different seeds at each rate.
    #[arg(long, value_name = "N", default_value = "3")]
    seeds: u32,
    /// Width of the last bracket of the bisection, in percent.
    #[arg(long, value_name = "PERCENT", default_value = "2")]
    precision: f64,
    /// Worlds that run at the same time; as many as there are cores if not given. Results do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Change a key of the scenario, for instance load.0.rate=2/s; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "file")]
    set: Vec<String>,
    /// Print a JSON object per deployment, and one for what limits and what more would buy.
    #[arg(long)]
    json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    units::duration(text).map_err(|error| error.to_string())
}

impl Plan {
    /// Plans; 1 if no deployment keeps the promise, 2 for bad input.
    pub(crate) fn run(&self) -> ExitCode {
        let (file, folder) = match self.source() {
            Ok(source) => source,
            Err(problem) => return bad_input(&problem),
        };
        let own: u32 = file.worker.iter().map(|worker| worker.count.saturating_mul(worker.tp)).sum();
        let seed = file.seed;
        let planner = Planner {
            gpus: self.gpus.unwrap_or(own),
            tps: self.tp.clone(),
            links: self.links.clone(),
            tiers: self.tiers.clone(),
            goal: Goal {
                ttft: self.slo_ttft,
                tpot: self.slo_tpot,
                attain_per_mille: (self.attain * 1000.0).round() as u32,
                span: self.span,
            },
            seeds: (0..u64::from(self.seeds)).map(|step| seed.wrapping_add(step)).collect(),
            precision: self.precision / 100.0,
            file,
            folder,
        };
        let bar = bar("plan", "{prefix} [{bar:30}] {pos}/{len} searches ({elapsed})");
        let threads = self.threads.unwrap_or_else(parallel::threads);
        let planned = planner.run(threads, &mut |done, of| {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        let planned = match planned {
            Ok(planned) => planned,
            Err(problem) => return bad_input(&problem.message),
        };
        let is_kept = planned.points.first().is_some_and(|best| best.goodput().mean > 0.0);
        let text = if self.json { plan::json(&planned) } else { plan::page(&planned) };
        if print(&text) && is_kept { ExitCode::SUCCESS } else { ExitCode::from(1) }
    }

    /// The keys to plan with, and the folder that names in them refer to.
    fn source(&self) -> Result<(File, PathBuf), String> {
        if let Some(path) = &self.file {
            let overrides = Overrides { set: self.set.clone(), ..Overrides::default() };
            let read = Document::read(path, &overrides).and_then(|document| document.file(document.name(), &[]));
            let folder = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
            return Ok((read.map_err(|error| error.to_string())?, folder));
        }
        let Some(model) = &self.model else {
            return Err(
                "what is to be planned? Give a scenario, or --model with --isl and --osl (or --trace)".to_owned()
            );
        };
        let load = match (&self.trace, &self.isl, &self.osl) {
            (Some(trace), _, _) => {
                let trace = std::path::absolute(trace).map_err(|error| format!("{}: {error}", trace.display()))?;
                format!(
                    "kind = \"trace\"\nfile = {}\nformat = {}",
                    quoted(&trace.display().to_string()),
                    quoted(&self.trace_format)
                )
            }
            (None, Some(isl), Some(osl)) => {
                format!(
                    "kind = \"poisson\"\nrate = \"1/s\"\nrequests = 1\nprompt_tokens = {isl}\noutput_tokens = {osl}"
                )
            }
            (None, _, _) => return Err("what is the load? Give --isl and --osl, or --trace, or a scenario".to_owned()),
        };
        let text = format!(
            "about = \"plan\"\nmodel = {}\n[[worker]]\ngpu = {}\n[[load]]\n{load}\n",
            quoted(model),
            quoted(self.gpu.as_deref().unwrap_or("h200")),
        );
        let file = File::from_text(&text).map_err(|problem| format!("--isl, --osl or --trace-format: {problem}"))?;
        if self.gpus.is_none() {
            return Err("how many GPUs? Give --gpus".to_owned());
        }
        Ok((file, self.library.clone()))
    }
}

/// A text as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

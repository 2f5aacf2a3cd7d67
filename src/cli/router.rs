//! `pd router`: one address in front of many workers.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use pd_core::cost::Cost;
use pd_core::router::Policy;
use pd_net::router::{self, Measured, RouterConfig, RouterHooks};
use pd_sim::hardware::Library;
use pd_sim::journal::{Life, Who};
use tokio::sync::oneshot;

use super::process::{Signals, ended, runtime};
use crate::serve::journal::Journal;
use crate::serve::listen::listen;
use crate::settings::{File, Logs, Part, choice, options, overlay};

/// Route requests to prefill and decode workers, or to unified ones
///
/// Speaks SGLang's contract towards workers, so that either side may be SGLang's. Keys of --config are those of the flags
/// with underscores, and more. Flags go before PD_ROUTER_* variables, these before the file; a list that is given replaces
/// that of the file.
#[derive(Debug, Args)]
pub(super) struct Router {
    /// TOML file with settings.
    #[arg(long, env = "PD_ROUTER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    own: Own,
    /// A prefill worker, and the port of its bootstrap server. May be repeated.
    #[arg(long, env = "PD_ROUTER_PREFILL", num_args = 1..=2, value_names = ["URL", "BOOTSTRAP_PORT"], action = clap::ArgAction::Append)]
    prefill: Vec<String>,
    /// A decode worker. May be repeated.
    #[arg(long, env = "PD_ROUTER_DECODE", value_delimiter = ',', value_name = "URL")]
    decode: Vec<String>,
    /// Workers that serve whole requests.
    #[arg(long, env = "PD_ROUTER_WORKER_URLS", value_delimiter = ',', num_args = 1.., value_name = "URL")]
    worker_urls: Vec<String>,
    /// Workers are read from this file, again whenever it changes.
    #[arg(long, env = "PD_ROUTER_DISCOVERY_FILE", value_name = "FILE")]
    discovery_file: Option<PathBuf>,
    /// How workers are chosen.
    #[arg(long, env = "PD_ROUTER_POLICY", value_parser = choice::<Policy>, value_name = "random|round_robin|power_of_two|cache_aware|append_aware")]
    policy: Option<Policy>,
    /// How prefill workers are chosen, if otherwise.
    #[arg(long, env = "PD_ROUTER_PREFILL_POLICY", value_parser = choice::<Policy>, value_name = "POLICY")]
    prefill_policy: Option<Policy>,
    /// How decode workers are chosen, if otherwise.
    #[arg(long, env = "PD_ROUTER_DECODE_POLICY", value_parser = choice::<Policy>, value_name = "POLICY")]
    decode_policy: Option<Policy>,
    /// Share of the prompt below which a cached prefix does not decide.
    #[arg(long, env = "PD_ROUTER_CACHE_THRESHOLD", value_name = "SHARE")]
    cache_threshold: Option<f64>,
    /// Bearer token of clients and workers.
    #[arg(long, env = "PD_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Attempts after the first one, as long as nothing was answered.
    #[arg(long, env = "PD_ROUTER_RETRY_MAX_RETRIES", value_name = "N")]
    retry_max_retries: Option<u32>,
    /// Longest time for a request.
    #[arg(long, env = "PD_ROUTER_REQUEST_TIMEOUT_SECS", value_name = "SECONDS")]
    request_timeout_secs: Option<f64>,
    /// Most requests under way.
    #[arg(long, env = "PD_ROUTER_MAX_CONCURRENT_REQUESTS", value_name = "N")]
    max_concurrent_requests: Option<u32>,
    /// Time between two health checks of a worker.
    #[arg(long, env = "PD_ROUTER_HEALTH_CHECK_INTERVAL_SECS", value_name = "SECONDS")]
    health_check_interval_secs: Option<f64>,
    /// How long answers may take to end after SIGTERM.
    #[arg(long, env = "PD_ROUTER_SHUTDOWN_GRACE_PERIOD_SECS", value_name = "SECONDS")]
    shutdown_grace_period_secs: Option<f64>,
    #[command(flatten)]
    logs: Logs,
}

options! {
    /// Where a router listens, and what it records.
    Own {
        /// Address to listen at; 127.0.0.1 by default.
        #[arg(env = "PD_ROUTER_HOST", value_name = "ADDRESS")]
        host: String,
        /// Port to listen at, 30000 by default; 0 takes a free one.
        #[arg(env = "PD_ROUTER_PORT", value_name = "PORT")]
        port: u16,
        /// What `pd probe` wrote about the workers' machine: what prompts, steps and hand-offs cost, for policies that weigh
        /// them. A guess at a model of 8 billion weights on one H100 if not given.
        #[arg(env = "PD_ROUTER_HARDWARE", value_name = "DIR")]
        hardware: PathBuf,
        /// Record each input of the router for `pd replay`.
        #[arg(env = "PD_ROUTER_JOURNAL", value_name = "FILE")]
        journal: PathBuf,
    }
}

/// What a file says to `pd router`.
pub(super) fn read(file: &File) -> Result<(Own, Logs, RouterConfig), String> {
    Ok((file.part::<Own>()?, file.part::<Logs>()?, file.rest(&[Own::KEYS, Logs::KEYS])?))
}

/// What a probe wrote into a folder.
fn measured(folder: &Path) -> Result<(Cost, Measured), String> {
    let file = |name: &str| folder.join(name).display().to_string();
    let library = Library::new(folder);
    let cost = library.cost(&file("gpu.toml"), &file("model.toml"), 1).map_err(|error| error.to_string())?;
    // Where there is no second GPU, there is no link to one.
    let near = file("near.toml");
    let link = if Path::new(&near).exists() {
        Some(library.link(&near).map_err(|error| error.to_string())?.cost())
    } else {
        None
    };
    let token_bytes = cost.kv_bytes_per_token();
    Ok((cost, Measured { token_bytes, link }))
}

impl Router {
    pub(super) fn run(self) -> ExitCode {
        ended(self.serve())
    }

    fn serve(self) -> Result<(), String> {
        let (own, logs, mut config) = read(&File::read(self.config.as_deref())?)?;
        self.logs.over(logs).start()?;
        let own = self.own.over(own);
        overlay!(self => config;
            set policy, cache_threshold, retry_max_retries, request_timeout_secs, max_concurrent_requests,
                health_check_interval_secs, shutdown_grace_period_secs;
            some discovery_file, prefill_policy, decode_policy, api_key;
            list decode, worker_urls,
        );
        if !self.prefill.is_empty() {
            config.prefill = pairs(&self.prefill);
        }
        let mut hooks = RouterHooks::default();
        if let Some(folder) = &own.hardware {
            let (cost, measured) = measured(folder)
                .map_err(|error| format!("--hardware: {error}; `pd probe --output DIR` writes such a folder"))?;
            hooks.cost = cost;
            config.measured = Some(measured);
        }
        let config = config.with_life();
        config.check().map_err(|error| error.to_string())?;
        let runtime = runtime()?;
        runtime.block_on(async {
            let host = own.host.as_deref().unwrap_or("127.0.0.1");
            let (listener, address) = listen(host, own.port.unwrap_or(PORT)).await?;
            let patience = Duration::from_secs_f64(config.shutdown_grace_period_secs);
            let mut signals = Signals::listen()?;
            eprintln!("pd {} routes at http://{address}", env!("CARGO_PKG_VERSION"));
            let (close, closed) = oneshot::channel::<()>();
            if let Some(path) = &own.journal {
                let life = Life::router(&config.machine(), &hooks.cost);
                let journal = Journal::begin(path, &format!("router at {address}"), Who::Router, &life)
                    .map_err(|error| format!("cannot write the journal {}: {error}", path.display()))?;
                hooks.tap = Some(Box::new(journal));
            }
            let closing = async move { drop(closed.await) };
            let mut serving = Box::pin(router::serve_with(config, hooks, listener, closing));
            let drained = tokio::select! {
                // It was not asked to end: something is wrong.
                ended = &mut serving => ended,
                () = signals.asked(patience) => {
                    drop(close);
                    signals.unless_again(serving).await
                }
            };
            let cut = drained.map_err(|error| error.to_string())?.cut;
            if cut > 0 {
                tracing::warn!("{cut} answers were cut off");
            }
            Ok(())
        })
    }
}

/// `--prefill URL PORT` arrives as two words, a variable as one with commas; a word without a scheme or colon is the port of
/// the one before.
fn pairs(words: &[String]) -> Vec<String> {
    let mut pairs: Vec<String> = Vec::new();
    for word in words.iter().flat_map(|word| word.split(',')).map(str::trim) {
        let is_port = word.bytes().all(|byte| byte.is_ascii_digit()) || word.eq_ignore_ascii_case("none");
        match pairs.last_mut() {
            Some(last) if is_port && !last.contains(' ') => {
                last.push(' ');
                last.push_str(word);
            }
            Some(_) | None => pairs.push(word.to_owned()),
        }
    }
    pairs
}

/// SGLang's.
const PORT: u16 = 30_000;

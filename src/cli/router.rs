//! `pd router`: one address in front of many workers.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use pd_core::router::Policy;
use pd_net::router::{self, RouterConfig, RouterHooks};
use pd_sim::journal::{Life, Who};
use tokio::net::TcpListener;

use super::serve::{Logs, runtime, until_told};
use crate::serve::journal::Journal;
use crate::serve::options::choice;

/// Route requests to prefill and decode workers, or to unified ones
///
/// Speaks SGLang's contract towards workers, so that either side may be SGLang's. Keys of --config are those of the flags
/// with underscores, and more.
#[derive(Debug, Args)]
pub(super) struct Router {
    /// TOML file with settings; flags go before it.
    #[arg(long, env = "PD_ROUTER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address to listen at.
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: String,
    /// Port to listen at; 0 takes a free one.
    #[arg(long, default_value_t = 30_000, value_name = "PORT")]
    port: u16,
    /// A prefill worker, and the port of its bootstrap server. May be repeated.
    #[arg(long, num_args = 1..=2, value_names = ["URL", "BOOTSTRAP_PORT"], action = clap::ArgAction::Append)]
    prefill: Vec<String>,
    /// A decode worker. May be repeated.
    #[arg(long, value_name = "URL")]
    decode: Vec<String>,
    /// Workers that serve whole requests.
    #[arg(long, num_args = 1.., value_name = "URL")]
    worker_urls: Vec<String>,
    /// Workers are read from this file, again whenever it changes.
    #[arg(long, value_name = "FILE")]
    discovery_file: Option<PathBuf>,
    /// How workers are chosen.
    #[arg(long, value_parser = choice::<Policy>, value_name = "random|round_robin|power_of_two|cache_aware|append_aware")]
    policy: Option<Policy>,
    /// How prefill workers are chosen, if otherwise.
    #[arg(long, value_parser = choice::<Policy>, value_name = "POLICY")]
    prefill_policy: Option<Policy>,
    /// How decode workers are chosen, if otherwise.
    #[arg(long, value_parser = choice::<Policy>, value_name = "POLICY")]
    decode_policy: Option<Policy>,
    /// Share of the prompt below which a cached prefix does not decide.
    #[arg(long, value_name = "SHARE")]
    cache_threshold: Option<f64>,
    /// Bearer token of clients and workers.
    #[arg(long, env = "PD_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Attempts after the first one, as long as nothing was answered.
    #[arg(long, value_name = "N")]
    retry_max_retries: Option<u32>,
    /// Longest time for a request.
    #[arg(long, value_name = "SECONDS")]
    request_timeout_secs: Option<f64>,
    /// Most requests under way.
    #[arg(long, value_name = "N")]
    max_concurrent_requests: Option<u32>,
    /// Time between two health checks of a worker.
    #[arg(long, value_name = "SECONDS")]
    health_check_interval_secs: Option<f64>,
    /// How long answers may take to end after SIGTERM.
    #[arg(long, value_name = "SECONDS")]
    shutdown_grace_period_secs: Option<f64>,
    /// Record each input of the router for `pd replay`.
    #[arg(long, env = "PD_ROUTER_JOURNAL", value_name = "FILE")]
    journal: Option<PathBuf>,
    #[command(flatten)]
    logs: Logs,
}

impl Router {
    pub(super) fn run(self) -> ExitCode {
        match self.serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::from(2)
            }
        }
    }

    fn serve(self) -> Result<(), String> {
        self.logs.start()?;
        let (host, port, journal) = (self.host.clone(), self.port, self.journal.clone());
        let config = self.settings()?.with_life();
        config.check().map_err(|error| error.to_string())?;
        let runtime = runtime()?;
        runtime.block_on(async {
            let listener = TcpListener::bind((host.as_str(), port))
                .await
                .map_err(|error| format!("cannot listen at {host}:{port}: {error}; --port 0 takes a free port"))?;
            let address = listener.local_addr().map_err(|error| error.to_string())?;
            eprintln!("pd {} routes at http://{address}", env!("CARGO_PKG_VERSION"));
            let told = async {
                let name = until_told().await.unwrap_or("no signal can be heard");
                tracing::info!("{name}: draining");
            };
            let mut hooks = RouterHooks::default();
            if let Some(path) = &journal {
                let life = Life::router(&config.machine(), &hooks.cost);
                let journal = Journal::begin(path, &format!("router at {address}"), Who::Router, &life)
                    .map_err(|error| format!("cannot write the journal {}: {error}", path.display()))?;
                hooks.tap = Some(Box::new(journal));
            }
            let drained = router::serve_with(config, hooks, listener, told).await.map_err(|error| error.to_string())?;
            if drained.cut > 0 {
                tracing::warn!("{} answers were cut off", drained.cut);
            }
            Ok(())
        })
    }

    fn settings(self) -> Result<RouterConfig, String> {
        let mut config = match &self.config {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
                toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?
            }
            None => RouterConfig::default(),
        };
        config.prefill.extend(pairs(self.prefill));
        config.decode.extend(self.decode);
        config.worker_urls.extend(self.worker_urls);
        macro_rules! set {
            ($($name:ident),*) => {
                $(if let Some(value) = self.$name { config.$name = value; })*
            };
        }
        set!(policy, cache_threshold, retry_max_retries, request_timeout_secs, max_concurrent_requests);
        set!(health_check_interval_secs, shutdown_grace_period_secs);
        macro_rules! set_some {
            ($($name:ident),*) => {
                $(if self.$name.is_some() { config.$name = self.$name; })*
            };
        }
        set_some!(discovery_file, prefill_policy, decode_policy, api_key);
        Ok(config)
    }
}

/// `--prefill URL PORT` arrives as two words; a word without a scheme or colon is the port of the one before.
fn pairs(words: Vec<String>) -> Vec<String> {
    let mut pairs: Vec<String> = Vec::new();
    for word in words {
        let is_port = word.bytes().all(|byte| byte.is_ascii_digit()) || word.eq_ignore_ascii_case("none");
        match pairs.last_mut() {
            Some(last) if is_port && !last.contains(' ') => {
                last.push(' ');
                last.push_str(&word);
            }
            Some(_) | None => pairs.push(word),
        }
    }
    pairs
}

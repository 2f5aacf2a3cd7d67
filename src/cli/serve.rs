//! `pd serve`: one worker.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use pd_core::config::Mode;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::serve::model::Model;
use crate::serve::options::Options;
use crate::serve::worker::{self, Running};

/// Serve a model: unified, or as the prefill or decode half of a pair
///
/// Options come from flags, then from PD_* variables, then from --config, where a key is a flag's name with underscores.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// TOML file with options.
    #[arg(long, env = "PD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    logs: Logs,
    #[command(flatten)]
    options: Options,
}

/// What is logged, and how.
#[derive(Clone, Debug, Args)]
pub(super) struct Logs {
    /// Least important messages to log: error, warn, info, debug, trace, or a filter like `warn,pd_net=debug`.
    #[arg(long, env = "PD_LOG", default_value = "info", value_name = "LEVEL", help_heading = "Observing")]
    log_level: String,
    /// How log lines look.
    #[arg(long, env = "PD_LOG_FORMAT", default_value = "text", value_name = "FORMAT", help_heading = "Observing")]
    log_format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Logs {
    /// Logs go to standard error from here on.
    pub(super) fn start(&self) -> Result<(), String> {
        let filter = tracing_subscriber::EnvFilter::try_new(&self.log_level)
            .map_err(|error| format!("--log-level {}: {error}", self.log_level))?;
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let started = match self.log_format {
            Format::Text => logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
            Format::Json => logs.json().try_init(),
        };
        started.map_err(|error| error.to_string())
    }
}

impl Serve {
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
        let begin = Instant::now();
        self.logs.start()?;
        let options = match &self.config {
            Some(file) => self.options.over(Options::read(file)?),
            None => self.options,
        };
        let model = Model::load(&options)?;
        let runtime = runtime()?;
        runtime.block_on(async {
            let running = worker::start(&options, &model, runtime.handle()).await?;
            banner(&options, &model, &running, begin);
            let name = until_told().await?;
            tracing::info!("{name}: draining, at most {} s; a second signal ends at once", PATIENCE.as_secs());
            tokio::select! {
                () = running.stop(PATIENCE) => {}
                again = until_told() => drop(again),
            }
            Ok(())
        })
    }
}

/// The runtime of HTTP and of peers: two threads, as the engine needs the others.
pub(super) fn runtime() -> Result<Runtime, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| format!("no runtime: {error}"))
}

/// Waits for SIGTERM or SIGINT and says which.
pub(super) async fn until_told() -> Result<&'static str, String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// What was started, what was chosen and why.
fn banner(options: &Options, model: &Model, running: &Running, begin: Instant) {
    let mode = match options.mode.unwrap_or_default() {
        Mode::Unified => "unified",
        Mode::Prefill => "prefill",
        Mode::Decode => "decode",
    };
    eprintln!("pd {} serves {} ({mode}) at http://{}", env!("CARGO_PKG_VERSION"), model.name, running.address);
    eprintln!("  {:<9} {}", "model", model.about);
    for (what, choice) in &running.choices {
        eprintln!("  {what:<9} {choice}");
    }
    if let Some(port) = running.bootstrap {
        eprintln!("  {:<9} bootstrap server at port {port}", "peers");
    }
    eprintln!("  {:<9} {:.2} s after start", "ready", begin.elapsed().as_secs_f64());
}

/// How long requests under way may take at the end.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

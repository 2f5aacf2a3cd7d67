//! `pd serve`: one worker.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{ArgMatches, Args};
use pd_core::config::Mode;

use super::process::{PATIENCE, Signals, ended, runtime};
use crate::serve::model::Model;
use crate::serve::options::Options;
use crate::serve::worker::{self, Running};
use crate::settings::{File, Logs, Part, origins};

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

/// What a file says to `pd serve`.
pub(super) fn read(file: &File) -> Result<(Logs, Options), String> {
    Ok((file.part::<Logs>()?, file.rest(&[Logs::KEYS])?))
}

impl Serve {
    pub(super) fn run(self, told: &ArgMatches) -> ExitCode {
        ended(self.serve(told))
    }

    fn serve(self, told: &ArgMatches) -> Result<(), String> {
        let begin = Instant::now();
        let (logs, options) = read(&File::read(self.config.as_deref())?)?;
        self.logs.over(logs).start()?;
        let options = self.options.over(options);
        let model = Model::load(&options)?;
        let runtime = runtime()?;
        runtime.block_on(async {
            let running = worker::start(&options, &model, 1, runtime.handle()).await?;
            let mut signals = Signals::listen()?;
            let origins = origins(&options.given(), told, self.config.as_deref());
            banner(&options, &origins, &model, &running, begin);
            signals.asked(PATIENCE).await;
            signals.unless_again(running.stop(PATIENCE)).await;
            Ok(())
        })
    }
}

/// What was started, what was chosen and why.
fn banner(options: &Options, origins: &str, model: &Model, running: &Running, begin: Instant) {
    let mode = match options.mode.unwrap_or_default() {
        Mode::Unified => "unified",
        Mode::Prefill => "prefill",
        Mode::Decode => "decode",
    };
    eprintln!("pd {} serves {} ({mode}) at http://{}", env!("CARGO_PKG_VERSION"), model.name, running.address);
    eprintln!("  {:<9} {origins}", "options");
    eprintln!("  {:<9} {}", "model", model.about);
    for (what, choice) in &running.choices {
        eprintln!("  {what:<9} {choice}");
    }
    if let Some(port) = running.bootstrap {
        eprintln!("  {:<9} bootstrap server at port {port}", "peers");
    }
    eprintln!("  {:<9} {:.2} s after start", "ready", begin.elapsed().as_secs_f64());
}

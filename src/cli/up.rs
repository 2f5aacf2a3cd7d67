//! `pd up`: a prefill worker, a decode worker and a router in one process, on the loopback device.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{ArgMatches, Args};
use pd_core::config::Mode;
use pd_net::router::{self, RouterConfig};
use tokio::sync::oneshot;

use super::process::{PATIENCE, Signals, ended, runtime};
use crate::serve::listen::listen;
use crate::serve::model::Model;
use crate::serve::options::Options;
use crate::serve::worker;
use crate::settings::{File, Logs, Part, options, origins};

/// Start a prefill worker, a decode worker and a router: everything on this machine, one command
///
/// The options are those of `pd serve` and go to both workers; --host and --port are the router's. KV is kept on disk, in
/// the user's cache folder unless --hicache-storage-dir names another, and found again after a restart.
#[derive(Debug, Args)]
pub(super) struct Up {
    /// TOML file with options.
    #[arg(long, env = "PD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    own: Own,
    #[command(flatten)]
    logs: Logs,
    #[command(flatten)]
    options: Options,
}

options! {
    /// What only `pd up` can be told.
    Own {
        /// Keep no KV on disk.
        #[arg(env = "PD_NO_STORAGE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", help_heading = "KV cache")]
        no_storage: bool,
    }
}

/// What a file says to `pd up`.
pub(super) fn read(file: &File) -> Result<(Own, Logs, Options), String> {
    Ok((file.part::<Own>()?, file.part::<Logs>()?, file.rest(&[Own::KEYS, Logs::KEYS])?))
}

impl Up {
    pub(super) fn run(self, told: &ArgMatches) -> ExitCode {
        ended(self.serve(told))
    }

    fn serve(self, told: &ArgMatches) -> Result<(), String> {
        let begin = Instant::now();
        let (own, logs, options) = read(&File::read(self.config.as_deref())?)?;
        self.logs.over(logs).start()?;
        let no_storage = self.own.over(own).no_storage.unwrap_or(false);
        let mut options = self.options.over(options);
        let origins = origins(&options.given(), told, self.config.as_deref());
        if options.mode.is_some() {
            return Err("pd up starts one worker of each mode; for --mode there is pd serve".into());
        }
        if options.journal.is_some() {
            return Err("--journal records one worker; for that there is pd serve".into());
        }
        if no_storage && options.hicache_storage_dir.is_some() {
            return Err("--no-storage and --hicache-storage-dir contradict each other".into());
        }
        if !no_storage && options.hicache_storage_dir.is_none() {
            options.hicache_storage_dir = cache_folder();
        }
        let model = Model::load(&options)?;
        let runtime = runtime()?;
        runtime.block_on(async {
            let host = options.host.clone().unwrap_or_else(|| "127.0.0.1".to_owned());
            let port = options.port.unwrap_or(ROUTER_PORT);
            let (listener, address) = listen(&host, port).await?;
            // Workers are found by the router alone: any free port will do, and the key is checked there.
            let of = |mode: Mode| Options {
                mode: Some(mode),
                host: Some("127.0.0.1".into()),
                port: Some(0),
                disaggregation_bootstrap_port: Some(0),
                ..options.clone()
            };
            let prefill = worker::start(&of(Mode::Prefill), &model, 2, runtime.handle()).await?;
            let decode = worker::start(&of(Mode::Decode), &model, 1, runtime.handle()).await?;
            let bootstrap = prefill.bootstrap.unwrap_or_default();
            let config = RouterConfig {
                prefill: vec![format!("http://{} {bootstrap}", prefill.address)],
                decode: vec![format!("http://{}", decode.address)],
                worker_startup_check_interval_secs: 0.02,
                api_key: options.api_key.clone(),
                ..RouterConfig::default()
            };
            config.check().map_err(|error| error.to_string())?;
            let (close, closed) = oneshot::channel::<()>();
            let mut routing = runtime.spawn(router::serve(config, listener, async move { drop(closed.await) }));
            tokio::select! {
                () = router::ready(address) => {}
                _ = &mut routing => return Err("the router has ended before it was ready; see the log".into()),
            }
            let mut signals = Signals::listen()?;
            eprintln!("pd {} serves {} at http://{address}", env!("CARGO_PKG_VERSION"), model.name);
            eprintln!("  {:<9} {origins}", "options");
            eprintln!("  {:<9} {}", "model", model.about);
            eprintln!("  {:<9} http://{}, bootstrap server at port {bootstrap}", "prefill", prefill.address);
            eprintln!("  {:<9} http://{}", "decode", decode.address);
            for (what, choice) in &prefill.choices {
                eprintln!("  {what:<9} {choice}");
            }
            eprintln!("  {:<9} {:.2} s after start", "ready", begin.elapsed().as_secs_f64());
            signals.asked(PATIENCE).await;
            let stop = async {
                drop(close);
                if !matches!(routing.await, Ok(Ok(_))) {
                    tracing::error!("the router has failed");
                }
                decode.stop(PATIENCE).await;
                prefill.stop(PATIENCE).await;
            };
            signals.unless_again(stop).await;
            Ok(())
        })
    }
}

/// Where KV is kept for a user who does not say.
fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("pd").join("kv"))
}

/// SGLang's.
const ROUTER_PORT: u16 = 30_000;

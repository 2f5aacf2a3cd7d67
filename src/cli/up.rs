//! `pd up`: a prefill worker, a decode worker and a router in one process, on the loopback device.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use pd_core::config::Mode;
use pd_net::router::{self, RouterConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::serve::{Logs, PATIENCE, runtime, until_told};
use crate::serve::model::Model;
use crate::serve::options::Options;
use crate::serve::worker;

/// Start a prefill worker, a decode worker and a router: everything on this machine, one command
///
/// The options are those of `pd serve` and go to both workers; --host and --port are the router's. KV is kept on disk, in
/// the user's cache folder unless --hicache-storage-dir names another, and found again after a restart.
#[derive(Debug, Args)]
pub(super) struct Up {
    /// TOML file with options.
    #[arg(long, env = "PD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep no KV on disk.
    #[arg(long)]
    no_storage: bool,
    #[command(flatten)]
    logs: Logs,
    #[command(flatten)]
    options: Options,
}

impl Up {
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
        let mut options = match &self.config {
            Some(file) => self.options.over(Options::read(file)?),
            None => self.options,
        };
        if options.mode.is_some() {
            return Err("pd up starts one worker of each mode; for --mode there is pd serve".into());
        }
        if options.journal.is_some() {
            return Err("--journal records one worker; for that there is pd serve".into());
        }
        if self.no_storage && options.hicache_storage_dir.is_some() {
            return Err("--no-storage and --hicache-storage-dir contradict each other".into());
        }
        if !self.no_storage && options.hicache_storage_dir.is_none() {
            options.hicache_storage_dir = cache_folder();
        }
        let model = Model::load(&options)?;
        let runtime = runtime()?;
        runtime.block_on(async {
            let host = options.host.clone().unwrap_or_else(|| "127.0.0.1".to_owned());
            let port = options.port.unwrap_or(ROUTER_PORT);
            let listener = TcpListener::bind((host.as_str(), port))
                .await
                .map_err(|error| format!("cannot listen at {host}:{port}: {error}; --port 0 takes a free port"))?;
            let address = listener.local_addr().map_err(|error| error.to_string())?;
            // Workers are found by the router alone: any free port will do, and the key is checked there.
            let of = |mode: Mode| Options {
                mode: Some(mode),
                host: Some("127.0.0.1".into()),
                port: Some(0),
                disaggregation_bootstrap_port: Some(0),
                ..options.clone()
            };
            let prefill = worker::start(&of(Mode::Prefill), &model, runtime.handle()).await?;
            let decode = worker::start(&of(Mode::Decode), &model, runtime.handle()).await?;
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
            let routing = runtime.spawn(router::serve(config, listener, async move { drop(closed.await) }));
            while !is_ready(address).await {
                if routing.is_finished() {
                    return Err("the router has ended before it was ready; see the log".into());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            eprintln!("pd {} serves {} at http://{address}", env!("CARGO_PKG_VERSION"), model.name);
            eprintln!("  {:<9} {}", "model", model.about);
            eprintln!("  {:<9} http://{}, bootstrap server at port {bootstrap}", "prefill", prefill.address);
            eprintln!("  {:<9} http://{}", "decode", decode.address);
            for (what, choice) in &prefill.choices {
                eprintln!("  {what:<9} {choice}");
            }
            eprintln!("  {:<9} {:.2} s after start", "ready", begin.elapsed().as_secs_f64());
            let name = until_told().await?;
            tracing::info!("{name}: draining, at most {} s; a second signal ends at once", PATIENCE.as_secs());
            let stop = async {
                drop(close);
                if !matches!(routing.await, Ok(Ok(_))) {
                    tracing::error!("the router has failed");
                }
                decode.stop(PATIENCE).await;
                prefill.stop(PATIENCE).await;
            };
            tokio::select! {
                () = stop => {}
                again = until_told() => drop(again),
            }
            Ok(())
        })
    }
}

/// True if the router has workers to route to.
async fn is_ready(router: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(router).await?;
        stream.write_all(b"GET /readiness HTTP/1.1\r\nhost: pd\r\nconnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Ok(true)))
}

/// Where KV is kept for a user who does not say.
fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("pd").join("kv"))
}

/// SGLang's.
const ROUTER_PORT: u16 = 30_000;

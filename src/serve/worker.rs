//! Starts one worker: memory, lanes, its thread, its API.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pd_core::codec::Sink as _;
use pd_core::config::StorageMode;
use pd_core::digest::Digest;
use pd_core::event::Control;
use pd_core::id::{Epoch, WorkerId};
use pd_core::op::Input;
use pd_core::worker::Worker;
use pd_net::http::backend::Info;
use pd_net::http::kv_events::KvEvents;
use pd_net::http::{self, Edge, EdgeConfig};
use pd_sim::journal::{Life, Who};
use pd_sim::units::Bytes;
use pd_sync::Arena;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::backend::Door;
use super::clock::Clock;
use super::compute;
use super::copies::Copies;
use super::journal::Journal;
use super::listen::listen;
use super::model::Model;
use super::options::Options;
use super::peers::{self, Peers};
use super::plan::{Identity, MEM_FRACTION_STATIC, Memory, Plan, is_disaggregated, plan};
use super::shell::{Hearing, Lanes, Mailbox, Shell, Told};
use super::status::{Publisher, Status};
use super::storage::{Settings, Storage};

/// A worker that serves.
pub(crate) struct Running {
    /// Where its API listens.
    pub(crate) address: SocketAddr,
    /// Port of its bootstrap server, if it has one.
    pub(crate) bootstrap: Option<u16>,
    /// What was chosen, for the banner.
    pub(crate) choices: Vec<(&'static str, String)>,
    door: Arc<Door>,
    edge: Arc<Edge>,
    inbox: Mailbox,
    shell: JoinHandle<()>,
    peers: Option<Peers>,
    storage: Arc<Storage>,
    close: Option<oneshot::Sender<()>>,
}

/// Starts a worker over a model that is loaded. `sharers` workers, itself included, are still to take memory of its GPU.
///
/// # Errors
/// Which option cannot be met and what would do, or what the system refuses.
pub(crate) async fn start(options: &Options, model: &Model, sharers: u32, runtime: &Handle) -> Result<Running, String> {
    let host = options.host.clone().unwrap_or_else(|| "127.0.0.1".to_owned());
    let port = options.port.unwrap_or(PORT);
    let (listener, address) = listen(&host, port).await?;
    let identity = Identity { worker: worker_id(address), epoch: epoch() };
    let engine = model.engine.engine()?;
    let geometry = engine.geometry().clone();
    let fraction = options.mem_fraction_static.unwrap_or(MEM_FRACTION_STATIC);
    if !(0.0..=1.0).contains(&fraction) {
        return Err(format!("--mem-fraction-static is {fraction}; it must be between 0 and 1"));
    }
    let memory =
        Memory { host: free_memory(), device: engine.device_bytes(fraction)?.map(|bytes| bytes / u64::from(sharers)) };
    let Plan { config, namespace, page_bytes, storage_bytes, mut choices } =
        plan(options, identity, &geometry, engine.fingerprint(), memory, model.storage_reads)?;
    choices.insert(0, ("device", model.engine.device()));
    let arena = |pages: u32, tier: &str| {
        Arena::new(page_bytes, pages).map(Arc::new).map_err(|error| format!("no memory for {tier}: {error}"))
    };
    let host_memory = arena(config.kv.host_pages, "L2")?;
    // Should the start fail: the inbox is closed before peers are dropped, whose threads may be waiting for it.
    let peers;
    let (inbox, hearing) = Hearing::open();
    if config.kv.storage != StorageMode::None && options.hicache_storage_dir.is_none() {
        // The machine believes in an L3 wherever one could be attached. Before it hears of anything else, so that readers of
        // journals can tell this from an order of an operator.
        let told = inbox.try_send(Told::Input(Input::Control(Control::DetachStorage)));
        assert!(told.is_ok(), "the inbox is open and empty");
    }
    let has_peers = is_disaggregated(config.mode);
    let mut ready = engine.with_pages(config.kv.gpu_pages, has_peers.then_some(config.epoch), || {
        if has_peers { peers::memory(options, &config, page_bytes) } else { arena(config.kv.gpu_pages, "L1") }
    })?;
    let cost = ready.cost()?;
    let device = Arc::clone(ready.device());
    peers = if has_peers { Some(peers::start(options, &config, &device, &inbox, runtime).await?) } else { None };
    let storage = Arc::new(Storage::new(&config.kv, &host_memory, &inbox));
    let submit = match &options.hicache_storage_dir {
        Some(dir) => {
            let settings = Settings { path: dir.clone(), size: Bytes(storage_bytes) };
            let (submit, report) = storage.begin(settings)?;
            choices.push(("L3 holds", report));
            Some(submit)
        }
        None => None,
    };
    let gpu = ready.copy_lanes(&host_memory)?;
    let copies = Copies::start(&device, &host_memory, gpu, &inbox).map_err(|error| error.to_string())?;
    let tasks = compute::start(ready, Arc::clone(&inbox)).map_err(|error| format!("no thread to compute: {error}"))?;
    let kv_events = config.kv.kv_events.then(|| KvEvents::new(config.epoch.0, namespace.clone(), KV_EVENTS_BYTES));
    let lanes = Lanes {
        compute: Box::new(move |task| drop(tasks.send(task))),
        copy: Box::new(move |op, command| copies.start_copy(op, command)),
        storage: submit,
        wire: peers.as_ref().map_or_else(peers::none, Peers::wire),
        kv_events: kv_events.clone(),
    };
    let journal = match &options.journal {
        Some(path) => Some(
            Journal::begin(
                path,
                &format!("{} at {address}", model.name),
                Who::Worker(0),
                &Life::worker(&config, &cost),
            )
            .map_err(|error| format!("cannot write the journal {}: {error}", path.display()))?,
        ),
        None => None,
    };
    let (clock, status) = (Clock::start(), Status::default());
    let info = Info {
        model: model.name.clone(),
        model_path: model.path.clone(),
        tokenizer_path: model.path.clone(),
        model_type: model.model_type.clone(),
        architectures: model.architectures.clone(),
        mode: config.mode,
        namespace,
        context_length: config.sched.context_length,
        epoch: config.epoch.0,
        tp: 1,
        bootstrap_port: peers.as_ref().and_then(Peers::bootstrap),
        logprobs_max: LOGPROBS_MAX,
        has_prompt_logprobs: false,
        settings: settings(&config),
    };
    let door = Arc::new(Door {
        inbox: Arc::clone(&inbox),
        status: status.clone(),
        clock,
        runtime: runtime.clone(),
        peers: peers.as_ref().map(Peers::resolver),
        storage: Arc::clone(&storage),
        kv_events,
        page_size: config.kv.page_size,
        page_bytes: config.kv.page_bytes,
        running_max: config.sched.max_running_requests,
        vocabulary: geometry.vocab,
        seeds: AtomicU64::new(config.seed),
        is_draining: AtomicBool::new(false),
        info,
    });
    let worker = Worker::new(config, cost).map_err(|error| error.to_string())?;
    let shell = Shell::new(worker, journal, clock, hearing, lanes, Publisher::new(status));
    let shell = std::thread::Builder::new()
        .name("worker".to_owned())
        .spawn(move || shell.run())
        .map_err(|error| error.to_string())?;
    let settings = EdgeConfig { api_key: options.api_key.clone(), ..EdgeConfig::default() };
    let edge = Edge::new(Arc::clone(&door) as Arc<_>, Arc::clone(&model.text), settings);
    let (close, closed) = oneshot::channel();
    let serving = http::serve(listener, Arc::clone(&edge), async move { drop(closed.await) });
    runtime.spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!("the API has ended: {error}");
        }
    });
    let bootstrap = peers.as_ref().and_then(Peers::bootstrap);
    Ok(Running { address, bootstrap, choices, door, edge, inbox, shell, peers, storage, close: Some(close) })
}

impl Running {
    /// Takes nothing new, ends what is under way (at most for `patience`), stops.
    pub(crate) async fn stop(mut self, patience: Duration) {
        self.door.drain();
        let begin = Instant::now();
        while self.edge.in_flight() > 0 && begin.elapsed() < patience {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let left = self.edge.in_flight();
        if left > 0 {
            tracing::warn!("{left} requests are cut off after {} s", patience.as_secs());
        }
        drop(self.close.take());
        if let Some(peers) = &mut self.peers {
            peers.stop().await;
        }
        // First the inbox: from here on nobody waits for it. Then the thread, which ends when all inside is heard; then its
        // lanes, which answer nobody; then connections.
        self.inbox.close();
        let (shell, storage, peers) = (self.shell, self.storage, self.peers);
        let joined = tokio::task::spawn_blocking(move || {
            let joined = shell.join();
            storage.close();
            drop(peers);
            joined
        });
        if !matches!(joined.await, Ok(Ok(()))) {
            tracing::error!("the worker's thread died");
        }
    }
}

/// The name of a worker: 31 bits of a fingerprint of its address, so that a restart has the same one.
fn worker_id(address: SocketAddr) -> WorkerId {
    let mut digest = Digest::new();
    digest.bytes(address.to_string().as_bytes());
    // The rest is for names that are no worker's.
    WorkerId(digest.finish() as u32 >> 1)
}

/// The number of this life: tenths of a second since 2026, so that a later one is larger.
#[expect(clippy::disallowed_types, reason = "lives are told apart across restarts; nothing else reads the wall clock")]
fn epoch() -> Epoch {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Epoch(u32::try_from(since.as_millis().saturating_sub(YEAR_2026_MS) / 100).unwrap_or(u32::MAX))
}

/// What the machine can spare, in bytes; 4 GiB where it does not say.
pub(crate) fn free_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map_or(4 << 30, |kib| kib << 10)
}

/// All resolved settings, for `/server_info`.
fn settings(config: &pd_core::config::WorkerConfig) -> serde_json::Map<String, serde_json::Value> {
    match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(map)) => map,
        Ok(_) | Err(_) => serde_json::Map::new(),
    }
}

/// SGLang's.
const PORT: u16 = 30_000;
/// Events that are kept for readers that are behind: those of about 100,000 pages.
const KV_EVENTS_BYTES: usize = 16 << 20;
const LOGPROBS_MAX: u32 = 20;
const YEAR_2026_MS: u128 = 1_767_225_600_000;

//! From the keys of a scenario to a world.

use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use pd_core::config::{ConfigError, KvConfig, Mode, SchedConfig, StorageMode, TransferConfig, WorkerConfig};
use pd_core::cost::{Cost, LinkCost, Model};
use pd_core::id::{Epoch, WorkerId};
use pd_core::key::Namespace;
use pd_core::message::Layout;
use pd_core::time::{Instant, nanos};

use super::schema::{File, Network, Storage, Worker};
use super::{router, service};
use crate::disk::DiskSpec;
use crate::hardware::{Library, LoadError};
use crate::load::LoadConfig;
use crate::setup::{Answers, LinkSetup, PathSetup, Setup, StepCost, StoreSetup, WireSetup, WorkerSetup};

/// What is wrong with a scenario, and the key that says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// In words.
    pub message: String,
    /// The key to point at.
    pub key: Option<&'static str>,
}

impl Problem {
    pub(super) fn at(key: &'static str, message: impl Into<String>) -> Self {
        Self { message: message.into(), key: Some(key) }
    }
}

/// Most workers of a deployment: what one router knows.
const WORKERS_MAX: u64 = 4096;
/// A bandwidth that never limits.
const UNLIMITED: u64 = 1 << 60;
/// After the last request: time for writes to reach L3.
const LINGER: Duration = Duration::from_secs(30);

/// Makes a world, with hardware and models of the library in the scenario's own folder or in one above it, else of that
/// of a checkout.
///
/// # Errors
/// The first thing that is wrong.
pub fn setup(file: &File, folder: &Path) -> Result<Setup, Problem> {
    let library = Library::of_folder(folder).map_err(|error| named("model", &error))?;
    setup_with(file, folder, &library)
}

/// Makes a world with hardware and models of this library; traces are in the folder.
///
/// # Errors
/// The first thing that is wrong.
pub fn setup_with(file: &File, folder: &Path, library: &Library) -> Result<Setup, Problem> {
    let model = library.model(&file.model).map_err(|error| named("model", &error))?;
    let wires = Wires::new(library, &file.network)?;
    match file.worker.iter().map(|group| u64::from(group.count)).sum() {
        1..=WORKERS_MAX => {}
        count => {
            return Err(Problem::at(
                "count",
                format!("there are {count} workers; a deployment has 1 to {WORKERS_MAX}"),
            ));
        }
    }
    let mut workers: Vec<WorkerSetup> = Vec::new();
    let mut stores = Vec::new();
    let mut machine = 0;
    for group in &file.worker {
        if group.per_machine == 0 {
            return Err(Problem::at("per_machine", "per_machine is 0; it must be at least 1"));
        }
        machine = group.machine.unwrap_or(machine);
        let built = Group::new(library, &model, group, &wires)?;
        let shared = matches!(&group.hicache_storage, Some(storage) if storage.mode == StorageMode::Shared);
        for index in 0..group.count {
            if let Some(storage) = &group.hicache_storage
                && (index == 0 || !shared)
            {
                stores.push(built.store(library, storage, stores.len())?);
            }
            if index > 0 && index % group.per_machine == 0 {
                machine += 1;
            }
            let id = workers.len() as u32;
            let store = group.hicache_storage.is_some().then(|| stores.len() as u32 - 1);
            workers.push(built.worker(file, id, machine, store, &wires));
        }
        machine = workers.iter().map(|worker| worker.host + 1).max().unwrap_or(0);
    }
    for worker in &workers {
        worker.config.check()?;
    }
    fits_together(&workers)?;
    let router = router::router(file, &workers, &model, &wires)?;
    let latency_ns = nanos(file.network.control_latency.0);
    let first = &workers[0].config;
    let prompts = namespace(&model, &first.transfer.layout.dtype, first.kv.page_size);
    if workers.iter().any(|worker| worker.config.kv.page_size != prompts.page_size) && !file.load.is_empty() {
        // Requests are keyed once, for the page size of the first worker; others could never find a page.
        return Err(Problem::at("page_size", "all workers of a deployment have the same page_size"));
    }
    let mut setup = Setup {
        seed: file.seed,
        workers,
        stores,
        router,
        router_latency_ns: latency_ns,
        load_report: router::load_report(file),
        loads: Vec::new(),
        prompts,
        answers: Answers::Rule(super::loads::ANSWER),
        script: Vec::new(),
        until: file.until.map(|until| Instant::ZERO + until.0),
        linger: LINGER,
        check: file.check,
        notes: Vec::new(),
    };
    let loaded = match file.load.as_slice() {
        [LoadConfig::Journal(journal)] => super::loads::recorded(journal, folder, &mut setup),
        loads => super::loads::sources(loads, file.seed, folder, &setup.prompts).map(|loads| setup.loads = loads),
    };
    loaded.map_err(|message| Problem { message, key: Some("load") })?;
    let places = setup.places();
    for event in &file.event {
        setup.script.push((Instant::ZERO + event.at.0, super::script::action(event, &places, &model, file)?));
    }
    setup.script.sort_by_key(|(at, _)| *at);
    Ok(setup)
}

fn named(key: &'static str, error: &LoadError) -> Problem {
    Problem::at(key, error.to_string())
}

/// The links of a scenario.
pub(super) struct Wires {
    pub(super) near: LinkCost,
    pub(super) far: LinkCost,
    host: LinkCost,
    fabric: Option<u64>,
    latency_ns: u64,
}

impl Wires {
    fn new(library: &Library, network: &Network) -> Result<Self, Problem> {
        let link = |key, name: &str| library.link(name).map(|link| link.cost()).map_err(|error| named(key, &error));
        Ok(Self {
            near: link("near", &network.near)?,
            far: link("far", &network.far)?,
            host: link("host_link", &network.host_link)?,
            fabric: network.fabric.map(|rate| rate.0),
            latency_ns: nanos(network.control_latency.0),
        })
    }
}

/// What the workers of a group have in common.
struct Group<'a> {
    table: &'a Worker,
    cost: Cost,
    model: Model,
    kv: KvConfig,
    ideal: bool,
}

pub(super) fn kv_bytes(dtype: &str) -> Result<u32, Problem> {
    match dtype {
        "bf16" | "fp16" => Ok(2),
        "fp8_e4m3" | "fp8_e5m2" => Ok(1),
        "f32" => Ok(4),
        other => Err(Problem::at(
            "dtype",
            format!("dtype \"{other}\" is unknown; it is one of bf16, fp16, fp8_e4m3, fp8_e5m2, f32"),
        )),
    }
}

pub(super) fn per_mille(key: &'static str, share: f64, max: f64) -> Result<u64, Problem> {
    if (0.0..=max).contains(&share) {
        Ok((share * 1000.0).round() as u64)
    } else {
        Err(Problem::at(key, format!("{key} is {share}; it must be from 0 to {max}")))
    }
}

fn timed(bytes_per_second: u64) -> LinkCost {
    LinkCost {
        request_ns: 0,
        descriptor_ps: 0,
        descriptors_ahead: 0,
        bytes_per_second: NonZeroU64::new(bytes_per_second).unwrap_or(NonZeroU64::MIN),
        latency_ns: 0,
    }
}

impl<'a> Group<'a> {
    fn new(library: &Library, model: &Model, table: &'a Worker, wires: &Wires) -> Result<Self, Problem> {
        let mut model = model.clone();
        model.kv_dtype_bytes = kv_bytes(&table.dtype)?;
        let ideal = table.service.as_ref().is_some_and(|service| service.ideal_links);
        let fraction = per_mille("mem_fraction_static", table.mem_fraction_static, 1.0)?;
        let cost = match &table.service {
            Some(service) => {
                let tokens = match table.max_total_tokens {
                    Some(count) => count.0,
                    None => on_gpu(library, &model, table)
                        .map_err(|problem| Problem {
                            message: format!("{}; or say max_total_tokens", problem.message),
                            ..problem
                        })?
                        .kv_tokens_capacity(fraction),
                };
                service::cost(service, tokens)
            }
            None => on_gpu(library, &model, table)?,
        };
        let page_size = table.page_size;
        let tokens = match table.max_total_tokens {
            Some(count) => count.0,
            None => cost.kv_tokens_capacity(fraction),
        };
        let largest = cost.kv_tokens_capacity(1000);
        if table.service.is_none() && tokens > largest {
            return Err(Problem::at(
                "max_total_tokens",
                format!(
                    "max_total_tokens is {tokens}; {} on {} x {} has memory for {largest} tokens of KV beside the weights",
                    model.name, table.tp, table.gpu
                ),
            ));
        }
        let pages = |tokens: u64| u32::try_from(tokens / u64::from(page_size.max(1))).unwrap_or(u32::MAX);
        let gpu_pages = pages(tokens);
        if gpu_pages < 2 {
            return Err(Problem::at(
                "mem_fraction_static",
                format!(
                    "{} on {} x {} leaves room for {tokens} tokens of KV, less than two pages of {page_size}; \
                     raise mem_fraction_static or tp",
                    model.name, table.tp, table.gpu
                ),
            ));
        }
        let page_bytes = model.kv_bytes_per_token() * u64::from(page_size);
        let ratio = per_mille("hicache_ratio", table.hicache_ratio, 1_000.0)?;
        let host_pages = match table.hicache_size {
            Some(bytes) => u32::try_from(bytes.0 / page_bytes).unwrap_or(u32::MAX),
            None => u32::try_from(u64::from(gpu_pages) * ratio / 1000).unwrap_or(u32::MAX),
        };
        let default = KvConfig::default();
        let storage = table.hicache_storage.as_ref();
        let storage_link = match storage {
            Some(_) if ideal => timed(UNLIMITED),
            Some(storage) => {
                let disk = library.disk(&storage.disk).map_err(|error| named("disk", &error))?;
                let service_ps = 1_000_000_000_000 / disk.read_operations_per_second;
                let bytes_ps =
                    page_bytes.saturating_mul(1000) / (disk.read_bytes_per_second.get() / 1_000_000_000).max(1);
                LinkCost {
                    request_ns: disk.read_latency_ns,
                    descriptor_ps: service_ps.saturating_sub(bytes_ps),
                    descriptors_ahead: 0,
                    bytes_per_second: disk.read_bytes_per_second,
                    latency_ns: 0,
                }
            }
            None => default.storage_link,
        };
        let capacity = match table.prefetch_capacity {
            Some(share) => per_mille("prefetch_capacity", share, 1.0)? as u32,
            None => default.prefetch_capacity_per_mille,
        };
        let span = |span: &Option<crate::units::Span>, or: Duration| span.map_or(or, |span| span.0);
        let kv = KvConfig {
            page_size,
            page_bytes,
            gpu_pages,
            host_pages,
            root: namespace(&model, &table.dtype, page_size).root(),
            device_eviction: table.radix_eviction_policy,
            host_eviction: table.hicache_eviction_policy,
            host_policy: table.hicache_host_policy,
            write_policy: table.hicache_write_policy,
            write_through_hits: default.write_through_hits,
            prefetch_policy: table.hicache_storage_prefetch_policy,
            storage: storage.map_or(StorageMode::None, |storage| storage.mode),
            storage_pages_max: storage
                .and_then(|storage| storage.max_tokens)
                .map_or(u64::MAX, |count| count.0 / u64::from(page_size)),
            prefetch_threshold: table.prefetch_threshold.unwrap_or(default.prefetch_threshold),
            prefetch_timeout_base: span(&table.prefetch_timeout_base, default.prefetch_timeout_base),
            prefetch_timeout_per_ki_token: span(
                &table.prefetch_timeout_per_ki_token,
                default.prefetch_timeout_per_ki_token,
            ),
            prefetch_timeout_max: span(&table.prefetch_timeout_max, default.prefetch_timeout_max),
            prefetch_capacity_per_mille: capacity,
            load_back_threshold: table.load_back_threshold.unwrap_or(default.load_back_threshold),
            storage_link,
            host_link: if ideal { timed(UNLIMITED) } else { scaled(wires.host, table.tp) },
            fetch_by_cost: table.fetch_by_cost.unwrap_or(default.fetch_by_cost),
            fetch_bidirectional: table.fetch_bidirectional.unwrap_or(default.fetch_bidirectional),
            ..default
        };
        Ok(Self { table, cost, model, kv, ideal })
    }

    fn worker(&self, file: &File, id: u32, machine: u32, store: Option<u32>, wires: &Wires) -> WorkerSetup {
        let table = self.table;
        let sched = SchedConfig::default();
        let transfer = TransferConfig::default();
        let page_size = self.kv.page_size;
        let chunk = table.chunked_prefill_size.unwrap_or(sched.chunked_prefill_size);
        let path = |name: &str| PathSetup {
            links: self.links(id, name, scaled(wires.host, table.tp)),
            cost: self.plain(scaled(wires.host, table.tp)),
        };
        let wire = |name: &str, cost: LinkCost, fabric: Option<u64>| {
            let shared = fabric
                .filter(|_| !self.ideal)
                .map(|bytes_per_second| LinkSetup { name: "fabric".to_owned(), bytes_per_second });
            let mut out = self.links(id, &format!("{name}.out"), cost);
            out.extend(shared);
            WireSetup { out, into: self.links(id, &format!("{name}.in"), cost), cost: self.plain(cost) }
        };
        let config = WorkerConfig {
            worker: WorkerId(id),
            epoch: Epoch(0),
            mode: table.mode,
            seed: file.seed,
            kv: KvConfig { kv_events: file.router.as_ref().is_some_and(|router| router.kv_events), ..self.kv.clone() },
            sched: SchedConfig {
                policy: table.schedule_policy,
                chunked_prefill_size: chunk,
                max_running_requests: table.max_running_requests.unwrap_or(sched.max_running_requests),
                max_queued_requests: table.max_queued_requests.unwrap_or(sched.max_queued_requests),
                mixed_chunk: table.enable_mixed_chunk,
                overlap: !table.disable_overlap_schedule,
                reserve_steps: table.reserve_steps.unwrap_or(sched.reserve_steps),
                default_deadline: table.request_timeout.map_or(sched.default_deadline, |span| span.0),
                context_length: table
                    .context_length
                    .map_or(self.model.context_tokens_max, |count| u32::try_from(count.0).unwrap_or(u32::MAX)),
                ..sched
            },
            transfer: TransferConfig {
                backend: table.disaggregation_transfer_backend,
                layout: Layout {
                    page_size,
                    dtype: table.dtype.clone(),
                    layers: self.model.layers,
                    kv_heads: self.model.kv_heads,
                    head_dim: self.model.head_dim,
                    page_bytes: self.kv.page_bytes,
                    tp: table.tp,
                },
                layerwise: table.disaggregation_layerwise,
                bootstrap_timeout: table
                    .disaggregation_bootstrap_timeout
                    .map_or(transfer.bootstrap_timeout, |span| span.0),
                waiting_timeout: table.disaggregation_waiting_timeout.map_or(transfer.waiting_timeout, |span| span.0),
                heartbeat_interval: table
                    .disaggregation_heartbeat_interval
                    .map_or(transfer.heartbeat_interval, |span| span.0),
                retries_max: table.handoff_retries.unwrap_or(transfer.retries_max),
                ..transfer
            },
        };
        WorkerSetup {
            config,
            cost: self.cost.clone(),
            step: StepCost::Model,
            layers: self.model.layers,
            host: machine,
            copy_in: path("h2d"),
            copy_out: path("d2h"),
            near: wire("nvlink", scaled(wires.near, table.tp), None),
            far: wire("nic", scaled(wires.far, table.tp), wires.fabric),
            store,
            control_latency_ns: if self.ideal { 0 } else { wires.latency_ns },
            start: table.start.map_or(Instant::ZERO, |start| Instant::ZERO + start.0),
        }
    }

    fn plain(&self, cost: LinkCost) -> LinkCost {
        if self.ideal { timed(UNLIMITED) } else { cost }
    }

    /// The link of one worker's own hardware; an ideal one is no link at all.
    fn links(&self, id: u32, name: &str, cost: LinkCost) -> Vec<LinkSetup> {
        if self.ideal {
            return Vec::new();
        }
        vec![LinkSetup { name: format!("w{id}.{name}"), bytes_per_second: cost.bytes_per_second.get() }]
    }

    fn store(&self, library: &Library, storage: &Storage, index: usize) -> Result<StoreSetup, Problem> {
        let disk = if self.ideal {
            DiskSpec {
                read_bytes_per_second: UNLIMITED,
                write_bytes_per_second: UNLIMITED,
                read_iops: UNLIMITED,
                write_iops: UNLIMITED,
                read_latency_ns: 0,
                write_latency_ns: 0,
                queue_depth: 4096,
                fsync_ns: 0,
            }
        } else {
            let disk = library.disk(&storage.disk).map_err(|error| named("disk", &error))?;
            DiskSpec {
                read_bytes_per_second: disk.read_bytes_per_second.get(),
                write_bytes_per_second: disk.write_bytes_per_second.get(),
                read_iops: disk.read_operations_per_second.get(),
                write_iops: disk.write_operations_per_second.get(),
                read_latency_ns: disk.read_latency_ns,
                write_latency_ns: disk.write_latency_ns,
                queue_depth: disk.queue_depth.get(),
                fsync_ns: disk.fsync_ns,
            }
        };
        if self.kv.host_pages == 0 {
            return Err(Problem::at(
                "hicache_storage",
                "hicache_storage needs an L2: L3 is reached through it; set hicache_ratio or hicache_size",
            ));
        }
        Ok(StoreSetup {
            name: format!("store{index}"),
            query_ns: disk.read_latency_ns,
            disk,
            bytes_max: storage.capacity.map(|bytes| bytes.0),
        })
    }
}

/// A link of each of `tp` ranks, taken together.
/// The model on the GPUs of a worker.
fn on_gpu(library: &Library, model: &Model, table: &Worker) -> Result<Cost, Problem> {
    let hardware = library.gpu(&table.gpu).map_err(|error| named("gpu", &error))?;
    Cost::new(&hardware, model, table.tp)
        .map_err(|error| Problem::at("gpu", format!("{} on {} x {}: {error}", model.name, table.tp, table.gpu)))
}

pub(super) fn scaled(cost: LinkCost, tp: u32) -> LinkCost {
    let rate = cost.bytes_per_second.get().saturating_mul(u64::from(tp));
    LinkCost { bytes_per_second: NonZeroU64::new(rate).unwrap_or(cost.bytes_per_second), ..cost }
}

pub(super) fn namespace(model: &Model, dtype: &str, page_size: u32) -> Namespace {
    Namespace {
        model: model.name.clone(),
        dtype: dtype.to_owned(),
        page_size,
        layout: "page_first".to_owned(),
        ..Namespace::default()
    }
}

/// Checks what no worker can know of itself.
fn fits_together(workers: &[WorkerSetup]) -> Result<(), Problem> {
    if workers.iter().all(|worker| worker.config.mode == Mode::Prefill) {
        return Err(Problem::at("mode", "no worker can decode; add one of mode \"decode\" or \"unified\""));
    }
    let backends = |mode| {
        workers.iter().filter(move |worker| worker.config.mode == mode).map(|worker| worker.config.transfer.backend)
    };
    if backends(Mode::Prefill).any(|one| backends(Mode::Decode).any(|other| one != other)) {
        return Err(Problem::at(
            "disaggregation_transfer_backend",
            "prefill and decode workers must have the same disaggregation_transfer_backend: \
             one side would wait for bytes that the other never sends",
        ));
    }
    Ok(())
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Self::at(error.key(), error.to_string())
    }
}

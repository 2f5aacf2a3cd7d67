//! From options and a model to the configuration of a worker: what was chosen, and why.

use std::num::NonZeroU64;
use std::time::Duration;

use pd_core::config::{
    HostPolicy, KvConfig, Mode, SchedConfig, StorageMode, TransferBackend, TransferConfig, WorkerConfig,
};
use pd_core::cost::LinkCost;
use pd_core::id::{Epoch, WorkerId};
use pd_core::key::Namespace;
use pd_core::message::Layout;
use pd_gpu::Geometry;

use super::options::{Backend, Options};
use super::storage::default_size;

/// What a worker is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) config: WorkerConfig,
    pub(crate) namespace: Namespace,
    /// Bytes of a page in memory.
    pub(crate) page_bytes: usize,
    /// Most bytes of L3.
    pub(crate) storage_bytes: u64,
    /// Lines for the banner: what, how much, why.
    pub(crate) choices: Vec<(&'static str, String)>,
}

/// Who a worker is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) worker: WorkerId,
    pub(crate) epoch: Epoch,
}

/// What there is to spare.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Of the machine's memory.
    pub(crate) host: u64,
    /// Of a GPU's, if KV is there.
    pub(crate) device: Option<u64>,
}

/// Makes the plan of a worker. `storage_reads` are the bytes per second at which L3 was measured to be read.
///
/// # Errors
/// Which option cannot be met, and what would do.
pub(crate) fn plan(
    options: &Options,
    identity: Identity,
    geometry: &Geometry,
    fingerprint: &str,
    memory: Memory,
    storage_reads: Option<u64>,
) -> Result<Plan, String> {
    let page_size = geometry.page_size;
    let page_bytes = geometry.page_bytes(page_size);
    let context = match options.context_length {
        Some(0) => return Err("--context-length is 0; it must be at least 1".into()),
        Some(length) if length > geometry.context => {
            return Err(format!(
                "--context-length is {length}; the model was made for at most {} tokens",
                geometry.context
            ));
        }
        Some(length) => length,
        None => geometry.context,
    };
    let mut choices = Vec::new();
    let (device_pages, why) = device_pages(options, geometry, context, memory)?;
    choices.push(("L1", tier(u64::from(device_pages), page_size, page_bytes, &why)));
    let (host_pages, why) = host_pages(options, device_pages, page_bytes, memory)?;
    if host_pages > 0 {
        choices.push(("L2", tier(u64::from(host_pages), page_size, page_bytes, &why)));
    } else {
        choices.push(("L2", format!("none ({why})")));
    }
    let of_host = u64::from(host_pages) + if memory.device.is_none() { u64::from(device_pages) } else { 0 };
    let wanted = of_host * page_bytes as u64;
    if wanted > memory.host {
        let tiers = if memory.device.is_none() { "L1 and L2 need" } else { "L2 needs" };
        return Err(format!(
            "{tiers} {}, the machine has {} to spare: lower --max-total-tokens, --hicache-size or --hicache-ratio",
            bytes(wanted),
            bytes(memory.host)
        ));
    }
    let storage_bytes = options.hicache_storage_size.unwrap_or(default_size()).0;
    let storage = match &options.hicache_storage_dir {
        Some(dir) => {
            choices.push(("L3", format!("{}, at most {}", dir.display(), bytes(storage_bytes))));
            if host_pages == 0 {
                return Err(
                    "L3 is reached through L2, and there is none: raise --hicache-ratio or --hicache-size".into()
                );
            }
            StorageMode::Shared
        }
        None => {
            choices.push(("L3", "none (--hicache-storage-dir names no folder)".into()));
            // With an L2, one can be attached later.
            if host_pages > 0 { StorageMode::Shared } else { StorageMode::None }
        }
    };
    let namespace = Namespace {
        model: fingerprint.to_owned(),
        dtype: geometry.kv.to_string(),
        page_size,
        layout: Geometry::LAYOUT.to_owned(),
        ..Namespace::default()
    };
    let is_gpu = memory.device.is_some();
    if let Some(rate) = storage_reads {
        choices.push(("L3 reads", format!("{}/s, measured: what a fetch is weighed with", bytes(rate))));
    }
    let storage_bytes_per_second = storage_reads.unwrap_or(if is_gpu { 4_000_000_000 } else { 1_500_000_000 });
    let kv = KvConfig::default();
    let sched = SchedConfig::default();
    let transfer = TransferConfig::default();
    let config = WorkerConfig {
        worker: identity.worker,
        epoch: identity.epoch,
        mode: options.mode.unwrap_or_default(),
        seed: options.random_seed.unwrap_or(0),
        kv: KvConfig {
            page_size,
            page_bytes: page_bytes as u64,
            gpu_pages: device_pages,
            host_pages,
            root: namespace.root(),
            device_eviction: options.radix_eviction_policy.unwrap_or(kv.device_eviction),
            host_policy: options.hicache_host_policy.unwrap_or(HostPolicy::Inclusive),
            write_policy: options.hicache_write_policy.unwrap_or(kv.write_policy),
            prefetch_policy: options.hicache_storage_prefetch_policy.unwrap_or(kv.prefetch_policy),
            storage,
            kv_events: options.enable_kv_events.unwrap_or(false),
            prefetch_threshold: options.prefetch_threshold.unwrap_or(kv.prefetch_threshold),
            storage_link: link(50_000, storage_bytes_per_second),
            host_link: if is_gpu { link(10_000, 50_000_000_000) } else { link(2_000, 5_000_000_000) },
            ..kv
        },
        sched: SchedConfig {
            policy: options.schedule_policy.unwrap_or(sched.policy),
            chunked_prefill_size: options.chunked_prefill_size.unwrap_or(if is_gpu {
                CUDA_CHUNK_TOKENS
            } else {
                CHUNK_TOKENS
            }),
            max_running_requests: options.max_running_requests.unwrap_or(if is_gpu {
                CUDA_RUNNING_MAX
            } else {
                RUNNING_MAX
            }),
            max_queued_requests: options.max_queued_requests.unwrap_or(QUEUED_MAX),
            mixed_chunk: options.enable_mixed_chunk.unwrap_or(sched.mixed_chunk),
            overlap: !options.disable_overlap_schedule.unwrap_or(false),
            default_deadline: options.request_timeout.map_or(sched.default_deadline, |span| span.0),
            context_length: context,
            ..sched
        },
        transfer: TransferConfig {
            backend: match options.disaggregation_transfer_backend.unwrap_or_default() {
                Backend::Fake => TransferBackend::Fake,
                Backend::Auto | Backend::Tcp | Backend::Shm => TransferBackend::Wire,
            },
            layout: Layout {
                page_size,
                dtype: geometry.kv.to_string(),
                layers: geometry.layers,
                kv_heads: geometry.kv_heads,
                head_dim: geometry.head_dim,
                page_bytes: page_bytes as u64,
                tp: 1,
            },
            // Layers are computed as fast as they could be sent: chunks are enough.
            layerwise: false,
            bootstrap_timeout: options.disaggregation_bootstrap_timeout.map_or(BOOTSTRAP_TIMEOUT, |span| span.0),
            waiting_timeout: options.disaggregation_waiting_timeout.map_or(transfer.waiting_timeout, |span| span.0),
            // A router that sees a prefill fail sends the request anew; nobody else has its sampling.
            retries_max: 0,
            ..transfer
        },
    };
    config.check().map_err(|error| error.to_string())?;
    choices.push((
        "KV",
        format!("{} a token, {} a page of {page_size}", bytes(geometry.token_bytes() as u64), bytes(page_bytes as u64)),
    ));
    choices.push(("context", format!("{context} tokens")));
    Ok(Plan { config, namespace, page_bytes, storage_bytes, choices })
}

fn device_pages(options: &Options, geometry: &Geometry, context: u32, memory: Memory) -> Result<(u32, String), String> {
    let page_size = u64::from(geometry.page_size);
    let page_bytes = geometry.page_bytes(geometry.page_size) as u64;
    let (tokens, why) = match (options.max_total_tokens, memory.device) {
        (Some(count), Some(room)) if count.0 / page_size > room / page_bytes => {
            return Err(format!(
                "--max-total-tokens is {}: its KV needs {}, the GPU has {} left for it",
                count.0,
                bytes(count.0 / page_size * page_bytes),
                bytes(room)
            ));
        }
        (Some(count), _) => (count.0, "--max-total-tokens".to_owned()),
        (None, Some(room)) => {
            let fraction = options.mem_fraction_static.unwrap_or(MEM_FRACTION_STATIC);
            (room / page_bytes * page_size, format!("what {fraction} of the GPU's memory leaves beside the model"))
        }
        (None, None) => {
            let fit = memory.host / 4 / page_bytes * page_size;
            let enough = u64::from(context) * CONTEXTS;
            if fit < enough {
                (fit, "a quarter of the free memory".to_owned())
            } else {
                (enough, format!("{CONTEXTS} contexts; --max-total-tokens changes it"))
            }
        }
    };
    let pages = u32::try_from(tokens / page_size).map_err(|_| format!("{tokens} tokens of L1 are too many pages"))?;
    if let Some(room) = memory.device.filter(|_| pages < 2) {
        return Err(format!(
            "the GPU has {} left for KV, and a page needs {}: raise --mem-fraction-static or free memory of the GPU",
            bytes(room),
            bytes(page_bytes)
        ));
    }
    if pages < 2 {
        return Err(format!("--max-total-tokens is {tokens}: at least two pages of {page_size} tokens are needed"));
    }
    Ok((pages, why))
}

fn host_pages(
    options: &Options,
    device_pages: u32,
    page_bytes: usize,
    memory: Memory,
) -> Result<(u32, String), String> {
    if let Some(size) = options.hicache_size {
        let pages =
            u32::try_from(size.0 / page_bytes as u64).map_err(|_| "--hicache-size: too many pages".to_owned())?;
        return Ok((pages, "--hicache-size".into()));
    }
    let (ratio, why) = match options.hicache_ratio {
        Some(ratio) => (ratio, "--hicache-ratio"),
        None if options.hicache_storage_dir.is_some() && memory.device.is_some() => {
            // Memory that the GPU copies from and to is pinned at the start, which takes its time.
            let size = CUDA_HOST_BYTES.min(memory.host / 4);
            return Ok(((size / page_bytes as u64) as u32, "as there is an L3; --hicache-size changes it".into()));
        }
        None if options.hicache_storage_dir.is_some() => (2.0, "twice L1, as there is an L3"),
        None => (0.0, "--hicache-ratio is 0"),
    };
    if !(0.0..=1000.0).contains(&ratio) {
        return Err(format!("--hicache-ratio is {ratio}; it must be between 0 and 1000"));
    }
    Ok(((f64::from(device_pages) * ratio) as u32, why.into()))
}

fn tier(pages: u64, page_size: u32, page_bytes: usize, why: &str) -> String {
    let tokens = pages * u64::from(page_size);
    format!("{tokens} tokens, {pages} pages, {} ({why})", bytes(pages * page_bytes as u64))
}

/// In the largest unit that leaves a number above one.
pub(crate) fn bytes(count: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| count >= *unit) {
        Some((name, unit)) if count.is_multiple_of(unit) => format!("{} {name}", count / unit),
        Some((name, unit)) => format!("{:.1} {name}", count as f64 / unit as f64),
        None => format!("{count} B"),
    }
}

fn link(request_ns: u64, bytes_per_second: u64) -> LinkCost {
    LinkCost {
        request_ns,
        descriptor_ps: 0,
        descriptors_ahead: 0,
        bytes_per_second: NonZeroU64::new(bytes_per_second).unwrap_or(NonZeroU64::MIN),
        latency_ns: 0,
    }
}

/// True for a worker that hands over or takes over.
pub(crate) const fn is_disaggregated(mode: Mode) -> bool {
    !matches!(mode, Mode::Unified)
}

/// Most prompt tokens of one forward: a CPU computes them in well below a second.
const CHUNK_TOKENS: u32 = 512;
/// And where a GPU computes.
pub(crate) const CUDA_CHUNK_TOKENS: u32 = 8192;
const RUNNING_MAX: u32 = 64;
/// And where a GPU computes.
pub(crate) const CUDA_RUNNING_MAX: u32 = 512;
/// Share of a GPU's memory that a worker takes. SGLang's lies between 0.8 and 0.9.
pub(crate) const MEM_FRACTION_STATIC: f64 = 0.88;
/// L2 of a GPU's worker unless said otherwise.
const CUDA_HOST_BYTES: u64 = 16 << 30;
const QUEUED_MAX: u32 = 1024;
/// What L1 holds by default, if there is memory.
const CONTEXTS: u64 = 8;
/// Longest wait for the other end to show up.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(30);

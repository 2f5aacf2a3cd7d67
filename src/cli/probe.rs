//! `pd probe`: flags, the page, the files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use pd_core::cost::{Cost, Hardware, Model as Shape};
use pd_gpu::Weights;
use pd_gpu::cuda::Report;
use pd_net::store;
use pd_sim::calibrate::{Measured, Step};
use pd_sim::hardware::{Kind, to_toml};
use pd_sync::Arena;
use serde::Serialize;

use super::process::ended;
use crate::probe::copies::{self, Series};
use crate::probe::shape;
use crate::probe::steps::{self, Grid, Limits};
use crate::progress::bar;
use crate::serve::engine::{Loaded, Ready};
use crate::serve::model::{load, name, open};
use crate::serve::options::{Device, LoadFormat, Options};
use crate::serve::plan::{CUDA_CHUNK_TOKENS, CUDA_RUNNING_MAX, MEM_FRACTION_STATIC, bytes};

use crate::serve::worker::free_memory;
use crate::settings::choice;

/// Measure this machine for the simulator and the router: steps, copies, the way to a second GPU, the disk
///
/// Steps of the engine over a grid of batches, contexts, chunks and cached prefixes become a table for this model and, by
/// least squares, constants for others; steps that are not of the grid tell how far that is off. The files that are
/// written are named by scenarios in place of those of the library (`model`, `gpu`, `network.host_link`, `network.near`, the
/// `disk` of `hicache_storage`), and by `pd router --hardware`. A GPU takes about a minute. The machine should have nothing
/// else to do.
#[derive(Debug, Args)]
pub(super) struct Probe {
    /// Model: a Hugging Face folder; without one, the tiny model inside pd.
    #[arg(long, visible_alias = "model", env = "PD_MODEL_PATH", value_name = "DIR")]
    model_path: Option<PathBuf>,
    /// auto: the folder's weights; dummy: random ones from its config.json, which cost the same.
    #[arg(long, env = "PD_LOAD_FORMAT", value_parser = choice::<LoadFormat>, value_name = "auto|dummy")]
    load_format: Option<LoadFormat>,
    /// As for pd serve.
    #[arg(long, env = "PD_DEVICE", value_parser = choice::<Device>, value_name = "auto|cpu|cuda|cuda:N")]
    device: Option<Device>,
    /// Tokens per page.
    #[arg(long, env = "PD_PAGE_SIZE", value_name = "TOKENS")]
    page_size: Option<u32>,
    /// Measure the disk under this folder, too, with files of 4 GiB that are removed again.
    #[arg(long, env = "PD_HICACHE_STORAGE_DIR", value_name = "DIR")]
    hicache_storage_dir: Option<PathBuf>,
    /// Name of the hardware in the files; the device's by default.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Folder for the files, which is made if there is none.
    #[arg(long, value_name = "DIR", default_value = "probe")]
    output: PathBuf,
}

/// All that was measured.
struct Found {
    grid: Grid,
    held_out: Vec<Step>,
    copies: Vec<Series>,
    measured: Measured,
}

impl Probe {
    pub(super) fn run(self) -> ExitCode {
        ended(self.probe())
    }

    fn probe(&self) -> Result<(), String> {
        let begin = Instant::now();
        let options = Options {
            model_path: self.model_path.clone(),
            load_format: self.load_format,
            device: self.device,
            page_size: self.page_size,
            ..Options::default()
        };
        // What cannot be written is said before minutes of measuring.
        let output = self.output.display();
        fs::create_dir_all(&self.output).map_err(|error| format!("--output: {output} cannot be made: {error}"))?;
        let (weights, _) = open(&options)?;
        let loaded = load(&options, &weights)?;
        let device = loaded.device();
        println!("pd {} probes {device}", env!("CARGO_PKG_VERSION"));
        let hardware_name = self.name.clone().unwrap_or_else(|| slug(&device));
        let found = self.measure(&options, &weights, &loaded, &hardware_name)?;
        let hardware = found.measured.hardware().map_err(|error| error.to_string())?;
        print_steps(&found.grid);
        print_errors(&hardware, &found)?;
        let about = format!("{device}, measured by pd {} probe", env!("CARGO_PKG_VERSION"));
        self.write("gpu", Kind::Gpu, &about, &hardware)?;
        self.write(
            "model",
            Kind::Model,
            &format!("{}, as it was probed", found.measured.model.name),
            &found.measured.model,
        )?;
        for series in &found.copies {
            println!(
                "{:<18} {:.1} GB/s for {} scattered pages of {}, {:.1} us for one",
                series.what,
                series.best_bytes_per_second() / 1e9,
                series.points.last().map_or(0, |point| point[0]),
                bytes(series.page_bytes),
                series.points.first().map_or(0.0, |point| point[1] as f64 / 1e3),
            );
        }
        // A link of the simulator has one rate: that of its slower direction.
        let slower =
            found.copies[..2].iter().min_by(|a, b| a.best_bytes_per_second().total_cmp(&b.best_bytes_per_second()));
        if let Some(series) = slower {
            self.write("host_link", Kind::Link, &about, &series.link(&format!("{hardware_name}_host")))?;
        }
        if let Some(series) = found.copies.get(2) {
            self.write("near", Kind::Link, &about, &series.link(&format!("{hardware_name}_near")))?;
        }
        if let Some(folder) = &self.hicache_storage_dir {
            self.disk(folder, &hardware_name)?;
        }
        println!("{:<18} {:.0} s, files in {}", "done", begin.elapsed().as_secs_f64(), self.output.display());
        Ok(())
    }

    fn measure(&self, options: &Options, weights: &Weights, loaded: &Loaded, name_of: &str) -> Result<Found, String> {
        let engine = loaded.engine()?;
        let geometry = engine.geometry().clone();
        let memory = engine.device_bytes(MEM_FRACTION_STATIC)?;
        let free = engine.device_bytes(1.0)?;
        let page_bytes = geometry.page_bytes(geometry.page_size);
        let (limits, pages) = match memory {
            Some(memory) => {
                let limits = Limits { sequences: CUDA_RUNNING_MAX, chunk: CUDA_CHUNK_TOKENS, step: CUDA_STEP };
                (limits, u32::try_from(memory / page_bytes as u64).unwrap_or(u32::MAX))
            }
            None => {
                let tokens = CPU_TOKENS.min(free_memory() / 4 / (page_bytes / geometry.page_size as usize) as u64);
                (
                    Limits { sequences: CPU_SEQUENCES, chunk: CPU_CHUNK, step: CPU_STEP },
                    tokens as u32 / geometry.page_size,
                )
            }
        };
        if pages < 2 {
            return Err(format!("there is no memory for two pages of {}", bytes(page_bytes as u64)));
        }
        let arena = || Arena::new(page_bytes, pages).map(Arc::new).map_err(|error| error.to_string());
        let mut ready = engine.with_pages(pages, None, arena)?;
        let bar = bar("probe", "{spinner} {msg} ({elapsed})");
        let tell = |what: String| bar.set_message(what);
        let (grid, held_out) = {
            let mut trial = ready.trial();
            let grid = steps::grid(&mut trial, limits, &tell)?;
            let held_out = steps::held_out(&mut trial, limits, &grid, &tell)?;
            (grid, held_out)
        };
        tell("copies".into());
        let mut copies = copies::host(&ready)?.to_vec();
        if let Ready::Cuda { pool, .. } = &ready
            && let Loaded::Cuda { model, .. } = loaded
        {
            let own = model.context().ordinal();
            let gpus = Report::make().gpus;
            let found = gpus.get(own as usize).and_then(|gpu| gpu.as_ref().ok());
            if let Some(peer) = found.and_then(|gpu| gpu.peers.first().copied()) {
                tell(format!("copies to GPU {peer}"));
                copies.push(copies::peer(pool, peer)?);
            }
        }
        bar.finish_and_clear();
        let mut shape = shape(&name(options), weights.config(), geometry.kv);
        if memory.is_none() {
            // A CPU keeps weights as they came.
            shape.dtype_bytes =
                u32::try_from(weights.bytes().div_ceil(shape.weights().max(1))).unwrap_or(4).clamp(1, 4);
        }
        let (hbm_bytes, reserved_bytes) = match (loaded, free) {
            (Loaded::Cuda { model, .. }, Some(free)) => {
                let total = model.context().memory().map_err(|error| error.to_string())?.1;
                (total, total.saturating_sub(free).saturating_sub(model.bytes()))
            }
            (Loaded::Cpu { .. } | Loaded::Cuda { .. }, _) => (free_memory().saturating_add(shape.weights_bytes()), 0),
        };
        let measured = Measured {
            name: name_of.to_owned(),
            model: shape,
            hbm_bytes,
            reserved_bytes,
            graph_batches: ready.graph_batches(limits.sequences),
            decodes: grid.decodes.clone(),
            prefills: grid.prefills.clone(),
            heads: grid.heads.clone(),
            hosts: grid.hosts.clone(),
        };
        Ok(Found { grid, held_out, copies, measured })
    }
}

impl Probe {
    fn disk(&self, folder: &Path, hardware_name: &str) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("the disk of {}: {error}", folder.display());
        let (disk, is_direct) = store::measure(folder, &format!("{hardware_name}_disk"), DISK_BYTES).map_err(failed)?;
        println!(
            "{:<18} reads {}/s, writes {}/s, {} and {} small ones a second, one read {:.0} us, sync {:.0} us{}",
            "disk",
            bytes(disk.read_bytes_per_second.get()),
            bytes(disk.write_bytes_per_second.get()),
            disk.read_operations_per_second,
            disk.write_operations_per_second,
            disk.read_latency_ns as f64 / 1e3,
            disk.fsync_ns as f64 / 1e3,
            if is_direct { "" } else { " (through the page cache: the file system has no direct IO)" },
        );
        let about = format!("{}, measured by pd {} probe", folder.display(), env!("CARGO_PKG_VERSION"));
        self.write("disk", Kind::Disk, &about, &disk)
    }

    fn write<T: Serialize>(&self, file: &str, kind: Kind, about: &str, values: &T) -> Result<(), String> {
        let path = self.output.join(format!("{file}.toml"));
        let text = to_toml(kind, about, values).map_err(|error| format!("{}: {error}", path.display()))?;
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// The measured grids in milliseconds.
fn print_steps(grid: &Grid) {
    let decodes = grid.decodes.iter().map(|point| (point.sequences, point.context, point.ns)).collect();
    print_table("decode step, ms: sequences (rows) of so many tokens (columns)", decodes);
    let prefills = grid.prefills.iter().map(|point| (point.cached, point.new, point.ns)).collect();
    print_table("chunk, ms: behind cached tokens (rows) so many new ones (columns)", prefills);
    let last = |points: &[[u64; 2]]| points.last().map_or((0, 0.0), |[count, ns]| (*count, *ns as f64 / 1e6));
    let ((rows, logits), (sequences, host)) = (last(&grid.heads), last(&grid.hosts));
    println!("{:<18} {logits:.2} ms for {rows} rows", "logits");
    println!("{:<18} {host:.2} ms of the CPU for a step of {sequences} sequences", "host");
}

fn print_table(title: &str, mut points: Vec<(u32, u32, u64)>) {
    println!("{title}");
    points.sort_unstable();
    let mut columns: Vec<u32> = points.iter().map(|point| point.1).collect();
    columns.sort_unstable();
    columns.dedup();
    let cells: String = columns.iter().map(|column| format!("{column:>9}")).collect();
    println!("{:>9}{cells}", "");
    for row in points.chunk_by(|one, next| one.0 == next.0) {
        let of = |column: &u32| row.iter().find(|point| point.1 == *column);
        let cells: String = columns
            .iter()
            .map(|column| of(column).map_or(format!("{:>9}", "-"), |point| format!("{:>9.2}", point.2 as f64 / 1e6)))
            .collect();
        println!("{:>9}{cells}", row[0].0);
    }
}

/// How far tables and constants are off, on steps that neither has seen.
fn print_errors(hardware: &Hardware, found: &Found) -> Result<(), String> {
    let shape: &Shape = &found.measured.model;
    let bare = Hardware { tables: Vec::new(), ..hardware.clone() };
    for (what, hardware) in [("tables", hardware), ("constants alone", &bare)] {
        let cost = Cost::new(hardware, shape, 1).map_err(|error| error.to_string())?;
        for (kind, is_decode) in [("decode", true), ("prefill", false)] {
            let steps = found.held_out.iter().filter(|step| step.chunks.is_empty() == is_decode);
            let mut errors: Vec<f64> = steps.map(|step| step.error(&cost) * 100.0).collect();
            errors.sort_by(|one, other| one.abs().total_cmp(&other.abs()));
            let at = |share: f64| errors.get((errors.len().saturating_sub(1) as f64 * share) as usize).unwrap_or(&0.0);
            println!(
                "{what:<18} {} {kind} steps held out: median error {:.1} %, 90 % within {:.1} %, worst {:+.1} %",
                errors.len(),
                at(0.5).abs(),
                at(0.9).abs(),
                at(1.0)
            );
        }
    }
    Ok(())
}

/// A name for files: small letters, digits and underscores.
fn slug(device: &str) -> String {
    let name = device.rsplit(", ").next().unwrap_or(device).to_lowercase();
    name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect()
}

/// What of KV there is to measure with on a CPU.
const CPU_TOKENS: u64 = 1 << 17;
const CPU_SEQUENCES: u32 = 64;
const CPU_CHUNK: u32 = 512;
const CPU_STEP: Duration = Duration::from_millis(250);
/// A chunk of 8,192 tokens behind 65,536 takes about 1.5 s of Llama-3.1-8B on an H200.
const CUDA_STEP: Duration = Duration::from_millis(2_500);
const DISK_BYTES: u64 = 4 << 30;

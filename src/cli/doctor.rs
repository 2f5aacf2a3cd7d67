//! `pd doctor`: what this machine has for pd, what works, what does not, and what to do.

use std::process::ExitCode;

use clap::Args;
use pd_gpu::cpu::Isa;
use pd_gpu::cuda::{CudaError, GpuReport, Report};

use crate::serve::plan::bytes;

/// Look at this machine: CPU, memory, GPUs, their libraries and links, and what of pd works here
#[derive(Debug, Args)]
pub(super) struct Doctor {}

impl Doctor {
    /// 0 if what is there works; 1 if there is a GPU that pd cannot use.
    pub(super) fn run(self) -> ExitCode {
        let Self {} = self;
        let report = Report::make();
        println!("pd        {}", env!("CARGO_PKG_VERSION"));
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        println!("CPU       {threads} threads, kernels for {:?}", Isa::best());
        println!("memory    {} available", bytes(crate::serve::worker::free_memory()));
        println!("pinned    {}", pinned_limit());
        let library = |name: &str, found: &Result<String, CudaError>| match found {
            Ok(what) => println!("{name:<9} {what}"),
            Err(error) => println!("{name:<9} {error}"),
        };
        library("driver", &report.driver);
        library("NVRTC", &report.nvrtc);
        library("cuBLASLt", &report.blas);
        for (ordinal, gpu) in report.gpus.iter().enumerate() {
            match gpu {
                Ok(gpu) => print_gpu(ordinal, gpu),
                Err(error) => println!("GPU {ordinal}     {error}"),
            }
        }
        let problems = report.problems();
        println!();
        println!("the CPU engine, the simulator, the router and all transports on this host work");
        match (report.gpus.len(), problems.as_slice()) {
            (0, _) => println!("the GPU engine has no GPU: `pd serve` computes on the CPU"),
            (_, []) => println!("the GPU engine works: `pd serve --model-path DIR` takes it"),
            (_, problems) => {
                println!("the GPU engine does not work:");
                problems.iter().for_each(|problem| println!("  - {problem}"));
                return ExitCode::FAILURE;
            }
        }
        ExitCode::SUCCESS
    }
}

fn print_gpu(ordinal: usize, gpu: &GpuReport) {
    let GpuReport { name, capability, multiprocessors, free, total, peers } = gpu;
    println!(
        "GPU {ordinal}     {name}, compute capability {}.{}, {multiprocessors} multiprocessors, {} free of {}",
        capability.0,
        capability.1,
        bytes(*free),
        bytes(*total)
    );
    if total - free > total / 20 {
        println!("          {} are in use by other processes: see nvidia-smi", bytes(total - free));
    }
    if !peers.is_empty() {
        let list: Vec<String> = peers.iter().map(ToString::to_string).collect();
        println!("          reaches the memory of GPU {} directly", list.join(", "));
    }
}

/// What the system lets a process pin.
fn pinned_limit() -> String {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    match line.and_then(|line| line.split_whitespace().next()) {
        Some("unlimited") => "any amount may be pinned".to_owned(),
        Some(limit) => match limit.parse() {
            Ok(limit) => {
                format!("{} may be locked (ulimit -l); the NVIDIA driver does not count L2 towards it", bytes(limit))
            }
            Err(_) => format!("limit {limit}"),
        },
        None => "the system does not say how much may be pinned".to_owned(),
    }
}

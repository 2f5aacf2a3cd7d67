//! What there is for the engine on this machine, found without starting anything large.

use super::compile::least_capability;
use super::driver::{self, Context};
use super::error::CudaError;
use super::library;

/// Libraries and GPUs.
#[derive(Debug)]
pub struct Report {
    /// The driver: its library, and the CUDA version that it speaks.
    pub driver: Result<String, CudaError>,
    /// The compiler of kernels.
    pub nvrtc: Result<String, CudaError>,
    /// The library of matrix products.
    pub blas: Result<String, CudaError>,
    /// The GPUs that the driver shows.
    pub gpus: Vec<Result<GpuReport, CudaError>>,
}

/// One GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GpuReport {
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes that nobody uses.
    pub free: u64,
    /// Bytes of memory.
    pub total: u64,
    /// GPUs whose memory it reaches directly.
    pub peers: Vec<u32>,
}

impl Report {
    /// Looks.
    #[must_use]
    pub fn make() -> Self {
        let driver = library::driver().and_then(|found| {
            let version = Context::driver_version()?;
            Ok(format!("{}, CUDA {}.{}", found.path, version / 1000, version % 1000 / 10))
        });
        let path = |found: Result<&'static library::Found, CudaError>| found.map(|found| found.path.clone());
        let count = driver::devices().unwrap_or(0);
        let gpus = (0..count).map(|ordinal| GpuReport::make(ordinal, count)).collect();
        Self { driver, nvrtc: path(library::nvrtc()), blas: path(library::blas()), gpus }
    }

    /// What keeps the engine from working, where there is a GPU.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let libraries = [&self.driver, &self.nvrtc, &self.blas].into_iter().filter_map(|found| found.as_ref().err());
        let mut problems: Vec<String> = libraries.map(ToString::to_string).collect();
        for (ordinal, gpu) in self.gpus.iter().enumerate() {
            match gpu {
                Ok(gpu) if gpu.capability < least_capability() => {
                    let (major, minor) = gpu.capability;
                    problems.push(format!(
                        "GPU {ordinal}, {}, has compute capability {major}.{minor}; the kernels need {}.{}",
                        gpu.name,
                        least_capability().0,
                        least_capability().1
                    ));
                }
                Ok(_) => {}
                Err(error) => problems.push(format!("GPU {ordinal}: {error}")),
            }
        }
        problems
    }
}

impl GpuReport {
    fn make(ordinal: u32, count: u32) -> Result<Self, CudaError> {
        let context = Context::open(ordinal)?;
        let (free, total) = context.memory()?;
        let others = (0..count).filter(|other| *other != ordinal);
        let peers = others.filter(|other| context.reaches(*other).unwrap_or(false)).collect();
        Ok(Self {
            name: context.name.clone(),
            capability: context.capability,
            multiprocessors: context.multiprocessors,
            free,
            total,
            peers,
        })
    }
}

//! Copies of pages: between a device and the host's memory, and to a second GPU.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

use pd_core::cost::Link;
use pd_core::rng::{Rng, Stream};
use pd_gpu::cuda::{CudaModel, CudaOptions, CudaPool};
use pd_gpu::{CudaEngine, Weights};
use pd_sync::{Arena, Device};

use crate::serve::engine::Ready;
use crate::serve::tiny;

/// Times of copies of so many scattered pages at once.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) what: &'static str,
    pub(crate) page_bytes: u64,
    /// `[pages, ns]`, the best of some.
    pub(crate) points: Vec<[u64; 2]>,
}

impl Series {
    fn measure(
        what: &'static str,
        page_bytes: u64,
        pages_max: u32,
        mut copy: impl FnMut(&[(u32, u32)]) -> Result<(), String>,
    ) -> Result<Self, String> {
        let mut rng = Rng::new(0, Stream::Probe, 3);
        let mut shuffled = || {
            let mut pages: Vec<u32> = (0..pages_max).collect();
            rng.shuffle(&mut pages);
            pages
        };
        let pairs: Vec<(u32, u32)> = shuffled().into_iter().zip(shuffled()).collect();
        let mut points = Vec::new();
        let mut count = 1;
        while count <= pages_max {
            let mut best = u64::MAX;
            for _ in 0..TRIALS {
                let begin = Instant::now();
                copy(&pairs[..count as usize])?;
                best = best.min(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
            points.push([u64::from(count), best]);
            count *= 4;
        }
        Ok(Self { what, page_bytes, points })
    }

    /// Bytes per second of the largest copy, all in all.
    pub(crate) fn best_bytes_per_second(&self) -> f64 {
        self.points.last().map_or(0.0, |[pages, ns]| (pages * self.page_bytes) as f64 / (*ns).max(1) as f64 * 1e9)
    }

    /// The line through the smallest copy and the largest.
    pub(crate) fn link(&self, name: &str) -> Link {
        let ([few, short], [many, long]) = match (self.points.first(), self.points.last()) {
            (Some(first), Some(last)) => (*first, *last),
            _ => ([1, 1], [1, 1]),
        };
        let bytes = (many - few) * self.page_bytes;
        let rate = if long > short { bytes as f64 / (long - short) as f64 * 1e9 } else { self.best_bytes_per_second() };
        let bytes_per_second = NonZeroU64::new(rate as u64).unwrap_or(NonZeroU64::MIN);
        let alone_ns = (few * self.page_bytes) as f64 / rate.max(1.0) * 1e9;
        Link {
            name: name.to_owned(),
            request_ns: short.saturating_sub(alone_ns as u64),
            // A page is one piece, so that what a piece costs is part of what its bytes do.
            descriptor_ps: 0,
            descriptors_ahead: 0,
            bytes_per_second,
            latency_ns: 0,
        }
    }
}

/// Between L1 and memory of the host, there and back.
///
/// # Errors
/// What there is no memory for, or what the GPU says.
pub(crate) fn host(ready: &Ready) -> Result<[Series; 2], String> {
    let device = ready.device();
    let page_bytes = device.page_bytes();
    let pages = device.pages().min((COPY_BYTES / page_bytes.max(1)) as u32).max(1);
    let arena = Arc::new(Arena::new(page_bytes, pages).map_err(|error| error.to_string())?);
    let lanes = ready.copy_lanes(&arena)?;
    let series = |what, is_back: bool| {
        Series::measure(what, page_bytes as u64, pages, |pairs| match &lanes {
            Some(lanes) => lanes[usize::from(!is_back)].copy(pairs, is_back).map_err(|error| error.to_string()),
            None => pairs.iter().try_for_each(|(near, far)| {
                let copied = if is_back {
                    arena.read(*far).and_then(|from| device.write(*near).map(|mut to| to.copy_from_slice(&from)))
                } else {
                    device.read(*near).and_then(|from| arena.write(*far).map(|mut to| to.copy_from_slice(&from)))
                };
                copied.map_err(|_| "a page of a trial is held".to_owned())
            }),
        })
    };
    Ok([series("L2 to L1", true)?, series("L1 to L2", false)?])
}

/// From the pages of one GPU to those of another one.
///
/// # Errors
/// What the GPUs say; that they do not reach each other, too.
pub(crate) fn peer(pool: &Arc<CudaPool>, ordinal: u32) -> Result<Series, String> {
    // A small model's pages are as good as any: what counts is how many bytes they are in all.
    let weights = Weights::open(&tiny::source()).map_err(|error| error.to_string())?;
    let model = CudaModel::load(ordinal, &weights).map_err(|error| error.to_string())?;
    let mut engine = CudaEngine::new(&model, CudaOptions::default()).map_err(|error| error.to_string())?;
    let (page_bytes, small) = (pool.page_bytes(), engine.geometry().page_bytes(engine.geometry().page_size));
    let pages = pool.pages().min((COPY_BYTES / page_bytes) as u32).max(1);
    let theirs =
        engine.allocate((page_bytes * pages as usize).div_ceil(small) as u32).map_err(|error| error.to_string())?;
    let handle = theirs.handle().ok_or("the second GPU's memory cannot be shared")?;
    let way = pool.reach(&handle).map_err(|error| error.to_string())?;
    Series::measure("to the second GPU", page_bytes as u64, pages, |pairs| {
        let at = |page: u32| u64::from(page) * page_bytes as u64;
        let pieces: Vec<(u64, u64)> = pairs.iter().map(|(from, to)| (at(*from), at(*to))).collect();
        way.put(&pieces, page_bytes as u64).map_err(|error| error.to_string())
    })
}

/// Of a largest copy: a prompt of 8,192 tokens of a model of 8 billion weights.
const COPY_BYTES: usize = 1 << 30;
const TRIALS: u32 = 5;

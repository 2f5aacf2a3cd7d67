//! What a worker does with an engine, as simply as can be: pages by counting, one batch at a time.

use std::path::PathBuf;

use pd_core::batch::{Batch, Run};
use pd_core::id::{GpuPage, RequestId, Token};
use pd_gpu::{CpuEngine, Geometry, ModelSource, Options, Sample, Sampling, Weights};
use pd_sync::Arena;

/// An engine with page memory.
pub(crate) struct Worker {
    pub(crate) engine: CpuEngine,
    pub(crate) arena: Arena,
    next_page: u32,
}

/// One request's pages, of which the first have been told to the engine.
#[derive(Clone, Default)]
pub(crate) struct Table {
    pub(crate) pages: Vec<GpuPage>,
    pub(crate) told: usize,
}

/// A run to be made: of a request with this table.
pub(crate) struct Share<'a> {
    pub(crate) request: u64,
    pub(crate) start: u32,
    pub(crate) count: u32,
    pub(crate) sample: bool,
    pub(crate) table: &'a mut Table,
}

/// A folder of test data.
pub(crate) fn data(name: &str) -> PathBuf {
    package().join("tests/data").join(name)
}

/// The folder of this package; a test program that was carried elsewhere is told it.
pub(crate) fn package() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// A model of the test data.
pub(crate) fn open(name: &str) -> Weights {
    Weights::open(&ModelSource::Folder(data(name))).expect("a sound model")
}

/// Plain numbers as tokens.
pub(crate) fn tokens(ids: impl IntoIterator<Item = u32>) -> Vec<Token> {
    ids.into_iter().map(Token).collect()
}

/// An engine with page memory, of any kind: pages are given out by counting.
pub(crate) trait Computes {
    fn geometry(&self) -> &Geometry;
    /// The page that comes next; it is taken.
    fn next_page(&mut self) -> u32;
    fn admit(&mut self, request: RequestId, prompt: &[Token], sampling: Sampling);
    fn forget(&mut self, request: RequestId);
    fn compute(&mut self, batch: &mut Batch) -> Vec<Sample>;

    fn forward(&mut self, shares: &mut [Share<'_>]) -> Vec<Sample> {
        let page_size = self.geometry().page_size;
        let mut batch = Batch::default();
        for share in shares {
            let needed = (share.start + share.count).div_ceil(page_size) as usize;
            while share.table.pages.len() < needed {
                share.table.pages.push(GpuPage(self.next_page()));
            }
            let run =
                Run::new(RequestId(share.request), share.start, share.count, share.sample, share.table.told as u32);
            batch.push(run, &share.table.pages[share.table.told..]);
            share.table.told = share.table.pages.len();
        }
        self.compute(&mut batch)
    }

    /// The answer of one request that is alone, its prompt computed at once.
    fn answer(&mut self, request: u64, prompt: &[Token], sampling: Sampling, count: u32) -> Vec<Sample> {
        self.admit(RequestId(request), prompt, sampling);
        let mut table = Table::default();
        let (mut start, mut length) = (0, prompt.len() as u32);
        let mut samples = Vec::new();
        for _ in 0..count {
            let count = length - start;
            samples.extend(self.forward(&mut [Share { request, start, count, sample: true, table: &mut table }]));
            start = length;
            length += 1;
        }
        self.forget(RequestId(request));
        samples
    }
}

impl Worker {
    pub(crate) fn new(weights: &Weights, options: Options, pages: u32) -> Self {
        Self::over(CpuEngine::new(weights, options).expect("a sound model"), pages)
    }

    /// Around an engine that is there.
    pub(crate) fn over(engine: CpuEngine, pages: u32) -> Self {
        let geometry = engine.geometry();
        let arena = Arena::new(geometry.page_bytes(geometry.page_size), pages).expect("memory for pages");
        Self { engine, arena, next_page: 0 }
    }
}

impl Computes for Worker {
    fn geometry(&self) -> &Geometry {
        self.engine.geometry()
    }

    fn next_page(&mut self) -> u32 {
        self.next_page += 1;
        self.next_page - 1
    }

    fn admit(&mut self, request: RequestId, prompt: &[Token], sampling: Sampling) {
        self.engine.admit(request, prompt, sampling).expect("a sound request");
    }

    fn forget(&mut self, request: RequestId) {
        self.engine.forget(request);
    }

    fn compute(&mut self, batch: &mut Batch) -> Vec<Sample> {
        self.engine.forward(batch, &self.arena).expect("a sound batch")
    }
}

//! Pages of KV in a GPU's memory, and their way to and from the host's.

use std::fmt;
use std::sync::Arc;

use super::driver::{Buffer, Context, Result, Stream};
use super::kernels::Pool;
use super::module::TensorMap;
use crate::geometry::Geometry;

/// Pages of one size, in the layout of [`Geometry`].
pub struct CudaPool {
    context: Arc<Context>,
    buffer: Buffer,
    page_bytes: usize,
    pages: u32,
    layers: Vec<Pool>,
    /// Tilings of each layer's keys and values.
    maps: Vec<(TensorMap, TensorMap)>,
}

impl CudaPool {
    pub(super) fn new(context: &Arc<Context>, geometry: &Geometry, pages: u32) -> Result<Arc<Self>> {
        let page_bytes = geometry.page_bytes(geometry.page_size);
        // A page that was never written must not hold what is no number: nothing times that is no number either.
        let buffer = Buffer::zeroed(context, page_bytes * pages as usize, "pages of KV")?;
        let (dim, tokens) = (u64::from(geometry.head_dim), u64::from(geometry.page_size));
        let (head, heads) = (dim * tokens, u64::from(geometry.kv_heads));
        let pages_max = geometry.context.div_ceil(geometry.page_size);
        let layers: Vec<Pool> = (0..geometry.layers)
            .map(|layer| Pool {
                keys: buffer.at(geometry.offset(layer, false, 0)),
                values: buffer.at(geometry.offset(layer, true, 0)),
                page_stride: page_bytes as u64 / 2,
                head_stride: head,
                token_stride: dim,
                page_shift: geometry.page_size.trailing_zeros(),
                pages_max,
            })
            .collect();
        let map = |base: u64| {
            let strides = [dim * 2, head * 2, page_bytes as u64];
            TensorMap::new(base, [dim, tokens, heads, u64::from(pages)], strides, [64, geometry.page_size, 1, 1])
        };
        let has_maps = geometry.head_dim.is_multiple_of(64) && page_bytes.is_multiple_of(16);
        let maps = layers.iter().filter(|_| has_maps).map(|pool| Ok((map(pool.keys)?, map(pool.values)?)));
        let maps = maps.collect::<Result<_>>()?;
        Ok(Arc::new(Self { context: Arc::clone(context), buffer, page_bytes, pages, layers, maps }))
    }

    pub(super) fn layer(&self, layer: usize) -> &Pool {
        &self.layers[layer]
    }

    pub(super) fn maps(&self, layer: usize) -> (&TensorMap, &TensorMap) {
        let (keys, values) = &self.maps[layer];
        (keys, values)
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// How many pages there are.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Reads a page, and waits for it.
    ///
    /// # Errors
    /// If the GPU fails.
    ///
    /// # Panics
    /// If there is no such page, or `bytes` is not as large as one.
    pub fn read(&self, page: u32, bytes: &mut [u8]) -> Result<()> {
        assert!(page < self.pages && bytes.len() == self.page_bytes, "a page of the pool");
        self.buffer.read(page as usize * self.page_bytes, bytes)
    }

    /// Writes a page, and waits for it.
    ///
    /// # Errors
    /// If the GPU fails.
    ///
    /// # Panics
    /// If there is no such page, or `bytes` is not as large as one.
    pub fn write(&self, page: u32, bytes: &[u8]) -> Result<()> {
        assert!(page < self.pages && bytes.len() == self.page_bytes, "a page of the pool");
        self.buffer.write(page as usize * self.page_bytes, bytes)
    }

    /// Starts to copy a page to memory of the host; see [`CopyStream`].
    fn at(&self, page: u32) -> u64 {
        assert!(page < self.pages, "a page of the pool");
        self.buffer.at(page as usize * self.page_bytes)
    }
}

impl fmt::Debug for CudaPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaPool")
            .field("gpu", &self.context)
            .field("pages", &self.pages)
            .field("page_bytes", &self.page_bytes)
            .finish_non_exhaustive()
    }
}

/// A lane of copies between a pool and memory of the host.
#[derive(Debug)]
pub struct CopyStream {
    stream: Stream,
    pool: Arc<CudaPool>,
}

impl CopyStream {
    /// A lane of its own.
    ///
    /// # Errors
    /// If the GPU has no stream left.
    pub fn new(pool: &Arc<CudaPool>) -> Result<Self> {
        Ok(Self { stream: Stream::new(&pool.context)?, pool: Arc::clone(pool) })
    }

    /// Starts to copy a page to the host. Until [`CopyStream::wait`], the memory is the lane's; copies from memory that is
    /// not pinned ([`super::driver`]) are slow.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn read(&mut self, page: u32, to: &mut [u8]) -> Result<()> {
        assert_eq!(to.len(), self.pool.page_bytes, "memory of a page");
        self.stream.download(to.as_mut_ptr(), self.pool.at(page), to.len())
    }
}

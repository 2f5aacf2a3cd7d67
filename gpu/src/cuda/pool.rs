//! Pages of KV in a GPU's memory, and their way to and from the host's.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use pd_sync::{Arena, Device, Reach};

use super::CudaModel;
use super::driver::{Buffer, Context, Pinned as HostList, Result, Stream, close_ipc, ipc_handle, open_ipc};
use super::kernels::Pool;
use super::module::TensorMap;
use crate::geometry::Geometry;

/// Pages of one size, in the layout of [`Geometry`].
pub struct CudaPool {
    context: Arc<Context>,
    /// Whose kernels push pages.
    model: Arc<CudaModel>,
    buffer: Buffer,
    page_bytes: usize,
    pages: u32,
    layers: Vec<Pool>,
    /// Tilings of each layer's keys and values.
    maps: Vec<(TensorMap, TensorMap)>,
}

impl CudaPool {
    pub(super) fn new(model: &Arc<CudaModel>, geometry: &Geometry, pages: u32) -> Result<Arc<Self>> {
        let context = &model.context;
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
        let (context, model) = (Arc::clone(context), Arc::clone(model));
        Ok(Arc::new(Self { context, model, buffer, page_bytes, pages, layers, maps }))
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

    fn at(&self, page: u32) -> u64 {
        assert!(page < self.pages, "a page of the pool");
        self.buffer.at(page as usize * self.page_bytes)
    }
}

impl Device for CudaPool {
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.buffer.read(at as usize, bytes).map_err(io::Error::other)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.buffer.write(at as usize, bytes).map_err(io::Error::other)
    }

    fn handle(&self) -> Option<Vec<u8>> {
        let handle = Handle {
            process: std::process::id(),
            ordinal: self.context.ordinal(),
            address: self.buffer.address(),
            bytes: self.buffer.bytes() as u64,
            ipc: self.context.bind().and_then(|()| ipc_handle(self.buffer.address())).ok()?,
        };
        Some(bytemuck::bytes_of(&handle).to_vec())
    }

    fn reach(&self, handle: &[u8]) -> io::Result<Box<dyn Reach>> {
        let handle: Handle = *bytemuck::try_from_bytes(handle).map_err(|_| io::ErrorKind::InvalidData)?;
        let path = Path::open(self, &handle).map_err(io::Error::other)?;
        Ok(Box::new(path))
    }
}

/// What another process, or another worker of this one, opens a pool by. GPUs are numbered as that process sees them.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Handle {
    process: u32,
    ordinal: u32,
    address: u64,
    bytes: u64,
    ipc: [u8; 64],
}

/// The way from a pool to another one, over NVLink or PCIe.
struct Path {
    stream: Stream,
    context: Arc<Context>,
    model: Arc<CudaModel>,
    /// What the kernel reads of a push that is under way: where its pieces are.
    offsets: Mutex<HostList>,
    /// Ours, which must stay.
    from: Range<u64>,
    to: Range<u64>,
    /// True if the memory is another process's, mapped here.
    is_mapped: bool,
}

impl Path {
    fn open(pool: &CudaPool, handle: &Handle) -> Result<Self> {
        let context = &pool.context;
        context.bind()?;
        let is_mapped = handle.process != std::process::id();
        let base = if is_mapped {
            open_ipc(handle.ipc)?
        } else {
            if handle.ordinal != context.ordinal() {
                context.enable_peer(handle.ordinal)?;
            }
            handle.address
        };
        let from = pool.buffer.address();
        Ok(Self {
            stream: Stream::new(context)?,
            context: Arc::clone(context),
            model: Arc::clone(&pool.model),
            offsets: Mutex::new(HostList::new(context, PIECES_MAX * 16)?),
            from: from..from + pool.buffer.bytes() as u64,
            to: base..base + handle.bytes,
            is_mapped,
        })
    }
}

impl Reach for Path {
    fn put(&self, pieces: &[(u64, u64)], bytes: u64) -> io::Result<()> {
        let (ours, theirs) = (self.from.end - self.from.start, self.to.end - self.to.start);
        let fits = |(from, to): &(u64, u64)| from + bytes <= ours && to + bytes <= theirs;
        assert!(pieces.iter().all(fits), "pages of the pools");
        let mut offsets = self.offsets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut push = || -> Result<()> {
            self.context.bind()?;
            for lot in pieces.chunks(PIECES_MAX) {
                for (entry, (from, to)) in offsets.bytes_mut().chunks_exact_mut(16).zip(lot) {
                    entry[..8].copy_from_slice(&from.to_ne_bytes());
                    entry[8..].copy_from_slice(&to.to_ne_bytes());
                }
                let (list, bases) = (offsets.as_ptr() as u64, (self.from.start, self.to.start));
                self.model.kernels.push(&self.stream, list, lot.len(), bytes, bases)?;
                // The list is written anew for the next lot, and the caller's pages are its own again.
                self.stream.wait()?;
            }
            Ok(())
        };
        push().map_err(io::Error::other)
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        if self.is_mapped {
            let _ = self.context.bind().and_then(|()| close_ipc(self.to.start));
        }
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Path").field("is_mapped", &self.is_mapped).finish_non_exhaustive()
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

/// Pieces of one launch.
const PIECES_MAX: usize = 1024;

/// A lane of copies between a pool and an arena of the host, whose memory the GPU reads and writes by itself meanwhile.
#[derive(Debug)]
pub struct CopyLane {
    stream: Stream,
    pool: Arc<CudaPool>,
    host: Arc<Pinned>,
}

/// An arena's memory, as long as the GPU may copy from and to it.
#[derive(Debug)]
pub struct Pinned {
    arena: Arc<Arena>,
    context: Arc<Context>,
}

impl Pinned {
    /// Has the system keep an arena's pages where they are.
    ///
    /// # Errors
    /// If it has no room for that: see `ulimit -l` and `pd doctor`.
    pub fn new(pool: &CudaPool, arena: &Arc<Arena>) -> Result<Self> {
        let context = Arc::clone(&pool.context);
        let (at, bytes) = arena.region().expect("memory of the host");
        if bytes > 0 {
            touch(arena);
            context.register(at, bytes)?;
        }
        Ok(Self { arena: Arc::clone(arena), context })
    }
}

/// Pages that were never touched are not there yet, and the system gives them slowly to one thread.
fn touch(arena: &Arena) {
    use rayon::prelude::*;
    (0..arena.pages()).into_par_iter().for_each(|page| {
        // Nobody knows of the arena yet, or they have touched it.
        if let Ok(mut page) = arena.write(page) {
            page.iter_mut().step_by(4096).for_each(|byte| *byte = 0);
        }
    });
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some((at, _)) = self.arena.region().filter(|(_, bytes)| *bytes > 0) {
            let _ = self.context.unregister(at);
        }
    }
}

impl CopyLane {
    /// A lane of its own.
    ///
    /// # Errors
    /// If the GPU has no stream left.
    pub fn new(pool: &Arc<CudaPool>, host: &Arc<Pinned>) -> Result<Self> {
        Ok(Self { stream: Stream::new(&pool.context)?, pool: Arc::clone(pool), host: Arc::clone(host) })
    }

    /// Copies pages of the GPU to pages of the host (`false`) or back (`true`), all at once, and waits for them. The
    /// caller holds them.
    ///
    /// # Errors
    /// If the GPU fails.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn copy(&self, pages: &[(u32, u32)], back: bool) -> Result<()> {
        self.pool.context.bind()?;
        let bytes = self.pool.page_bytes;
        let (base, all) = self.host.arena.region().expect("memory of the host");
        for (device, host) in pages {
            let at = *host as usize * bytes;
            assert!(at + bytes <= all, "a page of the arena");
            // Not dereferenced: the GPU reads or writes what is there.
            let host = base.wrapping_add(at);
            if back {
                self.stream.upload(self.pool.at(*device), host, bytes)?;
            } else {
                self.stream.download(host, self.pool.at(*device), bytes)?;
            }
        }
        self.stream.wait()
    }
}

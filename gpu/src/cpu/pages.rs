//! The pages of one sequence during one forward: who may read and write them, and where each token's vectors lie.
//!
//! ```text
//!   tokens  0 ........ start ........ end
//!   pages   [ read ][ read ][ written ][ written ]
//! ```
//! Guards are held for the whole pass, so that a lane that touches a page out of turn is refused, not raced with.

use half::bf16;

use pd_sync::{Arena, PageMut, PageRef};

use super::kernel::Vectors;
use crate::engine::EngineError;
use crate::geometry::{Element, Geometry};
use pd_core::id::RequestId;

/// A sequence's pages, guarded.
pub(super) struct Held<'a> {
    geometry: &'a Geometry,
    /// The place of each token in its page, as if there were one layer with one head.
    tokens: Vec<*const u8>,
    start: usize,
    page_bytes: usize,
    _reads: Vec<PageRef<'a>>,
    _writes: Vec<PageMut<'a>>,
}

// SAFETY: the pointers lead into pages whose guards are held; `write` takes `&mut self`, all else only reads.
unsafe impl Send for Held<'_> {}
// SAFETY: as above.
unsafe impl Sync for Held<'_> {}

impl<'a> Held<'a> {
    /// Guards the pages of tokens `[0, end)`, of which those from `start` on will be written.
    ///
    /// # Errors
    /// [`EngineError::Busy`], or [`EngineError::Table`] if the table is too short or names a page that is not there.
    pub(super) fn hold(
        arena: &'a Arena,
        geometry: &'a Geometry,
        request: RequestId,
        table: &[u32],
        start: usize,
        end: usize,
    ) -> Result<Self, EngineError> {
        let size = geometry.page_size as usize;
        let page_bytes = geometry.page_bytes(geometry.page_size);
        let (from, pages) = (start / size, end.div_ceil(size));
        assert_eq!(arena.page_bytes(), page_bytes, "pages of this geometry");
        let table = table.get(..pages).filter(|table| table.iter().all(|page| *page < arena.pages()));
        let table = table.ok_or(EngineError::Table { request, pages: pages as u32 })?;
        let reads = table[..from].iter().map(|page| arena.read(*page)).collect::<Result<Vec<_>, _>>()?;
        let mut writes = table[from..].iter().map(|page| arena.write(*page)).collect::<Result<Vec<_>, _>>()?;
        let bases = reads.iter().map(|page| page.as_ptr());
        let bases = bases.chain(writes.iter_mut().map(|page| page.as_mut_ptr().cast_const()));
        let step = geometry.head_dim as usize * geometry.kv.bytes();
        let mut tokens = Vec::with_capacity(pages * size);
        for base in bases {
            // SAFETY: `slot` tokens of one head fit into a page.
            tokens.extend((0..size).map(|slot| unsafe { base.add(slot * step) }));
        }
        tokens.truncate(end);
        Ok(Self { geometry, tokens, start, page_bytes, _reads: reads, _writes: writes })
    }

    /// The keys (or values) of some tokens in one head of one layer.
    pub(super) fn vectors(
        &self,
        layer: usize,
        values: bool,
        head: usize,
        tokens: std::ops::Range<usize>,
    ) -> Vectors<'_> {
        let offset = self.geometry.offset(layer as u32, values, head as u32);
        assert!(offset < self.page_bytes, "a head within the page");
        Vectors {
            tokens: &self.tokens[tokens],
            offset,
            bf16: self.geometry.kv == Element::Bf16,
            dim: self.geometry.head_dim as usize,
        }
    }

    /// Stores the key (or value) of a token in one head of one layer.
    pub(super) fn write(&mut self, layer: usize, values: bool, head: usize, token: usize, vector: &[f32]) {
        assert!(token >= self.start, "a token that this pass computes");
        assert!(layer < self.geometry.layers as usize && head < self.geometry.kv_heads as usize, "a head of the model");
        assert_eq!(vector.len(), self.geometry.head_dim as usize, "a whole head");
        let offset = self.geometry.offset(layer as u32, values, head as u32);
        // SAFETY: tokens from `start` on lie in pages that are held for writing, and `&mut self` excludes readers of
        // this sequence; a head of one token lies within its page, see `Geometry::offset`. Pages and all parts of them
        // are aligned to their elements.
        unsafe {
            let at = self.tokens[token].cast_mut().add(offset);
            match self.geometry.kv {
                Element::F32 => std::slice::from_raw_parts_mut(at.cast::<f32>(), vector.len()).copy_from_slice(vector),
                Element::Bf16 => {
                    let to = std::slice::from_raw_parts_mut(at.cast::<bf16>(), vector.len());
                    to.iter_mut().zip(vector).for_each(|(to, value)| *to = bf16::from_f32(*value));
                }
            }
        }
    }
}

//! The kernels, with the sizes that each of them is launched with.
//!
//! What a kernel does and what it asks of its arguments stands above it in `kernels/*.cu`. Everything here is called with
//! addresses of the engine's buffers, which are sized for the largest forward ([`super::buffers`]).

use std::sync::Arc;

use super::compile::{self, Source};
use super::driver::{Context, Result, Stream};
use super::module::{Arguments, Function, Module, Shape, TensorMap};

/// All kernels, loaded.
pub(super) struct Kernels {
    embed: Function,
    norm: Function,
    rotate: Function,
    silu: Function,
    decode: [(u32, Function, u32); 2],
    prefill: Option<Function>,
    any: Function,
    ordered: Vec<(usize, Function)>,
    greedy: Function,
    filtered: Function,
    draw: Function,
    differences: Function,
    tables: Function,
    gather: Function,
    push: Function,
    multiprocessors: u32,
    /// Functions lead into them.
    _modules: Vec<Module>,
}

/// Widths of the product for few rows.
pub(super) const ORDERED_ROWS: [usize; 4] = [8, 16, 32, 64];
/// Heights of its tiles.
pub(super) const ORDERED_HEIGHTS: [usize; 4] = [32, 48, 56, 64];

/// A product for few rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ordered {
    /// Rows that the kernel is made for.
    pub(super) width: usize,
    /// Outputs of a tile.
    pub(super) height: usize,
    /// Rows that are there.
    pub(super) rows: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// Where the KV of one layer is, and how it is laid out; strides in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    pub(super) keys: u64,
    pub(super) values: u64,
    pub(super) page_stride: u64,
    pub(super) head_stride: u64,
    pub(super) token_stride: u64,
    pub(super) page_shift: u32,
    /// Pages that a sequence may have.
    pub(super) pages_max: u32,
}

/// Heads of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) queries: u32,
    pub(super) kv: u32,
    pub(super) dim: u32,
}

impl Heads {
    /// What the kernels that work in powers of two multiply scores with.
    fn scale_log2(self) -> f32 {
        std::f32::consts::LOG2_E / (self.dim as f32).sqrt()
    }
}

impl<'a> Arguments<'a> {
    fn strides(self, pool: &Pool) -> Self {
        self.long(pool.page_stride).long(pool.head_stride).long(pool.token_stride)
    }
}

const SOURCES: [Source; 7] = [
    Source { name: "layer", text: include_str!("kernels/layer.cu") },
    Source { name: "decode", text: include_str!("kernels/decode.cu") },
    Source { name: "attention_any", text: include_str!("kernels/attention_any.cu") },
    Source { name: "sample", text: include_str!("kernels/sample.cu") },
    Source { name: "util", text: include_str!("kernels/util.cu") },
    // For Hopper only.
    Source { name: "seqk", text: include_str!("kernels/seqk.cu") },
    Source { name: "prefill", text: include_str!("kernels/prefill.cu") },
];
const OF_HOPPER: usize = 2;

impl Kernels {
    /// Loads, and if need be compiles, all that the GPU can run.
    pub(super) fn load(context: &Arc<Context>) -> Result<Self> {
        let is_hopper = context.capability == (9, 0);
        let sources = if is_hopper { &SOURCES[..] } else { &SOURCES[..SOURCES.len() - OF_HOPPER] };
        let modules = compile::load(context, sources)?;
        let [layer, decode, any, sample, util, hopper @ ..] = modules.as_slice() else {
            unreachable!("a module for each source");
        };
        let (ordered, prefill) = match hopper {
            [seqk, prefill] => {
                let names = ["seqk_wgmma_8", "seqk_wgmma_16", "seqk_wgmma_32", "seqk_wgmma_64"];
                let ordered = ORDERED_ROWS
                    .into_iter()
                    .zip(names)
                    .map(|(rows, name)| Ok((rows, seqk.function(name, SHARED_MAX)?)));
                (ordered.collect::<Result<_>>()?, Some(prefill.function("prefill_wgmma", PREFILL_SHARED)?))
            }
            _ => (Vec::new(), None),
        };
        Ok(Self {
            embed: layer.function("embed", 0)?,
            norm: layer.function("rmsnorm_residual", 0)?,
            rotate: layer.function("rope_kv_write", 0)?,
            silu: layer.function("silu_mul", 0)?,
            decode: [
                (128, decode.function("decode_d128", DECODE_SHARED_128)?, DECODE_SHARED_128),
                (64, decode.function("decode_d64", DECODE_SHARED_64)?, DECODE_SHARED_64),
            ],
            prefill,
            any: any.function("attention_any", 0)?,
            ordered,
            greedy: sample.function("sample_greedy_gumbel", 0)?,
            filtered: sample.function("sample_filtered", FILTERED_SHARED)?,
            draw: util.function("draw_bf16", 0)?,
            differences: util.function("count_differences", 0)?,
            tables: util.function("update_tables", 0)?,
            gather: util.function("gather_rows", 0)?,
            push: util.function("push_pieces", 0)?,
            multiprocessors: context.multiprocessors,
            _modules: modules,
        })
    }

    /// True if prompts go through the fast kernel.
    pub(super) fn has_prefill(&self, heads: Heads, page_size: u32) -> bool {
        let rows = heads.queries / heads.kv;
        self.prefill.is_some() && heads.dim == 128 && (8..=128).contains(&page_size) && rows <= 128
    }

    /// True if generated tokens go through the fast kernel.
    pub(super) fn has_decode(&self, heads: Heads) -> bool {
        self.decode.iter().any(|(dim, ..)| *dim == heads.dim)
    }

    /// Units of the decode kernel in each row: KV heads, times groups of 8 query heads.
    pub(super) fn decode_units(heads: Heads) -> usize {
        let group = heads.queries / heads.kv;
        (heads.kv * group.div_ceil(8)) as usize
    }

    /// Bytes that the decode kernel keeps of a block of context that several blocks of threads share.
    pub(super) fn leaf_bytes(heads: Heads) -> usize {
        4 * (heads.dim as usize / 16 + 1) * 32 * 16
    }

    /// Blocks of the decode kernel that run at a time.
    pub(super) fn decode_blocks(&self) -> u32 {
        self.multiprocessors * 2
    }

    #[expect(clippy::too_many_arguments, reason = "as many as the kernel has")]
    pub(super) fn embed(
        &self,
        stream: &Stream,
        rows: usize,
        tokens: u64,
        last: u64,
        slots: u64,
        table: u64,
        out: u64,
        hidden: usize,
    ) -> Result<()> {
        let shape = Shape { grid: (rows as u32, 1), threads: 256, shared: 0 };
        let arguments = Arguments::default().long(tokens).long(last).long(slots).long(table).long(out);
        // SAFETY: buffers for `rows` rows; see the module.
        unsafe { self.embed.launch(stream, shape, arguments.int(hidden as u32)) }
    }

    #[expect(clippy::too_many_arguments, reason = "as many as the kernel has")]
    pub(super) fn norm(
        &self,
        stream: &Stream,
        rows: usize,
        residual: u64,
        weights: u64,
        out: u64,
        hidden: usize,
        eps: f32,
    ) -> Result<()> {
        let shape = Shape { grid: (rows as u32, 1), threads: norm_threads(hidden), shared: NORM_SHARED };
        let arguments = Arguments::default().long(residual).long(0).long(weights).long(out);
        // SAFETY: buffers for `rows` rows; see the module.
        unsafe { self.norm.launch(stream, shape, arguments.int(hidden as u32).float(eps)) }
    }

    /// Rotates queries and keys, norms their heads before if there are weights for it, and writes KV.
    #[expect(clippy::too_many_arguments, reason = "as many as the kernel has")]
    pub(super) fn rotate(
        &self,
        stream: &Stream,
        rows: usize,
        qkv: u64,
        bias: u64,
        positions: u64,
        kv_slots: u64,
        rotation: u64,
        head_norms: (u64, u64),
        queries: u64,
        pool: &Pool,
        heads: Heads,
        eps: f32,
    ) -> Result<()> {
        let warps = rows as u32 * (heads.queries + 2 * heads.kv);
        let shape = Shape { grid: (warps.div_ceil(8), 1), threads: 256, shared: 0 };
        let arguments = Arguments::default().long(qkv).long(bias).long(positions).long(kv_slots).long(rotation);
        let arguments = arguments.long(head_norms.0).long(head_norms.1).long(queries).long(pool.keys).long(pool.values);
        let arguments = arguments.strides(pool).int(pool.page_shift).int(heads.queries).int(heads.kv).int(heads.dim);
        // SAFETY: buffers for `rows` rows, and slots within the pool; see the module.
        unsafe { self.rotate.launch(stream, shape, arguments.int(rows as u32).float(eps)) }
    }

    pub(super) fn silu(&self, stream: &Stream, rows: usize, gate_up: u64, out: u64, ffn: usize) -> Result<()> {
        let vectors = (rows * ffn / 8) as u64;
        let shape = Shape { grid: (vectors.div_ceil(256) as u32, 1), threads: 256, shared: 0 };
        let arguments = Arguments::default().long(gate_up).long(out).long(vectors).int(ffn as u32);
        // SAFETY: buffers for `rows` rows; see the module.
        unsafe { self.silu.launch(stream, shape, arguments) }
    }

    /// Attention of generated tokens, one row each.
    pub(super) fn decode(&self, stream: &Stream, of: &DecodeLists, pool: &Pool, heads: Heads) -> Result<()> {
        let (_, kernel, shared) = self.decode.iter().find(|(dim, ..)| *dim == heads.dim).expect("asked for before");
        let shape = Shape { grid: (self.decode_blocks(), 1), threads: 128, shared: *shared };
        let arguments = Arguments::default().long(of.queries).long(pool.keys).long(pool.values).long(of.table);
        let arguments = arguments.long(of.starts).long(of.pieces).long(of.lengths).long(of.out);
        let arguments = arguments.long(of.leaves).long(of.arrived).strides(pool);
        let arguments = arguments.int(pool.pages_max).int(pool.page_shift).int(heads.queries).int(heads.kv);
        // SAFETY: lists of the step, and buffers for its pieces; see the module.
        unsafe { kernel.launch(stream, shape, arguments.float(heads.scale_log2())) }
    }

    /// Attention of prompt tokens, tile by tile.
    pub(super) fn prefill(&self, stream: &Stream, of: &PrefillLists<'_>, pool: &Pool, heads: Heads) -> Result<()> {
        let kernel = self.prefill.expect("asked for before");
        let units = of.count * heads.kv;
        let shape = Shape { grid: (units.min(self.multiprocessors), 1), threads: 384, shared: PREFILL_SHARED };
        let arguments = Arguments::default().map(of.maps.0).map(of.maps.1).long(of.queries).long(of.table);
        let arguments = arguments.long(of.prompts).long(of.tiles).int(of.count).long(of.out).int(pool.pages_max);
        let arguments = arguments.int(pool.page_shift).int(heads.queries).int(heads.queries / heads.kv);
        // SAFETY: lists of the step; see the module.
        unsafe { kernel.launch(stream, shape, arguments.float(heads.scale_log2())) }
    }

    /// Attention of any rows, where the fast kernels do not apply.
    pub(super) fn any(
        &self,
        stream: &Stream,
        rows: usize,
        of: &AnyLists,
        pool: &Pool,
        heads: Heads,
        window: u32,
    ) -> Result<()> {
        let shape =
            Shape { grid: ((rows as u32 * heads.queries).div_ceil(4), 1), threads: 128, shared: 16 * heads.dim };
        let arguments = Arguments::default().long(of.queries).long(pool.keys).long(pool.values).long(of.table);
        let arguments = arguments.long(of.lengths).long(of.out).strides(pool).int(pool.pages_max).int(pool.page_shift);
        let arguments = arguments.int(heads.queries).int(heads.kv).int(heads.dim).int(rows as u32).int(window);
        // SAFETY: lists of the step; see the module.
        unsafe { self.any.launch(stream, shape, arguments.float(heads.scale_log2())) }
    }

    /// True if there is a product for few rows.
    pub(super) fn has_ordered(&self) -> bool {
        !self.ordered.is_empty()
    }

    /// The product for few rows.
    pub(super) fn ordered(
        &self,
        stream: &Stream,
        of: Ordered,
        weights: &TensorMap,
        inputs: &TensorMap,
        out: u64,
        adds: bool,
    ) -> Result<()> {
        let Some((_, kernel)) = self.ordered.iter().find(|(width, _)| *width == of.width) else {
            return Err(super::CudaError::Unsupported("the product for few rows is Hopper's".into()));
        };
        let (stages, shared) = of.stages();
        let tiles = of.n.div_ceil(of.height) as u32;
        let shape = Shape { grid: (tiles.min(self.multiprocessors), 1), threads: 160, shared };
        let arguments = Arguments::default().map(weights).map(inputs).long(out).long(if adds { out } else { 0 });
        let arguments = arguments.int(of.rows as u32).int(of.n as u32).int(of.k as u32);
        // SAFETY: tilings of the matrix and of `width` rows of inputs, outputs for `rows` rows; see the module.
        unsafe { kernel.launch(stream, shape, arguments.int(of.height as u32).int(stages)) }
    }

    /// Chooses tokens of rows without filters.
    pub(super) fn sample(&self, stream: &Stream, rows: usize, of: &SampleLists, vocab: usize) -> Result<()> {
        let blocks = sample_blocks(self.multiprocessors, rows);
        let vectors = (vocab / 8).div_ceil(blocks as usize) as u32;
        let shape = Shape { grid: (blocks, rows as u32), threads: 512, shared: SAMPLE_SHARED };
        let arguments = Arguments::default().long(of.logits).long(of.samples).long(of.partial).long(of.arrived);
        let arguments = arguments.long(of.next).long(of.last).long(of.finite);
        // SAFETY: buffers for `rows` rows; see the module.
        unsafe { self.greedy.launch(stream, shape, arguments.int(vocab as u32).int(vocab as u32).int(vectors)) }
    }

    /// Chooses tokens of the rows that have filters.
    pub(super) fn sample_filtered(&self, stream: &Stream, rows: usize, of: &SampleLists, vocab: usize) -> Result<()> {
        let shape = Shape { grid: (rows as u32, 1), threads: 1024, shared: FILTERED_SHARED };
        let arguments = Arguments::default().long(of.logits).long(of.samples).long(of.next).long(of.last);
        // SAFETY: buffers for `rows` rows; see the module.
        unsafe { self.filtered.launch(stream, shape, arguments.long(of.finite).int(vocab as u32).int(vocab as u32)) }
    }

    /// Draws weights; see `weights::dummy`.
    pub(super) fn draw_bf16(
        &self,
        stream: &Stream,
        out: u64,
        count: usize,
        key: [u32; 8],
        middle: f32,
        width: f32,
    ) -> Result<()> {
        let shape = Shape { grid: (count.div_ceil(16 * 256) as u32, 1), threads: 256, shared: 0 };
        let arguments = Arguments::default().long(out).long(count as u64);
        let (pairs, _) = key.as_chunks::<2>();
        let key = pairs.iter().map(|[low, high]| u64::from(*low) | u64::from(*high) << 32);
        let arguments = key.fold(arguments, Arguments::long);
        // SAFETY: a buffer of `count` elements; see the module.
        unsafe { self.draw.launch(stream, shape, arguments.float(middle).float(width)) }
    }

    /// Adds to a count how many of some elements differ.
    pub(super) fn count_differences(
        &self,
        stream: &Stream,
        left: u64,
        right: u64,
        count: usize,
        differences: u64,
    ) -> Result<()> {
        let shape = Shape { grid: (self.multiprocessors * 4, 1), threads: 256, shared: 0 };
        let arguments = Arguments::default().long(left).long(right).long(count as u64).long(differences);
        // SAFETY: two buffers of `count` elements and a number; see the module.
        unsafe { self.differences.launch(stream, shape, arguments) }
    }

    /// Copies pieces of so many bytes, a multiple of 16, between memories that the GPU reaches: `offsets` has two for each
    /// of `count`, where it begins in the one and in the other.
    pub(super) fn push(
        &self,
        stream: &Stream,
        offsets: u64,
        count: usize,
        bytes: u64,
        (from, to): (u64, u64),
    ) -> Result<()> {
        assert!(bytes.is_multiple_of(16) && bytes / 16 <= i32::MAX as u64, "whole vectors, as the kernel counts them");
        let shape = Shape { grid: (PUSH_BLOCKS, 1), threads: 512, shared: 0 };
        let arguments =
            Arguments::default().long(offsets).int(count as u32).int((bytes / 16) as u32).long(from).long(to);
        // SAFETY: the caller's memory, of which the kernel touches the pieces only.
        unsafe { self.push.launch(stream, shape, arguments) }
    }

    /// Copies some rows of elements, one behind the other.
    pub(super) fn gather(
        &self,
        stream: &Stream,
        picked: usize,
        from: u64,
        picks: u64,
        to: u64,
        width: usize,
    ) -> Result<()> {
        let shape = Shape { grid: (picked as u32, 1), threads: 256, shared: 0 };
        let arguments = Arguments::default().long(from).long(picks).long(to).int(width as u32);
        // SAFETY: picks name rows of the buffer; see the module.
        unsafe { self.gather.launch(stream, shape, arguments) }
    }

    /// Enters pages into tables.
    pub(super) fn update_tables(
        &self,
        stream: &Stream,
        updates: u64,
        count: usize,
        table: u64,
        pages_max: u32,
    ) -> Result<()> {
        let shape = Shape { grid: (count.div_ceil(256) as u32, 1), threads: 256, shared: 0 };
        let arguments = Arguments::default().long(updates).int(count as u32).long(table).int(pages_max);
        // SAFETY: updates name slots and places within the tables; see the module.
        unsafe { self.tables.launch(stream, shape, arguments) }
    }
}

/// Lists and places of the decode kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct DecodeLists {
    pub(super) queries: u64,
    pub(super) table: u64,
    pub(super) starts: u64,
    pub(super) pieces: u64,
    pub(super) lengths: u64,
    pub(super) out: u64,
    pub(super) leaves: u64,
    pub(super) arrived: u64,
}

/// Lists and places of the prefill kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct PrefillLists<'a> {
    pub(super) maps: (&'a TensorMap, &'a TensorMap),
    pub(super) queries: u64,
    pub(super) table: u64,
    pub(super) prompts: u64,
    pub(super) tiles: u64,
    pub(super) count: u32,
    pub(super) out: u64,
}

/// Lists and places of the kernel for any rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnyLists {
    pub(super) queries: u64,
    pub(super) table: u64,
    pub(super) lengths: u64,
    pub(super) out: u64,
}

/// Lists and places of the kernels that choose tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct SampleLists {
    pub(super) logits: u64,
    pub(super) samples: u64,
    pub(super) partial: u64,
    pub(super) arrived: u64,
    pub(super) next: u64,
    pub(super) last: u64,
    pub(super) finite: u64,
}

/// Blocks that share a row's logits, so that few rows use the whole GPU.
fn sample_blocks(multiprocessors: u32, rows: usize) -> u32 {
    (multiprocessors * 2 / rows as u32).clamp(1, SAMPLE_BLOCKS_MAX)
}

/// A thread for each vector of 8 elements, in whole warps.
const fn norm_threads(hidden: usize) -> u32 {
    let threads = (hidden / 8).next_multiple_of(32);
    if threads < 512 { threads as u32 } else { 512 }
}

impl Ordered {
    /// A ring as deep as shared memory, and how much of that it is.
    fn stages(&self) -> (u32, u32) {
        let (width, height) = (self.width as u32, self.height as u32);
        // As the kernels are compiled.
        let blocks = if width <= 16 { 4 } else { 2 };
        let stage = blocks * (width + height) * 128;
        let beside = 1024 + (64 - height) * 128;
        let stages = ((SHARED_MAX - beside) / stage).min(64);
        (stages, beside + stages * stage)
    }
}

/// Blocks that push pages: enough for NVLink, and few beside those that compute.
const PUSH_BLOCKS: u32 = 32;
/// Most blocks that share a row's logits.
pub(super) const SAMPLE_BLOCKS_MAX: u32 = 32;
/// What a block of Hopper can have.
const SHARED_MAX: u32 = 232_448;
const SAMPLE_SHARED: u32 = 128;
const FILTERED_SHARED: u32 = 193_536;
const NORM_SHARED: u32 = 128;
const DECODE_SHARED_128: u32 = 115_216;
const DECODE_SHARED_64: u32 = 106_768;
const PREFILL_SHARED: u32 = 164_864;

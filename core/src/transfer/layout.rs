//! Which KV heads go from which rank to which, for two ends with different numbers of tensor-parallel ranks.
//!
//! Pure arithmetic, done once per pair of peers when they meet. A rank that holds several heads holds consecutive ones;
//! where there are fewer heads than ranks, consecutive ranks hold the same head and one of them sends it.
//!
//! ```text
//!  8 heads   source, 4 ranks   | 0 1 | 2 3 | 4 5 | 6 7 |
//!            sink, 2 ranks     |  0 1 2 3  |  4 5 6 7  |      rank 0 gets [0, 2) from 0 and [2, 4) from 1
//!  2 heads   source, 2 ranks   |     0     |     1     |
//!            sink, 4 ranks     |  0  |  0  |  1  |  1  |      ranks 0 and 1 both get head 0 from 0
//! ```
//!
//! Pages are head-major: of one page and layer a rank stores all K, then all V, each head's tokens together. So any
//! range of heads is one piece of K and one of V, and the whole of it is a single piece (sglang #15674: pages that are
//! token-major are cut into one piece per token).

use alloc::vec::Vec;
use core::ops::Range;

use crate::limits::TP_RANKS_MAX;
use crate::message::{Layout, Mismatch};

/// What one rank sends another of each page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    /// Rank that sends.
    pub source_rank: u32,
    /// Rank that receives.
    pub sink_rank: u32,
    /// Layers.
    pub layers: Range<u32>,
    /// KV heads, counted over the whole model.
    pub heads: Range<u32>,
}

/// How a page gets from one end to the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// By sink rank, then head.
    pub slices: Vec<Slice>,
    /// Contiguous pieces of one page and layer, all ranks together.
    pub pieces: u32,
}

/// KV heads that rank `rank` of `layout` holds, counted over the whole model.
///
/// # Panics
/// If there is no such rank.
#[must_use]
pub fn heads_of(layout: &Layout, rank: u32) -> Range<u32> {
    assert!(rank < layout.tp, "a rank of the layout");
    // Products of a head and a rank in 64 bits: neither is bounded by more than its type.
    let at = |rank: u32| (u64::from(rank) * u64::from(layout.kv_heads) / u64::from(layout.tp)) as u32;
    if layout.kv_heads >= layout.tp { at(rank)..at(rank + 1) } else { at(rank)..at(rank) + 1 }
}

/// Why KV of `theirs` cannot be used with that of `ours`; `None` if it can.
#[must_use]
pub fn mismatch(ours: &Layout, theirs: &Layout) -> Option<Mismatch> {
    if ours.page_size != theirs.page_size {
        return Some(Mismatch::PageSize { ours: ours.page_size, theirs: theirs.page_size });
    }
    if ours.dtype != theirs.dtype {
        return Some(Mismatch::Dtype { ours: ours.dtype.clone(), theirs: theirs.dtype.clone() });
    }
    let shape = |layout: &Layout| (layout.layers, layout.kv_heads, layout.head_dim, layout.page_bytes);
    if shape(ours) != shape(theirs) {
        return Some(Mismatch::Shape);
    }
    // Equal ranks are twins, however their heads are cut.
    let fits = ours.tp == theirs.tp
        || theirs.tp <= TP_RANKS_MAX && is_even(ours) && is_even(theirs) && divides(ours.tp, theirs.tp);
    (!fits).then_some(Mismatch::TensorParallel { ours: ours.tp, theirs: theirs.tp })
}

/// Who sends what to whom.
///
/// # Errors
/// As [`mismatch`], with the source as the one who refuses.
pub fn plan(source: &Layout, sink: &Layout) -> Result<Plan, Mismatch> {
    if let Some(mismatch) = mismatch(source, sink) {
        return Err(mismatch);
    }
    let mut slices = Vec::new();
    let mut pieces = 0;
    for sink_rank in 0..sink.tp {
        let needed = heads_of(sink, sink_rank);
        let mut head = needed.start;
        while head < needed.end {
            let source_rank = sender(source, sink, sink_rank, head);
            let held = heads_of(source, source_rank);
            let heads = head..needed.end.min(held.end);
            head = heads.end;
            pieces += if heads == held && heads == needed { 1 } else { 2 };
            slices.push(Slice { source_rank, sink_rank, layers: 0..source.layers, heads });
        }
    }
    Ok(Plan { slices, pieces })
}

/// The one rank of the source that sends `head` to `sink_rank`. Replicas share the work evenly; with equal ranks on
/// both sides each sends to its twin.
fn sender(source: &Layout, sink: &Layout, sink_rank: u32, head: u32) -> u32 {
    if source.tp == sink.tp {
        return sink_rank;
    }
    let replicas = (source.tp / source.kv_heads).max(1);
    if replicas == 1 {
        return (u64::from(head) * u64::from(source.tp) / u64::from(source.kv_heads)) as u32;
    }
    let receivers = (sink.tp / sink.kv_heads).max(1);
    let receiver = sink_rank % receivers;
    head * replicas + (u64::from(receiver) * u64::from(replicas) / u64::from(receivers)) as u32
}

/// True if every rank holds the same number of heads, or every head is held by the same number of ranks.
const fn is_even(layout: &Layout) -> bool {
    layout.tp > 0 && layout.kv_heads > 0 && divides(layout.tp, layout.kv_heads)
}

const fn divides(one: u32, other: u32) -> bool {
    one.is_multiple_of(other) || other.is_multiple_of(one)
}

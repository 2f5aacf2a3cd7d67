//! Every sink rank gets every head it needs exactly once, from a rank that has it.

use std::vec;
use std::vec::Vec;

use crate::message::{Layout, Mismatch};
use crate::transfer::layout::{heads_of, mismatch, plan};

fn layout(tp: u32, kv_heads: u32) -> Layout {
    Layout { page_size: 16, dtype: "bf16".into(), layers: 3, kv_heads, head_dim: 128, page_bytes: 1 << 20, tp }
}

#[test]
fn every_sink_rank_gets_every_head_once_from_a_rank_that_has_it() {
    for kv_heads in [1, 2, 4, 8] {
        for (source_tp, sink_tp) in [1, 2, 4, 8].into_iter().flat_map(|a| [1, 2, 4, 8].map(|b| (a, b))) {
            let (source, sink) = (layout(source_tp, kv_heads), layout(sink_tp, kv_heads));
            let plan = plan(&source, &sink).expect("powers of two divide each other");
            for rank in 0..sink_tp {
                let mut received = vec![0; kv_heads as usize];
                for slice in plan.slices.iter().filter(|slice| slice.sink_rank == rank) {
                    assert_eq!(slice.layers, 0..3);
                    let held = heads_of(&source, slice.source_rank);
                    for head in slice.heads.clone() {
                        assert!(held.contains(&head), "tp {source_tp} to {sink_tp}, {kv_heads} heads: {slice:?}");
                        received[head as usize] += 1;
                    }
                }
                let needed = heads_of(&sink, rank);
                let expected: Vec<u32> = (0..kv_heads).map(|head| u32::from(needed.contains(&head))).collect();
                assert_eq!(received, expected, "tp {source_tp} to {sink_tp}, {kv_heads} heads, rank {rank}");
            }
        }
    }
}

#[test]
fn equal_ranks_send_to_their_twins_in_one_piece() {
    for (tp, kv_heads) in [(1, 8), (4, 8), (8, 2), (3, 8)] {
        let plan = plan(&layout(tp, kv_heads), &layout(tp, kv_heads)).expect("equal");
        assert!(plan.slices.iter().all(|slice| slice.source_rank == slice.sink_rank));
        assert_eq!(plan.pieces, tp);
    }
}

#[test]
fn unequal_ranks_cut_a_page_into_one_piece_of_k_and_one_of_v_for_each_pair() {
    assert_eq!(plan(&layout(4, 8), &layout(2, 8)).map(|plan| plan.pieces), Ok(8));
    assert_eq!(plan(&layout(1, 8), &layout(8, 8)).map(|plan| plan.pieces), Ok(16));
    // A replicated head goes out whole.
    assert_eq!(plan(&layout(2, 2), &layout(4, 2)).map(|plan| plan.pieces), Ok(4));
}

#[test]
fn replicas_share_the_work() {
    let plan = plan(&layout(8, 2), &layout(4, 2)).expect("divides");
    let senders: Vec<u32> = plan.slices.iter().map(|slice| slice.source_rank).collect();
    assert_eq!(senders, [0, 2, 4, 6]);
}

#[test]
fn ranks_that_do_not_divide_are_refused() {
    let refused = Some(Mismatch::TensorParallel { ours: 2, theirs: 3 });
    assert_eq!(mismatch(&layout(2, 6), &layout(3, 6)), refused);
    let refused = Some(Mismatch::TensorParallel { ours: 1, theirs: 3 });
    assert_eq!(mismatch(&layout(1, 8), &layout(3, 8)), refused, "three ranks cannot share eight heads");
    assert!(mismatch(&layout(1, 1 << 30), &layout(1 << 30, 1 << 30)).is_some(), "a peer names no plan of any size");
    assert!(mismatch(&layout(0, 8), &layout(1, 8)).is_some());
}

#[test]
fn each_property_of_kv_is_compared() {
    let ours = layout(1, 8);
    let page_size = Layout { page_size: 32, ..ours.clone() };
    assert_eq!(mismatch(&ours, &page_size), Some(Mismatch::PageSize { ours: 16, theirs: 32 }));
    let dtype = Layout { dtype: "fp8_e4m3".into(), ..ours.clone() };
    assert!(matches!(mismatch(&ours, &dtype), Some(Mismatch::Dtype { .. })));
    let shapes = [
        Layout { layers: 4, ..ours.clone() },
        Layout { kv_heads: 4, ..ours.clone() },
        Layout { head_dim: 64, ..ours.clone() },
        Layout { page_bytes: 1, ..ours.clone() },
    ];
    for theirs in shapes {
        assert_eq!(mismatch(&ours, &theirs), Some(Mismatch::Shape));
    }
}

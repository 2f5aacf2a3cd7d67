//! Goal: the model reproduces the step times that its formulas were published with, and behaves like a cost.
//! Method: hardware in code with the constants of `scenarios/hw/h100_sxm.toml`; expected times are data.

use alloc::string::ToString;
use alloc::vec;
use std::println;

use proptest::prelude::*;

use super::hardware::{AllReduce, Cpu, DecodeAttention, Elementwise, Gemm, Launch, PrefillAttention, Sampling};
use super::*;

mod arithmetic;

/// Full and append prefill of Llama-3.1-8B on one H100 as published with the fits; milliseconds with host work in turn.
#[test]
fn prefill_times_are_those_published_with_the_fits() {
    let cost = llama_on_h100();
    let cases = [
        (1_024, 64, 8.2, 25.0),
        (1_024, 1_024, 24.8, 45.1),
        (4_096, 256, 11.4, 96.7),
        (4_096, 4_096, 105.9, 192.7),
        (16_384, 256, 17.2, 447.7),
        (16_384, 4_096, 151.4, 583.4),
        (65_536, 1_024, 96.7, 3_180.0),
        (65_536, 4_096, 333.0, 3_417.0),
    ];
    for (cached, new, append, full) in cases {
        check_ms("append", prefill_step(&cost, cached, new), append, 1.5);
        check_ms("full", prefill_step(&cost, 0, cached + new), full, 1.0);
    }
}

#[test]
fn decode_times_are_those_published_with_the_fits() {
    let cost = llama_on_h100();
    check_ms("64 at 2k", decode_step(&cost, 64, 2_048), 14.9, 1.0);
    // The published 30.4 ms for a batch of 200 is at 2k as well: at 1k its own mixed-step percentages need 21 ms.
    check_ms("200 at 2k", decode_step(&cost, 200, 2_048), 30.4, 1.0);
    check_ms("200 at 1k", decode_step(&cost, 200, 1_024), 21.0, 3.0);
}

/// Extra time of a step of 200 sequences at 1k that takes a chunk along, in per cent.
#[test]
fn mixed_steps_cost_what_was_published_with_the_fits() {
    let cost = llama_on_h100();
    let alone = decode_step(&cost, 200, 1_024) as f64;
    let cases = [
        (2_048, 64, 7.5),
        (2_048, 128, 12.0),
        (2_048, 256, 23.0),
        (8_192, 256, 36.0),
        (0, 2_048, 189.0),
        (0, 8_192, 880.0),
    ];
    for (cached, new, percent) in cases {
        let mut load = decodes(200, 1_024);
        load.prefill(&cost, cached, new);
        load.logits(1);
        let extra = (cost.synchronous_ns(&load) as f64 / alone - 1.0) * 100.0;
        println!("{new} on {cached}: {extra:.1} %, published {percent}");
        assert!((extra - percent).abs() < (0.08 * percent).max(2.5), "{new} on {cached}: {extra} %, not {percent}");
    }
}

#[test]
fn kv_and_weights_of_known_models() {
    let cases = [
        (llama(), 131_072, 8_030_261_248),
        (llama_70b(), 327_680, 70_553_706_496),
        (qwen(28, 1_024, 3_072, 16, true), 114_688, 596_049_920),
        (qwen(36, 4_096, 12_288, 32, false), 147_456, 8_190_735_360),
        (qwen(64, 5_120, 25_600, 64, false), 262_144, 32_762_123_264),
    ];
    for (model, kv_bytes, weights) in cases {
        assert_eq!(model.kv_bytes_per_token(), kv_bytes);
        assert_eq!(model.weights(), weights);
        assert_eq!(model.weights_bytes(), 2 * weights);
    }
    assert_eq!(Model { kv_dtype_bytes: 1, ..llama() }.kv_bytes_per_token(), 65_536);
}

#[test]
fn ranks_split_weights_and_share_kv_heads() {
    let model = llama_70b();
    let halves = 2 * model.weights_bytes_rank(2);
    assert!((model.weights_bytes()..model.weights_bytes() * 1_001 / 1_000).contains(&halves));
    assert_eq!(model.kv_bytes_per_token_rank(8), model.kv_bytes_per_token() / 8);
    // 16 ranks, 8 KV heads: each head is held twice.
    assert_eq!(model.kv_bytes_per_token_rank(16), model.kv_bytes_per_token() / 8);
}

#[test]
fn capacity_is_what_memory_leaves() {
    let cost = llama_on_h100();
    assert_eq!(cost.kv_bytes_per_token(), 131_072);
    // 72 GB less 16.06 of weights and 3.5 of reserve.
    assert_eq!(cost.kv_tokens_capacity(900), (72_000_000_000 - 2 * 8_030_261_248 - 3_500_000_000) / 131_072);
    assert_eq!(cost.kv_tokens_capacity(100), 0);
    assert_eq!(cost.kv_tokens_capacity(2_000), cost.kv_tokens_capacity(1_000));
}

#[test]
fn more_gpus_are_faster_by_less_than_their_number() {
    let costs = [1, 2, 4, 8].map(|tp| Cost::new(&h100(), &llama(), tp).expect("fits"));
    for (older, newer) in [(0, 1), (1, 2), (2, 3)] {
        for (cached, new) in [(0, 2_048), (8_192, 4_096)] {
            let (one, two) = (costs[older].prefill_ns(cached, new), costs[newer].prefill_ns(cached, new));
            assert!(one / 2 < two && two < one, "{one} and {two}");
        }
        let (one, two) = (costs[older].decode_step_ns(128, 1 << 20), costs[newer].decode_step_ns(128, 1 << 20));
        assert!(one / 2 < two && two < one, "{one} and {two}");
    }
    // Two all-reduces in each of 80 layers: 160 times 4.9 us at least.
    let without = Hardware { all_reduce: vec![AllReduce { tp: 4, alpha_ns: 0, ..h100().all_reduce[1] }], ..h100() };
    let [with, without] =
        [h100(), without].map(|hardware| Cost::new(&hardware, &llama_70b(), 4).expect("fits").decode_step_ns(1, 1));
    assert!((with - without).abs_diff(160 * 4_900) <= 1);
}

#[test]
fn impossible_hardware_is_refused_by_name_and_value() {
    let refused = |hardware: Hardware, model: Model, tp, message: &str| {
        assert_eq!(Cost::new(&hardware, &model, tp).expect_err(message).to_string(), message);
    };
    let range = 1_u64 << 50;
    let slow = Hardware { hbm_bytes_per_second: 0, ..h100() };
    refused(slow, llama(), 1, &alloc::format!("hbm_bytes_per_second is 0, expected 1 to {range}"));
    refused(
        h100(),
        llama_70b(),
        1,
        "weights of 141107412992 bytes a GPU (tp = 1) and reserved_bytes = 3500000000 leave nothing of \
         hbm_bytes = 80000000000",
    );
    refused(h100(), llama(), 3, "model.heads is 32, which tp = 3 does not divide");
    refused(h100(), llama(), 0, "tp is 0, expected 1 to 64");
    refused(h100(), llama(), 16, "all_reduce has no entry for tp = 16");
    refused(h100(), Model { kv_heads: 0, ..llama() }, 1, "model.kv_heads is 0, expected 1 to 1024");
    refused(h100(), Model { kv_heads: 5, ..llama() }, 1, "model.heads is 32, which model.kv_heads = 5 does not divide");
    let descending = Launch { graph_batches: vec![1, 4, 2], ..h100().launch };
    refused(Hardware { launch: descending, ..h100() }, llama(), 1, "launch.graph_batches is 2, expected 5 to 4096");
    let falling = Tables { layer_gemm_ns: vec![[1, 9], [2, 8]], ..tables() };
    refused(
        Hardware { tables: vec![falling], ..h100() },
        llama(),
        1,
        "tables.layer_gemm_ns does not ascend or has a wrong size at row 1",
    );
}

#[test]
fn the_largest_permitted_sizes_neither_panic_nor_wrap() {
    let hardware = Hardware {
        hbm_bytes: 1 << 50,
        hbm_bytes_per_second: 1,
        bf16_gflops: 1,
        gemm: Gemm { compute_per_mille: 1, memory_per_mille: 1, ..h100().gemm },
        ..h100()
    };
    let model = Model {
        layers: 64,
        hidden: 1 << 20,
        intermediate: 1 << 20,
        heads: 1_024,
        kv_heads: 1_024,
        head_dim: 1_024,
        vocab: 1 << 24,
        ..llama()
    };
    let cost = Cost::new(&hardware, &model, 1).expect("fits in a pebibyte");
    assert!(cost.prefill_ns(u64::MAX, u64::MAX) >= cost.prefill_ns(1, 1));
    assert_eq!(cost.decode_step_ns(1 << 40, u64::MAX), ns_of_ps(u64::MAX));
    assert!(Cost::new(&hardware, &Model { layers: u32::MAX, ..model }, 1).is_err());
}

#[test]
fn a_table_replaces_the_formula_for_its_own_model_only() {
    let hardware = Hardware { tables: vec![tables()], ..h100() };
    let cost = Cost::new(&hardware, &llama(), 1).expect("fits");
    let formula = llama_on_h100();
    // 100 us for projections, 20 for the head, 4 of 8 us for attention, 32 layers; elementwise and sampling as ever.
    let other = |tokens: u64| 32 * (12_500 + tokens * 69) + 4_500 + 80 * tokens + 1_200;
    assert!(cost.decode_step_ns(1, 512).abs_diff(32 * (100_000 + 4_000) + 20_000 + other(1)) < 1_000);
    assert!(cost.decode_step_ns(1, 1_024).abs_diff(32 * (100_000 + 8_000) + 20_000 + other(1)) < 1_000);
    assert!(cost.decode_step_ns(1, 768).abs_diff(32 * (100_000 + 6_000) + 20_000 + other(1)) < 1_000);
    assert_eq!(cost.prefill_attention_ps(64, 64), formula.prefill_attention_ps(64, 64));
    let renamed = Model { name: "other".to_string(), ..llama() };
    let other = Cost::new(&hardware, &renamed, 1).expect("fits");
    assert_eq!(other.decode_step_ns(8, 4_096), formula.decode_step_ns(8, 4_096));
}

#[test]
fn decode_steps_are_padded_to_their_graph_and_wait_for_launches_without() {
    let cost = llama_on_h100();
    let rows = |batch| cost.decode_step_ns(batch, 100_000);
    // Between 25 and 32 sequences only sampling and attention differ.
    assert!(rows(32) - rows(25) < 7 * (32 * 15 + 90) + 2_000);
    assert!(rows(33) - rows(32) > 10_000);
    let eager = Hardware { launch: Launch { graph_batches: vec![], kernel_ns: 100_000, ..h100().launch }, ..h100() };
    let eager = Cost::new(&eager, &llama(), 1).expect("fits");
    assert_eq!(eager.decode_step_ns(1, 1), 11 * 32 * 100_000);
}

#[test]
fn host_work_counts_what_the_load_names() {
    let cpu = Cpu {
        base_ns: 1,
        per_sequence_ns: 10,
        per_request_ns: 100,
        per_finished_ns: 1_000,
        per_page_ns: 10_000,
        sync_ns: 7,
    };
    let cost = Cost::fixed(5_000, 3, 200_000, 1 << 20).with_cpu(cpu);
    let mut load = Load::new();
    assert_eq!(cost.forward(&load), Forward::default());
    assert_eq!(cost.overlapped_ns(&load), 0);
    load.decode(1_000);
    load.prefill(&cost, 0, 16);
    load.starts(1);
    load.finishes(2);
    load.touches(3);
    let forward = cost.forward(&load);
    assert_eq!(forward, Forward { gpu_ns: 205_048, cpu_ns: 32_121 });
    assert_eq!(cost.overlapped_ns(&load), 205_055);
    assert_eq!(cost.synchronous_ns(&load), 237_169);
}

/// OPT-13B on one A100 as DistServe fits it: milliseconds, two regimes of decode with the split at 95.
#[test]
fn distserves_fit_can_be_expressed() {
    let cost = Cost::polynomial(Polynomial {
        prefill_step_ps: 18_100_000_000,
        prefill_token_ps: 101_900_000,
        prefill_pair_ps: 7_120,
        decode_small: DecodePolynomial { step_ps: 19_930_000_000, context_token_ps: 627_000, sequence_ps: 38_500_000 },
        decode_large: DecodePolynomial { step_ps: 7_170_000_000, context_token_ps: 580_000, sequence_ps: 158_000_000 },
        large_batch: 95,
        kv_tokens: 10_000,
        ..Polynomial::default()
    });
    let mut two = Load::new();
    two.prefill(&cost, 0, 512);
    two.prefill(&cost, 0, 100);
    check_ms("prefill", cost.forward(&two).gpu_ns, 18.1 + 0.1019 * 612.0 + 7.12e-6 * (512.0 * 512.0 + 1e4), 1e-4);
    check_ms("small", cost.decode_step_ns(94, 40_000), 19.93 + 6.27e-4 * 4e4 + 0.0385 * 94.0, 1e-4);
    check_ms("large", cost.decode_step_ns(95, 40_000), 7.17 + 5.8e-4 * 4e4 + 0.158 * 95.0, 1e-4);
    // A cached prefix saves its own token and pair terms, so what is cached and what follows add up to the whole.
    assert_eq!(cost.prefill_ns(300, 200) - 18_100_000 + cost.prefill_ns(0, 300), cost.prefill_ns(0, 500));
    assert_eq!(cost.kv_tokens_capacity(900), 10_000);
}

#[test]
fn a_prefix_is_worth_what_recomputing_it_takes() {
    let cost = llama_on_h100();
    assert_eq!(cost.saved_ns(0, 100), 0);
    let (saved, prefix) = (cost.saved_ns(16_384, 256), cost.prefill_ns(0, 16_384));
    assert!(saved.abs_diff(prefix) < prefix / 25, "{saved} of {prefix}");
}

proptest! {
    #[test]
    fn more_work_is_never_cheaper(step in step(), more in step(), tp in 0..4_u32) {
        let cost = Cost::new(&h100(), &llama(), 1 << tp).expect("fits");
        let before = load_of(&cost, &step);
        let mut after = before;
        add(&mut after, &cost, &more);
        let (before, after) = (cost.forward(&before), cost.forward(&after));
        prop_assert!(before.gpu_ns <= after.gpu_ns, "{before:?} {after:?}");
        prop_assert!(before.cpu_ns <= after.cpu_ns, "{before:?} {after:?}");
    }

    #[test]
    fn longer_prompts_and_contexts_are_never_cheaper(cached in 0..200_000_u64, new in 1..20_000_u64, more in 1..100_u64) {
        let cost = llama_on_h100();
        prop_assert!(cost.prefill_ns(cached, new) <= cost.prefill_ns(cached + more, new));
        prop_assert!(cost.prefill_ns(cached, new) <= cost.prefill_ns(cached, new + more));
        // Recomputing the end of a prefix is never cheaper than having it.
        let moved = more.min(cached);
        prop_assert!(cost.prefill_ns(cached, new) <= cost.prefill_ns(cached - moved, new + moved));
        let batch = new % 400 + 1;
        prop_assert!(cost.decode_step_ns(batch, cached) <= cost.decode_step_ns(batch, cached + more));
        prop_assert!(cost.decode_step_ns(batch, cached) <= cost.decode_step_ns(batch + more, cached));
    }

    #[test]
    fn a_load_does_not_depend_on_the_order_of_its_parts(mut step in step()) {
        let cost = llama_on_h100();
        let forwards = load_of(&cost, &step);
        step.0.reverse();
        step.1.reverse();
        prop_assert_eq!(forwards, load_of(&cost, &step));
    }
}

/// Contexts of decoding sequences, and cached and new tokens of chunks.
type Step = (std::vec::Vec<u64>, std::vec::Vec<(u64, u64)>);

fn step() -> impl Strategy<Value = Step> {
    (prop::collection::vec(0..200_000_u64, 0..80), prop::collection::vec((0..200_000_u64, 0..5_000_u64), 0..6))
}

fn load_of(cost: &Cost, step: &Step) -> Load {
    let mut load = Load::new();
    add(&mut load, cost, step);
    load
}

fn add(load: &mut Load, cost: &Cost, (contexts, chunks): &Step) {
    for &context in contexts {
        load.decode(context);
    }
    for &(cached, new) in chunks {
        load.prefill(cost, cached, new);
        load.logits(new % 2);
    }
}

fn decodes(batch: u64, context: u64) -> Load {
    let mut load = Load::new();
    for _ in 0..batch {
        load.decode(context);
    }
    load
}

/// With host work in turn, as the published times have it.
fn prefill_step(cost: &Cost, cached: u64, new: u64) -> u64 {
    let mut load = Load::new();
    load.prefill(cost, cached, new);
    load.logits(1);
    cost.synchronous_ns(&load)
}

fn decode_step(cost: &Cost, batch: u64, context: u64) -> u64 {
    cost.synchronous_ns(&decodes(batch, context))
}

fn check_ms(what: &str, ns: u64, want_ms: f64, percent: f64) {
    let off = (ns as f64 / 1e6 / want_ms - 1.0) * 100.0;
    println!("{what}: {:.2} ms, want {want_ms} ({off:+.2} %)", ns as f64 / 1e6);
    assert!(off.abs() <= percent, "{what}: {:.3} ms, want {want_ms}, {off:+.2} %", ns as f64 / 1e6);
}

fn llama_on_h100() -> Cost {
    Cost::new(&h100(), &llama(), 1).expect("fits")
}

fn h100() -> Hardware {
    Hardware {
        name: "h100_sxm".to_string(),
        bf16_gflops: 989_000,
        hbm_bytes: 80_000_000_000,
        hbm_bytes_per_second: 3_350_000_000_000,
        reserved_bytes: 3_500_000_000,
        prefill_per_mille: 1_000,
        decode_per_mille: 1_000,
        gemm: Gemm {
            base_ps: 3_230_000,
            compute_per_mille: 811,
            memory_per_mille: 875,
            pad_bytes: 1_680_000,
            q_per_mille: 3_330,
        },
        prefill_attention: PrefillAttention {
            base_ps: 9_000_000,
            compute_per_mille: 630,
            memory_per_mille: 800,
            new_overhead_tokens: 300,
            context_overhead_tokens: 0,
            q_per_mille: 3_330,
        },
        decode_attention: DecodeAttention {
            base_ps: 11_500_000,
            per_head_ps: 450,
            memory_per_mille: 889,
            q_per_mille: 1_000,
        },
        elementwise: Elementwise { kernels_per_layer: 5, kernel_ps: 2_500_000, memory_per_mille: 800 },
        sampling: Sampling { base_ps: 4_500_000, per_row_ps: 80_000 },
        launch: Launch {
            kernels_per_layer: 11,
            kernel_ns: 2_600,
            step_ns: 1_200,
            graph_batches: [1, 2, 4].into_iter().chain((8..=256).step_by(8)).collect(),
        },
        cpu: Cpu { base_ns: 1_360_000, per_sequence_ns: 16_800, sync_ns: 7_500, ..Cpu::default() },
        all_reduce: vec![
            AllReduce { tp: 2, alpha_ns: 4_300, bus_bytes_per_second: 273_000_000_000 },
            AllReduce { tp: 4, alpha_ns: 4_900, bus_bytes_per_second: 302_000_000_000 },
            AllReduce { tp: 8, alpha_ns: 5_400, bus_bytes_per_second: 376_000_000_000 },
        ],
        tables: vec![],
    }
}

/// With a grid of decode attention of several rows and columns.
fn measured() -> Cost {
    let grid = Grid {
        rows: vec![1, 8, 64],
        columns: vec![512, 1_024, 8_192],
        ns: vec![vec![4_000, 5_000, 9_000], vec![5_000, 7_000, 20_000], vec![9_000, 30_000, 100_000]],
    };
    let tables = Tables { decode_attention_ns: Some(grid), ..tables() };
    let hardware = Hardware { tables: vec![tables], ..h100() };
    Cost::new(&hardware, &llama(), 1).unwrap()
}

fn tables() -> Tables {
    Tables {
        models: vec!["llama-3.1-8b".to_string()],
        tp: 1,
        layer_gemm_ns: vec![[1, 100_000], [64, 100_000], [128, 200_000]],
        head_gemm_ns: vec![[1, 20_000]],
        decode_attention_ns: Some(Grid { rows: vec![1], columns: vec![512, 1_024], ns: vec![vec![4_000, 8_000]] }),
        prefill_attention_ns: None,
    }
}

fn llama() -> Model {
    Model {
        name: "llama-3.1-8b".to_string(),
        layers: 32,
        hidden: 4_096,
        intermediate: 14_336,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocab: 128_256,
        context_tokens_max: 131_072,
        dtype_bytes: 2,
        kv_dtype_bytes: 2,
        tied_embeddings: false,
        qk_norm: false,
    }
}

fn llama_70b() -> Model {
    Model { name: "llama-3.1-70b".to_string(), layers: 80, hidden: 8_192, intermediate: 28_672, heads: 64, ..llama() }
}

fn qwen(layers: u32, hidden: u32, intermediate: u32, heads: u32, tied_embeddings: bool) -> Model {
    let shape = Model { layers, hidden, intermediate, heads, vocab: 151_936, ..llama() };
    Model { name: "qwen3".to_string(), qk_norm: true, tied_embeddings, ..shape }
}

proptest! {
    /// Steps one after the other take what each of them takes by itself.
    #[test]
    fn a_series_of_decode_steps_takes_what_each_step_takes(
        batch in 1_u64..600, context in 1_u64..200_000, with_table in any::<bool>(),
    ) {
        let cost = if with_table { measured() } else { llama_on_h100() };
        let mut load = Load::new();
        for sequence in 0..batch {
            load.decode(context + sequence % 7);
        }
        for (step, forward) in cost.decodes(load).take(300).enumerate() {
            prop_assert_eq!(forward, cost.forward(&load), "step {}", step);
            load.next_decode();
        }
    }
}

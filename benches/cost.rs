//! What asking the cost model costs: a scheduler asks several times a step, the simulator once.
//!
//! Estimate: two reads of precomputed curves, one power mean of three table reads: below 50 ns for a load of any size.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use pd_core::cost::{Cost, Load};
use pd_sim::hardware::Library;

fn cost(bench: &mut Criterion) {
    let library = Library::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios"));
    let load = |name: &str, model: &str| library.cost(name, model, 1).expect("a model that fits");
    let formulas = load("h100_sxm", "llama-3.1-8b");
    let tables = load("h200", "llama-3.1-8b");

    let mut decode = Load::new();
    for sequence in 0..256 {
        decode.decode(512 + 8 * sequence);
    }
    let mut mixed = decode;
    mixed.prefill(&formulas, 2_048, 512);
    mixed.logits(1);
    bench.bench_function("forward/decode_256", |b| b.iter(|| formulas.forward(black_box(&decode))));
    bench.bench_function("forward/decode_256_tables", |b| b.iter(|| tables.forward(black_box(&decode))));
    bench.bench_function("forward/mixed_256", |b| b.iter(|| formulas.forward(black_box(&mixed))));
    bench.bench_function("load/decode_256", |b| {
        b.iter(|| {
            let mut load = Load::new();
            for sequence in 0..256 {
                load.decode(black_box(512 + 8 * sequence));
            }
            load
        });
    });
    bench.bench_function("load/prefill", |b| b.iter(|| try_chunk(&formulas, black_box(decode), black_box(2_048))));
    bench.bench_function("new", |b| b.iter(|| library.cost("h100_sxm", "llama-3.1-8b", 1)));
}

/// What a scheduler does to see whether a chunk still fits into a step.
fn try_chunk(cost: &Cost, mut load: Load, cached: u64) -> u64 {
    load.prefill(cost, cached, 512);
    cost.forward(&load).gpu_ns
}

criterion_group!(benches, cost);
criterion_main!(benches);

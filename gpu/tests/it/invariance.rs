//! Results do not depend on company: the same bits in any batch, chunking, page size, thread count and instruction set,
//! and over KV that was computed here, copied from elsewhere or computed again after a retraction.

use std::num::NonZeroUsize;

use pd_core::batch::{Batch, Run};
use pd_core::id::{GpuPage, RequestId, Token};
use pd_gpu::cpu::Isa;
use pd_gpu::{CpuEngine, Element, EngineError, ModelSource, Options, Sample, Sampling, Weights};
use proptest::prelude::*;

use super::worker::{Computes, Share, Table, Worker, open, tokens};

/// All log-probabilities, so that one odd bit anywhere is seen.
fn watched(seed: u64) -> Sampling {
    Sampling { logprobs: Some(u32::MAX), temperature: 0.8, seed, repetition_penalty: 1.1, ..Sampling::default() }
}

fn prompt(seed: u32, length: u32) -> Vec<Token> {
    tokens((0..length).map(|index| (seed.wrapping_mul(31) + index * index * 7 + index * seed) % 128))
}

fn threads(count: usize) -> Option<NonZeroUsize> {
    NonZeroUsize::new(count)
}

/// A drawn request: prompt length, answer length, and the sizes of the chunks that its prompt is cut into.
#[derive(Clone, Debug)]
struct Plan {
    prompt: u32,
    answer: u32,
    chunks: Vec<u32>,
    /// Step of the batch loop in which it begins.
    begin: usize,
}

fn plan() -> impl Strategy<Value = Plan> {
    (1_u32..60, 1_u32..6, prop::collection::vec(1_u32..24, 1..4), 0_usize..6)
        .prop_map(|(prompt, answer, chunks, begin)| Plan { prompt, answer, chunks, begin })
}

/// Runs all plans side by side: each step takes the next chunk or token of every request that has begun.
fn side_by_side(worker: &mut Worker, plans: &[Plan]) -> Vec<Vec<Sample>> {
    let mut samples = vec![Vec::new(); plans.len()];
    let mut tables = vec![Table::default(); plans.len()];
    let mut computed = vec![0_u32; plans.len()];
    let mut chunks = vec![0_usize; plans.len()];
    for (index, plan) in plans.iter().enumerate() {
        let admitted =
            worker.engine.admit(RequestId(index as u64), &prompt(index as u32, plan.prompt), watched(index as u64));
        admitted.expect("a sound request");
    }
    for step in 0.. {
        let mut shares = Vec::new();
        for (index, (plan, table)) in plans.iter().zip(&mut tables).enumerate() {
            let answered = samples[index].len() as u32;
            if step < plan.begin || answered == plan.answer {
                continue;
            }
            let known = plan.prompt + answered;
            let chunk = plan.chunks[chunks[index] % plan.chunks.len()];
            let count = chunk.min(known - computed[index]);
            let sample = computed[index] + count == known;
            shares.push(Share { request: index as u64, start: computed[index], count, sample, table });
            computed[index] += count;
            chunks[index] += 1;
        }
        if shares.is_empty() && plans.iter().all(|plan| plan.begin <= step) {
            return samples;
        }
        for sample in worker.forward(&mut shares) {
            samples[sample.request.0 as usize].push(sample);
        }
    }
    samples
}

fn alone(worker: &mut Worker, index: usize, plan: &Plan) -> Vec<Sample> {
    worker.answer(index as u64, &prompt(index as u32, plan.prompt), watched(index as u64), plan.answer)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn batches_and_chunks_change_no_bit(plans in prop::collection::vec(plan(), 1..7), bf16 in any::<bool>(), name in 0..4_usize) {
        let weights = open(["llama3", "qwen2", "qwen3", "mistral"][name]);
        let kv = if bf16 { Element::Bf16 } else { Element::F32 };
        let one = Options { kv, page_size: 1, threads: threads(1), ..Options::default() };
        let other = Options { kv, page_size: 8, threads: threads(3), ..Options::default() };
        let mut one = Worker::new(&weights, one, 1024);
        let mut other = Worker::new(&weights, other, 512);
        let together = side_by_side(&mut other, &plans);
        for (index, plan) in plans.iter().enumerate() {
            prop_assert_eq!(together[index].len(), plan.answer as usize);
            prop_assert_eq!(&alone(&mut one, index, plan), &together[index]);
        }
    }
}

/// A model that is wide enough for several panels, blocks and threads.
const WIDE: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 1000, "hidden_size": 144,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 80,
    "intermediate_size": 200, "max_position_embeddings": 4096, "rope_theta": 10000.0}"#;

fn wide() -> Weights {
    Weights::open(&ModelSource::Dummy { config: WIDE.into(), seed: 5 }).expect("a sound configuration")
}

#[test]
fn instruction_sets_and_threads_change_no_bit() {
    let weights = wide();
    let plans: Vec<Plan> = [(300, 7), (33, 33), (1, 1)]
        .map(|(prompt, chunk)| Plan { prompt, answer: 3, chunks: vec![chunk, 97], begin: 0 })
        .into();
    for element in [Element::Bf16, Element::F32] {
        let mut results = Vec::new();
        for (isa, count) in Isa::available().into_iter().zip([1, 2, 3]) {
            let options =
                Options { isa: Some(isa), kv: element, weights: Some(element), threads: threads(count), page_size: 16 };
            results.push(side_by_side(&mut Worker::new(&weights, options, 64), &plans));
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{element}: {:?}", Isa::available());
        assert!(results[0].iter().all(|samples| samples.len() == 3));
    }
}

#[test]
fn other_weights_give_other_bits() {
    // The negative control of this file: the comparison does see small differences.
    let other = Weights::open(&ModelSource::Dummy { config: WIDE.into(), seed: 6 }).expect("a sound configuration");
    let plan = Plan { prompt: 20, answer: 1, chunks: vec![20], begin: 0 };
    let options = Options { kv: Element::F32, ..Options::default() };
    let first = alone(&mut Worker::new(&wide(), options, 8), 0, &plan);
    assert_ne!(first, alone(&mut Worker::new(&other, options, 8), 0, &plan));
    let rounded = Options { kv: Element::Bf16, ..options };
    assert_ne!(first, alone(&mut Worker::new(&wide(), rounded, 8), 0, &plan));
}

#[test]
fn a_decode_worker_goes_on_where_the_prefill_worker_stopped() {
    let plan = Plan { prompt: 45, answer: 8, chunks: vec![45], begin: 0 };
    let mut whole = Worker::new(&open("llama3"), Options::default(), 64);
    let want = alone(&mut whole, 0, &plan);

    let mut prefill = Worker::over(whole.engine.sibling(), 16);
    let mut decode = Worker::over(whole.engine.sibling(), 32);
    let request = RequestId(0);
    for worker in [&mut prefill, &mut decode] {
        worker.engine.admit(request, &prompt(0, 45), watched(0)).expect("a sound request");
    }
    let mut source = Table::default();
    let first = prefill.forward(&mut [Share { request: 0, start: 0, count: 45, sample: true, table: &mut source }]);
    prefill.engine.forget(request);
    assert_eq!(first[0], want[0]);

    // Pages land elsewhere, in another order.
    let mut sink = Table { pages: [30, 3, 17].map(GpuPage).into(), told: 0 };
    for (from, to) in source.pages.iter().zip(&sink.pages) {
        let from = prefill.arena.read(from.0).expect("nobody writes");
        decode.arena.write(to.0).expect("nobody else").copy_from_slice(&from);
    }
    for _ in 0..2 {
        decode.engine.set_token(request, 45, first[0].token).expect("the next token");
    }
    for (step, want) in want[1..].iter().enumerate() {
        let start = 45 + step as u32;
        let found = decode.forward(&mut [Share { request: 0, start, count: 1, sample: true, table: &mut sink }]);
        assert_eq!(found[0], *want);
    }
}

#[test]
fn a_retracted_sequence_comes_again_from_any_start() {
    let plan = Plan { prompt: 30, answer: 6, chunks: vec![30], begin: 0 };
    let mut worker = Worker::new(&open("qwen3"), Options { page_size: 4, ..Options::default() }, 128);
    let want = alone(&mut worker, 0, &plan);
    worker.engine.admit(RequestId(0), &prompt(0, 30), watched(0)).expect("a sound request");
    let mut table = Table::default();
    let mut samples = worker.forward(&mut [Share { request: 0, start: 0, count: 30, sample: true, table: &mut table }]);
    for start in 30..32 {
        samples.extend(worker.forward(&mut [Share { request: 0, start, count: 1, sample: true, table: &mut table }]));
    }
    // Its first 12 tokens stay in the cache; all else is lost and computed again, from another chunk on.
    let mut again = Table { pages: table.pages[..3].to_vec(), told: 0 };
    worker.forward(&mut [Share { request: 0, start: 12, count: 9, sample: false, table: &mut again }]);
    samples.extend(worker.forward(&mut [Share { request: 0, start: 21, count: 12, sample: true, table: &mut again }]));
    for start in 33..35 {
        samples.extend(worker.forward(&mut [Share { request: 0, start, count: 1, sample: true, table: &mut again }]));
    }
    assert_eq!(samples, want);
}

#[test]
fn what_a_batch_must_not_say_is_refused_and_changes_nothing() {
    let mut worker = Worker::new(&open("llama3"), Options { page_size: 4, ..Options::default() }, 8);
    let request = RequestId(7);
    let forward = |engine: &mut CpuEngine, arena: &pd_sync::Arena, run: Run, pages: &[u32]| {
        let mut batch = Batch::default();
        batch.push(run, &pages.iter().copied().map(GpuPage).collect::<Vec<_>>());
        engine.forward(&mut batch, arena)
    };
    let Worker { engine, arena, .. } = &mut worker;
    let run = |start, count, table_from| Run::new(request, start, count, true, table_from);
    assert_eq!(forward(engine, arena, run(0, 1, 0), &[0]), Err(EngineError::Unknown(request)));
    assert!(matches!(engine.admit(request, &[], Sampling::greedy()), Err(EngineError::Prompt { .. })));
    assert!(matches!(engine.admit(request, &tokens([128]), Sampling::greedy()), Err(EngineError::Prompt { .. })));
    assert!(matches!(
        engine.admit(request, &tokens(vec![1; 256]), Sampling::greedy()),
        Err(EngineError::Prompt { .. })
    ));
    let odd = Sampling { top_p: 0.0, ..Sampling::default() };
    assert!(matches!(engine.admit(request, &tokens([1]), odd), Err(EngineError::Sampling { .. })));

    engine.admit(request, &tokens(0..6), Sampling::greedy()).expect("a sound request");
    assert!(matches!(forward(engine, arena, run(0, 7, 0), &[0, 1]), Err(EngineError::Range { tokens: 6, .. })));
    assert!(matches!(forward(engine, arena, run(0, 0, 0), &[0, 1]), Err(EngineError::Range { .. })));
    assert!(matches!(forward(engine, arena, run(u32::MAX, 2, 0), &[0]), Err(EngineError::Range { .. })));
    assert!(matches!(forward(engine, arena, run(0, 6, 0), &[0]), Err(EngineError::Table { pages: 2, .. })));
    assert!(matches!(forward(engine, arena, run(0, 6, 1), &[0, 1]), Err(EngineError::Table { .. })));
    assert!(matches!(forward(engine, arena, run(0, 6, 0), &[0, 8]), Err(EngineError::Table { .. })));
    assert!(matches!(forward(engine, arena, run(0, 6, 0), &[3, 3]), Err(EngineError::Busy(_))), "one page twice");
    assert!(
        matches!(forward(engine, arena, run(0, 2, 0), &[0]), Err(EngineError::Range { .. })),
        "sampled in the prompt"
    );
    let reader = arena.read(1).expect("nobody writes");
    assert!(matches!(forward(engine, arena, run(0, 6, 0), &[0, 1]), Err(EngineError::Busy(_))));
    drop(reader);
    let small = pd_sync::Arena::new(64, 4).expect("memory");
    assert!(matches!(forward(engine, &small, run(0, 6, 0), &[0, 1]), Err(EngineError::Arena { found: 64, .. })));

    assert!(matches!(engine.set_token(request, 5, Token(9)), Err(EngineError::Position { .. })), "the prompt");
    assert!(matches!(engine.set_token(request, 7, Token(9)), Err(EngineError::Position { .. })), "a gap");
    assert!(matches!(engine.set_token(request, 6, Token(128)), Err(EngineError::Prompt { .. })));
    assert_eq!(engine.tokens(request).map(<[_]>::len), Some(6));
    let found = forward(engine, arena, run(0, 6, 0), &[0, 1]).expect("a sound run");
    assert_eq!(found.len(), 1);
    assert_eq!(engine.tokens(request).map(<[_]>::len), Some(7));
    // What an idle worker keeps is not touched by what others do.
    let before: Vec<u8> = arena.read(0).expect("nobody writes").to_vec();
    forward(engine, arena, run(6, 1, 2), &[]).expect("a sound run");
    assert_eq!(before, arena.read(0).expect("nobody writes").to_vec());
}

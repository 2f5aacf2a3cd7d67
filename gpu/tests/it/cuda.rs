//! The CUDA engine, on machines that have a GPU; elsewhere each test says that it was skipped.
//!
//! Logits of the tiny checkpoints against transformers; and its own promise, bit by bit: a sequence's tokens and KV are
//! the same alone and in company, cut into any chunks, computed again from any start, one batch ahead or not.

use std::sync::Arc;

use pd_core::batch::{Batch, Run};
use pd_core::id::{GpuPage, RequestId, Token};
use pd_gpu::cuda::{CudaModel, CudaOptions, CudaPool, devices};
use pd_gpu::{CudaEngine, Geometry, ModelSource, Sample, Sampling, Weights};
use pd_sync::Device;

use super::golden::goldens;
use super::tiny::tiny;
use super::worker::{Computes, Share, Table, open, tokens};

/// An engine with its pages.
struct Gpu {
    engine: CudaEngine,
    pool: Arc<CudaPool>,
    next_page: u32,
}

/// True where there is a GPU; says so where there is none.
fn has_gpu(test: &str) -> bool {
    match devices() {
        Ok(count) if count > 0 => true,
        Ok(_) => {
            println!("skipped: {test}: the driver shows no GPU");
            false
        }
        Err(error) => {
            println!("skipped: {test}: {error}");
            false
        }
    }
}

impl Gpu {
    fn new(weights: &Weights, options: CudaOptions, pages: u32) -> Self {
        let model = CudaModel::load(0, weights).expect("a sound model");
        Self::over(&model, options, pages)
    }

    fn over(model: &Arc<CudaModel>, options: CudaOptions, pages: u32) -> Self {
        let mut engine = CudaEngine::new(model, options).expect("a sound engine");
        let pool = engine.allocate(pages).expect("memory for pages");
        Self { engine, pool, next_page: 0 }
    }

    fn page(&self, page: GpuPage) -> Vec<u8> {
        let mut bytes = vec![0; self.pool.page_bytes()];
        self.pool.read(u64::from(page.0) * bytes.len() as u64, &mut bytes).expect("a page");
        bytes
    }
}

impl Computes for Gpu {
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
        self.engine.forward(batch).expect("a sound batch")
    }
}

fn small() -> CudaOptions {
    CudaOptions { rows_max: 512, sequences_max: 40, ..CudaOptions::default() }
}

/// A model with heads of 128, through the kernels that are made for them: 4 layers, GQA as in Llama 3.
const FAST: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 4096, "hidden_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128,
    "intermediate_size": 1408, "max_position_embeddings": 16384, "rope_theta": 500000.0}"#;

fn fast() -> Weights {
    Weights::open(&ModelSource::Dummy { config: FAST.into(), seed: 3 }).expect("a sound configuration")
}

fn prompt(seed: u32, length: u32) -> Vec<Token> {
    tokens((0..length).map(|index| (seed.wrapping_mul(977) + index * index * 7 + index * (seed + 3)) % 4096))
}

fn ids(samples: &[Sample]) -> Vec<u32> {
    samples.iter().map(|sample| sample.token.0).collect()
}

#[test]
fn checkpoints_agree_with_transformers() {
    if !has_gpu("checkpoints_agree_with_transformers") {
        return;
    }
    let checkpoints = ["llama3", "qwen2", "qwen3", "mistral"].into_iter();
    for (name, fast_math) in checkpoints.flat_map(|name| [(name, false), (name, true)]) {
        let mut gpu = Gpu::new(&open(name), CudaOptions { page_size: 4, fast_math, ..small() }, 256);
        assert_eq!(gpu.engine.fingerprint().contains("-fast."), fast_math, "KV of either kind is none of the other's");
        let (mut agreed, mut all) = (0, 0);
        for golden in goldens(name) {
            let sampling = Sampling { logprobs: Some(golden.logits.len() as u32), ..Sampling::greedy() };
            let prompt = tokens(golden.prompt.iter().copied());
            let samples = gpu.answer(1, &prompt, sampling, golden.greedy.len() as u32);
            let logprobs = samples[0].logprobs.as_ref().expect("asked for");
            let sum = golden.logits.iter().map(|logit| logit.exp()).sum::<f32>().ln();
            let mut squares = (0.0_f64, 0.0_f64);
            for (Token(id), logprob) in &logprobs.top {
                let logit = golden.logits[*id as usize];
                squares.0 += f64::from(logprob - (logit - sum)).powi(2);
                squares.1 += f64::from(logit).powi(2);
            }
            let error = (squares.0 / squares.1).sqrt();
            println!("{name}: relative error of logits {error:.4}");
            // bf16 has 8 bits: 0.4 % at each rounding, over two layers.
            assert!(error < 0.03, "{name}: {error}");
            all += golden.greedy.len();
            agreed += ids(&samples).iter().zip(&golden.greedy).take_while(|(found, want)| found == want).count();
        }
        // Two tokens of these random models are often closer than bf16 can tell.
        println!("{name}: {agreed} of {all} greedy tokens before the first that differs");
        assert!(agreed > 0, "{name}: no greedy token agrees");
    }
}

#[test]
fn the_tiny_model_answers_on_the_gpu_as_transformers_says() {
    if !has_gpu("the_tiny_model_answers_on_the_gpu_as_transformers_says") {
        return;
    }
    let (weights, goldens) = tiny();
    let mut gpu = Gpu::new(&weights, CudaOptions { rows_max: 8192, sequences_max: 8, ..small() }, 1200);
    for golden in &goldens.prompts {
        let prompt = tokens(golden.prompt.iter().copied());
        let samples = gpu.answer(1, &prompt, Sampling::greedy(), golden.next.len() as u32);
        // Sooner or later bf16 rounds a close race otherwise than f32; what was asked for comes first.
        let agreed = ids(&samples).iter().zip(&golden.next).take_while(|(found, want)| found == want).count();
        println!("{}: {agreed} of {} tokens", golden.name, golden.next.len());
        assert!(agreed >= 8, "{}: {:?} instead of {:?}", golden.name, ids(&samples), golden.next);
    }
}

/// One request, its prompt cut into chunks, with the pages that it leaves.
fn chunked(
    gpu: &mut Gpu,
    request: u64,
    prompt: &[Token],
    chunk: u32,
    sampling: Sampling,
    count: u32,
) -> (Vec<u32>, Table) {
    gpu.admit(RequestId(request), prompt, sampling);
    let mut table = Table::default();
    let length = prompt.len() as u32;
    let mut samples = Vec::new();
    let mut start = 0;
    while start < length {
        let count = chunk.min(length - start);
        let sample = start + count == length;
        samples.extend(gpu.forward(&mut [Share { request, start, count, sample, table: &mut table }]));
        start += count;
    }
    for start in length..length + count - 1 {
        samples.extend(gpu.forward(&mut [Share { request, start, count: 1, sample: true, table: &mut table }]));
    }
    gpu.forget(RequestId(request));
    (ids(&samples), table)
}

#[test]
fn company_and_chunks_change_no_token_and_no_bit_of_kv() {
    if !has_gpu("company_and_chunks_change_no_token_and_no_bit_of_kv") {
        return;
    }
    let model = CudaModel::load(0, &fast()).expect("a sound model");
    for page_size in [16, 64, 4] {
        let options = CudaOptions { page_size, rows_max: 2048, sequences_max: 40, ..CudaOptions::default() };
        let mut gpu = Gpu::over(&model, options, 40_000 / page_size);
        let lengths: Vec<u32> = (0..32).map(|at| 1 + at * at * 3 % 700).collect();
        let sampling = |at: u64| match at % 3 {
            0 => Sampling::greedy(),
            1 => Sampling { temperature: 0.9, seed: at, ..Sampling::default() },
            _ => Sampling { temperature: 1.2, seed: at, top_p: 0.8, top_k: 40, ..Sampling::default() },
        };
        // Alone, whole.
        let alone: Vec<(Vec<u32>, Table)> = (0..32_u64)
            .map(|at| chunked(&mut gpu, at, &prompt(at as u32, lengths[at as usize]), 700, sampling(at), 12))
            .collect();
        // Side by side: prompts two at a time and in odd chunks, then all of them in one decode batch.
        let mut tables = vec![Table::default(); 32];
        let mut found: Vec<Vec<u32>> = vec![Vec::new(); 32];
        for at in 0..32_u64 {
            gpu.admit(RequestId(100 + at), &prompt(at as u32, lengths[at as usize]), sampling(at));
        }
        for pair in 0..16_usize {
            let mut done = [0; 2];
            let (first, second) = tables[2 * pair..2 * pair + 2].split_at_mut(1);
            let mut both = [&mut first[0], &mut second[0]];
            while (0..2).any(|side| done[side] < lengths[2 * pair + side]) {
                let mut shares = Vec::new();
                for (side, table) in both.iter_mut().enumerate() {
                    let length = lengths[2 * pair + side];
                    let count = [113, 37][side].min(length - done[side]);
                    if count > 0 {
                        let sample = done[side] + count == length;
                        let request = 100 + (2 * pair + side) as u64;
                        shares.push(Share { request, start: done[side], count, sample, table });
                        done[side] += count;
                    }
                }
                for sample in gpu.forward(&mut shares) {
                    found[(sample.request.0 - 100) as usize].push(sample.token.0);
                }
            }
        }
        for step in 0..11 {
            let mut shares: Vec<Share<'_>> = tables
                .iter_mut()
                .enumerate()
                .map(|(at, table)| Share {
                    request: 100 + at as u64,
                    start: lengths[at] + step,
                    count: 1,
                    sample: true,
                    table,
                })
                .collect();
            for sample in gpu.forward(&mut shares) {
                found[(sample.request.0 - 100) as usize].push(sample.token.0);
            }
        }
        for at in 0..32 {
            assert_eq!(alone[at].0, found[at], "pages of {page_size}: tokens of request {at}");
            let pages = alone[at].1.pages.iter().zip(&tables[at].pages);
            // What stands behind the last token in the last page is left over from others.
            let whole = (lengths[at] + 11) / page_size;
            for (index, (one, other)) in pages.take(whole as usize).enumerate() {
                assert!(gpu.page(*one) == gpu.page(*other), "pages of {page_size}: page {index} of request {at}");
            }
        }
        assert!(found.iter().any(|tokens| tokens.windows(2).any(|pair| pair[0] != pair[1])), "answers that vary");
    }
}

#[test]
fn what_is_computed_again_after_a_retraction_is_the_same() {
    if !has_gpu("what_is_computed_again_after_a_retraction_is_the_same") {
        return;
    }
    let mut gpu = Gpu::new(&fast(), CudaOptions { rows_max: 1024, ..small() }, 512);
    let prompt = prompt(5, 300);
    let (want, table) = chunked(&mut gpu, 0, &prompt, 300, Sampling::greedy(), 60);
    gpu.admit(RequestId(1), &prompt, Sampling::greedy());
    let mut lost = Table::default();
    let mut found = gpu.forward(&mut [Share { request: 1, start: 0, count: 300, sample: true, table: &mut lost }]);
    for start in 300..340 {
        found.extend(gpu.forward(&mut [Share { request: 1, start, count: 1, sample: true, table: &mut lost }]));
    }
    // All but its first 128 tokens is lost: prompt and answer are computed again together, in two chunks.
    let mut again = Table { pages: lost.pages[..8].to_vec(), told: 0 };
    gpu.forward(&mut [Share { request: 1, start: 128, count: 190, sample: false, table: &mut again }]);
    found.extend(gpu.forward(&mut [Share { request: 1, start: 318, count: 23, sample: true, table: &mut again }]));
    for start in 341..359 {
        found.extend(gpu.forward(&mut [Share { request: 1, start, count: 1, sample: true, table: &mut again }]));
    }
    assert_eq!(ids(&found), want);
    for (one, other) in table.pages.iter().zip(&again.pages).take(350 / 16) {
        assert!(gpu.page(*one) == gpu.page(*other));
    }
}

#[test]
fn one_batch_ahead_gives_the_same_tokens() {
    if !has_gpu("one_batch_ahead_gives_the_same_tokens") {
        return;
    }
    let mut gpu = Gpu::new(&fast(), CudaOptions { rows_max: 1024, ..small() }, 512);
    let prompts: Vec<Vec<Token>> = (0..5).map(|at| prompt(at, 50 + at * 31)).collect();
    // The last one's tokens are chosen by the host: it cannot be fed ahead, and must not be.
    let sampling = |at: usize| match at {
        4 => Sampling { repetition_penalty: 1.3, ..Sampling::greedy() },
        _ => Sampling { temperature: 0.7, seed: at as u64, ..Sampling::default() },
    };
    let want: Vec<Vec<u32>> = (0..5).map(|at| ids(&gpu.answer(at as u64, &prompts[at], sampling(at), 20))).collect();
    let finisher = gpu.engine.finisher();
    let (flights, landing) = std::sync::mpsc::sync_channel(1);
    let results = std::thread::spawn(move || {
        let mut found = vec![Vec::new(); 5];
        for flight in landing {
            let (_, samples) = finisher.finish(flight);
            for sample in samples.expect("a sound batch") {
                found[sample.request.0 as usize - 10].push(sample.token.0);
            }
        }
        found
    });
    let mut tables = vec![Table::default(); 5];
    for (at, prompt) in prompts.iter().enumerate() {
        gpu.admit(RequestId(10 + at as u64), prompt, sampling(at));
    }
    for step in 0..20 {
        let mut batch = Batch::default();
        for (at, table) in tables.iter_mut().enumerate() {
            let length = prompts[at].len() as u32;
            let (start, count) = if step == 0 { (0, length) } else { (length + step - 1, 1) };
            while table.pages.len() < (start + count).div_ceil(16) as usize {
                table.pages.push(GpuPage(gpu.next_page));
                gpu.next_page += 1;
            }
            batch.push(
                Run::new(RequestId(10 + at as u64), start, count, true, table.told as u32),
                &table.pages[table.told..],
            );
            table.told = table.pages.len();
        }
        let flight = gpu.engine.submit(Box::new(batch)).expect("a sound batch");
        flights.send(flight).expect("the other thread lives");
    }
    drop(flights);
    assert_eq!(results.join().expect("no panic"), want);
}

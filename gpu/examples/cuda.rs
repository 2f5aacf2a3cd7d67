//! How fast the CUDA engine is by itself: `cargo run --release -p pd-gpu --example cuda [config.json] [--fast-math]`.
//!
//! Llama-3.1-8B's shape with weights from a seed, greedy. Printed are the time to start, the time of a decode step by
//! batch (context 1,024 to 1,280, one batch ahead), and the time to the first token by prompt length and chunk. The
//! scheduler, HTTP and tokenizers are not in these figures; `pd bench` has them.

use std::sync::mpsc::sync_channel;
use std::time::Instant;

use pd_core::batch::{Batch, Run};
use pd_core::id::{GpuPage, RequestId, Token};
use pd_gpu::cuda::{CudaModel, CudaOptions};
use pd_gpu::{CudaEngine, ModelSource, Sampling, Weights};

const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192}, "eos_token_id": 128001}"#;

const PAGE: u32 = 16;
const ROWS: u32 = 8192;

fn main() {
    let (flags, paths): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|word| word == "--fast-math");
    let fast_math = !flags.is_empty();
    let config = paths.first().map_or_else(
        || LLAMA.to_owned(),
        |path| std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}")),
    );
    let begin = Instant::now();
    let weights = Weights::open(&ModelSource::Dummy { config, seed: 1 }).unwrap_or_else(|error| panic!("{error}"));
    let model = CudaModel::load(0, &weights).unwrap_or_else(|error| panic!("{error}"));
    let loaded = begin.elapsed();
    let options = CudaOptions { page_size: PAGE, rows_max: ROWS, sequences_max: 256, context: Some(32_768), fast_math };
    let mut engine = CudaEngine::new(&model, options).unwrap_or_else(|error| panic!("{error}"));
    let prepared = begin.elapsed();
    let page_bytes = engine.geometry().page_bytes(PAGE) as u64;
    let pages = (engine.kv_bytes(0.9).unwrap_or_else(|error| panic!("{error}")) / page_bytes).min(60_000) as u32;
    engine.allocate(pages).unwrap_or_else(|error| panic!("{error}"));
    println!("{:?}, {:.1} GB of weights", model.context(), model.bytes() as f64 / 1e9);
    println!(
        "ready after {:.2} s: model {:.2} s, products {:.2} s, pages and graphs {:.2} s",
        begin.elapsed().as_secs_f64(),
        loaded.as_secs_f64(),
        (prepared - loaded).as_secs_f64(),
        (begin.elapsed() - prepared).as_secs_f64()
    );
    // `PD_PROFILE=256 ncu --profile-from-start off ...`: the kernels of a decode step of so many sequences, or of
    // a prompt of more than 256 tokens.
    if let Some(batch) = std::env::var("PD_PROFILE").ok().and_then(|batch| batch.parse().ok()) {
        if batch > 256 {
            first_token(&mut engine, batch, batch, true);
        } else {
            decode(&mut engine, batch, 1024, 8, true);
        }
        return;
    }
    for (prompt, chunk) in
        [(8192, 8192), (8192, 4096), (8192, 2048), (8192, 1024), (2048, 2048), (1024, 1024), (128, 128)]
    {
        println!(
            "first token, prompt {prompt:5}, chunks of {chunk:5}: {:8.2} ms",
            first_token(&mut engine, prompt, chunk, false)
        );
    }
    for (batch, prompt, answer) in [
        (1, 128, 256),
        (1, 1024, 256),
        (8, 1024, 128),
        (32, 1024, 256),
        (64, 1024, 128),
        (128, 1024, 256),
        (256, 1024, 256),
    ] {
        let (step, host) = decode(&mut engine, batch, prompt, answer, false);
        println!(
            "decode step, batch {batch:3}, context {prompt:5} to {:5}: {step:7.3} ms, host {host:6.0} us",
            prompt + answer
        );
    }
}

fn table(pages: u32, first: u32) -> Vec<GpuPage> {
    (first..first + pages).map(GpuPage).collect()
}

fn prompt(seed: u32, length: u32) -> Vec<Token> {
    (0..length).map(|at| Token((at * 7919 + seed * 104_729) % 128_000)).collect()
}

/// Milliseconds from a prompt to its first token, the median of some.
fn first_token(engine: &mut CudaEngine, length: u32, chunk: u32, profiled: bool) -> f64 {
    let finisher = engine.finisher();
    let request = RequestId(0);
    let pages = table(length.div_ceil(PAGE) + 1, 0);
    let times = (0..9).map(|trial| {
        engine.admit(request, &prompt(trial, length), Sampling::greedy()).expect("a sound prompt");
        if profiled && trial == 8 {
            engine.context().profile(true).expect("a profiler");
        }
        let begin = Instant::now();
        let mut flights = Vec::new();
        for start in (0..length).step_by(chunk as usize) {
            let count = chunk.min(length - start);
            let mut batch = Batch::default();
            let told = if start == 0 { 0 } else { pages.len() as u32 };
            let run = Run::new(request, start, count, start + count == length, told);
            batch.push(run, if start == 0 { &pages } else { &[] });
            flights.push(engine.submit(Box::new(batch)).expect("a sound batch"));
            if flights.len() == 2 {
                finisher.finish(flights.remove(0)).1.expect("a sound batch");
            }
        }
        for flight in flights {
            finisher.finish(flight).1.expect("a sound batch");
        }
        let ms = begin.elapsed().as_secs_f64() * 1e3;
        engine.forget(request);
        ms
    });
    median(times.collect())
}

/// Milliseconds of a step, and microseconds that the host spends on starting one.
fn decode(engine: &mut CudaEngine, batch_size: u32, length: u32, answer: u32, profiled: bool) -> (f64, f64) {
    let pages = (length + answer).div_ceil(PAGE) + 1;
    let tables: Vec<Vec<GpuPage>> = (0..batch_size).map(|at| table(pages, at * pages)).collect();
    for (at, pages) in (0_u32..).zip(&tables) {
        let request = RequestId(u64::from(at));
        engine.admit(request, &prompt(at, length), Sampling::greedy()).expect("a sound prompt");
        let mut batch = Batch::default();
        batch.push(Run::new(request, 0, length, true, 0), pages);
        engine.forward(&mut batch).expect("a sound batch");
    }
    let finisher = engine.finisher();
    let (flights, landing) = sync_channel(0);
    let (ends, ended) = sync_channel(answer as usize);
    let waiting = std::thread::spawn(move || {
        for flight in landing {
            finisher.finish(flight).1.expect("a sound batch");
            ends.send(Instant::now()).expect("room for all");
        }
    });
    let mut host = Vec::new();
    for step in 0..answer - 1 {
        let mut batch = Batch::default();
        for at in 0..batch_size {
            batch.push(Run::new(RequestId(u64::from(at)), length + step, 1, true, pages), &[]);
        }
        if profiled && step == answer - 3 {
            engine.context().profile(true).expect("a profiler");
        }
        let begin = Instant::now();
        let flight = engine.submit(Box::new(batch)).expect("a sound batch");
        host.push(begin.elapsed().as_secs_f64() * 1e6);
        flights.send(flight).expect("the other thread lives");
    }
    drop(flights);
    waiting.join().expect("no panic");
    engine.context().profile(false).expect("a profiler");
    (0..batch_size).for_each(|at| engine.forget(RequestId(u64::from(at))));
    let ends: Vec<Instant> = ended.iter().collect();
    let steps = ends.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3);
    (median(steps.collect()), median(host))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

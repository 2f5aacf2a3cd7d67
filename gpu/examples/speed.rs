//! How fast the CPU engine is: `cargo run --release -p pd-gpu --example speed [config.json [threads [prompt]]]`.
//!
//! Without arguments a tiny model. Weights are drawn from a seed. Printed are tokens per second of a prefill and steps
//! per second of decoding, and what that is of this machine's peak of fused multiply-adds (f32, all threads) and of the
//! bytes of weights that a step reads.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use pd_core::batch::{Batch, Run};
use pd_core::id::{GpuPage, RequestId, Token};
use pd_gpu::{Config, CpuEngine, Element, ModelSource, Options, Sampling, Weights};
use pd_sync::Arena;

const TINY: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 2048, "hidden_size": 256,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "intermediate_size": 704, "max_position_embeddings": 4096, "tie_word_embeddings": true}"#;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let config = arguments.first().map_or_else(
        || TINY.to_owned(),
        |path| std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}")),
    );
    let threads = arguments.get(1).and_then(|count| count.parse().ok()).unwrap_or(2);
    let length: u32 = arguments.get(2).and_then(|count| count.parse().ok()).unwrap_or(512);
    let weights = Weights::open(&ModelSource::Dummy { config, seed: 1 }).unwrap_or_else(|error| panic!("{error}"));
    for element in [Element::F32, Element::Bf16] {
        measure(&weights, element, threads, length);
    }
}

fn measure(weights: &Weights, element: Element, threads: usize, length: u32) {
    let options = Options { weights: Some(element), threads: NonZeroUsize::new(threads), ..Options::default() };
    let begin = Instant::now();
    let mut engine = CpuEngine::new(weights, options).unwrap_or_else(|error| panic!("{error}"));
    println!("{element} weights, packed in {:.1?}, {threads} threads", begin.elapsed());
    let page_bytes = engine.geometry().page_bytes(16);
    let arena = Arena::new(page_bytes, (length + 600).div_ceil(16) * 9).expect("memory for pages");
    let peak = peak() * threads as f64;
    println!("  peak           {:8.1} GFLOP/s", peak / 1e9);

    // The best of some: other work on the machine only ever slows down.
    let best = (0..5).map(|_| prefill(&mut engine, &arena, length)).min().unwrap_or_default();
    let flops = 2.0 * multiplications(weights.config()) as f64 * f64::from(length);
    let rate = flops / best.as_secs_f64();
    println!(
        "  prefill {length:5}  {:8.0} tokens/s   {:6.1} GFLOP/s without attention, {:.0} % of peak",
        f64::from(length) / best.as_secs_f64(),
        rate / 1e9,
        rate / peak * 100.0
    );
    for batch in [1, 8] {
        let step = decode(&mut engine, &arena, length, batch);
        let bytes = (multiplications(weights.config()) * element.bytes()) as f64;
        println!(
            "  decode x{batch:<3}    {:8.0} steps/s    {:6.1} GB/s of weights",
            1.0 / step.as_secs_f64(),
            bytes / step.as_secs_f64() / 1e9
        );
    }
}

/// Weights that a token is multiplied with.
fn multiplications(config: &Config) -> usize {
    let all: usize =
        config.tensors().iter().filter(|want| want.shape.len() == 2).map(|want| want.shape[0] * want.shape[1]).sum();
    if config.tied { all } else { all - config.vocab * config.hidden }
}

fn pages(first: u32, count: u32) -> Vec<GpuPage> {
    (first..first + count).map(GpuPage).collect()
}

fn admit(engine: &mut CpuEngine, request: u64, length: u32) {
    let vocab = engine.geometry().vocab;
    let prompt: Vec<Token> = (0..length).map(|index| Token((index * 7919 + request as u32) % vocab)).collect();
    engine.admit(RequestId(request), &prompt, Sampling::greedy()).unwrap_or_else(|error| panic!("{error}"));
}

fn prefill(engine: &mut CpuEngine, arena: &Arena, length: u32) -> Duration {
    admit(engine, 0, length);
    let mut batch = Batch::default();
    batch.push(Run::new(RequestId(0), 0, length, true, 0), &pages(0, length.div_ceil(16)));
    let begin = Instant::now();
    engine.forward(&mut batch, arena).unwrap_or_else(|error| panic!("{error}"));
    begin.elapsed()
}

/// The median time of a step of `requests` sequences behind short prompts.
fn decode(engine: &mut CpuEngine, arena: &Arena, length: u32, requests: u32) -> Duration {
    let prompt = length.min(64);
    let each = (length + 600).div_ceil(16);
    let mut batch = Batch::default();
    for request in 0..requests {
        admit(engine, u64::from(request), prompt);
        batch.push(Run::new(RequestId(u64::from(request)), 0, prompt, true, 0), &pages(request * each, each));
    }
    engine.forward(&mut batch, arena).unwrap_or_else(|error| panic!("{error}"));
    let mut times = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(4);
    for step in 0..400 {
        batch.clear();
        for request in 0..requests {
            batch.push(Run::new(RequestId(u64::from(request)), prompt + step, 1, true, each), &[]);
        }
        let begin = Instant::now();
        engine.forward(&mut batch, arena).unwrap_or_else(|error| panic!("{error}"));
        times.push(begin.elapsed());
        if Instant::now() > deadline {
            break;
        }
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// Floating-point operations per second of one thread that does nothing but fused multiply-adds in registers.
fn peak() -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: found just above.
            return best_rate(|rounds| unsafe { fused_avx512(rounds) }, 16.0 * 16.0 * 2.0);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: found just above.
            return best_rate(|rounds| unsafe { fused_avx2(rounds) }, 12.0 * 8.0 * 2.0);
        }
    }
    best_rate(
        |rounds| {
            let mut sums = [0.5_f32; 16];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = *sum * 0.999 + 0.001;
                }
            }
            sums.iter().sum()
        },
        16.0 * 2.0,
    )
}

fn best_rate(work: impl Fn(u64) -> f32, flops: f64) -> f64 {
    const ROUNDS: u64 = 2_000_000;
    let time = (0..5).map(|_| {
        let begin = Instant::now();
        std::hint::black_box(work(std::hint::black_box(ROUNDS)));
        begin.elapsed().as_secs_f64()
    });
    flops * ROUNDS as f64 / time.fold(f64::MAX, f64::min)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fused_avx512(rounds: u64) -> f32 {
    use std::arch::x86_64::{_mm512_add_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_setzero_ps};
    let (scale, step) = (_mm512_set1_ps(0.999), _mm512_set1_ps(0.001));
    let mut sums = [_mm512_setzero_ps(); 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, scale, step);
        }
    }
    _mm512_reduce_add_ps(sums.into_iter().fold(_mm512_setzero_ps(), |total, sum| _mm512_add_ps(total, sum)))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fused_avx2(rounds: u64) -> f32 {
    use std::arch::x86_64::{_mm256_add_ps, _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps};
    let (scale, step) = (_mm256_set1_ps(0.999), _mm256_set1_ps(0.001));
    let mut sums = [_mm256_setzero_ps(); 12];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, scale, step);
        }
    }
    _mm256_cvtss_f32(sums.into_iter().fold(_mm256_setzero_ps(), |total, sum| _mm256_add_ps(total, sum)))
}

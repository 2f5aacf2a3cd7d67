//! The model inside pd answers as transformers says it must; see `tiny/README.md`.

use std::path::Path;

use pd_gpu::{Element, ModelSource, Options, Sampling, Weights};
use serde::Deserialize;

use super::worker::{Worker, tokens};

#[derive(Deserialize)]
struct Goldens {
    prompts: Vec<Golden>,
}

#[derive(Deserialize)]
struct Golden {
    name: String,
    prompt: Vec<u32>,
    /// Greedy tokens.
    next: Vec<u32>,
    /// Most probable tokens behind the prompt and their logits.
    top: Vec<(u32, f32)>,
}

#[test]
fn the_tiny_model_answers_as_transformers_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny");
    let json = std::fs::read(folder.join("golden.json")).expect("the goldens");
    let goldens: Goldens = serde_json::from_slice(&json).expect("sound goldens");
    let weights = Weights::open(&ModelSource::Folder(folder.join("model"))).expect("the model");
    let options = Options { kv: Element::F32, weights: Some(Element::F32), page_size: 16, ..Options::default() };
    let mut worker = Worker::new(&weights, options, 400);
    assert!(goldens.prompts.len() >= 8);
    for golden in &goldens.prompts {
        let sampling = Sampling { logprobs: Some(5), ..Sampling::greedy() };
        let prompt = tokens(golden.prompt.iter().copied());
        let samples = worker.answer(1, &prompt, sampling, golden.next.len() as u32);
        let found: Vec<u32> = samples.iter().map(|sample| sample.token.0).collect();
        assert_eq!(found, golden.next, "{}", golden.name);
        // Logits are told as log-probabilities: their differences are the same.
        let top = &samples[0].logprobs.as_ref().expect("asked for").top;
        for (found, want) in top.iter().zip(&golden.top) {
            let (found_gap, want_gap) = (top[0].1 - found.1, golden.top[0].1 - want.1);
            assert_eq!(found.0.0, want.0, "{}", golden.name);
            assert!((found_gap - want_gap).abs() < 2e-3, "{}: {found_gap} instead of {want_gap}", golden.name);
        }
    }
}

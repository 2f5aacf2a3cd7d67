//! The model inside pd answers as transformers says it must; see `tiny/README.md`.

use pd_gpu::{Element, ModelSource, Options, Sampling, Weights};
use serde::Deserialize;

use super::worker::{Computes, Worker, package, tokens};

#[derive(Deserialize)]
pub(crate) struct Goldens {
    pub(crate) prompts: Vec<Golden>,
}

#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) name: String,
    pub(crate) prompt: Vec<u32>,
    /// Greedy tokens.
    pub(crate) next: Vec<u32>,
    /// Most probable tokens behind the prompt and their logits.
    top: Vec<(u32, f32)>,
}

/// The model, and what transformers computed with it.
pub(crate) fn tiny() -> (Weights, Goldens) {
    let folder = package().join("tiny");
    let json = std::fs::read(folder.join("golden.json")).expect("the goldens");
    let goldens = serde_json::from_slice(&json).expect("sound goldens");
    let weights = Weights::open(&ModelSource::Folder(folder.join("model"))).expect("the model");
    (weights, goldens)
}

#[test]
fn the_tiny_model_answers_as_transformers_says() {
    let (weights, goldens) = tiny();
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

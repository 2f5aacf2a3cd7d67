//! Logits and greedy answers that transformers computed from the same files; see `tests/data/generate.py`.

use std::collections::BTreeMap;

use pd_core::id::Token;
use pd_gpu::{Element, Options, Sampling};
use serde::Deserialize;

use super::worker::{Computes, Worker, data, open, tokens};

#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) prompt: Vec<u32>,
    pub(crate) logits: Vec<f32>,
    pub(crate) greedy: Vec<u32>,
}

/// What transformers computed with the model of this name.
pub(crate) fn goldens(name: &str) -> Vec<Golden> {
    let json = std::fs::read(data("golden.json")).expect("the goldens");
    let mut goldens: BTreeMap<String, Vec<Golden>> = serde_json::from_slice(&json).expect("sound goldens");
    let goldens = goldens.remove(name).expect("goldens of the model");
    assert_eq!(goldens.len(), 2, "two prompts");
    goldens
}

fn check(name: &str) {
    let options = Options { kv: Element::F32, page_size: 4, ..Options::default() };
    let mut worker = Worker::new(&open(name), options, 256);
    for golden in &goldens(name) {
        let vocab = golden.logits.len() as u32;
        let sampling = Sampling { logprobs: Some(vocab), ..Sampling::greedy() };
        let prompt = tokens(golden.prompt.iter().copied());
        let samples = worker.answer(1, &prompt, sampling, golden.greedy.len() as u32);
        let found: Vec<u32> = samples.iter().map(|sample| sample.token.0).collect();

        let logprobs = samples[0].logprobs.as_ref().expect("asked for");
        let sum = golden.logits.iter().map(|logit| logit.exp()).sum::<f32>().ln();
        assert_eq!(logprobs.top.len(), golden.logits.len());
        for (Token(id), logprob) in &logprobs.top {
            let want = golden.logits[*id as usize] - sum;
            assert!((logprob - want).abs() < 1e-3, "{name}: token {id}: {logprob} instead of {want}");
        }
        assert_eq!(found, golden.greedy, "{name}: greedy");
    }
}

#[test]
fn llama_3_with_scaled_rotation_agrees_with_transformers() {
    check("llama3");
}

#[test]
fn qwen_2_with_biases_agrees_with_transformers() {
    check("qwen2");
}

#[test]
fn qwen_3_with_norms_of_heads_agrees_with_transformers() {
    check("qwen3");
}

#[test]
fn mistral_with_a_window_shorter_than_the_prompt_agrees_with_transformers() {
    check("mistral");
}

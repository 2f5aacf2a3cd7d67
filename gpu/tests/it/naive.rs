//! A decoder in f64, written down as the papers have it: no cache, no pages, no batch, every position from scratch. For
//! settings that the goldens leave out.

use std::collections::BTreeMap;
use std::fs;

use half::{bf16, f16};
use pd_gpu::{Element, ModelSource, Options, Sampling, Weights};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::worker::{Computes, Worker, data, tokens};

struct Naive {
    config: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Vec<f64>>,
}

impl Naive {
    fn number(&self, key: &str) -> usize {
        self.config[key].as_u64().expect("a number") as usize
    }

    fn product(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = &self.tensors[&format!("{name}.weight")];
        let bias = self.tensors.get(&format!("{name}.bias"));
        let row = |(index, row): (usize, &[f64])| {
            let sum: f64 = row.iter().zip(x).map(|(weight, x)| weight * x).sum();
            sum + bias.map_or(0.0, |bias| bias[index])
        };
        weight.chunks_exact(x.len()).enumerate().map(row).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|value| value * value).sum::<f64>() / x.len() as f64;
        let scale = (mean + self.config["rms_norm_eps"].as_f64().expect("a number")).sqrt();
        x.iter().zip(&self.tensors[&format!("{name}.weight")]).map(|(value, weight)| value / scale * weight).collect()
    }

    /// Queries or keys of a position, by head.
    fn rotated(&self, layer: usize, kind: &str, x: &[f64], position: usize) -> Vec<Vec<f64>> {
        let dim = self.number("hidden_size") / self.number("num_attention_heads");
        let dim = self.config.get("head_dim").and_then(Value::as_u64).map_or(dim, |dim| dim as usize);
        let theta = self.config["rope_theta"].as_f64().expect("a number");
        let factor =
            self.config.get("rope_scaling").map_or(1.0, |scaling| scaling["factor"].as_f64().expect("a number"));
        let all = self.product(&format!("model.layers.{layer}.self_attn.{kind}_proj"), x);
        let rotate = |head: &[f64]| {
            let norm = format!("model.layers.{layer}.self_attn.{kind}_norm");
            let has_norm = self.tensors.contains_key(&format!("{norm}.weight"));
            let head = if has_norm { self.norm(&norm, head) } else { head.to_vec() };
            let mut out = head.clone();
            for pair in 0..dim / 2 {
                let angle = position as f64 / factor * theta.powf(-(2.0 * pair as f64) / dim as f64);
                let (a, b) = (head[pair], head[pair + dim / 2]);
                out[pair] = a * angle.cos() - b * angle.sin();
                out[pair + dim / 2] = b * angle.cos() + a * angle.sin();
            }
            out
        };
        if kind == "v" {
            all.chunks_exact(dim).map(<[f64]>::to_vec).collect()
        } else {
            all.chunks_exact(dim).map(rotate).collect()
        }
    }

    /// Log-probabilities after the last token.
    fn logprobs(&self, prompt: &[u32], window: usize) -> Vec<f64> {
        let hidden = self.number("hidden_size");
        let embedding = &self.tensors["model.embed_tokens.weight"];
        let mut xs: Vec<Vec<f64>> =
            prompt.iter().map(|token| embedding[*token as usize * hidden..][..hidden].to_vec()).collect();
        for layer in 0..self.number("num_hidden_layers") {
            let part = |name: &str| format!("model.layers.{layer}.{name}");
            let normed: Vec<Vec<f64>> = xs.iter().map(|x| self.norm(&part("input_layernorm"), x)).collect();
            let heads = |kind: &str| -> Vec<Vec<Vec<f64>>> {
                normed.iter().enumerate().map(|(position, x)| self.rotated(layer, kind, x, position)).collect()
            };
            let (queries, keys, values) = (heads("q"), heads("k"), heads("v"));
            for (position, x) in xs.iter_mut().enumerate() {
                let mut mixed = Vec::new();
                for (index, query) in queries[position].iter().enumerate() {
                    let head = index * keys[0].len() / queries[0].len();
                    let seen = (position + 1).saturating_sub(window)..position + 1;
                    let score = |token: usize| {
                        let product: f64 = query.iter().zip(&keys[token][head]).map(|(query, key)| query * key).sum();
                        (product / (query.len() as f64).sqrt()).exp()
                    };
                    let total: f64 = seen.clone().map(score).sum();
                    mixed.extend((0..query.len()).map(|element| {
                        seen.clone().map(|token| score(token) / total * values[token][head][element]).sum::<f64>()
                    }));
                }
                let out = self.product(&part("self_attn.o_proj"), &mixed);
                x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
                let normed = self.norm(&part("post_attention_layernorm"), x);
                let (gate, up) =
                    (self.product(&part("mlp.gate_proj"), &normed), self.product(&part("mlp.up_proj"), &normed));
                let inner: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
                let down = self.product(&part("mlp.down_proj"), &inner);
                x.iter_mut().zip(down).for_each(|(x, down)| *x += down);
            }
        }
        let last = self.norm("model.norm", xs.last().expect("a token"));
        let output = if self.tensors.contains_key("lm_head.weight") { "lm_head" } else { "model.embed_tokens" };
        let logits = self.product(output, &last);
        let total = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        logits.into_iter().map(|logit| logit - total).collect()
    }
}

/// Compares engine and naive decoder on a model of the test data with some settings changed and biases added.
fn check(name: &str, settings: &[(&str, Value)], biases: &[(&str, usize)], window: usize) {
    let text = fs::read(data(name).join("config.json")).expect("test data");
    let mut config: BTreeMap<String, Value> = serde_json::from_slice(&text).expect("sound JSON");
    config.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    config.retain(|_, value| !value.is_null());
    let bytes = fs::read(data(name).join("model.safetensors")).expect("test data");
    let parsed = SafeTensors::deserialize(&bytes).expect("a sound file");
    let mut stored: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for (name, view) in parsed.iter() {
        let values = view.data().chunks_exact(2).map(|raw| {
            let raw = [raw[0], raw[1]];
            if view.dtype() == Dtype::BF16 {
                bf16::from_le_bytes(raw).to_f32()
            } else {
                f16::from_le_bytes(raw).to_f32()
            }
        });
        stored.insert(name.to_owned(), (view.shape().to_vec(), values.collect()));
    }
    for (part, length) in biases {
        for layer in 0..2 {
            let values = (0..*length).map(|index| ((index * 7 + layer) % 11) as f32 * 0.05 - 0.2).collect();
            stored.insert(format!("model.layers.{layer}.{part}.bias"), (vec![*length], values));
        }
    }
    let raw: BTreeMap<&String, (Vec<usize>, Vec<u8>)> = stored
        .iter()
        .map(|(name, (shape, values))| {
            (name, (shape.clone(), values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        })
        .collect();
    let views = raw.iter().map(|(name, (shape, bytes))| {
        ((*name).clone(), safetensors::tensor::TensorView::new(Dtype::F32, shape.clone(), bytes).expect("consistent"))
    });
    let weights = safetensors::serialize(views.collect::<Vec<_>>(), None).expect("a file");
    let json = serde_json::to_vec(&config).expect("plain values");
    let source = ModelSource::Bytes { config: json.into(), generation: None, weights: weights.into() };
    let weights = Weights::open(&source).expect("a sound model");

    let tensors = stored.into_iter().map(|(name, (_, values))| (name, values.into_iter().map(f64::from).collect()));
    let naive = Naive { config, tensors: tensors.collect() };
    let mut worker = Worker::new(&weights, Options { kv: Element::F32, page_size: 4, ..Options::default() }, 64);
    for length in [1, 2, 19, 50] {
        let prompt: Vec<u32> = (0..length).map(|index| (index * index * 5 + index + 3) % 128).collect();
        let sampling = Sampling { logprobs: Some(128), ..Sampling::greedy() };
        let samples = worker.answer(1, &tokens(prompt.iter().copied()), sampling, 1);
        let want = naive.logprobs(&prompt, window);
        let found = samples[0].logprobs.as_ref().expect("asked for");
        assert_eq!(found.top.len(), 128);
        for (token, logprob) in &found.top {
            let want = want[token.0 as usize];
            assert!((f64::from(*logprob) - want).abs() < 1e-3, "{name} {settings:?} {token}: {logprob}, not {want}");
        }
    }
}

#[test]
fn linear_scaling_divides_positions() {
    check("llama3", &[("rope_scaling", json!({"type": "linear", "factor": 4.0}))], &[], 1000);
}

#[test]
fn llama_with_biases_everywhere() {
    let biases = [
        ("self_attn.q_proj", 64),
        ("self_attn.k_proj", 32),
        ("self_attn.v_proj", 32),
        ("self_attn.o_proj", 64),
        ("mlp.gate_proj", 96),
        ("mlp.up_proj", 96),
        ("mlp.down_proj", 64),
    ];
    let settings = [("attention_bias", json!(true)), ("mlp_bias", json!(true)), ("rope_scaling", json!(null))];
    check("llama3", &settings, &biases, 1000);
}

#[test]
fn qwen_3_with_windows_in_all_layers() {
    let settings = [
        ("use_sliding_window", json!(true)),
        ("sliding_window", json!(5)),
        ("max_window_layers", json!(0)),
        ("layer_types", json!(null)),
    ];
    check("qwen3", &settings, &[], 5);
}

#[test]
fn qwen_2_whose_window_is_switched_off_looks_back_at_all() {
    let settings = [
        ("sliding_window", json!(5)),
        ("layer_types", json!(null)),
        ("rope_parameters", json!(null)),
        ("rope_theta", json!(5000.0)),
    ];
    check("qwen2", &settings, &[], 1000);
}

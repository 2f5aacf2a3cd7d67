//! Where models come from, and what tells them apart.

use std::borrow::Cow;
use std::fs;

use pd_core::id::Token;
use pd_gpu::{Element, LoadError, ModelSource, Options, Sampling, Weights};

use super::worker::{Computes, Worker, data, open, tokens};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 96, "hidden_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 80,
    "max_position_embeddings": 128, "eos_token_id": [5, 6]}"#;

fn dummy(config: &str, seed: u64) -> Weights {
    Weights::open(&ModelSource::Dummy { config: config.into(), seed }).expect("a sound configuration")
}

fn answer(weights: &Weights, element: Option<Element>) -> Vec<u32> {
    let mut worker = Worker::new(weights, Options { weights: element, ..Options::default() }, 16);
    let samples = worker.answer(1, &tokens([1, 2, 3, 50]), Sampling::greedy(), 12);
    samples.iter().map(|sample| sample.token.0).collect()
}

#[test]
fn a_model_in_memory_is_the_one_in_the_folder() {
    let read = |name: &str| Cow::Owned(fs::read(data("llama3").join(name)).expect("test data"));
    let generation = br#"{"eos_token_id": [7, 2], "temperature": 0.6, "top_p": 0.9, "do_sample": true}"#;
    let bytes = ModelSource::Bytes {
        config: read("config.json"),
        generation: Some(Cow::Borrowed(generation)),
        weights: read("model.safetensors"),
    };
    let (memory, folder) = (Weights::open(&bytes).expect("sound"), open("llama3"));
    assert_eq!(memory.fingerprint(), folder.fingerprint(), "what ends an answer is not what KV depends on");
    assert_eq!(answer(&memory, None), answer(&folder, None));
    assert_eq!(memory.config().eos, [7, 2].map(Token));
    assert_eq!(folder.config().eos, [2].map(Token));
    assert_eq!((memory.recommended().temperature, memory.recommended().top_k), (Some(0.6), None));
    assert_eq!(memory.bytes(), folder.bytes());
}

#[test]
fn equal_seeds_draw_equal_weights() {
    let greedy = answer(&dummy(CONFIG, 1), None);
    assert_eq!(greedy, answer(&dummy(CONFIG, 1), None));
    assert_ne!(greedy, answer(&dummy(CONFIG, 2), None));
    assert!(greedy.windows(2).any(|pair| pair[0] != pair[1]), "not the same token for ever: {greedy:?}");
}

#[test]
fn fingerprints_differ_where_kv_would() {
    let mut seen = vec![
        dummy(CONFIG, 1).fingerprint(),
        dummy(CONFIG, 2).fingerprint(),
        dummy(&CONFIG.replace("\"hidden_size\": 48", "\"hidden_size\": 48, \"rope_theta\": 500.0"), 1).fingerprint(),
        open("llama3").fingerprint(),
        open("qwen3").fingerprint(),
    ];
    // One bit of one weight.
    let mut bytes = fs::read(data("llama3").join("model.safetensors")).expect("test data");
    let last = bytes.len() - 1;
    bytes[last - 1] ^= 1;
    let config = fs::read(data("llama3").join("config.json")).expect("test data");
    let source = ModelSource::Bytes { config: config.into(), generation: None, weights: bytes.into() };
    seen.push(Weights::open(&source).expect("sound").fingerprint());
    assert!(seen.iter().all(|fingerprint| fingerprint.len() == 32));
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count);
    // What is written differently but means the same is the same.
    assert_eq!(dummy(&CONFIG.replace("\n", ""), 1).fingerprint(), dummy(CONFIG, 1).fingerprint());

    let one = Worker::new(&dummy(CONFIG, 1), Options { weights: Some(Element::Bf16), ..Options::default() }, 1);
    let other = Worker::new(&dummy(CONFIG, 1), Options { weights: Some(Element::F32), ..Options::default() }, 1);
    assert_ne!(one.engine.fingerprint(), other.engine.fingerprint(), "rounded weights make other KV");
}

#[test]
fn a_folder_with_recommendations_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(data("qwen2").join(name), folder.path().join(name)).expect("a copy");
    }
    let path = folder.path().join("generation_config.json");
    let open = || Weights::open(&ModelSource::Folder(folder.path().into()));
    assert_eq!(open().expect("sound").recommended(), Default::default());
    fs::write(&path, r#"{"eos_token_id": 9, "top_k": 20, "repetition_penalty": 1.05}"#).expect("written");
    let weights = open().expect("sound");
    assert_eq!((weights.recommended().top_k, weights.config().eos.as_slice()), (Some(20), &[Token(9)][..]));
    fs::write(&path, r#"{"do_sample": false, "temperature": 0.1}"#).expect("written");
    assert_eq!(open().expect("sound").recommended().temperature, None);
    fs::write(&path, "[").expect("written");
    assert!(matches!(open(), Err(LoadError::Config { .. })));
}

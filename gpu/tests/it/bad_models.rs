//! Models that are broken: each is refused with an error that names the file and what is wrong, never with a panic.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pd_gpu::{CpuEngine, Element, ModelSource, Options, Weights};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

use super::worker::data;

/// Why a source is refused.
fn refusal(source: &ModelSource) -> String {
    Weights::open(source).expect_err("a broken model").to_string()
}

fn folder(path: &Path) -> String {
    refusal(&ModelSource::Folder(path.to_owned()))
}

/// A copy of a sound model, to be broken.
fn copy(name: &str) -> tempfile::TempDir {
    let to = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(data(name)).expect("test data") {
        let entry = entry.expect("test data");
        fs::copy(entry.path(), to.path().join(entry.file_name())).expect("a copy");
    }
    to
}

/// The sound Llama with another value in its configuration.
fn configured(key: &str, value: Value) -> String {
    let text = fs::read(data("llama3").join("config.json")).expect("test data");
    let mut config: BTreeMap<String, Value> = serde_json::from_slice(&text).expect("sound JSON");
    config.insert(key.to_owned(), value);
    refusal(&ModelSource::Dummy { config: serde_json::to_string(&config).expect("plain values"), seed: 1 })
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The sound Llama with other tensors.
fn with_tensors(change: impl FnOnce(&mut Tensors)) -> ModelSource {
    let bytes = fs::read(data("llama3").join("model.safetensors")).expect("test data");
    let parsed = SafeTensors::deserialize(&bytes).expect("a sound file");
    let mut tensors: Tensors = parsed
        .iter()
        .map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).expect("consistent sizes"))
    });
    let weights = safetensors::serialize(views.collect::<Vec<_>>(), None).expect("a file");
    with_bytes(weights)
}

fn with_bytes(weights: Vec<u8>) -> ModelSource {
    let config = fs::read(data("llama3").join("config.json")).expect("test data");
    ModelSource::Bytes { config: Cow::Owned(config), generation: None, weights: Cow::Owned(weights) }
}

fn assert_says(found: &str, words: &[&str]) {
    for word in words {
        assert!(found.contains(word), "{found:?} does not say {word:?}");
    }
}

#[test]
fn files_that_are_not_there_are_named() {
    assert_says(&folder(Path::new("/no/such/folder")), &["/no/such/folder/config.json", "cannot be read"]);
    let model = copy("llama3");
    fs::remove_file(model.path().join("model.safetensors")).expect("removed");
    assert_says(&folder(model.path()), &["model.safetensors", "cannot be read"]);
    let model = copy("mistral");
    fs::remove_file(model.path().join("model-00002-of-00002.safetensors")).expect("removed");
    assert_says(&folder(model.path()), &["index.json", "names model-00002-of-00002.safetensors for "]);
}

#[test]
fn an_index_that_is_broken_is_refused() {
    let model = copy("mistral");
    let path = model.path().join("model.safetensors.index.json");
    fs::write(&path, "{").expect("written");
    assert_says(&folder(model.path()), &["index.json: EOF"]);
    fs::write(&path, r#"{"metadata": {}}"#).expect("written");
    assert_says(&folder(model.path()), &["index.json: missing field `weight_map`"]);
    fs::write(&path, r#"{"weight_map": {"model.norm.weight": "../../etc/passwd"}}"#).expect("written");
    assert_says(&folder(model.path()), &["shards have to lie in the same folder"]);
    fs::write(&path, r#"{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}"#).expect("written");
    assert_says(&folder(model.path()), &["has no tensor"]);
}

#[test]
fn a_configuration_that_is_broken_is_refused_with_its_place() {
    let model = copy("llama3");
    fs::write(model.path().join("config.json"), "{\"architectures\": [\n").expect("written");
    assert_says(&folder(model.path()), &["config.json: EOF", "line 2"]);
    fs::write(model.path().join("config.json"), "{}").expect("written");
    assert_says(&folder(model.path()), &["architecture \"\" is not supported", "LlamaForCausalLM"]);
    fs::write(model.path().join("config.json"), [0xff, 0xfe]).expect("written");
    assert_says(&folder(model.path()), &["config.json: "]);
    let model = copy("llama3");
    fs::write(model.path().join("generation_config.json"), r#"{"eos_token_id": "two"}"#).expect("written");
    assert_says(&folder(model.path()), &["generation_config.json: eos_token_id holds \"two\", which is no token"]);
}

#[test]
fn values_that_no_model_has_are_refused() {
    let cases = [
        ("architectures", json!(["GPT2LMHeadModel"]), "\"GPT2LMHeadModel\" is not supported"),
        ("num_attention_heads", json!(0), "num_attention_heads is 0"),
        ("num_attention_heads", json!(7), "num_attention_heads 7 is no multiple of num_key_value_heads 2"),
        ("num_attention_heads", json!(10_000), "num_attention_heads is 10000, at most 4096"),
        ("num_key_value_heads", json!(3), "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ("num_key_value_heads", json!(0), "num_key_value_heads is 0"),
        ("num_hidden_layers", json!(0), "num_hidden_layers is 0"),
        ("num_hidden_layers", json!(1_000_000), "at most 4096 makes sense"),
        ("vocab_size", json!(4_000_000_000_u64), "at most"),
        ("vocab_size", json!(null), "vocab_size is missing"),
        ("hidden_size", json!(-64), "invalid value"),
        ("hidden_size", json!("64"), "invalid type"),
        ("head_dim", json!(20), "heads have 20 elements"),
        ("head_dim", json!(4096), "heads have 4096 elements"),
        ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
        ("rms_norm_eps", json!(-1.0), "rms_norm_eps is -1"),
        ("rope_theta", json!(0.0), "rope_theta is 0"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), "rope scaling \"yarn\" is not supported"),
        ("rope_scaling", json!({"type": "linear"}), "needs a positive number factor"),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}),
            "is not below",
        ),
        ("quantization_config", json!({"bits": 4}), "quantised weights are not supported"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("max_position_embeddings", json!(0), "max_position_embeddings is 0"),
        ("sliding_window", json!(0), "sliding_window is 0"),
        ("eos_token_id", json!([1, -2]), "eos_token_id holds -2"),
    ];
    for (key, value, word) in cases {
        let found = configured(key, value.clone());
        assert!(found.contains(word), "{key} = {value}: {found:?} does not say {word:?}");
        assert!(found.contains("config.json"), "{found:?} names no file");
    }
}

#[test]
fn files_that_are_cut_or_overgrown_are_refused() {
    let bytes = fs::read(data("llama3").join("model.safetensors")).expect("test data");
    for length in [0, 1, 7, 8, 9, 500, bytes.len() / 2, bytes.len() - 1] {
        let found = refusal(&with_bytes(bytes[..length].to_vec()));
        assert_says(&found, &["model.safetensors", "not a whole safetensors file", &format!("({length} bytes)")]);
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_says(&refusal(&with_bytes(longer)), &["not a whole safetensors file"]);
    for header in [u64::MAX, 1 << 40, bytes.len() as u64, 0, 3] {
        let mut odd = bytes.clone();
        odd[..8].copy_from_slice(&header.to_le_bytes());
        assert_says(&refusal(&with_bytes(odd)), &["not a whole safetensors file"]);
    }
    let mut odd = bytes;
    odd[20] = b'!';
    assert!(Weights::open(&with_bytes(odd)).is_err());
    let model = copy("llama3");
    fs::write(model.path().join("model.safetensors"), []).expect("written");
    assert_says(&folder(model.path()), &["model.safetensors"]);
}

#[test]
fn tensors_that_do_not_fit_the_configuration_are_refused() {
    const NAME: &str = "model.layers.1.mlp.up_proj.weight";
    let missing = with_tensors(|tensors| {
        tensors.remove(NAME);
    });
    assert_says(&refusal(&missing), &["model.safetensors", "has no tensor", NAME, "[96, 64]"]);
    let turned = with_tensors(|tensors| tensors.get_mut(NAME).expect("there").1.reverse());
    assert_says(&refusal(&turned), &[NAME, "has shape [64, 96]", "asks for [96, 64]"]);
    let quantised = with_tensors(|tensors| {
        let tensor = tensors.get_mut(NAME).expect("there");
        (tensor.0, tensor.2) = (Dtype::F8_E4M3, vec![0; 96 * 64]);
    });
    assert_says(&refusal(&quantised), &[NAME, "F8_E4M3", "supported are BF16, F16 and F32"]);
    let whole = with_tensors(|tensors| {
        let tensor = tensors.get_mut(NAME).expect("there");
        (tensor.0, tensor.2) = (Dtype::I32, vec![0; 96 * 64 * 4]);
    });
    assert_says(&refusal(&whole), &[NAME, "I32"]);
    let more = with_tensors(|tensors| {
        tensors.insert("model.layers.0.self_attn.q_proj.bias".into(), (Dtype::F32, vec![64], vec![0; 256]));
    });
    assert_says(&refusal(&more), &["model.layers.0.self_attn.q_proj.bias", "has no place"]);
    let deeper = with_tensors(|tensors| {
        let norm = tensors["model.layers.1.input_layernorm.weight"].clone();
        tensors.insert("model.layers.2.input_layernorm.weight".into(), norm);
    });
    assert_says(&refusal(&deeper), &["model.layers.2.input_layernorm.weight", "has no place"]);
}

#[test]
fn weights_that_are_no_numbers_are_found_when_they_are_packed() {
    for (name, at) in
        [("model.layers.0.mlp.down_proj.weight", 100), ("model.norm.weight", 3), ("model.embed_tokens.weight", 0)]
    {
        for odd in [f32::NAN, f32::NEG_INFINITY] {
            let source = with_tensors(|tensors| {
                let bytes = &mut tensors.get_mut(name).expect("there").2;
                bytes[at * 2..][..2].copy_from_slice(&odd.to_le_bytes()[2..]);
            });
            let weights = Weights::open(&source).expect("headers are sound");
            let found = CpuEngine::new(&weights, Options::default()).expect_err("a broken weight").to_string();
            assert_says(&found, &["model.safetensors", name, "not finite"]);
        }
    }
}

#[test]
fn options_that_no_engine_can_have_are_refused() {
    let weights = Weights::open(&with_tensors(|_| {})).expect("a sound model");
    let found = CpuEngine::new(&weights, Options { page_size: 0, ..Options::default() }).expect_err("no page");
    assert_says(&found.to_string(), &["pages of 0 tokens"]);
    // The negative control: the same model, unbroken, is not refused.
    let engine = CpuEngine::new(&weights, Options { kv: Element::Bf16, page_size: 3, ..Options::default() });
    let geometry = engine.expect("a sound engine").geometry().clone();
    assert_eq!((geometry.token_bytes(), geometry.page_bytes(3)), (256, 768));
    assert_eq!(geometry.eos, [pd_core::id::Token(2)]);
}

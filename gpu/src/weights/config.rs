//! `config.json` and `generation_config.json`, checked: what is not understood is refused, never guessed.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use pd_core::id::Token;

use super::error::LoadError;

/// The families of decoders that the engine computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Architecture {
    /// Llama 2, 3, 3.x and what is distilled into them.
    Llama,
    /// Biases on queries, keys and values.
    Qwen2,
    /// Norms on the heads of queries and keys.
    Qwen3,
    /// Llama with a window.
    Mistral,
}

/// How positions rotate queries and keys.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub enum Scaling {
    /// As trained.
    None,
    /// All frequencies divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above context / this are low frequencies.
        low: f64,
        /// Wavelengths below context / this are high frequencies.
        high: f64,
        /// The context that the model was first trained with.
        context: f64,
    },
}

/// A model's shape and rules.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Config {
    /// The family.
    pub architecture: Architecture,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Elements of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head; a multiple of 16.
    pub head_dim: usize,
    /// Elements inside the feed-forward part.
    pub ffn: usize,
    /// Most tokens of a sequence.
    pub context: usize,
    /// Added to the mean square in norms.
    pub eps: f32,
    /// Base of the rotation's wavelengths.
    pub rope_theta: f64,
    /// How they are stretched.
    pub rope_scaling: Scaling,
    /// True if the output matrix is the embedding.
    pub tied: bool,
    /// True if queries, keys and values have biases.
    pub qkv_bias: bool,
    /// True if the output of attention has a bias.
    pub out_bias: bool,
    /// True if the feed-forward part has biases.
    pub mlp_bias: bool,
    /// For each layer how many tokens it looks back, itself included; `None` for all.
    pub windows: Vec<Option<usize>>,
    /// Tokens that end an answer; not part of the weights' fingerprint.
    #[serde(skip)]
    pub eos: Vec<Token>,
}

/// What `generation_config.json` recommends where a request says nothing.
#[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize)]
pub struct Recommended {
    /// See [`crate::Sampling`], as all of these.
    pub temperature: Option<f32>,
    /// Most probable tokens that make up this much.
    pub top_p: Option<f32>,
    /// Most probable tokens.
    pub top_k: Option<i64>,
    /// Relative to the most probable token.
    pub min_p: Option<f32>,
    /// Divides logits of tokens that were there.
    pub repetition_penalty: Option<f32>,
}

#[derive(Deserialize)]
struct Raw {
    architectures: Option<Vec<String>>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
    eos_token_id: Option<Value>,
}

const LARGEST: usize = 1 << 24;
const LAYERS_MAX: usize = 4096;
const HEADS_MAX: usize = 4096;

impl Config {
    /// Reads a `config.json`; `file` is its name in errors.
    ///
    /// # Errors
    /// [`LoadError::Config`] or [`LoadError::Architecture`] with what is wrong.
    pub fn parse(file: &str, json: &[u8]) -> Result<Self, LoadError> {
        let no = |why: String| LoadError::Config { file: file.to_owned(), why };
        let raw: Raw = serde_json::from_slice(json).map_err(|error| no(error.to_string()))?;
        let architecture = architecture(file, &raw)?;
        let need = |name: &str, value: Option<usize>| match value {
            None => Err(no(format!("{name} is missing"))),
            Some(0) => Err(no(format!("{name} is 0"))),
            Some(value) if value > LARGEST => Err(no(format!("{name} is {value}, at most {LARGEST} makes sense"))),
            Some(value) => Ok(value),
        };

        let heads = need("num_attention_heads", raw.num_attention_heads)?;
        let kv_heads = need("num_key_value_heads", raw.num_key_value_heads.or(Some(heads)))?;
        let hidden = need("hidden_size", raw.hidden_size)?;
        let layers = need("num_hidden_layers", raw.num_hidden_layers)?;
        if layers > LAYERS_MAX {
            return Err(no(format!("num_hidden_layers is {layers}, at most {LAYERS_MAX} makes sense")));
        }
        if heads > HEADS_MAX {
            return Err(no(format!("num_attention_heads is {heads}, at most {HEADS_MAX} makes sense")));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(no(format!("num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")));
        }
        let head_dim = match raw.head_dim {
            Some(given) => need("head_dim", Some(given))?,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(no(format!("hidden_size {hidden} is no multiple of num_attention_heads {heads}"))),
        };
        if !head_dim.is_multiple_of(16) || head_dim > 1024 {
            return Err(no(format!("heads have {head_dim} elements; supported are multiples of 16 up to 1024")));
        }
        if let Some(act) = raw.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(no(format!("hidden_act is {act:?}; supported is \"silu\"")));
        }
        if raw.quantization_config.is_some() {
            return Err(no("quantization_config is set; quantised weights are not supported".into()));
        }
        if raw.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
            return Err(no("partial_rotary_factor is not 1; heads that rotate in part are not supported".into()));
        }
        let eps = raw.rms_norm_eps.unwrap_or(1e-6);
        if !(eps > 0.0 && eps < 1.0) {
            return Err(no(format!("rms_norm_eps is {eps}; it has to be between 0 and 1")));
        }
        let (rope_theta, rope_scaling) = rope(&raw).map_err(no)?;
        let bias = raw.attention_bias.unwrap_or(false);
        let context = need("max_position_embeddings", raw.max_position_embeddings)?;
        let windows = windows(&raw, architecture, layers, context).map_err(no)?;

        Ok(Self {
            architecture,
            vocab: need("vocab_size", raw.vocab_size)?,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            ffn: need("intermediate_size", raw.intermediate_size)?,
            context,
            eps: eps as f32,
            rope_theta,
            rope_scaling,
            tied: raw.tie_word_embeddings.unwrap_or(false),
            qkv_bias: bias || architecture == Architecture::Qwen2,
            out_bias: bias && architecture != Architecture::Qwen2,
            mlp_bias: raw.mlp_bias.unwrap_or(false),
            windows,
            eos: tokens(raw.eos_token_id.as_ref()).map_err(|why| no(format!("eos_token_id {why}")))?,
        })
    }

    /// Takes from a `generation_config.json` what ends an answer, and returns what it recommends.
    ///
    /// # Errors
    /// [`LoadError::Config`] if it is no JSON or `eos_token_id` is no number or list of numbers.
    pub fn generation(&mut self, file: &str, json: &[u8]) -> Result<Recommended, LoadError> {
        let no = |why: String| LoadError::Config { file: file.to_owned(), why };
        let value: Value = serde_json::from_slice(json).map_err(|error| no(error.to_string()))?;
        let eos = tokens(value.get("eos_token_id")).map_err(|why| no(format!("eos_token_id {why}")))?;
        if !eos.is_empty() {
            self.eos = eos;
        }
        // Without sampling the other fields are left-overs that transformers ignores, too.
        if value.get("do_sample") == Some(&Value::Bool(false)) {
            return Ok(Recommended::default());
        }
        serde_json::from_value(value).map_err(|error| no(error.to_string()))
    }

    /// True if heads of queries and keys are normed.
    #[must_use]
    pub fn has_head_norms(&self) -> bool {
        self.architecture == Architecture::Qwen3
    }

    /// Rotation per position of each pair of elements.
    #[must_use]
    pub fn frequencies(&self) -> Vec<f32> {
        let half = self.head_dim / 2;
        (0..half)
            .map(|pair| {
                let plain = self.rope_theta.powf(-((2 * pair) as f64) / self.head_dim as f64);
                self.rope_scaling.apply(plain) as f32
            })
            .collect()
    }
}

impl Scaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low, high, context } => {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                if wavelength < context / high {
                    frequency
                } else if wavelength > context / low {
                    frequency / factor
                } else {
                    let smooth = (context / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

fn architecture(file: &str, raw: &Raw) -> Result<Architecture, LoadError> {
    const KNOWN: [(&str, Architecture); 4] = [
        ("LlamaForCausalLM", Architecture::Llama),
        ("Qwen2ForCausalLM", Architecture::Qwen2),
        ("Qwen3ForCausalLM", Architecture::Qwen3),
        ("MistralForCausalLM", Architecture::Mistral),
    ];
    let names = raw.architectures.as_deref().unwrap_or_default();
    let found = KNOWN.iter().find(|(name, _)| names.iter().any(|have| have == name));
    found.map(|(_, architecture)| *architecture).ok_or_else(|| LoadError::Architecture {
        file: file.to_owned(),
        found: names.join(", "),
        supported: KNOWN.map(|(name, _)| name).join(", "),
    })
}

/// Both spellings: `rope_theta` with `rope_scaling`, and transformers 5's `rope_parameters`.
fn rope(raw: &Raw) -> Result<(f64, Scaling), String> {
    let value = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref()).filter(|value| !value.is_null());
    let field = |name: &str| value.and_then(|value| value.get(name)).and_then(Value::as_f64);
    let theta = raw.rope_theta.or_else(|| field("rope_theta")).unwrap_or(10_000.0);
    if !(theta > 1.0 && theta.is_finite()) {
        return Err(format!("rope_theta is {theta}; it has to be above 1"));
    }
    let kind = value.and_then(|value| value.get("rope_type").or_else(|| value.get("type"))).and_then(Value::as_str);
    let need = |name: &str| {
        let found = field(name).filter(|number| *number > 0.0 && number.is_finite());
        found.ok_or_else(|| format!("rope scaling {:?} needs a positive number {name}", kind.unwrap_or_default()))
    };
    let scaling = match kind {
        None | Some("default") => Scaling::None,
        Some("linear") => Scaling::Linear { factor: need("factor")? },
        Some("llama3") => {
            let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
            if low >= high {
                return Err(format!("low_freq_factor {low} is not below high_freq_factor {high}"));
            }
            Scaling::Llama3 { factor: need("factor")?, low, high, context: need("original_max_position_embeddings")? }
        }
        Some(other) => return Err(format!("rope scaling {other:?} is not supported; default, linear and llama3 are")),
    };
    Ok((theta, scaling))
}

fn windows(raw: &Raw, architecture: Architecture, layers: usize, context: usize) -> Result<Vec<Option<usize>>, String> {
    if raw.sliding_window == Some(0) {
        return Err("sliding_window is 0".into());
    }
    // One that is as long as the context hides nothing.
    let window = raw.sliding_window.filter(|window| *window < context);
    let windowed = match architecture {
        Architecture::Llama => None,
        Architecture::Mistral => window,
        Architecture::Qwen2 | Architecture::Qwen3 => window.filter(|_| raw.use_sliding_window.unwrap_or(false)),
    };
    let Some(types) = raw.layer_types.as_deref().filter(|_| architecture != Architecture::Llama) else {
        let from = if architecture == Architecture::Mistral { 0 } else { raw.max_window_layers.unwrap_or(layers) };
        return Ok((0..layers).map(|layer| windowed.filter(|_| layer >= from)).collect());
    };
    if types.len() != layers {
        return Err(format!("layer_types lists {} layers, num_hidden_layers is {layers}", types.len()));
    }
    types
        .iter()
        .map(|kind| match (kind.as_str(), raw.sliding_window) {
            ("full_attention", _) => Ok(None),
            ("sliding_attention", Some(_)) => Ok(window),
            ("sliding_attention", None) => Err("layer_types asks for a sliding_window, which is not set".into()),
            (other, _) => Err(format!("layer type {other:?} is not supported")),
        })
        .collect()
}

fn tokens(value: Option<&Value>) -> Result<Vec<Token>, String> {
    let one = |value: &Value| {
        let number = value.as_u64().and_then(|id| u32::try_from(id).ok());
        number.map(Token).ok_or_else(|| format!("holds {value}, which is no token"))
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(one).collect(),
        Some(single @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_))) => {
            Ok(vec![one(single)?])
        }
    }
}

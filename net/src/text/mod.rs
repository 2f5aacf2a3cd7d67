//! Between text and tokens: the tokenizer, what a token says, stop strings and the chat template of a model.
//!
//! Knows nothing of HTTP and nothing of the worker. Everything here is a value that was read once from the model's
//! folder and is shared by all requests.
//!
//! ```text
//!   messages ──template──> prompt text ──tokenizer──> tokens ──> worker ──> tokens ──detokenizer──> stop strings ──> text
//! ```
//!
//! 1. Text that was handed out never changes: a piece is emitted only once no later token can alter it.
//! 2. Streamed and complete answers are the same bytes, because both are made by the same [`Detokenizer`].

mod detokenize;
mod json;
mod pieces;
mod stop;
pub(crate) mod strftime;
mod template;

use std::path::Path;
use std::sync::Arc;

use pd_core::id::Token;
use serde_json::Value;
use thiserror::Error;
use tokenizers::Tokenizer;

pub use detokenize::Detokenizer;
use pieces::Pieces;
pub use stop::{Ending, Passed, StopStrings};
pub use template::{Chat, TemplateError, Templates};

/// A model's tokenizer, with all that decides how its text looks.
#[derive(Debug)]
pub struct Text {
    tokenizer: Tokenizer,
    pieces: Pieces,
    templates: Templates,
    bos: Option<Token>,
    is_bos_added: Option<bool>,
    eos: Vec<Token>,
}

/// The files of a model that concern text, as bytes.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`: special tokens, `add_bos_token`, and often the template.
    pub config: Option<Vec<u8>>,
    /// `chat_template.jinja`; goes before the other places.
    pub template: Option<String>,
    /// `chat_template.json`: `{"chat_template": ...}`; goes before `tokenizer_config.json`.
    pub template_json: Option<Vec<u8>>,
    /// `config.json`, for its `eos_token_id`.
    pub model: Option<Vec<u8>>,
    /// `generation_config.json`, for its `eos_token_id`.
    pub generation: Option<Vec<u8>>,
}

/// Why a model's text files cannot be used, or some text not be tokenised.
#[derive(Debug, Error)]
pub enum TextError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{file}: {problem}")]
    Parse {
        /// Which file.
        file: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The tokenizer's decoder is of a kind whose text cannot be streamed exactly.
    #[error("tokenizer.json: decoder {kind} is not supported; ByteLevel, Metaspace and byte fallback are")]
    Decoder {
        /// Its type, as the file names it.
        kind: String,
    },
    /// The tokenizer failed on a text.
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
}

impl Text {
    /// Reads `tokenizer.json` and what else is there from a model's folder.
    ///
    /// # Errors
    /// `tokenizer.json` is missing, or one of the files cannot be read or parsed.
    pub fn from_folder(folder: &Path) -> Result<Self, TextError> {
        let read = |name: &str| -> Result<Option<Vec<u8>>, TextError> {
            let path = folder.join(name);
            match std::fs::read(&path) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(TextError::Read { path: path.display().to_string(), source }),
            }
        };
        let tokenizer = read("tokenizer.json")?.ok_or_else(|| TextError::Read {
            path: folder.join("tokenizer.json").display().to_string(),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let template = read("chat_template.jinja")?
            .map(|bytes| String::from_utf8(bytes).map_err(|error| parse("chat_template.jinja", error)))
            .transpose()?;
        Self::from_files(&Files {
            tokenizer,
            config: read("tokenizer_config.json")?,
            template,
            template_json: read("chat_template.json")?,
            model: read("config.json")?,
            generation: read("generation_config.json")?,
        })
    }

    /// The same from files in memory.
    ///
    /// # Errors
    /// One of them cannot be parsed.
    pub fn from_files(files: &Files) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::from_bytes(&files.tokenizer).map_err(|error| parse("tokenizer.json", error))?;
        let raw = json("tokenizer.json", Some(&files.tokenizer))?;
        let config = json("tokenizer_config.json", files.config.as_deref())?;
        let special = |name: &str| {
            let value = &config[name];
            value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
        };
        let id = |text: Option<&String>| text.and_then(|text| tokenizer.token_to_id(text)).map(Token);
        let (bos_text, eos_text) = (special("bos_token"), special("eos_token"));
        let mut eos: Vec<Token> = id(eos_text.as_ref()).into_iter().collect();
        for (name, bytes) in [("config.json", &files.model), ("generation_config.json", &files.generation)] {
            eos.extend(token_ids(&json(name, bytes.as_deref())?["eos_token_id"]));
        }
        eos.sort_unstable();
        eos.dedup();
        let template = match &files.template {
            Some(text) => Value::String(text.clone()),
            None => {
                let found = json("chat_template.json", files.template_json.as_deref())?["chat_template"].take();
                if found.is_null() { config["chat_template"].clone() } else { found }
            }
        };
        let tokens: Vec<(&'static str, String)> =
            ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"]
                .into_iter()
                .filter_map(|name| special(name).map(|text| (name, text)))
                .collect();
        Ok(Self {
            pieces: Pieces::new(&tokenizer, &raw["decoder"])?,
            templates: Templates::new(&template, &tokens),
            bos: id(bos_text.as_ref()),
            is_bos_added: config["add_bos_token"].as_bool(),
            eos,
            tokenizer,
        })
    }

    /// Has `strftime_now` answer with a fixed time, in seconds since 1970 (UTC): prompts that name the day break prefix
    /// caching at midnight, and tests.
    pub fn fix_date(&mut self, seconds: u64) {
        self.templates.fix_date(seconds);
    }

    /// The tokens of a text. With `add_special`, a BOS is put in front as transformers would (plain prompts); without,
    /// nothing is added (text from a template, which prints its own).
    ///
    /// # Errors
    /// The tokenizer refuses the text (an unknown character without an unknown token).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<Token>, TextError> {
        let encoding =
            self.tokenizer.encode_fast(text, add_special).map_err(|error| TextError::Encode(error.to_string()))?;
        let mut tokens: Vec<Token> = encoding.get_ids().iter().map(|&id| Token(id)).collect();
        if let (true, Some(bos), Some(wanted)) = (add_special, self.bos, self.is_bos_added) {
            // transformers lets `add_bos_token` overrule the post processor of tokenizer.json.
            if wanted && tokens.first() != Some(&bos) {
                tokens.insert(0, bos);
            } else if !wanted && tokens.first() == Some(&bos) && !text.starts_with(self.text_of(bos).as_ref()) {
                tokens.remove(0);
            }
        }
        Ok(tokens)
    }

    /// The text of a whole answer.
    #[must_use]
    pub fn decode(self: &Arc<Self>, tokens: &[Token], skip_special: bool) -> String {
        let mut detokenizer = Detokenizer::new(Arc::clone(self), skip_special);
        let mut text = String::new();
        for &token in tokens {
            detokenizer.push(token, &mut text);
        }
        detokenizer.finish(&mut text);
        text
    }

    /// The bytes that a token stands for, seen alone; empty for an unknown one.
    #[must_use]
    pub fn bytes_of(&self, token: Token) -> &[u8] {
        self.pieces.bytes(token)
    }

    /// A token's bytes as text, with U+FFFD where they are no text alone.
    #[must_use]
    pub fn text_of(&self, token: Token) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.pieces.bytes(token))
    }

    /// The token as the vocabulary writes it.
    #[must_use]
    pub fn name_of(&self, token: Token) -> Option<String> {
        self.tokenizer.id_to_token(token.0)
    }

    /// The prompt text of a conversation.
    ///
    /// # Errors
    /// There is no such template, or it refuses the conversation.
    pub fn chat(&self, chat: &Chat) -> Result<String, TemplateError> {
        self.templates.render(chat)
    }

    /// Tokens that end an answer: the union of what the model's files say, ascending.
    #[must_use]
    pub fn eos(&self) -> &[Token] {
        &self.eos
    }

    /// One more than the largest token.
    #[must_use]
    pub fn vocabulary(&self) -> u32 {
        self.pieces.count()
    }

    fn pieces(&self) -> &Pieces {
        &self.pieces
    }
}

fn json(file: &'static str, bytes: Option<&[u8]>) -> Result<Value, TextError> {
    bytes.map_or(Ok(Value::Null), |bytes| serde_json::from_slice(bytes).map_err(|error| parse(file, error)))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn parse(file: &'static str, error: impl ToString) -> TextError {
    TextError::Parse { file, problem: error.to_string() }
}

/// One id or a list of them.
fn token_ids(value: &Value) -> Vec<Token> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).map(Token);
    match value.as_array() {
        Some(list) => list.iter().filter_map(id).collect(),
        None => id(value).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests;

//! What each token of a vocabulary stands for, as bytes, so that an answer is decoded by appending.
//!
//! Decoders of generative models are one of three kinds; others (`WordPiece`, CTC) are refused when the model is loaded
//! rather than decoded wrongly.
//!
//! | decoder in `tokenizer.json` | a token is |
//! |---|---|
//! | `ByteLevel` (GPT-2, Llama 3, Qwen, DeepSeek) | bytes, through the table of printable stand-ins |
//! | `Replace`/`ByteFallback`/`Fuse`/`Strip`, `Metaspace` (Llama 2, Mistral, Gemma) | text with `▁` for a space, or `<0xE4>` |
//! | none (word level) | a word, with a space between two |

use std::collections::BTreeSet;

use pd_core::id::Token;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::TextError;

/// The bytes of all tokens.
#[derive(Debug)]
pub(super) struct Pieces {
    /// All bytes, one token after the other.
    bytes: Vec<u8>,
    /// Where the bytes of each token end.
    ends: Vec<u32>,
    special: BTreeSet<Token>,
    /// One space at the very start of an answer is dropped.
    pub(super) is_first_space_stripped: bool,
    /// Words are separated by a space that is in no token.
    pub(super) is_spaced: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    ByteLevel,
    Sentence,
    Word,
}

impl Pieces {
    /// Reads the vocabulary.
    pub(super) fn new(tokenizer: &Tokenizer, decoder: &Value) -> Result<Self, TextError> {
        let mut is_first_space_stripped = false;
        let kind = kind(decoder, &mut is_first_space_stripped)?;
        let table = stand_ins();
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| Token(id)).collect();
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for id in 0..=largest {
            if let Some(name) = tokenizer.id_to_token(id) {
                match kind {
                    Kind::ByteLevel => push_byte_level(&table, &name, &mut bytes),
                    Kind::Sentence if added.contains_key(&id) => bytes.extend(name.as_bytes()),
                    Kind::Sentence => match fallback_byte(&name) {
                        Some(byte) => bytes.push(byte),
                        None => bytes.extend(name.replace('▁', " ").as_bytes()),
                    },
                    Kind::Word => bytes.extend(name.as_bytes()),
                }
            }
            ends.push(u32::try_from(bytes.len()).map_err(|_| TextError::Parse {
                file: "tokenizer.json",
                problem: "the vocabulary has more than 4 GiB of text".into(),
            })?);
        }
        Ok(Self { bytes, ends, special, is_first_space_stripped, is_spaced: kind == Kind::Word })
    }

    /// The bytes of a token; empty for an unknown one.
    pub(super) fn bytes(&self, token: Token) -> &[u8] {
        let index = token.0 as usize;
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// True for tokens that are no text: BOS, EOS, role marks.
    pub(super) fn is_special(&self, token: Token) -> bool {
        self.special.contains(&token)
    }

    /// One more than the largest token.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.ends.len()).unwrap_or(u32::MAX)
    }
}

/// The kind of a decoder, and whether it strips the first space.
fn kind(decoder: &Value, is_first_space_stripped: &mut bool) -> Result<Kind, TextError> {
    match decoder["type"].as_str() {
        None if decoder.is_null() => Ok(Kind::Word),
        Some("ByteLevel") => Ok(Kind::ByteLevel),
        Some("Metaspace") => {
            let scheme = decoder["prepend_scheme"].as_str();
            *is_first_space_stripped =
                scheme.map_or(decoder["add_prefix_space"] != Value::Bool(false), |s| s != "never");
            Ok(Kind::Sentence)
        }
        Some("ByteFallback" | "Fuse") => Ok(Kind::Sentence),
        Some("Replace") if decoder["pattern"]["String"] == "▁" && decoder["content"] == " " => Ok(Kind::Sentence),
        Some("Strip") if decoder["content"] == " " && decoder["start"] == 1 && decoder["stop"] == 0 => {
            *is_first_space_stripped = true;
            Ok(Kind::Sentence)
        }
        Some("Sequence") => {
            let mut found = None;
            for part in decoder["decoders"].as_array().into_iter().flatten() {
                let part = kind(part, is_first_space_stripped)?;
                // ByteLevel goes with Fuse and the like; it is what says what the bytes are.
                found = Some(if found == Some(Kind::ByteLevel) { Kind::ByteLevel } else { part });
            }
            found.ok_or_else(|| TextError::Decoder { kind: "Sequence of nothing".into() })
        }
        other => Err(TextError::Decoder { kind: other.unwrap_or("without a type").to_owned() }),
    }
}

/// `<0xE4>` as a byte.
fn fallback_byte(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Which byte each printable stand-in of the byte-level alphabet means, ascending by character.
fn stand_ins() -> Vec<(char, u8)> {
    let mut extra = 0x100_u32;
    let mut table: Vec<(char, u8)> = (0..=255_u8)
        .map(|byte| {
            let is_printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            let stand_in = if is_printable {
                char::from(byte)
            } else {
                extra += 1;
                char::from_u32(extra - 1).expect("below the surrogates")
            };
            (stand_in, byte)
        })
        .collect();
    table.sort_unstable();
    table
}

/// As the ByteLevel decoder: a token with a character outside of the alphabet (an added token) is its own text.
fn push_byte_level(table: &[(char, u8)], name: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for character in name.chars() {
        match table.binary_search_by_key(&character, |&(stand_in, _)| stand_in) {
            Ok(at) => bytes.push(table[at].1),
            Err(_) => {
                bytes.truncate(start);
                bytes.extend(name.as_bytes());
                return;
            }
        }
    }
}

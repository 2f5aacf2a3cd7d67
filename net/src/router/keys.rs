//! Which pages a prompt begins with, as far as the router can tell.
//!
//! A router has no tokenizer of its own: text is cut into units of four bytes, which stand for tokens, and the pages of
//! those are chained like pages of tokens. Chats are keyed over the raw JSON of their messages, so that a conversation
//! that goes on begins with the pages of its last turn. Prompts that come as token ids are keyed over those.
//! Keys of text are good for placement only; they are never the keys of a worker's cache. Those of token ids are, once
//! workers have said what theirs are chained from (see `listen`); a [`Keyer`] with the model's tokenizer and template gives
//! those of text.

use std::fmt;

use pd_core::id::{PageKey, Token};
use pd_core::key::{Namespace, page_keys};

/// What is known of a prompt.
#[derive(Clone, Copy, Debug)]
pub struct PromptView<'a> {
    /// The model as the client names it, or empty.
    pub model: &'a str,
    /// What keeps the caches of tenants apart, or empty.
    pub salt: &'a str,
    /// The adapter, or empty.
    pub lora: &'a str,
    /// The prompt.
    pub content: PromptContent<'a>,
}

/// The forms that a prompt comes in.
#[derive(Clone, Copy, Debug)]
pub enum PromptContent<'a> {
    /// A chat: what stands before the messages (tools, instructions) and the messages, as raw JSON.
    Chat {
        /// Raw JSON of tools or instructions, or empty.
        head: &'a str,
        /// Raw JSON of the messages.
        messages: &'a str,
    },
    /// Text, as raw JSON.
    Text(&'a str),
    /// Token ids.
    Tokens(&'a [u32]),
}

/// A prompt as the machine takes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keyed {
    /// One key for each full page.
    pub keys: Vec<PageKey>,
    /// Tokens of the prompt, or an estimate. At least one page's worth per key.
    pub length: u32,
}

/// Makes page keys of prompts.
pub trait Keyer: Send + Sync + fmt::Debug {
    /// The keys of a prompt in pages of `page_size` tokens. Runs on the thread of a connection: it must not block.
    fn keys(&self, page_size: u32, prompt: &PromptView<'_>) -> Keyed;
}

/// The keyer without a tokenizer.
#[derive(Clone, Copy, Debug, Default)]
pub struct TextKeyer;

impl Keyer for TextKeyer {
    fn keys(&self, page_size: u32, prompt: &PromptView<'_>) -> Keyed {
        let units: Vec<Token> = match prompt.content {
            PromptContent::Tokens(ids) => ids.iter().map(|&id| Token(id)).collect(),
            PromptContent::Text(text) => units(["", text.trim_matches('"')]),
            // Without the closing bracket: the next turn has a comma there.
            PromptContent::Chat { head, messages } => units([head, messages.trim_end().trim_end_matches(']')]),
        };
        let namespace = Namespace {
            model: prompt.model.to_owned(),
            page_size,
            layout: "router".into(),
            lora: prompt.lora.to_owned(),
            salt: prompt.salt.to_owned(),
            ..Namespace::default()
        };
        let length = u32::try_from(units.len()).unwrap_or(u32::MAX).max(1);
        Keyed { keys: page_keys(namespace.root(), page_size.max(1), &units), length }
    }
}

/// Four bytes of text for a token, the last ones filled up.
fn units(parts: [&str; 2]) -> Vec<Token> {
    let mut all = Vec::with_capacity((parts[0].len() + parts[1].len()) / 4 + 2);
    for part in parts {
        all.extend(part.as_bytes().chunks(4).map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            Token(u32::from_le_bytes(word))
        }));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(messages: &str) -> Vec<PageKey> {
        let content = PromptContent::Chat { head: "", messages };
        TextKeyer.keys(4, &PromptView { model: "m", salt: "", lora: "", content }).keys
    }

    #[test]
    fn the_next_turn_begins_with_the_pages_of_the_last() {
        let first = chat(r#"[{"role":"user","content":"a question of some length"}]"#);
        let second = chat(
            r#"[{"role":"user","content":"a question of some length"},{"role":"assistant","content":"x"},{"role":"user"}]"#,
        );
        assert!(first.len() >= 3);
        assert_eq!(first, second[..first.len()]);
    }

    #[test]
    fn model_salt_and_adapter_keep_prompts_apart() {
        let keys = |model, salt, lora| {
            let content = PromptContent::Tokens(&[1, 2, 3, 4, 5]);
            TextKeyer.keys(4, &PromptView { model, salt, lora, content })
        };
        let base = keys("", "", "");
        assert_eq!((base.keys.len(), base.length), (1, 5));
        for other in [keys("m", "", ""), keys("", "m", ""), keys("", "", "m")] {
            assert_ne!(base.keys, other.keys);
        }
    }

    #[test]
    fn an_empty_prompt_has_no_pages_and_a_length() {
        let keyed =
            TextKeyer.keys(4, &PromptView { model: "", salt: "", lora: "", content: PromptContent::Text("\"\"") });
        assert_eq!(keyed, Keyed { keys: Vec::new(), length: 1 });
    }
}

//! Page keys: what makes two pages of KV the same page.
//!
//! `key = BLAKE3-128(schema | parent key | tokens)`, the chain seeded with the digest of a [`Namespace`]. Whatever
//! changes the bytes of KV (weights, dtype, page size, layout) or who may see them (LoRA, salt) is in the namespace, so
//! a page of another model, dtype or tenant cannot be found, let alone loaded (sglang #33268, #24794, #26785, #37160).
//! Fields are length-prefixed; `"a"+"bc"` and `"ab"+"c"` differ (sglang #24638).
//!
//! Keys are made at the edge, by the thread that tokenised the prompt or by the loader of a trace; only pages completed
//! by generation are keyed by the machine.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::id::{PageKey, Token};

/// Version of the key derivation. A change makes all stored KV invisible, on purpose.
pub const SCHEMA: u32 = 1;

/// Everything besides the tokens that decides which KV a page holds and who may read it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// The model's name and the fingerprint of its weights and kernels.
    pub model: String,
    /// Logical element type of KV: `bf16`, `fp8_e4m3`, ...
    pub dtype: String,
    /// Tokens per page.
    pub page_size: u32,
    /// Memory layout of one page, as the engine names it.
    pub layout: String,
    /// LoRA adapter, empty for none.
    #[serde(default)]
    pub lora: String,
    /// Tenant's cache salt, empty for none.
    #[serde(default)]
    pub salt: String,
}

impl Namespace {
    /// The key that stands before the first page of each chain in this namespace.
    #[must_use]
    pub fn root(&self) -> PageKey {
        let mut hasher = blake3::Hasher::new_derive_key("pd page namespace");
        hasher.update(&SCHEMA.to_le_bytes());
        for field in [&self.model, &self.dtype, &self.layout, &self.lora, &self.salt] {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field.as_bytes());
        }
        hasher.update(&self.page_size.to_le_bytes());
        first_half(&hasher)
    }
}

/// The key of the page that holds `tokens` behind the page `parent` (or behind the root of the namespace).
#[must_use]
pub fn page_key(parent: PageKey, tokens: &[Token]) -> PageKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&parent.0.to_le_bytes());
    let mut block = [0_u8; 1024];
    for chunk in tokens.chunks(block.len() / 4) {
        for (slot, token) in block.chunks_exact_mut(4).zip(chunk) {
            slot.copy_from_slice(&token.0.to_le_bytes());
        }
        hasher.update(&block[..chunk.len() * 4]);
    }
    first_half(&hasher)
}

/// The keys of all full pages of `tokens`, in order. A rest shorter than a page has no key.
///
/// # Panics
/// If `page_size` is 0.
#[must_use]
pub fn page_keys(root: PageKey, page_size: u32, tokens: &[Token]) -> Vec<PageKey> {
    let mut parent = root;
    let mut keys = Vec::with_capacity(tokens.len() / page_size as usize);
    for page in tokens.chunks_exact(page_size as usize) {
        parent = page_key(parent, page);
        keys.push(parent);
    }
    keys
}

fn first_half(hasher: &blake3::Hasher) -> PageKey {
    let mut half = [0_u8; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    PageKey(u128::from_le_bytes(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(range: core::ops::Range<u32>) -> Vec<Token> {
        range.map(Token).collect()
    }

    #[test]
    fn a_chain_depends_on_every_token_before_it() {
        let root = Namespace::default().root();
        let plain = page_keys(root, 4, &tokens(0..12));
        let mut other = tokens(0..12);
        other[1] = Token(99);
        let changed = page_keys(root, 4, &other);
        assert_eq!(plain.len(), 3);
        assert!(plain.iter().zip(&changed).all(|(a, b)| a != b));
    }

    #[test]
    fn a_rest_shorter_than_a_page_has_no_key() {
        assert_eq!(page_keys(PageKey(1), 4, &tokens(0..7)).len(), 1);
        assert!(page_keys(PageKey(1), 8, &tokens(0..7)).is_empty());
    }

    #[test]
    fn fields_that_concatenate_to_the_same_text_are_different_namespaces() {
        let one = Namespace { lora: "a".into(), salt: "bc".into(), ..Namespace::default() };
        let two = Namespace { lora: "ab".into(), salt: "c".into(), ..Namespace::default() };
        assert_ne!(one.root(), two.root());
    }

    #[test]
    fn each_field_of_the_namespace_changes_the_root() {
        let base = Namespace::default();
        let roots = [
            base.root(),
            Namespace { model: "m".into(), ..base.clone() }.root(),
            Namespace { dtype: "m".into(), ..base.clone() }.root(),
            Namespace { layout: "m".into(), ..base.clone() }.root(),
            Namespace { lora: "m".into(), ..base.clone() }.root(),
            Namespace { salt: "m".into(), ..base.clone() }.root(),
            Namespace { page_size: 1, ..base }.root(),
        ];
        for (index, root) in roots.iter().enumerate() {
            assert!(!roots[..index].contains(root));
        }
    }

    /// The derivation is a storage format: these values must never change without a new [`SCHEMA`].
    #[test]
    fn the_derivation_is_pinned() {
        let namespace = Namespace {
            model: "llama-3.1-8b".into(),
            dtype: "bf16".into(),
            page_size: 4,
            layout: "page_first".into(),
            ..Namespace::default()
        };
        insta::assert_snapshot!(
            alloc::format!("{} {}", namespace.root(), page_keys(namespace.root(), 4, &tokens(1..5))[0]),
            @"c5d6246de5ea4cac7622189e1ba36930 719de8195a019c5c58576f93e4fa270c"
        );
    }
}

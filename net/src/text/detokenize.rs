//! Tokens to text, one token at a time.
//!
//! Bytes that may be the start of a character are held back (at most three). What can no longer become a character is
//! U+FFFD at once, one for each maximal part, exactly as a lossy decode of all bytes would have it:
//!
//! ```text
//!   token bytes    68 c3 | a9 f0 9f | 99 82 | ff | e4 (end)
//!   text           h     | é        | 🙂    | �  | �
//! ```

use std::sync::Arc;

use pd_core::id::Token;

use super::Text;

/// The decoder of one answer.
#[derive(Debug)]
pub struct Detokenizer {
    text: Arc<Text>,
    is_special_skipped: bool,
    /// True until a token that is text was seen.
    is_first: bool,
    /// The start of a character.
    held: Vec<u8>,
}

impl Detokenizer {
    /// Starts an answer. With `skip_special`, special tokens say nothing.
    #[must_use]
    pub fn new(text: Arc<Text>, skip_special: bool) -> Self {
        Self { text, is_special_skipped: skip_special, is_first: true, held: Vec::new() }
    }

    /// Appends to `out` the text that this token completes; often nothing.
    pub fn push(&mut self, token: Token, out: &mut String) {
        let pieces = self.text.pieces();
        if self.is_special_skipped && pieces.is_special(token) {
            return;
        }
        let mut bytes = pieces.bytes(token);
        if std::mem::take(&mut self.is_first) {
            if pieces.is_first_space_stripped && bytes.first() == Some(&b' ') {
                bytes = &bytes[1..];
            }
        } else if pieces.is_spaced {
            self.held.push(b' ');
        }
        self.held.extend_from_slice(bytes);
        let mut kept = 0;
        for chunk in self.held.utf8_chunks() {
            out.push_str(chunk.valid());
            kept += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if kept + invalid.len() == self.held.len() && may_go_on(invalid) {
                break;
            }
            out.push('\u{fffd}');
            kept += invalid.len();
        }
        self.held.drain(..kept);
    }

    /// Ends the answer: what was held back never became a character.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&String::from_utf8_lossy(&self.held));
        self.held.clear();
    }
}

/// True if bytes, cut off by the end of what is known, can still become one character.
fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

//! From "what a prompt consists of" to the page keys a machine sees, without a token being made that nobody needs.
//!
//! Content is a sequence of pieces of [`Source`]s. A source is an endless tape of tokens named by two numbers: a block
//! of a trace, the prefix of a group, what one user typed, an answer. Equal pieces are equal tokens.
//!
//! ```text
//!   pieces   |  prefix of group 3   |   unique   |  answer 0x5e..   |  unique  |
//!   pages    [ cheap ][ cheap ][ cheap ][ exact ][ exact ][ exact ][ exact ] tail
//!                                       ^ first page with a generated token
//! ```
//!
//! 1. Key of a *cheap* page: a 128-bit mix of the key before it and the pieces it covers (measured 12 ns a page, with BLAKE3
//!    over 512 tokens 3.2 us). Any difference in a piece changes this key and all later ones.
//! 2. From the first page that holds a generated token on, keys are [`pd_core::key::page_key`] over the token values,
//!    because that is what the machine which generated them computes for its own pages.
//! 3. Pages need not line up with blocks: a page covers the last tokens of one block and the first of the next. Equal
//!    prefixes of the pieces give equal keys for every page size.

use pd_core::id::{PageKey, Token};
use pd_core::key::page_key;
use pd_core::op::Prompt;

/// Content under construction: grows at its end, and gives the prompt so far at any time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    root: PageKey,
    page_size: u32,
    length: u32,
    keys: Vec<PageKey>,
    rest: Rest,
}

/// An endless tape of tokens. Two sources differ in each token but for chance (2^-32 each).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Source {
    /// Whose tape: see the constructors.
    scope: u64,
    /// Which one.
    id: u64,
}

/// What the engine will say to a prompt: tokens as a pure function of the prompt's content, as greedy decoding gives.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// Stands for the content of the prompt.
    pub seed: u64,
    /// The first tokens, where a trace has recorded them.
    pub given: Vec<Token>,
}

/// What is behind the last full page.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Rest {
    /// No generated token so far.
    Pieces(Vec<Piece>),
    /// Token values count from here on.
    Tokens(Vec<Token>),
}

/// `count` tokens of a source, from position `from` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    source: Source,
    from: u32,
    count: u32,
}

/// The token at `position` (from 0) of the answer to a prompt of this seed.
#[must_use]
pub fn answer_token(seed: u64, position: u32) -> Token {
    Source::answer(seed).token(position)
}

impl Chain {
    /// Nothing, in a namespace.
    ///
    /// # Panics
    /// If `page_size` is 0.
    #[must_use]
    pub fn new(root: PageKey, page_size: u32) -> Self {
        assert!(page_size > 0, "pages hold at least one token");
        Self { root, page_size, length: 0, keys: Vec::new(), rest: Rest::Pieces(Vec::new()) }
    }

    /// Makes room for `tokens` more.
    pub fn reserve(&mut self, tokens: u32) {
        self.keys.reserve_exact((tokens / self.page_size) as usize);
    }

    /// Appends `count` tokens of `source`, from its start.
    pub fn append(&mut self, source: Source, count: u32) {
        self.append_from(source, 0, count);
    }

    /// Appends `tokens` tokens that lie in blocks of `block` tokens; the last block may be used in part.
    ///
    /// # Panics
    /// If the blocks are not exactly those that the tokens touch.
    pub fn append_blocks(&mut self, scope: u64, block: u32, ids: &[u64], tokens: u32) {
        assert!(tokens.div_ceil(block) as usize == ids.len(), "blocks as many as the tokens touch");
        let mut left = tokens;
        for id in ids {
            let count = left.min(block);
            self.append_from(Source { scope, id: *id }, 0, count);
            left -= count;
        }
    }

    /// Appends the first `count` tokens of an answer. Pages are keyed by token values from here on.
    pub fn append_answer(&mut self, answer: &Answer, count: u32) {
        if count == 0 {
            return;
        }
        self.be_exact();
        for position in 0..count {
            self.append_token(answer.token(position));
        }
    }

    /// The prompt so far, with the tokens behind its last full page.
    #[must_use]
    pub fn prompt(&self) -> Prompt {
        let tokens = match &self.rest {
            Rest::Pieces(pieces) => tokens_of(pieces),
            Rest::Tokens(tokens) => tokens.clone(),
        };
        Prompt { root: self.root, length: self.length, keys: self.keys.clone(), tokens }
    }

    /// The same, consuming what is no longer needed.
    #[must_use]
    pub fn into_prompt(self) -> Prompt {
        let tokens = match self.rest {
            Rest::Pieces(pieces) => tokens_of(&pieces),
            Rest::Tokens(tokens) => tokens,
        };
        Prompt { root: self.root, length: self.length, keys: self.keys, tokens }
    }

    /// What will be said to the prompt so far. Equal prompts get equal answers.
    #[must_use]
    pub fn answer(&self) -> Answer {
        let PageKey(digest) = match &self.rest {
            Rest::Pieces(pieces) => mixed(self.parent(), pieces),
            Rest::Tokens(tokens) => page_key(self.parent(), tokens),
        };
        Answer { seed: (digest ^ (digest >> 64)) as u64, given: Vec::new() }
    }

    /// Tokens so far.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    fn append_from(&mut self, source: Source, mut from: u32, count: u32) {
        let end = from + count;
        if let Rest::Tokens(_) = self.rest {
            let tape = source.tape();
            (from..end).for_each(|position| self.append_token(token_at(tape, position)));
            return;
        }
        while from < end {
            let room = self.page_size - self.length % self.page_size;
            let piece = Piece { source, from, count: room.min(end - from) };
            from += piece.count;
            self.append_piece(piece);
        }
    }

    /// Appends a piece that ends at or before the end of the page.
    fn append_piece(&mut self, piece: Piece) {
        let parent = self.parent();
        let Rest::Pieces(pieces) = &mut self.rest else {
            unreachable!("pieces are put together only on cheap pages");
        };
        match pieces.last_mut() {
            // What is appended in two goes is still one piece.
            Some(last) if last.source == piece.source && last.from + last.count == piece.from => {
                last.count += piece.count;
            }
            Some(_) | None => pieces.push(piece),
        }
        self.length += piece.count;
        if self.length.is_multiple_of(self.page_size) {
            self.keys.push(mixed(parent, pieces));
            pieces.clear();
        }
    }

    fn append_token(&mut self, token: Token) {
        let parent = self.parent();
        let Rest::Tokens(tokens) = &mut self.rest else {
            unreachable!("a token value counts only on exact pages");
        };
        tokens.push(token);
        self.length += 1;
        if tokens.len() == self.page_size as usize {
            self.keys.push(page_key(parent, tokens));
            tokens.clear();
        }
    }

    fn be_exact(&mut self) {
        if let Rest::Pieces(pieces) = &self.rest {
            self.rest = Rest::Tokens(tokens_of(pieces));
        }
    }

    fn parent(&self) -> PageKey {
        self.keys.last().copied().unwrap_or(self.root)
    }
}

impl Answer {
    /// The token at `position` of the answer, from 0.
    #[must_use]
    pub fn token(&self, position: u32) -> Token {
        self.given.get(position as usize).copied().unwrap_or_else(|| answer_token(self.seed, position))
    }
}

impl Source {
    /// Content known by a name, the same in all loads.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { scope: NAMED, id: hash_text(name) }
    }

    /// Content that occurs once: the `index`th of load `entity`.
    #[must_use]
    pub fn unique(entity: u32, index: u64) -> Self {
        Self { scope: UNIQUE | u64::from(entity), id: index }
    }

    /// What the user of a session says in a turn.
    #[must_use]
    pub fn user(entity: u32, session: u32, turn: u32) -> Self {
        Self { scope: USER | u64::from(entity), id: u64::from(session) << 32 | u64::from(turn) }
    }

    /// The common prefix of a group of load `entity`.
    #[must_use]
    pub fn group(entity: u32, index: u32) -> Self {
        Self { scope: GROUP | u64::from(entity), id: u64::from(index) }
    }

    /// The scope for blocks of a trace. Ids of two traces of different names have nothing in common.
    #[must_use]
    pub fn trace_scope(name: &str) -> u64 {
        BLOCK | hash_text(name) >> 8
    }

    /// The token at a position of the tape.
    #[must_use]
    pub fn token(self, position: u32) -> Token {
        token_at(self.tape(), position)
    }

    fn tape(self) -> u64 {
        let lanes = [self.scope, self.id];
        (0..3).fold(lanes, round)[0]
    }

    fn answer(seed: u64) -> Self {
        Self { scope: ANSWER, id: seed }
    }
}

fn tokens_of(pieces: &[Piece]) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(pieces.iter().map(|piece| piece.count as usize).sum());
    for piece in pieces {
        let tape = piece.source.tape();
        tokens.extend((piece.from..piece.from + piece.count).map(|position| token_at(tape, position)));
    }
    tokens
}

/// The finalizer of splitmix64 over a counter.
#[inline]
fn token_at(tape: u64, position: u32) -> Token {
    let mut value = tape.wrapping_add(u64::from(position).wrapping_mul(MULTIPLIERS[0]));
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Token((value >> 32) as u32)
}

/// The cheap key. Two 64-bit lanes, each multiplied and crossed with the other, so that a word reaches all 128 bits
/// within two rounds; three rounds follow the last word.
fn mixed(parent: PageKey, pieces: &[Piece]) -> PageKey {
    let mut lanes = [(parent.0 >> 64) as u64, parent.0 as u64];
    for piece in pieces {
        let range = u64::from(piece.from) << 32 | u64::from(piece.count);
        for word in [piece.source.scope, piece.source.id, range] {
            lanes = round(lanes, word);
        }
    }
    for end in 0..3 {
        lanes = round(lanes, end);
    }
    PageKey(u128::from(lanes[0]) << 64 | u128::from(lanes[1]))
}

#[inline]
fn round([a, b]: [u64; 2], word: u64) -> [u64; 2] {
    let p = u128::from(a ^ word) * u128::from(MULTIPLIERS[0]);
    let q = u128::from(b.wrapping_add(word.rotate_left(29)) ^ MULTIPLIERS[1]) * u128::from(MULTIPLIERS[1]);
    [p as u64 ^ (q >> 64) as u64, (q as u64 ^ (p >> 64) as u64).wrapping_add(MULTIPLIERS[0])]
}

fn hash_text(text: &str) -> u64 {
    let mut lanes = [text.len() as u64, MULTIPLIERS[1]];
    for byte in text.bytes() {
        lanes = round(lanes, u64::from(byte));
    }
    round(round(lanes, 0), 1)[0]
}

/// Odd, with about half of the bits set (from wyhash and splitmix64).
const MULTIPLIERS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];

/// Scopes: the top byte is the kind, the rest tells apart within.
const NAMED: u64 = 1 << 56;
const UNIQUE: u64 = 2 << 56;
const USER: u64 = 3 << 56;
const GROUP: u64 = 4 << 56;
const BLOCK: u64 = 5 << 56;
const ANSWER: u64 = 6 << 56;

#[cfg(test)]
mod tests;

//! What is on the disk, byte by byte (all numbers little endian).
//!
//! ```text
//! segment   | head block | record | record | .. gap .. | record | hole ...          while it is written to
//!           | head block | record | record | .. gap .. | record | entries | end     once it is sealed
//!
//! record    | head 128 | tokens 4n | gap | payload | gap |
//! ```
//!
//! A record starts at a multiple of [`UNIT`]. One with a large payload starts at a block, and so does its payload, so
//! that it is read straight into a page; small ones are packed. What is written at once ends with a block, so behind a
//! record the next one is at the next unit or the next block. A head says all that identifies its page, and where it
//! is: a head that was copied or sent elsewhere is not valid there.
//!
//! An *entry* is what a record says to the index: a page has one, a list of touches one for each key. The end of a
//! sealed segment repeats the entries of all its records, so that opening a store reads no records.

use pd_core::id::{PageKey, Token};

use super::file::BLOCK;

/// Version of all of this. Another version is skipped, never guessed at.
pub(super) const VERSION: u16 = 1;

/// Where records start: multiples of this.
pub(super) const UNIT: u64 = 64;

/// Payloads from here on are aligned to blocks.
pub(super) const LARGE: usize = 16 << 10;

/// Tokens of a page at most; bounds what a reader believes of a head.
pub(super) const TOKENS_MAX: usize = 1 << 14;

/// Bytes of a head, before its tokens.
pub(super) const HEAD: usize = 128;

/// Bytes of an entry.
pub(super) const ENTRY: usize = 64;

const RECORD_MAGIC: u64 = u64::from_le_bytes(*b"pd\x01page\n");
const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"pd\x01segm\n");
const END_MAGIC: u64 = u64::from_le_bytes(*b"pd\x01ends\n");

/// A segment: who wrote it, and which of the writer's it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(super) struct SegmentId {
    pub(super) writer: u32,
    pub(super) number: u32,
}

impl SegmentId {
    /// No segment: older records of a discarded page may be in any.
    pub(super) const ANY: Self = Self { writer: u32::MAX, number: u32::MAX };

    pub(super) fn name(self) -> String {
        format!("{:08x}-{:08x}.seg", self.writer, self.number)
    }

    /// The segment of a file name, if it is one.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (writer, number) = name.strip_suffix(".seg")?.split_once('-')?;
        let part = |text: &str| (text.len() == 8).then(|| u32::from_str_radix(text, 16).ok())?;
        Some(Self { writer: part(writer)?, number: part(number)? }).filter(|id| id.name() == name)
    }

    pub(super) const fn pack(self) -> u64 {
        (self.writer as u64) << 32 | self.number as u64
    }

    pub(super) const fn unpack(packed: u64) -> Self {
        Self { writer: (packed >> 32) as u32, number: packed as u32 }
    }
}

/// What a record is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The KV of one page.
    Page,
    /// A list of entries: discards, wipes and touches.
    Notes,
}

/// The head of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) segment: SegmentId,
    /// A random number of the segment: what an earlier file of this name left on the disk has another.
    pub(super) nonce: u64,
    /// Offset in the segment.
    pub(super) at: u64,
    /// Larger is newer; see the index.
    pub(super) version: u64,
    pub(super) recency: u64,
    pub(super) root: PageKey,
    pub(super) key: PageKey,
    pub(super) parent: PageKey,
    pub(super) payload: u32,
    /// Offset in the record.
    pub(super) payload_at: u32,
    pub(super) payload_crc: u32,
    /// Bytes from this record to the end of its last gap.
    pub(super) length: u32,
    pub(super) tokens: u32,
}

/// Why there is no valid head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HeadError {
    /// Nothing that looks like one.
    None,
    /// One whose checksum is wrong, or which says what cannot be.
    Corrupt,
    /// A whole one that belongs elsewhere, or of another version.
    Foreign,
}

/// Sizes of a record: (offset of the payload, bytes in all).
pub(super) fn layout(tokens: usize, payload: usize) -> (usize, usize) {
    let unit = if payload >= LARGE { BLOCK } else { UNIT as usize };
    let payload_at = (HEAD + tokens * 4).next_multiple_of(unit);
    (payload_at, payload_at + payload.next_multiple_of(unit))
}

/// Where a record of this payload may start, at or behind `at`.
pub(super) fn start_of(at: u64, payload: usize) -> u64 {
    at.next_multiple_of(if payload >= LARGE { BLOCK as u64 } else { UNIT })
}

impl Head {
    /// Writes head and tokens to the start of `out`.
    pub(super) fn encode(&self, tokens: &[Token], out: &mut [u8]) {
        debug_assert_eq!(tokens.len(), self.tokens as usize, "the tokens of this head");
        let kind = match self.kind {
            Kind::Page => 1_u16,
            Kind::Notes => 2,
        };
        let mut put = Put(out, 0);
        put.u64(RECORD_MAGIC);
        put.u32(u32::from(VERSION) | u32::from(kind) << 16);
        put.u32(self.tokens);
        put.u64(self.nonce);
        put.u64(self.segment.pack());
        put.u64(self.at);
        put.u64(self.version);
        put.u64(self.recency);
        put.u128(self.root.0);
        put.u128(self.key.0);
        put.u128(self.parent.0);
        put.u32(self.payload);
        put.u32(self.payload_at);
        put.u32(self.payload_crc);
        put.u32(self.length);
        put.u64(0);
        for (slot, token) in out[HEAD..].chunks_exact_mut(4).zip(tokens) {
            slot.copy_from_slice(&token.0.to_le_bytes());
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..HEAD - 4]), &out[HEAD..HEAD + tokens.len() * 4]);
        out[HEAD - 4..HEAD].copy_from_slice(&crc.to_le_bytes());
    }

    /// Bytes of what may be a head, with its tokens, from its first [`HEAD`] bytes.
    pub(super) fn length(bytes: &[u8]) -> Option<usize> {
        let mut take = Take(bytes, 0);
        let (magic, _, tokens) = (take.u64(), take.u32(), take.u32() as usize);
        (magic == RECORD_MAGIC && tokens <= TOKENS_MAX).then_some(HEAD + tokens * 4)
    }

    /// The head at the start of `bytes`, which is at offset `at` of a file, whichever segment it says it is of.
    pub(super) fn decode(bytes: &[u8], at: u64) -> Result<Self, HeadError> {
        if bytes.len() < HEAD || bytes[..8] != RECORD_MAGIC.to_le_bytes() {
            return Err(HeadError::None);
        }
        let mut take = Take(bytes, 8);
        let version_kind = take.u32();
        let tokens = take.u32();
        let head = Self {
            kind: if version_kind >> 16 == 2 { Kind::Notes } else { Kind::Page },
            tokens,
            nonce: take.u64(),
            segment: SegmentId::unpack(take.u64()),
            at: take.u64(),
            version: take.u64(),
            recency: take.u64(),
            root: PageKey(take.u128()),
            key: PageKey(take.u128()),
            parent: PageKey(take.u128()),
            payload: take.u32(),
            payload_at: take.u32(),
            payload_crc: take.u32(),
            length: take.u32(),
        };
        let end = HEAD + tokens as usize * 4;
        if tokens as usize > TOKENS_MAX || end > bytes.len() {
            return Err(HeadError::Corrupt);
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..HEAD - 4]), &bytes[HEAD..end]);
        if bytes[HEAD - 4..HEAD] != crc.to_le_bytes() {
            return Err(HeadError::Corrupt);
        }
        if version_kind & 0xFFFF != u32::from(VERSION) || !matches!(version_kind >> 16, 1 | 2) || head.at != at {
            return Err(HeadError::Foreign);
        }
        let (payload_at, length) = layout(tokens as usize, head.payload as usize);
        if payload_at != head.payload_at as usize || length != head.length as usize {
            return Err(HeadError::Corrupt);
        }
        Ok(head)
    }

    /// The tokens behind a head that was decoded from these bytes.
    pub(super) fn has_tokens(&self, bytes: &[u8], tokens: &[Token]) -> bool {
        self.tokens as usize == tokens.len()
            && bytes[HEAD..].chunks_exact(4).zip(tokens).all(|(slot, token)| slot == token.0.to_le_bytes())
    }

    /// What a record of a page says to the index.
    pub(super) fn entry(&self) -> Entry {
        let (key, root, version, recency) = (self.key, self.root, self.version, self.recency);
        Entry::Page { key, root, version, recency, at: self.at, length: self.length }
    }
}

/// What a log says, one by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// A page is here.
    Page { key: PageKey, root: PageKey, version: u64, recency: u64, at: u64, length: u32 },
    /// All older records of a key are dead. What it was meant for is in `killed`: once that segment is gone, so is the
    /// reason to remember this.
    Discard { key: PageKey, version: u64, killed: SegmentId },
    /// All older records of a namespace are dead.
    Wipe { root: PageKey, version: u64 },
    /// A page was used.
    Touch { key: PageKey, recency: u64 },
}

impl Entry {
    pub(super) fn encode(&self, out: &mut [u8]) {
        let mut put = Put(out, 0);
        let (kind, length, version, recency, at, key, root) = match *self {
            Self::Page { key, root, version, recency, at, length } => (1, length, version, recency, at, key, root),
            Self::Discard { key, version, killed } => (2, 0, version, 0, killed.pack(), key, PageKey(0)),
            Self::Wipe { root, version } => (3, 0, version, 0, 0, PageKey(0), root),
            Self::Touch { key, recency } => (4, 0, 0, recency, 0, key, PageKey(0)),
        };
        put.u32(kind);
        put.u32(length);
        put.u64(version);
        put.u64(recency);
        put.u64(at);
        put.u128(key.0);
        put.u128(root.0);
    }

    /// An entry whose checksum was verified; `None` if it makes no sense all the same.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut take = Take(bytes, 0);
        let (kind, length) = (take.u32(), take.u32());
        let (version, recency, at) = (take.u64(), take.u64(), take.u64());
        let (key, root) = (PageKey(take.u128()), PageKey(take.u128()));
        match kind {
            1 => Some(Self::Page { key, root, version, recency, at, length }),
            2 => Some(Self::Discard { key, version, killed: SegmentId::unpack(at) }),
            3 => Some(Self::Wipe { root, version }),
            4 => Some(Self::Touch { key, recency }),
            _ => None,
        }
    }

    /// All entries of a list.
    pub(super) fn decode_all(bytes: &[u8]) -> Option<Vec<Self>> {
        bytes.len().is_multiple_of(ENTRY).then(|| bytes.chunks_exact(ENTRY).map(Self::decode).collect())?
    }

    pub(super) fn encode_all(entries: &[Self], out: &mut [u8]) {
        for (slot, entry) in out.chunks_exact_mut(ENTRY).zip(entries) {
            entry.encode(slot);
        }
    }
}

/// The first block of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHead {
    pub(super) id: SegmentId,
    pub(super) nonce: u64,
}

impl SegmentHead {
    pub(super) fn encode(&self, out: &mut [u8]) {
        let mut put = Put(out, 0);
        put.u64(SEGMENT_MAGIC);
        put.u64(u64::from(VERSION));
        put.u64(self.id.pack());
        put.u64(self.nonce);
        put.crc();
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeadError> {
        let mut take = Take(bytes, 0);
        if take.u64() != SEGMENT_MAGIC {
            return Err(HeadError::None);
        }
        let version = take.u64();
        let head = Self { id: SegmentId::unpack(take.u64()), nonce: take.u64() };
        if !take.crc() {
            return Err(HeadError::Corrupt);
        }
        if version == u64::from(VERSION) { Ok(head) } else { Err(HeadError::Foreign) }
    }
}

/// The last block of a sealed segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct End {
    pub(super) id: SegmentId,
    pub(super) nonce: u64,
    /// Where the records end and the entries start.
    pub(super) entries_at: u64,
    pub(super) entries: u64,
    pub(super) entries_crc: u32,
}

impl End {
    pub(super) fn encode(&self, out: &mut [u8]) {
        let mut put = Put(out, 0);
        put.u64(END_MAGIC);
        put.u64(u64::from(VERSION));
        put.u64(self.id.pack());
        put.u64(self.nonce);
        put.u64(self.entries_at);
        put.u64(self.entries);
        put.u32(self.entries_crc);
        put.crc();
    }

    /// The end in the last block of a file of `bytes_in_all`.
    pub(super) fn decode(bytes: &[u8], bytes_in_all: u64) -> Option<Self> {
        let mut take = Take(bytes, 0);
        if take.u64() != END_MAGIC || take.u64() != u64::from(VERSION) {
            return None;
        }
        let end = Self {
            id: SegmentId::unpack(take.u64()),
            nonce: take.u64(),
            entries_at: take.u64(),
            entries: take.u64(),
            entries_crc: take.u32(),
        };
        let bytes_of_entries = super::file::blocks_of(end.entries.checked_mul(ENTRY as u64)?);
        (take.crc() && end.entries_at.checked_add(bytes_of_entries)?.checked_add(BLOCK as u64)? == bytes_in_all)
            .then_some(end)
    }
}

/// Writes numbers one behind the other.
pub(super) struct Put<'a>(pub(super) &'a mut [u8], pub(super) usize);

impl Put<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0[self.1..self.1 + bytes.len()].copy_from_slice(bytes);
        self.1 += bytes.len();
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u128(&mut self, value: u128) {
        self.bytes(&value.to_le_bytes());
    }

    /// The checksum of all before it.
    pub(super) fn crc(&mut self) {
        let crc = crc32c::crc32c(&self.0[..self.1]);
        self.u32(crc);
    }
}

/// Reads numbers one behind the other.
pub(super) struct Take<'a>(pub(super) &'a [u8], pub(super) usize);

impl Take<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[self.1..self.1 + N]);
        self.1 += N;
        bytes
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    pub(super) fn u128(&mut self) -> u128 {
        u128::from_le_bytes(self.bytes())
    }

    /// True if the checksum of all before it is here.
    pub(super) fn crc(&mut self) -> bool {
        let crc = crc32c::crc32c(&self.0[..self.1]);
        self.u32() == crc
    }
}

//! Reading a segment record by record: what is left of one that has no end.
//!
//! Whatever is damaged is skipped up to the next head that is valid where it stands, so that a page is lost only with
//! its own bytes.

use super::file::{BLOCK, Buffer, PageFile, blocks_of};
use super::format::{ENTRY, End, Entry, HEAD, Head, HeadError, Kind, SegmentHead, SegmentId, UNIT};

/// What was found in a segment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Found {
    pub(super) entries: Vec<Entry>,
    /// End of the last valid record, in blocks.
    pub(super) end: u64,
    /// Heads that are damaged, and whole records whose payload is.
    pub(super) damaged: u64,
    /// Records that the end of the file cuts.
    pub(super) torn: u64,
    /// Valid heads of another segment, place or version.
    pub(super) foreign: u64,
}

/// What the first and the last block of a file say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Frame {
    /// Has an end: the entries of all records.
    Sealed(SegmentHead, Vec<Entry>),
    /// Has none, or a damaged one; the head if it is whole.
    Open(Option<SegmentHead>),
    /// Another version: to be left alone.
    Foreign,
}

/// Reads head and end of a segment of `bytes`; entries only unless its nonce is `known`.
///
/// # Errors
/// If the disk fails.
pub(super) fn frame(file: &PageFile, id: SegmentId, bytes: u64, known: Option<u64>) -> std::io::Result<Frame> {
    let mut block = Buffer::new(BLOCK);
    let head = match file.read_into(block.bytes_mut(), 0)? {
        count if count < BLOCK as u64 => Err(HeadError::None),
        _ => SegmentHead::decode(block.bytes()),
    };
    if head == Err(HeadError::Foreign) {
        return Ok(Frame::Foreign);
    }
    // That of another segment may have been written here by mistake: records say for themselves where they belong.
    let head = head.ok().filter(|head| head.id == id);
    if bytes < 2 * BLOCK as u64 || !bytes.is_multiple_of(BLOCK as u64) {
        return Ok(Frame::Open(head));
    }
    file.read_into(block.bytes_mut(), bytes - BLOCK as u64)?;
    let Some(end) = End::decode(block.bytes(), bytes) else { return Ok(Frame::Open(head)) };
    if end.id != id || head.is_some_and(|head| head.nonce != end.nonce) {
        return Ok(Frame::Open(head));
    }
    let sealed = SegmentHead { id, nonce: end.nonce };
    if known == Some(end.nonce) {
        return Ok(Frame::Sealed(sealed, Vec::new()));
    }
    let length = (end.entries * ENTRY as u64) as usize;
    let mut list = Buffer::new(blocks_of(length as u64) as usize);
    file.read_into(list.bytes_mut(), end.entries_at)?;
    let list = &list.bytes()[..length];
    let entries = (crc32c::crc32c(list) == end.entries_crc).then(|| Entry::decode_all(list)).flatten();
    Ok(entries.map_or(Frame::Open(Some(sealed)), |entries| Frame::Sealed(sealed, entries)))
}

/// Walks a segment from `from` to `to`. Payloads are read and verified only if `is_verifying`: others are found out when
/// they are read. Without a `nonce`, that of the first valid record counts.
///
/// # Errors
/// If the disk fails.
pub(super) fn walk(
    file: &PageFile,
    id: SegmentId,
    nonce: Option<u64>,
    (from, to): (u64, u64),
    is_verifying: bool,
) -> std::io::Result<(Found, Option<u64>)> {
    let mut found = Found { end: from, ..Found::default() };
    let mut nonce = nonce;
    let least = if is_verifying { WINDOW } else { 2 * BLOCK };
    let mut window = Window { file, least, buffer: Buffer::default(), start: 0, length: 0 };
    let (mut at, mut is_astray) = (from, false);
    while at + HEAD as u64 <= to {
        let bytes = window.at(at, HEAD)?;
        if bytes.len() < HEAD {
            break;
        }
        let length = Head::length(bytes).unwrap_or(HEAD).min((to - at) as usize);
        let bytes = window.at(at, length)?;
        let decoded = Head::decode(bytes, at).and_then(|head| {
            let is_ours = head.segment == id && nonce.is_none_or(|nonce| nonce == head.nonce);
            if is_ours { Ok(head) } else { Err(HeadError::Foreign) }
        });
        let head = match decoded {
            Ok(head) => head,
            Err(error) => {
                // Behind records are zeros; anything else is what is left of one, however long.
                if !is_astray && (error != HeadError::None || bytes[..UNIT as usize].iter().any(|byte| *byte != 0)) {
                    is_astray = true;
                    found.foreign += u64::from(error == HeadError::Foreign);
                    found.damaged += u64::from(error != HeadError::Foreign);
                }
                at = window.next_candidate(at + UNIT)?;
                continue;
            }
        };
        is_astray = false;
        let end = at + u64::from(head.length);
        if end > to {
            found.torn += 1;
            at += UNIT;
            continue;
        }
        nonce = Some(head.nonce);
        if is_verifying || head.kind == Kind::Notes {
            let payload_at = at + u64::from(head.payload_at);
            match window.payload(payload_at, head.payload as usize)? {
                Some(payload) if crc32c::crc32c(payload) == head.payload_crc => {
                    found.end = blocks_of(end);
                    if head.kind == Kind::Notes {
                        match Entry::decode_all(payload) {
                            Some(entries) => found.entries.extend(entries),
                            None => found.foreign += 1,
                        }
                    } else {
                        found.entries.push(head.entry());
                    }
                }
                Some(_) => found.damaged += 1,
                None => found.torn += 1,
            }
        } else {
            found.end = blocks_of(end);
            found.entries.push(head.entry());
        }
        at = end;
    }
    Ok((found, nonce))
}

/// A part of a file in memory.
struct Window<'a> {
    file: &'a PageFile,
    /// Bytes read at once.
    least: usize,
    buffer: Buffer,
    start: u64,
    length: usize,
}

impl Window<'_> {
    /// Up to `count` bytes at `at`; fewer at the end of the file.
    fn at(&mut self, at: u64, count: usize) -> std::io::Result<&[u8]> {
        let is_there = at >= self.start && at + count as u64 <= self.start + self.length as u64;
        if !is_there {
            self.load(at, count)?;
        }
        let from = ((at - self.start) as usize).min(self.length);
        Ok(&self.buffer.bytes()[from..(from + count).min(self.length)])
    }

    /// All of a payload, which may be larger than the window; `None` if the file ends before it does.
    fn payload(&mut self, at: u64, count: usize) -> std::io::Result<Option<&[u8]>> {
        let bytes = self.at(at, count)?;
        Ok((bytes.len() == count).then_some(bytes))
    }

    /// The next place from `at` on where a head may start: zeros and holes are skipped at once.
    fn next_candidate(&mut self, at: u64) -> std::io::Result<u64> {
        let mut at = at;
        loop {
            let rest = self.at(at, UNIT as usize)?;
            if rest.len() < UNIT as usize || rest.iter().any(|byte| *byte != 0) {
                return Ok(at);
            }
            let from = (at - self.start) as usize;
            let zeros = self.buffer.bytes()[from..self.length].iter().take_while(|byte| **byte == 0).count();
            at += zeros as u64 / UNIT * UNIT;
            if from + zeros == self.length {
                match self.file.next_data(at) {
                    Some(data) => at = at.max(data / UNIT * UNIT),
                    None => return Ok(u64::MAX - HEAD as u64),
                }
            }
        }
    }

    fn load(&mut self, at: u64, count: usize) -> std::io::Result<()> {
        let start = at / BLOCK as u64 * BLOCK as u64;
        let wanted = ((at - start) as usize + count).next_multiple_of(BLOCK).max(self.least);
        if self.buffer.bytes().len() != wanted {
            self.buffer = Buffer::new(wanted);
        }
        self.start = start;
        self.length = 0;
        self.length = self.file.read_into(self.buffer.bytes_mut(), start)? as usize;
        Ok(())
    }
}

/// Bytes read at once where all of them are looked at.
const WINDOW: usize = 1 << 20;

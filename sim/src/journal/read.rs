//! Reading a journal: a block at a time, checked before it is believed.

use std::io::{self, Read};

use pd_core::codec::{Codec, DecodeError, Source};
use pd_core::message::VERSION as CODEC;
use pd_core::op::Input;
use pd_core::router::RouterInput;
use pd_core::time::Instant;

use super::write::{END, LAUNCH, STEP, STOP, checksum};
use super::{
    Asked, BLOCK_BYTES_MAX, Detail, Extent, Header, JournalError, MAGIC, Record, RecordError, StepRecord, Told,
    VERSION, Who,
};

/// Reads a journal, record by record. Keeps one block in memory.
#[derive(Debug)]
pub struct Reader<R: Read> {
    input: R,
    header: Header,
    block: Vec<u8>,
    /// Offset of the next record in the block.
    offset: usize,
    last: Instant,
    /// What was read of whole blocks before the present one, and records of the present one.
    extent: Extent,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Open,
    /// The last record was read.
    Closed,
    /// Over, well or badly.
    Over,
}

impl<R: Read> Reader<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// If it is no journal, of another version, or its head is torn or damaged.
    pub fn new(mut input: R) -> Result<Self, JournalError> {
        let mut head = Vec::new();
        (&mut input).take(12).read_to_end(&mut head)?;
        let Some((magic, version)) = head.split_first_chunk::<8>().filter(|(magic, _)| **magic == MAGIC) else {
            let hint =
                if !head.is_empty() && head.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
                    " (a scenario file ends in .toml)"
                } else if MAGIC.starts_with(&head) {
                    " (it is empty or cut off)"
                } else {
                    ""
                };
            return Err(JournalError::NotAJournal { hint });
        };
        let _ = magic;
        let mut extent = Extent { blocks: 0, bytes: head.len() as u64, records: 0, until: Instant::ZERO };
        let version = version.first_chunk::<4>().ok_or(JournalError::Torn { extent })?;
        let found = u32::from_le_bytes(*version);
        if found != VERSION {
            return Err(JournalError::Version { found });
        }
        let block = read_block(&mut input, extent)?.ok_or(JournalError::Torn { extent })?;
        let header: Header = serde_json::from_slice(&block).map_err(JournalError::Header)?;
        if header.codec != CODEC {
            return Err(JournalError::Codec { found: header.codec, pd: header.pd });
        }
        extent.blocks = 1;
        extent.bytes += 8 + block.len() as u64;
        let state = State::Open;
        Ok(Self { input, header, block: Vec::new(), offset: 0, last: Instant::ZERO, extent, state })
    }

    /// What the journal says of itself.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// How far it was read.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.extent
    }

    fn read(&mut self) -> Result<Option<Record>, JournalError> {
        while self.offset == self.block.len() {
            if !self.block.is_empty() {
                self.extent.blocks += 1;
                self.extent.bytes += 8 + self.block.len() as u64;
            }
            (self.offset, self.last) = (0, Instant::ZERO);
            self.block.clear();
            match read_block(&mut self.input, self.extent)? {
                Some(block) => self.block = block,
                None if self.state == State::Closed => return Ok(None),
                None => return Err(JournalError::Unclosed { extent: self.extent }),
            }
            if self.state == State::Closed {
                return Err(JournalError::Trailing { extent: self.extent });
            }
        }
        if self.state == State::Closed {
            return Err(JournalError::Trailing { extent: self.extent });
        }
        let mut source = Source::compact(&self.block[self.offset..]);
        let record = decode(&mut source, self.last, self.header.detail)
            .map_err(|problem| JournalError::Record { problem, extent: self.extent })?;
        self.offset += source.at();
        self.last = record.at();
        self.extent.records += 1;
        self.extent.until = record.at();
        if matches!(record, Record::End { .. }) {
            self.state = State::Closed;
        }
        Ok(Some(record))
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Record, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Over {
            return None;
        }
        let record = self.read();
        if !matches!(record, Ok(Some(_))) {
            self.state = State::Over;
        }
        record.transpose()
    }
}

/// The payload of the next block; none at the end of the file.
fn read_block(input: &mut impl Read, extent: Extent) -> Result<Option<Vec<u8>>, JournalError> {
    let mut head = Vec::new();
    input.take(8).read_to_end(&mut head)?;
    if head.is_empty() {
        return Ok(None);
    }
    let (Some(length), Some(sum)) = (head.first_chunk::<4>(), head.last_chunk::<4>().filter(|_| head.len() == 8))
    else {
        return Err(JournalError::Torn { extent });
    };
    let (length, sum) = (u32::from_le_bytes(*length), u32::from_le_bytes(*sum));
    if length == 0 || length > BLOCK_BYTES_MAX {
        return Err(JournalError::Damaged { extent });
    }
    let mut payload = Vec::new();
    input.take(u64::from(length)).read_to_end(&mut payload)?;
    if payload.len() < length as usize {
        return Err(JournalError::Torn { extent });
    }
    if checksum(extent.blocks, &payload) != sum {
        return Err(JournalError::Damaged { extent });
    }
    Ok(Some(payload))
}

fn decode(source: &mut Source<'_>, last: Instant, detail: Detail) -> Result<Record, RecordError> {
    let tag = source.u8()?;
    let who = match source.u32()? {
        0 => Who::Router,
        index => Who::Worker(index - 1),
    };
    let at = last.0.checked_add(source.u64()?).map(Instant).ok_or(RecordError::Time)?;
    Ok(match tag {
        LAUNCH => {
            let text = String::decode(source)?;
            Record::Launch { at, who, life: Box::new(serde_json::from_str(&text)?) }
        }
        STOP => Record::Stop { at, who },
        STEP => {
            let told = match who {
                Who::Router => Told::Router(RouterInput::decode(source)?),
                Who::Worker(_) => Told::Worker(Input::decode(source)?),
            };
            let mut outputs = [0; 8];
            outputs.copy_from_slice(source.bytes(8)?);
            let asked = match (detail, who) {
                (Detail::Inputs, _) => None,
                (Detail::Outputs, Who::Router) => Some(Asked::Router(Vec::decode(source)?)),
                (Detail::Outputs, Who::Worker(_)) => Some(Asked::Worker(Vec::decode(source)?)),
            };
            Record::Step(Box::new(StepRecord { at, who, told, outputs: u64::from_le_bytes(outputs), asked }))
        }
        END => Record::End { at },
        tag => return Err(RecordError::Bytes(DecodeError::Tag { at: 0, tag, of: "Record" })),
    })
}

impl<R: Read> Reader<io::BufReader<R>> {
    /// Reads a file.
    ///
    /// # Errors
    /// As [`Reader::new`].
    pub fn buffered(input: R) -> Result<Self, JournalError> {
        Self::new(io::BufReader::new(input))
    }
}

//! Writing a journal: a record at a time, a block when there is enough for one.

use std::io::{self, Write};

use pd_core::codec::{Codec, Compact, Sink};
use pd_core::op::{Input, Output};
use pd_core::router::{RouterInput, RouterOutput};
use pd_core::time::Instant;

use super::{Detail, Header, Life, MAGIC, VERSION, Who, fingerprint};

/// Writes a journal. Keeps one block in memory.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    detail: Detail,
    /// The payload of the block to come.
    block: Vec<u8>,
    blocks: u32,
    bytes: u64,
    records: u64,
    /// Time of the last record of the block.
    last: Instant,
}

/// A journal that was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Its records.
    pub records: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// Tags of records.
pub(super) const LAUNCH: u8 = 0;
pub(super) const STOP: u8 = 1;
pub(super) const STEP: u8 = 2;
pub(super) const END: u8 = 3;

impl<W: Write> Writer<W> {
    /// Begins a journal.
    ///
    /// # Errors
    /// Whatever is wrong with `out`.
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        let bytes = (MAGIC.len() + size_of::<u32>()) as u64;
        let mut writer = Self {
            out,
            detail: header.detail,
            block: serde_json::to_vec(header)?,
            blocks: 0,
            bytes,
            records: 0,
            last: Instant::ZERO,
        };
        writer.flush()?;
        Ok(writer)
    }

    /// A machine begins a life.
    ///
    /// # Errors
    /// Whatever is wrong with the file below.
    pub fn launch(&mut self, at: Instant, who: Who, life: &Life) -> io::Result<()> {
        let life = serde_json::to_string(life)?;
        self.begin(LAUNCH, at, who);
        life.encode(&mut Compact(&mut self.block));
        self.end()
    }

    /// A life has ended.
    ///
    /// # Errors
    /// Whatever is wrong with the file below.
    pub fn stop(&mut self, at: Instant, who: Who) -> io::Result<()> {
        self.begin(STOP, at, who);
        self.end()
    }

    /// A worker took an input and answered.
    ///
    /// # Errors
    /// Whatever is wrong with the file below.
    pub fn worker(&mut self, at: Instant, index: u32, input: &Input, outputs: &[Output]) -> io::Result<()> {
        self.step(at, Who::Worker(index), input, outputs)
    }

    /// The router took an input and answered.
    ///
    /// # Errors
    /// Whatever is wrong with the file below.
    pub fn router(&mut self, at: Instant, input: &RouterInput, outputs: &[RouterOutput]) -> io::Result<()> {
        self.step(at, Who::Router, input, outputs)
    }

    /// A worker takes an input. To be followed by [`answer`](Self::answer): together they are what
    /// [`worker`](Self::worker) writes without the outputs, for those who see the two one after the other.
    pub fn worker_input(&mut self, at: Instant, index: u32, input: &Input) {
        self.begin(STEP, at, Who::Worker(index));
        input.encode(&mut Compact(&mut self.block));
    }

    /// The router takes an input; as [`worker_input`](Self::worker_input).
    pub fn router_input(&mut self, at: Instant, input: &RouterInput) {
        self.begin(STEP, at, Who::Router);
        input.encode(&mut Compact(&mut self.block));
    }

    /// The fingerprint of what it answered, as in [`pd_core::pump::Step`].
    ///
    /// # Errors
    /// Whatever is wrong with the file below; or if the header says that outputs are recorded.
    pub fn answer(&mut self, outputs: u64) -> io::Result<()> {
        if self.detail == Detail::Outputs {
            return Err(io::Error::other("this journal records outputs, not only their fingerprint"));
        }
        Compact(&mut self.block).bytes(&outputs.to_le_bytes());
        self.end()
    }

    /// Ends the journal; returns what it was written to.
    ///
    /// # Errors
    /// Whatever is wrong with the file below.
    pub fn finish(mut self, at: Instant) -> io::Result<(W, Written)> {
        self.begin(END, at, Who::Router);
        self.end()?;
        self.flush()?;
        self.out.flush()?;
        Ok((self.out, Written { records: self.records, bytes: self.bytes }))
    }

    /// Writes what there is, as a block of its own: for a process that wants its last moments to be readable.
    ///
    /// # Errors
    /// Whatever is wrong with the file below.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(self.block.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a record of more than 4 GiB"))?;
        let sum = checksum(self.blocks, &self.block);
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&sum.to_le_bytes())?;
        self.out.write_all(&self.block)?;
        self.bytes += 8 + u64::from(length);
        self.blocks += 1;
        self.block.clear();
        self.last = Instant::ZERO;
        Ok(())
    }

    fn step<I: Codec, O: Codec>(&mut self, at: Instant, who: Who, input: &I, outputs: &[O]) -> io::Result<()> {
        self.begin(STEP, at, who);
        let mut sink = Compact(&mut self.block);
        input.encode(&mut sink);
        sink.bytes(&fingerprint(outputs).to_le_bytes());
        if self.detail == Detail::Outputs {
            sink.u32(outputs.len() as u32);
            for output in outputs {
                output.encode(&mut sink);
            }
        }
        self.end()
    }

    fn begin(&mut self, tag: u8, at: Instant, who: Who) {
        let since = at.ns_since(self.last);
        self.last = self.last.max(at);
        let mut sink = Compact(&mut self.block);
        sink.u8(tag);
        sink.u32(match who {
            Who::Router => 0,
            Who::Worker(index) => index + 1,
        });
        sink.u64(since);
    }

    fn end(&mut self) -> io::Result<()> {
        self.records += 1;
        if self.block.len() >= BLOCK_BYTES { self.flush() } else { Ok(()) }
    }
}

/// Of a block. Its number is part of it, so that blocks cannot be left out or change places.
pub(super) fn checksum(number: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// A block is written once it has so much.
const BLOCK_BYTES: usize = 64 << 10;

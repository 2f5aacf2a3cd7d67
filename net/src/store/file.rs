//! Files of pages: reads and writes of aligned blocks that bypass the page cache where the file system can do that.
//!
//! Direct IO wants addresses, offsets and lengths in multiples of [`BLOCK`]. Pages of an arena usually are such memory
//! and go to and from the disk without a copy; everything else passes through a [`Buffer`].

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::faults::Faults;

/// Bytes of a block: the unit of direct IO on all devices that matter.
pub(super) const BLOCK: usize = 4096;

/// `bytes` rounded up to whole blocks.
pub(super) const fn blocks_of(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK as u64)
}

/// True if direct IO can take this memory as it is.
pub(super) fn is_aligned(bytes: &[u8]) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(BLOCK) && bytes.len().is_multiple_of(BLOCK)
}

/// A file of a store.
#[derive(Debug)]
pub(super) struct PageFile {
    file: File,
    is_direct: bool,
    faults: Faults,
}

impl PageFile {
    /// Creates a file that must not exist.
    pub(super) fn create(path: &Path, is_direct: bool, faults: Faults) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        Self::with(options, path, is_direct, faults)
    }

    /// Opens a file; for writing, too, if it is one of ours.
    pub(super) fn open(path: &Path, is_writer: bool, is_direct: bool, faults: Faults) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(is_writer);
        Self::with(options, path, is_direct, faults)
    }

    fn with(mut options: OpenOptions, path: &Path, is_direct: bool, faults: Faults) -> io::Result<Self> {
        if is_direct {
            options.custom_flags(libc::O_DIRECT);
        }
        Ok(Self { file: options.open(path)?, is_direct, faults })
    }

    /// True if memory has to be aligned.
    pub(super) fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Writes all parts one behind the other. Parts of a direct file are aligned, and so is `at`.
    pub(super) fn write(&self, parts: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
        self.faults.on_write()?;
        let mut rest = parts;
        let mut at = at;
        while !rest.is_empty() {
            let count = rest.len().min(PARTS_MAX);
            match rustix::io::pwritev(&self.file, &rest[..count], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Fills the parts one behind the other; how many bytes there were before the end of the file.
    pub(super) fn read(&self, parts: &mut [IoSliceMut<'_>], at: u64) -> io::Result<u64> {
        self.faults.on_read()?;
        let mut rest = parts;
        let mut count = 0;
        while !rest.is_empty() {
            let most = rest.len().min(PARTS_MAX);
            match rustix::io::preadv(&self.file, &mut rest[..most], at + count) {
                Ok(0) => break,
                Ok(read) => {
                    count += read as u64;
                    // A direct file is read in whole blocks except for its last one.
                    if self.is_direct && !read.is_multiple_of(BLOCK) {
                        break;
                    }
                    IoSliceMut::advance_slices(&mut rest, read);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(count)
    }

    /// Fills a buffer, or as much of it as the file has.
    pub(super) fn read_into(&self, bytes: &mut [u8], at: u64) -> io::Result<u64> {
        self.read(&mut [IoSliceMut::new(bytes)], at)
    }

    /// What was written before this call survives a loss of power once it returns.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.faults.on_sync()?;
        self.file.sync_data()
    }

    /// Grows the file by a hole, or cuts it.
    pub(super) fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    /// Its length.
    pub(super) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Where the next bytes are that were ever written, at or behind `at`; `None` behind the last.
    pub(super) fn next_data(&self, at: u64) -> Option<u64> {
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => Some(data),
            Err(rustix::io::Errno::NXIO) => None,
            // Not known on this file system: look at every byte.
            Err(_) => Some(at),
        }
    }
}

/// Whether files in this folder can be written and read back directly.
pub(super) fn can_be_direct(dir: &Path) -> bool {
    let path = dir.join(format!("probe-{:016x}.tmp", super::owners::random()));
    let try_it = || -> io::Result<bool> {
        let file = PageFile::create(&path, true, Faults::default())?;
        let mut block = Buffer::new(BLOCK);
        block.bytes_mut().fill(0x5A);
        file.write(&mut [IoSlice::new(block.bytes())], 0)?;
        block.bytes_mut().fill(0);
        let count = file.read_into(block.bytes_mut(), 0)?;
        Ok(count == BLOCK as u64 && block.bytes().iter().all(|byte| *byte == 0x5A))
    };
    let result = try_it().unwrap_or(false);
    // Absent if it could not be created.
    let _ = std::fs::remove_file(&path);
    result
}

/// Makes names that were created or removed in a folder durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads a small file at an offset through the page cache.
pub(super) fn read_small(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(bytes, at)
}

/// Aligned memory.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// Zeros.
    pub(super) fn new(length: usize) -> Self {
        let memory = vec![0; length + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Self { memory, start, length }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// Buffers that are reused: fresh memory costs a page fault for each block.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Buffer>>);

impl Buffers {
    /// A buffer of at least `length` bytes, cut to it; its content means nothing.
    pub(super) fn take(&self, length: usize) -> Buffer {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &Buffer| buffer.memory.len() >= length + BLOCK;
        match kept.iter().position(fits) {
            Some(at) => {
                let mut buffer = kept.swap_remove(at);
                buffer.length = length;
                buffer
            }
            None => {
                drop(kept);
                Buffer::new(length.next_power_of_two().max(1 << 16)).cut(length)
            }
        }
    }

    /// Keeps a buffer for later.
    pub(super) fn give(&self, buffer: Buffer) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < BUFFERS_MAX {
            kept.push(buffer);
        }
    }
}

impl Buffer {
    fn cut(mut self, length: usize) -> Self {
        self.length = length;
        self
    }
}

/// Parts that the kernel takes at once (`IOV_MAX`).
const PARTS_MAX: usize = 1024;

/// Buffers kept: about the threads that read and write at a time.
const BUFFERS_MAX: usize = 16;

//! The log that a process writes: segments it appends to, and the fdatasync that many writers share.
//!
//! Whoever writes reserves a range, writes it from its own memory and waits for an fdatasync that began after that; the
//! first to wait does it, for all. Nothing is copied, and writers overlap.
//!
//! ```text
//!   reserve --> write --> sync --> index          one segment
//!      |                    ^
//!   no room: retire, open   +-- one leader; who comes meanwhile waits for the next one
//! ```

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::faults::Faults;
use super::file::{BLOCK, Buffer, PageFile, blocks_of};
use super::format::{ENTRY, End, Entry, SegmentHead, SegmentId};

/// A segment that is written to.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) id: SegmentId,
    pub(super) nonce: u64,
    pub(super) slot: u32,
    pub(super) file: Arc<PageFile>,
    capacity: u64,
    state: Mutex<State>,
    /// A write or a sync has ended.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Where the next range starts.
    end: u64,
    /// Starts of ranges that are being written.
    in_flight: BTreeSet<u64>,
    entries: Vec<Entry>,
    entries_reserved: u64,
    /// Ranges whose holders are not done with the index.
    holders: u32,
    /// Nothing more is written here.
    is_closed: bool,
    /// A sync failed: nobody knows what is on the disk, so this gets no end and is read through when it is opened.
    is_lost: bool,
    syncs_begun: u64,
    syncs_done: u64,
    is_syncing: bool,
}

/// A range of a segment that its holder writes.
#[derive(Debug)]
pub(super) struct Range {
    pub(super) segment: Arc<Active>,
    pub(super) at: u64,
    /// The sync that covers it, once it is written.
    pub(super) sync: u64,
}

impl Drop for Range {
    fn drop(&mut self) {
        let mut state = self.segment.lock();
        state.holders -= 1;
        // Its holder panicked.
        if state.in_flight.remove(&self.at) {
            state.is_closed = true;
        }
        drop(state);
        self.segment.changed.notify_all();
    }
}

impl Active {
    /// Creates a segment of `capacity` bytes, durable by name.
    pub(super) fn create(
        dir: &Path,
        head: SegmentHead,
        capacity: u64,
        is_direct: bool,
        faults: Faults,
    ) -> io::Result<PageFile> {
        let path = dir.join(head.id.name());
        let file = PageFile::create(&path, is_direct, faults)?;
        let prepare = || -> io::Result<()> {
            // Its quota is taken now, and later syncs need not write a new length.
            file.set_len(capacity)?;
            let mut block = Buffer::new(BLOCK);
            head.encode(block.bytes_mut());
            // Durable with the first records.
            file.write(&mut [IoSlice::new(block.bytes())], 0)?;
            super::file::sync_dir(dir)
        };
        if let Err(error) = prepare() {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Ok(file)
    }

    pub(super) fn new(head: SegmentHead, slot: u32, file: Arc<PageFile>, capacity: u64) -> Self {
        let state = State { end: BLOCK as u64, ..State::default() };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Self { id: head.id, nonce: head.nonce, slot, file, capacity, state, changed }
    }

    /// A range of whole blocks, and room for its entries at the end; `None` if there is no such room.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64, entries: u64) -> Option<Range> {
        let mut state = self.lock();
        let at = state.end;
        let entries_after = state.entries_reserved + entries;
        if state.is_closed || needed(at + bytes, entries_after) > self.capacity {
            return None;
        }
        state.end += bytes;
        state.entries_reserved = entries_after;
        state.in_flight.insert(at);
        state.holders += 1;
        Some(Range { segment: Arc::clone(self), at, sync: 0 })
    }

    /// True if an empty segment has room for this.
    pub(super) fn fits(capacity: u64, bytes: u64, entries: u64) -> bool {
        needed(BLOCK as u64 + bytes, entries) <= capacity
    }

    /// A range was written, or not; what its records say. Returns the number of the sync that covers it.
    pub(super) fn written(&self, at: u64, result: &io::Result<()>, entries: &[Entry]) -> u64 {
        let mut state = self.lock();
        let was_there = state.in_flight.remove(&at);
        assert!(was_there, "a range ends once");
        match result {
            Ok(()) => state.entries.extend_from_slice(entries),
            Err(_) => state.is_closed = true,
        }
        // One that runs by now may have begun before the write ended.
        let sync = state.syncs_begun + 1;
        drop(state);
        self.changed.notify_all();
        sync
    }

    /// Returns once the sync of this number has ended; where this call did the sync, with the end of
    /// what is on the disk without a write in between that is under way.
    ///
    /// # Errors
    /// If the sync failed; what it should have covered may be lost.
    pub(super) fn sync(&self, wanted: u64, wait: Duration) -> io::Result<Option<u64>> {
        let mut state = self.lock();
        loop {
            if state.syncs_done >= wanted {
                return Ok(None);
            }
            if state.is_lost {
                return Err(io::Error::other("an earlier sync of this segment failed"));
            }
            if !state.is_syncing {
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_syncing = true;
        let until = Instant::now() + wait;
        // Writes that are on their way share this sync instead of waiting for the next.
        while !state.in_flight.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.syncs_begun += 1;
        let number = state.syncs_begun;
        let frontier = state.in_flight.first().copied().unwrap_or(state.end);
        drop(state);
        let result = self.file.sync();
        let mut state = self.lock();
        state.is_syncing = false;
        match &result {
            Ok(()) => state.syncs_done = number,
            Err(_) => (state.is_lost, state.is_closed) = (true, true),
        }
        drop(state);
        self.changed.notify_all();
        result.map(|()| Some(frontier))
    }

    /// Once nothing is written any more: puts the end behind the records and gives back what was not used. Returns the
    /// length of the file, and whether it has an end: it stays without one if a sync failed before.
    ///
    /// # Errors
    /// If the end cannot be written.
    pub(super) fn seal(&self) -> io::Result<(u64, bool)> {
        let mut state = self.lock();
        state.is_closed = true;
        while state.holders > 0 || state.is_syncing {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let (end, is_lost) = (state.end, state.is_lost);
        let entries = std::mem::take(&mut state.entries);
        drop(state);
        if is_lost {
            self.file.set_len(end)?;
            return Ok((end, false));
        }
        write_end(&self.file, SegmentHead { id: self.id, nonce: self.nonce }, end, &entries).map(|bytes| (bytes, true))
    }

    /// True if nothing is being written.
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.lock();
        state.holders == 0 && !state.is_syncing
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.lock().entries.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the end of a segment whose records end at `end`; the length of the file.
pub(super) fn write_end(file: &PageFile, head: SegmentHead, end: u64, entries: &[Entry]) -> io::Result<u64> {
    let bytes = blocks_of((entries.len() * ENTRY) as u64);
    let mut buffer = Buffer::new(bytes as usize + BLOCK);
    let (list, last) = buffer.bytes_mut().split_at_mut(bytes as usize);
    Entry::encode_all(entries, list);
    let entries_crc = crc32c::crc32c(&list[..entries.len() * ENTRY]);
    let (id, nonce, entries) = (head.id, head.nonce, entries.len() as u64);
    End { id, nonce, entries_at: end, entries, entries_crc }.encode(last);
    file.write(&mut [IoSlice::new(buffer.bytes())], end)?;
    let length = end + bytes + BLOCK as u64;
    file.set_len(length)?;
    file.sync()?;
    Ok(length)
}

/// Bytes of a sealed segment whose records end at `end`.
const fn needed(end: u64, entries: u64) -> u64 {
    end + blocks_of(entries * ENTRY as u64) + BLOCK as u64
}

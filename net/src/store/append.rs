//! Writing: what a batch looks like on the disk, where it goes, and when it counts.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::{Arc, Mutex};

use pd_core::id::PageKey;
use pd_core::op::Fault;

use super::file::{BLOCK, Buffer, blocks_of, is_aligned};
use super::format::{ENTRY, Entry, HEAD, Head, Kind, LARGE, SegmentHead, SegmentId, TOKENS_MAX, layout, start_of};
use super::log::{Active, Range};
use super::{Record, Shared, lock, owners, reclaim, upkeep};

/// The end of this process's log.
#[derive(Debug, Default)]
pub(super) struct Log {
    head: Mutex<LogHead>,
    /// Segments without an end, that nobody starts to write to any more.
    retired: Mutex<Vec<Arc<Active>>>,
    /// Uses and other notes that were not written.
    notes: Mutex<Vec<Entry>>,
}

#[derive(Debug, Default)]
struct LogHead {
    active: Option<Arc<Active>>,
    /// Number of the next segment.
    number: u32,
}

/// A record to append.
#[derive(Debug)]
pub(super) struct Item<'a> {
    /// Its place and its checksum are filled in when it is written.
    pub(super) head: Head,
    pub(super) tokens: &'a [pd_core::id::Token],
    pub(super) payload: &'a [u8],
    /// What a record of notes says.
    pub(super) notes: &'a [Entry],
}

/// Who asks for room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// A client: what is cold makes way.
    Serve,
    /// What is moved to make room: nothing makes way for it.
    Move,
}

/// Where the bytes of a batch come from, in order.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// The next bytes of the buffer.
    Buffer(usize),
    /// The payload of an item, from its memory.
    Payload(usize),
}

impl Log {
    /// Continues a log behind its last segment.
    pub(super) fn new(number: u32) -> Self {
        Self { head: Mutex::new(LogHead { active: None, number }), ..Self::default() }
    }

    /// Uses, and what a segment said that is gone, to write sometime.
    pub(super) fn note_later(&self, entries: Vec<Entry>) {
        lock(&self.notes).extend(entries);
    }

    /// What nobody has written.
    pub(super) fn take_notes(&self) -> Vec<Entry> {
        std::mem::take(&mut *lock(&self.notes))
    }

    /// Segments that wait for their end and are not written to any more.
    pub(super) fn take_quiet(&self) -> Vec<Arc<Active>> {
        lock(&self.retired).extract_if(.., |segment| segment.is_quiet()).collect()
    }

    /// Records written to the segment in use.
    #[cfg(test)]
    pub(super) fn written(&self) -> usize {
        lock(&self.head).active.as_ref().map_or(0, |active| active.entries())
    }

    /// Stops writing to the segment in use, if there is one.
    pub(super) fn retire(&self) {
        let active = lock(&self.head).active.take();
        lock(&self.retired).extend(active);
    }

    fn reserve(&self, shared: &Shared, bytes: u64, entries: u64, purpose: Purpose) -> Result<Range, Fault> {
        let mut head = lock(&self.head);
        if let Some(active) = head.active.take() {
            if let Some(range) = active.reserve(bytes, entries) {
                head.active = Some(active);
                return Ok(range);
            }
            let waiting = {
                let mut retired = lock(&self.retired);
                retired.push(active);
                retired.len()
            };
            shared.upkeep.wake();
            if waiting > RETIRED_MAX {
                // Whoever opens the store after a crash would have to read all of them.
                upkeep::seal(shared);
            }
        }
        // A number whose segment could not be made is not tried again: a part of it may be there.
        let number = head.number;
        head.number += 1;
        let active = open_segment(shared, number, purpose)?;
        let range = active.reserve(bytes, entries).ok_or(Fault::Full)?;
        head.active = Some(active);
        Ok(range)
    }
}

/// Writes pages and returns when they are durable; see [`super::Store::write`].
pub(super) fn write(shared: &Shared, records: &[Record<'_>]) -> Vec<Result<(), Fault>> {
    let mut results = vec![Ok(()); records.len()];
    let mut first: BTreeMap<PageKey, usize> = BTreeMap::new();
    let is_new = |record: &Record<'_>, index: &super::Index| !index.is_readable(record.page.key, record.page.root);
    let new: Vec<usize> = {
        let index = shared.index();
        // Once each: of two records of a page one would stay behind, dead, on the disk.
        (0..records.len())
            .filter(|at| is_new(&records[*at], &index) && *first.entry(records[*at].page.key).or_insert(*at) == *at)
            .collect()
    };
    if new.is_empty() {
        return results;
    }
    let stamps = shared.index_mut().stamp(new.iter().map(|at| (records[*at].page.key, records[*at].page.parent)));
    let mut items = Vec::with_capacity(new.len());
    let mut of_items = Vec::with_capacity(new.len());
    for (at, (version, recency)) in new.into_iter().zip(stamps) {
        let Record { page, bytes } = records[at];
        if page.tokens.len() > TOKENS_MAX || bytes.len() > PAYLOAD_MAX {
            results[at] = Err(Fault::Full);
            continue;
        }
        let (key, root, parent) = (page.key, page.root, page.parent);
        items.push(Item {
            head: Head {
                kind: Kind::Page,
                version,
                recency,
                root,
                key,
                parent,
                ..blank(page.tokens.len(), bytes.len())
            },
            tokens: page.tokens,
            payload: bytes,
            notes: &[],
        });
        of_items.push(at);
    }
    let written = append(shared, &mut items, Purpose::Serve, true);
    for (at, result) in of_items.into_iter().zip(written) {
        results[at] = result;
    }
    for (at, record) in records.iter().enumerate() {
        results[at] = first.get(&record.page.key).map_or(Ok(()), |first| results[*first]);
    }
    results
}

/// Writes what the index was told already.
pub(super) fn note(shared: &Shared, entries: &[Entry], is_durable: bool) -> Result<(), Fault> {
    for entries in entries.chunks(NOTES_MAX) {
        let mut payload = vec![0; entries.len() * ENTRY];
        Entry::encode_all(entries, &mut payload);
        let head = blank(0, payload.len());
        let mut items = [Item { head, tokens: &[], payload: &payload, notes: entries }];
        append(shared, &mut items, Purpose::Serve, is_durable).into_iter().collect::<Result<(), Fault>>()?;
    }
    Ok(())
}

/// A head without its place.
pub(super) fn blank(tokens: usize, payload: usize) -> Head {
    let (payload_at, length) = layout(tokens, payload);
    Head {
        kind: Kind::Notes,
        segment: SegmentId::default(),
        nonce: 0,
        at: 0,
        version: 0,
        recency: 0,
        root: PageKey(0),
        key: PageKey(0),
        parent: PageKey(0),
        payload: payload as u32,
        payload_at: payload_at as u32,
        payload_crc: 0,
        length: length as u32,
        tokens: tokens as u32,
    }
}

/// Appends records; those that are durable count from then on. A record fails or succeeds with those it was written with.
pub(super) fn append(
    shared: &Shared,
    items: &mut [Item<'_>],
    purpose: Purpose,
    is_durable: bool,
) -> Vec<Result<(), Fault>> {
    let batch_bytes = BATCH_BYTES.min(shared.config.segment_bytes / 4);
    let mut results = Vec::with_capacity(items.len());
    let mut written: Vec<(Range, std::ops::Range<usize>)> = Vec::new();
    let (mut from, (mut to, mut bytes)) = (0, batch(items, 0, batch_bytes));
    sum(&mut items[..to]);
    while from < items.len() {
        let (next, next_bytes) = batch(items, to, batch_bytes);
        let (now, later) = items[from..next].split_at_mut(to - from);
        let result = if next_bytes < SUM_BYTES {
            sum(later);
            write_batch(shared, now, blocks_of(bytes), purpose)
        } else {
            // A disk at work leaves a core free.
            std::thread::scope(|scope| {
                scope.spawn(|| sum(later));
                write_batch(shared, now, blocks_of(bytes), purpose)
            })
        };
        results.extend(std::iter::repeat_n(result.as_ref().map(drop).map_err(|fault| *fault), to - from));
        if let Ok(range) = result {
            // A segment is not kept from being sealed, and making way, longer than it is written to.
            if written.first().is_some_and(|(first, _)| first.segment.id != range.segment.id) {
                finish(shared, items, std::mem::take(&mut written), is_durable, &mut results);
            }
            written.push((range, from..to));
        }
        (from, to, bytes) = (to, next, next_bytes);
    }
    finish(shared, items, written, is_durable, &mut results);
    results
}

/// Where the batch that starts with item `from` ends, and its bytes on the disk.
fn batch(items: &[Item<'_>], from: usize, bytes_max: u64) -> (usize, u64) {
    let (mut to, mut bytes) = (from, 0);
    while to < items.len() && (to == from || bytes + u64::from(items[to].head.length) <= bytes_max) {
        bytes = start_of(bytes, items[to].payload.len()) + u64::from(items[to].head.length);
        to += 1;
    }
    (to, bytes)
}

/// Computes the checksums of payloads.
fn sum(items: &mut [Item<'_>]) {
    for item in items {
        item.head.payload_crc = crc32c::crc32c(item.payload);
    }
}

/// Makes batches of one segment durable and tells the index.
fn finish(
    shared: &Shared,
    items: &[Item<'_>],
    written: Vec<(Range, std::ops::Range<usize>)>,
    is_durable: bool,
    results: &mut [Result<(), Fault>],
) {
    let Some((first, _)) = written.first() else { return };
    let segment = &first.segment;
    let wanted = written.iter().map(|(range, _)| range.sync).max().unwrap_or_default();
    let result = if is_durable { sync(shared, segment, wanted) } else { Ok(()) };
    if result.is_err() {
        written.iter().for_each(|(_, range)| results[range.clone()].fill(result));
        return;
    }
    let pages = || {
        let items = written.iter().flat_map(|(_, range)| &items[range.clone()]);
        items.filter(|item| item.head.kind == Kind::Page)
    };
    let count = pages().count() as u64;
    if count > 0 {
        shared.stats().writes += count;
        let mut index = shared.index_mut();
        for item in pages() {
            index.apply(segment.slot, item.head.entry());
        }
    }
}

/// Writes one batch of `bytes` and returns its range, which keeps the segment from being sealed.
fn write_batch(shared: &Shared, items: &mut [Item<'_>], bytes: u64, purpose: Purpose) -> Result<Range, Fault> {
    let entries: u64 = items.iter().map(|item| item.notes.len().max(1) as u64).sum();
    if !Active::fits(shared.config.segment_bytes, bytes, entries) {
        return Err(Fault::Full);
    }
    let mut range = shared.log.reserve(shared, bytes, entries, purpose)?;
    let is_direct = range.segment.file.is_direct();
    let (mut at, mut parts, mut buffered) = (0_u64, Vec::with_capacity(items.len() * 2 + 1), 0_usize);
    for (number, item) in items.iter_mut().enumerate() {
        let start = start_of(at, item.payload.len());
        let is_in_place = item.payload.len() >= LARGE
            && item.payload.len().is_multiple_of(BLOCK)
            && (!is_direct || is_aligned(item.payload));
        item.head.at = range.at + start;
        (item.head.segment, item.head.nonce) = (range.segment.id, range.segment.nonce);
        let end = start + u64::from(item.head.length);
        let copied = if is_in_place { item.head.payload_at as usize } else { item.head.length as usize };
        buffered += (start - at) as usize + copied;
        parts.push(Part::Buffer((start - at) as usize + copied));
        if is_in_place {
            parts.push(Part::Payload(number));
        }
        at = end;
    }
    buffered += (bytes - at) as usize;
    parts.push(Part::Buffer((bytes - at) as usize));
    let mut buffer = shared.buffers.take(buffered);
    fill(&mut buffer, items, &parts, range.at);
    let mut rest = buffer.bytes();
    let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(parts.len());
    // Neighbours in the buffer are one part: only whole blocks may be written directly.
    let mut pending = 0;
    for part in &parts {
        match *part {
            Part::Buffer(length) => pending += length,
            Part::Payload(number) => {
                let (now, later) = rest.split_at(pending);
                slices.push(IoSlice::new(now));
                slices.push(IoSlice::new(items[number].payload));
                (rest, pending) = (later, 0);
            }
        }
    }
    slices.push(IoSlice::new(rest));
    slices.retain(|slice| !slice.is_empty());
    let result = range.segment.file.write(&mut slices, range.at);
    let mut said = Vec::with_capacity(entries as usize);
    for item in &*items {
        match item.head.kind {
            Kind::Page => said.push(item.head.entry()),
            Kind::Notes => said.extend_from_slice(item.notes),
        }
    }
    range.sync = range.segment.written(range.at, &result, &said);
    shared.buffers.give(buffer);
    result.map(|()| range).map_err(|error| shared.fault("write pages", &error))
}

/// Puts heads, gaps and payloads that are copied into the buffer.
fn fill(buffer: &mut Buffer, items: &[Item<'_>], parts: &[Part], base: u64) {
    let out = buffer.bytes_mut();
    let mut used = 0;
    let mut at = base;
    let mut parts = parts.iter().peekable();
    for item in items {
        let Some(Part::Buffer(length)) = parts.next() else { unreachable!("each item starts in the buffer") };
        let slot = &mut out[used..used + length];
        let gap = (item.head.at - at) as usize;
        let (payload_at, tokens_end) = (item.head.payload_at as usize, HEAD + item.tokens.len() * 4);
        slot[..gap].fill(0);
        let record = &mut slot[gap..];
        item.head.encode(item.tokens, record);
        record[tokens_end..payload_at].fill(0);
        if parts.next_if(|part| matches!(part, Part::Payload(_))).is_none() {
            let end = payload_at + item.payload.len();
            record[payload_at..end].copy_from_slice(item.payload);
            record[end..].fill(0);
        }
        used += length;
        at = item.head.at + u64::from(item.head.length);
    }
    out[used..].fill(0);
}

/// Makes a segment durable and tells other processes.
fn sync(shared: &Shared, segment: &Active, wanted: u64) -> Result<(), Fault> {
    match segment.sync(wanted, shared.config.group_commit) {
        Ok(None) => Ok(()),
        Ok(Some(frontier)) => {
            shared.stats().syncs += 1;
            lock(&shared.owners).publish(segment.id.number, frontier);
            Ok(())
        }
        Err(error) => Err(shared.fault("make pages durable", &error)),
    }
}

/// Takes room for a segment and creates it.
fn open_segment(shared: &Shared, number: u32, purpose: Purpose) -> Result<Arc<Active>, Fault> {
    let dir = &shared.config.dir;
    let capacity = shared.config.segment_bytes;
    let _quota = owners::lock_quota(dir).map_err(|error| shared.fault("lock the quota", &error))?;
    reclaim::make_room(shared, capacity, purpose)?;
    let id = SegmentId { writer: lock(&shared.owners).own(), number };
    let head = SegmentHead { id, nonce: owners::random() };
    let file = Active::create(dir, head, capacity, shared.is_direct, shared.config.faults.clone())
        .map_err(|error| shared.fault("create a segment", &error))?;
    // Its number is taken from here on.
    lock(&shared.owners).publish(number, BLOCK as u64);
    let file = Arc::new(file);
    shared.files.put(id, Arc::clone(&file));
    let slot = shared.index_mut().add_segment(id, head.nonce, capacity, false, true);
    Ok(Arc::new(Active::new(head, slot, file, capacity)))
}

/// Bytes of a page at most.
pub(super) const PAYLOAD_MAX: usize = 1 << 30;

/// Bytes written at once: enough to keep a disk busy, few enough to fit small segments.
const BATCH_BYTES: u64 = 8 << 20;

/// Segments that may wait for their end.
const RETIRED_MAX: usize = 4;

/// Checksums of fewer bytes are not worth a thread.
const SUM_BYTES: u64 = 2 << 20;

/// Entries of one record of notes.
const NOTES_MAX: usize = 1024;

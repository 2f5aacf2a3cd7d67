//! The index as it was: a hint that saves reading the ends of segments.
//!
//! Covers segments that were sealed when it was taken, named with their nonces. Whatever came later is in other
//! segments, which are read as ever. Replaced by renaming; a damaged one is not used.
//!
//! ```text
//!   | head block | segments (id, nonce) | namespaces | pages, 48 bytes each | discards and wipes |
//! ```

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;

use pd_core::id::PageKey;

use super::file::{BLOCK, Buffer, PageFile, sync_dir};
use super::format::{ENTRY, Entry, Put, SegmentId, Take};
use super::index::{Index, Place};
use super::{Shared, StoreConfig, owners, reclaim};

/// A snapshot that was read and verified.
#[derive(Debug)]
pub(super) struct Snapshot {
    body: Buffer,
    counts: Counts,
    segments: BTreeMap<SegmentId, (u32, u64)>,
}

/// What the head says of the body.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    segments: u64,
    roots: u64,
    places: u64,
    notes: u64,
    version: u64,
    uses: u64,
}

impl Counts {
    fn bytes(&self) -> Option<u64> {
        let parts = [(self.segments, 16), (self.roots, 16), (self.places, PLACE as u64), (self.notes, ENTRY as u64)];
        parts.iter().try_fold(0_u64, |sum, (count, bytes)| sum.checked_add(count.checked_mul(*bytes)?))
    }
}

impl Snapshot {
    /// The nonce that a segment had, if it is covered.
    pub(super) fn nonce(&self, id: SegmentId) -> Option<u64> {
        self.segments.get(&id).map(|(_, nonce)| *nonce)
    }

    /// Tells the index what was in those of its segments that are still as they were; how many pages.
    pub(super) fn apply(&self, index: &mut Index, still: &[(SegmentId, u32)]) -> u64 {
        let mut slots = vec![None; self.segments.len()];
        for (id, slot) in still {
            if let Some((number, _)) = self.segments.get(id) {
                slots[*number as usize] = Some(*slot);
            }
        }
        let mut take = Take(self.body.bytes(), self.counts.segments as usize * 16);
        let roots: Vec<u16> =
            (0..self.counts.roots).map(|_| PageKey(take.u128())).map(|root| index.root_number(root)).collect();
        index.advance(self.counts.version, self.counts.uses);
        let mut count = 0;
        for _ in 0..self.counts.places {
            let (key, recency, version) = (PageKey(take.u128()), take.u64(), take.u64());
            let (at, length, segment, root) = (take.u32(), take.u32(), take.u32(), take.u32());
            let slot = slots.get(segment as usize).copied().flatten();
            let root_number = roots.get((root & 0xFFFF) as usize).copied();
            if let (Some(slot), Some(root_number)) = (slot, root_number) {
                let flags = (root >> 16) as u16;
                index.put(Index::place_of(key, recency, version, (at, length), (slot, root_number, flags)));
                count += 1;
            }
        }
        for slot in self.body.bytes()[take.1..].chunks_exact(ENTRY).take(self.counts.notes as usize) {
            if let Some(entry) = Entry::decode(slot) {
                index.apply(0, entry);
            }
        }
        count
    }
}

/// Reads the snapshot of a folder; if there is one that cannot be used, why.
pub(super) fn load(dir: &Path, is_direct: bool, config: &StoreConfig) -> (Option<Snapshot>, Option<&'static str>) {
    let read = || -> io::Result<Result<Snapshot, &'static str>> {
        let file = PageFile::open(&dir.join(NAME), false, is_direct, config.faults.clone())?;
        let mut block = Buffer::new(BLOCK);
        if file.read_into(block.bytes_mut(), 0)? < BLOCK as u64 {
            return Ok(Err("it is too short"));
        }
        let mut take = Take(block.bytes(), 0);
        if take.u64() != MAGIC {
            return Ok(Err("it is none, or of another version"));
        }
        let [segments, roots, places, notes, version, uses] = std::array::from_fn(|_| take.u64());
        let counts = Counts { segments, roots, places, notes, version, uses };
        let body_crc = take.u32();
        if !take.crc() {
            return Ok(Err("its head is damaged"));
        }
        let length = counts.bytes().filter(|bytes| *bytes <= file.len().unwrap_or(0)).map(|bytes| bytes as usize);
        let Some(length) = length else { return Ok(Err("it is too short")) };
        let mut body = Buffer::new(length.next_multiple_of(BLOCK));
        file.read_into(body.bytes_mut(), BLOCK as u64)?;
        if crc32c::crc32c(&body.bytes()[..length]) != body_crc {
            return Ok(Err("its body is damaged"));
        }
        let mut take = Take(body.bytes(), 0);
        let segments =
            (0..segments as u32).map(|number| (SegmentId::unpack(take.u64()), (number, take.u64()))).collect();
        Ok(Ok(Snapshot { body, counts, segments }))
    };
    match read() {
        Ok(Ok(snapshot)) => (Some(snapshot), None),
        Ok(Err(reason)) => (None, Some(reason)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (None, None),
        Err(_) => (None, Some("it cannot be read")),
    }
}

/// Writes a snapshot if there is room for it.
///
/// # Errors
/// If the disk fails; the one that was there before stays.
pub(super) fn write(shared: &Shared, writer: u32) -> io::Result<()> {
    let (counts, body, body_crc) = collect(shared);
    let dir = &shared.config.dir;
    let path = dir.join(temporary(writer));
    let length = (BLOCK + body.bytes().len()) as u64;
    // Left by a process that was killed.
    let _ = std::fs::remove_file(&path);
    let file = {
        let _quota = owners::lock_quota(dir)?;
        let used = reclaim::used_bytes(dir)?;
        if shared.config.bytes_max.is_some_and(|max| used + length > max) {
            return Ok(());
        }
        let file = PageFile::create(&path, shared.is_direct, shared.config.faults.clone())?;
        file.set_len(length)?;
        file
    };
    let mut block = Buffer::new(BLOCK);
    let mut put = Put(block.bytes_mut(), 0);
    put.u64(MAGIC);
    for number in [counts.segments, counts.roots, counts.places, counts.notes, counts.version, counts.uses] {
        put.u64(number);
    }
    put.u32(body_crc);
    put.crc();
    let write = || -> io::Result<()> {
        file.write(&mut [IoSlice::new(block.bytes()), IoSlice::new(body.bytes())], 0)?;
        file.sync()?;
        std::fs::rename(&path, dir.join(NAME))?;
        sync_dir(dir)
    };
    write().inspect_err(|_| {
        // The room is worth more than a part of a snapshot.
        let _ = std::fs::remove_file(&path);
    })
}

/// The body of a snapshot, whole blocks with zeros at the end.
fn collect(shared: &Shared) -> (Counts, Buffer, u32) {
    let index = shared.index();
    // Only what has its end by now: whatever is written or moved while this goes on is in none of these.
    let mut numbers = BTreeMap::new();
    let mut segments = Vec::new();
    for (slot, segment) in index.segments().filter(|(_, segment)| segment.is_sealed) {
        numbers.insert(slot, segments.len() as u32);
        segments.push((segment.id, segment.nonce));
    }
    drop(index);
    let mut places: Vec<Place> = Vec::new();
    let mut from = 0;
    loop {
        // In parts: writers wait for this.
        let index = shared.index();
        if from >= index.positions() {
            break;
        }
        places.extend(index.places(from, from + PART).filter(|place| numbers.contains_key(&place.segment)));
        from += PART;
    }
    let index = shared.index();
    let notes: Vec<Entry> = index.notes().collect();
    let roots = index.roots().to_vec();
    let (version, uses) = index.counters();
    drop(index);
    let counts = Counts {
        segments: segments.len() as u64,
        roots: roots.len() as u64,
        places: places.len() as u64,
        notes: notes.len() as u64,
        version,
        uses,
    };
    let length = segments.len() * 16 + roots.len() * 16 + places.len() * PLACE + notes.len() * ENTRY;
    let mut body = Buffer::new(length.next_multiple_of(BLOCK));
    let mut put = Put(body.bytes_mut(), 0);
    for (id, nonce) in &segments {
        put.u64(id.pack());
        put.u64(*nonce);
    }
    for root in &roots {
        put.u128(root.0);
    }
    for place in &places {
        put.u128(place.key.0);
        put.u64(place.recency);
        put.u64(place.version);
        let (at, units) = place.units();
        put.u32(at);
        put.u32(units);
        put.u32(numbers.get(&place.segment).copied().unwrap_or(u32::MAX));
        put.u32(u32::from(place.root) | u32::from(place.is_damaged) << 16 | u32::from(place.has_others) << 17);
    }
    let at = put.1;
    Entry::encode_all(&notes, &mut body.bytes_mut()[at..at + notes.len() * ENTRY]);
    let crc = crc32c::crc32c(&body.bytes()[..length]);
    (counts, body, crc)
}

/// The name of a snapshot that is being written.
pub(super) fn temporary(writer: u32) -> String {
    format!("index-{writer:08x}.tmp")
}

/// The name of a snapshot.
pub(super) const NAME: &str = "index.snap";

const MAGIC: u64 = u64::from_le_bytes(*b"pd\x01snap\n");

/// Bytes of a page in a snapshot.
const PLACE: usize = 48;

/// Pages looked at under one lock.
const PART: usize = 1 << 15;

//! Room: what makes way when the quota is reached, and what is moved so that whole segments can be removed.
//!
//! ```text
//!   used + a segment > bytes_max            at once: the coldest segment goes, with all that is in it
//!   used + HEADROOM segments > bytes_max    in the background: of the segment from which most can be gained, what is
//!                                           among the coldest quarter of all pages goes, the rest moves
//!   nothing, or a quarter, is alive         in the background: what is alive moves
//! ```
//!
//! The background works on one segment at a time and in batches; so the first case is rare.

use std::path::Path;

use pd_core::id::Token;
use pd_core::op::Fault;

use super::append::{Item, Purpose, append, note};
use super::format::{Entry, HEAD, Head, SegmentId};
use super::read::{ReadError, Spot, head_of, payload_of, raw};
use super::walk::{Frame, frame};
use super::{Shared, lock, upkeep};

/// Bytes of all files in the folder.
pub(super) fn used_bytes(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        match entry?.metadata() {
            Ok(metadata) if metadata.is_file() => bytes += metadata.len(),
            Ok(_) => {}
            // Removed meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Makes room for `bytes`; the caller holds the lock of the quota.
pub(super) fn make_room(shared: &Shared, bytes: u64, purpose: Purpose) -> Result<(), Fault> {
    let Some(max) = shared.config.bytes_max else { return Ok(()) };
    loop {
        let used = used_bytes(&shared.config.dir).map_err(|error| shared.fault("list the store", &error))?;
        if used + bytes <= max {
            return Ok(());
        }
        if purpose == Purpose::Move {
            return Err(Fault::Full);
        }
        // Only what is sealed can go, and giving back what it did not use may be enough.
        if upkeep::seal(shared) > 0 {
            continue;
        }
        let Some(coldest) = coldest(shared) else { return Err(Fault::Full) };
        let notes = notes_of(shared, coldest);
        remove(shared, coldest).map_err(|error| shared.fault("remove a segment", &error))?;
        shared.log.note_later(notes);
    }
}

/// Removes or compacts one segment if that is due; true if there may be more to do.
pub(super) fn reclaim(shared: &Shared) -> bool {
    let Some((id, floor)) = sparse(shared).or_else(|| victim(shared)) else { return false };
    match compact(shared, id, floor) {
        Ok(()) => true,
        // No room to move anything: what is left in it makes way.
        Err(Fault::Full) => {
            let notes = notes_of(shared, id);
            let is_removed = remove(shared, id).is_ok();
            shared.log.note_later(notes);
            is_removed
        }
        Err(_) => false,
    }
}

/// A segment of ours that is cheap to move.
fn sparse(shared: &Shared) -> Option<(SegmentId, u64)> {
    let index = shared.index();
    let own = || index.segments().map(|(_, segment)| segment).filter(|segment| segment.is_own && segment.is_sealed);
    let is_mostly_dead = |live: u64, bytes: u64| live.saturating_mul(4) <= bytes;
    let is_small = |bytes: u64| is_mostly_dead(bytes, shared.config.segment_bytes);
    let is_due = |live, bytes| live == 0 || is_mostly_dead(live, bytes) && !is_small(bytes);
    if let Some(segment) = own().find(|segment| is_due(segment.live, segment.bytes)) {
        return Some((segment.id, 0));
    }
    // Left by processes that did not write much.
    let small: Vec<_> = own().filter(|segment| is_small(segment.bytes)).collect();
    (small.len() > SMALL_MAX).then(|| (small[0].id, 0))
}

/// If room is scarce: the segment of ours from which most can be gained, and the least recency that is kept.
fn victim(shared: &Shared) -> Option<(SegmentId, u64)> {
    let max = shared.config.bytes_max?;
    let used = used_bytes(&shared.config.dir).ok()?;
    let limit = max.saturating_sub(HEADROOM * shared.config.segment_bytes);
    if used <= limit {
        return None;
    }
    let mut own = Vec::new();
    let mut pages: Vec<(u64, u64, u32)> = Vec::new();
    {
        let index = shared.index();
        own.extend(index.segments().filter(|(_, segment)| segment.is_own).map(|(slot, segment)| (slot, *segment)));
        let count = own.iter().map(|(slot, _)| *slot as usize + 1).max()?;
        let mut is_own = vec![false; count];
        for (slot, segment) in &own {
            is_own[*slot as usize] = segment.is_sealed;
        }
        pages.extend(
            index
                .places(0, index.positions())
                .filter(|place| is_own.get(place.segment as usize).copied().unwrap_or_default())
                .map(|place| (place.recency, place.bytes(), place.segment)),
        );
    }
    // Whoever has less than its share waits for the others.
    let writers = u64::from(lock(&shared.peers).writers()) + 1;
    let own_bytes: u64 = own.iter().map(|(_, segment)| segment.bytes).sum();
    if own_bytes.saturating_mul(writers) < limit {
        return None;
    }
    pages.sort_unstable();
    let forget = pages.iter().map(|(_, bytes, _)| bytes).sum::<u64>() / 4;
    let mut cold = 0;
    let floor = pages.iter().find(|(_, bytes, _)| {
        cold += bytes;
        cold > forget
    });
    let floor = floor.map_or(0, |(recency, _, _)| *recency);
    let mut kept = vec![0; own.iter().map(|(slot, _)| *slot as usize + 1).max()?];
    for (_, bytes, slot) in pages.iter().filter(|(recency, _, _)| *recency >= floor) {
        kept[*slot as usize] += bytes;
    }
    let sealed = own.into_iter().filter(|(_, segment)| segment.is_sealed);
    let gained = |slot: u32, bytes: u64| bytes.saturating_sub(kept[slot as usize]);
    sealed
        .max_by_key(|(slot, segment)| (gained(*slot, segment.bytes), segment.id))
        .map(|(_, segment)| (segment.id, floor))
}

/// The sealed segment of ours whose most recent page is the least recent.
fn coldest(shared: &Shared) -> Option<SegmentId> {
    let index = shared.index();
    let count = index.segments().map(|(slot, _)| slot as usize + 1).max()?;
    let mut heat = vec![0; count];
    for place in index.places(0, index.positions()) {
        let heat = &mut heat[place.segment as usize];
        *heat = place.recency.max(*heat);
    }
    let sealed = index.segments().filter(|(_, segment)| segment.is_own && segment.is_sealed);
    sealed.min_by_key(|(slot, segment)| (heat[*slot as usize], segment.id)).map(|(_, segment)| segment.id)
}

/// Moves what is at least as recent as `floor` to the end of the log, and removes the segment.
fn compact(shared: &Shared, id: SegmentId, floor: u64) -> Result<(), Fault> {
    let Some(slot) = shared.index().slot(id) else { return Ok(()) };
    let mut spots: Vec<Spot> = Vec::new();
    {
        let index = shared.index();
        let nonce = index.segment(slot).nonce;
        if index.segment(slot).live > 0 {
            let places = index.places(0, index.positions());
            let kept = places.filter(|place| place.segment == slot && place.recency >= floor && !place.is_damaged);
            spots.extend(kept.map(|place| Spot { place: *place, id, nonce }));
        }
    }
    spots.sort_unstable_by_key(|spot| spot.place.at());
    let mut rest = &spots[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let count = rest.iter().take_while(|spot| {
            bytes += spot.place.bytes();
            bytes <= MOVE_BYTES
        });
        let (batch, others) = rest.split_at(count.count().max(1));
        move_batch(shared, batch)?;
        rest = others;
        if shared.upkeep.is_stopping() {
            // What was moved is dead here; the rest stays where it is.
            return Err(Fault::Withdrawn);
        }
    }
    let notes = notes_of(shared, id);
    if !notes.is_empty() {
        note(shared, &notes, true)?;
    }
    remove(shared, id).map_err(|error| shared.fault("remove a segment", &error))
}

/// Writes records once more: with their version, and the recency that they have by now.
fn move_batch(shared: &Shared, spots: &[Spot]) -> Result<(), Fault> {
    struct Copy {
        head: Head,
        tokens: Vec<Token>,
        payload: Vec<u8>,
    }
    let file = shared.files.get(spots[0].id).map_err(|error| shared.fault("move pages", &error))?;
    let mut copies = Vec::with_capacity(spots.len());
    for spot in spots {
        let copy = raw(shared, &file, spot, |record| {
            let head = head_of(record, spot).ok_or(ReadError::Damaged)?;
            let payload = payload_of(&head, record).ok_or(ReadError::Damaged)?.to_vec();
            let tokens = record[HEAD..].chunks_exact(4).take(head.tokens as usize);
            let tokens = tokens.map(|bytes| Token(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])));
            Ok(Copy { tokens: tokens.collect(), payload, head: Head { recency: spot.place.recency, ..head } })
        });
        match copy {
            Ok(copy) => copies.push(copy),
            Err(ReadError::Damaged) => {
                if shared.index_mut().mark_damaged(&spot.place) {
                    shared.stats().damaged += 1;
                }
            }
            Err(ReadError::Io(error)) => return Err(shared.fault("move pages", &error)),
        }
    }
    let mut items: Vec<Item<'_>> = copies
        .iter()
        .map(|copy| Item { head: copy.head.clone(), tokens: &copy.tokens, payload: &copy.payload, notes: &[] })
        .collect();
    let results = append(shared, &mut items, Purpose::Move, true);
    shared.stats().moved += results.iter().filter(|result| result.is_ok()).count() as u64;
    results.into_iter().collect()
}

/// What a segment says besides its pages and still matters.
fn notes_of(shared: &Shared, id: SegmentId) -> Vec<Entry> {
    let read = || -> std::io::Result<Frame> {
        let file = shared.files.get(id)?;
        frame(&file, id, file.len()?, None)
    };
    let Ok(Frame::Sealed(_, entries)) = read() else { return Vec::new() };
    let index = shared.index();
    let Some(slot) = index.slot(id) else { return Vec::new() };
    entries.into_iter().filter(|entry| index.is_needed(entry, slot)).collect()
}

fn remove(shared: &Shared, id: SegmentId) -> std::io::Result<()> {
    match std::fs::remove_file(shared.config.dir.join(id.name())) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let count = shared.index_mut().remove_segment(id);
    shared.files.close(id);
    let mut stats = shared.stats();
    stats.evicted += count;
    stats.segments_removed += 1;
    Ok(())
}

/// Segments that should be free, so that writers need not wait.
const HEADROOM: u64 = 2;

/// Segments much smaller than the others that are left alone.
const SMALL_MAX: usize = 4;

/// Bytes moved at once.
const MOVE_BYTES: u64 = 4 << 20;

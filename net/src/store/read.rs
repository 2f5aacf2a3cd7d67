//! Reading: one record, verified from its head to its last byte.

use std::io::{self, IoSliceMut};

use pd_core::op::Fault;

use super::file::{BLOCK, PageFile, is_aligned};
use super::format::{Head, HeadError, Kind, LARGE, SegmentId};
use super::index::Place;
use super::{Identity, Shared, peers};

/// Where a record is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    pub(super) place: Place,
    pub(super) id: SegmentId,
    pub(super) nonce: u64,
}

/// Why a record could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// It is not what the index says, or it is damaged.
    Damaged,
    Io(io::Error),
}

/// Reads a page; see [`super::Store::read`].
pub(super) fn read(shared: &Shared, page: Identity<'_>, into: &mut [u8]) -> Result<(), Fault> {
    // A record may move, or its segment vanish, while it is looked for.
    for _ in 0..ATTEMPTS {
        let spot = {
            let index = shared.index();
            index.place(page.key).map(|place| {
                let segment = index.segment(place.segment);
                (Spot { place: *place, id: segment.id, nonce: segment.nonce }, index.root(place.root))
            })
        };
        let Some((spot, root)) = spot else {
            if !shared.poll_for_missing() || shared.index().place(page.key).is_none() {
                return Err(Fault::Missing);
            }
            continue;
        };
        if root != page.root {
            shared.stats().foreign += 1;
            return Err(Fault::Namespace);
        }
        if spot.place.is_damaged {
            return Err(Fault::Checksum);
        }
        let result =
            shared.files.get(spot.id).map_err(ReadError::Io).and_then(|file| record(shared, &file, &spot, page, into));
        match result {
            Ok(()) => {
                shared.stats().reads += 1;
                return Ok(());
            }
            Err(ReadError::Damaged) => {
                if shared.index_mut().mark_damaged(&spot.place) {
                    shared.stats().damaged += 1;
                    tracing::warn!(key = %page.key, segment = %spot.id.name(), at = spot.place.at(), "a stored page is damaged");
                    return Err(Fault::Checksum);
                }
            }
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                // Another process moved what was in it and removed it; or somebody else did.
                peers::poll(shared, true);
                peers::drop_if_gone(shared, spot.id);
            }
            Err(ReadError::Io(error)) => return Err(shared.fault("read a page", &error)),
        }
    }
    Err(Fault::Missing)
}

/// Reads and verifies one record of a page into memory of its payload's size.
fn record(shared: &Shared, file: &PageFile, spot: &Spot, page: Identity<'_>, into: &mut [u8]) -> Result<(), ReadError> {
    let bytes = spot.place.bytes() as usize;
    let gap = into.len().next_multiple_of(BLOCK) - into.len();
    let head_bytes = bytes.saturating_sub(into.len() + gap);
    let is_in_place = into.len() >= LARGE
        && head_bytes > 0
        && (!file.is_direct() || is_aligned(into))
        && spot.place.at().is_multiple_of(BLOCK as u64);
    if is_in_place {
        let mut buffer = shared.buffers.take(head_bytes);
        let count = file.read(&mut [IoSliceMut::new(buffer.bytes_mut()), IoSliceMut::new(into)], spot.place.at());
        let result = count.map_err(ReadError::Io).and_then(|count| {
            if count < (head_bytes + into.len()) as u64 {
                return Err(ReadError::Damaged);
            }
            let head = check_head(buffer.bytes(), spot, page, into.len())?;
            if head.payload_at as usize != head_bytes || crc32c::crc32c(into) != head.payload_crc {
                return Err(ReadError::Damaged);
            }
            Ok(())
        });
        shared.buffers.give(buffer);
        return result;
    }
    raw(shared, file, spot, |record| {
        let head = check_head(record, spot, page, into.len())?;
        let payload = payload_of(&head, record).ok_or(ReadError::Damaged)?;
        into.copy_from_slice(payload);
        Ok(())
    })
}

/// Reads a whole record into a buffer and lends it.
pub(super) fn raw<T>(
    shared: &Shared,
    file: &PageFile,
    spot: &Spot,
    with: impl FnOnce(&[u8]) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let start = spot.place.at() / BLOCK as u64 * BLOCK as u64;
    let from = (spot.place.at() - start) as usize;
    let end = from + spot.place.bytes() as usize;
    let mut buffer = shared.buffers.take(end.next_multiple_of(BLOCK));
    let result = match file.read_into(buffer.bytes_mut(), start) {
        Ok(count) if count < end as u64 => Err(ReadError::Damaged),
        Ok(_) => with(&buffer.bytes()[from..end]),
        Err(error) => Err(ReadError::Io(error)),
    };
    shared.buffers.give(buffer);
    result
}

/// The payload of a record, if its checksum is right.
pub(super) fn payload_of<'a>(head: &Head, record: &'a [u8]) -> Option<&'a [u8]> {
    let payload = record.get(head.payload_at as usize..)?.get(..head.payload as usize)?;
    (crc32c::crc32c(payload) == head.payload_crc).then_some(payload)
}

/// The head of a record, if it is the one that the index names.
pub(super) fn head_of(record: &[u8], spot: &Spot) -> Option<Head> {
    let head = Head::decode(record, spot.place.at()).map_err(|_: HeadError| ()).ok()?;
    let is_it = head.segment == spot.id
        && head.nonce == spot.nonce
        && head.kind == Kind::Page
        && head.key == spot.place.key
        && head.version == spot.place.version
        && u64::from(head.length) == spot.place.bytes();
    is_it.then_some(head)
}

fn check_head(record: &[u8], spot: &Spot, page: Identity<'_>, payload: usize) -> Result<Head, ReadError> {
    let head = head_of(record, spot).ok_or(ReadError::Damaged)?;
    let is_it = head.root == page.root
        && head.parent == page.parent
        && head.payload as usize == payload
        && (page.tokens.is_empty() || head.has_tokens(record, page.tokens));
    if is_it { Ok(head) } else { Err(ReadError::Damaged) }
}

/// How often a record that moves is looked for.
const ATTEMPTS: u32 = 4;

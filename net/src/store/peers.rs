//! What other processes write: their sealed segments, and of the others as much as they say is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;

use super::file::BLOCK;
use super::format::{Entry, SegmentId};
use super::load;
use super::owners::{self, name_of};
use super::walk::{Frame, frame, walk};
use super::{Shared, lock};

/// Logs of other processes.
#[derive(Debug, Default)]
pub(super) struct Peers {
    writers: BTreeMap<u32, File>,
    /// How far segments without an end were read.
    positions: BTreeMap<SegmentId, u64>,
    /// Files that are none of ours.
    foreign: BTreeSet<SegmentId>,
}

/// What a segment of another process says that was not known.
struct Seen {
    nonce: u64,
    bytes: u64,
    is_sealed: bool,
    entries: Vec<Entry>,
    /// Where to go on.
    to: u64,
}

impl Peers {
    /// True if others were seen.
    pub(super) fn has_writers(&self) -> bool {
        !self.writers.is_empty()
    }

    /// How many others there are.
    pub(super) fn writers(&self) -> u32 {
        self.writers.len() as u32
    }
}

/// Takes what other processes have made durable since the last time. `is_full` also looks for new processes, for those
/// that have ended, and for segments that are gone.
pub(super) fn poll(shared: &Shared, is_full: bool) {
    let mut peers = lock(&shared.peers);
    if is_full && let Err(error) = list(shared, &mut peers) {
        let _ = shared.fault("list the store", &error);
    }
    let marks: Vec<(u32, Vec<(u32, u64)>)> =
        peers.writers.iter().map(|(writer, file)| (*writer, owners::marks(file))).collect();
    for (writer, marks) in marks {
        for (number, end) in marks {
            let id = SegmentId { writer, number };
            if peers.positions.get(&id).is_none_or(|position| *position < end) {
                see(shared, &mut peers, id, Some(end));
            }
        }
    }
}

/// Forgets a segment whose file is gone although it should be there.
pub(super) fn drop_if_gone(shared: &Shared, id: SegmentId) {
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    if std::fs::metadata(shared.config.dir.join(id.name())).is_err_and(|error| is_gone(&error)) {
        shared.index_mut().remove_segment(id);
        shared.files.close(id);
    }
}

/// Compares the folder with what is known.
fn list(shared: &Shared, peers: &mut Peers) -> io::Result<()> {
    let dir = &shared.config.dir;
    let writers = owners::writers(dir)?;
    let mut adopted = Vec::new();
    {
        let mut owners = lock(&shared.owners);
        peers.writers.retain(|writer, _| writers.contains(writer));
        for &writer in &writers {
            if owners.holds(writer) {
                peers.writers.remove(&writer);
            } else if owners.adopt(writer) {
                peers.writers.remove(&writer);
                adopted.push(writer);
            } else if let Ok(file) = File::open(dir.join(name_of(writer))) {
                peers.writers.entry(writer).or_insert(file);
            }
        }
    }
    for writer in &adopted {
        load::adopt(shared, *writer);
    }
    let segments = load::list(dir)?;
    let known: Vec<(SegmentId, bool)> = {
        let index = shared.index();
        index.segments().filter(|(_, segment)| !segment.is_own).map(|(_, known)| (known.id, known.is_sealed)).collect()
    };
    for (id, _) in &known {
        if segments.binary_search(id).is_err() {
            shared.index_mut().remove_segment(*id);
            shared.files.close(*id);
        }
    }
    peers.positions.retain(|id, _| segments.binary_search(id).is_ok());
    peers.foreign.retain(|id| segments.binary_search(id).is_ok());
    for id in segments {
        let is_sealed = known.binary_search(&(id, true)).is_ok();
        if !is_sealed && !lock(&shared.owners).holds(id.writer) {
            see(shared, peers, id, None);
        }
    }
    shared.index_mut().prune();
    Ok(())
}

/// Reads what is new in a segment of another process: all of it if it is sealed, else up to the mark.
fn see(shared: &Shared, peers: &mut Peers, id: SegmentId, mark: Option<u64>) {
    if peers.foreign.contains(&id) {
        return;
    }
    let is_sealed = shared.index().slot(id).is_some_and(|slot| shared.index().segment(slot).is_sealed);
    if is_sealed {
        // The mark of a segment outlives it.
        peers.positions.insert(id, u64::MAX);
        return;
    }
    let from = peers.positions.get(&id).copied().unwrap_or(BLOCK as u64);
    let read = || -> io::Result<Option<Seen>> {
        let file = shared.files.get(id)?;
        let bytes = file.len()?;
        Ok(match frame(&file, id, bytes, None)? {
            Frame::Foreign => None,
            Frame::Sealed(head, entries) => {
                Some(Seen { nonce: head.nonce, bytes, is_sealed: true, entries, to: u64::MAX })
            }
            Frame::Open(Some(head)) => {
                let to = mark.unwrap_or(from).min(bytes);
                let (found, _) = walk(&file, id, Some(head.nonce), (from, to), false)?;
                Some(Seen { nonce: head.nonce, bytes, is_sealed: false, entries: found.entries, to })
            }
            Frame::Open(None) => Some(Seen { nonce: 0, bytes, is_sealed: false, entries: Vec::new(), to: from }),
        })
    };
    match read() {
        Ok(Some(Seen { nonce, bytes, is_sealed, entries, to })) => {
            let mut index = shared.index_mut();
            let slot = index.add_segment(id, nonce, bytes, is_sealed, false);
            for entry in &entries {
                index.apply(slot, *entry);
            }
            peers.positions.insert(id, to.max(from));
        }
        Ok(None) => {
            peers.foreign.insert(id);
        }
        Err(error) => {
            if error.kind() == io::ErrorKind::NotFound {
                // The mark of a segment that was removed.
                shared.files.close(id);
            } else {
                let _ = shared.fault("read the log of another process", &error);
            }
        }
    }
}

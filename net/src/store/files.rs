//! Open files of segments: some of them, since a store may have more segments than a process may have files.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::faults::Faults;
use super::file::PageFile;
use super::format::SegmentId;
use super::lock;

/// Files by segment, opened when they are first read.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    is_direct: bool,
    faults: Faults,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    files: BTreeMap<SegmentId, Arc<PageFile>>,
    /// Where the search for one to close goes on.
    hand: SegmentId,
}

impl Files {
    pub(super) fn new(dir: PathBuf, is_direct: bool, faults: Faults) -> Self {
        Self { dir, is_direct, faults, open: Mutex::new(Open::default()) }
    }

    /// The file of a segment.
    pub(super) fn get(&self, id: SegmentId) -> io::Result<Arc<PageFile>> {
        if let Some(file) = lock(&self.open).files.get(&id) {
            return Ok(Arc::clone(file));
        }
        let path = self.dir.join(id.name());
        let file = Arc::new(PageFile::open(&path, false, self.is_direct, self.faults.clone())?);
        self.put(id, Arc::clone(&file));
        Ok(file)
    }

    /// Keeps a file that is open.
    pub(super) fn put(&self, id: SegmentId, file: Arc<PageFile>) {
        let mut open = lock(&self.open);
        if open.files.len() >= FILES_MAX {
            // Whichever comes next: what is read often is soon open again.
            let hand = open.hand;
            let next = open.files.range(hand..).next().or_else(|| open.files.iter().next()).map(|(id, _)| *id);
            if let Some(next) = next {
                open.files.remove(&next);
                open.hand = SegmentId { number: next.number.wrapping_add(1), ..next };
            }
        }
        open.files.insert(id, file);
    }

    /// Closes a file once its readers are done: only then the disk has its room back.
    pub(super) fn close(&self, id: SegmentId) {
        lock(&self.open).files.remove(&id);
    }
}

/// Files open at a time; a process usually may have 1024.
const FILES_MAX: usize = 256;

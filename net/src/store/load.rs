//! Opening: what is in the folder, and what of it can be relied on.
//!
//! ```text
//!   sealed, in the snapshot     nothing to read
//!   sealed                      its entries
//!   without an end, ours        every record is read and verified; then it is sealed
//!   without an end, another's   as far as its process says
//! ```

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::append::Log;
use super::file::{BLOCK, Buffers, PageFile, can_be_direct};
use super::files::Files;
use super::format::{Entry, SegmentHead, SegmentId};
use super::index::Index;
use super::log::write_end;
use super::owners::{self, Owners};
use super::peers::{self, Peers};
use super::snapshot::{self, Snapshot};
use super::upkeep::Upkeep;
use super::walk::{Found, Frame, frame, walk};
use super::{DirectIo, Shared, StoreConfig, StoreStats, lock, reclaim};

/// Why a store cannot be opened.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The folder cannot be used.
    #[error("cannot {what} the store {}: {error}", dir.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The store.
        dir: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The sizes make no sense.
    #[error("{0}")]
    Config(String),
}

impl StoreError {
    pub(super) fn io(what: &'static str, dir: &Path, error: io::Error) -> Self {
        Self::Io { what, dir: dir.to_path_buf(), error }
    }
}

/// What was found when a store was opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpenReport {
    /// Pages that can be asked for.
    pub pages: u64,
    /// Segments read.
    pub segments: u32,
    /// Segments that had no end, because their process was killed, and were read record by record.
    pub recovered: u32,
    /// Pages that came from the snapshot.
    pub from_snapshot: u64,
    /// Why a snapshot that is there was not used.
    pub snapshot_refused: Option<&'static str>,
    /// Records that were cut off.
    pub torn: u64,
    /// Records whose head or payload is damaged; those of sealed segments are found out when they are read.
    pub damaged: u64,
    /// Records that belong elsewhere, or are of another version.
    pub foreign: u64,
    /// Files that are no segments of this version or not those that they are called, left as they are.
    pub foreign_files: Vec<String>,
    /// Files that could not be read, and why.
    pub unreadable: Vec<String>,
    /// Logs of processes that have ended, taken over.
    pub adopted: u32,
    /// Logs that other processes write.
    pub others: u32,
    /// Whether the page cache is bypassed.
    pub is_direct: bool,
    /// How long it took.
    pub elapsed: Duration,
}

impl fmt::Display for OpenReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let io = if self.is_direct { "direct" } else { "buffered" };
        write!(f, "{} pages in {} segments, {io}, opened in {:?}", self.pages, self.segments, self.elapsed)?;
        if self.from_snapshot > 0 {
            write!(f, "; {} pages by snapshot", self.from_snapshot)?;
        }
        if let Some(reason) = self.snapshot_refused {
            write!(f, "; snapshot not used: {reason}")?;
        }
        if self.recovered > 0 {
            write!(f, "; {} segments without an end read through", self.recovered)?;
        }
        if self.torn + self.damaged + self.foreign > 0 {
            let Self { torn, damaged, foreign, .. } = self;
            write!(f, "; records skipped: {torn} torn, {damaged} damaged, {foreign} foreign")?;
        }
        for name in &self.foreign_files {
            write!(f, "; {name} is no segment of this version: remove it if nobody needs it")?;
        }
        for what in &self.unreadable {
            write!(f, "; {what}")?;
        }
        if self.adopted > 0 {
            write!(f, "; {} logs of ended processes taken over", self.adopted)?;
        }
        if self.others > 0 {
            write!(f, "; shared with {} other logs", self.others)?;
        }
        Ok(())
    }
}

/// What one segment holds.
#[derive(Debug)]
struct Loaded {
    /// None if it is another's that has no end yet, or no segment at all.
    head: Option<SegmentHead>,
    bytes: u64,
    is_foreign: bool,
    is_covered: bool,
    was_open: bool,
    found: Found,
}

/// Opens a folder.
pub(super) fn open(mut config: StoreConfig) -> Result<(Shared, OpenReport), StoreError> {
    let start = Instant::now();
    check(&mut config)?;
    let dir = config.dir.clone();
    std::fs::create_dir_all(&dir).map_err(|error| StoreError::io("create", &dir, error))?;
    let is_direct = config.direct_io == DirectIo::Auto && can_be_direct(&dir);
    let segments = list(&dir).map_err(|error| StoreError::io("list", &dir, error))?;
    let mut writers: Vec<u32> = segments.iter().map(|id| id.writer).collect();
    writers.dedup();
    let owners = Owners::take(&dir, &writers).map_err(|error| StoreError::io("lock a log of", &dir, error))?;
    // Again: whoever held a lock until now may have gone on.
    let segments = list(&dir).map_err(|error| StoreError::io("list", &dir, error))?;
    remove_leftovers(&dir, &owners);
    let number = segments
        .iter()
        .filter(|id| id.writer == owners.own())
        .map(|id| id.number + 1)
        .max()
        .unwrap_or(0)
        .max(owners.next_number());
    let (snapshot, snapshot_refused) = snapshot::load(&dir, is_direct, &config);
    let shared = Shared {
        is_direct,
        buffers: Buffers::default(),
        files: Files::new(dir.clone(), is_direct, config.faults.clone()),
        index: RwLock::new(Index::new(owners::random())),
        log: Log::new(number),
        peers: Mutex::new(Peers::default()),
        upkeep: Upkeep::default(),
        stats: Mutex::new(StoreStats::default()),
        owners: Mutex::new(owners),
        config,
    };
    let mut report = OpenReport { is_direct, snapshot_refused, ..OpenReport::default() };
    load_all(&shared, segments, snapshot, &mut report);
    peers::poll(&shared, true);
    let room = owners::lock_quota(&dir).map_err(|error| StoreError::io("lock the quota of", &dir, error))?;
    // A smaller quota than before; what cannot make way is another's.
    let _ = reclaim::make_room(&shared, 0, super::append::Purpose::Serve);
    drop(room);
    report.pages = shared.index().count();
    report.adopted = lock(&shared.owners).held().len() as u32 - 1;
    report.others = lock(&shared.peers).writers();
    report.elapsed = start.elapsed();
    Ok((shared, report))
}

/// Takes over the segments of a log whose lock was just taken.
pub(super) fn adopt(shared: &Shared, writer: u32) {
    let Ok(segments) = list(&shared.config.dir) else { return };
    let mut report = OpenReport::default();
    load_all(shared, segments.into_iter().filter(|id| id.writer == writer).collect(), None, &mut report);
    tracing::info!(writer, %report, "took over the log of a process that has ended");
}

/// All segments in a folder, in order.
pub(super) fn list(dir: &Path) -> io::Result<Vec<SegmentId>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        if let Some(id) = entry?.file_name().to_str().and_then(SegmentId::parse) {
            found.push(id);
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn check(config: &mut StoreConfig) -> Result<(), StoreError> {
    let block = BLOCK as u64;
    let most = config.bytes_max.map_or(SEGMENT_MAX, |bytes| bytes / SEGMENTS_MIN);
    config.segment_bytes = config.segment_bytes.min(most).min(SEGMENT_MAX) / block * block;
    if config.segment_bytes < SEGMENT_MIN {
        let least = SEGMENT_MIN * SEGMENTS_MIN;
        return Err(StoreError::Config(format!(
            "a store needs segments of at least {SEGMENT_MIN} bytes and room for {SEGMENTS_MIN} of them: give it \
             segment_bytes >= {SEGMENT_MIN} and bytes_max >= {least}"
        )));
    }
    Ok(())
}

/// Removes what a process that was killed left half written.
fn remove_leftovers(dir: &Path, owners: &Owners) {
    for writer in owners.held() {
        // Usually there is none.
        let _ = std::fs::remove_file(dir.join(snapshot::temporary(writer)));
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        // Somebody who is probing right now has it open and does not need its name.
        if entry.file_name().to_str().is_some_and(|name| name.starts_with("probe-") && name.ends_with(".tmp")) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn load_all(shared: &Shared, segments: Vec<SegmentId>, snapshot: Option<Snapshot>, report: &mut OpenReport) {
    let known = |id| snapshot.as_ref().and_then(|snapshot| snapshot.nonce(id));
    let work = Mutex::new(segments.into_iter());
    let results = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some(id) = lock(&work).next() else { break };
                    let is_own = lock(&shared.owners).holds(id.writer);
                    let loaded = load_segment(shared, id, is_own, known(id));
                    lock(&results).push((id, is_own, loaded));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_unstable_by_key(|(id, _, _)| *id);
    let mut index = shared.index_mut();
    index.is_loading = true;
    let mut entries = Vec::new();
    let mut covered = Vec::new();
    for (id, is_own, loaded) in results {
        let loaded = match loaded {
            Ok(loaded) => loaded,
            // Removed by its process meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                report.unreadable.push(format!("cannot read {}: {error}", id.name()));
                continue;
            }
        };
        report.torn += loaded.found.torn;
        report.damaged += loaded.found.damaged;
        report.foreign += loaded.found.foreign;
        if loaded.is_foreign {
            report.foreign_files.push(id.name());
        }
        report.recovered += u32::from(loaded.was_open && is_own);
        let Some(head) = loaded.head else { continue };
        report.segments += 1;
        let slot = index.add_segment(id, head.nonce, loaded.bytes, true, is_own);
        if loaded.is_covered {
            covered.push((id, slot));
        }
        entries.push((slot, loaded.found.entries));
    }
    if let Some(snapshot) = snapshot {
        report.from_snapshot = snapshot.apply(&mut index, &covered);
    }
    for (slot, entries) in &entries {
        for entry in entries.iter().filter(|entry| !matches!(entry, Entry::Touch { .. })) {
            index.apply(*slot, *entry);
        }
    }
    // Behind all pages: a use may be noted in the log of another process than the page.
    for (slot, entries) in &entries {
        for entry in entries.iter().filter(|entry| matches!(entry, Entry::Touch { .. })) {
            index.apply(*slot, *entry);
        }
    }
    index.prune();
    index.is_loading = false;
}

/// Reads what one segment says; seals one of ours that has no end.
fn load_segment(shared: &Shared, id: SegmentId, is_own: bool, known: Option<u64>) -> io::Result<Loaded> {
    let path = shared.config.dir.join(id.name());
    let file = PageFile::open(&path, is_own, shared.is_direct, shared.config.faults.clone())?;
    let bytes = file.len()?;
    let mut loaded =
        Loaded { head: None, bytes, is_foreign: false, is_covered: false, was_open: false, found: Found::default() };
    match frame(&file, id, bytes, known)? {
        Frame::Foreign => loaded.is_foreign = true,
        Frame::Sealed(head, entries) => {
            loaded.head = Some(head);
            loaded.is_covered = known == Some(head.nonce);
            loaded.found.entries = entries;
        }
        Frame::Open(_) if !is_own => loaded.was_open = true,
        Frame::Open(head) => {
            loaded.was_open = true;
            let (found, nonce) = walk(&file, id, head.map(|head| head.nonce), (BLOCK as u64, bytes), true)?;
            loaded.found = found;
            if loaded.found.entries.is_empty() {
                if head.is_some() || file.next_data(0).is_none() {
                    // One of ours without a record.
                    std::fs::remove_file(&path)?;
                } else {
                    loaded.is_foreign = true;
                }
                return Ok(loaded);
            }
            let head = SegmentHead { id, nonce: nonce.unwrap_or_else(owners::random) };
            // Without an end it can be used all the same; the next to open it reads it again.
            loaded.bytes = match write_end(&file, head, loaded.found.end, &loaded.found.entries) {
                Ok(bytes) => bytes,
                Err(error) => {
                    let _ = shared.fault("seal a segment", &error);
                    file.len()?
                }
            };
            loaded.head = Some(head);
            shared.files.put(id, Arc::new(file));
        }
    }
    Ok(loaded)
}

/// Segments are read by this many threads at most.
const THREADS_MAX: usize = 8;

/// The smallest segment.
pub(super) const SEGMENT_MIN: u64 = 64 << 10;

/// The largest: offsets of the index end there.
const SEGMENT_MAX: u64 = 128 << 30;

/// Segments that fit a quota at least, so that single ones can make way.
const SEGMENTS_MIN: u64 = 8;

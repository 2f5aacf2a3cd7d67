//! L3 on disk: pages by key in checksummed segments, durable when a write returns, found again after any crash.
//!
//! ```text
//!   00000000.writer            lock of the process that writes 00000000-*.seg, and how far its log is durable
//!   00000000-00000000.seg      sealed: records, then their entries
//!   00000000-00000001.seg      open: records, then a hole up to the size it may reach
//!   index.snap                 the index as it was, to open faster
//!   quota.lock                 held while a process takes space
//! ```
//!
//! 1. A byte that is not what was written is never served: each read verifies identity (namespace, key, parent, tokens,
//!    place) and checksum of the record it got. What fails is a miss with a reason, and is replaced when written again.
//! 2. What a write returned `Ok` for is there after a crash: an fdatasync that began after the write ended has returned.
//!    Many writers share one.
//! 3. Files in the folder never take more than `bytes_max`: a segment's room is taken, under a lock that all processes
//!    share, before it is written. Pages that were used least recently make way.
//! 4. Each process writes only its own log, and reads those of all. It sees what others have made durable at the latest
//!    one poll later, and at once when it looks for a page that it does not know.
//! 5. A failing disk is a [`Fault`] for whoever asked; pages that can still be read are still served.
//!
//! What others do at the same time is not ordered: a discard or a wipe takes what its process has seen. Touches survive
//! a crash of the process if they are older than a poll.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use pd_core::id::{PageKey, Token};
use pd_core::op::Fault;

mod append;
mod faults;
mod file;
mod files;
mod format;
mod index;
pub mod lane;
mod load;
mod log;
mod owners;
mod peers;
mod rate;
mod read;
mod reclaim;
mod snapshot;
mod upkeep;
mod walk;

pub use lane::StorageLane;
pub use load::{OpenReport, StoreError};
pub use rate::{measure, read_bytes_per_second};

use faults::Faults;
use file::Buffers;
use files::Files;
use index::Index;
use upkeep::Upkeep;

/// How a store is kept.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Its folder; created if it is not there. Several processes of a host may name the same one.
    pub dir: PathBuf,
    /// Most bytes of all files in the folder; `None` for what the disk has. Processes that share a folder should agree.
    pub bytes_max: Option<u64>,
    /// Bytes of a segment: what is synced, evicted and compacted as a whole. Less under a small `bytes_max`.
    pub segment_bytes: u64,
    /// How long an fdatasync waits for other writes that are under way, so that they share it.
    pub group_commit: Duration,
    /// How reads and writes reach the disk.
    pub direct_io: DirectIo,
    /// How often to look after segments, and at what other processes wrote.
    pub poll: Duration,
    /// Faults that tests ask for.
    faults: Faults,
}

/// Whether the page cache is bypassed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirectIo {
    /// If the file system can do that (a round trip is tried when the store is opened).
    Auto,
    /// Never.
    Never,
}

impl StoreConfig {
    /// Segments of 256 MiB, no limit.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            bytes_max: None,
            segment_bytes: 256 << 20,
            group_commit: Duration::from_micros(500),
            direct_io: DirectIo::Auto,
            poll: Duration::from_millis(200),
            faults: Faults::default(),
        }
    }
}

/// What makes a page the one that is meant; all of it is in its record and compared on each read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity<'a> {
    /// Its key.
    pub key: PageKey,
    /// Root key of its namespace.
    pub root: PageKey,
    /// The key before it in the chain.
    pub parent: PageKey,
    /// Its tokens; a reader that does not know them passes none, and none are compared.
    pub tokens: &'a [Token],
}

/// A page to write.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// What identifies it.
    pub page: Identity<'a>,
    /// Its KV.
    pub bytes: &'a [u8],
}

/// What a store has met since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreStats {
    /// Pages held.
    pub pages: u64,
    /// Bytes of records that count.
    pub live_bytes: u64,
    /// Bytes of segments known here.
    pub segment_bytes: u64,
    /// Pages read and verified.
    pub reads: u64,
    /// Pages written.
    pub writes: u64,
    /// Reads of records that failed their check.
    pub damaged: u64,
    /// Reads of pages of other namespaces.
    pub foreign: u64,
    /// Reads, writes and syncs that the disk failed.
    pub io_errors: u64,
    /// Fdatasyncs for writes.
    pub syncs: u64,
    /// Pages that made way for others.
    pub evicted: u64,
    /// Pages moved out of segments that were removed.
    pub moved: u64,
    /// Segments removed.
    pub segments_removed: u64,
}

/// A part of a listing: `keys`, `foreign` and `damaged` add up to what was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScanPage {
    /// Pages of the namespace in key order, each with its last use as a count of uses.
    pub keys: Vec<(PageKey, u64)>,
    /// Pass as `after` to go on; none at the end.
    pub next: Option<PageKey>,
    /// Pages of other namespaces, left out.
    pub foreign: u32,
    /// Pages that a read found damaged, left out.
    pub torn: u32,
}

/// A handle of an open store; clones share it. The last one to go closes it.
#[derive(Clone, Debug)]
pub struct Store(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    upkeep: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What the threads of a store share.
#[derive(Debug)]
struct Shared {
    config: StoreConfig,
    is_direct: bool,
    buffers: Buffers,
    files: Files,
    index: RwLock<Index>,
    log: append::Log,
    owners: Mutex<owners::Owners>,
    peers: Mutex<peers::Peers>,
    upkeep: Upkeep,
    stats: Mutex<StoreStats>,
}

impl Store {
    /// Opens a folder, recovers what it holds, and starts to look after it.
    ///
    /// # Errors
    /// If the folder cannot be used at all; damage inside is in the report instead.
    pub fn open(config: StoreConfig) -> Result<(Self, OpenReport), StoreError> {
        let (shared, report) = load::open(config)?;
        let shared = Arc::new(shared);
        let thread =
            upkeep::start(&shared).map_err(|error| StoreError::io("start a thread for", &shared.config.dir, error))?;
        Ok((Self(Arc::new(Handle { shared, upkeep: Mutex::new(Some(thread)) })), report))
    }

    /// For each key whether a read by this namespace may succeed.
    #[must_use]
    pub fn contains(&self, keys: &[PageKey], root: PageKey) -> Vec<bool> {
        let shared = &self.0.shared;
        let look = |index: &Index| keys.iter().map(|key| index.is_readable(*key, root)).collect::<Vec<bool>>();
        let found = look(&shared.index());
        if found.iter().all(|found| *found) || !shared.poll_for_missing() {
            return found;
        }
        look(&shared.index())
    }

    /// Reads a page; `into` has its size. What is in `into` after an error means nothing.
    ///
    /// # Errors
    /// `Missing`, `Namespace` (the key is another namespace's), `Checksum` (damaged, or another page) or `Io`.
    pub fn read(&self, page: Identity<'_>, into: &mut [u8]) -> Result<(), Fault> {
        read::read(&self.0.shared, page, into)
    }

    /// Writes pages and returns when they are durable. A page that is there and not known to be damaged stays as it is.
    ///
    /// # Errors
    /// For each page: `Full` (no room, or larger than a segment) or `Io`.
    #[must_use]
    pub fn write(&self, records: &[Record<'_>]) -> Vec<Result<(), Fault>> {
        append::write(&self.0.shared, records)
    }

    /// Removes pages, durably.
    ///
    /// # Errors
    /// `Full` or `Io`: they are gone from this process but may be back when the store is opened again.
    pub fn discard(&self, keys: &[PageKey]) -> Result<(), Fault> {
        let entries = self.0.shared.index_mut().discard(keys);
        append::note(&self.0.shared, &entries, true)
    }

    /// Removes all pages of a namespace, durably.
    ///
    /// # Errors
    /// As [`Self::discard`].
    pub fn wipe(&self, root: PageKey) -> Result<(), Fault> {
        self.refresh();
        let entry = self.0.shared.index_mut().wipe(root);
        append::note(&self.0.shared, &[entry], true)?;
        self.0.shared.upkeep.wake();
        Ok(())
    }

    /// Notes that pages were used, the most recent use first. Written to the log at the next poll.
    pub fn touch(&self, keys: &[PageKey]) {
        let entries = self.0.shared.index_mut().touch(keys);
        self.0.shared.log.note_later(entries);
    }

    /// Looks at up to `max` pages behind `after` in key order and lists those of a namespace. Continues the listing of
    /// the call before; one listing at a time is fast.
    #[must_use]
    pub fn scan(&self, root: PageKey, after: Option<PageKey>, max: u32) -> ScanPage {
        if after.is_none() {
            self.refresh();
        }
        self.0.shared.index_mut().scan(root, after, max)
    }

    /// Looks at all that other processes have made durable by now.
    pub fn refresh(&self) {
        peers::poll(&self.0.shared, true);
    }

    /// Does now what is otherwise done in the background: ends of segments, touches, room.
    pub fn settle(&self) {
        upkeep::turn(&self.0.shared);
    }

    /// What has happened so far.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let index = self.0.shared.index();
        let (live_bytes, segment_bytes) =
            index.segments().fold((0, 0), |(live, bytes), (_, segment)| (live + segment.live, bytes + segment.bytes));
        StoreStats { pages: index.count(), live_bytes, segment_bytes, ..*self.0.shared.stats() }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.upkeep.stop();
        let thread = lock(&self.upkeep).take();
        // A panic there was reported there; what it left undone is recovered when the store is opened again.
        let _ = thread.map(std::thread::JoinHandle::join);
        upkeep::close(&self.shared);
    }
}

impl Shared {
    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> MutexGuard<'_, StoreStats> {
        lock(&self.stats)
    }

    /// The fault for an error of the disk.
    fn fault(&self, what: &str, error: &std::io::Error) -> Fault {
        self.stats().io_errors += 1;
        tracing::warn!(dir = %self.config.dir.display(), %error, "cannot {what}");
        fault_of(error)
    }

    /// Looks at other processes' logs if there are any; true if so.
    fn poll_for_missing(&self) -> bool {
        let has_peers = lock(&self.peers).has_writers();
        if has_peers {
            peers::poll(self, false);
        }
        has_peers
    }
}

fn fault_of(error: &std::io::Error) -> Fault {
    use std::io::ErrorKind;
    if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) { Fault::Full } else { Fault::Io }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

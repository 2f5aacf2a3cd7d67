//! Who writes which log: a lock file for each, which also tells the others how far its segments are durable.
//!
//! A log whose lock nobody holds was left by a process that has ended. Whoever opens the folder next continues one of
//! them and owns the rest, so that their room is not lost.
//!
//! ```text
//!   00000000.writer    MARKS marks of 64 bytes: segment number n has its mark at n % MARKS
//! ```

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::file::read_small;
use super::format::{Put, Take};

/// The logs of this process.
#[derive(Debug)]
pub(super) struct Owners {
    dir: PathBuf,
    own: u32,
    /// All that are locked here, the one that is written to among them.
    held: BTreeMap<u32, File>,
    /// What was said of the log that is written to: segment number to end.
    said: BTreeMap<u32, u64>,
}

impl Owners {
    /// Locks all logs of the folder that nobody holds, and a fresh one if there is none. `found` are the writers of
    /// segments that are there: some may have lost their lock file.
    pub(super) fn take(dir: &Path, found: &[u32]) -> io::Result<Self> {
        let mut held = BTreeMap::new();
        let mut known = writers(dir)?;
        known.extend(found);
        known.sort_unstable();
        known.dedup();
        for &writer in &known {
            if let Some(file) = try_lock(dir, writer)? {
                held.insert(writer, file);
            }
        }
        let mut next = known.last().map_or(0, |last| last + 1);
        while held.is_empty() {
            // Somebody else may take the number first.
            if let Some(file) = try_lock(dir, next)? {
                held.insert(next, file);
            }
            next += 1;
        }
        let own = held.keys().next().copied().unwrap_or_default();
        let said = held.get(&own).map(marks).unwrap_or_default().into_iter().collect();
        Ok(Self { dir: dir.to_path_buf(), own, held, said })
    }

    /// The log that this process writes.
    pub(super) fn own(&self) -> u32 {
        self.own
    }

    /// A number that no segment of the log ever had: others may still know what was in one that is gone.
    pub(super) fn next_number(&self) -> u32 {
        self.said.last_key_value().map_or(0, |(number, _)| number + 1)
    }

    /// True if a log belongs to this process.
    pub(super) fn holds(&self, writer: u32) -> bool {
        self.held.contains_key(&writer)
    }

    /// Takes over a log if its process has ended; true if it had.
    pub(super) fn adopt(&mut self, writer: u32) -> bool {
        match try_lock(&self.dir, writer) {
            Ok(Some(file)) => {
                self.held.insert(writer, file);
                true
            }
            Ok(None) | Err(_) => false,
        }
    }

    /// Removes the lock of a log that has no segments left.
    pub(super) fn forget(&mut self, writer: u32) {
        if writer != self.own && self.held.contains_key(&writer) {
            // Removed while it is locked: who opens it before that sees that it is gone once it gets the lock.
            let _ = std::fs::remove_file(self.dir.join(name_of(writer)));
            self.held.remove(&writer);
        }
    }

    /// All logs that are held.
    pub(super) fn held(&self) -> Vec<u32> {
        self.held.keys().copied().collect()
    }

    /// Tells others that a segment of the log is durable up to `end`. It is a hint: lost, others see less until the
    /// segment is sealed.
    pub(super) fn publish(&mut self, number: u32, end: u64) {
        // Two syncs may end in one order and come here in the other.
        if self.said.get(&number).is_some_and(|said| *said >= end) {
            return;
        }
        self.said.insert(number, end);
        while self.said.len() > MARKS as usize {
            self.said.pop_first();
        }
        let Some(file) = self.held.get(&self.own) else { return };
        let mut bytes = [0; MARK];
        let mut put = Put(&mut bytes, 0);
        put.u64(MAGIC);
        put.u32(number);
        put.u64(end);
        put.crc();
        let _ = file.write_all_at(&bytes, u64::from(number % MARKS) * MARK as u64);
    }
}

/// Segments of a log of another process and how far they are durable.
pub(super) fn marks(file: &File) -> Vec<(u32, u64)> {
    let mut marks = Vec::new();
    for at in 0..MARKS {
        let mut bytes = [0; MARK];
        if read_small(file, &mut bytes, u64::from(at) * MARK as u64).is_err() {
            continue;
        }
        let mut take = Take(&bytes, 0);
        let (magic, number, end) = (take.u64(), take.u32(), take.u64());
        if take.crc() && magic == MAGIC && number % MARKS == at {
            marks.push((number, end));
        }
    }
    marks.sort_unstable();
    marks
}

/// Writers that have a lock file.
pub(super) fn writers(dir: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        if let Some(writer) = entry?.file_name().to_str().and_then(parse) {
            found.push(writer);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The lock file of a writer.
pub(super) fn name_of(writer: u32) -> String {
    format!("{writer:08x}.writer")
}

/// Waits until nobody else in any process takes room in this folder; released when the file is dropped.
pub(super) fn lock_quota(dir: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("quota.lock"))?;
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A number that no other process draws.
pub(super) fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

fn parse(name: &str) -> Option<u32> {
    let text = name.strip_suffix(".writer")?;
    u32::from_str_radix(text, 16).ok().filter(|writer| name_of(*writer) == name)
}

/// The lock of a log, or none if somebody has it.
fn try_lock(dir: &Path, writer: u32) -> io::Result<Option<File>> {
    let path = dir.join(name_of(writer));
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // Removed by who held it before.
    let is_it = std::fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|then| then.ino() == now.ino()));
    Ok(is_it.then_some(file))
}

const MAGIC: u64 = u64::from_le_bytes(*b"pd\x01mark\n");

const MARK: usize = 64;

/// Segments of a log that may be without an end at a time, and still be seen by others.
const MARKS: u32 = 8;

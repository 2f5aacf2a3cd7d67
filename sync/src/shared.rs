//! An arena that other processes of the host write into.
//!
//! ```text
//!  0        4096              4096 + 8 * pages, rounded up to 4096
//!  | header | word of each page ... | page 0 | page 1 | ...          or no pages, if they are a device's
//! ```
//!
//! The memory is an anonymous file (memfd), which a peer of the same user opens as `/proc/<pid>/fd/<n>`: nothing is left
//! behind by a crash, and seals keep anybody from shrinking it under a mapping. The header (magic, version, geometry,
//! random id, life of the owner) is compared when it is opened, so that a path that means something else by now is
//! refused.
//!
//! How it is known that a writer is gone: each [`Remote`] holds a lock on a byte of the file, its slot, through the very
//! open file that it has mapped. The kernel lets such a lock go when the last reference to the open file goes, and a
//! mapping is one. So whoever can take the lock knows that the mapping is no more, and no thread of the writer can store
//! into the memory, whether it closed it, crashed or was killed. A writer that is merely stopped keeps its lock.
//!
//! Processes that open an arena run this code: a hostile process of the same user could do worse than break a lease.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Mutex;

use memmap2::{MmapMut, MmapOptions};
use thiserror::Error;

use crate::arena::LeasedMut;
use crate::word::{Denied, PageWord, SLOT_MAX};

const MAGIC: u64 = u64::from_le_bytes(*b"pd-arena");
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4096;
/// Where slots are locked: far behind the end of any arena.
const LOCKS_AT: i64 = 1 << 60;

/// What a peer needs to open an arena, and compares when it does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Where it is, as long as its owner lives.
    pub path: String,
    /// Random.
    pub id: [u8; 16],
    /// The life of the owner.
    pub epoch: u32,
    /// Bytes of each page.
    pub page_bytes: u64,
    /// How many pages there are.
    pub pages: u32,
    /// What opens the device's memory that the pages are in, if they are not in the file; see [`crate::Device`].
    pub device: Option<Vec<u8>>,
}

/// Why an arena cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No such file, or none that this user may open: another host, container or user.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file is something else: its owner is gone, and another process has its number.
    #[error("{path}: {what} is not the one that was announced")]
    Differs {
        /// Which file.
        path: String,
        /// What differs.
        what: &'static str,
    },
    /// As many processes have it open as may.
    #[error("{path}: {max} processes have it open, which is the limit")]
    Full {
        /// Which file.
        path: String,
        /// The limit.
        max: u16,
    },
}

/// The words of all pages: on the heap, or in a mapping that outlives this.
pub(crate) struct Words {
    at: *const PageWord,
    count: usize,
    _own: Option<Box<[PageWord]>>,
}

impl Words {
    pub(crate) fn own(pages: u32) -> Self {
        let own: Box<[PageWord]> = (0..pages).map(|_| PageWord::new()).collect();
        Self { at: own.as_ptr(), count: own.len(), _own: Some(own) }
    }

    #[inline]
    pub(crate) fn get(&self) -> &[PageWord] {
        // SAFETY: `at` points to `count` words: those of `_own`, which is never touched otherwise, or those of the mapping
        // of the arena that holds `self`. Words are only changed through their atomics.
        unsafe { std::slice::from_raw_parts(self.at, self.count) }
    }
}

/// The owner's end.
pub(crate) struct Shared {
    map: MmapMut,
    file: File,
    identity: Identity,
    /// Locks of one open file do not exclude its own threads.
    reaping: Mutex<()>,
}

impl Shared {
    pub(crate) fn create(page_bytes: usize, pages: u32, epoch: u32, device: Option<Vec<u8>>) -> std::io::Result<Self> {
        let layout = layout(page_bytes as u64, pages, device.is_some());
        let bytes = layout.ok_or(std::io::ErrorKind::OutOfMemory)?.end;
        // SAFETY: the name is a string that ends with 0; the result is checked.
        let fd = unsafe { libc::memfd_create(c"pd-arena".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: `fd` was opened above and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(bytes as u64)?;
        // SAFETY: a system call on our own file; it touches no memory of this process. Without it, a write to a page that
        // the system cannot supply would end this process or that of a peer.
        let failed = unsafe { libc::posix_fallocate(fd, 0, bytes as i64) };
        if failed != 0 {
            return Err(std::io::Error::from_raw_os_error(failed));
        }
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: a system call on our own file; it touches no memory of this process.
        if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let mut id = [0; 16];
        std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut id)?;
        let path = format!("/proc/{}/fd/{fd}", std::process::id());
        let identity = Identity { path, id, epoch, page_bytes: page_bytes as u64, pages, device };
        // SAFETY: the file was made above, has this length and can never shrink. Other processes change what is behind the
        // header by the rules of the words only.
        let mut map = unsafe { MmapOptions::new().len(bytes).map_mut(&file)? };
        // Nobody knows of the file yet.
        map[..HEADER_BYTES].copy_from_slice(&header(&identity));
        Ok(Self { map, file, identity, reaping: Mutex::new(()) })
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn bytes(&self) -> usize {
        self.map.len()
    }

    /// The words and the first page. They are valid as long as `self`.
    pub(crate) fn parts(&mut self) -> (Words, *mut u8) {
        parts(&mut self.map, &self.identity)
    }

    /// If the writer of a slot is gone, has `bury` clean up behind it while nobody else can take the slot. False if it is
    /// still there.
    pub(crate) fn if_gone(&self, slot: u16, bury: impl FnOnce()) -> bool {
        let _reaping = self.reaping.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !lock(&self.file, slot, libc::F_WRLCK as i16) {
            return false;
        }
        bury();
        lock(&self.file, slot, libc::F_UNLCK as i16);
        true
    }
}

/// A peer's arena, for its leased pages to be written.
pub struct Remote {
    words: Words,
    base: *mut u8,
    slot: u16,
    identity: Identity,
    /// What `base` and `words` point into.
    _map: MmapMut,
    /// Holds the lock on the slot, together with the mapping.
    _file: File,
}

// SAFETY: `base` and `words` point into `_map`, which is kept as long; all access goes through the words.
unsafe impl Send for Remote {}
// SAFETY: as above.
unsafe impl Sync for Remote {}

impl Remote {
    /// Opens the arena that a peer has announced.
    ///
    /// # Errors
    /// [`OpenError`]: whoever wants to write goes another way.
    pub fn open(identity: &Identity) -> Result<Self, OpenError> {
        let path = || identity.path.clone();
        let io = |error| OpenError::Io { path: path(), error };
        let differs = |what| OpenError::Differs { path: path(), what };
        let layout = layout(identity.page_bytes, identity.pages, identity.device.is_some())
            .ok_or_else(|| differs("its size"))?;
        let file = OpenOptions::new().read(true).write(true).open(&identity.path).map_err(io)?;
        if file.metadata().map_err(io)?.len() != layout.end as u64 {
            return Err(differs("its size"));
        }
        // SAFETY: a system call on our own open file; it touches no memory of this process.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            return Err(differs("a file that could shrink"));
        }
        // SAFETY: the file has this length and is sealed against shrinking. Other processes change what is behind the
        // header by the rules of the words only, and the header never.
        let mut map = unsafe { MmapOptions::new().len(layout.end).map_mut(&file).map_err(io)? };
        if map[..HEADER_BYTES] != header(identity) {
            return Err(differs("its header"));
        }
        let slot = (1..=SLOT_MAX)
            .find(|slot| lock(&file, *slot, libc::F_WRLCK as i16))
            .ok_or_else(|| OpenError::Full { path: path(), max: SLOT_MAX })?;
        let (words, base) = parts(&mut map, identity);
        // The last one to have the slot may have left in the middle of a page, which cannot be told from us by now.
        for word in words.get() {
            word.bury(slot);
        }
        Ok(Self { words, base, slot, identity: identity.clone(), _map: map, _file: file })
    }

    /// As what it was opened.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// To write a page that is leased to us. One of a device comes without bytes: whoever holds it copies by itself.
    ///
    /// # Errors
    /// [`Denied`]; also for a page that is not there.
    #[inline]
    pub fn write_leased(&self, page: u32, generation: u32) -> Result<LeasedMut<'_>, Denied> {
        let word = self.words.get().get(page as usize).ok_or(Denied::Fenced)?;
        word.enter(generation, self.slot)?;
        if self.identity.device.is_some() {
            return Ok(LeasedMut::new(&mut [], word, generation));
        }
        let page_bytes = self.identity.page_bytes as usize;
        // SAFETY: the range lies within the mapping, which has room for `pages` pages and lives as long as `self`. The word
        // excludes every other reference to this page, in each process that has it, until the result is dropped.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.base.add(page as usize * page_bytes), page_bytes) };
        Ok(LeasedMut::new(bytes, word, generation))
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("identity", &self.identity).field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// Where the pages are in the file; `None` if it would not fit any memory.
fn layout(page_bytes: u64, pages: u32, is_device: bool) -> Option<std::ops::Range<usize>> {
    let words = (pages as usize).checked_mul(size_of::<PageWord>())?.checked_next_multiple_of(4096)?;
    let start = HEADER_BYTES.checked_add(words)?;
    let bytes = usize::try_from(page_bytes).ok()?.checked_mul(pages as usize)?;
    let end = start.checked_add(if is_device { 0 } else { bytes })?;
    (page_bytes > 0 && page_bytes.is_multiple_of(64) && i64::try_from(end).is_ok_and(|end| end < LOCKS_AT))
        .then_some(start..end)
}

fn header(identity: &Identity) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let mut at = 0;
    let mut put = |field: &[u8]| {
        bytes[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    };
    put(&MAGIC.to_le_bytes());
    put(&VERSION.to_le_bytes());
    put(&identity.epoch.to_le_bytes());
    put(&identity.page_bytes.to_le_bytes());
    put(&identity.pages.to_le_bytes());
    put(&identity.id);
    put(&[u8::from(identity.device.is_some())]);
    bytes
}

fn parts(map: &mut MmapMut, identity: &Identity) -> (Words, *mut u8) {
    let pages =
        layout(identity.page_bytes, identity.pages, identity.device.is_some()).expect("checked when it was mapped");
    assert!(pages.end <= map.len(), "pages within the mapping");
    let start = map.as_mut_ptr();
    // SAFETY: both offsets lie within the mapping. It begins at a multiple of the system's page, so the words are aligned;
    // all bit patterns are words.
    let (words, base) = unsafe { (start.add(HEADER_BYTES).cast::<PageWord>(), start.add(pages.start)) };
    (Words { at: words, count: identity.pages as usize, _own: None }, base)
}

/// Takes or lets go the lock of a slot through one open file. False if another open file has it.
fn lock(file: &File, slot: u16, kind: i16) -> bool {
    let lock = libc::flock {
        l_type: kind,
        l_whence: libc::SEEK_SET as i16,
        l_start: LOCKS_AT + i64::from(slot),
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: `lock` is what the call reads, and it lives as long.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) == 0 }
}

#[cfg(test)]
mod tests;

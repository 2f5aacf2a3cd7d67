//! Page memory of one tier: pages of equal size that lanes and peers read and write side by side.
//!
//! Core hands each page to one writer or to some readers at a time. Each page has a word all the same (see
//! [`crate::word`]): an access that core's protocol forbids is refused instead of being a data race, so that no mistake
//! elsewhere is undefined behaviour.
//!
//! What a peer may write is leased to it, page by page, for one generation: [`Arena::grant`]. Whoever writes on its
//! behalf (a thread of this process that reads a socket, or the peer itself through [`crate::Remote`]) can begin only
//! while the lease stands, and [`Arena::revoke`] says when the last such write has ended.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memmap2::{MmapMut, MmapOptions};
use thiserror::Error;

use crate::shared::{Shared, Words};
use crate::word::{Denied, PageWord};

/// Pages of one tier.
pub struct Arena {
    words: Words,
    base: *mut u8,
    page_bytes: usize,
    /// What `base` points into.
    memory: Memory,
}

enum Memory {
    Own {
        map: MmapMut,
    },
    Shared(Shared),
    /// Not addressable: `base` is null and never used. Words that peers of this host use are shared.
    Device(Arc<dyn Device>, Option<Shared>),
}

/// Memory of pages that this process cannot address: a GPU's. Whoever is handed it keeps to the words of the pages, as
/// with memory that is mapped.
pub trait Device: Send + Sync + fmt::Debug {
    /// Reads bytes, and waits for them.
    ///
    /// # Errors
    /// What the device says.
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes bytes, and waits until they are there.
    ///
    /// # Errors
    /// What the device says.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// What lets other processes of this host, and this one, reach the memory; `None` if nothing does.
    fn handle(&self) -> Option<Vec<u8>>;
    /// Opens the memory that a handle of the same kind is for.
    ///
    /// # Errors
    /// If there is no way there from this device.
    fn reach(&self, handle: &[u8]) -> io::Result<Box<dyn Reach>>;
}

/// The way from a device's memory to that of another one.
pub trait Reach: Send + Sync + fmt::Debug {
    /// Copies pieces of `bytes` bytes, each from a place in our device to one in theirs, and waits until they are there.
    /// The caller holds both ends.
    ///
    /// # Errors
    /// What the devices say.
    fn put(&self, pieces: &[(u64, u64)], bytes: u64) -> io::Result<()>;
}

/// The bytes of a page that is held.
enum Bytes<'a> {
    Mapped(&'a [u8]),
    Copied(Box<[u8]>),
}

// SAFETY: `base` points into `memory`, which the arena owns; all access goes through the words.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

/// Somebody else reads or writes the page in a way that excludes this access: a mistake of whoever planned it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("page {page} is in use")]
pub struct Busy {
    /// The page.
    pub page: u32,
}

/// Writes of an ended lease that are still at work: the page must not be used for anything else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("page {page} is still being written from outside")]
pub struct Writing {
    /// The first such page.
    pub page: u32,
}

/// A page that nobody writes while this lives.
pub struct PageRef<'a> {
    bytes: Bytes<'a>,
    word: &'a PageWord,
}

/// A page that nobody else touches while this lives.
pub struct PageMut<'a> {
    bytes: &'a mut [u8],
    word: &'a PageWord,
}

/// A page of a device that nobody writes, or that nobody else touches, while this lives; whoever holds it copies by itself.
pub struct Held<'a> {
    word: &'a PageWord,
    is_write: bool,
}

/// A page that is written on behalf of a peer, while its lease stood when this was made.
pub struct LeasedMut<'a> {
    bytes: LeasedBytes<'a>,
    word: &'a PageWord,
    generation: u32,
}

enum LeasedBytes<'a> {
    Mapped(&'a mut [u8]),
    /// From a place in a device on, so many.
    Device(&'a dyn Device, u64, usize),
}

/// How long a revocation polls before it asks whether the writer is still there at all.
const REAP_PAUSE: Duration = Duration::from_millis(1);

impl Arena {
    /// `pages` pages of zeros. Memory is taken from the system when a page is first written.
    ///
    /// # Errors
    /// If the system has no room for them.
    ///
    /// # Panics
    /// If `page_bytes` is 0 or no multiple of 64: pages are read as wider elements.
    pub fn new(page_bytes: usize, pages: u32) -> std::io::Result<Self> {
        let bytes = bytes_of(page_bytes, pages)?;
        let mut map = MmapOptions::new().len(bytes.max(1)).map_anon()?;
        let base = map.as_mut_ptr();
        let words = Words::own(pages);
        Ok(Self { words, base, page_bytes, memory: Memory::Own { map } })
    }

    /// `pages` pages of zeros that processes of the same user on this host can open with [`crate::Remote::open`]. All of
    /// the memory is taken from the system now, so that no later write can find it exhausted. It goes back when the last
    /// process that has it is gone, however that ends.
    ///
    /// # Errors
    /// If the system has no room for them.
    ///
    /// # Panics
    /// As [`Arena::new`].
    pub fn shared(page_bytes: usize, pages: u32, epoch: u32) -> std::io::Result<Self> {
        bytes_of(page_bytes, pages)?;
        let mut shared = Shared::create(page_bytes, pages, epoch, None)?;
        let (words, base) = shared.parts();
        Ok(Self { words, base, page_bytes, memory: Memory::Shared(shared) })
    }

    /// `pages` pages in a device's memory, which begin at its start.
    #[must_use]
    pub fn over(device: Arc<dyn Device>, page_bytes: usize, pages: u32) -> Self {
        let words = Words::own(pages);
        Self { words, base: std::ptr::null_mut(), page_bytes, memory: Memory::Device(device, None) }
    }

    /// The same, for peers of this host to write by themselves: those who can reach the device.
    ///
    /// # Errors
    /// If nothing reaches the device, or the system has no memory for the words.
    pub fn over_shared(device: Arc<dyn Device>, page_bytes: usize, pages: u32, epoch: u32) -> io::Result<Self> {
        let handle = device.handle().ok_or(io::ErrorKind::Unsupported)?;
        let mut shared = Shared::create(page_bytes, pages, epoch, Some(handle))?;
        let (words, _) = shared.parts();
        Ok(Self { words, base: std::ptr::null_mut(), page_bytes, memory: Memory::Device(device, Some(shared)) })
    }

    /// The device that the pages are in, if they are in one.
    #[must_use]
    pub fn device(&self) -> Option<&Arc<dyn Device>> {
        match &self.memory {
            Memory::Device(device, _) => Some(device),
            Memory::Own { .. } | Memory::Shared(_) => None,
        }
    }

    /// True if the pages can only be copied, not read in place: [`Arena::hold`] is for those who copy them.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(self.memory, Memory::Device(..))
    }

    /// Holds a page of a device, for reading or for writing, without its bytes.
    ///
    /// # Errors
    /// [`Busy`] as [`Arena::read`] or [`Arena::write`].
    pub fn hold(&self, page: u32, is_write: bool) -> Result<Held<'_>, Busy> {
        let word = &self.words.get()[page as usize];
        let is_held = if is_write { word.write() } else { word.read() };
        if is_held { Ok(Held { word, is_write }) } else { Err(Busy { page }) }
    }

    /// Where the pages begin in memory, and how many bytes they are; `None` if they are a device's.
    #[must_use]
    pub fn region(&self) -> Option<(*mut u8, usize)> {
        (!self.is_device()).then_some((self.base, self.page_bytes * self.pages() as usize))
    }

    /// Where and as what a peer opens this arena; `None` if it is not shared.
    #[must_use]
    pub fn identity(&self) -> Option<&crate::Identity> {
        match &self.memory {
            Memory::Own { .. } | Memory::Device(_, None) => None,
            Memory::Shared(shared) | Memory::Device(_, Some(shared)) => Some(shared.identity()),
        }
    }

    /// Bytes of each page.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// How many pages there are.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.words.get().len() as u32
    }

    /// To read a page.
    ///
    /// # Errors
    /// If it is being written.
    ///
    /// # Panics
    /// If there is no such page.
    #[inline]
    pub fn read(&self, page: u32) -> Result<PageRef<'_>, Busy> {
        let word = &self.words.get()[page as usize];
        if !word.read() {
            return Err(Busy { page });
        }
        let bytes = if let Memory::Device(device, _) = &self.memory {
            let mut bytes = vec![0; self.page_bytes].into_boxed_slice();
            if device.read(u64::from(page) * self.page_bytes as u64, &mut bytes).is_err() {
                word.unread();
                return Err(Busy { page });
            }
            Bytes::Copied(bytes)
        } else {
            // SAFETY: the word counts a reader, so that no `PageMut` of this page is made while the reference lives; the
            // range lies within the mapping, which lives as long as `self`.
            Bytes::Mapped(unsafe { std::slice::from_raw_parts(self.at(page), self.page_bytes) })
        };
        Ok(PageRef { bytes, word })
    }

    /// To write a page.
    ///
    /// # Errors
    /// If it is being read or written.
    ///
    /// # Panics
    /// If there is no such page.
    #[inline]
    pub fn write(&self, page: u32) -> Result<PageMut<'_>, Busy> {
        let word = &self.words.get()[page as usize];
        if !word.write() {
            return Err(Busy { page });
        }
        // SAFETY: the word excludes every other reference to this page until the result is dropped.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.at(page), self.page_bytes) };
        Ok(PageMut { bytes, word })
    }

    /// Leases pages for a generation: all of them or none.
    ///
    /// # Errors
    /// If one of them is leased already, or is being read or written.
    ///
    /// # Panics
    /// If there is no such page, or `generation` is 0.
    pub fn grant(&self, pages: &[u32], generation: u32) -> Result<(), Busy> {
        let words = self.words.get();
        for (count, page) in pages.iter().enumerate() {
            if !words[*page as usize].grant(generation) {
                // Nobody knows of the lease yet, so no write of it has begun.
                for page in &pages[..count] {
                    words[*page as usize].revoke(generation);
                }
                return Err(Busy { page: *page });
            }
        }
        Ok(())
    }

    /// Ends the lease of pages for a generation, and waits until `deadline` for the writes that have begun. Pages that
    /// are not leased for it are left alone. After `Ok` no write of the lease can land any more.
    ///
    /// # Errors
    /// If a write still goes on; to be called again. The lease has ended all the same.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn revoke(&self, pages: &[u32], generation: u32, deadline: Instant) -> Result<(), Writing> {
        let words = self.words.get();
        for page in pages {
            words[*page as usize].revoke(generation);
        }
        pages.iter().try_for_each(|page| self.quiet(*page, deadline))
    }

    /// To write a page on behalf of a peer, from within this process.
    ///
    /// # Errors
    /// [`Denied`].
    ///
    /// # Panics
    /// If there is no such page.
    #[inline]
    pub fn write_leased(&self, page: u32, generation: u32) -> Result<LeasedMut<'_>, Denied> {
        let word = &self.words.get()[page as usize];
        word.enter(generation, 0)?;
        let bytes = if let Memory::Device(device, _) = &self.memory {
            LeasedBytes::Device(device.as_ref(), u64::from(page) * self.page_bytes as u64, self.page_bytes)
        } else {
            // SAFETY: the word excludes every other reference to this page until the result is dropped.
            LeasedBytes::Mapped(unsafe { std::slice::from_raw_parts_mut(self.at(page), self.page_bytes) })
        };
        Ok(LeasedMut { bytes, word, generation })
    }

    /// The generation for which a page is leased; 0 for none.
    ///
    /// # Panics
    /// If there is no such page.
    #[must_use]
    pub fn leased(&self, page: u32) -> u32 {
        self.words.get()[page as usize].generation()
    }

    /// Waits until no outside writer is at work in a page whose lease has ended.
    fn quiet(&self, page: u32, deadline: Instant) -> Result<(), Writing> {
        let word = &self.words.get()[page as usize];
        let mut polls = 0_u32;
        while let Some(slot) = word.outside() {
            polls += 1;
            if polls < 64 {
                std::thread::yield_now();
                continue;
            }
            // A page is copied in well under a millisecond: this writer was stopped, or is gone.
            if let Memory::Shared(shared) | Memory::Device(_, Some(shared)) = &self.memory
                && slot > 0
                && shared.if_gone(slot, || {
                    word.bury(slot);
                })
            {
                continue;
            }
            if Instant::now() >= deadline {
                return Err(Writing { page });
            }
            std::thread::park_timeout(REAP_PAUSE);
        }
        Ok(())
    }

    fn at(&self, page: u32) -> *mut u8 {
        debug_assert!(page < self.pages(), "a page within the memory");
        assert!(!self.is_device(), "memory that can be addressed");
        // SAFETY: `page` is below the number of words, which the mapping has room for.
        unsafe { self.base.add(page as usize * self.page_bytes) }
    }
}

/// Bytes of all pages.
fn bytes_of(page_bytes: usize, pages: u32) -> std::io::Result<usize> {
    assert!(page_bytes > 0 && page_bytes.is_multiple_of(64), "pages of {page_bytes} bytes");
    Ok(page_bytes.checked_mul(pages as usize).ok_or(std::io::ErrorKind::OutOfMemory)?)
}

impl<'a> LeasedMut<'a> {
    /// Lets `fill` write the beginning of a range of the page, which it says the length of.
    ///
    /// # Errors
    /// What `fill` says, or the device.
    ///
    /// # Panics
    /// If the range is not within the page.
    pub fn fill(
        &mut self,
        range: Range<usize>,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        match &mut self.bytes {
            LeasedBytes::Mapped(bytes) => fill(&mut bytes[range]),
            LeasedBytes::Device(device, from, length) => {
                assert!(range.end <= *length, "a range of the page");
                let mut bytes = vec![0; range.len()];
                let count = fill(&mut bytes)?;
                device.write(*from + range.start as u64, &bytes[..count])?;
                Ok(count)
            }
        }
    }

    /// The caller has entered `word`.
    pub(crate) fn new(bytes: &'a mut [u8], word: &'a PageWord, generation: u32) -> Self {
        Self { bytes: LeasedBytes::Mapped(bytes), word, generation }
    }

    /// Ends the write. False if the lease was revoked while it went on: what was written counts for nothing.
    #[must_use]
    pub fn finish(self) -> bool {
        let this = std::mem::ManuallyDrop::new(self);
        this.word.leave(this.generation)
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match &self.memory {
            Memory::Own { map } => map.len(),
            Memory::Shared(shared) => shared.bytes(),
            Memory::Device(..) => self.page_bytes * self.pages() as usize,
        };
        f.debug_struct("Arena")
            .field("pages", &self.pages())
            .field("page_bytes", &self.page_bytes)
            .field("bytes", &bytes)
            .finish()
    }
}

impl Deref for PageRef<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(bytes) => bytes,
            Bytes::Copied(bytes) => bytes,
        }
    }
}

impl Deref for PageMut<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl DerefMut for PageMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

impl Drop for PageRef<'_> {
    fn drop(&mut self) {
        self.word.unread();
    }
}

impl Drop for PageMut<'_> {
    fn drop(&mut self) {
        self.word.unwrite();
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.is_write {
            self.word.unwrite();
        } else {
            self.word.unread();
        }
    }
}

impl Drop for LeasedMut<'_> {
    fn drop(&mut self) {
        self.word.leave(self.generation);
    }
}

impl fmt::Debug for PageRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageRef").finish_non_exhaustive()
    }
}

impl fmt::Debug for PageMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageMut").finish_non_exhaustive()
    }
}

impl fmt::Debug for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("is_write", &self.is_write).finish_non_exhaustive()
    }
}

impl fmt::Debug for LeasedMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasedMut").field("generation", &self.generation).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

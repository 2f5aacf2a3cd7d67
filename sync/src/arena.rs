//! Page memory of one tier: pages of equal size that lanes read and write side by side.
//!
//! Core hands each page to one writer or to some readers at a time. Each page has a guard all the same: an access that
//! core's protocol forbids is refused instead of being a data race, so that no mistake elsewhere is undefined behaviour.
//!
//! ```text
//!   guard   0 free    n readers    WRITING one writer
//! ```

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapMut, MmapOptions};
use thiserror::Error;

/// Pages of one tier.
pub struct Arena {
    memory: MmapMut,
    base: *mut u8,
    guards: Box<[AtomicU32]>,
    page_bytes: usize,
}

// SAFETY: `base` points into `memory`, which the arena owns; all access goes through the guards.
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

/// A page that nobody writes while this lives.
pub struct PageRef<'a> {
    bytes: &'a [u8],
    guard: &'a AtomicU32,
}

/// A page that nobody else touches while this lives.
pub struct PageMut<'a> {
    bytes: &'a mut [u8],
    guard: &'a AtomicU32,
}

const WRITING: u32 = u32::MAX;

impl Arena {
    /// `pages` pages of zeros. Memory is taken from the system when a page is first written.
    ///
    /// # Errors
    /// If the system has no room for them.
    ///
    /// # Panics
    /// If `page_bytes` is 0 or no multiple of 64: pages are read as wider elements.
    pub fn new(page_bytes: usize, pages: u32) -> std::io::Result<Self> {
        assert!(page_bytes > 0 && page_bytes.is_multiple_of(64), "pages of {page_bytes} bytes");
        let bytes = page_bytes.checked_mul(pages as usize).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let mut memory = MmapOptions::new().len(bytes.max(1)).map_anon()?;
        let base = memory.as_mut_ptr();
        let guards = (0..pages).map(|_| AtomicU32::new(0)).collect();
        Ok(Self { memory, base, guards, page_bytes })
    }

    /// Bytes of each page.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// How many pages there are.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.guards.len() as u32
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
        let guard = &self.guards[page as usize];
        guard
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |held| (held < WRITING - 1).then(|| held + 1))
            .map_err(|_| Busy { page })?;
        // SAFETY: the guard counts a reader, so that no `PageMut` of this page is made while the reference lives; the
        // range lies within the mapping, which lives as long as `self`.
        let bytes = unsafe { std::slice::from_raw_parts(self.at(page), self.page_bytes) };
        Ok(PageRef { bytes, guard })
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
        let guard = &self.guards[page as usize];
        guard
            .compare_exchange(0, WRITING, Ordering::Acquire, Ordering::Relaxed)
            .map_err(|_| Busy { page })?;
        // SAFETY: the guard excludes every other reference to this page until the result is dropped.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.at(page), self.page_bytes) };
        Ok(PageMut { bytes, guard })
    }

    fn at(&self, page: u32) -> *mut u8 {
        debug_assert!((page as usize + 1) * self.page_bytes <= self.memory.len(), "a page within the memory");
        // SAFETY: `page` is below the number of guards, which the mapping has room for.
        unsafe { self.base.add(page as usize * self.page_bytes) }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("pages", &self.pages()).field("page_bytes", &self.page_bytes).finish()
    }
}

impl Deref for PageRef<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes
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
        self.guard.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for PageMut<'_> {
    fn drop(&mut self) {
        self.guard.store(0, Ordering::Release);
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

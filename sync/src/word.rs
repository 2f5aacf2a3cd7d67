//! One word per page: who touches it, and which transfer may write it from outside.
//!
//! ```text
//!   63 ........ 32 | 31 ........ 0
//!   lease          | holder
//!   0 none         | 0 nobody    n readers    OUTSIDE|slot one outside writer    WRITING one local writer
//!   n generation   |
//!
//!   grant    (0, 0)            -> (n, 0)
//!   enter    (n, 0)            -> (n, OUTSIDE|slot)      the only way for an outside writer to begin
//!   leave    (x, OUTSIDE|slot) -> (x, 0)                 x = 0 tells the writer that it was fenced meanwhile
//!   revoke   (n, h)            -> (0, h)                 from here on no `enter` of n succeeds; quiet once h is not OUTSIDE
//! ```
//!
//! Both halves are in one word so that a writer begins in a single step which fails if either the lease is gone or
//! somebody uses the page. A generation is never granted twice in the life of an arena, so there is no ABA.

use crate::shim::{AtomicU64, Ordering};

/// Largest slot of an outside writer. Slot 0 is the process that owns the memory.
pub const SLOT_MAX: u16 = 4095;

const HOLDER: u64 = 0xffff_ffff;
const WRITING: u64 = 0xffff_ffff;
const OUTSIDE: u64 = 0x8000_0000;
const READERS_MAX: u64 = 0x4000_0000;

/// The state of one page.
#[repr(transparent)]
#[derive(Debug)]
pub struct PageWord(AtomicU64);

/// Why an outside writer may not write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denied {
    /// The page is not leased for this generation, or is no longer.
    Fenced,
    /// Somebody reads or writes it.
    Busy,
}

impl Default for PageWord {
    fn default() -> Self {
        Self::new()
    }
}

impl PageWord {
    /// Not leased, nobody there.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more reader. False if somebody writes.
    #[inline]
    pub fn read(&self) -> bool {
        self.0
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| {
                ((word & HOLDER) < READERS_MAX).then(|| word + 1)
            })
            .is_ok()
    }

    /// One reader less.
    #[inline]
    pub fn unread(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }

    /// The local writer. False if somebody is there.
    #[inline]
    pub fn write(&self) -> bool {
        self.0
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| (word & HOLDER == 0).then_some(word | WRITING))
            .is_ok()
    }

    /// The local writer leaves.
    #[inline]
    pub fn unwrite(&self) {
        self.0.fetch_and(!HOLDER, Ordering::Release);
    }

    /// Leases the page. False if it is leased already, or if somebody is there.
    ///
    /// # Panics
    /// If `generation` is 0, which means none.
    #[must_use]
    pub fn grant(&self, generation: u32) -> bool {
        assert!(generation > 0, "generation 0 is no lease");
        self.0.compare_exchange(0, u64::from(generation) << 32, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Ends the lease of this generation: no write of it begins any more. One that has begun goes on; see
    /// [`PageWord::outside`]. False if it was not leased for this generation.
    pub fn revoke(&self, generation: u32) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                (word >> 32 == u64::from(generation)).then_some(word & HOLDER)
            })
            .is_ok()
    }

    /// The outside writer that is at work.
    #[must_use]
    pub fn outside(&self) -> Option<u16> {
        let holder = self.0.load(Ordering::Acquire) & HOLDER;
        (holder & OUTSIDE != 0 && holder != WRITING).then_some((holder & 0xffff) as u16)
    }

    /// The generation for which the page is leased; 0 for none.
    #[must_use]
    pub fn generation(&self) -> u32 {
        (self.0.load(Ordering::Acquire) >> 32) as u32
    }

    /// Begins a write from outside.
    ///
    /// # Errors
    /// [`Denied`]; nothing has changed.
    #[inline]
    pub fn enter(&self, generation: u32, slot: u16) -> Result<(), Denied> {
        let lease = u64::from(generation) << 32;
        if generation == 0 {
            return Err(Denied::Fenced);
        }
        match self.0.compare_exchange(lease, lease | OUTSIDE | u64::from(slot), Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(word) if word & !HOLDER == lease => Err(Denied::Busy),
            Err(_) => Err(Denied::Fenced),
        }
    }

    /// Ends a write from outside. False if the lease was revoked while it went on.
    #[inline]
    pub fn leave(&self, generation: u32) -> bool {
        let before = self.0.fetch_and(!HOLDER, Ordering::AcqRel);
        before >> 32 == u64::from(generation)
    }

    /// Clears the write of an outside writer that is known to be gone. True if there was one.
    pub fn bury(&self, slot: u16) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
                (word & HOLDER == OUTSIDE | u64::from(slot)).then_some(word & !HOLDER)
            })
            .is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

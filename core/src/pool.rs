//! The pages of one memory tier and who may still touch them.
//!
//! Owns which pages are free and how many pins each allocated one has. Does not know what a page holds, nor what a pin
//! is for: an operation that reads or writes the page, a sequence that computes over it. A pinned page cannot be
//! released, hence never be handed out while a device or a peer may still write it.
//!
//! ```text
//!            allocate            pin               pin
//!    free ──────────────▶ 0 pins ───▶ 1 pin  ──────────▶ 2 pins ...
//!      ◀────────────────         ◀───        ◀──────────
//!            release             unpin             unpin
//! ```
//!
//! Invariants, recounted by [`Pool::audit`]:
//!
//! 1. A page is in the free list exactly once or allocated, never both, never neither.
//! 2. A free page has no pins.
//!
//! Pages freed last are handed out first: their lines and their translations are the ones most likely still cached.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use crate::digest::Digest;
use crate::id::{GpuPage, HostPage};

#[cfg(test)]
mod tests;

/// An id that is the index of a page in its pool.
pub trait PageIndex: Copy + fmt::Debug {
    /// The id of the page at an index.
    fn from_index(index: u32) -> Self;
    /// The page's index.
    fn index(self) -> u32;
}

macro_rules! page_index {
    ($($name:ident),*) => {$(
        impl PageIndex for $name {
            #[inline]
            fn from_index(index: u32) -> Self {
                Self(index)
            }
            #[inline]
            fn index(self) -> u32 {
                self.0
            }
        }
    )*};
}
page_index!(GpuPage, HostPage);

/// The ledger of one tier.
#[derive(Clone, Debug)]
pub struct Pool<Id> {
    /// Pins of each page, [`FREE`] for a free one.
    pins: Vec<u32>,
    /// Handed out from the end.
    free: Vec<u32>,
    /// Pages with at least one pin.
    pinned: u32,
    id: PhantomData<Id>,
}

impl<Id: PageIndex> Pool<Id> {
    /// A pool of `count` free pages; page 0 is handed out first.
    #[must_use]
    pub fn new(count: u32) -> Self {
        Self { pins: vec![FREE; count as usize], free: (0..count).rev().collect(), pinned: 0, id: PhantomData }
    }

    /// Takes a page, without pins; `None` if none is free.
    #[must_use = "a page that is dropped is lost"]
    pub fn allocate(&mut self) -> Option<Id> {
        let index = self.free.pop()?;
        self.pins[index as usize] = 0;
        Some(Id::from_index(index))
    }

    /// Takes `count` pages and appends them to `out`, or takes none and returns false.
    #[must_use = "nothing is allocated if it returns false"]
    pub fn allocate_many(&mut self, count: u32, out: &mut Vec<Id>) -> bool {
        if count > self.free_count() {
            return false;
        }
        let rest = self.free.len() - count as usize;
        for index in self.free.drain(rest..).rev() {
            self.pins[index as usize] = 0;
            out.push(Id::from_index(index));
        }
        true
    }

    /// Adds a pin.
    ///
    /// # Panics
    /// If the page is free.
    pub fn pin(&mut self, id: Id) {
        let pins = self.allocated(id);
        assert!(*pins < PINS_MAX, "too many pins on {id:?}");
        *pins += 1;
        self.pinned += u32::from(*pins == 1);
    }

    /// Takes a pin away and returns how many are left.
    ///
    /// # Panics
    /// If the page is free or has no pin.
    pub fn unpin(&mut self, id: Id) -> u32 {
        let pins = self.allocated(id);
        assert!(*pins > 0, "{id:?} is not pinned");
        *pins -= 1;
        let left = *pins;
        self.pinned -= u32::from(left == 0);
        left
    }

    /// Gives a page back.
    ///
    /// # Panics
    /// If the page is free already, or pinned.
    pub fn release(&mut self, id: Id) {
        let pins = self.allocated(id);
        assert_eq!(*pins, 0, "{id:?} is pinned and may still be read or written");
        *pins = FREE;
        self.free.push(id.index());
    }

    /// Pins of a page; a free one has none.
    ///
    /// # Panics
    /// If the pool has no such page.
    #[must_use]
    pub fn pins(&self, id: Id) -> u32 {
        match self.pins[id.index() as usize] {
            FREE => 0,
            pins => pins,
        }
    }

    /// Whether the page exists and is not free.
    #[must_use]
    pub fn is_allocated(&self, id: Id) -> bool {
        self.pins.get(id.index() as usize).is_some_and(|&pins| pins != FREE)
    }

    /// Pages in all.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.pins.len() as u32
    }

    /// Free pages.
    #[must_use]
    pub fn free_count(&self) -> u32 {
        self.free.len() as u32
    }

    /// Pages with at least one pin.
    #[must_use]
    pub const fn pinned_count(&self) -> u32 {
        self.pinned
    }

    /// Recounts the pages.
    ///
    /// # Panics
    /// If the ledger disagrees.
    pub fn audit(&self) {
        let mut listed = vec![false; self.pins.len()];
        for &index in &self.free {
            assert_eq!(self.pins[index as usize], FREE, "page {index} is free and allocated");
            assert!(!core::mem::replace(&mut listed[index as usize], true), "page {index} is free twice");
        }
        let free = self.pins.iter().filter(|&&pins| pins == FREE).count();
        assert_eq!(free, self.free.len(), "a page is neither free nor allocated");
        let pinned = self.pins.iter().filter(|&&pins| pins != FREE && pins > 0).count();
        assert_eq!(pinned, self.pinned as usize, "the count of pinned pages is off");
    }

    /// Adds everything that can change what the pool does next.
    pub fn digest(&self, digest: &mut Digest) {
        digest.word(u64::from(self.total()));
        for &pins in &self.pins {
            digest.word(u64::from(pins));
        }
        for &index in &self.free {
            digest.word(u64::from(index));
        }
    }

    /// The pins of an allocated page.
    fn allocated(&mut self, id: Id) -> &mut u32 {
        let pins = self.pins.get_mut(id.index() as usize).filter(|pins| **pins != FREE);
        pins.unwrap_or_else(|| panic!("{id:?} is not allocated"))
    }
}

/// In [`Pool::pins`]: the page is free.
const FREE: u32 = u32::MAX;

/// One less than [`FREE`]: holders are counted in thousands.
const PINS_MAX: u32 = FREE - 1;

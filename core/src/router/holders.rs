//! The slots that hold one page.
//!
//! Most pages have one or two holders, a prefill and a decode worker, and those are kept in the node itself. A page
//! that many workers hold (a system prompt) is a sorted list and a set of bits, so that one word of the walk along a
//! prompt speaks for 64 slots.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

/// The holders of a node in order of slots; most nodes have one or two (a prefill and a decode worker).
#[derive(Debug)]
pub(super) enum Holders {
    Few { count: u8, list: [Holder; FEW] },
    Many(Box<Many>),
}

/// One slot that holds a node's page.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Holder {
    /// Its entry in the slot's order of use.
    pub(super) pair: u32,
    pub(super) slot: u16,
    /// Bits of the tiers it is in.
    pub(super) tiers: u8,
}

#[derive(Debug)]
pub(super) struct Many {
    list: Vec<Holder>,
    /// The slots of `list` as a set.
    bits: Vec<u64>,
}

impl Default for Holders {
    fn default() -> Self {
        Self::Few { count: 0, list: [Holder::default(); FEW] }
    }
}

impl Holders {
    /// The slots as a set of bits, where there are enough of them to keep one.
    pub(super) fn bits(&self) -> Option<&[u64]> {
        match self {
            Self::Few { .. } => None,
            Self::Many(many) => Some(&many.bits),
        }
    }

    pub(super) fn as_slice(&self) -> &[Holder] {
        match self {
            Self::Few { count, list } => &list[..usize::from(*count)],
            Self::Many(many) => &many.list,
        }
    }

    /// Index of `slot` in [`Holders::as_slice`].
    pub(super) fn position(&self, slot: u16) -> Option<usize> {
        match self {
            Self::Few { count, list } => list[..usize::from(*count)].iter().position(|holder| holder.slot == slot),
            Self::Many(many) => many.list.binary_search_by_key(&slot, |holder| holder.slot).ok(),
        }
    }

    pub(super) fn get_mut(&mut self, at: usize) -> &mut Holder {
        match self {
            Self::Few { list, .. } => &mut list[at],
            Self::Many(many) => &mut many.list[at],
        }
    }

    /// Adds a slot that is not there.
    pub(super) fn insert(&mut self, holder: Holder) {
        if let Self::Few { count, list } = self {
            if usize::from(*count) < FEW {
                list[usize::from(*count)] = holder;
                *count += 1;
                list[..usize::from(*count)].sort_unstable_by_key(|holder| holder.slot);
                return;
            }
            let mut many = Many { list: list.to_vec(), bits: Vec::new() };
            for holder in &*list {
                many.set(holder.slot);
            }
            *self = Self::Many(Box::new(many));
        }
        if let Self::Many(many) = self {
            let at = many.list.partition_point(|other| other.slot < holder.slot);
            many.list.insert(at, holder);
            many.set(holder.slot);
        }
    }

    pub(super) fn remove(&mut self, at: usize) -> Holder {
        match self {
            Self::Few { count, list } => {
                let gone = list[at];
                list.copy_within(at + 1..usize::from(*count), at);
                *count -= 1;
                gone
            }
            Self::Many(many) => {
                let gone = many.list.remove(at);
                many.bits[usize::from(gone.slot) / 64] &= !(1 << (gone.slot % 64));
                // Hysteresis: back to the small form only when well below it.
                if many.list.len() < FEW {
                    let mut list = [Holder::default(); FEW];
                    list[..many.list.len()].copy_from_slice(&many.list);
                    *self = Self::Few { count: many.list.len() as u8, list };
                }
                gone
            }
        }
    }
}

impl Many {
    fn set(&mut self, slot: u16) {
        let word = usize::from(slot) / 64;
        if word >= self.bits.len() {
            self.bits.extend(vec![0; word + 1 - self.bits.len()]);
        }
        self.bits[word] |= 1 << (slot % 64);
    }
}

/// Holders that fit the node.
const FEW: usize = 3;

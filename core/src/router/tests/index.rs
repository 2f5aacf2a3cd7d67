#![allow(clippy::disallowed_types, reason = "prop_oneof! makes an Arc")]
//! The prefix index against a list of pairs.

use proptest::prelude::*;

use super::*;
use crate::event::Tier;
use crate::router::prefix::{Index, Matches, Slot};

fn matched(index: &Index, slot: Slot, keys: &[PageKey]) -> u32 {
    let mut matches = Matches::default();
    index.matches(keys, &mut matches);
    matches.pages(slot)
}

fn keys(range: core::ops::Range<u128>) -> Vec<PageKey> {
    range.map(PageKey).collect()
}

#[test]
fn a_slot_over_its_capacity_forgets_the_ends_of_its_oldest_chains() {
    let mut index = Index::new(1000, 0);
    let slot = index.open(10);
    index.note(slot, &keys(100..106));
    index.note(slot, &keys(200..206));
    index.check();
    assert_eq!(index.entries(), 10);
    assert_eq!(matched(&index, slot, &keys(100..106)), 4);
    assert_eq!(matched(&index, slot, &keys(200..206)), 6);
    index.note(slot, &keys(300..350));
    assert_eq!(matched(&index, slot, &keys(300..350)), 10);
}

#[test]
fn a_full_index_takes_from_whoever_has_more_than_its_share() {
    let mut index = Index::new(20, 0);
    let (one, two) = (index.open(0), index.open(0));
    index.note(one, &keys(0..20));
    index.note(two, &keys(0..10));
    index.check();
    assert_eq!((index.held(one), index.held(two)), (10, 10));
    index.note(two, &keys(100..105));
    assert_eq!((index.held(one), index.held(two)), (10, 10));
    assert_eq!(matched(&index, two, &keys(100..105)), 5);
}

#[test]
fn a_closed_slot_is_forgotten_and_can_be_opened_again() {
    let mut index = Index::new(100, 0);
    let slot = index.open(0);
    index.note(slot, &keys(0..5));
    index.close(slot);
    assert_eq!(index.entries(), 0);
    let slot = index.open(0);
    assert_eq!(matched(&index, slot, &keys(0..5)), 0);
    index.check();
}

#[test]
fn a_page_that_left_l1_is_still_held_in_l2() {
    let mut index = Index::new(100, 0);
    let slot = index.open(0);
    index.note(slot, &keys(0..1));
    index.stored(slot, PageKey(0), Tier::Host);
    index.removed(slot, PageKey(0), Tier::Device);
    assert_eq!(matched(&index, slot, &keys(0..1)), 1);
    index.cleared(slot, Tier::Host);
    assert_eq!(index.entries(), 0);
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Note { slot: usize, from: u128, count: u128 },
    Stored { slot: usize, key: u128 },
    Removed { slot: usize, key: u128 },
    Cleared { slot: usize },
    Reopen { slot: usize },
}

const SLOTS: usize = 70;

fn act() -> impl Strategy<Value = Act> {
    let slot = || 0..SLOTS;
    prop_oneof![
        4 => (slot(), 0_u128..40, 1_u128..12).prop_map(|(slot, from, count)| Act::Note { slot, from, count }),
        4 => (slot(), 0_u128..40).prop_map(|(slot, key)| Act::Stored { slot, key }),
        4 => (slot(), 0_u128..40).prop_map(|(slot, key)| Act::Removed { slot, key }),
        1 => slot().prop_map(|slot| Act::Cleared { slot }),
        1 => slot().prop_map(|slot| Act::Reopen { slot }),
    ]
}

proptest! {
    /// An index with room for all matches like a set of (slot, key, tier), holes included.
    #[test]
    fn it_matches_like_a_naive_set(acts in proptest::collection::vec(act(), 1..300), salt in any::<u64>()) {
        let mut index = Index::new(u32::MAX - 1, salt);
        let mut slots: Vec<Slot> = (0..SLOTS).map(|_| index.open(0)).collect();
        let mut naive = std::collections::BTreeSet::new();
        for act in acts {
            match act {
                Act::Note { slot, from, count } => {
                    index.note(slots[slot], &keys(from..from + count));
                    naive.extend((from..from + count).map(|key| (slot, key, 0)));
                }
                Act::Stored { slot, key } => {
                    index.stored(slots[slot], PageKey(key), Tier::Host);
                    naive.insert((slot, key, 1));
                }
                Act::Removed { slot, key } => {
                    index.removed(slots[slot], PageKey(key), Tier::Device);
                    naive.remove(&(slot, key, 0));
                }
                Act::Cleared { slot } => {
                    index.cleared(slots[slot], Tier::Host);
                    naive.retain(|&(other, _, tier)| other != slot || tier != 1);
                }
                Act::Reopen { slot } => {
                    index.close(slots[slot]);
                    slots[slot] = index.open(0);
                    naive.retain(|&(other, ..)| other != slot);
                }
            }
        }
        index.check();
        let holds = |slot, key| (0..2).any(|tier| naive.contains(&(slot, key, tier)));
        for from in [0_u128, 3, 20] {
            let prompt = keys(from..from + 30);
            let mut matches = Matches::default();
            index.matches(&prompt, &mut matches);
            for (slot, &id) in slots.iter().enumerate() {
                let expected = prompt.iter().take_while(|key| holds(slot, key.0)).count();
                prop_assert_eq!(matches.pages(id) as usize, expected);
            }
        }
    }

    /// A small index never exceeds its bounds, whatever it is told.
    #[test]
    fn it_stays_within_its_bounds(acts in proptest::collection::vec(act(), 1..300)) {
        let mut index = Index::new(50, 1);
        let mut slots: Vec<Slot> = (0..SLOTS).map(|slot| index.open(slot as u32 % 9)).collect();
        for act in acts {
            match act {
                Act::Note { slot, from, count } => index.note(slots[slot], &keys(from..from + count)),
                Act::Stored { slot, key } => index.stored(slots[slot], PageKey(key), Tier::Host),
                Act::Removed { slot, key } => index.removed(slots[slot], PageKey(key), Tier::Device),
                Act::Cleared { slot } => index.cleared(slots[slot], Tier::Host),
                Act::Reopen { slot } => {
                    index.close(slots[slot]);
                    slots[slot] = index.open(slot as u32 % 9);
                }
            }
            index.check();
        }
    }
}

//! The ledger against a set of pages.
#![allow(clippy::disallowed_types, reason = "prop_oneof! expands to an Arc")]

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

#[test]
fn pages_are_handed_out_in_order_and_freed_ones_first() {
    let mut pool = Pool::<GpuPage>::new(4);
    assert_eq!(pool.allocate(), Some(GpuPage(0)));
    assert_eq!(pool.allocate(), Some(GpuPage(1)));
    pool.release(GpuPage(0));
    assert_eq!(pool.allocate(), Some(GpuPage(0)));
    assert_eq!((pool.total(), pool.free_count()), (4, 2));
}

#[test]
fn many_pages_are_all_or_nothing() {
    let mut pool = Pool::<HostPage>::new(3);
    let mut pages = Vec::new();
    assert!(!pool.allocate_many(4, &mut pages));
    assert_eq!((pages.len(), pool.free_count()), (0, 3));
    assert!(pool.allocate_many(3, &mut pages));
    assert_eq!(pages, [HostPage(0), HostPage(1), HostPage(2)]);
    assert!(pool.allocate_many(0, &mut pages));
    assert_eq!(pool.allocate(), None);
    pool.audit();
}

#[test]
fn a_page_is_released_after_its_last_pin() {
    let mut pool = Pool::<GpuPage>::new(1);
    let page = pool.allocate().unwrap();
    pool.pin(page);
    pool.pin(page);
    assert_eq!(pool.unpin(page), 1);
    assert_eq!(pool.unpin(page), 0);
    pool.release(page);
    assert!(!pool.is_allocated(page));
    assert_eq!(pool.pins(page), 0);
}

#[test]
#[should_panic(expected = "is not allocated")]
fn a_double_free_panics() {
    let mut pool = Pool::<GpuPage>::new(2);
    let page = pool.allocate().unwrap();
    pool.release(page);
    pool.release(page);
}

#[test]
#[should_panic(expected = "is pinned")]
fn a_release_under_a_pin_panics() {
    let mut pool = Pool::<GpuPage>::new(2);
    let page = pool.allocate().unwrap();
    pool.pin(page);
    pool.release(page);
}

#[test]
#[should_panic(expected = "is not pinned")]
fn an_unpin_too_many_panics() {
    let mut pool = Pool::<GpuPage>::new(2);
    let page = pool.allocate().unwrap();
    pool.unpin(page);
}

#[test]
#[should_panic(expected = "is free and allocated")]
fn the_audit_finds_a_page_that_is_free_and_allocated() {
    let mut pool = Pool::<GpuPage>::new(2);
    pool.free.push(pool.free[0]);
    pool.pins[1] = 0;
    pool.audit();
}

#[test]
#[should_panic(expected = "neither free nor allocated")]
fn the_audit_finds_a_lost_page() {
    let mut pool = Pool::<GpuPage>::new(2);
    pool.free.pop();
    pool.audit();
}

#[test]
fn the_fingerprint_knows_pins_and_the_order_of_free_pages() {
    let print = |act: fn(&mut Pool<GpuPage>)| {
        let mut pool = Pool::new(3);
        let mut pages = Vec::new();
        assert!(pool.allocate_many(2, &mut pages));
        act(&mut pool);
        let mut digest = Digest::new();
        pool.digest(&mut digest);
        digest.finish()
    };
    let prints: BTreeSet<u64> = [
        print(|_| {}),
        print(|pool| pool.pin(GpuPage(0))),
        print(|pool| pool.pin(GpuPage(1))),
        print(|pool| {
            pool.release(GpuPage(0));
            pool.release(GpuPage(1));
        }),
        print(|pool| {
            pool.release(GpuPage(1));
            pool.release(GpuPage(0));
        }),
    ]
    .into();
    assert_eq!(prints.len(), 5);
}

#[derive(Clone, Debug)]
enum Act {
    Allocate,
    AllocateMany(u32),
    /// The others act on the nth allocated page.
    Pin(usize),
    Unpin(usize),
    Release(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => Just(Act::Allocate),
        1 => (0_u32..6).prop_map(Act::AllocateMany),
        2 => any::<usize>().prop_map(Act::Pin),
        2 => any::<usize>().prop_map(Act::Unpin),
        3 => any::<usize>().prop_map(Act::Release),
    ]
}

proptest! {
    /// Against a set of free pages and a list of (page, pins).
    #[test]
    fn a_pool_agrees_with_a_naive_one(count in 0_u32..12, acts in prop::collection::vec(act(), 0..80)) {
        let mut pool = Pool::<HostPage>::new(count);
        let mut free: BTreeSet<u32> = (0..count).collect();
        let mut taken: Vec<(u32, u32)> = Vec::new();
        for act in acts {
            let nth = |n: usize, taken: &[(u32, u32)]| (!taken.is_empty()).then(|| n % taken.len());
            match act {
                Act::Allocate => match pool.allocate() {
                    None => prop_assert!(free.is_empty()),
                    Some(page) => {
                        prop_assert!(free.remove(&page.0));
                        taken.push((page.0, 0));
                    }
                },
                Act::AllocateMany(want) => {
                    let mut pages = Vec::new();
                    let done = pool.allocate_many(want, &mut pages);
                    prop_assert_eq!(done, want as usize <= free.len());
                    prop_assert_eq!(pages.len(), if done { want as usize } else { 0 });
                    for page in pages {
                        prop_assert!(free.remove(&page.0));
                        taken.push((page.0, 0));
                    }
                }
                Act::Pin(n) => if let Some(n) = nth(n, &taken) {
                    taken[n].1 += 1;
                    pool.pin(HostPage(taken[n].0));
                },
                Act::Unpin(n) => if let Some(n) = nth(n, &taken).filter(|&n| taken[n].1 > 0) {
                    taken[n].1 -= 1;
                    prop_assert_eq!(pool.unpin(HostPage(taken[n].0)), taken[n].1);
                },
                Act::Release(n) => if let Some(n) = nth(n, &taken).filter(|&n| taken[n].1 == 0) {
                    let (page, _) = taken.remove(n);
                    free.insert(page);
                    pool.release(HostPage(page));
                },
            }
            pool.audit();
            prop_assert_eq!(pool.free_count() as usize, free.len());
            prop_assert_eq!(pool.total(), count);
            for page in 0..count {
                let entry = taken.iter().find(|(taken, _)| *taken == page);
                prop_assert_eq!(pool.is_allocated(HostPage(page)), entry.is_some());
                prop_assert_eq!(pool.pins(HostPage(page)), entry.map_or(0, |(_, pins)| *pins));
            }
        }
    }
}

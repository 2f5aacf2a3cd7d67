//! The ordered policies against a sorted list; S3-FIFO by its behaviour.
#![allow(clippy::disallowed_types, reason = "prop_oneof! expands to an Arc")]

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

const ORDERED: [Policy; 5] = [Policy::Lru, Policy::Lfu, Policy::Slru, Policy::Fifo, Policy::Priority];

#[test]
fn each_ordered_policy_has_its_own_order() {
    // page: admitted at 1..=4 in order 0 1 2 3, priorities 0 5 -5 0; then 0 is used twice, 1 once.
    let expected = [
        (Policy::Lru, [2, 3, 0, 1]),
        (Policy::Lfu, [2, 3, 1, 0]),
        (Policy::Slru, [2, 3, 0, 1]),
        (Policy::Fifo, [0, 1, 2, 3]),
        (Policy::Priority, [2, 3, 0, 1]),
    ];
    for (policy, order) in expected {
        let mut evictor = Evictor::new(policy, 4);
        for (page, priority) in [(0, 0), (1, 5), (2, -5), (3, 0)] {
            evictor.admitted(PageId(page), key(page), u64::from(page) + 1, priority);
            evictor.offer(PageId(page));
        }
        for (page, stamp) in [(0, 5), (0, 6), (1, 7)] {
            evictor.touched(PageId(page), stamp);
        }
        assert_eq!(drain(&mut evictor), order, "{policy:?}");
    }
}

#[test]
fn slru_protects_a_page_from_its_second_use_on() {
    let mut evictor = filled(Policy::Slru, 3);
    evictor.touched(PageId(0), 10);
    evictor.touched(PageId(2), 11);
    evictor.admitted(PageId(3), key(3), 12, 0);
    evictor.offer(PageId(3));
    assert_eq!(drain(&mut evictor), [1, 3, 0, 2]);
}

#[test]
fn a_raised_priority_counts_and_a_lowered_one_does_not() {
    let mut evictor = filled(Policy::Priority, 3);
    evictor.raise_priority(PageId(0), 7);
    evictor.raise_priority(PageId(0), -7);
    evictor.raise_priority(PageId(1), i32::MIN);
    assert_eq!(drain(&mut evictor), [1, 2, 0]);
}

#[test]
fn only_candidates_leave_and_offers_may_be_repeated() {
    for policy in [&ORDERED[..], &[Policy::S3Fifo]].concat() {
        let mut evictor = filled(policy, 3);
        evictor.withdraw(PageId(0));
        evictor.withdraw(PageId(0));
        evictor.offer(PageId(1));
        evictor.withdraw(PageId(99));
        assert_eq!((evictor.candidates(), evictor.is_candidate(PageId(0))), (2, false));
        let victim = evictor.victim().unwrap();
        evictor.offer(victim);
        evictor.check();
        assert_eq!(drain(&mut evictor), [1, 2], "{policy:?}: a victim that is put back is chosen again");
        assert_eq!(evictor.victim(), None);
    }
}

#[test]
fn a_page_that_comes_back_has_no_history() {
    let mut evictor = filled(Policy::Lfu, 2);
    evictor.touched(PageId(0), 9);
    assert_eq!((evictor.hits(PageId(0)), evictor.last(PageId(0))), (2, 9));
    evictor.evicted(PageId(0), key(0));
    assert_eq!((evictor.hits(PageId(0)), evictor.last(PageId(0))), (0, 0));
    evictor.admitted(PageId(0), key(0), 12, 0);
    assert_eq!((evictor.hits(PageId(0)), evictor.last(PageId(0))), (1, 12));
    assert!(!evictor.is_candidate(PageId(0)));
    evictor.check();
}

#[test]
#[should_panic(expected = "is not in the tier")]
fn a_page_that_is_not_held_cannot_be_offered() {
    Evictor::new(Policy::Lru, 1).offer(PageId(0));
}

#[test]
#[should_panic(expected = "at another place")]
fn the_check_finds_a_candidate_that_was_moved_in_the_table_only() {
    let mut evictor = filled(Policy::Lru, 2);
    evictor.table[0].last = 77;
    evictor.check();
}

#[test]
fn the_fingerprint_knows_all_that_decides_the_next_victim() {
    let print = |policy, act: fn(&mut Evictor)| {
        let mut evictor = filled(policy, 12);
        act(&mut evictor);
        let mut digest = Digest::new();
        evictor.digest(&mut digest);
        digest.finish()
    };
    let prints: BTreeSet<u64> = [
        print(Policy::Lru, |_| {}),
        print(Policy::Fifo, |_| {}),
        print(Policy::Lru, |evictor| evictor.withdraw(PageId(1))),
        print(Policy::Lru, |evictor| evictor.touched(PageId(1), 0)),
        print(Policy::Lru, |evictor| evictor.touched(PageId(1), 99)),
        print(Policy::Lru, |evictor| evictor.raise_priority(PageId(1), 1)),
        print(Policy::S3Fifo, |_| {}),
        print(Policy::S3Fifo, |evictor| evictor.evicted(PageId(1), key(1))),
        // The same pages are left; only the ghost differs.
        print(Policy::S3Fifo, |evictor| evictor.evicted(PageId(1), key(2))),
    ]
    .into();
    assert_eq!(prints.len(), 9);
    assert_eq!(
        print(Policy::Lru, |evictor| evictor.withdraw(PageId(1))),
        print(Policy::Lru, |evictor| {
            evictor.offer(PageId(1));
            evictor.withdraw(PageId(1));
        })
    );
}

#[test]
fn policies_have_the_names_that_users_type() {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};
    let names = ["lru", "lfu", "slru", "fifo", "priority", "s3fifo"];
    for (name, policy) in names.into_iter().zip(ORDERED.into_iter().chain([Policy::S3Fifo])) {
        let text: StrDeserializer<'_, Error> = name.into_deserializer();
        assert_eq!(Policy::deserialize(text), Ok(policy));
    }
}

#[test]
fn s3fifo_lets_one_hit_wonders_leave_first() {
    // 2 of 20 pages are the small queue's share; 0 and 1 were used twice after they came, 2 once.
    let mut evictor = filled(Policy::S3Fifo, 20);
    for page in [0, 1, 0, 1, 2] {
        evictor.touched(PageId(page), 50);
    }
    let order = drain(&mut evictor);
    assert_eq!(order[..17], Vec::from_iter(2..19)[..]);
    assert_eq!(order[17..], [0, 1, 19], "a single page is within the share");
}

#[test]
fn s3fifo_takes_from_main_while_the_small_queue_is_within_its_share() {
    let mut evictor = filled(Policy::S3Fifo, 20);
    for page in 0..20 {
        evictor.evicted(PageId(page), key(page));
    }
    // The ghosts of the last 18: all go to main. 20 and 21 are unknown and fill the share of 2.
    for page in (2..20).chain([20]) {
        evictor.admitted(PageId(page), key(page), 100, 0);
        evictor.offer(PageId(page));
    }
    evictor.check();
    assert_eq!(evictor.victim(), Some(PageId(2)), "one page is less than the share");
    evictor.evicted(PageId(2), key(2));
    evictor.admitted(PageId(21), key(21), 101, 0);
    evictor.offer(PageId(21));
    assert_eq!(evictor.victim(), Some(PageId(20)), "two pages are the share");
    evictor.evicted(PageId(20), key(20));
    assert_eq!(evictor.victim(), Some(PageId(3)));
}

#[test]
fn s3fifo_remembers_what_left_the_small_queue_and_admits_it_to_main() {
    let mut evictor = filled(Policy::S3Fifo, 10);
    assert_eq!(evictor.victim(), Some(PageId(0)));
    evictor.evicted(PageId(0), key(0));
    // Another slot, the same key: the ghost knows keys.
    evictor.admitted(PageId(30), key(0), 60, 0);
    evictor.offer(PageId(30));
    evictor.check();
    assert_eq!(drain(&mut evictor), [1, 2, 3, 4, 5, 6, 7, 8, 9, 30]);
}

#[test]
fn s3fifo_forgets_ghosts_beyond_the_size_of_main() {
    let mut evictor = Evictor::new(Policy::S3Fifo, 10);
    for page in 0..10 {
        evictor.admitted(PageId(page), key(page), 0, 0);
        evictor.evicted(PageId(page), key(page));
        evictor.check();
    }
    let queues = |evictor: &Evictor, page: u32| evictor.table[page as usize].queue;
    for page in [0, 1, 9] {
        evictor.admitted(PageId(page), key(page), 1, 0);
    }
    assert_eq!([0, 1, 9].map(|page| queues(&evictor, page)), [Queue::Small, Queue::Main, Queue::Main]);
}

#[test]
fn s3fifo_main_gives_used_pages_another_round() {
    let mut evictor = Evictor::new(Policy::S3Fifo, 10);
    for page in 0..4 {
        evictor.admitted(PageId(page), key(page), 0, 0);
        evictor.evicted(PageId(page), key(page));
        evictor.admitted(PageId(page), key(page), 1, 0);
        evictor.offer(PageId(page));
    }
    for page in [0, 0, 0, 0, 0, 1] {
        evictor.touched(PageId(page), 2);
    }
    assert_eq!(drain(&mut evictor), [2, 3, 1, 0]);
}

#[test]
fn s3fifo_skips_pages_that_may_not_leave_without_moving_them() {
    let mut evictor = filled(Policy::S3Fifo, 10);
    for page in [0, 1, 2] {
        evictor.withdraw(PageId(page));
    }
    assert_eq!(evictor.victim(), Some(PageId(3)));
    evictor.evicted(PageId(3), key(3));
    evictor.offer(PageId(1));
    assert_eq!(evictor.victim(), Some(PageId(1)), "it is still the oldest");
}

/// A trunk that is used by all never comes to the end of its chain; it must not eat the share of the small queue.
#[test]
fn s3fifo_counts_a_hot_trunk_as_main() {
    let mut evictor = Evictor::new(Policy::S3Fifo, 20);
    for page in 0..10 {
        evictor.admitted(PageId(page), key(page), 0, 0);
        evictor.touched(PageId(page), 1);
        evictor.touched(PageId(page), 2);
    }
    // Stale pages of main.
    for page in 10..15 {
        evictor.admitted(PageId(page), key(page), 3, 0);
        evictor.evicted(PageId(page), key(page));
        evictor.admitted(PageId(page), key(page), 3, 0);
        evictor.offer(PageId(page));
    }
    evictor.admitted(PageId(15), key(15), 4, 0);
    evictor.offer(PageId(15));
    evictor.check();
    assert_eq!(evictor.victim(), Some(PageId(10)), "the only page that is new stays");
}

/// Goal: a scan over pages that are used once costs S3-FIFO less of the hot set than LRU. Method: 80 hot pages in turn,
/// with bursts of 60 scanned ones in between, in a tier of 100 pages.
#[test]
fn s3fifo_resists_a_scan_better_than_lru() {
    let mut trace = Vec::new();
    let mut scanned = 1000;
    for _ in 0..40 {
        trace.extend(0..80);
        trace.extend(scanned..scanned + 60);
        scanned += 60;
    }
    let (lru, s3fifo) = (replay(Policy::Lru, 100, &trace), replay(Policy::S3Fifo, 100, &trace));
    assert_eq!(lru, 0, "each burst pushes the hot pages out just before they are used");
    // 39 rounds of 80 hot pages could hit.
    assert!(s3fifo > 39 * 80 * 3 / 4, "{s3fifo} of {} hits", 39 * 80);
}

#[derive(Clone, Debug)]
enum Act {
    Admit(u32, i32),
    Touch(u32),
    Raise(u32, i32),
    Offer(u32),
    Withdraw(u32),
    Victim(bool),
    Evict(u32),
}

fn act() -> impl Strategy<Value = Act> {
    let page = || 0_u32..12;
    let priority = || prop_oneof![-2..3_i32, Just(i32::MIN), Just(i32::MAX)];
    prop_oneof![
        3 => (page(), priority()).prop_map(|(page, priority)| Act::Admit(page, priority)),
        3 => page().prop_map(Act::Touch),
        1 => (page(), priority()).prop_map(|(page, priority)| Act::Raise(page, priority)),
        4 => page().prop_map(Act::Offer),
        1 => page().prop_map(Act::Withdraw),
        2 => any::<bool>().prop_map(Act::Victim),
        1 => page().prop_map(Act::Evict),
    ]
}

/// One page of the naive tier.
#[derive(Clone, Debug)]
struct Naive {
    page: u32,
    arrival: usize,
    hits: u32,
    last: u64,
    priority: i32,
    candidate: bool,
}

proptest! {
    /// Goal: the victim is the first of all candidates sorted, whatever came before. For S3-FIFO, whose order is its
    /// own, only that it is a candidate. Stamps repeat, so ties are met.
    #[test]
    fn the_victim_is_the_first_of_all_candidates(
        policy in prop::sample::select([&ORDERED[..], &[Policy::S3Fifo]].concat()),
        acts in prop::collection::vec(act(), 0..150),
    ) {
        let mut evictor = Evictor::new(policy, 8);
        let mut naive: Vec<Naive> = Vec::new();
        for (time, act) in acts.into_iter().enumerate() {
            let stamp = time as u64 / 4;
            let find = |naive: &[Naive], page| naive.iter().position(|entry| entry.page == page);
            match act {
                Act::Admit(page, priority) => if find(&naive, page).is_none() {
                    evictor.admitted(PageId(page), key(page), stamp, priority);
                    naive.push(Naive { page, arrival: time, hits: 1, last: stamp, priority, candidate: false });
                },
                Act::Touch(page) => if let Some(at) = find(&naive, page) {
                    evictor.touched(PageId(page), stamp);
                    naive[at].hits += 1;
                    naive[at].last = stamp;
                },
                Act::Raise(page, priority) => if let Some(at) = find(&naive, page) {
                    evictor.raise_priority(PageId(page), priority);
                    naive[at].priority = naive[at].priority.max(priority);
                },
                Act::Offer(page) => if let Some(at) = find(&naive, page) {
                    evictor.offer(PageId(page));
                    naive[at].candidate = true;
                },
                Act::Withdraw(page) => {
                    evictor.withdraw(PageId(page));
                    if let Some(at) = find(&naive, page) {
                        naive[at].candidate = false;
                    }
                }
                Act::Victim(put_back) => {
                    let victim = evictor.victim();
                    let mut candidates: Vec<&Naive> = naive.iter().filter(|entry| entry.candidate).collect();
                    candidates.sort_by_key(|entry| sort_key(policy, entry));
                    if policy == Policy::S3Fifo {
                        prop_assert_eq!(victim.is_some(), !candidates.is_empty());
                        prop_assert!(candidates.iter().any(|entry| Some(PageId(entry.page)) == victim) || victim.is_none());
                    } else {
                        prop_assert_eq!(victim, candidates.first().map(|entry| PageId(entry.page)));
                    }
                    if let Some(page) = victim {
                        prop_assert!(!evictor.is_candidate(page));
                        if put_back {
                            evictor.offer(page);
                        } else {
                            evictor.evicted(page, key(page.0));
                            naive.retain(|entry| entry.page != page.0);
                        }
                    }
                }
                Act::Evict(page) => if let Some(at) = find(&naive, page) {
                    evictor.evicted(PageId(page), key(page));
                    naive.remove(at);
                },
            }
            evictor.check();
            prop_assert_eq!(evictor.candidates(), naive.iter().filter(|entry| entry.candidate).count());
            for page in 0..12 {
                let entry = find(&naive, page).map(|at| &naive[at]);
                prop_assert_eq!(evictor.is_candidate(PageId(page)), entry.is_some_and(|entry| entry.candidate));
                prop_assert_eq!(evictor.hits(PageId(page)), entry.map_or(0, |entry| entry.hits));
                prop_assert_eq!(evictor.last(PageId(page)), entry.map_or(0, |entry| entry.last));
            }
        }
    }
}

fn sort_key(policy: Policy, entry: &Naive) -> (i64, u64, u32) {
    let last = entry.last;
    match policy {
        Policy::Lru => (0, last, entry.page),
        Policy::Lfu => (i64::from(entry.hits), last, entry.page),
        Policy::Slru => (i64::from(entry.hits >= 2), last, entry.page),
        Policy::Fifo => (0, entry.arrival as u64, entry.page),
        Policy::Priority => (i64::from(entry.priority), last, entry.page),
        Policy::S3Fifo => (0, 0, 0),
    }
}

fn key(page: u32) -> PageKey {
    PageKey(u128::from(page) + 1000)
}

/// Pages 0 to `count`, admitted in order, all candidates.
fn filled(policy: Policy, count: u32) -> Evictor {
    let mut evictor = Evictor::new(policy, count);
    for page in 0..count {
        evictor.admitted(PageId(page), key(page), u64::from(page), 0);
        evictor.offer(PageId(page));
    }
    evictor.check();
    evictor
}

/// Evicts everything.
fn drain(evictor: &mut Evictor) -> Vec<u32> {
    let mut order = vec![];
    while let Some(page) = evictor.victim() {
        evictor.evicted(page, key(page.0));
        evictor.check();
        order.push(page.0);
    }
    order
}

/// Hits of a cache of single pages.
fn replay(policy: Policy, capacity: u32, trace: &[u32]) -> u32 {
    let mut evictor = Evictor::new(policy, capacity);
    let (mut hits, mut used) = (0, 0);
    for (stamp, &page) in trace.iter().enumerate() {
        if evictor.hits(PageId(page)) > 0 {
            hits += 1;
            evictor.touched(PageId(page), stamp as u64);
            continue;
        }
        if used == capacity {
            let victim = evictor.victim().unwrap();
            evictor.evicted(victim, key(victim.0));
            used -= 1;
        }
        used += 1;
        evictor.admitted(PageId(page), key(page), stamp as u64, 0);
        evictor.offer(PageId(page));
    }
    hits
}

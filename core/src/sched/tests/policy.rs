//! Order and bookkeeping of the waiting line.

use std::vec::Vec;

use super::*;

fn queue(keys: &[(u64, u64)]) -> Queue {
    let mut queue = Queue::default();
    for (slot, &(since, weight)) in keys.iter().enumerate() {
        queue.push(slot as u32, since, weight);
    }
    queue
}

fn slots(picks: &[Pick]) -> Vec<u32> {
    picks.iter().map(|pick| pick.slot).collect()
}

#[test]
fn a_ranking_scan_finds_the_best_in_order_and_breaks_ties_by_arrival() {
    let mut queue = queue(&[(0, 3), (0, 9), (0, 3), (0, 9), (0, 1)]);
    queue.remove(1);
    let mut picks = Vec::new();
    best(&queue, &mut picks, |a, b| a.weight > b.weight);
    assert_eq!(slots(&picks), [3, 0, 2, 4]);
}

#[test]
fn a_ranking_scan_of_many_equals_a_sort() {
    let mut rng = Rng::new(5, crate::rng::Stream::Schedule, 0);
    let keys: Vec<(u64, u64)> = (0..500).map(|_| (rng.below(1000), 1 + rng.below(50))).collect();
    let queue = queue(&keys);
    let now = Instant(2000);
    let mut picks = Vec::new();
    best(&queue, &mut picks, |a, b| has_higher_ratio(a, b, now));
    let mut sorted: Vec<u32> = (0..500).collect();
    sorted.sort_by(|&a, &b| {
        let (a_key, b_key) = (keys[a as usize], keys[b as usize]);
        ((2000 - b_key.0) * a_key.1).cmp(&((2000 - a_key.0) * b_key.1)).then(a.cmp(&b))
    });
    assert_eq!(slots(&picks), sorted[..RANKED_MAX]);
}

#[test]
fn long_waits_and_services_do_not_overflow() {
    let old = Key { since: 0, weight: u64::MAX };
    let new = Key { since: u64::MAX - 1, weight: 1 };
    assert!(has_higher_ratio(&new, &Key { since: u64::MAX, weight: 1 }, Instant::MAX));
    assert!(!has_higher_ratio(&old, &new, Instant::MAX));
}

#[test]
fn depth_first_visits_the_heaviest_child_first() {
    let key = |number: u128| PageKey(number);
    let paths = [
        std::vec![key(1), key(2)],
        std::vec![key(5)],
        std::vec![key(1)],
        std::vec![key(1), key(2), key(3)],
        std::vec![key(6), key(7)],
        std::vec![],
    ];
    let queue = queue(&[(0, 0); 6]);
    let mut picks = Vec::new();
    depth_first(&queue, &mut picks, |slot| &paths[slot as usize]);
    assert_eq!(slots(&picks), [0, 3, 2, 1, 4, 5]);
}

#[test]
fn a_shuffle_of_many_draws_few_and_repeats_none() {
    let mut queue = queue(&[(0, 0); 1000]);
    (0..400).for_each(|order| queue.remove(order * 2));
    let mut rng = Rng::new(5, crate::rng::Stream::Schedule, 0);
    let mut picks = Vec::new();
    shuffled(&queue, &mut rng, &mut picks);
    let mut distinct = slots(&picks);
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), picks.len());
    assert_eq!(picks.len(), PICKS_MAX);
}

#[test]
fn leaving_the_middle_keeps_the_order_and_is_swept() {
    let mut queue = queue(&[(0, 0); 500]);
    for order in 0..500 {
        if order % 5 != 0 {
            queue.remove(order);
        }
    }
    let expected: Vec<u32> = (0..500).filter(|slot| slot % 5 == 0).collect();
    assert_eq!(queue.iter().map(|pick| pick.slot).collect::<Vec<_>>(), expected);
    assert!(queue.keys().len() < 300, "tombstones are swept");
    assert_eq!(queue.overtake(10), 1);
    assert_eq!(queue.overtaken(10), 1);
}

//! The event queue: by time, then by arrival.

use proptest::prelude::*;

use super::*;

#[test]
fn events_of_one_instant_leave_in_the_order_of_arrival() {
    let mut heap = Heap::new();
    for (at, event) in [(5, 'a'), (3, 'b'), (5, 'c'), (3, 'd'), (u64::MAX, 'e'), (0, 'f')] {
        heap.push(Instant(at), event);
    }
    assert_eq!(heap.peek_time(), Some(Instant::ZERO));
    let order: String = std::iter::from_fn(|| heap.pop()).map(|(_, event)| event).collect();
    assert_eq!(order, "fbdace");
    assert_eq!((heap.pop(), heap.peek_time(), heap.pushed_count()), (None, None, 6));
}

#[test]
fn nothing_later_than_now_is_taken() {
    let mut heap = Heap::new();
    heap.push(Instant(7), ());
    assert_eq!(heap.pop_until(Instant(6)), None);
    assert_eq!(heap.pop_until(Instant(7)), Some((Instant(7), ())));
    assert_eq!(heap.pop_until(Instant(7)), None);
}

#[test]
fn what_is_kept_stays_in_order() {
    let mut heap = Heap::new();
    for event in 0..100_u64 {
        heap.push(Instant(event / 10), event);
    }
    heap.retain(|_, event| event % 3 == 0);
    let left: Vec<u64> = std::iter::from_fn(|| heap.pop()).map(|(_, event)| event).collect();
    assert_eq!(left, (0..100).filter(|event| event % 3 == 0).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The model is a list that is searched for the first of the earliest.
    #[test]
    fn a_heap_is_a_stable_sort(steps in prop::collection::vec(prop::option::of(0_u64..8), 0..200)) {
        let mut heap = Heap::new();
        let mut model: Vec<(u64, usize)> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            if let Some(at) = step {
                heap.push(Instant(at), number);
                model.push((at, number));
            } else {
                let least = (0..model.len()).min_by_key(|index| model[*index]);
                let expected = least.map(|index| model.remove(index));
                prop_assert_eq!(heap.pop().map(|(at, event)| (at.0, event)), expected);
            }
            prop_assert_eq!(heap.len(), model.len());
        }
    }
}

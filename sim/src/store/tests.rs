//! What a store keeps, tears and lists.

use pd_core::rng::{Rng, Stream};
use proptest::prelude::*;

use super::*;

const ROOT: PageKey = PageKey(1000);
const OTHER: PageKey = PageKey(2000);

#[test]
fn a_page_is_read_back_in_its_namespace_only() {
    let store = filled(1);
    assert_eq!(store.get(PageKey(0), ROOT).map(|object| (object.content, object.bytes)), Ok((PageKey(0), 10)));
    assert_eq!(store.get(PageKey(0), OTHER), Err(StoreFault::Foreign));
    assert_eq!(store.get(PageKey(9), ROOT), Err(StoreFault::Missing));
}

#[test]
fn faults_show_as_their_header_does() {
    let mut store = filled(3);
    assert!(store.tear(PageKey(0)));
    assert!(store.misdirect(PageKey(1), PageKey(77)));
    assert!(store.corrupt(PageKey(2), PageKey(78)));
    assert_eq!(store.get(PageKey(0), ROOT), Err(StoreFault::Torn));
    assert_eq!(store.get(PageKey(1), ROOT), Err(StoreFault::Foreign));
    assert_eq!(store.get(PageKey(2), ROOT).expect("silent").content, PageKey(78));
    assert!(!store.tear(PageKey(9)) && !store.misdirect(PageKey(9), ROOT) && !store.corrupt(PageKey(9), ROOT));
}

#[test]
fn a_put_leaves_an_intact_object_and_heals_a_torn_one() {
    let mut store = filled(1);
    store.sync(store.mark());
    assert_eq!(store.put(PageKey(0), ROOT, ROOT, 10), Ok(false));
    assert!(store.object(PageKey(0)).expect("there").durable);
    store.tear(PageKey(0));
    assert_eq!(store.put(PageKey(0), ROOT, ROOT, 12), Ok(true));
    assert_eq!((store.bytes(), store.count(), store.volatile_count()), (12, 1, 1));
    assert!(store.get(PageKey(0), ROOT).is_ok());
}

#[test]
fn a_full_store_refuses_and_stays_as_it_was() {
    let mut store = Store::new(Some(20));
    assert_eq!(store.put(PageKey(0), ROOT, ROOT, 12), Ok(true));
    assert_eq!(store.put(PageKey(1), ROOT, ROOT, 9), Err(Full));
    assert_eq!(store.put(PageKey(1), ROOT, ROOT, u64::MAX), Err(Full));
    assert_eq!((store.bytes(), store.count(), store.contains(PageKey(1))), (12, 1, false));
    assert!(store.remove(PageKey(0)) && !store.remove(PageKey(0)));
    assert_eq!(store.put(PageKey(1), ROOT, ROOT, 20), Ok(true));
}

#[test]
fn a_scan_pages_through_everything_once() {
    let mut store = filled(10);
    store.put(PageKey(20), OTHER, OTHER, 1).expect("room");
    store.tear(PageKey(3));
    let (mut keys, mut foreign, mut torn, mut after, mut pages) = (Vec::new(), 0, 0, None, 0);
    loop {
        let page = store.scan(ROOT, after, 4);
        keys.extend(page.keys);
        (foreign, torn, after, pages) = (foreign + page.foreign, torn + page.torn, page.next, pages + 1);
        if after.is_none() {
            break;
        }
    }
    let keys: Vec<PageKey> = keys.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, [0, 1, 2, 4, 5, 6, 7, 8, 9].map(PageKey));
    assert_eq!((foreign, torn, pages), (1, 1, 3));
    assert_eq!(store.scan(ROOT, Some(PageKey(20)), 4), ScanPage::default());
    assert_eq!(store.scan(ROOT, Some(PageKey(5)), 0).next, Some(PageKey(5)), "no progress is not the end");
}

#[test]
fn an_fsync_covers_what_was_put_before_it_began() {
    let mut store = filled(2);
    let mark = store.mark();
    store.put(PageKey(5), ROOT, ROOT, 1).expect("room");
    assert_eq!(store.sync(mark), 2);
    assert_eq!(store.sync(mark), 0);
    let durable: Vec<bool> = store.iter().map(|(_, object)| object.durable).collect();
    assert_eq!(durable, [true, true, false]);
}

#[test]
fn a_crash_takes_only_what_is_not_durable() {
    let mut store = filled(300);
    store.sync(100);
    let report = store.crash(&mut Rng::new(1, Stream::Fault, 0));
    assert_eq!(report.kept + report.torn + report.dropped, 200);
    assert!(report.kept > 40 && report.torn > 40 && report.dropped > 40, "{report:?}");
    assert!((0..100).all(|key| store.get(PageKey(key), ROOT).is_ok()));
    assert_eq!(store.count(), 300 - u64::from(report.dropped));
    assert_eq!(store.crash(&mut Rng::new(1, Stream::Fault, 0)), CrashReport::default());
    assert_eq!(store.wipe(), 300 - u64::from(report.dropped));
    assert_eq!((store.count(), store.bytes()), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn counts_are_those_of_a_recount(steps in prop::collection::vec((0_u8..6, 0_u128..8, 0_u64..40), 0..120)) {
        let mut store = Store::new(Some(150));
        let mut rng = Rng::new(3, Stream::Fault, 0);
        for (step, key, bytes) in steps {
            let key = PageKey(key);
            match step {
                0 | 1 => drop(store.put(key, ROOT, if bytes % 2 == 0 { ROOT } else { OTHER }, bytes)),
                2 => drop(store.remove(key)),
                3 => drop(store.tear(key)),
                4 => drop(store.sync(bytes)),
                _ => drop(store.crash(&mut rng)),
            }
            prop_assert_eq!(store.bytes(), store.iter().map(|(_, object)| object.bytes).sum::<u64>());
            prop_assert!(store.bytes() <= 150);
            prop_assert_eq!(store.volatile_count(), store.iter().filter(|(_, object)| !object.durable).count() as u64);
        }
    }
}

fn filled(count: u128) -> Store {
    let mut store = Store::new(None);
    for key in 0..count {
        store.put(PageKey(key), ROOT, ROOT, 10).expect("no limit");
    }
    store
}

#[test]
fn a_touch_makes_the_first_key_the_most_recently_used() {
    let mut store = Store::new(None);
    for key in 0..3 {
        store.put(PageKey(key), ROOT, ROOT, 10).expect("room");
    }
    store.touch(&[PageKey(0), PageKey(2), PageKey(99)]);
    let mut by_use: Vec<(u64, PageKey)> =
        store.scan(ROOT, None, 10).keys.into_iter().map(|(key, used)| (used, key)).collect();
    by_use.sort();
    assert_eq!(by_use.iter().map(|(_, key)| key.0).collect::<Vec<_>>(), [1, 2, 0]);
}

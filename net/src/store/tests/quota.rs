//! Room: never more than was given, and the least recent pages make way.

use super::*;

const MAX: u64 = 1 << 20;

fn bounded(dir: &Path) -> Store {
    Store::open(StoreConfig { bytes_max: Some(MAX), ..config(dir) }).expect("opens").0
}

fn used(dir: &Path) -> u64 {
    crate::store::reclaim::used_bytes(dir).expect("a folder")
}

#[test]
fn the_folder_never_takes_more_than_its_quota() {
    let dir = folder();
    let store = bounded(dir.path());
    for number in 0..300 {
        Page::new(number, 9000).write(&store).expect("what is cold makes way");
        assert!(used(dir.path()) <= MAX, "{} bytes after page {number}", used(dir.path()));
    }
    let stats = store.stats();
    assert!(stats.evicted > 150 && stats.segments_removed > 20, "{stats:?}");
    assert!(stats.live_bytes > MAX / 4, "room is used: {stats:?}");
    Page::new(299, 9000).read(&store).expect("the last one");
    drop(store);
    assert!(used(dir.path()) <= MAX);
}

#[test]
fn what_is_used_outlives_what_is_not_also_after_a_restart() {
    let dir = folder();
    let mut store = bounded(dir.path());
    // Each page a chain of its own, so that its age is its own.
    let page = |number: u64| Page { parent: ROOT, ..Page::new(number, 9000) };
    let hot: Vec<Page> = (0..8).map(|number| page(number * 11)).collect();
    let keys: Vec<PageKey> = hot.iter().map(|page| page.key).collect();
    for number in 0..100 {
        page(number).write(&store).expect("room");
        store.touch(&keys);
        // As the thread does, but where the test says.
        store.settle();
        if number == 70 {
            drop(store);
            std::fs::remove_file(dir.path().join("index.snap")).ok();
            store = bounded(dir.path());
        }
    }
    for number in 100..300 {
        page(number).write(&store).expect("room");
        store.touch(&keys);
        store.settle();
    }
    assert!(store.stats().moved > 0, "some of them had to move: {:?}", store.stats());
    for (number, page) in hot.iter().enumerate() {
        page.read(&store).unwrap_or_else(|fault| panic!("hot page {number}: {fault:?}"));
    }
    assert!(!store.contains(&[page(5).key], ROOT)[0], "a page that nobody used is gone");
}

#[test]
fn a_smaller_quota_is_kept_from_the_start() {
    let dir = folder();
    let (store, _) = open(dir.path());
    for number in 0..200 {
        Page::new(number, 9000).write(&store).expect("room");
    }
    drop(store);
    assert!(used(dir.path()) > MAX);
    let store = bounded(dir.path());
    assert!(used(dir.path()) <= MAX);
    Page::new(1000, 9000).write(&store).expect("room");
    Page::new(1000, 9000).read(&store).expect("is there");
}

#[test]
fn what_belongs_to_another_process_does_not_make_way_and_is_no_reason_to_fail_for_ever() {
    let dir = folder();
    let (one, two) = (bounded(dir.path()), bounded(dir.path()));
    for number in 0..100 {
        Page::new(number, 9000).write(&one).expect("room");
        one.settle();
    }
    let page = Page::new(1000, 9000);
    let mut result = page.write(&two);
    for _ in 0..20 {
        assert!(used(dir.path()) <= MAX);
        if result.is_ok() {
            break;
        }
        assert_eq!(result, Err(Fault::Full));
        one.settle();
        result = page.write(&two);
    }
    assert_eq!(result, Ok(()), "the one that has more than its share makes room");
}

#[test]
fn dead_segments_are_removed_and_sparse_ones_compacted() {
    let dir = folder();
    let (store, _) = open(dir.path());
    let pages: Vec<Page> = (0..60).map(|number| Page::new(number, 9000)).collect();
    write(&store, &pages);
    store.settle();
    let before = used(dir.path());
    let dead: Vec<PageKey> =
        pages.iter().skip(1).filter(|page| page.tokens[0].0 % 40 != 0).map(|page| page.key).collect();
    store.discard(&dead).expect("room");
    store.settle();
    assert!(used(dir.path()) < before / 2, "{} of {before} bytes", used(dir.path()));
    assert!(pages.iter().all(|page| page.read(&store).is_ok() != dead.contains(&page.key)));
}

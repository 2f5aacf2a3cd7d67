//! One process and a disk that works.

use super::*;
use crate::store::DirectIo;

#[test]
fn pages_of_all_sizes_are_read_back_before_and_after_a_restart() {
    for direct_io in [DirectIo::Auto, DirectIo::Never] {
        let dir = folder();
        let config = StoreConfig { direct_io, segment_bytes: 1 << 20, ..config(dir.path()) };
        let sizes = [0, 1, 63, 64, 4096, 16383, 16384, 16385, 20480, 65536];
        let pages: Vec<Page> = (0..).zip(sizes).map(|(number, size)| Page::new(number, size)).collect();
        let (store, report) = Store::open(config.clone()).expect("opens");
        assert_eq!(report.pages, 0);
        assert!(write(&store, &pages).iter().all(Result::is_ok));
        assert!(pages.iter().all(|page| page.read(&store).is_ok()));
        drop(store);
        let (store, report) = Store::open(config).expect("opens");
        assert_eq!((report.pages, report.recovered), (sizes.len() as u64, 0), "{report}");
        assert_eq!(report.from_snapshot, sizes.len() as u64);
        assert!(pages.iter().all(|page| page.read(&store).is_ok()));
    }
}

#[test]
fn aligned_memory_is_read_into_and_written_from_without_a_copy() {
    let dir = tempfile::tempdir().expect("a folder on a disk");
    let (store, report) = Store::open(StoreConfig { segment_bytes: 1 << 20, ..config(dir.path()) }).expect("opens");
    let page = Page::new(3, 65536);
    let mut memory = crate::store::file::Buffer::new(65536);
    memory.bytes_mut().copy_from_slice(&page.bytes);
    let written = store.write(&[Record { page: page.identity(), bytes: memory.bytes() }]);
    assert_eq!(written, [Ok(())]);
    memory.bytes_mut().fill(0);
    store.read(page.identity(), memory.bytes_mut()).expect("is there");
    assert_eq!(memory.bytes(), page.bytes, "direct: {}", report.is_direct);
    page.read(&store).expect("also into memory that is not aligned");
}

#[test]
fn whatever_identifies_a_page_is_compared() {
    let dir = folder();
    let (store, _) = open(dir.path());
    let page = Page::new(1, 5000);
    let other = Page::new(2, 5000);
    let mut into = vec![0; 5000];
    let mut fault = |change: fn(&mut Identity<'_>), bytes: usize| {
        // Written anew each time: what fails its check is not asked again.
        page.write(&store).expect("room");
        let mut identity = page.identity();
        change(&mut identity);
        store.read(identity, &mut into[..bytes]).expect_err("it is another page")
    };
    assert_eq!(fault(|page| page.key = PageKey(5), 5000), Fault::Missing);
    assert_eq!(fault(|page| page.root = OTHER_ROOT, 5000), Fault::Namespace);
    assert_eq!(fault(|page| page.parent = PageKey(5), 5000), Fault::Checksum);
    assert_eq!(fault(|page| page.tokens = &[Token(1)], 5000), Fault::Checksum);
    assert_eq!(fault(|_| {}, 4999), Fault::Checksum);
    page.write(&store).expect("room");
    let unknown = Identity { tokens: &[], ..page.identity() };
    store.read(unknown, &mut into).expect("tokens that are not known are not compared");
    assert_eq!(other.read(&store), Err(Fault::Missing));
    assert_eq!(store.contains(&[page.key, other.key], ROOT), [true, false]);
    assert_eq!(store.contains(&[page.key], OTHER_ROOT), [false]);
}

#[test]
fn a_page_that_is_there_is_not_written_again() {
    let dir = folder();
    let (store, _) = open(dir.path());
    let page = Page::new(1, 20000);
    page.write(&store).expect("room");
    let first = place(&store, page.key);
    page.write(&store).expect("a success without a write");
    assert_eq!(place(&store, page.key), first);
    assert_eq!(store.stats().writes, 1);
}

#[test]
fn a_page_of_another_namespace_under_the_same_key_is_replaced() {
    let dir = folder();
    let (store, _) = open(dir.path());
    let page = Page::new(1, 300);
    let foreign = Page { root: OTHER_ROOT, ..page.clone() };
    foreign.write(&store).expect("room");
    assert_eq!(page.read(&store), Err(Fault::Namespace));
    page.write(&store).expect("room");
    page.read(&store).expect("replaced");
    assert_eq!(foreign.read(&store), Err(Fault::Namespace));
    drop(store);
    let (store, _) = open(dir.path());
    page.read(&store).expect("the newer one, again");
}

#[test]
fn what_was_discarded_or_wiped_stays_away() {
    let dir = folder();
    let (store, _) = open(dir.path());
    let pages: Vec<Page> = (0..10).map(|number| Page::new(number, 9000)).collect();
    let others: Vec<Page> = (0..10).map(|number| Page::of(OTHER_ROOT, number, 9000)).collect();
    write(&store, &pages);
    write(&store, &others);
    store.discard(&[pages[2].key, pages[5].key]).expect("room");
    store.wipe(OTHER_ROOT).expect("room");
    pages[5].write(&store).expect("comes back when it is written");
    others[1].write(&store).expect("likewise");
    let check = |store: &Store, when: &str| {
        for (number, page) in pages.iter().enumerate() {
            let wanted = if number == 2 { Err(Fault::Missing) } else { Ok(()) };
            assert_eq!(page.read(store), wanted, "page {number} {when}");
        }
        for (number, page) in others.iter().enumerate() {
            let wanted = if number == 1 { Ok(()) } else { Err(Fault::Missing) };
            assert_eq!(page.read(store), wanted, "other page {number} {when}");
        }
    };
    check(&store, "at once");
    let crashed = image(&store);
    store.settle();
    check(&store, "after its segments were compacted");
    let compacted = image(&store);
    drop(store);
    check(&open(crashed.path()).0, "after a crash");
    check(&open(compacted.path()).0, "after compaction and a crash");
    check(&open(dir.path()).0, "after a restart");
}

#[test]
fn a_listing_is_in_key_order_and_continues_where_it_stopped() {
    let dir = folder();
    let (store, _) = open(dir.path());
    let pages: Vec<Page> = (0..25).map(|number| Page::new(number * 7 % 25, 100)).collect();
    write(&store, &pages);
    Page::of(OTHER_ROOT, 3, 100).write(&store).expect("room");
    let (mut after, mut keys, mut foreign) = (None, Vec::new(), 0);
    for turn in 0.. {
        let page = store.scan(ROOT, after, 4);
        assert!(page.keys.len() as u32 + page.foreign + page.torn <= 4);
        keys.extend(page.keys.iter().map(|(key, _)| *key));
        foreign += page.foreign;
        if turn == 1 {
            // Behind and before where the listing is.
            Page::new(1000, 100).write(&store).expect("room");
            store.discard(&[Page::new(24, 100).key]).expect("room");
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let mut wanted: Vec<PageKey> = pages.iter().map(|page| page.key).filter(|key| *key != pages_key(24)).collect();
    wanted.push(pages_key(1000));
    wanted.sort_unstable();
    assert_eq!((keys, foreign), (wanted, 1));
}

fn pages_key(number: u64) -> PageKey {
    Page::new(number, 0).key
}

#[test]
fn uses_are_ordered_and_outlive_the_process() {
    let dir = folder();
    let (store, _) = open(dir.path());
    // 0 <- 1 <- 2 is one chain, 10 another.
    let pages: Vec<Page> = [0, 1, 2, 10].map(|number| Page::new(number, 100)).into();
    write(&store, &pages);
    let order = |store: &Store| {
        let mut keys = store.scan(ROOT, None, 100).keys;
        keys.sort_unstable_by_key(|(_, recency)| std::cmp::Reverse(*recency));
        keys.into_iter().map(|(key, _)| key).collect::<Vec<PageKey>>()
    };
    assert_eq!(order(&store), [10, 0, 1, 2].map(pages_key), "what is behind is older");
    store.touch(&[pages[2].key, pages[0].key, PageKey(99)]);
    assert_eq!(order(&store), [2, 0, 10, 1].map(pages_key));
    store.settle();
    let crashed = image(&store);
    drop(store);
    assert_eq!(order(&open(crashed.path()).0), [2, 0, 10, 1].map(pages_key), "after a crash");
    std::fs::remove_file(dir.path().join("index.snap")).expect("a snapshot");
    assert_eq!(order(&open(dir.path()).0), [2, 0, 10, 1].map(pages_key), "without the snapshot");
}

#[test]
fn writers_at_the_same_time_lose_nothing() {
    let dir = tempfile::tempdir().expect("a folder on a disk");
    let (store, _) = Store::open(StoreConfig { segment_bytes: 1 << 20, ..config(dir.path()) }).expect("opens");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..20 {
                    Page::new(thread * 1000 + number, 20000).write(store).expect("room");
                }
            });
        }
    });
    assert_eq!(store.stats().writes, 80);
    let crashed = image(&store);
    let (store, _) = open(crashed.path());
    for page in (0..4).flat_map(|thread| (0..20).map(move |number| Page::new(thread * 1000 + number, 20000))) {
        page.read(&store).expect("was acknowledged");
    }
}

#[test]
fn sizes_that_make_no_sense_are_refused_with_what_would() {
    let dir = folder();
    let error = Store::open(StoreConfig { bytes_max: Some(1000), ..config(dir.path()) }).expect_err("too small");
    assert!(error.to_string().contains("bytes_max >= 524288"), "{error}");
    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("a file");
    let error = Store::open(config(&file)).expect_err("no folder");
    assert!(error.to_string().contains("cannot create the store"), "{error}");
    let (store, _) = open(dir.path());
    assert_eq!(Page::new(1, 64 << 10).write(&store), Err(Fault::Full), "larger than a segment");
    Page::new(2, 40 << 10).write(&store).expect("the store goes on");
}

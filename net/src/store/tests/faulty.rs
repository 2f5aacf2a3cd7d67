//! A disk that fails: whoever asked learns it, the rest goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use super::*;
use crate::store::faults::{Asked, Faults};

fn faulty(dir: &Path) -> (Store, Arc<Asked>) {
    let asked = Arc::new(Asked::default());
    let config = StoreConfig { faults: Faults::asked(Arc::clone(&asked)), ..config(dir) };
    (Store::open(config).expect("opens").0, asked)
}

fn set(which: &AtomicI32, number: i32) {
    which.store(number, Ordering::Relaxed);
}

#[test]
fn a_write_that_fails_is_a_fault_and_the_store_goes_on() {
    for (number, fault) in [(libc::ENOSPC, Fault::Full), (libc::EDQUOT, Fault::Full), (libc::EIO, Fault::Io)] {
        let dir = folder();
        let (store, asked) = faulty(dir.path());
        let pages: Vec<Page> = (0..4).map(|number| Page::new(number, 9000)).collect();
        pages[0].write(&store).expect("room");
        set(&asked.write, number);
        assert_eq!(pages[1].write(&store), Err(fault));
        assert_eq!(store.discard(&[pages[3].key]), Ok(()), "nothing to write");
        pages[0].read(&store).expect("reads go on");
        assert_eq!(pages[1].read(&store), Err(Fault::Missing));
        set(&asked.write, 0);
        pages[1].write(&store).expect("the disk works again");
        store.settle();
        assert!(store.stats().io_errors > 0);
        let crashed = image(&store);
        for store in [store, open(crashed.path()).0] {
            assert!(pages[..2].iter().all(|page| page.read(&store).is_ok()));
        }
    }
}

#[test]
fn a_sync_that_fails_acknowledges_nothing() {
    let dir = folder();
    let (store, asked) = faulty(dir.path());
    let pages: Vec<Page> = (0..3).map(|number| Page::new(number, 9000)).collect();
    pages[0].write(&store).expect("room");
    set(&asked.sync, libc::EIO);
    assert_eq!(write(&store, &pages[1..]), [Err(Fault::Io); 2]);
    assert_eq!(store.contains(&[pages[0].key, pages[1].key], ROOT), [true, false]);
    set(&asked.sync, 0);
    pages[1].write(&store).expect("in another segment");
    store.settle();
    drop(store);
    let (store, _) = open(dir.path());
    assert!(pages[..2].iter().all(|page| page.read(&store).is_ok()));
}

#[test]
fn a_read_that_fails_is_no_damage() {
    let dir = folder();
    let (store, asked) = faulty(dir.path());
    let page = Page::new(1, 20000);
    page.write(&store).expect("room");
    set(&asked.read, libc::EIO);
    assert_eq!(page.read(&store), Err(Fault::Io));
    set(&asked.read, 0);
    page.read(&store).expect("is still known");
    assert_eq!(store.stats().damaged, 0);
}

/// While one sync is under way four writers finish their writes: one more sync serves them all, and none returns before.
#[test]
fn writers_share_a_sync() {
    let dir = folder();
    let (store, asked) = faulty(dir.path());
    Page::new(0, 300).write(&store).expect("room");
    let until = |is_so: &dyn Fn() -> bool| {
        while !is_so() {
            std::thread::yield_now();
        }
    };
    let begun = asked.syncs.load(Ordering::Relaxed);
    let ended = AtomicI32::new(0);
    std::thread::scope(|scope| {
        let (store, ended) = (&store, &ended);
        let write = move |number| {
            Page::new(number, 300).write(store).expect("room");
            ended.fetch_add(1, Ordering::Relaxed);
        };
        let gate = asked.gate.lock().expect("whole");
        scope.spawn(move || write(1));
        until(&|| asked.syncs.load(Ordering::Relaxed) == begun + 1);
        for number in 2..6 {
            scope.spawn(move || write(number));
        }
        until(&|| store.0.shared.log.written() == 6);
        assert_eq!(ended.load(Ordering::Relaxed), 0, "nothing is acknowledged before its sync");
        drop(gate);
    });
    assert_eq!(asked.syncs.load(Ordering::Relaxed), begun + 2);
    assert_eq!(ended.load(Ordering::Relaxed), 5);
}

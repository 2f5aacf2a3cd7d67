//! The storage lane over a disk and a store: what is found, what is durable, and when.

use pd_core::id::HostPage;
use pd_core::op::Object;

use super::tests::Bench;
use super::*;
use crate::disk::{Disk, DiskSpec};
use crate::store::Store;

const QUERY: u64 = 50;
const READ: u64 = 200;
const WRITE: u64 = 300;
const FSYNC: u64 = 5_000;

pub(super) fn bench(workers: u32) -> Bench {
    let mut bench = Bench::new(workers);
    let spec = DiskSpec {
        read_bytes_per_second: 1_000_000_000,
        write_bytes_per_second: 1_000_000_000,
        read_iops: 1_000_000_000,
        write_iops: 1_000_000_000,
        read_latency_ns: READ,
        write_latency_ns: WRITE,
        queue_depth: 64,
        fsync_ns: FSYNC,
    };
    bench.fabric.depots.push(Depot::new("l3".into(), Disk::new(spec), Store::new(None), QUERY));
    bench.lanes[0].spec.store = Some(0);
    bench
}

fn objects(keys: &[u128]) -> Vec<Object> {
    let object = |(index, key): (u32, &u128)| Object {
        key: PageKey(*key),
        parent: PageKey(0),
        page: HostPage(index),
        tokens: Vec::new(),
    };
    (0..).zip(keys).map(object).collect()
}

#[test]
fn a_persist_is_done_when_its_fsync_is() {
    let mut bench = bench(1);
    let op = bench.start(0, &[], Command::Persist(objects(&[1, 2])));
    bench.all();
    assert_eq!(bench.end(0, op), (WRITE + 2_000 + FSYNC, &Outcome::Moved));
    assert_eq!(bench.fabric.depots[0].store.volatile_count(), 0);
}

#[test]
fn a_query_says_for_each_key_whether_it_is_there() {
    let mut bench = bench(1);
    bench.start(0, &[], Command::Persist(objects(&[1])));
    bench.all();
    let before = bench.now.0;
    let op = bench.start(0, &[], Command::Query(vec![PageKey(1), PageKey(2)]));
    bench.all();
    assert_eq!(bench.end(0, op), (before + QUERY, &Outcome::Found(vec![true, false])));
}

#[test]
fn a_prefetch_names_each_object_that_it_could_not_use() {
    let mut bench = bench(1);
    bench.start(0, &[], Command::Persist(objects(&[1, 2, 3])));
    bench.all();
    let depot = &mut bench.fabric.depots[0];
    depot.store.tear(PageKey(2));
    depot.store.remove(PageKey(3));
    depot.store.put(PageKey(3), PageKey(0), PageKey(99), 1_000).expect("room");
    let op = bench.start(0, &[], Command::Prefetch(objects(&[1, 2, 3, 4])));
    bench.all();
    let expected = vec![(1, Fault::Checksum), (2, Fault::Namespace), (3, Fault::Missing)];
    assert_eq!(bench.end(0, op).1, &Outcome::Partly(expected));
}

#[test]
fn a_prefetch_of_nothing_costs_a_query() {
    let mut bench = bench(1);
    let op = bench.start(0, &[], Command::Prefetch(objects(&[1])));
    bench.all();
    assert_eq!(bench.end(0, op), (QUERY, &Outcome::Partly(vec![(0, Fault::Missing)])));
}

#[test]
fn a_full_store_refuses_what_does_not_fit() {
    let mut bench = bench(1);
    bench.fabric.depots[0].store = Store::new(Some(1_500));
    let op = bench.start(0, &[], Command::Persist(objects(&[1, 2])));
    bench.all();
    assert_eq!(bench.end(0, op).1, &Outcome::Partly(vec![(1, Fault::Full)]));
}

#[test]
fn a_scan_lists_what_is_of_this_namespace_and_a_wipe_removes_only_that() {
    let mut bench = bench(1);
    bench.start(0, &[], Command::Persist(objects(&[1, 2])));
    bench.all();
    bench.fabric.depots[0].store.put(PageKey(5), PageKey(0), PageKey(99), 1_000).expect("room");
    let scan = bench.start(0, &[], Command::Scan { after: None });
    bench.all();
    let Outcome::Scanned { keys, next: None, foreign: 1, torn: 0 } = bench.end(0, scan).1 else {
        panic!("{:?}", bench.end(0, scan).1)
    };
    assert_eq!(keys.iter().map(|(key, _)| key.0).collect::<Vec<_>>(), [1, 2]);
    bench.start(0, &[], Command::Wipe);
    bench.all();
    assert_eq!(bench.fabric.depots[0].store.count(), 1);
}

#[test]
fn a_discard_removes_its_keys() {
    let mut bench = bench(1);
    bench.start(0, &[], Command::Persist(objects(&[1, 2])));
    bench.all();
    bench.start(0, &[], Command::Discard(vec![PageKey(1)]));
    bench.all();
    assert!(!bench.fabric.depots[0].store.contains(PageKey(1)));
    assert!(bench.fabric.depots[0].store.contains(PageKey(2)));
}

#[test]
fn without_a_store_every_command_fails() {
    let mut bench = Bench::new(1);
    let op = bench.start(0, &[], Command::Query(vec![PageKey(1)]));
    bench.all();
    assert_eq!(bench.end(0, op).1, &Outcome::Failed(Fault::Unreachable));
}

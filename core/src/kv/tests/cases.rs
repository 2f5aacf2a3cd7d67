//! One behaviour a test.

use super::{End, Rig, tokens};
use crate::config::{HostPolicy, KvConfig, PrefetchPolicy, StorageMode, WritePolicy};
use crate::event::{Control, Miss, MissReason};
use crate::id::RequestId;
use crate::kv::{Fetch, KvEvent};
use crate::op::{Command, Fault};
use crate::time::Instant;

fn reasons(misses: &[Miss]) -> alloc::vec::Vec<(&'static str, u32)> {
    misses.iter().map(|miss| (miss.reason.name(), miss.tokens)).collect()
}

#[test]
fn a_prompt_that_comes_again_is_found_up_to_its_last_token() {
    let mut rig = Rig::new(Rig::config(16, 0, StorageMode::None));
    let first = rig.serve(&tokens(0..14));
    assert_eq!(reasons(&first.misses), [("nothing_stored", 12), ("partial_page", 2)]);
    let second = rig.serve(&tokens(0..14));
    assert_eq!((second.device, reasons(&second.misses)), (12, alloc::vec![("partial_page", 2)]));
    let aligned = rig.serve(&tokens(0..12));
    assert_eq!((aligned.device, reasons(&aligned.misses)), (8, alloc::vec![("last_token", 4)]));
}

#[test]
fn lookup_changes_nothing() {
    let mut rig = Rig::new(Rig::config(16, 0, StorageMode::None));
    rig.serve(&tokens(0..13));
    let mut before = crate::digest::Digest::new();
    rig.kv.digest(&mut before);
    let hit = rig.kv.lookup(&rig.prompt(&tokens(0..9)));
    assert_eq!((hit.device, hit.host), (2, 0));
    let mut after = crate::digest::Digest::new();
    rig.kv.digest(&mut after);
    assert_eq!(before, after);
}

/// The original report: the store is full of pages after a restart, and the prompt is reloaded, not recomputed.
#[test]
fn after_a_restart_the_prompt_comes_back_from_storage() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Private));
    rig.drain();
    rig.serve(&tokens(0..101));
    assert_eq!(rig.store.len(), 25);
    rig.restart();
    let served = rig.serve(&tokens(0..101));
    assert_eq!((served.storage, reasons(&served.misses)), (100, alloc::vec![("partial_page", 1)]));
    let again = rig.serve(&tokens(0..101));
    assert_eq!((again.device, again.storage), (100, 0));
}

#[test]
fn a_hole_at_the_first_page_is_named_and_healed() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Private));
    rig.drain();
    rig.serve(&tokens(0..101));
    let first = *rig.prompt(&tokens(0..101)).keys.first().unwrap();
    rig.store.remove(&first);
    rig.restart();
    let served = rig.serve(&tokens(0..101));
    assert_eq!(served.misses[0], Miss { reason: MissReason::Hole { page: 0 }, tokens: 100 });
    rig.restart();
    assert_eq!(rig.serve(&tokens(0..101)).storage, 100, "the missing page was written when it was computed again");
}

#[test]
fn an_object_that_vanished_behind_the_index_is_a_miss_and_is_healed() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Private));
    rig.drain();
    rig.serve(&tokens(0..101));
    rig.restart();
    let tenth = rig.prompt(&tokens(0..101)).keys[10];
    rig.store.remove(&tenth);
    let served = rig.serve(&tokens(0..101));
    assert_eq!((served.storage, served.misses[0].reason), (40, MissReason::Vanished));
    assert!(rig.store.contains(&tenth));
}

#[test]
fn a_prompt_below_the_threshold_is_not_fetched_and_says_so() {
    let config = KvConfig { prefetch_threshold: 256, ..Rig::config(64, 64, StorageMode::Private) };
    let mut rig = Rig::new(config);
    rig.drain();
    rig.serve(&tokens(0..30));
    rig.restart();
    let served = rig.serve(&tokens(0..30));
    assert_eq!(reasons(&served.misses), [("too_short", 28), ("partial_page", 2)]);
}

#[test]
fn a_shared_store_is_asked_before_host_pages_are_reserved() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Shared));
    rig.serve(&tokens(0..41));
    rig.restart();
    let prompt = rig.prompt(&tokens(0..41));
    rig.kv.enter(&mut rig.bench.cx(), RequestId(99), &prompt, true);
    rig.settle();
    assert_eq!(rig.ops(|command| matches!(command, Command::Query(_))).len(), 1);
    assert_eq!(rig.kv.used().1, 0, "nothing is reserved for a question");
    rig.drain();
    assert_eq!(rig.admit(RequestId(99), &prompt).unwrap().storage, 40);
}

#[test]
fn every_write_policy_reaches_storage() {
    for policy in [WritePolicy::WriteThrough, WritePolicy::WriteThroughSelective, WritePolicy::WriteBack] {
        for host_policy in [HostPolicy::Inclusive, HostPolicy::Exclusive] {
            let config = KvConfig { write_policy: policy, host_policy, ..Rig::config(12, 64, StorageMode::Private) };
            let mut rig = Rig::new(config);
            rig.drain();
            for _ in 0..2 {
                rig.serve(&tokens(0..41));
            }
            // Pushes the first prompt out of L1.
            for round in 0..3 {
                let prompt = rig.prompt(&tokens(100 * round + 100..100 * round + 141));
                let request = rig.next_request();
                while rig.admit(request, &prompt).is_err() {
                    assert!(!rig.flying.is_empty(), "{policy:?}: full, and nothing on its way to change that");
                    rig.drain();
                }
                rig.compute(0);
                rig.release(0);
                rig.drain();
            }
            let prompt = rig.prompt(&tokens(0..41));
            let stored = prompt.keys.iter().filter(|&key| rig.store.contains(key)).count();
            assert_eq!(stored, 10, "{policy:?} {host_policy:?}");
        }
    }
}

#[test]
fn an_exclusive_host_tier_holds_what_the_device_does_not() {
    let config = KvConfig { host_policy: HostPolicy::Exclusive, ..Rig::config(12, 64, StorageMode::None) };
    let mut rig = Rig::new(config);
    rig.serve(&tokens(0..41));
    assert_eq!(rig.kv.used().1, 0);
    let other = rig.prompt(&tokens(100..141));
    let request = rig.next_request();
    assert!(rig.admit(request, &other).is_err(), "the first prompt is being saved");
    rig.drain();
    rig.admit(request, &other).unwrap();
    rig.compute(0);
    rig.release(0);
    rig.drain();
    assert!(rig.kv.used().1 > 0);
    let back = rig.prompt(&tokens(0..41));
    assert_eq!(rig.kv.lookup(&back).device + rig.kv.lookup(&back).host, 10);
}

#[test]
fn pages_being_loaded_can_be_shared_and_a_failed_load_tells_all_users() {
    let mut rig = Rig::new(Rig::config(24, 64, StorageMode::None));
    rig.serve(&tokens(0..41));
    // Out of L1, but in L2.
    for round in 1..4 {
        rig.serve(&tokens(100 * round..100 * round + 41));
    }
    let prompt = rig.prompt(&tokens(0..41));
    assert_eq!(rig.kv.lookup(&prompt).host, 10);
    assert_eq!(rig.admit(RequestId(50), &prompt).unwrap().host, 40);
    assert_eq!(rig.admit(RequestId(51), &prompt).unwrap().device, 40);
    assert_eq!(rig.leases[1].0.loading(), rig.leases[0].0.loading());
    let load = rig.ops(|command| matches!(command, Command::LoadBack(_)))[0];
    rig.end(load, End::Badly(Fault::Device));
    let told: alloc::vec::Vec<_> =
        rig.events.iter().map(|KvEvent::Shorter { request, pages, .. }| (request.0, *pages)).collect();
    assert_eq!(told, [(50, 0), (51, 0)]);
    assert_eq!(rig.kv.lookup(&prompt).device, 0, "pages that were not loaded cannot be found");
    rig.compute(0);
    assert_eq!(rig.kv.lookup(&prompt).device, 10, "computed again, they can");
    rig.compute(1);
    rig.release(0);
    rig.release(0);
    rig.drain();
}

#[test]
fn a_failed_write_is_tried_again_after_a_pause() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Private));
    rig.drain();
    let prompt = rig.prompt(&tokens(0..9));
    rig.admit(RequestId(1), &prompt).unwrap();
    rig.compute(0);
    rig.release(0);
    let backup = rig.ops(|command| matches!(command, Command::Backup(_)))[0];
    rig.end(backup, End::Well);
    let persist = rig.ops(|command| matches!(command, Command::Persist(_)))[0];
    rig.end(persist, End::Badly(Fault::Full));
    assert!(rig.flying.is_empty());
    let (at, _) = rig.kv.deadline().expect("a retry is planned");
    assert!(at > rig.bench.now);
    rig.bench.now = at;
    rig.settle();
    rig.drain();
    assert_eq!(rig.store.len(), 2);
}

#[test]
fn a_flush_hides_everything_at_once_and_frees_what_is_in_use_later() {
    let mut rig = Rig::new(Rig::config(32, 64, StorageMode::Private));
    rig.drain();
    rig.serve(&tokens(0..41));
    let prompt = rig.prompt(&tokens(0..41));
    rig.admit(RequestId(1), &prompt).unwrap();
    rig.kv.control(&mut rig.bench.cx(), Control::Flush);
    rig.settle();
    assert_eq!(rig.kv.lookup(&prompt).device, 0);
    rig.compute(0);
    rig.release(0);
    rig.drain();
    assert_eq!(rig.kv.used(), (0, 0));
    assert_eq!(rig.serve(&tokens(0..41)).storage, 40, "L3 is untouched");
}

#[test]
fn storage_can_be_detached_and_attached_under_load() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Private));
    rig.drain();
    let prompt = rig.prompt(&tokens(0..41));
    rig.admit(RequestId(1), &prompt).unwrap();
    rig.compute(0);
    rig.kv.control(&mut rig.bench.cx(), Control::DetachStorage);
    rig.settle();
    rig.drain();
    assert!(rig.store.is_empty(), "nothing is written to a store that was detached before the backup ended");
    rig.kv.control(&mut rig.bench.cx(), Control::AttachStorage);
    rig.settle();
    rig.drain();
    rig.release(0);
    rig.drain();
    assert_eq!(rig.store.len(), 10, "what is in L2 goes down after the attach");
    rig.kv.control(&mut rig.bench.cx(), Control::ClearStorage);
    rig.settle();
    rig.drain();
    assert!(rig.store.is_empty());
}

#[test]
fn the_quota_discards_the_least_recently_used_objects() {
    let config = KvConfig { storage_pages_max: 12, ..Rig::config(64, 64, StorageMode::Private) };
    let mut rig = Rig::new(config);
    rig.drain();
    rig.serve(&tokens(0..41));
    rig.serve(&tokens(100..141));
    assert_eq!(rig.store.len(), 12);
    let newer = rig.prompt(&tokens(100..141));
    assert!(newer.keys.iter().all(|key| rig.store.contains(key)));
    let older = rig.prompt(&tokens(0..41));
    assert!(older.keys[..2].iter().all(|key| rig.store.contains(key)), "ends of chains go first");
}

#[test]
fn the_prefetch_deadline_runs_from_the_first_blocked_admission() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Private));
    rig.drain();
    rig.serve(&tokens(0..41));
    rig.restart();
    let prompt = rig.prompt(&tokens(0..41));
    rig.kv.enter(&mut rig.bench.cx(), RequestId(9), &prompt, true);
    rig.settle();
    rig.bench.now = Instant(50_000_000_000);
    let Fetch::Wait(deadline) = rig.kv.ready(&mut rig.bench.cx(), RequestId(9), false) else {
        panic!("pages are coming")
    };
    // 2 s and 0.1 s per 1,024 tokens, of which there are 40.
    assert_eq!(deadline.0, 52_000_000_000 + 100_000_000 * 40 / 1024);
    rig.bench.now = deadline;
    assert_eq!(rig.kv.ready(&mut rig.bench.cx(), RequestId(9), false), Fetch::Go);
    let served = rig.admit(RequestId(9), &prompt).unwrap();
    assert_eq!(served.misses[0], Miss { reason: MissReason::Timeout, tokens: 40 });
    // What was on its way arrives as cache.
    rig.drain();
    rig.compute(0);
    rig.release(0);
    rig.drain();
}

#[test]
fn wait_complete_waits_and_best_effort_waits_no_longer_than_computing_takes() {
    for (policy, patient) in [(PrefetchPolicy::WaitComplete, true), (PrefetchPolicy::BestEffort, false)] {
        let config = KvConfig { prefetch_policy: policy, ..Rig::config(64, 64, StorageMode::Private) };
        let mut rig = Rig::new(config);
        rig.drain();
        rig.serve(&tokens(0..41));
        rig.restart();
        let prompt = rig.prompt(&tokens(0..41));
        rig.kv.enter(&mut rig.bench.cx(), RequestId(9), &prompt, true);
        rig.settle();
        assert!(matches!(rig.kv.ready(&mut rig.bench.cx(), RequestId(9), false), Fetch::Wait(_)));
        rig.bench.now = Instant(3_600_000_000_000);
        assert_eq!(matches!(rig.kv.ready(&mut rig.bench.cx(), RequestId(9), false), Fetch::Wait(_)), patient);
        rig.drain();
        assert_eq!(rig.kv.ready(&mut rig.bench.cx(), RequestId(9), false), Fetch::Go);
        rig.kv.leave(RequestId(9));
        rig.settle();
    }
}

#[test]
fn a_prefetch_without_room_is_parked_and_tried_again() {
    let mut rig = Rig::new(Rig::config(64, 12, StorageMode::Private));
    rig.drain();
    rig.serve(&tokens(0..41));
    rig.serve(&tokens(100..141));
    rig.restart();
    let first = rig.prompt(&tokens(0..41));
    let second = rig.prompt(&tokens(100..141));
    rig.kv.enter(&mut rig.bench.cx(), RequestId(1), &first, true);
    rig.kv.enter(&mut rig.bench.cx(), RequestId(2), &second, true);
    rig.settle();
    assert_eq!(rig.ops(|command| matches!(command, Command::Prefetch(_))).len(), 2);
    rig.drain();
    assert_eq!(rig.admit(RequestId(1), &first).unwrap().storage, 40);
    rig.drain();
    rig.compute(0);
    rig.release(0);
    rig.drain();
    let served = rig.admit(RequestId(2), &second).unwrap();
    assert!(served.storage > 0, "{served:?}");
    rig.drain();
    rig.compute(0);
    rig.release(0);
}

#[test]
fn a_request_that_leaves_gives_up_its_fetch_and_nothing_leaks() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Private));
    rig.drain();
    rig.serve(&tokens(0..41));
    rig.restart();
    let prompt = rig.prompt(&tokens(0..41));
    rig.kv.enter(&mut rig.bench.cx(), RequestId(1), &prompt, true);
    rig.kv.leave(RequestId(1));
    rig.settle();
    assert!(rig.flying.is_empty(), "a batch that no lane has is not started");
    assert_eq!(rig.kv.used(), (0, 0));
    rig.kv.enter(&mut rig.bench.cx(), RequestId(2), &prompt, true);
    rig.settle();
    rig.kv.leave(RequestId(2));
    rig.drain();
    assert_eq!(rig.kv.used(), (0, 10), "a batch that was with the lane ends as cache");
}

#[test]
fn two_sequences_that_compute_the_same_page_keep_their_own_copy_until_release() {
    let mut rig = Rig::new(Rig::config(32, 0, StorageMode::None));
    let prompt = rig.prompt(&tokens(0..41));
    rig.admit(RequestId(1), &prompt).unwrap();
    rig.admit(RequestId(2), &prompt).unwrap();
    rig.compute(0);
    rig.compute(1);
    assert_eq!(rig.kv.used().0, 22);
    rig.release(0);
    rig.release(0);
    assert_eq!(rig.kv.used().0, 10);
}

#[test]
fn other_namespaces_are_not_found() {
    let mut rig = Rig::new(Rig::config(32, 32, StorageMode::Private));
    rig.drain();
    rig.serve(&tokens(0..41));
    let tenant = crate::testkit::prompt(crate::id::PageKey(8), 4, &tokens(0..41));
    assert_eq!(rig.kv.lookup(&tenant).device, 0);
}

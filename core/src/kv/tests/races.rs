//! Moves that end late, in another order than they began, or badly again and again.

use super::{End, Rig, tokens};
use crate::config::{KvConfig, StorageMode, WritePolicy};
use crate::event::{Control, MissReason};
use crate::id::{OpId, RequestId};
use crate::kv::KvEvent;
use crate::op::{Command, Fault, Outcome};

impl Rig {
    fn order(&mut self, control: Control) {
        self.kv.control(&mut self.bench.cx(), control);
        self.settle();
    }

    fn only(&self, want: fn(&Command) -> bool) -> OpId {
        *self.ops(want).last().expect("such an operation is in flight")
    }

    fn answer(&mut self, op: OpId, outcome: Outcome) {
        self.flying.remove(&op).expect("an operation in flight");
        self.bench.ops.finish(op);
        self.kv.on_done(&mut self.bench.cx(), op, outcome);
        self.settle();
    }
}

#[test]
fn an_answer_to_an_earlier_wait_of_a_request_is_not_taken_for_the_new_one() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Shared));
    rig.serve(&tokens(0..41));
    rig.restart();
    let prompt = rig.prompt(&tokens(0..41));
    rig.kv.enter(&mut rig.bench.cx(), RequestId(9), &prompt, true);
    rig.settle();
    let first = rig.only(|command| matches!(command, Command::Query(_)));
    rig.kv.leave(RequestId(9));
    rig.kv.enter(&mut rig.bench.cx(), RequestId(9), &prompt, true);
    rig.settle();
    rig.end(first, End::Badly(Fault::Unreachable));
    rig.drain();
    assert_eq!(rig.admit(RequestId(9), &prompt).unwrap().storage, 40);
}

#[test]
fn a_scan_from_before_a_detach_does_not_end_the_next_one() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Private));
    rig.drain();
    rig.serve(&tokens(0..41));
    rig.restart();
    rig.order(Control::DetachStorage);
    rig.order(Control::AttachStorage);
    let first = rig.only(|command| matches!(command, Command::Scan { .. }));
    rig.order(Control::DetachStorage);
    rig.order(Control::AttachStorage);
    let empty = Outcome::Scanned { keys: alloc::vec![], next: None, foreign: 0, torn: 0 };
    rig.answer(first, empty);
    rig.drain();
    assert_eq!(rig.kv.stored(), 10);
}

#[test]
fn what_was_being_written_when_l3_was_cleared_does_not_count_as_stored() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Private));
    rig.drain();
    let prompt = rig.prompt(&tokens(0..41));
    rig.admit(RequestId(1), &prompt).unwrap();
    rig.compute(0);
    rig.release(0);
    let backup = rig.only(|command| matches!(command, Command::Backup(_)));
    rig.end(backup, End::Well);
    rig.order(Control::ClearStorage);
    // The write ends first, the wipe after it.
    rig.drain();
    assert_eq!((rig.store.len(), rig.kv.stored()), (0, 0));
    rig.serve(&tokens(0..41));
    assert_eq!(rig.store.len(), 10, "what L2 has goes down again when it is used");
}

#[test]
fn nothing_is_written_before_a_wipe_has_ended() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Private));
    rig.drain();
    rig.order(Control::ClearStorage);
    let wipe = rig.only(|command| matches!(command, Command::Wipe));
    let prompt = rig.prompt(&tokens(0..41));
    rig.admit(RequestId(1), &prompt).unwrap();
    rig.compute(0);
    rig.release(0);
    let backup = rig.only(|command| matches!(command, Command::Backup(_)));
    rig.end(backup, End::Well);
    if let Some(&persist) = rig.ops(|command| matches!(command, Command::Persist(_))).first() {
        rig.end(persist, End::Well);
    }
    rig.end(wipe, End::Well);
    rig.drain();
    assert_eq!((rig.store.len(), rig.kv.stored()), (10, 10));
}

#[test]
fn a_clear_during_the_scan_ends_it() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Private));
    rig.drain();
    rig.serve(&tokens(0..41));
    let config = rig.kv.config().clone();
    let store = core::mem::take(&mut rig.store);
    rig = Rig { store, ..Rig::new(config) };
    let scan = rig.only(|command| matches!(command, Command::Scan { .. }));
    let seen = rig.carry_out(&Command::Scan { after: None });
    rig.order(Control::ClearStorage);
    rig.answer(scan, seen);
    rig.drain();
    assert_eq!((rig.store.len(), rig.kv.stored()), (0, 0));
}

#[test]
fn a_shared_store_that_lost_a_page_is_healed() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Shared));
    rig.serve(&tokens(0..41));
    rig.store.clear();
    rig.order(Control::Flush);
    rig.serve(&tokens(0..41));
    assert_eq!(rig.store.len(), 10);
}

#[test]
fn a_shared_store_is_not_written_what_was_just_read_from_it() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Shared));
    rig.serve(&tokens(0..41));
    rig.restart();
    let written = rig.bench.metrics.persist_pages;
    assert_eq!(rig.serve(&tokens(0..41)).storage, 40);
    assert_eq!(rig.bench.metrics.persist_pages, written);
}

#[test]
fn a_detach_is_the_reason_why_pages_were_not_fetched() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::Shared));
    rig.serve(&tokens(0..41));
    rig.restart();
    let prompt = rig.prompt(&tokens(0..41));
    rig.kv.enter(&mut rig.bench.cx(), RequestId(9), &prompt, true);
    rig.settle();
    rig.order(Control::DetachStorage);
    assert_eq!(rig.admit(RequestId(9), &prompt).unwrap().misses[0].reason, MissReason::StorageFailed);
    rig.drain();
}

#[test]
fn a_copy_to_l2_that_always_fails_does_not_keep_requests_out() {
    let config = KvConfig { write_policy: WritePolicy::WriteBack, ..Rig::config(12, 64, StorageMode::None) };
    let mut rig = Rig::new(config);
    rig.serve(&tokens(0..41));
    let prompt = rig.prompt(&tokens(100..141));
    let mut tries = 0;
    while rig.admit(RequestId(9), &prompt).is_err() {
        for op in rig.ops(|command| matches!(command, Command::Backup(_))) {
            rig.end(op, End::Badly(Fault::Device));
        }
        tries += 1;
        assert!(tries < 20, "the pages are given up at last");
    }
}

#[test]
fn failed_writes_of_pages_that_are_gone_are_forgotten() {
    let mut rig = Rig::new(Rig::config(64, 12, StorageMode::Private));
    rig.drain();
    for round in 0..20 {
        let prompt = rig.prompt(&tokens(100 * round..100 * round + 41));
        rig.admit(RequestId(1), &prompt).unwrap();
        rig.compute(0);
        rig.release(0);
        while let Some((&op, command)) = rig.flying.first_key_value() {
            let bad = matches!(command, Command::Persist(_));
            rig.end(op, if bad { End::Badly(Fault::Full) } else { End::Well });
        }
        rig.bench.now.0 += 120_000_000_000;
    }
    for _ in 0..10 {
        rig.bench.now.0 += 120_000_000_000;
        rig.settle();
        for op in rig.ops(|command| matches!(command, Command::Persist(_))) {
            rig.end(op, End::Badly(Fault::Full));
        }
    }
    assert!(rig.kv.hicache.failures_known() <= 12, "{} failures are remembered", rig.kv.hicache.failures_known());
}

#[test]
fn uses_that_a_store_cannot_be_told_of_are_bounded() {
    let config = KvConfig { storage_pages_max: 12, ..Rig::config(64, 64, StorageMode::Private) };
    let mut rig = Rig::new(config);
    // The scan never ends.
    for round in 0..10_000 {
        let prompt = rig.prompt(&tokens(0..41));
        rig.admit(RequestId(round), &prompt).unwrap();
        if round == 0 {
            rig.compute(0);
        }
        rig.release(0);
    }
    assert!(
        rig.kv.hicache.uses_untold() <= crate::limits::TOUCH_KEYS_MAX,
        "{} uses are kept",
        rig.kv.hicache.uses_untold()
    );
}

#[test]
fn requests_that_left_are_not_parked() {
    let config = KvConfig { prefetch_capacity_per_mille: 0, ..Rig::config(64, 64, StorageMode::Private) };
    let mut rig = Rig::new(config);
    rig.drain();
    rig.serve(&tokens(0..41));
    rig.order(Control::Flush);
    let prompt = rig.prompt(&tokens(0..41));
    for _ in 0..100 {
        rig.kv.enter(&mut rig.bench.cx(), RequestId(9), &prompt, true);
        rig.settle();
        rig.kv.leave(RequestId(9));
    }
    assert_eq!(rig.kv.hicache.parked_requests(), 0);
}

#[test]
fn a_failed_load_does_not_shorten_a_later_admission_of_its_request() {
    let mut rig = Rig::new(Rig::config(24, 64, StorageMode::None));
    rig.serve(&tokens(0..41));
    for round in 1..4 {
        rig.serve(&tokens(100 * round..100 * round + 41));
    }
    let prompt = rig.prompt(&tokens(0..41));
    assert_eq!(rig.admit(RequestId(50), &prompt).unwrap().host, 40);
    let load = rig.only(|command| matches!(command, Command::LoadBack(_)));
    rig.release(0);
    rig.order(Control::Flush);
    let other = rig.prompt(&tokens(900..941));
    rig.admit(RequestId(50), &other).unwrap();
    rig.compute(0);
    rig.end(load, End::Badly(Fault::Device));
    assert_eq!((rig.events.len(), rig.leases[0].0.published_pages()), (0, 10));
}

/// A sink that asks another prefill worker has fresh pages while those of its last attempt are in quarantine.
#[test]
fn a_failed_load_is_told_to_the_later_of_two_leases_of_a_request() {
    let mut rig = Rig::new(Rig::config(24, 64, StorageMode::None));
    rig.serve(&tokens(0..41));
    for round in 1..4 {
        rig.serve(&tokens(100 * round..100 * round + 41));
    }
    let prompt = rig.prompt(&tokens(0..41));
    assert_eq!(rig.admit(RequestId(50), &prompt).unwrap().host, 40);
    assert_eq!(rig.admit(RequestId(50), &prompt).unwrap().device, 40);
    let load = rig.only(|command| matches!(command, Command::LoadBack(_)));
    rig.release(0);
    rig.end(load, End::Badly(Fault::Device));
    assert_eq!(rig.events, [KvEvent::Shorter { request: RequestId(50), load, pages: 0 }]);
    assert_eq!(rig.leases[0].0.published_pages(), 0);
    rig.compute(0);
    rig.release(0);
    rig.drain();
}

#[test]
fn a_selective_write_counts_each_use_once() {
    let config = KvConfig {
        write_policy: WritePolicy::WriteThroughSelective,
        write_through_hits: 3,
        ..Rig::config(64, 64, StorageMode::None)
    };
    let mut rig = Rig::new(config);
    for used in [0, 0, 10] {
        rig.serve(&tokens(0..41));
        assert_eq!(rig.kv.used().1, used);
    }
}

#[test]
fn a_prefetch_that_found_all_of_l2_pinned_is_tried_again_when_the_pins_go() {
    let mut rig = Rig::new(Rig::config(64, 10, StorageMode::Private));
    rig.drain();
    rig.serve(&tokens(0..41));
    rig.order(Control::Flush);
    // All of L2 is being written to L3.
    let other = rig.prompt(&tokens(100..141));
    rig.admit(RequestId(1), &other).unwrap();
    rig.compute(0);
    rig.release(0);
    let backup = rig.only(|command| matches!(command, Command::Backup(_)));
    rig.end(backup, End::Well);
    let persist = rig.only(|command| matches!(command, Command::Persist(_)));
    let prompt = rig.prompt(&tokens(0..41));
    rig.kv.enter(&mut rig.bench.cx(), RequestId(2), &prompt, true);
    rig.settle();
    assert_eq!(rig.kv.hicache.parked_requests(), 1);
    rig.end(persist, End::Well);
    assert_eq!(rig.ops(|command| matches!(command, Command::Prefetch(_))).len(), 1);
    rig.kv.leave(RequestId(2));
    rig.drain();
}

#[test]
fn what_a_flush_hid_is_no_hole() {
    let mut rig = Rig::new(Rig::config(64, 64, StorageMode::None));
    let prompt = rig.prompt(&tokens(0..41));
    rig.admit(RequestId(1), &prompt).unwrap();
    rig.compute(0);
    rig.order(Control::Flush);
    let served = rig.admit(RequestId(2), &prompt).unwrap();
    assert_eq!(served.misses[0].reason, MissReason::Evicted);
    rig.drain();
}

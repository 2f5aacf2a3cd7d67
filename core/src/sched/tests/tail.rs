//! Prompts whose head is computed while their tail is fetched from L3.
//!
//! A page takes 80 us to compute. [`drive`] lets time pass as a device and a disk would, so that a test says how fast the
//! disk really is, whatever the worker believes.

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use crate::config::{PrefetchPolicy, StorageMode, WorkerConfig};
use crate::cost::Cost;
use crate::event::{Control, Event, MissReason, Served};
use crate::id::{OpId, PageKey};
use crate::op::{Command, Fault, LaneKind};
use crate::time::Instant;

use super::toy::Toy;
use super::{config, words};

const TOKEN_NS: u64 = 20_000;
pub(super) const PAGE_NS: u64 = 4 * TOKEN_NS;
/// 40 pages, 39 of which a cache may serve.
const LENGTH: u32 = 160;

/// A worker whose L3 is believed to bring a page in `page_ns`.
pub(super) fn set_up(config: &mut WorkerConfig, page_ns: u64) {
    let kv = &mut config.kv;
    (kv.host_pages, kv.storage, kv.prefetch_threshold) = (128, StorageMode::Private, 4);
    (kv.page_bytes, kv.prefetch_capacity_per_mille) = (1_000_000, 1000);
    for (link, bytes_per_second) in
        [(&mut kv.storage_link, 1_000_000_000_000_000 / page_ns), (&mut kv.host_link, u64::MAX)]
    {
        (link.request_ns, link.bytes_per_second) = (0, bytes_per_second.try_into().expect("not 0"));
    }
}

/// Of a device on which only tokens count.
pub(super) fn cost() -> Cost {
    Cost::fixed(0, TOKEN_NS, 1_000, 1 << 20)
}

/// A new life over a store.
fn restarted(config: WorkerConfig, store: BTreeMap<PageKey, Vec<u64>>) -> Toy {
    let mut toy = Toy::new(config);
    toy.bench.cost = cost();
    toy.store = store;
    toy.settle();
    toy.run();
    toy
}

/// A worker that finds the prompts of these families in L3.
fn toy_with(families: &[u32], page_ns: u64, change: impl Fn(&mut WorkerConfig)) -> Toy {
    let mut config = config(128);
    set_up(&mut config, page_ns);
    change(&mut config);
    let mut first = restarted(config.clone(), BTreeMap::new());
    for &family in families {
        first.submit(u64::from(family), &words(family, LENGTH), 1);
        first.run();
    }
    restarted(config, first.store)
}

fn toy(page_ns: u64) -> Toy {
    toy_with(&[1], page_ns, |_| {})
}

/// Lets a device that computes a token in [`TOKEN_NS`] and a disk that reads a page in `page_ns` work until nothing moves,
/// or until `stop` says so.
fn drive(toy: &mut Toy, page_ns: u64, mut stop: impl FnMut(&Toy) -> bool) {
    let mut ends: BTreeMap<OpId, Instant> = BTreeMap::new();
    let mut disk_free = toy.bench.now;
    for _ in 0..10_000 {
        if stop(toy) {
            return;
        }
        let ready = toy.ready();
        for started in toy.lane.iter().filter(|started| ready.contains(&started.op)) {
            let now = toy.bench.now;
            ends.entry(started.op).or_insert_with(|| match &started.command {
                Command::Forward(batch) => {
                    let tokens: u32 = batch.runs().iter().map(|run| run.count).sum();
                    now.after_ns(u64::from(tokens) * TOKEN_NS)
                }
                Command::Prefetch(objects) => {
                    disk_free = disk_free.max(now).after_ns(objects.len() as u64 * page_ns);
                    disk_free
                }
                Command::LoadBack(_)
                | Command::Backup(_)
                | Command::Push(_)
                | Command::Query(_)
                | Command::Persist(_)
                | Command::Discard(_)
                | Command::Scan { .. }
                | Command::Wipe
                | Command::Touch(_) => now,
            });
        }
        let next = ready.iter().map(|op| (ends[op], *op)).min();
        let tick = [toy.sched.deadline(), toy.kv.deadline()].into_iter().flatten().map(|(at, _)| at).min();
        match (next, tick) {
            (Some((at, op)), tick) if tick.is_none_or(|tick| at <= tick) => {
                toy.bench.now = at.max(toy.bench.now);
                toy.complete(op, None);
            }
            (_, Some(at)) => toy.advance(at),
            (_, None) => return,
        }
    }
    panic!("it never comes to rest");
}

fn served(toy: &Toy, request: u64) -> Served {
    let of = toy.of(request);
    let mut served =
        of.iter().filter_map(|event| if let Event::Admitted(served) = event { Some(served) } else { None });
    let first = served.next().expect("it was admitted");
    assert!(served.next().is_none(), "it is told once");
    assert!(first.is_of(LENGTH), "each token has a source or a reason: {first:?}");
    Served::clone(first)
}

fn missed(served: &Served, reason: MissReason) -> u32 {
    served.misses.iter().filter(|miss| miss.reason == reason).map(|miss| miss.tokens).sum()
}

/// Time to the first token on a disk of this speed.
fn first_token_ns(toy: &mut Toy, page_ns: u64) -> u64 {
    let begin = toy.bench.now;
    toy.submit(9, &words(1, LENGTH), 2);
    drive(toy, page_ns, |toy| !toy.tokens(9).is_empty());
    toy.bench.now.ns_since(begin)
}

fn finish(mut toy: Toy, page_ns: u64, requests: &[u64]) -> Toy {
    drive(&mut toy, page_ns, |_| false);
    requests.iter().for_each(|&request| toy.check_answer(request));
    toy.check_rest();
    toy.kv.check_rest();
    toy
}

const ALL_COMPUTED_NS: u64 = LENGTH as u64 * TOKEN_NS;

#[test]
fn the_head_is_computed_while_the_tail_is_fetched() {
    let mut toy = toy(PAGE_NS);
    let took = first_token_ns(&mut toy, PAGE_NS);
    assert!(took * 10 <= ALL_COMPUTED_NS * 6, "{took} ns, {ALL_COMPUTED_NS} ns without L3");
    let toy = finish(toy, PAGE_NS, &[9]);
    let served = served(&toy, 9);
    assert!(served.storage >= 64, "{served:?}");
    assert_eq!(served.storage + missed(&served, MissReason::ComputedMeanwhile), LENGTH - 4);
    assert_eq!(toy.bench.metrics.storage_hit_tokens, u64::from(served.storage));
    assert_eq!(toy.bench.metrics.computed_tokens, u64::from(LENGTH - served.storage), "nothing is computed twice");
    assert_eq!(toy.bench.metrics.load_back_pages * 4, u64::from(served.storage));
    assert_eq!(toy.bench.metrics.marks["kv.tail_taken"], 1);
}

#[test]
fn a_fetch_that_takes_little_is_waited_for_and_one_that_takes_long_is_not_begun() {
    for (page_ns, storage) in [(PAGE_NS / 8, LENGTH - 4), (PAGE_NS * 8, 0)] {
        let mut toy = toy(page_ns);
        first_token_ns(&mut toy, page_ns);
        let toy = finish(toy, page_ns, &[9]);
        assert_eq!(served(&toy, 9).storage, storage);
        assert!(!toy.bench.metrics.marks.contains_key("hicache.prefetch_bidirectional"));
    }
}

#[test]
fn who_is_to_wait_for_all_does() {
    let mut toy = toy_with(&[1], PAGE_NS, |config| config.kv.prefetch_policy = PrefetchPolicy::WaitComplete);
    first_token_ns(&mut toy, PAGE_NS);
    assert_eq!(served(&finish(toy, PAGE_NS, &[9]), 9).storage, LENGTH - 4);
}

#[test]
fn a_disk_that_is_slower_than_believed_moves_the_meeting() {
    let took = |page_ns| {
        let mut toy = toy(PAGE_NS);
        let took = first_token_ns(&mut toy, page_ns);
        (took, served(&finish(toy, page_ns, &[9]), 9).storage)
    };
    let (fast, slow, hanging) = (took(PAGE_NS / 2), took(PAGE_NS * 3), took(PAGE_NS * 1000));
    assert!(fast.1 > slow.1 && slow.1 > 0, "{fast:?} {slow:?}");
    assert!(slow.0 <= ALL_COMPUTED_NS, "{slow:?}");
    // One batch of eight pages is waited for in vain.
    assert!(hanging.0 <= ALL_COMPUTED_NS + 8 * PAGE_NS && hanging.1 == 0, "{hanging:?}");
}

#[test]
fn what_was_not_begun_when_the_head_has_passed_it_is_given_up() {
    let mut toy = toy(PAGE_NS);
    toy.submit(9, &words(1, LENGTH), 2);
    let fetched = |toy: &Toy| {
        let pages = |command: &Command| if let Command::Prefetch(objects) = command { objects.len() } else { 0 };
        toy.lane.iter().map(|started| pages(&started.command)).sum::<usize>()
    };
    assert_eq!(fetched(&toy), 16, "one batch that is read and one behind it");
    assert_eq!(toy.kv.used().1, 32, "the batch that the chunks in flight compute has no room any more");
    drive(&mut toy, PAGE_NS * 1000, |toy| !toy.tokens(9).is_empty());
    assert_eq!(fetched(&toy), 16, "nothing else was begun");
    drop(finish(toy, PAGE_NS * 1000, &[9]));
}

#[test]
fn a_page_that_l3_fails_to_deliver_is_computed_and_has_its_reason() {
    for lost in [10, 25, 30, 38] {
        let mut toy = toy(PAGE_NS);
        let key = crate::testkit::prompt(super::toy::ROOT, 4, &words(1, LENGTH)).keys[lost];
        toy.store.remove(&key);
        first_token_ns(&mut toy, PAGE_NS);
        let toy = finish(toy, PAGE_NS, &[9]);
        let served = served(&toy, 9);
        let was_asked_for = toy.bench.metrics.prefetch_failed_pages > 0;
        assert_eq!(missed(&served, MissReason::Vanished), if was_asked_for { 4 } else { 0 }, "page {lost}");
        assert!(lost < 20 || was_asked_for && served.storage > 0, "page {lost}: {served:?}");
    }
}

#[test]
fn it_ends_anywhere_and_nothing_is_left() {
    let steps = {
        let mut toy = toy(PAGE_NS);
        let mut steps = 0;
        toy.submit(9, &words(1, LENGTH), 2);
        drive(&mut toy, PAGE_NS, |_| {
            steps += 1;
            false
        });
        steps
    };
    for last in 0..steps {
        let mut toy = toy(PAGE_NS);
        toy.submit(9, &words(1, LENGTH), 2);
        let mut step = 0;
        drive(&mut toy, PAGE_NS, |_| {
            step += 1;
            step > last
        });
        if toy.sched.waiting_on(crate::id::RequestId(9)).is_some() {
            toy.cancel(9);
        }
        drop(finish(toy, PAGE_NS, &[9]));
    }
}

/// Ends the `nth` command of a kind badly, and all others well.
fn fail_nth(toy: &mut Toy, is_it: impl Fn(&Command) -> bool, nth: usize) -> bool {
    let mut seen = 0;
    let mut has_failed = false;
    for _ in 0..10_000 {
        let Some(&op) = toy.ready().first() else { break };
        let started = toy.lane.iter().find(|started| started.op == op).expect("it is ready");
        let is_it = is_it(&started.command);
        let fault = if started.command.lane() == LaneKind::Compute { Fault::Device } else { Fault::Io };
        toy.bench.now.0 += PAGE_NS * 4;
        toy.complete(op, (is_it && seen == nth).then_some(fault));
        has_failed |= is_it && seen == nth;
        seen += usize::from(is_it);
    }
    has_failed
}

#[test]
fn a_forward_or_a_load_or_a_fetch_that_fails_costs_time_and_no_token() {
    let kinds: [fn(&Command) -> bool; 3] = [
        |command| matches!(command, Command::Forward(_)),
        |command| matches!(command, Command::LoadBack(_)),
        |command| matches!(command, Command::Prefetch(_)),
    ];
    for kind in kinds {
        let mut nth = 0;
        loop {
            let mut toy = toy(PAGE_NS);
            toy.submit(9, &words(1, LENGTH), 2);
            let has_failed = fail_nth(&mut toy, kind, nth);
            let toy = finish(toy, PAGE_NS, &[9]);
            assert!(matches!(toy.ending(9), Event::Finished { .. }));
            assert_eq!(toy.tokens(9).len(), 2, "one failure is made up for");
            served(&toy, 9);
            if !has_failed {
                break;
            }
            nth += 1;
        }
        assert!(nth > 0, "such a command is there to fail");
    }
}

#[test]
fn two_that_share_a_prompt_share_its_fetch() {
    let mut toy = toy(PAGE_NS);
    toy.submit(8, &words(1, LENGTH), 3);
    toy.submit(9, &words(1, LENGTH), 3);
    let toy = finish(toy, PAGE_NS, &[8, 9]);
    assert!(toy.bench.metrics.prefetch_pages <= 39, "each page comes once");
    assert!(toy.bench.metrics.computed_tokens < u64::from(2 * LENGTH));
    assert!(served(&toy, 9).misses.iter().map(|miss| miss.tokens).sum::<u32>() <= LENGTH / 2);
}

#[test]
fn what_is_fetched_while_it_waits_for_its_turn_is_not_computed() {
    let mut toy = toy_with(&[1, 2], PAGE_NS, |config| config.sched.max_running_requests = 1);
    toy.submit(8, &words(3, 2 * LENGTH), 64);
    toy.submit(9, &words(1, LENGTH), 2);
    let toy = finish(toy, PAGE_NS, &[8, 9]);
    assert_eq!(served(&toy, 9).storage, LENGTH - 4);
}

#[test]
fn orders_of_an_operator_end_it_in_time() {
    for control in [Control::Flush, Control::DetachStorage, Control::ClearStorage] {
        for last in 0..12 {
            let mut toy = toy(PAGE_NS);
            toy.submit(9, &words(1, LENGTH), 2);
            let mut step = 0;
            drive(&mut toy, PAGE_NS, |_| {
                step += 1;
                step > last
            });
            toy.kv.control(&mut toy.bench.cx(), control);
            toy.settle();
            let toy = finish(toy, PAGE_NS, &[9]);
            assert_eq!(toy.tokens(9).len(), 2);
            served(&toy, 9);
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    Submit {
        family: u32,
        length: u32,
        limit: u32,
    },
    Cancel {
        request: u64,
    },
    End {
        which: usize,
        well: bool,
    },
    Wait {
        pages: u64,
    },
    Control(u8),
    /// An object vanishes behind the index.
    Lose {
        which: usize,
    },
}

#[expect(clippy::disallowed_types, reason = "what the macro expands to")]
fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..4_u32, 60..LENGTH + 20, 1..24_u32)
            .prop_map(|(family, length, limit)| Action::Submit { family, length, limit }),
        1 => (0..30_u64).prop_map(|request| Action::Cancel { request }),
        16 => (0..6_usize, prop::bool::weighted(0.93)).prop_map(|(which, well)| Action::End { which, well }),
        6 => (1..12_u64).prop_map(|pages| Action::Wait { pages }),
        1 => (0..4_u8).prop_map(Action::Control),
        1 => (0..80_usize).prop_map(|which| Action::Lose { which }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is believed of the disk and whatever it does: tokens are right, and nothing takes longer than it did
    /// without, but for one wait.
    #[test]
    fn it_is_never_the_slower_way(believed in 20..400_u64, real in 1..1000_u64, overlap in any::<bool>()) {
        let mut toy = toy_with(&[1], PAGE_NS * believed / 100, |config| config.sched.overlap = overlap);
        let took = first_token_ns(&mut toy, PAGE_NS * real / 100);
        let is_both = toy.bench.metrics.marks.contains_key("hicache.prefetch_bidirectional");
        if is_both {
            prop_assert!(took <= ALL_COMPUTED_NS + 8 * PAGE_NS, "{took}");
        }
        drop(finish(toy, PAGE_NS * real / 100, &[9]));
    }

    /// Any order of ends, failures, cancels and orders: every request ends once with its tokens, and every page comes back.
    #[test]
    fn no_history_loses_a_page_or_a_token(
        actions in prop::collection::vec(action(), 1..120),
        (pages, host) in (48..160_u32, 20..128_u32),
        (mixed, overlap, best_effort) in (any::<bool>(), any::<bool>(), any::<bool>()),
    ) {
        let mut toy = toy_with(&[0, 1], PAGE_NS, |config| {
            (config.kv.gpu_pages, config.kv.host_pages) = (pages, host);
            (config.sched.mixed_chunk, config.sched.overlap) = (mixed, overlap);
            if best_effort {
                config.kv.prefetch_policy = PrefetchPolicy::BestEffort;
            }
        });
        let mut requests = 10;
        for action in actions {
            match action {
                Action::Submit { family, length, limit } => {
                    toy.submit(requests, &words(family, length), limit);
                    requests += 1;
                }
                Action::Cancel { request } => toy.cancel(10 + request),
                Action::End { which, well } => {
                    let ready = toy.ready();
                    if let Some(&op) = ready.get(which % ready.len().max(1)) {
                        let is_forward = |started: &super::toy::Started| {
                            started.op == op && matches!(started.command, Command::Forward(_))
                        };
                        let fault = if toy.lane.iter().any(is_forward) { Fault::Device } else { Fault::Io };
                        toy.complete(op, (!well).then_some(fault));
                    }
                }
                Action::Wait { pages } => {
                    let at = toy.bench.now.after_ns(pages * PAGE_NS);
                    toy.advance(at);
                }
                Action::Control(which) => {
                    let orders = [Control::Flush, Control::AttachStorage, Control::DetachStorage, Control::ClearStorage];
                    toy.kv.control(&mut toy.bench.cx(), orders[which as usize]);
                    toy.settle();
                }
                Action::Lose { which } => {
                    if let Some(key) = toy.store.keys().nth(which).copied() {
                        toy.store.remove(&key);
                    }
                }
            }
            for request in 10..requests {
                let id = crate::id::RequestId(request);
                prop_assert!(toy.sched.waiting_on(id).is_some() || !toy.of(request).is_empty(), "it waits or has ended");
            }
        }
        toy.run();
        for request in 10..requests {
            toy.check_answer(request);
        }
        toy.check_rest();
        toy.kv.check_rest();
    }
}

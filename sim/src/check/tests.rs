//! Negative controls for what no mutant reaches, and the words of a finding.

use pd_core::config::KvConfig;
use pd_core::id::{OpId, PageKey};
use pd_core::worker::Census;

use super::*;

fn found(log: &Log) -> Vec<(Checker, &str)> {
    log.violations.iter().map(|violation| (violation.checker, violation.what.as_str())).collect()
}

#[test]
fn a_tick_that_does_not_come_and_a_clock_that_goes_back_are_seen() {
    let (mut log, mut time) = (Log::default(), Time::new(2));
    log.now = Instant(10);
    time.expect_tick(1, Some(Instant(20)));
    time.on_event(&mut log, Instant(20), 1);
    assert_eq!(found(&log), [], "in time");
    time.on_event(&mut log, Instant(21), 1);
    assert_eq!(log.violations.len(), 1);
    time.on_event(&mut log, Instant(9), 0);
    assert_eq!(log.violations.len(), 2);
    assert!(log.violations.iter().all(|violation| violation.checker == Checker::Time));
}

#[test]
fn who_waits_for_nothing_is_named_and_who_waits_is_not() {
    let (mut log, mut progress) = (Log::default(), Progress::new(1));
    progress.waits(&mut log, 0, RequestId(3), Some(Waits::Queue));
    progress.waits(&mut log, 0, RequestId(3), Some(Waits::Op(OpId::default())));
    progress.waits(&mut log, 0, RequestId(3), None);
    assert_eq!(found(&log), []);
    progress.waits(&mut log, 0, RequestId(3), Some(Waits::Nothing));
    assert_eq!(
        log.violations[0].to_string(),
        "progress at 0.000000000s, worker 0, request 3: waits for nothing that can happen"
    );
}

#[test]
fn a_worker_at_rest_holds_nothing() {
    let (mut log, mut conservation) = (Log::default(), Conservation::new(1));
    let census = Census { gpu: 8, gpu_free: 5, gpu_idle: 3, ..Census::default() };
    conservation.settle(&mut log, 0, &census, true);
    conservation.settle(&mut log, 0, &Census { gpu_idle: 2, ..census }, false);
    assert_eq!(found(&log), []);
    conservation.settle(&mut log, 0, &Census { gpu_idle: 2, ..census }, true);
    conservation.settle(&mut log, 0, &Census { rooms: 1, ..census }, true);
    conservation.settle(&mut log, 0, &Census { gpu_idle: 4, ..census }, false);
    assert_eq!(log.violations.len(), 3);
}

#[test]
fn what_nobody_said_of_l3_is_not_believed() {
    let (mut log, mut conservation) = (Log::default(), Conservation::new(1));
    let keys: Vec<PageKey> = (0..3).map(PageKey).collect();
    conservation.storage_ended(0, &Command::Query(keys.clone()), &Outcome::Found(vec![true, false, true]));
    conservation.believes(&mut log, 0, &[keys[0], keys[2]]);
    assert_eq!(found(&log), []);
    conservation.believes(&mut log, 0, &[keys[1]]);
    conservation.storage_started(&mut log, 0, &Command::Wipe);
    conservation.believes(&mut log, 0, &[keys[0]]);
    assert_eq!(log.violations.len(), 2);
}

#[test]
fn small_workers_are_counted_often_and_large_ones_in_proportion() {
    let count = |gpu_pages, steps: u64| {
        let mut recounts = Recounts::new(&KvConfig { gpu_pages, host_pages: 0, ..KvConfig::default() });
        (0..steps).filter(|_| recounts.is_due()).count()
    };
    assert_eq!(count(100, 400), 400);
    assert_eq!(count(400_000, 400), 9, "1, 2, 4, ... 256");
    let often = count(400_000, 1 << 20);
    assert!((30..40).contains(&often), "{often}: 21 powers of two and 10 multiples");
}

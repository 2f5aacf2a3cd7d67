//! Series against a step function that is kept whole.

use proptest::prelude::*;

use super::*;

/// Every change, for a recount.
struct Naive(Vec<(u64, u64)>);

impl Naive {
    fn at(&self, time: u64) -> u64 {
        self.0.iter().rev().find(|(at, _)| *at <= time).map_or(0, |(_, value)| *value)
    }
}

fn record(changes: &[(u64, u64)], limit: usize) -> Level {
    let mut level = Level::new(limit);
    for &(at, value) in changes {
        level.set(Instant(at), value);
    }
    level
}

fn values(samples: &[Sample]) -> Vec<(u64, u64)> {
    samples.iter().map(|sample| (sample.at.0, sample.last)).collect()
}

#[test]
fn few_changes_are_kept_exactly() {
    let level = record(&[(10, 5), (20, 7), (1_000_000_000_000, 0)], 16);
    assert_eq!(level.width_ns(), 1);
    let samples = level.series(Instant(2_000_000_000_000), 16).samples;
    assert_eq!(values(&samples)[..4], [(0, 0), (10, 5), (20, 7), (1_000_000_000_000, 0)]);
}

#[test]
fn a_value_that_is_replaced_at_the_same_instant_was_never_there() {
    let level = record(&[(10, 5), (10, 900), (10, 6), (20, 0)], 16);
    assert_eq!(level.max(), 6);
    assert!(level.series(Instant(30), 16).samples.iter().all(|sample| sample.max <= 6));
}

#[test]
fn a_spike_survives_coarsening_as_the_maximum() {
    let mut changes: Vec<(u64, u64)> = (0..1000).map(|step| (step * 1000, 10 + step % 2)).collect();
    changes.insert(501, (500_500, 77));
    let samples = record(&changes, 8).series(Instant(1_000_000), 8).samples;
    assert!(samples.len() <= 8);
    assert_eq!(samples.iter().map(|sample| sample.max).max(), Some(77));
    assert!(samples.iter().all(|sample| sample.min <= sample.max));
}

#[test]
fn a_burst_after_a_long_idle_time_keeps_its_detail() {
    let hour = 3_600_000_000_000;
    let changes: Vec<(u64, u64)> = (0..100).map(|step| (hour + step * 1000, step + 1)).collect();
    let level = record(&changes, 128);
    assert_eq!(level.width_ns(), 1, "an idle hour costs no buckets");
}

proptest! {
    #[test]
    fn area_and_bounds_are_those_of_the_function(
        steps in proptest::collection::vec((0_u64..5000, 0_u64..50), 0..200),
        limit in 2_usize..40,
        later in 1_u64..3000,
    ) {
        let mut at = 0;
        let changes: Vec<(u64, u64)> = steps.iter().map(|&(gap, value)| { at += gap; (at, value) }).collect();
        let end = at + later;
        let naive = Naive(changes.clone());
        let level = record(&changes, limit);
        let samples = level.series(Instant(end), limit).samples;
        prop_assert!(samples.len() <= limit);
        let mut covered = 0;
        for (index, sample) in samples.iter().enumerate() {
            let (from, to) = (sample.at.0, (sample.at.0 + sample.span_ns).min(end));
            prop_assert!(from >= covered);
            // Between two samples the value stands still.
            for time in covered..from {
                prop_assert_eq!(naive.at(time), samples[index - 1].last);
            }
            let inside: Vec<u64> = (from..to).map(|time| naive.at(time)).collect();
            prop_assert_eq!(sample.min, *inside.iter().min().unwrap());
            prop_assert_eq!(sample.max, *inside.iter().max().unwrap());
            prop_assert_eq!(sample.last, naive.at(to - 1));
            let mean = inside.iter().sum::<u64>() as f64 / inside.len() as f64;
            prop_assert!((sample.mean - mean).abs() < 1e-6, "{} is not {mean}", sample.mean);
            covered = to;
        }
        for time in covered..end {
            prop_assert_eq!(naive.at(time), samples[samples.len() - 1].last);
        }
    }
}

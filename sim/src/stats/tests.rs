//! Percentiles, histograms and confidence intervals against naive ones.

use pd_core::rng::{Rng, Stream};
use proptest::prelude::*;

use super::*;

#[test]
fn percentiles_are_nearest_ranks() {
    let sorted = sorted((1..=100).rev());
    assert_eq!([0, 1, 10, 11, 500, 990, 999, 1000].map(|rank| sorted.percentile(rank)), [1, 1, 1, 2, 50, 99, 100, 100]);
    assert_eq!(sorted.summary(), Summary { count: 100, mean: 50.5, p50: 50, p90: 90, p99: 99, max: 100 });
    assert_eq!((sorted.count_until(0), sorted.count_until(10), sorted.count_until(1000)), (0, 10, 100));
}

#[test]
fn nothing_has_a_summary_of_zeros() {
    assert_eq!(Samples::new().finish().summary(), Summary::default());
    assert_eq!(LogHistogram::new().summary(), Summary::default());
    assert_eq!(Samples::new().batch_means(10), None);
    assert_eq!(Samples::new().batch_means(0), None);
}

#[test]
fn buckets_follow_each_other_without_gap_or_overlap() {
    let mut before = bucket(0);
    assert_eq!(before, 0);
    for value in 1..200_000 {
        let bucket = bucket(value);
        assert!(bucket == before || bucket == before + 1, "{value}");
        before = bucket;
    }
    assert!(bucket(u64::MAX) < 57 * 256 + 256);
}

#[test]
fn an_hour_of_nanoseconds_needs_little_memory() {
    let mut histogram = LogHistogram::new();
    histogram.push(3_600_000_000_000);
    assert!(histogram.counts.len() * 8 < 80_000);
}

#[test]
fn batch_means_of_a_constant_have_no_width() {
    let mut samples = Samples::new();
    samples.extend(std::iter::repeat_n(7, 1003));
    assert_eq!(samples.batch_means(10), Some(Interval { mean: 7.0, half_width: 0.0 }));
}

/// Coverage: of 400 intervals over independent uniform samples, about 95 % hold the true mean.
#[test]
fn batch_means_cover_the_mean_as_often_as_they_say() {
    let covered = (0..400)
        .filter(|seed| {
            let mut rng = Rng::new(*seed, Stream::Service, 0);
            let mut samples = Samples::new();
            samples.extend((0..2000).map(|_| rng.below(1001)));
            samples.batch_means(20).expect("enough samples").covers(500.0)
        })
        .count();
    assert!((365..=393).contains(&covered), "{covered} of 400");
}

#[test]
fn the_table_of_student_joins_its_continuation() {
    assert!((student_95(30) - student_95(31)).abs() < 0.01);
    assert!((student_95(u32::MAX) - 1.96).abs() < 1e-3);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_middle_of_a_bucket_is_within_half_a_percent(value in any::<u64>(), shift in 0_u32..64) {
        let value = value >> shift;
        let middle = middle(bucket(value));
        prop_assert_eq!(bucket(middle), bucket(value));
        prop_assert!(u128::from(middle.abs_diff(value)) * 200 <= u128::from(value));
    }

    #[test]
    fn a_histogram_agrees_with_exact_percentiles(
        values in prop::collection::vec((any::<u64>(), 10_u32..64).prop_map(|(value, shift)| value >> shift), 1..300),
        split in 0_usize..300,
        per_mille in 0_u32..=1000,
    ) {
        let exact = sorted(values.iter().copied());
        let (front, back) = values.split_at(split.min(values.len()));
        let mut histogram = LogHistogram::new();
        let mut other = LogHistogram::new();
        front.iter().for_each(|value| histogram.push(*value));
        back.iter().for_each(|value| other.push(*value));
        histogram.merge(&other);
        let (want, have) = (exact.percentile(per_mille), histogram.percentile(per_mille));
        prop_assert!(want.abs_diff(have) <= want / 200, "{have} instead of {want}");
        prop_assert_eq!(histogram.mean(), exact.mean());
        prop_assert_eq!(histogram.summary().max, exact.summary().max);
        prop_assert_eq!(histogram.count(), values.len() as u64);
    }
}

fn sorted(values: impl IntoIterator<Item = u64>) -> Sorted {
    let mut samples = Samples::new();
    samples.extend(values);
    samples.finish()
}

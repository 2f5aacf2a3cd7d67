//! Distributions as curves: some points of a cumulative distribution, enough to draw it and to read its tail.

use crate::stats::{LogHistogram, Sorted};

/// Points of a cumulative distribution: (share of the samples in per mille, the value that they do not exceed).
pub type Curve = Vec<(f64, u64)>;

/// All samples if there are few, else about 460 points, dense where the tail is.
#[must_use]
pub fn of_sorted(sorted: &Sorted) -> Curve {
    let values = sorted.values();
    let count = values.len();
    if count <= POINTS_ALL {
        return (1..).zip(values).map(|(rank, value)| (1000.0 * f64::from(rank) / count as f64, *value)).collect();
    }
    let at = |millionth: u64| {
        let rank = (count as u128 * u128::from(millionth)).div_ceil(1_000_000).max(1) as usize;
        (millionth as f64 / 1000.0, values[rank - 1])
    };
    shares().map(at).collect()
}

/// The same of a histogram, as far as it knows.
#[must_use]
pub fn of_histogram(histogram: &LogHistogram) -> Curve {
    if histogram.count() == 0 {
        return Curve::new();
    }
    let mut curve: Curve = (0..=1000).step_by(4).chain(991..1000).map(|per_mille| (f64::from(per_mille), 0)).collect();
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    curve.dedup();
    for (per_mille, value) in &mut curve {
        *value = histogram.percentile(*per_mille as u32);
    }
    if let Some(last) = curve.last_mut() {
        last.1 = histogram.summary().max;
    }
    curve
}

/// Millionths: quarter percents, then tenths of a percent from 98 % and hundredths from 99.9 %.
fn shares() -> impl Iterator<Item = u64> {
    (0..980_000).step_by(2500).chain((980_000..999_000).step_by(500)).chain((999_000..=1_000_000).step_by(50))
}

const POINTS_ALL: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Samples;

    fn sorted(values: impl IntoIterator<Item = u64>) -> Sorted {
        let mut samples = Samples::new();
        samples.extend(values);
        samples.finish()
    }

    #[test]
    fn few_samples_are_all_on_the_curve() {
        assert_eq!(of_sorted(&sorted([30, 10, 20, 20])), [(250.0, 10), (500.0, 20), (750.0, 20), (1000.0, 30)]);
        assert!(of_sorted(&sorted([])).is_empty());
    }

    #[test]
    fn many_samples_keep_their_percentiles_and_their_maximum() {
        let all = sorted(1..=100_000);
        let curve = of_sorted(&all);
        assert!(curve.len() < 500, "{} points", curve.len());
        assert!(curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "it only rises");
        for per_mille in [500, 900, 990, 1000] {
            let on_curve = curve.iter().find(|(share, _)| *share == f64::from(per_mille)).expect("a point of its own");
            assert_eq!(on_curve.1, all.percentile(per_mille));
        }
    }

    #[test]
    fn a_histogram_gives_a_rising_curve_up_to_its_maximum() {
        let mut histogram = LogHistogram::new();
        assert!(of_histogram(&histogram).is_empty());
        (1..=5000).for_each(|value| histogram.push(value * 1000));
        let curve = of_histogram(&histogram);
        assert!(curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "it only rises");
        assert_eq!(curve.last(), Some(&(1000.0, 5_000_000)));
    }
}

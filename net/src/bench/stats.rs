//! Numbers about numbers, as numpy computes them: percentiles between ranks, the standard deviation of the whole.

use serde::Serialize;

/// A distribution.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// Half are below.
    pub median: f64,
    /// The standard deviation.
    pub std: f64,
    /// 90 % are below.
    pub p90: f64,
    /// 95 % are below.
    pub p95: f64,
    /// 99 % are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// How many there were; all of the above are 0 if none.
    pub count: usize,
}

impl Spread {
    /// Of some values, in any order.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        if values.is_empty() {
            return Self::default();
        }
        values.sort_unstable_by(f64::total_cmp);
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        Self {
            mean,
            median: percentile(&values, 50.0),
            std: variance.sqrt(),
            p90: percentile(&values, 90.0),
            p95: percentile(&values, 95.0),
            p99: percentile(&values, 99.0),
            max: values[values.len() - 1],
            count: values.len(),
        }
    }

    /// The same in thousandths: seconds as milliseconds.
    #[must_use]
    pub fn in_ms(self) -> Self {
        let ms = |value: f64| value * 1000.0;
        Self {
            mean: ms(self.mean),
            median: ms(self.median),
            std: ms(self.std),
            p90: ms(self.p90),
            p95: ms(self.p95),
            p99: ms(self.p99),
            max: ms(self.max),
            count: self.count,
        }
    }
}

/// The value below which so many percent of sorted values lie, between two of them if need be.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = percent / 100.0 * (sorted.len() - 1) as f64;
    let below = sorted[rank.floor() as usize];
    let above = sorted[rank.ceil() as usize];
    below + (above - below) * rank.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are numpy's for the same values.
    #[test]
    fn it_computes_what_numpy_computes() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.mean, spread.median, spread.max, spread.count), (2.5, 2.5, 4.0, 4));
        let near = |one: f64, other: f64| assert!((one - other).abs() < 1e-12, "{one} {other}");
        near(spread.std, 1.118_033_988_749_895);
        near(spread.p90, 3.7);
        near(spread.p95, 3.85);
        near(spread.p99, 3.97);
        assert_eq!(Spread::of([7.0]).p99, 7.0);
        assert_eq!(Spread::of([]), Spread::default());
    }
}

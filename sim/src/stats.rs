//! Statistics of a run: exact percentiles, a histogram for millions of samples, and confidence of a mean.
//!
//! Samples are integers (ns, bytes, counts) and stay so up to the report: counts, sums and percentiles are exact or
//! bucketed in integers, floats appear only in what is returned to be read.

/// Samples in the order of arrival.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<u64>);

/// Samples in the order of size, for exact percentiles.
#[derive(Clone, Debug)]
pub struct Sorted {
    values: Vec<u64>,
    sum: u128,
}

/// A histogram of 256 linear buckets per power of two: 0.4 % wide, about 100 kB for samples up to hours in ns.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogHistogram {
    counts: Vec<u64>,
    count: u64,
    sum: u128,
    max: u64,
}

/// What a report says of a distribution. All 0 without samples.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Summary {
    /// Samples.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The median.
    pub p50: u64,
    /// 90 % are not above this.
    pub p90: u64,
    /// 99 % are not above this.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

/// A mean and how far off it may be, with 95 % confidence.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Interval {
    /// The estimate.
    pub mean: f64,
    /// Half the width of the interval.
    pub half_width: f64,
}

impl Samples {
    /// No samples.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sample.
    #[inline]
    pub fn push(&mut self, value: u64) {
        self.0.push(value);
    }

    /// The samples in order of arrival.
    #[must_use]
    pub fn values(&self) -> &[u64] {
        &self.0
    }

    /// Sorts once, to ask for percentiles.
    #[must_use]
    pub fn finish(self) -> Sorted {
        let mut values = self.0;
        values.sort_unstable();
        let sum = values.iter().copied().map(u128::from).sum();
        Sorted { values, sum }
    }

    /// The mean by the method of batch means: neighbours in a queue are correlated, means of long batches hardly are.
    /// The first `count % batches` samples are left out, as warm-up.
    ///
    /// None with fewer than two batches, or fewer samples than batches.
    #[must_use]
    pub fn batch_means(&self, batches: u32) -> Option<Interval> {
        let size = self.0.len().checked_div(batches as usize)?;
        if batches < 2 || size == 0 {
            return None;
        }
        let rest = self.0.len() - size * batches as usize;
        let means: Vec<f64> = self.0[rest..].chunks_exact(size).map(mean_of).collect();
        let count = f64::from(batches);
        let mean = means.iter().sum::<f64>() / count;
        let variance = means.iter().map(|batch| (batch - mean) * (batch - mean)).sum::<f64>() / (count - 1.0);
        Some(Interval { mean, half_width: student_95(batches - 1) * (variance / count).sqrt() })
    }
}

impl Extend<u64> for Samples {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, values: I) {
        self.0.extend(values);
    }
}

impl Sorted {
    /// The smallest sample that at least `per_mille` of all are not above (nearest rank); 0 without samples.
    #[must_use]
    pub fn percentile(&self, per_mille: u32) -> u64 {
        let rank = rank(self.values.len() as u64, per_mille);
        self.values.get(rank as usize).copied().unwrap_or(0)
    }

    /// The exact mean, rounded once; 0 without samples.
    #[must_use]
    pub fn mean(&self) -> f64 {
        ratio(self.sum, self.values.len() as u64)
    }

    /// How many samples are not above `limit`: the numerator of an SLO.
    #[must_use]
    pub fn count_until(&self, limit: u64) -> u64 {
        self.values.partition_point(|value| *value <= limit) as u64
    }

    /// The samples by size.
    #[must_use]
    pub fn values(&self) -> &[u64] {
        &self.values
    }

    /// The usual figures.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.values.len() as u64,
            mean: self.mean(),
            p50: self.percentile(500),
            p90: self.percentile(900),
            p99: self.percentile(990),
            max: self.values.last().copied().unwrap_or(0),
        }
    }
}

impl LogHistogram {
    /// No samples.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sample.
    #[inline]
    pub fn push(&mut self, value: u64) {
        self.push_many(value, 1);
    }

    /// Adds a sample that was seen `count` times.
    #[inline]
    pub fn push_many(&mut self, value: u64, count: u64) {
        if count == 0 {
            return;
        }
        let bucket = bucket(value);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += count;
        self.count += count;
        self.sum += u128::from(value) * u128::from(count);
        self.max = self.max.max(value);
    }

    /// Adds all samples of another histogram.
    pub fn merge(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// The middle of the bucket with the nearest-rank percentile: at most 0.2 % off; 0 without samples.
    #[must_use]
    pub fn percentile(&self, per_mille: u32) -> u64 {
        let rank = rank(self.count, per_mille);
        let mut before = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            before += count;
            if before > rank {
                return middle(bucket).min(self.max);
            }
        }
        0
    }

    /// The exact mean, rounded once; 0 without samples.
    #[must_use]
    pub fn mean(&self) -> f64 {
        ratio(self.sum, self.count)
    }

    /// Samples.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The exact sum of all samples.
    #[must_use]
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// The usual figures; `max` is exact.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.count,
            mean: self.mean(),
            p50: self.percentile(500),
            p90: self.percentile(900),
            p99: self.percentile(990),
            max: self.max,
        }
    }
}

impl Interval {
    /// The mean of independent samples, by Student's t. None without samples; one sample has no width that could be
    /// known, and gets an infinite one.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        let count = samples.len();
        if count == 0 {
            return None;
        }
        let mean = samples.iter().sum::<f64>() / count as f64;
        if count == 1 {
            return Some(Self { mean, half_width: f64::INFINITY });
        }
        let variance = samples.iter().map(|sample| (sample - mean) * (sample - mean)).sum::<f64>() / (count - 1) as f64;
        let freedom = u32::try_from(count - 1).unwrap_or(u32::MAX);
        Some(Self { mean, half_width: student_95(freedom) * (variance / count as f64).sqrt() })
    }

    /// True if the interval covers `value`.
    #[must_use]
    pub fn covers(&self, value: f64) -> bool {
        (value - self.mean).abs() <= self.half_width
    }
}

/// The index of the nearest rank, from 0.
fn rank(count: u64, per_mille: u32) -> u64 {
    let rank = (u128::from(count) * u128::from(per_mille.min(1000))).div_ceil(1000) as u64;
    rank.saturating_sub(1)
}

/// Values below 512 have a bucket each; above, the highest 9 bits name the bucket.
#[inline]
fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(SUB_BITS + 1);
    ((u64::from(shift) << SUB_BITS) + (value >> shift)) as usize
}

fn middle(bucket: usize) -> u64 {
    let shift = (bucket >> SUB_BITS).saturating_sub(1) as u32;
    let low = (bucket as u64 - (u64::from(shift) << SUB_BITS)) << shift;
    low + ((1 << shift) - 1) / 2
}

fn mean_of(values: &[u64]) -> f64 {
    ratio(values.iter().copied().map(u128::from).sum(), values.len() as u64)
}

fn ratio(sum: u128, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum as f64 / count as f64 }
}

/// The two-sided 95 % quantile of Student's t: a table, and above it 1.96 with the first term of its expansion.
fn student_95(freedom: u32) -> f64 {
    match STUDENT_95.get(freedom as usize - 1) {
        Some(quantile) => *quantile,
        None => 1.96 + 2.4 / f64::from(freedom),
    }
}

const SUB_BITS: u32 = 8;
const STUDENT_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

#[cfg(test)]
mod tests;

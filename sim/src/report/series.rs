//! A value over time in bounded memory: exact while it changes rarely, in buckets of a power of two of ns from then on.
//!
//! Knows nothing of what it measures. Driven by changes, so that an idle hour costs nothing and a burst is kept in
//! detail:
//!
//! ```text
//!   value    ▁▁▁▁▇▇▁▁▃▃▃▃▃▃▃▃▃▃▃▃▁▁▁
//!   buckets      |    |    |         |      only those in which it changes; min, max, area (value x ns) and last value
//!   in between            last value of the bucket before
//! ```
//!
//! 1. At most `limit` buckets: one more, and the width doubles until they fit. Time and sums are exact integers, so the
//!    area under a series does not depend on how often it was coarsened.
//! 2. A value counts for min and max only if it lasted: what is replaced at the same instant was never there.

use pd_core::time::Instant;

/// A step function of time that is being recorded.
#[derive(Clone, Debug)]
pub struct Level {
    buckets: Vec<Bucket>,
    limit: usize,
    /// The width of a bucket is 2 to this power, in ns.
    shift: u32,
    /// The present value, and since when it is booked.
    value: u64,
    since: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    index: u64,
    /// Over the values that lasted; `min > max` if none has yet.
    min: u64,
    max: u64,
    last: u64,
    /// Value x ns.
    area: u128,
}

/// One bucket of a finished series.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    /// Where it begins.
    pub at: Instant,
    /// How long it is; what follows up to the next sample has the value `last`.
    pub span_ns: u64,
    /// The smallest value in it.
    pub min: u64,
    /// The largest.
    pub max: u64,
    /// The mean over time.
    pub mean: f64,
    /// The value at its end.
    pub last: u64,
}

/// A series that has been recorded.
#[derive(Clone, PartialEq, Debug)]
pub struct Series {
    /// All samples begin at multiples of this; 1 if every change is a sample of its own.
    pub width_ns: u64,
    /// In the order of time.
    pub samples: Vec<Sample>,
}

impl Level {
    /// 0 from the start of the run on, in at most `limit` buckets.
    ///
    /// # Panics
    /// If `limit` is below 2.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        assert!(limit >= 2, "a series needs room for two buckets");
        Self { buckets: vec![Bucket::new(0, 0)], limit, shift: 0, value: 0, since: 0 }
    }

    /// The value is `value` from `now` on. A `now` before the last change counts as that.
    #[inline]
    pub fn set(&mut self, now: Instant, value: u64) {
        if value == self.value {
            return;
        }
        self.book(now.0.max(self.since));
        self.value = value;
        self.buckets.last_mut().expect("there is always a bucket").last = value;
    }

    /// Width of the buckets in ns; 1 as long as every change is kept.
    #[must_use]
    pub const fn width_ns(&self) -> u64 {
        1 << self.shift
    }

    /// The largest value that lasted.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.max).max().unwrap_or(0)
    }

    /// The series up to `end`, coarsened until it has at most `limit` samples.
    ///
    /// # Panics
    /// If `limit` is below 2.
    #[must_use]
    pub fn series(&self, end: Instant, limit: usize) -> Series {
        assert!(limit >= 2, "a series needs room for two buckets");
        let mut level = self.clone();
        level.limit = limit;
        // Booked up to the end, without a bucket for the end itself.
        if end.0 > level.since {
            let value = level.value;
            level.lasts(end.0 - 1, value);
            level.area(value, 1);
        }
        level.fit();
        let (shift, end) = (level.shift, level.since.max(end.0));
        let samples = level.buckets.iter().filter(|bucket| bucket.min <= bucket.max).map(|bucket| {
            let from = bucket.index << shift;
            let span_ns = (1 << shift).min(end.saturating_sub(from)).max(1);
            Sample {
                at: Instant(from),
                span_ns,
                min: bucket.min,
                max: bucket.max,
                mean: bucket.area as f64 / span_ns as f64,
                last: bucket.last,
            }
        });
        Series { width_ns: level.width_ns(), samples: samples.collect() }
    }

    /// Books the present value until `now` and opens the bucket of `now`.
    fn book(&mut self, now: u64) {
        let value = self.value;
        self.lasts(now, value);
        self.fit();
    }

    /// The present value lasts until `now`; the last bucket is that of `now` afterwards.
    fn lasts(&mut self, now: u64, value: u64) {
        let index = now >> self.shift;
        let open = self.buckets.last().expect("there is always a bucket").index;
        if index > open {
            let end = (open + 1) << self.shift;
            self.area(value, end - self.since);
            self.buckets.push(Bucket::new(index, value));
            self.since = index << self.shift;
        }
        self.area(value, now - self.since);
        self.since = now;
    }

    fn area(&mut self, value: u64, span_ns: u64) {
        if span_ns > 0 {
            let bucket = self.buckets.last_mut().expect("there is always a bucket");
            bucket.area += u128::from(value) * u128::from(span_ns);
            bucket.min = bucket.min.min(value);
            bucket.max = bucket.max.max(value);
        }
    }

    fn fit(&mut self) {
        while self.buckets.len() > self.limit {
            self.coarsen();
        }
    }

    /// Doubles the width.
    fn coarsen(&mut self) {
        let width = u128::from(self.width_ns());
        let mut coarse: Vec<Bucket> = Vec::with_capacity(self.limit);
        // Halves that nobody wrote have the value before them; the open end of the last bucket is not booked yet.
        let fill = |bucket: &mut Bucket, value: u64| {
            bucket.area += u128::from(value) * width;
            bucket.min = bucket.min.min(value);
            bucket.max = bucket.max.max(value);
        };
        let mut is_half = false;
        for bucket in &self.buckets {
            let index = bucket.index >> 1;
            let is_right = bucket.index & 1 == 1;
            let before = coarse.last().map_or(0, |last| last.last);
            if let Some(left) = coarse.last_mut()
                && is_half
            {
                if left.index == index {
                    left.area += bucket.area;
                    left.min = left.min.min(bucket.min);
                    left.max = left.max.max(bucket.max);
                    left.last = bucket.last;
                    is_half = false;
                    continue;
                }
                fill(left, before);
            }
            let mut merged = Bucket { index, ..*bucket };
            if is_right {
                fill(&mut merged, before);
            }
            coarse.push(merged);
            is_half = !is_right;
        }
        self.buckets = coarse;
        self.shift += 1;
    }
}

impl Bucket {
    const fn new(index: u64, last: u64) -> Self {
        Self { index, min: u64::MAX, max: 0, last, area: 0 }
    }
}

#[cfg(test)]
mod tests;

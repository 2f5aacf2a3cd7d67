//! A disk with queues: bandwidth, IOPS, latency, queue depth, and fsync as a barrier.
//!
//! Reads and writes have a queue each. A job is split into commands, at least one for each of its objects (pages); up to
//! `queue_depth` slots of 1 MiB are under way, taken from the waiting jobs in turn, one each. The latencies of commands overlap,
//! their transfers follow each other:
//!
//! ```text
//!   slot 0  |--latency--|=|--latency--|=|          size/bandwidth or 1/IOPS, whichever is longer
//!   slot 1  |--latency--..|=|--latency--..|=|
//!   pipe                |=|=|           |=|=|      idle while all slots wait: small objects cost bandwidth
//! ```
//!
//! 1. One object on an idle disk takes `latency + max(size / bandwidth, 1 / IOPS)`.
//! 2. Commands of a queue end in the order of their issue, so the queue is a ring, not a heap: tens of ns a command.
//! 3. `next` names the ends of jobs and, while none is in sight, the last command under way; the driver is not woken for
//!    each command.
//! 4. The caller advances to `now` before it adds anything at `now`.

mod queue;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeSet, VecDeque};

use pd_core::time::Instant;

use self::queue::Queue;
pub use self::view::DiskView;

/// A disk and the jobs on it.
#[derive(Clone, Debug)]
pub struct Disk {
    spec: DiskSpec,
    reads: Queue,
    writes: Queue,
    writes_live: u32,
    /// Fsyncs that still wait for writes, by start.
    barriers: VecDeque<Barrier>,
    /// Fsyncs that only wait for time.
    flushes: BTreeSet<(Instant, JobId)>,
    started: u64,
    fsyncs: u64,
}

/// Names a job of one [`Disk`]; never used twice. Orders by start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JobId(pub u64);

/// What a disk can do, as in `hw/*.toml`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskSpec {
    /// Bandwidth of large reads.
    pub read_bytes_per_second: u64,
    /// Bandwidth of large writes, sustained.
    pub write_bytes_per_second: u64,
    /// Read commands per second.
    pub read_iops: u64,
    /// Write commands per second.
    pub write_iops: u64,
    /// From the issue of a read until its transfer starts.
    pub read_latency_ns: u64,
    /// From the issue of a write until its transfer starts.
    pub write_latency_ns: u64,
    /// Commands under way at most, for reads and for writes.
    pub queue_depth: u32,
    /// From the end of the last write before an fsync to the end of the fsync.
    pub fsync_ns: u64,
}

/// What a disk has done since the start of the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskUse {
    /// Reads.
    pub read: QueueUse,
    /// Writes.
    pub write: QueueUse,
    /// Fsyncs that have ended.
    pub fsyncs: u64,
}

/// What one of the two queues of a disk has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueueUse {
    /// Bytes of the commands that have ended.
    pub bytes: u64,
    /// Commands that have ended.
    pub commands: u64,
    /// Time for which those commands had the bandwidth.
    pub busy_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Barrier {
    job: JobId,
    fsync_ns: u64,
    /// Writes that started earlier and have not ended.
    writes: u32,
}

impl Disk {
    /// An idle disk.
    ///
    /// # Panics
    /// If the spec has a bandwidth, an IOPS or a queue depth of 0.
    #[must_use]
    pub fn new(spec: DiskSpec) -> Self {
        Self {
            spec,
            reads: Queue::new(spec.read()),
            writes: Queue::new(spec.write()),
            writes_live: 0,
            barriers: VecDeque::new(),
            flushes: BTreeSet::new(),
            started: 0,
            fsyncs: 0,
        }
    }

    /// Changes what the disk can do; commands under way keep their time.
    ///
    /// # Panics
    /// Like [`new`](Self::new), or if something earlier than `now` has not been advanced over.
    pub fn set_spec(&mut self, now: Instant, spec: DiskSpec) {
        self.expect_advanced(now);
        self.spec = spec;
        self.reads.set_speed(now, spec.read());
        self.writes.set_speed(now, spec.write());
    }

    /// Reads `ops` objects of `bytes` together.
    ///
    /// # Panics
    /// If `ops` is 0, or something earlier than `now` has not been advanced over.
    pub fn read(&mut self, now: Instant, bytes: u64, ops: u32) -> JobId {
        self.expect_advanced(now);
        let job = self.name();
        self.reads.add(now, job, bytes, ops);
        job
    }

    /// Writes `ops` objects of `bytes` together. Ended is not durable: that takes an fsync.
    ///
    /// # Panics
    /// If `ops` is 0, or something earlier than `now` has not been advanced over.
    pub fn write(&mut self, now: Instant, bytes: u64, ops: u32) -> JobId {
        self.expect_advanced(now);
        let job = self.name();
        self.writes.add(now, job, bytes, ops);
        self.writes_live += 1;
        job
    }

    /// Waits for all writes started before and then for the `fsync_ns` of the spec. Later writes do not wait for it.
    ///
    /// # Panics
    /// If something earlier than `now` has not been advanced over.
    pub fn fsync(&mut self, now: Instant) -> JobId {
        self.fsync_drawn(now, self.spec.fsync_ns)
    }

    /// Like [`fsync`](Self::fsync), with a time that the caller drew.
    ///
    /// # Panics
    /// If something earlier than `now` has not been advanced over.
    pub fn fsync_drawn(&mut self, now: Instant, fsync_ns: u64) -> JobId {
        self.expect_advanced(now);
        let job = self.name();
        if self.writes_live == 0 {
            self.flushes.insert((now.after_ns(fsync_ns), job));
        } else {
            self.barriers.push_back(Barrier { job, fsync_ns, writes: self.writes_live });
        }
        job
    }

    /// Power fails: no job that is under way will end.
    pub fn clear(&mut self, now: Instant) {
        self.reads.clear(now);
        self.writes.clear(now);
        self.writes_live = 0;
        self.barriers.clear();
        self.flushes.clear();
    }

    /// The earliest instant at which a job may end; the caller advances to it.
    #[inline]
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let flush = self.flushes.first().map(|flush| flush.0);
        [self.reads.next(), self.writes.next(), flush].into_iter().flatten().min()
    }

    /// Moves everything on to `now` and appends the jobs that ended, by time and then by start.
    pub fn advance(&mut self, now: Instant, done: &mut Vec<JobId>) {
        while let Some(at) = self.next()
            && at <= now
        {
            let first = done.len();
            self.reads.advance(at, done);
            let first_write = done.len();
            self.writes.advance(at, done);
            for job in &done[first_write..] {
                self.lift_barriers(at, *job);
            }
            while let Some(&(time, job)) = self.flushes.first()
                && time <= at
            {
                self.flushes.pop_first();
                self.fsyncs += 1;
                done.push(job);
            }
            done[first..].sort_unstable();
        }
    }

    /// True if no job is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.next().is_none()
    }

    /// What the disk can do.
    #[must_use]
    pub fn spec(&self) -> &DiskSpec {
        &self.spec
    }

    /// What the disk has done up to the last advance.
    #[must_use]
    pub fn disk_use(&self) -> DiskUse {
        DiskUse { read: self.reads.queue_use(), write: self.writes.queue_use(), fsyncs: self.fsyncs }
    }

    fn lift_barriers(&mut self, at: Instant, write: JobId) {
        self.writes_live -= 1;
        for barrier in self.barriers.iter_mut().filter(|barrier| write < barrier.job) {
            barrier.writes -= 1;
        }
        // An earlier fsync waits for a part of what a later one waits for: they lift from the front.
        while let Some(barrier) = self.barriers.front()
            && barrier.writes == 0
        {
            self.flushes.insert((at.after_ns(barrier.fsync_ns), barrier.job));
            self.barriers.pop_front();
        }
    }

    fn name(&mut self) -> JobId {
        self.started += 1;
        JobId(self.started - 1)
    }

    fn expect_advanced(&self, now: Instant) {
        assert!(self.next().is_none_or(|at| at >= now), "advance to {now} first");
    }
}

//! The reads or the writes of a disk: a ring of waiting jobs, and the commands under way in the order of their ends.

use std::collections::VecDeque;

use pd_core::time::Instant;

use super::{DiskSpec, JobId, QueueUse};

/// One queue of a disk.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    speed: Speed,
    /// Jobs with commands to issue; the front one is next.
    waiting: VecDeque<Job>,
    /// Commands under way. They end in this order, as the latency is the same for all.
    flying: VecDeque<Command>,
    /// Slots that those take.
    slots: u64,
    /// Ends of jobs among `flying`.
    ends: VecDeque<Instant>,
    pipe: Pipe,
    used: QueueUse,
}

/// The part of the spec that is about one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    bytes_per_second: u64,
    /// What a command takes of the bandwidth at least: bandwidth over IOPS.
    command_bytes: u64,
    latency_ns: u64,
    depth: u64,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    id: JobId,
    /// Objects not issued to the end.
    objects: u32,
    /// Size of each, and how many have one byte more.
    bytes: u64,
    longer: u32,
    /// Bytes of the present object that are not issued.
    left: u64,
}

#[derive(Clone, Copy, Debug)]
struct Command {
    end: Instant,
    job: JobId,
    bytes: u64,
    busy_ns: u64,
    slots: u64,
    is_last: bool,
}

/// When the bandwidth is free again: `free` plus `rest` over the rate nanoseconds, so that no rounding adds up.
#[derive(Clone, Copy, Debug, Default)]
struct Pipe {
    free: Instant,
    rest: u128,
}

impl Queue {
    pub(super) fn new(speed: Speed) -> Self {
        Self {
            speed,
            waiting: VecDeque::new(),
            flying: VecDeque::new(),
            slots: 0,
            ends: VecDeque::new(),
            pipe: Pipe::default(),
            used: QueueUse::default(),
        }
    }

    pub(super) fn set_speed(&mut self, now: Instant, speed: Speed) {
        self.catch_up(now);
        self.pipe = Pipe { free: self.pipe.end(), rest: 0 };
        self.speed = speed;
        self.fill(now);
    }

    pub(super) fn add(&mut self, now: Instant, id: JobId, bytes: u64, objects: u32) {
        assert!(objects > 0, "a job without objects");
        self.catch_up(now);
        let (each, longer) = (bytes / u64::from(objects), (bytes % u64::from(objects)) as u32);
        let left = each + u64::from(longer > 0);
        self.waiting.push_back(Job { id, objects, bytes: each, longer, left });
        self.fill(now);
    }

    pub(super) fn clear(&mut self, now: Instant) {
        self.catch_up(now);
        self.waiting.clear();
        self.flying.clear();
        self.slots = 0;
        self.ends.clear();
        self.pipe = Pipe { free: now, rest: 0 };
    }

    /// The end of the next job, or of the last command under way, before which no other can end.
    #[inline]
    pub(super) fn next(&self) -> Option<Instant> {
        self.ends.front().copied().or_else(|| self.flying.back().map(|command| command.end))
    }

    /// Moves on to `now` and appends the jobs that ended.
    pub(super) fn advance(&mut self, now: Instant, done: &mut Vec<JobId>) {
        while let Some(command) = self.flying.front().copied()
            && command.end <= now
        {
            self.flying.pop_front();
            self.slots -= command.slots;
            self.used.bytes += command.bytes;
            self.used.commands += 1;
            self.used.busy_ns += command.busy_ns;
            if command.is_last {
                self.ends.pop_front();
                done.push(command.job);
            }
            self.fill(command.end);
        }
    }

    /// Jobs that wait, and commands under way.
    pub(super) fn lengths(&self) -> (usize, usize) {
        (self.waiting.len(), self.flying.len())
    }

    pub(super) fn queue_use(&self) -> QueueUse {
        self.used
    }

    /// Refills the slots that came free before `now`. No job ended among them: the driver was told of each end.
    fn catch_up(&mut self, now: Instant) {
        if now > Instant::ZERO {
            let mut done = Vec::new();
            self.advance(Instant(now.0 - 1), &mut done);
            assert!(done.is_empty(), "jobs ended before {now}");
        }
    }

    /// Issues commands into free slots, one from each waiting job in turn.
    fn fill(&mut self, now: Instant) {
        while self.slots < self.speed.depth
            && let Some(mut job) = self.waiting.pop_front()
        {
            let bytes = job.left.min(self.speed.bytes_max(job.bytes));
            let slots = bytes.div_ceil(SLOT_BYTES).max(1);
            job.left -= bytes;
            if job.left == 0 {
                job.objects -= 1;
                job.longer = job.longer.saturating_sub(1);
                job.left = job.bytes + u64::from(job.longer > 0);
            }
            let is_last = job.objects == 0;
            let (end, busy_ns) = self.pipe.carry(now, bytes, &self.speed);
            self.flying.push_back(Command { end, job: job.id, bytes, busy_ns, slots, is_last });
            self.slots += slots;
            if is_last {
                self.ends.push_back(end);
            } else {
                self.waiting.push_back(job);
            }
        }
    }
}

impl Pipe {
    /// A command issued at `now`: when it ends, and how long it uses the bandwidth.
    fn carry(&mut self, now: Instant, bytes: u64, speed: &Speed) -> (Instant, u64) {
        let ready = now.after_ns(speed.latency_ns);
        if ready >= self.end() {
            *self = Self { free: ready, rest: 0 };
        }
        let work = u128::from(bytes.max(speed.command_bytes)) * 1_000_000_000 + self.rest;
        let ns = (work / u128::from(speed.bytes_per_second)) as u64;
        self.rest = work % u128::from(speed.bytes_per_second);
        self.free = self.free.after_ns(ns);
        (self.end(), ns)
    }

    fn end(&self) -> Instant {
        self.free.after_ns(u64::from(self.rest > 0))
    }
}

impl DiskSpec {
    pub(super) fn read(&self) -> Speed {
        Speed::new(self.read_bytes_per_second, self.read_iops, self.read_latency_ns, self.queue_depth)
    }

    pub(super) fn write(&self) -> Speed {
        Speed::new(self.write_bytes_per_second, self.write_iops, self.write_latency_ns, self.queue_depth)
    }
}

impl Speed {
    /// The largest command for objects of this size: a slot's worth, or more as long as eight fit into the queue.
    fn bytes_max(&self, object: u64) -> u64 {
        let most = (self.depth / QUEUE_COMMANDS).max(1) * SLOT_BYTES;
        object.div_ceil(OBJECT_COMMANDS).clamp(SLOT_BYTES, most)
    }

    fn new(bytes_per_second: u64, iops: u64, latency_ns: u64, depth: u32) -> Self {
        assert!(bytes_per_second > 0, "a disk without bandwidth");
        assert!(iops > 0, "a disk without IOPS");
        assert!(depth > 0, "a disk without queue depth");
        Self { bytes_per_second, command_bytes: bytes_per_second.div_ceil(iops), latency_ns, depth: u64::from(depth) }
    }
}

/// What one slot of the queue carries: the largest command of the block layer.
const SLOT_BYTES: u64 = 1 << 20;
/// Larger objects are several commands, so that one large object does not hold up the others; but no more than this
/// many, each of which then takes several slots: the bytes under way are the same, for an eighth of the work at 64 MiB.
const OBJECT_COMMANDS: u64 = 8;
/// Commands that a full queue holds at least, so that none holds up the others for long.
const QUEUE_COMMANDS: u64 = 8;

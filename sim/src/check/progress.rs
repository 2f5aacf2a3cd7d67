//! Everybody waits for something that can happen, and queues are bounded.
//!
//! 1. A worker with requests has a command in flight or wants a tick; otherwise nothing of its own can move it. (Both ends
//!    of a hand-off have timeouts, so waiting for a peer is no exception.)
//! 2. The request that an input is about, and at recounts every request, waits for something: two parts that wait for
//!    each other are found here (ai-dynamo/dynamo #10736: prefilled KV that nobody hands over).
//! 3. Ticks at one instant without any output end; so do forwards that fail one after the other.
//! 4. Limits hold.

use pd_core::config::WorkerConfig;
use pd_core::event::Event;
use pd_core::id::RequestId;
use pd_core::time::Instant;
use pd_core::worker::{Census, Waits};

use super::{About, Checker, Log};

/// Per worker, what has moved.
#[derive(Clone, Debug, Default)]
struct Pace {
    tick_at: Instant,
    /// Ticks in a row at one instant that nothing came of.
    idle_ticks: u32,
    is_tick: bool,
    /// Forwards that failed since something went well.
    failed_forwards: u32,
    /// A deadlock has been reported.
    is_stuck: bool,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Progress {
    workers: Vec<Pace>,
}

impl Progress {
    pub(super) fn new(workers: usize) -> Self {
        Self { workers: vec![Pace::default(); workers] }
    }

    pub(super) fn on_life(&mut self, worker: u32) {
        self.workers[worker as usize] = Pace::default();
    }

    pub(super) fn on_tick(&mut self, log: &mut Log, now: Instant, worker: u32) {
        let pace = &mut self.workers[worker as usize];
        pace.is_tick = true;
        if pace.tick_at != now {
            (pace.tick_at, pace.idle_ticks) = (now, 0);
        }
        if pace.idle_ticks == IDLE_TICKS_MAX {
            log.report(
                Checker::Progress,
                About::worker(worker),
                "asks for ticks without end, and nothing comes of them",
            );
        }
    }

    pub(super) fn on_forward(&mut self, worker: u32, is_good: bool) {
        let pace = &mut self.workers[worker as usize];
        pace.failed_forwards = if is_good { 0 } else { pace.failed_forwards + 1 };
    }

    /// A client is told something: that is progress.
    #[inline]
    pub(super) fn on_event(&mut self, worker: u32, event: &Event) {
        match event {
            Event::Token(_)
            | Event::Admitted(_)
            | Event::Received(_)
            | Event::HandedOver
            | Event::Finished { .. }
            | Event::Refused(_) => {
                self.workers[worker as usize].failed_forwards = 0;
            }
            Event::Retracted => {}
        }
    }

    pub(super) fn settle(
        &mut self,
        log: &mut Log,
        worker: u32,
        config: &WorkerConfig,
        census: &Census,
        has_deadline: bool,
        is_silent: bool,
    ) {
        let about = About::worker(worker);
        let pace = &mut self.workers[worker as usize];
        let was_tick = std::mem::take(&mut pace.is_tick);
        pace.idle_ticks = if was_tick && is_silent { pace.idle_ticks + 1 } else { 0 };
        if pace.failed_forwards > FAILED_FORWARDS_MAX {
            pace.failed_forwards = 0;
            log.report(Checker::Progress, about, "computes the same again and again");
        }
        let is_stuck = census.requests > 0 && census.ops == 0 && !has_deadline;
        if is_stuck && !pace.is_stuck {
            let what = format!("{} requests wait, nothing is in flight and no tick is wanted", census.requests);
            log.report(Checker::Progress, about, what);
        }
        pace.is_stuck = is_stuck;
        let bounds = [
            ("requests queued", u64::from(census.queued), u64::from(config.sched.max_queued_requests)),
            ("rooms open", u64::from(census.rooms), u64::from(config.transfer.rooms_max)),
            (
                "writes queued",
                census.writes_queued,
                2 * (u64::from(config.kv.gpu_pages) + u64::from(config.kv.host_pages)) + 1,
            ),
        ];
        for (what, have, max) in bounds {
            if have > max {
                log.report(Checker::Progress, about, format!("{have} {what}, at most {max} may be"));
            }
        }
    }

    /// What a request waits for at a worker; none if it is not there.
    pub(super) fn waits(&mut self, log: &mut Log, worker: u32, request: RequestId, waits: Option<Waits>) {
        if waits == Some(Waits::Nothing) {
            log.report(Checker::Progress, About::leg(worker, request), "waits for nothing that can happen");
        }
    }

    /// The run is over and a request has not ended.
    pub(super) fn unfinished(&mut self, log: &mut Log, request: RequestId, places: &[(u32, Option<Waits>)]) {
        let mut what = "nothing is left to happen, and it has not ended".to_owned();
        for (worker, waits) in places {
            what += &match waits {
                Some(waits) => format!("; worker {worker} waits for {waits:?}"),
                None => format!("; worker {worker} does not know it"),
            };
        }
        log.report(Checker::Progress, About::request(request), what);
    }
}

/// A step serves a bounded number of timers, so some ticks at one instant may have nothing to show.
const IDLE_TICKS_MAX: u32 = 4096;
/// A forward that fails is tried again once for each of its sequences.
const FAILED_FORWARDS_MAX: u32 = 10_000;

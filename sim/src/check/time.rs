//! Time goes forward, ticks come when they are asked for, and deadlines of requests are kept.

use std::collections::BTreeSet;

use pd_core::id::RequestId;
use pd_core::time::Instant;

use super::{About, Checker, Log};

/// What is due, and when.
#[derive(Debug)]
pub(super) struct Time {
    /// By worker: when it is to get its next tick, in the time of the world.
    due: Vec<Option<Instant>>,
    /// By worker: the latest time that its own clock has shown.
    shown: Vec<Instant>,
    /// By worker: deadlines of its requests, by its own clock.
    deadlines: Vec<BTreeSet<(Instant, RequestId)>>,
}

impl Time {
    pub(super) fn new(workers: usize) -> Self {
        let (due, shown) = (vec![None; workers], vec![Instant::ZERO; workers]);
        Self { due, shown, deadlines: vec![BTreeSet::new(); workers] }
    }

    /// Something happens to a worker.
    #[inline]
    pub(super) fn on_event(&mut self, log: &mut Log, now: Instant, worker: u32) {
        if now < log.now {
            log.report(Checker::Time, About::worker(worker), format!("time goes back to {now}"));
        }
        if let Some(due) = self.due[worker as usize].filter(|due| *due < now) {
            self.due[worker as usize] = None;
            log.report(
                Checker::Time,
                About::worker(worker),
                format!("wanted a tick at {due} and got none until {now}"),
            );
        }
    }

    /// The clock of a worker, whose step begins, shows this. A clock that is set back stands still for a machine.
    #[inline]
    pub(super) fn shows(&mut self, worker: u32, there: Instant) -> Instant {
        let shown = &mut self.shown[worker as usize];
        *shown = there.max(*shown);
        *shown
    }

    /// Something happens to the router.
    pub(super) fn router(&mut self, log: &mut Log, now: Instant) {
        if now < log.now {
            log.report(Checker::Time, About::default(), format!("time goes back to {now}"));
        }
    }

    /// When a worker is to get its next tick.
    #[inline]
    pub(super) fn expect_tick(&mut self, worker: u32, due: Option<Instant>) {
        self.due[worker as usize] = due;
    }

    /// The request has to have ended at the worker by then, by the worker's clock.
    pub(super) fn expect_end(&mut self, deadline: Instant, worker: u32, request: RequestId) {
        self.deadlines[worker as usize].insert((deadline, request));
    }

    /// The request has ended at the worker.
    pub(super) fn over(&mut self, worker: u32, request: RequestId) {
        let deadlines = &mut self.deadlines[worker as usize];
        if !deadlines.is_empty() {
            deadlines.retain(|(_, other)| *other != request);
        }
    }

    /// A step of a worker is over: no request is left whose deadline has passed.
    #[inline]
    pub(super) fn settle(&mut self, log: &mut Log, worker: u32) {
        let shown = self.shown[worker as usize];
        let deadlines = &mut self.deadlines[worker as usize];
        while let Some(&(deadline, request)) = deadlines.first()
            && deadline <= shown
        {
            deadlines.pop_first();
            log.report(Checker::Time, About::leg(worker, request), format!("goes on after its deadline of {deadline}"));
        }
    }

    pub(super) fn on_life(&mut self, worker: u32) {
        self.due[worker as usize] = None;
        self.shown[worker as usize] = Instant::ZERO;
        self.deadlines[worker as usize].clear();
    }
}

//! Pages that wait for the way to one peer, and the pushes that they are part of.
//!
//! A page is settled once: landed, or failed for a reason. A push is answered when all of its pages are settled, so no
//! chunk of it is begun after its answer. Pages that were under way on a connection that broke are put back and go on
//! over the next one; what was acknowledged is not sent again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pd_core::id::{Generation, OpId, Room};
use pd_core::op::{Fault, Outcome, Push};

use super::count::Counts;

/// One page on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    push: u64,
    pub(super) room: Room,
    pub(super) generation: Generation,
    /// Ours.
    pub(super) source: u32,
    /// Theirs.
    pub(super) sink: u32,
    /// How often it was under way on a connection that broke.
    attempts: u32,
}

/// What is to be moved to one life of one peer.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    answers: Sender<(OpId, Outcome)>,
    counts: Arc<Counts>,
    attempts_max: u32,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    open: BTreeMap<u64, Open>,
    next: u64,
    closed: Option<Fault>,
}

#[derive(Debug)]
struct Open {
    op: OpId,
    /// Pages that are not settled.
    left: u32,
    fault: Option<Fault>,
}

impl Queue {
    pub(super) fn new(answers: Sender<(OpId, Outcome)>, counts: Arc<Counts>, attempts_max: u32) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), answers, counts, attempts_max }
    }

    /// Adds all pages of a push.
    pub(super) fn add(&self, op: OpId, push: &Push) {
        let mut state = self.lock();
        if let Some(fault) = state.closed {
            return self.answer(op, Outcome::Failed(fault));
        }
        if push.pages.is_empty() {
            return self.answer(op, Outcome::Moved);
        }
        let number = state.next;
        state.next += 1;
        state.open.insert(number, Open { op, left: push.pages.len() as u32, fault: None });
        state.jobs.extend(push.pages.iter().map(|(source, sink)| Job {
            push: number,
            room: push.room,
            generation: push.generation,
            source: source.0,
            sink: sink.0,
            attempts: 0,
        }));
        drop(state);
        self.changed.notify_all();
    }

    /// The next page; waits for one. `None` once it is closed.
    pub(super) fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = self.pop(&mut state) {
                return Some(job);
            }
            if state.closed.is_some() {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next page, if there is one.
    pub(super) fn try_take(&self) -> Option<Job> {
        self.pop(&mut self.lock())
    }

    /// The page is settled.
    pub(super) fn settle(&self, job: &Job, result: Result<(), Fault>) {
        self.settle_in(&mut self.lock(), job, result);
    }

    /// The connection broke under a page: it goes on over the next one, unless that has happened too often.
    pub(super) fn put_back(&self, mut job: Job, fault: Fault) {
        let mut state = self.lock();
        job.attempts += 1;
        if job.attempts >= self.attempts_max || state.closed.is_some() {
            let fault = state.closed.unwrap_or(fault);
            return self.settle_in(&mut state, &job, Err(fault));
        }
        Counts::add(&self.counts.resent, 1);
        state.jobs.push_front(job);
        drop(state);
        self.changed.notify_one();
    }

    /// The page was taken and nothing was done with it.
    pub(super) fn give_back(&self, job: Job) {
        let mut state = self.lock();
        if let Some(fault) = state.closed {
            return self.settle_in(&mut state, &job, Err(fault));
        }
        state.jobs.push_front(job);
        drop(state);
        self.changed.notify_one();
    }

    /// Fails all pages that wait.
    pub(super) fn fail_waiting(&self, fault: Fault) {
        let mut state = self.lock();
        while let Some(job) = state.jobs.pop_front() {
            self.settle_in(&mut state, &job, Err(fault));
        }
    }

    /// Fails all pages that wait, and all that will come. Those under way are settled by whoever moves them.
    pub(super) fn close(&self, fault: Fault) {
        let mut state = self.lock();
        state.closed.get_or_insert(fault);
        while let Some(job) = state.jobs.pop_front() {
            self.settle_in(&mut state, &job, Err(fault));
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits, at most for `pause`; true if it is closed.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        let closed = |state: &mut State| state.closed.is_none();
        let waited = self.changed.wait_timeout_while(self.lock(), pause, closed);
        waited.unwrap_or_else(PoisonError::into_inner).0.closed.is_some()
    }

    /// True if nobody will take from it any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// The next page whose push has not failed already.
    fn pop(&self, state: &mut State) -> Option<Job> {
        loop {
            let job = state.jobs.pop_front()?;
            match state.open.get(&job.push).and_then(|open| open.fault) {
                Some(fault) => self.settle_in(state, &job, Err(fault)),
                None => return Some(job),
            }
        }
    }

    fn settle_in(&self, state: &mut State, job: &Job, result: Result<(), Fault>) {
        let Some(open) = state.open.get_mut(&job.push) else { return };
        open.left -= 1;
        if let Err(fault) = result {
            open.fault.get_or_insert(fault);
        }
        if open.left > 0 {
            return;
        }
        let (op, outcome) = (open.op, open.fault.map_or(Outcome::Moved, Outcome::Failed));
        state.open.remove(&job.push);
        self.answer(op, outcome);
    }

    /// Answers go through a thread of their own: never from inside the call that started the push.
    fn answer(&self, op: OpId, outcome: Outcome) {
        // Nobody listens only once the transport is dropped.
        let _ = self.answers.send((op, outcome));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

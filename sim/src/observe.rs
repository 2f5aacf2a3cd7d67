//! Who watches a run: what each machine was told and what it asked for, and what happened to it.
//!
//! Observers see values and cannot change anything: a run with observers has the hash of the run without. They are told
//! after a step and before its outputs are carried out.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use pd_core::id::{Epoch, RequestId};
use pd_core::op::{Input, Output};
use pd_core::router::{RouterInput, RouterOutput};
use pd_core::time::Instant;

use crate::record::Record;
use crate::setup::Action;

/// Watches a world.
pub trait Observer: fmt::Debug {
    /// A client has sent a request.
    fn on_arrival(&mut self, now: Instant, request: RequestId, record: &Record) {
        let _ = (now, request, record);
    }
    /// A client has its whole answer, or knows that it will not get it.
    fn on_end(&mut self, now: Instant, request: RequestId, record: &Record) {
        let _ = (now, request, record);
    }
    /// A worker took an input and asks for these outputs.
    fn on_worker(&mut self, now: Instant, worker: u32, input: &Input, outputs: &[Output]) {
        let _ = (now, worker, input, outputs);
    }
    /// The router took an input and asks for these outputs.
    fn on_router(&mut self, now: Instant, input: &RouterInput, outputs: &[RouterOutput]) {
        let _ = (now, input, outputs);
    }
    /// A life of a worker begins (its epoch) or ends (none).
    fn on_life(&mut self, now: Instant, worker: u32, epoch: Option<Epoch>) {
        let _ = (now, worker, epoch);
    }
    /// The script does something.
    fn on_action(&mut self, now: Instant, action: &Action) {
        let _ = (now, action);
    }
}

/// Lets a caller keep what a world watches with: give the world one handle and read the other after the run.
impl<T: Observer> Observer for Rc<RefCell<T>> {
    fn on_arrival(&mut self, now: Instant, request: RequestId, record: &Record) {
        self.borrow_mut().on_arrival(now, request, record);
    }
    fn on_end(&mut self, now: Instant, request: RequestId, record: &Record) {
        self.borrow_mut().on_end(now, request, record);
    }
    fn on_worker(&mut self, now: Instant, worker: u32, input: &Input, outputs: &[Output]) {
        self.borrow_mut().on_worker(now, worker, input, outputs);
    }
    fn on_router(&mut self, now: Instant, input: &RouterInput, outputs: &[RouterOutput]) {
        self.borrow_mut().on_router(now, input, outputs);
    }
    fn on_life(&mut self, now: Instant, worker: u32, epoch: Option<Epoch>) {
        self.borrow_mut().on_life(now, worker, epoch);
    }
    fn on_action(&mut self, now: Instant, action: &Action) {
        self.borrow_mut().on_action(now, action);
    }
}

//! A shutdown: nobody enters any more, and those inside are waited for.

use std::fmt;
use std::time::Instant;

use crate::shim::{Condvar, Mutex, MutexGuard};

/// Open until it is closed, once and for all threads.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_closed: bool,
    inside: usize,
}

/// Somebody inside; leaves when dropped.
pub struct Pass<'a> {
    gate: &'a Gate,
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new() -> Self {
        Self { state: Mutex::new(State::default()), changed: Condvar::new() }
    }

    /// Goes in; `None` once it is closed.
    pub fn enter(&self) -> Option<Pass<'_>> {
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        state.inside += 1;
        Some(Pass { gate: self })
    }

    /// Closes it. Those inside may go on.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// True once it is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Waits until it is closed, at most until `deadline`. True if it is.
    pub fn wait_until(&self, deadline: Option<Instant>) -> bool {
        self.wait(deadline, |state| state.is_closed)
    }

    /// Waits until it is closed and nobody is inside, at most until `deadline`. True if so.
    pub fn drained_until(&self, deadline: Option<Instant>) -> bool {
        self.wait(deadline, |state| state.is_closed && state.inside == 0)
    }

    fn wait(&self, deadline: Option<Instant>, is_done: impl Fn(&State) -> bool) -> bool {
        let mut state = self.lock();
        while !is_done(&state) {
            let Some(deadline) = deadline else {
                state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            };
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.inside -= 1;
        let is_last = state.inside == 0;
        drop(state);
        if is_last {
            self.gate.changed.notify_all();
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("is_closed", &self.is_closed()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Pass<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_closed_gate_lets_nobody_in_and_waits_for_those_inside() {
        let gate = Gate::new();
        let pass = gate.enter();
        assert!(pass.is_some());
        gate.close();
        assert!(gate.enter().is_none());
        assert!(gate.wait_until(None));
        assert!(!gate.drained_until(Some(Instant::now() + Duration::from_millis(1))), "somebody is inside");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.drained_until(None));
            drop(pass);
            assert!(waiter.join().unwrap());
        });
    }

    #[test]
    fn an_open_gate_is_not_waited_for_beyond_the_deadline() {
        assert!(!Gate::new().wait_until(Some(Instant::now())));
    }
}

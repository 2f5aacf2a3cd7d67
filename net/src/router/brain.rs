//! The machine that decides, and the requests that wait for its decisions.
//!
//! ```text
//! request task ──Submit, FirstToken, Failed──> ┌──────────────┐ ──Route, Refuse──> the task's inbox
//! health task  ──Worker, Drain, Load────────>  │ Pump<Router> │
//! ticker       ──Tick──────────────────────>   └──────────────┘ ──Cancel──> the task's inbox and the aborter
//! ```
//! The pump is under a mutex: a step takes microseconds and never waits. Nothing is called while it is held; outputs go
//! into unbounded inboxes that hold at most a few orders per request, because a request has one attempt at a time.
//!
//! An answer whose first byte has gone out is *committed*: it cannot be tried again. If the machine wants to go on with
//! it elsewhere (its worker was lost), the request is taken from the machine instead, and the stream lives or dies by
//! its connection.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use pd_core::id::{RequestId, WorkerId};
use pd_core::pump::Pump;
use pd_core::router::{Ask, Route, RouteFault, RouteRefusal, Router, RouterInput, RouterMetrics, RouterOutput};
use pd_core::time::{Instant, nanos};

use super::RouterTap;

/// What a request's task is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Send the request there; an earlier attempt is over.
    Route(Box<Route>),
    /// An attempt is over.
    Stop,
    /// Tell the client no.
    Refuse(RouteRefusal),
}

/// A worker is to be told that an attempt is over.
#[derive(Debug)]
pub(super) struct Abort {
    pub(super) worker: WorkerId,
    pub(super) rid: String,
}

#[derive(Debug)]
pub(super) struct Brain {
    inner: Mutex<Inner>,
    started: std::time::Instant,
    wake: Notify,
    aborts: mpsc::UnboundedSender<Abort>,
}

#[derive(Debug)]
struct Inner {
    pump: Pump<Router, Option<Box<dyn RouterTap>>>,
    waiters: BTreeMap<RequestId, Waiter>,
    next_request: u64,
    /// Rooms for the further prompts of batches; of a life of its own, so that they never meet the machine's.
    next_room: u64,
    aborted: u64,
}

#[derive(Debug)]
struct Waiter {
    inbox: mpsc::UnboundedSender<Order>,
    names: Names,
    is_committed: bool,
}

/// How workers know a request.
#[derive(Clone, Debug)]
pub(super) enum Names {
    /// By the name that the client gave.
    Client(String),
    /// By one name per attempt.
    Attempts(String),
}

impl Names {
    pub(super) fn of(&self, attempt: u32) -> String {
        match self {
            Self::Client(name) => name.clone(),
            Self::Attempts(name) if attempt == 0 => name.clone(),
            Self::Attempts(name) => format!("{name}-r{attempt}"),
        }
    }
}

/// A request that the machine knows. Dropping it takes the request from the machine and from its workers.
#[derive(Debug)]
pub(super) struct Ticket {
    brain: Arc<Brain>,
    pub(super) request: RequestId,
    is_over: bool,
}

impl Brain {
    /// `room_epoch` is a life that no router's machine has.
    pub(super) fn new(
        machine: Router,
        tap: Option<Box<dyn RouterTap>>,
        room_epoch: u32,
        aborts: mpsc::UnboundedSender<Abort>,
    ) -> Self {
        let inner = Inner {
            pump: Pump::new(machine, tap),
            waiters: BTreeMap::new(),
            next_request: 0,
            next_room: u64::from(room_epoch) << 40,
            aborted: 0,
        };
        Self { inner: Mutex::new(inner), started: std::time::Instant::now(), wake: Notify::new(), aborts }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic of the machine is a bug, and has been told; what is left of it still serves.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Feeds an input that belongs to no request.
    pub(super) fn feed(&self, input: RouterInput) {
        self.feed_all(&mut self.lock(), [input]);
    }

    /// A new request; its inbox holds an order already.
    pub(super) fn submit(self: &Arc<Self>, mut ask: Ask, names: Names) -> (Ticket, mpsc::UnboundedReceiver<Order>) {
        let (inbox, orders) = mpsc::unbounded_channel();
        let mut inner = self.lock();
        let request = RequestId(inner.next_request);
        inner.next_request += 1;
        ask.request = request;
        inner.waiters.insert(request, Waiter { inbox, names, is_committed: false });
        self.feed_all(&mut inner, [RouterInput::Submit(Box::new(ask))]);
        drop(inner);
        (Ticket { brain: Arc::clone(self), request, is_over: false }, orders)
    }

    /// `count` rooms; the first one is the machine's.
    pub(super) fn rooms(&self, first: u64, count: usize) -> Vec<u64> {
        let mut inner = self.lock();
        let mut rooms = vec![first];
        for _ in 1..count {
            rooms.push(inner.next_room);
            inner.next_room += 1;
        }
        rooms
    }

    /// Looks at the machine.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Router) -> T) -> T {
        look(&self.lock().pump.machine)
    }

    /// Its counters, and how often a worker was told to abort.
    pub(super) fn metrics(&self) -> (RouterMetrics, u64) {
        let inner = self.lock();
        (inner.pump.machine.metrics().clone(), inner.aborted)
    }

    /// Requests that are under way.
    pub(super) fn live(&self) -> usize {
        self.lock().waiters.len()
    }

    /// Gives the machine its ticks; never ends.
    pub(super) async fn tick(&self) {
        loop {
            let deadline = self.lock().pump.deadline();
            let woken = self.wake.notified();
            match deadline {
                None => woken.await,
                Some((at, _)) => {
                    let pause = std::time::Duration::from_nanos(at.ns_since(self.now()));
                    tokio::select! {
                        () = woken => continue,
                        () = tokio::time::sleep(pause) => {}
                    }
                    // The timer has the resolution of milliseconds and may be early.
                    if self.now() >= at {
                        self.feed(RouterInput::Tick);
                    }
                }
            }
        }
    }

    /// Lets the tap rest every now and then; ends where there is none.
    pub(super) async fn rest_tap(&self, pause: std::time::Duration) {
        loop {
            tokio::time::sleep(pause).await;
            match &mut self.lock().pump.tap {
                Some(tap) => tap.rest(),
                None => return,
            }
        }
    }

    /// What happens from here on is seen by no tap.
    pub(super) fn end_tap(&self) {
        let tap = self.lock().pump.tap.take();
        if let Some(tap) = tap {
            tap.finish(self.now());
        }
    }

    fn now(&self) -> Instant {
        Instant(nanos(self.started.elapsed()))
    }

    fn feed_all(&self, inner: &mut Inner, inputs: impl IntoIterator<Item = RouterInput>) {
        let before = inner.pump.deadline();
        let mut inputs: VecDeque<RouterInput> = inputs.into_iter().collect();
        while let Some(input) = inputs.pop_front() {
            let now = self.now();
            let Inner { pump, waiters, aborted, .. } = &mut *inner;
            for output in pump.feed(now, input) {
                match output {
                    RouterOutput::Route(route) => match waiters.get(&route.request) {
                        Some(waiter) if !waiter.is_committed => {
                            // A task that is gone drops its ticket, which cancels.
                            let _ = waiter.inbox.send(Order::Route(route));
                        }
                        Some(_) | None => inputs.push_back(RouterInput::Cancel { request: route.request }),
                    },
                    RouterOutput::Cancel { request, attempt, worker } => {
                        if let Some(waiter) = waiters.get(&request).filter(|waiter| !waiter.is_committed) {
                            *aborted += 1;
                            let _ = self.aborts.send(Abort { worker, rid: waiter.names.of(attempt) });
                            let _ = waiter.inbox.send(Order::Stop);
                        }
                    }
                    RouterOutput::Refuse { request, refusal } => {
                        if let Some(waiter) = waiters.get(&request) {
                            let _ = waiter.inbox.send(Order::Refuse(refusal));
                        }
                    }
                }
            }
        }
        if inner.pump.deadline() != before {
            self.wake.notify_one();
        }
    }
}

impl Ticket {
    /// A leg has failed before the first byte; what to do is in the inbox, now or after a pause.
    pub(super) fn fail(&self, attempt: u32, worker: WorkerId, fault: RouteFault) {
        self.brain.feed(RouterInput::Failed { request: self.request, attempt, worker, fault, output: 0 });
    }

    /// The first byte of the answer is there.
    pub(super) fn commit(&self, attempt: u32) {
        let mut inner = self.brain.lock();
        if let Some(waiter) = inner.waiters.get_mut(&self.request) {
            waiter.is_committed = true;
        }
        self.brain.feed_all(&mut inner, [RouterInput::FirstToken { request: self.request, attempt }]);
    }

    /// The client has its answer.
    pub(super) fn finish(mut self, output: u32) {
        let mut inner = self.brain.lock();
        self.is_over = true;
        self.brain.feed_all(&mut inner, [RouterInput::Finished { request: self.request, output }]);
        inner.waiters.remove(&self.request);
    }

    /// The answer has broken off after its first byte: the worker's breaker hears of it, and nothing is tried again.
    pub(super) fn break_off(mut self, attempt: u32, worker: WorkerId, fault: RouteFault, output: u32) {
        let mut inner = self.brain.lock();
        self.is_over = true;
        let request = self.request;
        if let Some(waiter) = inner.waiters.get_mut(&request) {
            // A worker that has gone silent is told to stop.
            waiter.is_committed = false;
        }
        let failed = RouterInput::Failed { request, attempt, worker, fault, output };
        self.brain.feed_all(&mut inner, [failed, RouterInput::Cancel { request }]);
        inner.waiters.remove(&request);
    }

    /// The request is refused: the machine has forgotten it already.
    pub(super) fn refused(mut self) {
        self.is_over = true;
        self.brain.lock().waiters.remove(&self.request);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut inner = self.brain.lock();
        if let Some(waiter) = inner.waiters.get_mut(&self.request) {
            // The worker of a committed answer is to hear of it, too.
            waiter.is_committed = false;
        }
        self.brain.feed_all(&mut inner, [RouterInput::Cancel { request: self.request }]);
        inner.waiters.remove(&self.request);
    }
}

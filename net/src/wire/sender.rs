//! The source's end: a queue and some threads for each peer, which write over TCP or into shared memory.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use pd_core::id::{OpId, WorkerId};
use pd_core::op::{Fault, Outcome, Push};
use pd_sync::Arena;

use super::count::{Counters, Counts};
use super::queue::Queue;
use super::{Done, Endpoint, Transport, WireConfig, shared, stream};

/// Pushes pages to peers, over TCP or, where both ends are on one host, into the peer's memory.
pub struct Wire {
    config: WireConfig,
    arena: Arc<Arena>,
    prefers_shared: bool,
    counts: Arc<Counts>,
    peers: Mutex<BTreeMap<WorkerId, Arc<Context>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    answers: Answers,
}

/// What the threads of one life of one peer share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) config: WireConfig,
    pub(super) arena: Arc<Arena>,
    pub(super) counts: Arc<Counts>,
    pub(super) peer: Endpoint,
    pub(super) queue: Queue,
    /// Open connections by stream, to be cut when the peer is torn down.
    sockets: Mutex<BTreeMap<u32, TcpStream>>,
}

impl Wire {
    /// Over TCP.
    #[must_use]
    pub fn tcp(config: WireConfig, arena: Arc<Arena>, done: Done) -> Self {
        Self::new(config, arena, done, false)
    }

    /// Into shared memory; over TCP to peers whose memory cannot be mapped.
    #[must_use]
    pub fn shared(config: WireConfig, arena: Arc<Arena>, done: Done) -> Self {
        Self::new(config, arena, done, true)
    }

    fn new(config: WireConfig, arena: Arc<Arena>, done: Done, prefers_shared: bool) -> Self {
        Self {
            config,
            arena,
            prefers_shared,
            counts: Arc::default(),
            peers: Mutex::default(),
            threads: Mutex::default(),
            answers: Answers::new(done),
        }
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<WorkerId, Arc<Context>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, context: &Arc<Context>) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        let count = if self.prefers_shared { 1 } else { self.config.streams.max(1) };
        for index in 0..count {
            let (shared, prefers_shared) = (context.clone(), self.prefers_shared);
            let body = move || if prefers_shared { shared::run(&shared) } else { stream::run(&shared, index) };
            match std::thread::Builder::new().name("wire-source".into()).spawn(body) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    tracing::error!(%error, "no thread for a wire");
                    if index == 0 {
                        context.cut(Fault::Unreachable);
                    }
                }
            }
        }
    }
}

impl Transport for Wire {
    fn up(&self, peer: &Endpoint) {
        let context = Arc::new(Context {
            config: self.config.clone(),
            arena: self.arena.clone(),
            counts: self.counts.clone(),
            peer: peer.clone(),
            queue: Queue::new(self.answers.sender(), self.counts.clone(), self.config.attempts_max.max(1)),
            sockets: Mutex::default(),
        });
        let older = {
            let mut peers = self.peers();
            if peers.get(&peer.id).is_some_and(|it| it.peer == *peer && !it.queue.is_closed()) {
                return;
            }
            peers.insert(peer.id, context.clone())
        };
        if let Some(older) = older {
            older.cut(Fault::Fenced);
        }
        self.spawn(&context);
    }

    fn down(&self, peer: WorkerId) {
        let context = self.peers().remove(&peer);
        if let Some(context) = context {
            context.cut(Fault::Unreachable);
        }
    }

    fn push(&self, op: OpId, push: Push) {
        if !self.answers.expect() {
            return self.answers.give(op, Outcome::Failed(Fault::Withdrawn));
        }
        let peers = self.peers();
        let fault = match peers.get(&push.to) {
            None => Fault::Unreachable,
            Some(context) if context.peer.epoch != push.epoch => Fault::Fenced,
            Some(_) if push.pages.iter().any(|(source, _)| source.0 >= self.arena.pages()) => Fault::Device,
            Some(context) => return context.queue.add(op, &push),
        };
        self.answers.give(op, Outcome::Failed(fault));
    }

    fn drain(&self, deadline: Instant) -> bool {
        self.answers.drain(deadline)
    }

    fn counters(&self) -> Counters {
        self.counts.read()
    }

    fn moves(&self) -> bool {
        true
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let peers = std::mem::take(&mut *self.peers());
        peers.values().for_each(|context| context.cut(Fault::Withdrawn));
        drop(peers);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("config", &self.config).field("prefers_shared", &self.prefers_shared).finish()
    }
}

impl Context {
    /// Remembers a connection. False if the peer is torn down by now.
    pub(super) fn keep(&self, index: u32, socket: TcpStream) -> bool {
        self.sockets().insert(index, socket);
        !self.queue.is_closed()
    }

    pub(super) fn forget(&self, index: u32) {
        self.sockets().remove(&index);
    }

    /// Ends all that is under way.
    fn cut(&self, fault: Fault) {
        self.queue.close(fault);
        for socket in self.sockets().values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn sockets(&self) -> MutexGuard<'_, BTreeMap<u32, TcpStream>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that gives answers, and how many are owed.
pub(super) struct Answers {
    sender: Option<Sender<(OpId, Outcome)>>,
    owed: Arc<(Mutex<u64>, Condvar)>,
    is_draining: AtomicBool,
    thread: Option<JoinHandle<()>>,
}

impl Answers {
    pub(super) fn new(done: Done) -> Self {
        // As many can wait as commands are in flight, which is the machine's to bound.
        let (sender, receiver) = channel::<(OpId, Outcome)>();
        let owed = Arc::new((Mutex::new(0), Condvar::new()));
        let shared = owed.clone();
        let body = move || {
            for (op, outcome) in receiver {
                done(op, outcome);
                *shared.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
                shared.1.notify_all();
            }
        };
        let thread = std::thread::Builder::new().name("wire-answers".into()).spawn(body);
        let thread = Some(thread.expect("a thread at the start of the process"));
        Self { sender: Some(sender), owed, is_draining: AtomicBool::new(false), thread }
    }

    /// One more answer is owed. False if no work is to be begun for it.
    pub(super) fn expect(&self) -> bool {
        *self.owed.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        !self.is_draining.load(Ordering::SeqCst)
    }

    pub(super) fn give(&self, op: OpId, outcome: Outcome) {
        let _ = self.sender().send((op, outcome));
    }

    pub(super) fn sender(&self) -> Sender<(OpId, Outcome)> {
        self.sender.clone().expect("there until it is dropped")
    }

    /// Owes no more than now, and waits until nothing is owed.
    pub(super) fn drain(&self, deadline: Instant) -> bool {
        self.is_draining.store(true, Ordering::SeqCst);
        let owed = self.owed.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = deadline.saturating_duration_since(Instant::now());
        let waited = self.owed.1.wait_timeout_while(owed, rest, |owed| *owed > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

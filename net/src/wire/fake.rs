//! A transport that moves nothing: for measuring one side alone.
//!
//! It greets a peer like any other, saying so, and is let in only by one that moves nothing either: a request is never
//! answered from pages that nobody filled because of a setting on one end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use pd_core::id::{OpId, WorkerId};
use pd_core::op::{Fault, Outcome, Push};

use super::count::{Counters, Counts};
use super::frame::{Hello, VERSION};
use super::sender::Answers;
use super::{Done, Endpoint, Transport, WireConfig, stream};

/// Answers `Moved` at once.
pub struct Fake {
    peers: Arc<Mutex<BTreeMap<WorkerId, Peer>>>,
    pushes: Option<Sender<(OpId, Push)>>,
    counts: Arc<Counts>,
    answers: Arc<Answers>,
    thread: Option<JoinHandle<()>>,
}

struct Peer {
    endpoint: Endpoint,
    /// What its greeting said, once there was a push.
    is_fake: Option<bool>,
}

impl Fake {
    /// `page_bytes` is what pages would have.
    #[must_use]
    pub fn new(config: WireConfig, page_bytes: u64, done: Done) -> Self {
        let (pushes, receiver) = channel::<(OpId, Push)>();
        let peers: Arc<Mutex<BTreeMap<WorkerId, Peer>>> = Arc::default();
        let counts: Arc<Counts> = Arc::default();
        let answers = Arc::new(Answers::new(done));
        let shared = (peers.clone(), counts.clone(), answers.clone());
        let body = move || {
            let (peers, counts, answers) = shared;
            for (op, push) in receiver {
                let outcome = answer(&config, page_bytes, &peers, &counts, &push);
                answers.give(op, outcome);
            }
        };
        let thread = std::thread::Builder::new().name("wire-fake".into()).spawn(body);
        let thread = Some(thread.expect("a thread at the start of the process"));
        Self { peers, pushes: Some(pushes), counts, answers, thread }
    }
}

fn answer(
    config: &WireConfig,
    page_bytes: u64,
    peers: &Mutex<BTreeMap<WorkerId, Peer>>,
    counts: &Counts,
    push: &Push,
) -> Outcome {
    let known = {
        let peers = peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(&push.to).map(|peer| (peer.endpoint.clone(), peer.is_fake))
    };
    let (endpoint, is_fake) = match known {
        None => return Outcome::Failed(Fault::Unreachable),
        Some((endpoint, _)) if endpoint.epoch != push.epoch => return Outcome::Failed(Fault::Fenced),
        Some(known) => known,
    };
    let is_fake = is_fake.unwrap_or_else(|| {
        let hello = Hello {
            version: VERSION,
            from: config.worker,
            from_epoch: config.epoch,
            to: endpoint.id,
            to_epoch: endpoint.epoch,
            page_bytes,
            stream: 0,
            wants_shared: false,
            is_fake: true,
        };
        let knocked = stream::knock(&endpoint.address, &hello, config.connect_timeout);
        if let Err(reason) = &knocked {
            Counts::add(&counts.rejected, 1);
            tracing::warn!(peer = endpoint.id.0, reason, "cannot pretend to push KV to the peer");
        }
        let mut peers = peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get_mut(&push.to).filter(|peer| peer.endpoint == endpoint) {
            peer.is_fake = Some(knocked.is_ok());
        }
        knocked.is_ok()
    });
    if !is_fake {
        return Outcome::Failed(Fault::Unreachable);
    }
    Counts::add(&counts.faked, 1);
    Outcome::Moved
}

impl Transport for Fake {
    fn up(&self, peer: &Endpoint) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.get(&peer.id).is_none_or(|known| known.endpoint != *peer) {
            peers.insert(peer.id, Peer { endpoint: peer.clone(), is_fake: None });
        }
    }

    fn down(&self, peer: WorkerId) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }

    fn push(&self, op: OpId, push: Push) {
        if !self.answers.expect() {
            return self.answers.give(op, Outcome::Failed(Fault::Withdrawn));
        }
        let pushes = self.pushes.as_ref().expect("there until it is dropped");
        if pushes.send((op, push)).is_err() {
            self.answers.give(op, Outcome::Failed(Fault::Device));
        }
    }

    fn drain(&self, deadline: Instant) -> bool {
        self.answers.drain(deadline)
    }

    fn counters(&self) -> Counters {
        self.counts.read()
    }

    fn moves(&self) -> bool {
        false
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.pushes = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fake").finish_non_exhaustive()
    }
}

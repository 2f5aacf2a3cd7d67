<<<<<<< HEAD
//! Connections between workers that carry messages, not KV.
//!
//! A decode worker connects to the prefill workers that requests name, and keeps those connections: when one breaks it
//! is made again, with the life that answers then. A prefill worker takes connections. Messages are ordered and reliable
//! while a connection is up, and lost when it is not: core's protocol is made for that.
//!
//! ```text
//!   decode                                   prefill
//!     │ GET /pd/worker ────────────────▶ bootstrap server (8998)
//!     │ ◀── worker, control address
//!     │ ══ greeting ═══════════════════▶ control listener
//!     │ ◀═════════════════ greeting ══
//!     │   Peer up                          Peer up            to the machines
//!     │ ◀═ messages ═▶
//! ```

pub mod bootstrap;
pub mod frame;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pd_core::id::{Epoch, WorkerId};
use pd_core::message::Message;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::bootstrap::Card;
use self::frame::{FrameError, Greeting};

/// What is heard of peers, in order for each of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    /// A connection is up, in this life; KV goes to this address.
    Up(Greeting),
    /// It is down.
    Down(WorkerId),
    /// A message came.
    Message(WorkerId, Box<Message>),
}

/// Takes what is heard. Must not block for long: it is called from the runtime.
pub type Hear = Arc<dyn Fn(Heard) + Send + Sync>;

/// Limits of control connections.
#[derive(Clone, Debug)]
pub struct CtrlConfig {
    /// Who we are.
    pub greeting: Greeting,
    /// Longest time to connect, or for a greeting.
    pub greeting_timeout: Duration,
    /// First pause before connecting again; doubles up to the next.
    pub backoff: Duration,
    /// Longest pause before connecting again.
    pub backoff_max: Duration,
    /// How long a decode worker looks for a prefill worker that a request names.
    pub lookup_timeout: Duration,
    /// Most connections at once.
    pub connections_max: usize,
}

impl CtrlConfig {
    /// Three seconds for a greeting, 50 ms to 2 s between attempts, 30 s for a lookup, a thousand connections.
    #[must_use]
    pub fn new(greeting: Greeting) -> Self {
        Self {
            greeting,
            greeting_timeout: Duration::from_secs(3),
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            lookup_timeout: Duration::from_secs(30),
            connections_max: 1024,
        }
    }
}

/// All control connections of a worker.
#[derive(Clone)]
pub struct Ctrl(Arc<Inner>);

struct Inner {
    config: CtrlConfig,
    hear: Hear,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Connections that are up, by peer: their number, and where messages go.
    links: BTreeMap<WorkerId, Link>,
    /// Prefill workers that are looked after, by bootstrap address.
    known: BTreeMap<String, watch::Receiver<Found>>,
    tasks: Vec<JoinHandle<()>>,
    count: u64,
    open: usize,
    is_closed: bool,
}

struct Link {
    number: u64,
    epoch: Epoch,
    /// Dropping it ends the connection.
    outbox: mpsc::UnboundedSender<Vec<u8>>,
}

/// What is known of a prefill worker that is looked after.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Found {
    Looking(String),
    Worker(WorkerId),
}

impl fmt::Debug for Ctrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Ctrl").field("up", &state.links.len()).field("known", &state.known.len()).finish()
    }
}

impl Ctrl {
    /// No connections yet. To be made inside a tokio runtime, which its tasks run on.
    #[must_use]
    pub fn new(config: CtrlConfig, hear: Hear) -> Self {
        Self(Arc::new(Inner { config, hear, state: Mutex::default() }))
    }

    /// Takes connections of peers.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn listen(&self, address: &str) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let ctrl = self.clone();
        self.keep(tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, from)) => ctrl.welcome(stream, from),
                    // Out of files, for instance: others may close some.
                    Err(error) => {
                        tracing::warn!("cannot take a control connection: {error}");
                        tokio::time::sleep(ctrl.0.config.backoff_max).await;
                    }
                }
            }
        }));
        Ok(bound)
    }

    /// The prefill worker whose bootstrap server is at `host:port`; a connection to it is made and kept.
    ///
    /// # Errors
    /// If nobody answers there in time: what was tried, and what came back.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<WorkerId, String> {
        let address = if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let mut found = self.look_after(&address);
        let wait = async { found.wait_for(|found| matches!(found, Found::Worker(_))).await.map(|found| found.clone()) };
        let is_closed = match timeout(self.0.config.lookup_timeout, wait).await {
            Ok(Ok(Found::Worker(worker))) => return Ok(worker),
            Ok(Ok(Found::Looking(_))) | Err(_) => false,
            Ok(Err(_)) => true,
        };
        let last = match &*found.borrow() {
            Found::Worker(worker) => return Ok(*worker),
            Found::Looking(_) if is_closed => "this worker is stopping".to_owned(),
            Found::Looking(why) => why.clone(),
        };
        Err(format!(
            "no prefill worker at bootstrap address {address} within {} s: {last}",
            self.0.config.lookup_timeout.as_secs()
        ))
    }

    /// Sends a message to a peer that is up; it is lost otherwise.
    pub fn send(&self, to: WorkerId, message: &Message) {
        let state = self.state();
        if let Some(link) = state.links.get(&to) {
            // Fails only while the link is being torn down.
            let _ = link.outbox.send(frame::frame(message));
        }
    }

    /// Peers that are up, and their lives.
    #[must_use]
    pub fn up(&self) -> Vec<(WorkerId, Epoch)> {
        self.state().links.iter().map(|(id, link)| (*id, link.epoch)).collect()
    }

    /// Closes everything.
    pub fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.tasks.drain(..).for_each(|task| task.abort());
        state.known.clear();
        state.links.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, task: JoinHandle<()>) {
        let mut state = self.state();
        if state.is_closed {
            task.abort();
        } else {
            state.tasks.retain(|task| !task.is_finished());
            state.tasks.push(task);
        }
    }

    /// Takes a connection that somebody made to us.
    fn welcome(&self, stream: TcpStream, from: SocketAddr) {
        let is_full = {
            let mut state = self.state();
            let is_full = state.open >= self.0.config.connections_max;
            state.open += usize::from(!is_full);
            is_full
        };
        if is_full {
            tracing::warn!(%from, "a control connection too many is closed");
            return;
        }
        let ctrl = self.clone();
        self.keep(tokio::spawn(async move {
            match ctrl.meet(stream).await {
                Ok((greeting, reader, number)) => ctrl.listen_to(greeting.worker, number, reader).await,
                Err(error) => tracing::warn!(%from, "a control connection is refused: {error}"),
            }
            ctrl.state().open -= 1;
        }));
    }

    /// Greets and hears the greeting; the connection is up then.
    async fn meet(&self, stream: TcpStream) -> Result<(Greeting, BufReader<OwnedReadHalf>, u64), FrameError> {
        stream.set_nodelay(true)?;
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let greeting = timeout(self.0.config.greeting_timeout, async {
            frame::greet(&mut writer, &self.0.config.greeting).await?;
            frame::greeted(&mut reader).await
        })
        .await
        .map_err(|_| FrameError::Io(std::io::ErrorKind::TimedOut.into()))??;
        let (outbox, mut letters) = mpsc::unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            while let Some(bytes) = letters.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            // The reader of the other end sees the end of the stream.
            let _ = writer.shutdown().await;
        });
        let number = self.rise(&greeting, outbox);
        Ok((greeting, reader, number))
    }

    /// Notes a connection and tells of it; one to the same peer that is up is down then.
    fn rise(&self, greeting: &Greeting, outbox: mpsc::UnboundedSender<Vec<u8>>) -> u64 {
        let mut state = self.state();
        state.count += 1;
        let number = state.count;
        let link = Link { number, epoch: greeting.epoch, outbox };
        // Told under the lock, so that nobody hears a letter of a connection before its rise.
        if state.links.insert(greeting.worker, link).is_some() {
            (self.0.hear)(Heard::Down(greeting.worker));
        }
        (self.0.hear)(Heard::Up(greeting.clone()));
        number
    }

    /// Hears messages until the connection breaks.
    async fn listen_to(&self, peer: WorkerId, number: u64, mut reader: BufReader<OwnedReadHalf>) {
        loop {
            let heard = frame::message(&mut reader).await;
            let mut state = self.state();
            if state.links.get(&peer).is_none_or(|link| link.number != number) {
                // Another connection has taken its place, or all are closed.
                return;
            }
            match heard {
                Ok(message) => (self.0.hear)(Heard::Message(peer, Box::new(message))),
                Err(error) => {
                    tracing::info!(%peer, "a control connection ends: {error}");
                    state.links.remove(&peer);
                    (self.0.hear)(Heard::Down(peer));
                    return;
                }
            }
        }
    }

    /// Finds a prefill worker and keeps a connection to it, from now on.
    fn look_after(&self, address: &str) -> watch::Receiver<Found> {
        let mut state = self.state();
        if let Some(found) = state.known.get(address) {
            return found.clone();
        }
        let (found, seen) = watch::channel(Found::Looking("nobody has answered yet".to_owned()));
        state.known.insert(address.to_owned(), seen.clone());
        drop(state);
        let (ctrl, address) = (self.clone(), address.to_owned());
        self.keep(tokio::spawn(async move {
            let mut pause = ctrl.0.config.backoff;
            loop {
                match ctrl.attempt(&address, &found).await {
                    Ok(()) => pause = ctrl.0.config.backoff,
                    Err(why) => {
                        tracing::debug!(%address, "no connection to a prefill worker: {why}");
                        found.send_if_modified(|found| match found {
                            Found::Looking(last) => {
                                *last = why;
                                true
                            }
                            Found::Worker(_) => false,
                        });
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ctrl.0.config.backoff_max);
            }
        }));
        seen
    }

    /// Finds the worker, connects, and listens until the connection breaks.
    async fn attempt(&self, address: &str, found: &watch::Sender<Found>) -> Result<(), String> {
        let limit = self.0.config.greeting_timeout;
        let card: Card = timeout(limit, bootstrap::lookup(address)).await.map_err(|_| "no answer in time")??;
        let connected = timeout(limit, TcpStream::connect(&card.control)).await;
        let stream = connected.map_err(|_| format!("{} does not take connections", card.control))?;
        let stream = stream.map_err(|error| format!("cannot connect to {}: {error}", card.control))?;
        let (greeting, reader, number) = self.meet(stream).await.map_err(|error| error.to_string())?;
        if greeting.worker != card.worker {
            return Err(format!("{} is worker {}, not {}", card.control, greeting.worker, card.worker));
        }
        found.send_replace(Found::Worker(greeting.worker));
        self.listen_to(greeting.worker, number, reader).await;
        Ok(())
    }
}
=======
//! What workers say to each other, and how they find each other.
//!
//! [`Peers`] keeps one connection to each peer and carries [`pd_core::message::Message`] over it, in order and complete
//! while it is up; [`bootstrap`] is where a decode worker learns which prefill worker a request means.
//!
//! ```text
//!  one peer, as its events tell it:    up(life)  recv  recv  ...  down    up(life)  recv ...
//! ```
//!
//! 1. The events of a peer come one at a time, and a `down` before the next `up`: another life is a down and an up.
//! 2. `down` comes after the last `recv` of its connection; nothing of an earlier one comes late.
//! 3. Of two connections between the same lives one survives, and both ends agree which: a newer one of the same caller
//!    replaces its older one (the caller lost it, and we have not noticed yet); of two that crossed, that of the smaller
//!    worker id stays.
//! 4. A peer that does not read is not waited for: its outbox has a limit, behind which the connection is cut.
//!
//! Threads, not tokio: an event may block (the inbox of a worker is bounded, and a peer that floods it has to wait), order
//! is that of one loop, and a deployment has tens of peers, not thousands. Heartbeats are core's own pings, answered from
//! the step loop; the socket only watches for hosts that vanish without a word.

pub mod bootstrap;
mod frame;
mod link;
mod peers;

pub use frame::FRAME_BYTES_MAX;
pub use peers::{Counters, Peers, PeersConfig};

use pd_core::id::{Epoch, WorkerId};
use pd_core::message::Message;

/// One life of a peer, as it introduces itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Life {
    /// Who.
    pub id: WorkerId,
    /// In which life.
    pub epoch: Epoch,
    /// Where its pages are pushed to: host and port of its [`crate::wire::Receiver`].
    pub wire: String,
}

/// What becomes of connections. Called from the connection's thread; may block, which holds the peer back.
pub trait Events: Send + Sync {
    /// A peer is connected.
    fn up(&self, peer: &Life);
    /// It is not any more. To be passed on once no write of this life can land.
    fn down(&self, peer: &Life);
    /// It says something.
    fn recv(&self, from: WorkerId, message: Message);
}

#[cfg(test)]
mod tests;
>>>>>>> wt-wire

//! All control connections of a worker.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pd_core::id::{Epoch, WorkerId};
use pd_core::message::{Message, VERSION};
use pd_sync::{Gate, Refused};

use super::frame::{self, Broken, Greeting};
use super::link::{self, Link};
use super::{Events, Life};
use crate::accept::{Accept, Listener};

/// Limits of the control connections of a worker.
#[derive(Clone, Debug)]
pub struct PeersConfig {
    /// Who this is.
    pub worker: WorkerId,
    /// In which life.
    pub epoch: Epoch,
    /// Where to listen.
    pub listen: String,
    /// Where peers push pages to, as they reach it.
    pub wire: String,
    /// Longest time to connect and greet.
    pub connect_timeout: Duration,
    /// Pause before the first new attempt to reach a peer; doubles each time.
    pub backoff: Duration,
    /// Longest such pause.
    pub backoff_max: Duration,
    /// Time without a sign of the other host, although something is under way to it, until it counts as gone.
    pub host_timeout: Duration,
    /// Messages on their way to a peer before its connection is cut.
    pub outbox_messages_max: usize,
    /// Most connections that others may make.
    pub connections_max: u32,
}

impl PeersConfig {
    /// Any port of the loopback device.
    #[must_use]
    pub fn new(worker: WorkerId, epoch: Epoch, wire: String) -> Self {
        Self {
            worker,
            epoch,
            listen: "127.0.0.1:0".into(),
            wire,
            connect_timeout: Duration::from_secs(3),
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            host_timeout: Duration::from_secs(30),
            outbox_messages_max: 4096,
            connections_max: 1024,
        }
    }
}

/// Counted since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Connections whose bytes were malformed.
    pub malformed: u64,
    /// Connections that were refused: another version, this very worker, a worse one of two, or beyond the limit.
    pub refused: u64,
    /// Messages to peers that were not connected, which are lost.
    pub lost: u64,
    /// Connections that were cut because the peer did not read.
    pub flooded: u64,
}

/// The control connections of a worker.
pub struct Peers {
    inner: Arc<Inner>,
    listener: Listener,
    /// One thread for each address that is to be kept connected.
    dialers: Mutex<Dialers>,
}

/// By address: what stops a dialer, and its thread.
type Dialers = BTreeMap<String, (Arc<Gate>, JoinHandle<()>)>;

/// What the threads share.
pub(super) struct Inner {
    pub(super) config: PeersConfig,
    pub(super) greeting: Greeting,
    pub(super) events: Arc<dyn Events>,
    links: Mutex<BTreeMap<WorkerId, Arc<Link>>>,
    /// Threads of connections and dialers hold a pass.
    gate: Gate,
    accepted: AtomicU32,
    malformed: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
    flooded: AtomicU64,
}

impl Peers {
    /// Listens for peers.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn listen(config: PeersConfig, events: Arc<dyn Events>) -> io::Result<Self> {
        let listener = TcpListener::bind(&config.listen)?;
        let greeting =
            Greeting { version: VERSION, worker: config.worker, epoch: config.epoch, wire: config.wire.clone() };
        if frame::frame(&greeting).is_none_or(|bytes| bytes.len() > frame::GREETING_BYTES_MAX as usize) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the address for pages is too long"));
        }
        let inner = Arc::new(Inner {
            config,
            greeting,
            events,
            links: Mutex::default(),
            gate: Gate::new(),
            accepted: AtomicU32::new(0),
            malformed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            flooded: AtomicU64::new(0),
        });
        let listener = Listener::start(&inner, listener)?;
        Ok(Self { inner, listener, dialers: Mutex::default() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Connects to whoever is at an address, and again whenever that is lost. Once is enough.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn connect(&self, address: &str) -> io::Result<()> {
        let mut dialers = self.dialers();
        if dialers.contains_key(address) {
            return Ok(());
        }
        let stop = Arc::new(Gate::new());
        let (inner, target, stopped) = (self.inner.clone(), address.to_owned(), stop.clone());
        let thread =
            std::thread::Builder::new().name("ctrl-dial".into()).spawn(move || dial(&inner, &target, &stopped))?;
        dialers.insert(address.to_owned(), (stop, thread));
        Ok(())
    }

    /// Keeps no connection to an address any more; one that is up stays.
    pub fn forget(&self, address: &str) {
        if let Some((stop, _)) = self.dialers().remove(address) {
            stop.close();
        }
    }

    /// Cuts the connection to a peer.
    pub fn cut(&self, peer: WorkerId) {
        if let Some(link) = self.inner.links().get(&peer) {
            link.kill();
        }
    }

    /// Tells a peer something. False if it is not connected, or does not read: the message is lost. Never waits.
    pub fn send(&self, to: WorkerId, message: &Message) -> bool {
        let link = self.inner.links().get(&to).cloned();
        let sent = match (link, frame::frame(message)) {
            (Some(link), Some(frame)) => match link.outbox.try_send(frame) {
                Ok(()) => true,
                Err(Refused::Closed(_)) => false,
                Err(Refused::Full(_)) => {
                    self.inner.flooded.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(peer = to.0, "control connection cut: the peer does not read");
                    link.kill();
                    false
                }
            },
            (_, None) => {
                tracing::error!(peer = to.0, "a message beyond the limit of a frame");
                false
            }
            (None, Some(_)) => false,
        };
        self.inner.lost.fetch_add(u64::from(!sent), Ordering::Relaxed);
        sent
    }

    /// Peers that are connected, by id.
    #[must_use]
    pub fn connected(&self) -> Vec<Life> {
        self.inner.links().values().map(|link| link.life.clone()).collect()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            malformed: read(&self.inner.malformed),
            refused: read(&self.inner.refused),
            lost: read(&self.inner.lost),
            flooded: read(&self.inner.flooded),
        }
    }

    fn dialers(&self) -> MutexGuard<'_, Dialers> {
        self.dialers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Peers {
    /// Ends all connections; each `down` is told before this returns, so events must not be blocked for good: whoever drops
    /// this closes the inbox first.
    fn drop(&mut self) {
        self.inner.gate.close();
        self.dialers().values().for_each(|(stop, _)| stop.close());
        self.listener.join();
        let links: Vec<_> = self.inner.links().values().cloned().collect();
        links.iter().for_each(|link| link.kill());
        self.inner.gate.drained_until(None);
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("address", &self.address()).field("connected", &self.connected()).finish()
    }
}

impl Inner {
    /// Sets a fresh socket up.
    pub(super) fn prepare(&self, stream: &TcpStream) -> Result<(), Broken> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.config.connect_timeout))?;
        stream.set_write_timeout(Some(self.config.host_timeout))?;
        let socket = socket2::SockRef::from(stream);
        // A host that vanishes sends no farewell.
        let pause = (self.config.host_timeout / 3).max(Duration::from_secs(1));
        socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(pause).with_interval(pause))?;
        socket.set_tcp_user_timeout(Some(self.config.host_timeout))?;
        Ok(())
    }

    /// Lets a connection be the one to its peer. Another one, if it has to go, has told its `down` when this returns.
    pub(super) fn admit(&self, link: &Arc<Link>) -> Result<(), Broken> {
        loop {
            let mut links = self.links();
            if self.gate.is_closed() {
                return Err(Broken::Closing);
            }
            let Some(other) = links.get(&link.life.id).cloned() else {
                links.insert(link.life.id, link.clone());
                return Ok(());
            };
            drop(links);
            if !self.supersedes(link, &other) {
                return Err(Broken::Superseded);
            }
            other.kill();
            other.wait();
        }
    }

    /// Which of two connections to a peer stays. Both ends decide alike.
    fn supersedes(&self, newer: &Link, other: &Link) -> bool {
        if newer.life.epoch != other.life.epoch {
            return newer.life.epoch > other.life.epoch;
        }
        // The same caller calls again: it knows that the other one is lost. Of two that crossed, that of the smaller id.
        newer.is_ours == other.is_ours || newer.is_ours == (self.config.worker < newer.life.id)
    }

    /// A connection has ended, and its `down` is about to be told.
    pub(super) fn dismiss(&self, link: &Arc<Link>) {
        let mut links = self.links();
        if links.get(&link.life.id).is_some_and(|it| Arc::ptr_eq(it, link)) {
            links.remove(&link.life.id);
        }
    }

    fn is_up(&self, peer: WorkerId) -> Option<Arc<Link>> {
        self.links().get(&peer).cloned()
    }

    fn note(&self, what: &str, result: &Result<(), Broken>) {
        let Err(broken) = result else { return };
        if broken.is_malformed() {
            self.malformed.fetch_add(1, Ordering::Relaxed);
        } else if !matches!(broken, Broken::Io(_) | Broken::Closing) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        tracing::info!(peer = what, %broken, "control connection ended");
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<WorkerId, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accept for Inner {
    const LISTENER: &'static str = "ctrl-listen";
    const THREAD: &'static str = "ctrl-in";

    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn accepted(&self) -> &AtomicU32 {
        &self.accepted
    }

    fn connections_max(&self) -> u32 {
        self.config.connections_max
    }

    fn on_excess(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn serve(self: &Arc<Self>, stream: TcpStream) {
        let (life, result) = link::run(self, stream, false);
        self.note(&life.map_or_else(String::new, |life| life.id.to_string()), &result);
    }
}

/// Keeps an address connected until it is told to stop.
fn dial(inner: &Arc<Inner>, address: &str, stop: &Gate) {
    let Some(_pass) = inner.gate.enter() else { return };
    let mut pause = inner.config.backoff;
    let mut known: Option<WorkerId> = None;
    while !stop.is_closed() {
        // It may have called us: then there is nothing to do until that has ended.
        if let Some(link) = known.and_then(|peer| inner.is_up(peer)) {
            while inner.is_up(link.life.id).is_some() && !stop.wait_until(Some(Instant::now() + inner.config.backoff)) {
            }
            continue;
        }
        match reach(address, inner.config.connect_timeout) {
            Ok(stream) => {
                let (life, result) = link::run(inner, stream, true);
                inner.note(address, &result);
                if result.is_ok() {
                    pause = inner.config.backoff;
                }
                known = life.map(|life| life.id).or(known);
            }
            Err(error) => tracing::info!(address, %error, "cannot reach the peer"),
        }
        if stop.wait_until(Some(Instant::now() + pause)) {
            return;
        }
        pause = pause.saturating_mul(2).min(inner.config.backoff_max);
    }
}

fn reach(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

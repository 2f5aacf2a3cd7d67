//! The sink's end: leases pages to peers, takes their connections, and says when no write can land any more.

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pd_core::id::{Epoch, Generation, GpuPage, Room, WorkerId};
use pd_core::message::{End, Message};
use pd_sync::{Arena, Gate, Writing};

use super::count::{Counters, Counts};
use super::frame::Reject;
use super::lease::{GrantError, Lease, Leases};
use super::serve;
use crate::accept::{Accept, Listener};

/// Limits of a sink.
#[derive(Clone, Debug)]
pub struct ReceiverConfig {
    /// Whose pages.
    pub worker: WorkerId,
    /// In which life.
    pub epoch: Epoch,
    /// Where to listen. Anything but the loopback device is for whoever can reach it: KV is neither signed nor hidden.
    pub listen: String,
    /// Longest time for a greeting.
    pub greeting_timeout: Duration,
    /// Longest pause in the middle of a chunk before the connection counts as broken.
    pub progress_timeout: Duration,
    /// Longest time that a revocation waits for a write in shared memory that has begun.
    pub revoke_timeout: Duration,
    /// Most connections, those that have not greeted yet included.
    pub connections_max: u32,
    /// Most connections of one peer.
    pub streams_max: u32,
    /// Most leases at once.
    pub leases_max: u32,
}

impl ReceiverConfig {
    /// Any port of the loopback device, 10 s without progress.
    #[must_use]
    pub fn new(worker: WorkerId, epoch: Epoch) -> Self {
        Self {
            worker,
            epoch,
            listen: "127.0.0.1:0".into(),
            greeting_timeout: Duration::from_secs(3),
            progress_timeout: Duration::from_secs(10),
            revoke_timeout: Duration::from_secs(1),
            connections_max: 1024,
            streams_max: 16,
            leases_max: 100_000,
        }
    }
}

/// The sink's end of all wires of a worker.
#[derive(Debug)]
pub struct Receiver {
    inner: Arc<Inner>,
    listener: Listener,
}

/// What the threads of connections share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: ReceiverConfig,
    /// `None` if nothing is ever moved.
    pub(super) arena: Option<Arc<Arena>>,
    pub(super) counts: Counts,
    leases: Mutex<Leases>,
    connections: Mutex<BTreeMap<(WorkerId, u32), Arc<Connection>>>,
    /// Threads that serve a connection hold a pass.
    gate: Gate,
    threads: AtomicU32,
}

/// One connection that has greeted.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    is_dead: AtomicBool,
    /// Closed when its thread has ended: nothing of it can be written any more.
    ended: Gate,
}

impl Receiver {
    /// Listens for peers that write into `arena`.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn listen(config: ReceiverConfig, arena: Arc<Arena>) -> io::Result<Self> {
        Self::start(config, Some(arena))
    }

    /// Takes leases and moves nothing: peers that would are told so.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn fake(config: ReceiverConfig) -> io::Result<Self> {
        Self::start(config, None)
    }

    fn start(config: ReceiverConfig, arena: Option<Arc<Arena>>) -> io::Result<Self> {
        let listener = TcpListener::bind(&config.listen)?;
        let inner = Arc::new(Inner {
            config,
            arena,
            counts: Counts::default(),
            leases: Mutex::default(),
            connections: Mutex::default(),
            gate: Gate::new(),
            threads: AtomicU32::new(0),
        });
        let listener = Listener::start(&inner, listener)?;
        Ok(Self { inner, listener })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Leases pages to a life of a peer, for one attempt: to be called before the want is sent.
    ///
    /// # Errors
    /// [`GrantError`]; nothing was leased, and the want must not be sent.
    pub fn grant(
        &self,
        room: Room,
        generation: Generation,
        peer: WorkerId,
        epoch: Epoch,
        pages: &[GpuPage],
    ) -> Result<(), GrantError> {
        let pages: Vec<u32> = pages.iter().map(|page| page.0).collect();
        let total = self.inner.arena.as_ref().map_or(u32::MAX, |arena| arena.pages());
        if let Some(page) = pages.iter().find(|page| **page >= total) {
            return Err(GrantError::NoPage { page: *page, pages: total });
        }
        let mut leases = self.inner.leases();
        let lease = Lease { room, peer, epoch, pages: pages.clone(), is_ended: false };
        leases.add(generation, lease, self.inner.config.leases_max)?;
        if let Some(arena) = &self.inner.arena
            && let Err(busy) = arena.grant(&pages, generation.0)
        {
            leases.remove(generation);
            return Err(GrantError::Busy { page: busy.page });
        }
        Ok(())
    }

    /// Ends a lease. After `Ok` no write of it can land any more; one that is not known has ended before.
    ///
    /// # Errors
    /// If a peer has begun to write into shared memory and has not ended within the configured time: it is stopped, not
    /// gone. No further write begins, and the pages cannot be leased, but they must not be used: call again, and hold back
    /// what depends on it until then.
    pub fn revoke(&self, room: Room, generation: Generation) -> Result<(), Writing> {
        let Some(pages) = self.inner.leases().end(room, generation) else { return Ok(()) };
        if let Some(arena) = &self.inner.arena {
            arena.revoke(&pages, generation.0, Instant::now() + self.inner.config.revoke_timeout)?;
        }
        self.inner.leases().remove(generation);
        Ok(())
    }

    /// Ends all leases and connections of a peer: to be called before its machine is told that the peer is gone, or lives
    /// another life.
    ///
    /// # Errors
    /// As [`Receiver::revoke`].
    pub fn fence_peer(&self, peer: WorkerId) -> Result<(), Writing> {
        self.inner.cut(peer);
        let leases = self.inner.leases().of(peer);
        let results: Vec<_> = leases.into_iter().map(|(room, generation)| self.revoke(room, generation)).collect();
        results.into_iter().collect()
    }

    /// To be called with each message before it is sent: a want leases its pages, our abort ends the lease.
    ///
    /// # Errors
    /// [`GrantError`]: the want must not be sent. (A write that goes on after an abort is not an error here: the source's
    /// acknowledgement is still to come, and [`Receiver::on_recv`] waits for it.)
    pub fn on_send(&self, to: WorkerId, message: &Message) -> Result<(), GrantError> {
        match message {
            Message::Want(want) => self.grant(want.room, want.generation, to, want.source, &want.pages),
            Message::Abort { room, generation, by: End::Sink, .. } => {
                if let Err(writing) = self.revoke(*room, *generation) {
                    tracing::warn!(%room, %generation, %writing, "aborted while it is being written");
                }
                Ok(())
            }
            Message::Abort { by: End::Source, .. }
            | Message::AbortAck { .. }
            | Message::Handoff(_)
            | Message::Hello(_)
            | Message::Incompatible(_)
            | Message::Ping { .. }
            | Message::Pong { .. } => Ok(()),
        }
    }

    /// To be called with each message before the machine sees it: what ends an attempt ends its lease.
    ///
    /// # Errors
    /// As [`Receiver::revoke`]: the machine must not see the message yet.
    pub fn on_recv(&self, from: WorkerId, message: &Message) -> Result<(), Writing> {
        let (room, generation, sink, source) = match message {
            Message::Handoff(handoff) => (handoff.room, handoff.generation, handoff.epoch, handoff.source),
            Message::AbortAck { room, generation, epoch, source }
            | Message::Abort { room, generation, epoch, source, by: End::Source, .. } => {
                (*room, *generation, *epoch, *source)
            }
            Message::Abort { by: End::Sink, .. }
            | Message::Want(_)
            | Message::Hello(_)
            | Message::Incompatible(_)
            | Message::Ping { .. }
            | Message::Pong { .. } => return Ok(()),
        };
        // Only the holder of a lease can end it.
        if sink != self.inner.config.epoch || self.inner.leases().holder(room, generation) != Some((from, source)) {
            return Ok(());
        }
        self.revoke(room, generation)
    }

    /// Leases that stand, and those whose last write has not ended.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.inner.leases().len()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner.counts.read()
    }

    /// False if nothing is ever moved.
    #[must_use]
    pub fn moves(&self) -> bool {
        self.inner.arena.is_some()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.inner.gate.close();
        self.listener.join();
        let all: Vec<_> = self.inner.connections().values().cloned().collect();
        all.iter().for_each(|connection| connection.kill());
        // Those that have not greeted end by their timeout.
        self.inner.gate.drained_until(None);
    }
}

impl Inner {
    /// True if this life of this peer may write for the attempt.
    pub(super) fn admits(&self, room: Room, generation: Generation, peer: WorkerId, epoch: Epoch) -> bool {
        self.leases().admits(room, generation, peer, epoch)
    }

    /// Takes a connection that has greeted. One before it on the same stream is ended first, so that nothing of it lands
    /// behind what is sent again.
    pub(super) fn enlist(
        &self,
        peer: WorkerId,
        stream: u32,
        socket: &TcpStream,
    ) -> io::Result<Result<Arc<Connection>, Reject>> {
        let full = Reject::Full { max: self.config.streams_max };
        if stream >= self.config.streams_max {
            return Ok(Err(full));
        }
        let connection =
            Arc::new(Connection { stream: socket.try_clone()?, is_dead: AtomicBool::new(false), ended: Gate::new() });
        loop {
            let mut connections = self.connections();
            if self.gate.is_closed() {
                return Ok(Err(full));
            }
            let Some(older) = connections.get(&(peer, stream)).cloned() else {
                connections.insert((peer, stream), connection.clone());
                return Ok(Ok(connection));
            };
            drop(connections);
            self.end(&older, peer, stream);
        }
    }

    /// The thread of a connection has ended.
    pub(super) fn discharge(&self, peer: WorkerId, stream: u32, connection: &Arc<Connection>) {
        connection.ended.close();
        let mut connections = self.connections();
        if connections.get(&(peer, stream)).is_some_and(|it| Arc::ptr_eq(it, connection)) {
            connections.remove(&(peer, stream));
        }
    }

    /// Ends all connections of a peer.
    fn cut(&self, peer: WorkerId) {
        let all: Vec<_> = self
            .connections()
            .range((peer, 0)..=(peer, u32::MAX))
            .map(|((_, stream), connection)| (*stream, connection.clone()))
            .collect();
        for (stream, connection) in all {
            self.end(&connection, peer, stream);
        }
    }

    /// Ends a connection and waits for its thread, which never waits for anything but its socket.
    fn end(&self, connection: &Arc<Connection>, peer: WorkerId, stream: u32) {
        connection.kill();
        connection.ended.wait_until(None);
        self.discharge(peer, stream, connection);
    }

    pub(super) fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, BTreeMap<(WorkerId, u32), Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Nothing that arrives from here on is written.
    fn kill(&self) {
        self.is_dead.store(true, Ordering::SeqCst);
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::SeqCst)
    }
}

impl Accept for Inner {
    const LISTENER: &'static str = "wire-listen";
    const THREAD: &'static str = "wire-sink";

    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn accepted(&self) -> &AtomicU32 {
        &self.threads
    }

    fn connections_max(&self) -> u32 {
        self.config.connections_max
    }

    fn on_excess(&self) {
        Counts::add(&self.counts.rejected, 1);
    }

    fn serve(self: &Arc<Self>, stream: TcpStream) {
        serve::run(self, stream);
    }
}

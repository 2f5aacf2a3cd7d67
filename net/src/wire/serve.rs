//! One connection at the sink: greets, then writes chunks into leased pages.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pd_core::id::{Epoch, WorkerId};
use pd_sync::{Arena, Denied};
use thiserror::Error;

use super::count::Counts;
use super::frame::{self, Ack, CHUNK_BYTES, Chunk, Hello, Malformed, Place, Reject, Reply, Status, VERSION, Welcome};
use super::receiver::{Connection, Inner};

/// Why a connection ended.
#[derive(Debug, Error)]
enum Reason {
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("refused: {0}")]
    Rejected(#[from] Reject),
    #[error("no byte for {0:?} in the middle of a chunk")]
    Stalled(Duration),
    #[error("ended by this side")]
    Dead,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// How much is read and thrown away after something malformed, so that the other end gets to read why.
const LINGER_BYTES: usize = 1 << 20;
const LINGER: Duration = Duration::from_millis(100);

/// Serves a connection until it ends.
pub(super) fn run(inner: &Arc<Inner>, mut stream: TcpStream) {
    let (peer, reason) = match greet(inner, &mut stream) {
        Err(reason) => (None, Some(reason)),
        Ok((hello, connection)) => {
            Counts::add(&inner.counts.connections, 1);
            let mut sink =
                Sink { inner, connection: &connection, stream: &mut stream, from: (hello.from, hello.from_epoch) };
            let ended = sink.run();
            inner.discharge(hello.from, hello.stream, &connection);
            (Some(hello.from), ended.err())
        }
    };
    let Some(reason) = reason else { return };
    match &reason {
        Reason::Malformed(malformed) => {
            let is_payload = *malformed == Malformed::Payload;
            Counts::add(if is_payload { &inner.counts.damaged } else { &inner.counts.malformed }, 1);
            linger(&mut stream);
        }
        Reason::Rejected(_) => {
            Counts::add(&inner.counts.rejected, 1);
            linger(&mut stream);
        }
        Reason::Stalled(_) | Reason::Io(_) => Counts::add(&inner.counts.broken, 1),
        Reason::Dead => return,
    }
    tracing::warn!(peer = ?peer.map(|id| id.0), %reason, "wire connection closed");
}

/// Hears who calls, and lets it in or says why not.
fn greet(inner: &Arc<Inner>, stream: &mut TcpStream) -> Result<(Hello, Arc<Connection>), Reason> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(inner.config.greeting_timeout))?;
    stream.set_write_timeout(Some(inner.config.progress_timeout))?;
    let hello: Hello = frame::read_greeting(stream)??;
    let ours = (inner.config.worker, inner.config.epoch);
    let page_bytes = inner.arena.as_ref().map_or(hello.page_bytes, |arena| arena.page_bytes() as u64);
    let rejection = match &hello {
        hello if hello.version != VERSION => Some(Reject::Version { ours: VERSION }),
        hello if hello.to != ours.0 => Some(Reject::Worker { ours: ours.0 }),
        hello if hello.to_epoch != ours.1 => Some(Reject::Epoch { ours: ours.1 }),
        hello if hello.is_fake == inner.arena.is_some() => Some(Reject::Fake),
        hello if hello.page_bytes != page_bytes => Some(Reject::PageBytes { ours: page_bytes }),
        _ => None,
    };
    let admitted = match rejection {
        Some(reject) => Err(reject),
        None => inner.enlist(hello.from, hello.stream, stream)?,
    };
    let connection = match admitted {
        Ok(connection) => connection,
        Err(reject) => {
            frame::write_greeting(stream, &Reply::Reject(reject))?;
            return Err(reject.into());
        }
    };
    let arena = inner.arena.as_ref();
    let identity = arena.filter(|_| hello.wants_shared).and_then(|arena| arena.identity());
    let welcome = Welcome { pages: arena.map_or(0, |arena| arena.pages()), shared: identity.map(Place::from) };
    let greeted = frame::write_greeting(stream, &Reply::Welcome(welcome))
        .and_then(|()| stream.set_read_timeout(Some(inner.config.progress_timeout)));
    if let Err(error) = greeted {
        inner.discharge(hello.from, hello.stream, &connection);
        return Err(error.into());
    }
    Ok((hello, connection))
}

/// A connection that has greeted.
struct Sink<'a> {
    inner: &'a Inner,
    connection: &'a Connection,
    stream: &'a mut TcpStream,
    from: (WorkerId, Epoch),
}

impl Sink<'_> {
    fn run(&mut self) -> Result<(), Reason> {
        let mut sequence = 0;
        let mut scratch = Vec::new();
        loop {
            let mut head = [0; CHUNK_BYTES];
            if !self.fill(&mut head)? {
                return Ok(());
            }
            let chunk = Chunk::from_bytes(&head)?;
            let Some(arena) = self.inner.arena.as_deref() else { return Err(Malformed::Range.into()) };
            let end = u64::from(chunk.offset) + u64::from(chunk.length);
            if chunk.page >= arena.pages() || end > arena.page_bytes() as u64 || chunk.length == 0 {
                return Err(Malformed::Range.into());
            }
            sequence += 1;
            if chunk.sequence != sequence {
                return Err(Malformed::Order.into());
            }
            let status = self.take(arena, &chunk, &mut scratch)?;
            match status {
                Status::Landed => {
                    Counts::add(&self.inner.counts.bytes, u64::from(chunk.length));
                    let is_last = end == arena.page_bytes() as u64;
                    Counts::add(&self.inner.counts.pages, u64::from(is_last));
                }
                Status::Fenced => Counts::add(&self.inner.counts.fenced, 1),
                Status::Busy => Counts::add(&self.inner.counts.busy, 1),
                Status::Damaged => {}
            }
            if chunk.wants_ack || status != Status::Landed {
                self.stream.write_all(&Ack { sequence, status }.to_bytes())?;
            }
            if status == Status::Damaged {
                return Err(Malformed::Payload.into());
            }
        }
    }

    /// Reads a payload into its page, piece by piece as it arrives. The page is held for the copy of a piece, not while
    /// one is awaited. Without a lease it is read and thrown away.
    fn take(&mut self, arena: &Arena, chunk: &Chunk, scratch: &mut Vec<u8>) -> Result<Status, Reason> {
        let (peer, epoch) = self.from;
        let is_admitted = self.inner.admits(chunk.room, chunk.generation, peer, epoch);
        let mut status = if is_admitted { Status::Landed } else { Status::Fenced };
        let mut at = chunk.offset as usize;
        let end = at + chunk.length as usize;
        let mut crc = 0;
        while at < end {
            self.await_bytes()?;
            if status == Status::Landed {
                match arena.write_leased(chunk.page, chunk.generation.0) {
                    Ok(mut page) => {
                        let count = page.fill(at..end, |bytes| {
                            let count = self.stream.read(bytes)?;
                            crc = crc32c::crc32c_append(crc, &bytes[..count]);
                            Ok(count)
                        })?;
                        if !page.finish() {
                            status = Status::Fenced;
                        }
                        if count == 0 {
                            return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
                        }
                        at += count;
                        continue;
                    }
                    Err(Denied::Fenced) => status = Status::Fenced,
                    Err(Denied::Busy) => status = Status::Busy,
                }
            }
            scratch.resize(64 << 10, 0);
            let most = scratch.len().min(end - at);
            let count = self.stream.read(&mut scratch[..most])?;
            if count == 0 {
                return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
            }
            at += count;
        }
        Ok(if status == Status::Landed && crc != chunk.crc { Status::Damaged } else { status })
    }

    /// Waits until there is something to read, or the other end has closed.
    fn await_bytes(&self) -> Result<(), Reason> {
        let peeked = self.stream.peek(&mut [0]);
        if self.connection.is_dead() {
            return Err(Reason::Dead);
        }
        match peeked {
            Ok(_) => Ok(()),
            Err(error) if is_timeout(&error) => Err(Reason::Stalled(self.inner.config.progress_timeout)),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a header. False if the other end has closed before it; between chunks it may be silent for as long as it
    /// likes.
    fn fill(&mut self, head: &mut [u8]) -> Result<bool, Reason> {
        let mut filled = 0;
        while filled < head.len() {
            let result = self.stream.read(&mut head[filled..]);
            if self.connection.is_dead() {
                return Err(Reason::Dead);
            }
            match result {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) && filled == 0 => {}
                Err(error) if is_timeout(&error) => return Err(Reason::Stalled(self.inner.config.progress_timeout)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// True if a socket's timeout has passed.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Closes our direction, and reads what is still on its way for a moment: closing with unread bytes would take back what
/// we said last.
fn linger(stream: &mut TcpStream) {
    let deadline = Instant::now() + LINGER;
    let mut scratch = [0; 4096];
    let mut read = 0;
    if stream.shutdown(Shutdown::Write).is_err() || stream.set_read_timeout(Some(LINGER)).is_err() {
        return;
    }
    while read < LINGER_BYTES && Instant::now() < deadline {
        match stream.read(&mut scratch) {
            Ok(0) | Err(_) => return,
            Ok(count) => read += count,
        }
    }
}

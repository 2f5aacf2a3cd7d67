//! One TCP stream of a source: sends pages in chunks, keeps a window of them under way, and settles what is acknowledged.
//!
//! A stream is one thread that writes and, when its window is full or nothing is left to send, reads. Acknowledgements are
//! 24 bytes and asked for twice a window, so they always fit the socket's buffer and neither end waits for the other's
//! writes.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use pd_core::op::Fault;
use pd_sync::PageRef;
use thiserror::Error;

use super::count::Counts;
use super::frame::{self, ACK_BYTES, Ack, Chunk, Hello, Malformed, Reject, Reply, Status, VERSION, Welcome};
use super::queue::Job;
use super::sender::Context;

/// Why there is no connection.
#[derive(Debug, Error)]
enum Unreached {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Rejected(#[from] Reject),
}

/// Moves pages until the queue is closed.
pub(super) fn run(context: &Context, index: u32) {
    let mut link = None;
    while let Some(job) = context.queue.take() {
        let mut open = match link.take() {
            Some(open) => open,
            None => match reach(context, index, false) {
                Ok((stream, _)) => Link { stream, sequence: 0, flight: VecDeque::new(), unasked: 0 },
                Err(fault) => {
                    context.queue.settle(&job, Err(fault));
                    context.queue.fail_waiting(fault);
                    continue;
                }
            },
        };
        match open.carry(context, job) {
            Ok(()) => link = Some(open),
            Err((error, fault)) => {
                Counts::add(&context.counts.broken, 1);
                tracing::warn!(peer = context.peer.id.0, index, %error, "wire stream broke");
                for flight in std::mem::take(&mut open.flight).into_iter().rev() {
                    context.queue.put_back(flight.job, fault);
                }
                context.forget(index);
            }
        }
    }
    context.forget(index);
}

/// Connects and greets, again after a pause if need be.
pub(super) fn reach(context: &Context, index: u32, wants_shared: bool) -> Result<(TcpStream, Welcome), Fault> {
    let config = &context.config;
    let mut pause = config.backoff;
    let mut attempt = 1;
    loop {
        let error = match connect(context, index, wants_shared) {
            Ok(reached) => {
                Counts::add(&context.counts.connections, 1);
                return Ok(reached);
            }
            Err(error) => error,
        };
        context.forget(index);
        let is_final = matches!(error, Unreached::Rejected(_)) || attempt >= config.attempts_max;
        if context.queue.is_closed() {
            return Err(Fault::Unreachable);
        }
        tracing::warn!(
            peer = context.peer.id.0, address = context.peer.address, attempt, %error, is_final,
            "cannot push KV to the peer"
        );
        if let Unreached::Rejected(reject) = &error {
            Counts::add(&context.counts.rejected, 1);
            return Err(if matches!(reject, Reject::Epoch { .. }) { Fault::Fenced } else { Fault::Unreachable });
        }
        if is_final || context.queue.pause(pause) {
            return Err(Fault::Unreachable);
        }
        pause = pause.saturating_mul(2);
        attempt += 1;
    }
}

fn connect(context: &Context, index: u32, wants_shared: bool) -> Result<(TcpStream, Welcome), Unreached> {
    let config = &context.config;
    let hello = Hello {
        version: VERSION,
        from: config.worker,
        from_epoch: config.epoch,
        to: context.peer.id,
        to_epoch: context.peer.epoch,
        page_bytes: context.arena.page_bytes() as u64,
        stream: index,
        wants_shared,
        is_fake: false,
    };
    let (stream, welcome) = greet(&context.peer.address, &hello, config.connect_timeout)?;
    stream.set_read_timeout(Some(config.progress_timeout))?;
    stream.set_write_timeout(Some(config.progress_timeout))?;
    if !context.keep(index, stream.try_clone()?) {
        return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into());
    }
    Ok((stream, welcome))
}

/// Connects to an address and says hello.
fn greet(address: &str, hello: &Hello, timeout: Duration) -> Result<(TcpStream, Welcome), Unreached> {
    let deadline = Instant::now() + timeout;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        let rest = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut stream = match TcpStream::connect_timeout(&address, rest) {
            Ok(stream) => stream,
            Err(error) => {
                last = error;
                continue;
            }
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        frame::write_greeting(&mut stream, hello)?;
        return match frame::read_greeting::<Reply>(&mut stream)?? {
            Reply::Welcome(welcome) => Ok((stream, welcome)),
            Reply::Reject(reject) => Err(reject.into()),
        };
    }
    Err(last.into())
}

/// Only says hello, for a transport that moves nothing.
pub(super) fn knock(address: &str, hello: &Hello, timeout: Duration) -> Result<(), String> {
    greet(address, hello, timeout).map(|_| ()).map_err(|error| error.to_string())
}

/// An open connection.
struct Link {
    stream: TcpStream,
    /// Of the last chunk.
    sequence: u64,
    /// Pages that are sent, or partly, and not acknowledged; the oldest first.
    flight: VecDeque<Flight>,
    /// Pages since an acknowledgement was asked for.
    unasked: u64,
}

struct Flight {
    job: Job,
    /// Of its last chunk.
    last: u64,
    fault: Option<Fault>,
}

impl Link {
    /// Sends a page and those that wait behind it, until all are acknowledged and none waits.
    fn carry(&mut self, context: &Context, first: Job) -> Result<(), (io::Error, Fault)> {
        let window = (context.config.window_bytes / context.arena.page_bytes() as u64).max(1);
        let mut next = held(context, Some(first));
        loop {
            while (self.flight.len() as u64) < window
                && let Some((job, page)) = next.take()
            {
                if (self.flight.len() as u64) + 1 < window {
                    next = held(context, context.queue.try_take());
                }
                self.unasked += 1;
                let wants_ack = next.is_none() || self.unasked >= window.div_ceil(2);
                if wants_ack {
                    self.unasked = 0;
                }
                if let Err(error) = self.send(context, job, &page, wants_ack) {
                    next.into_iter().for_each(|(job, _)| context.queue.give_back(job));
                    return Err((error, Fault::Unreachable));
                }
            }
            if self.flight.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.hear(context) {
                next.into_iter().for_each(|(job, _)| context.queue.give_back(job));
                return Err(error);
            }
            next = next.or_else(|| held(context, context.queue.try_take()));
        }
    }

    /// Sends one page. It is under way from the first byte on.
    fn send(&mut self, context: &Context, job: Job, page: &[u8], wants_ack: bool) -> io::Result<()> {
        #[cfg(test)]
        context.config.hook(super::At::Before, job.sink);
        let chunk_bytes = context.config.chunk_bytes.max(1) as usize;
        let chunks = page.len().div_ceil(chunk_bytes);
        self.flight.push_back(Flight { job, last: self.sequence + chunks as u64, fault: None });
        for (index, payload) in page.chunks(chunk_bytes).enumerate() {
            self.sequence += 1;
            let head = Chunk {
                sequence: self.sequence,
                room: job.room,
                generation: job.generation,
                page: job.sink,
                offset: (index * chunk_bytes) as u32,
                length: payload.len() as u32,
                crc: crc32c::crc32c(payload),
                wants_ack: wants_ack && index + 1 == chunks,
            };
            #[cfg(test)]
            if context.config.hook.is_some() {
                let (one, other) = payload.split_at(payload.len() / 2);
                write_both(&mut self.stream, &head.to_bytes(), one)?;
                context.config.hook(super::At::During, job.sink);
                self.stream.write_all(other)?;
                continue;
            }
            write_both(&mut self.stream, &head.to_bytes(), payload)?;
        }
        Ok(())
    }

    /// Reads one acknowledgement and settles what it covers.
    fn hear(&mut self, context: &Context) -> Result<(), (io::Error, Fault)> {
        let mut bytes = [0; ACK_BYTES];
        let read = self.stream.read_exact(&mut bytes);
        read.map_err(|error| (error, Fault::Unreachable))?;
        let malformed = |error| (io::Error::other(error), Fault::Io);
        let ack = Ack::from_bytes(&bytes).map_err(malformed)?;
        if ack.sequence > self.sequence {
            return Err(malformed(Malformed::Order));
        }
        let fault = match ack.status {
            Status::Landed => None,
            Status::Fenced => Some((Fault::Fenced, &context.counts.fenced)),
            Status::Busy => Some((Fault::Io, &context.counts.busy)),
            Status::Damaged => Some((Fault::Checksum, &context.counts.damaged)),
        };
        if let Some((fault, counter)) = fault {
            Counts::add(counter, 1);
            if let Some(flight) = self.flight.iter_mut().find(|flight| flight.last >= ack.sequence) {
                flight.fault.get_or_insert(fault);
            }
        }
        if ack.status == Status::Damaged {
            // The chunks before it have landed, but it is simpler to send their pages again than to tell.
            self.flight.iter_mut().for_each(|flight| flight.fault = None);
            return Err((io::Error::other(Malformed::Payload), Fault::Checksum));
        }
        while let Some(flight) = self.flight.front().filter(|flight| flight.last <= ack.sequence) {
            if flight.fault.is_none() {
                Counts::add(&context.counts.pages, 1);
                Counts::add(&context.counts.bytes, context.arena.page_bytes() as u64);
            }
            context.queue.settle(&flight.job, flight.fault.map_or(Ok(()), Err));
            self.flight.pop_front();
        }
        Ok(())
    }
}

/// The page, held against writers; one that somebody writes, although it was said to be complete, fails, and the next is
/// taken.
fn held(context: &Context, mut job: Option<Job>) -> Option<(Job, PageRef<'_>)> {
    loop {
        let taken = job?;
        if let Ok(page) = context.arena.read(taken.source) {
            return Some((taken, page));
        }
        Counts::add(&context.counts.busy, 1);
        context.queue.settle(&taken, Err(Fault::Device));
        job = context.queue.try_take();
    }
}

/// Writes two slices in as few calls as the socket allows.
fn write_both(stream: &mut TcpStream, head: &[u8], body: &[u8]) -> io::Result<()> {
    let mut sent = 0;
    while sent < head.len() {
        match stream.write_vectored(&[IoSlice::new(&head[sent..]), IoSlice::new(body)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.write_all(&body[sent - head.len()..])
}

//! Pages for a peer of the same host: copied into its arena, once.
//!
//! The peer's [`pd_sync::Identity`] comes with its greeting; the connection stays open as the sign that the two know each
//! other. What cannot be mapped (another host, container or user, memory that is not shared) is reached through TCP, and
//! the log says why.

use pd_core::op::Fault;
use pd_sync::{Denied, LeasedMut, Remote};

use super::count::Counts;
use super::frame::Welcome;
use super::queue::Job;
use super::sender::Context;
use super::stream;

/// Moves pages until the queue is closed.
pub(super) fn run(context: &Context) {
    while let Some(job) = context.queue.take() {
        let (_session, welcome) = match stream::reach(context, 0, true) {
            Ok(reached) => reached,
            Err(fault) => {
                context.queue.settle(&job, Err(fault));
                context.queue.fail_waiting(fault);
                continue;
            }
        };
        let remote = open(context, welcome);
        context.queue.give_back(job);
        let threads = context.config.streams.max(1);
        match remote {
            Ok(remote) => std::thread::scope(|scope| {
                for _ in 1..threads {
                    scope.spawn(|| copy_all(context, &remote));
                }
                copy_all(context, &remote);
            }),
            Err(reason) => {
                Counts::add(&context.counts.fallbacks, 1);
                let (peer, address) = (context.peer.id.0, &context.peer.address);
                tracing::warn!(peer, address, reason, "no shared memory with this peer: KV goes over TCP");
                context.forget(0);
                std::thread::scope(|scope| {
                    for index in 1..threads {
                        scope.spawn(move || stream::run(context, index));
                    }
                    stream::run(context, 0);
                });
            }
        }
    }
}

/// Maps the peer's arena.
fn open(context: &Context, welcome: Welcome) -> Result<Remote, String> {
    let place = welcome.shared.ok_or("its memory is not shared")?;
    let identity = pd_sync::Identity::from(place);
    let ours = (context.peer.epoch.0, context.arena.page_bytes() as u64, welcome.pages);
    if (identity.epoch, identity.page_bytes, identity.pages) != ours {
        return Err("the memory that it announces is not that of this life".into());
    }
    Remote::open(&identity).map_err(|error| error.to_string())
}

fn copy_all(context: &Context, remote: &Remote) {
    while let Some(job) = context.queue.take() {
        let result = copy(context, remote, &job);
        match result {
            Ok(()) => {
                Counts::add(&context.counts.pages, 1);
                Counts::add(&context.counts.bytes, context.arena.page_bytes() as u64);
            }
            Err(Fault::Fenced) => Counts::add(&context.counts.fenced, 1),
            Err(_) => Counts::add(&context.counts.busy, 1),
        }
        context.queue.settle(&job, result);
    }
}

fn copy(context: &Context, remote: &Remote, job: &Job) -> Result<(), Fault> {
    #[cfg(test)]
    context.config.hook(super::At::Before, job.sink);
    // Somebody writes what was said to be complete.
    let source = context.arena.read(job.source).map_err(|_| Fault::Device)?;
    let mut sink = remote.write_leased(job.sink, job.generation.0).map_err(|denied| match denied {
        Denied::Fenced => Fault::Fenced,
        Denied::Busy => Fault::Io,
    })?;
    #[cfg(test)]
    if context.config.hook.is_some() {
        let half = source.len() / 2;
        put(&mut sink, &source[..half])?;
        context.config.hook(super::At::During, job.sink);
    }
    put(&mut sink, &source)?;
    if sink.finish() { Ok(()) } else { Err(Fault::Fenced) }
}

fn put(sink: &mut LeasedMut<'_>, source: &[u8]) -> Result<(), Fault> {
    let copied = sink.fill(0..source.len(), |bytes| {
        bytes.copy_from_slice(source);
        Ok(bytes.len())
    });
    copied.map(|_| ()).map_err(|_| Fault::Io)
}

//! Pages for a peer of the same host: copied into its arena, once; from device to device if that is where they are.
//!
//! The peer's [`pd_sync::Identity`] comes with its greeting; the connection stays open as the sign that the two know each
//! other. What cannot be mapped (another host, container or user, memory that is not shared) is reached through TCP, and
//! the log says why.

use pd_core::op::Fault;
use pd_sync::{Denied, LeasedMut, Reach, Remote};

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
        let remote = open(context, welcome).and_then(|remote| Ok((reach(context, &remote)?, remote)));
        context.queue.give_back(job);
        let threads = context.config.streams.max(1);
        match remote {
            // A device copies many pages side by side for one thread.
            Ok((Some(reach), remote)) => put_all(context, &remote, reach.as_ref()),
            Ok((None, remote)) => std::thread::scope(|scope| {
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

/// The way to the peer's device, if both arenas are in one.
fn reach(context: &Context, remote: &Remote) -> Result<Option<Box<dyn Reach>>, String> {
    match (context.arena.device(), &remote.identity().device) {
        (None, None) => Ok(None),
        (Some(device), Some(handle)) => device.reach(handle).map(Some).map_err(|error| error.to_string()),
        (Some(_), None) | (None, Some(_)) => Err("one of the two has its KV on a device".into()),
    }
}

/// Moves pages of a device, as many at a time as there are.
fn put_all(context: &Context, remote: &Remote, reach: &dyn Reach) {
    let page_bytes = context.arena.page_bytes() as u64;
    while let Some(first) = context.queue.take() {
        let mut jobs = vec![first];
        while jobs.len() < BATCH_PAGES
            && let Some(job) = context.queue.try_take()
        {
            jobs.push(job);
        }
        let (mut held, mut pieces) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
        for job in jobs {
            #[cfg(test)]
            context.config.hook(super::At::Before, job.sink);
            // Somebody writes what was said to be complete.
            let source = context.arena.hold(job.source, false).map_err(|_| Fault::Device);
            match source.and_then(|source| Ok((source, lease(remote, &job)?))) {
                Ok((source, sink)) => {
                    pieces.push((u64::from(job.source) * page_bytes, u64::from(job.sink) * page_bytes));
                    held.push((job, source, sink));
                }
                Err(fault) => settle(context, &job, Err(fault)),
            }
        }
        let copied = reach.put(&pieces, page_bytes);
        if let Err(error) = &copied {
            tracing::error!(peer = context.peer.id.0, "{} pages were not copied: {error}", pieces.len());
        }
        for (job, _source, sink) in held {
            let is_leased = sink.finish();
            let result =
                if copied.is_err() { Err(Fault::Device) } else { is_leased.then_some(()).ok_or(Fault::Fenced) };
            settle(context, &job, result);
        }
    }
}

fn lease<'a>(remote: &'a Remote, job: &Job) -> Result<LeasedMut<'a>, Fault> {
    remote.write_leased(job.sink, job.generation.0).map_err(|denied| match denied {
        Denied::Fenced => Fault::Fenced,
        Denied::Busy => Fault::Io,
    })
}

fn settle(context: &Context, job: &Job, result: Result<(), Fault>) {
    match result {
        Ok(()) => {
            Counts::add(&context.counts.pages, 1);
            Counts::add(&context.counts.bytes, context.arena.page_bytes() as u64);
        }
        Err(Fault::Fenced) => Counts::add(&context.counts.fenced, 1),
        Err(_) => Counts::add(&context.counts.busy, 1),
    }
    context.queue.settle(job, result);
}

fn copy_all(context: &Context, remote: &Remote) {
    while let Some(job) = context.queue.take() {
        settle(context, &job, copy(context, remote, &job));
    }
}

fn copy(context: &Context, remote: &Remote, job: &Job) -> Result<(), Fault> {
    #[cfg(test)]
    context.config.hook(super::At::Before, job.sink);
    // Somebody writes what was said to be complete.
    let source = context.arena.read(job.source).map_err(|_| Fault::Device)?;
    let mut sink = lease(remote, job)?;
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

/// Pages that a device copies before it is waited for: what keeps a link busy for some tenths of a millisecond.
const BATCH_PAGES: usize = 64;

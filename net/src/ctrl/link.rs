//! One control connection: a thread that reads and tells, and one that writes.

use std::io::{BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use pd_core::message::Message;
use pd_sync::{Gate, Inbox, Received};

use super::Life;
use super::frame::{self, Broken, FRAME_BYTES_MAX};
use super::peers::Inner;

/// A connection that has greeted.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) life: Life,
    /// This end has called.
    pub(super) is_ours: bool,
    /// Frames on their way out.
    pub(super) outbox: Inbox<Vec<u8>>,
    stream: TcpStream,
    /// Closed behind its `down`.
    ended: Gate,
}

impl Link {
    /// Ends it soon.
    pub(super) fn kill(&self) {
        self.outbox.close();
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Waits until its `down` was told.
    pub(super) fn wait(&self) {
        self.ended.wait_until(None);
    }
}

/// Greets, and serves the connection until it ends. The life that was met, and why it ended.
pub(super) fn run(inner: &Arc<Inner>, mut stream: TcpStream, is_ours: bool) -> (Option<Life>, Result<(), Broken>) {
    let greeted = inner.prepare(&stream).and_then(|()| frame::greet(&mut stream, &inner.greeting));
    let theirs = match greeted {
        Ok(theirs) => theirs,
        Err(broken) => return (None, Err(broken)),
    };
    let life = Life { id: theirs.worker, epoch: theirs.epoch, wire: theirs.wire };
    let result = serve(inner, stream, life.clone(), is_ours);
    (Some(life), result)
}

fn serve(inner: &Arc<Inner>, stream: TcpStream, life: Life, is_ours: bool) -> Result<(), Broken> {
    // Silence is normal from here on: pings are core's.
    stream.set_read_timeout(None)?;
    let link = Arc::new(Link {
        life,
        is_ours,
        outbox: Inbox::new(inner.config.outbox_messages_max),
        stream: stream.try_clone()?,
        ended: Gate::new(),
    });
    inner.admit(&link)?;
    inner.events.up(&link.life);
    let result = std::thread::scope(|scope| {
        let writer = std::thread::Builder::new().name("ctrl-out".into()).spawn_scoped(scope, || write(&link));
        let result = match writer {
            Ok(_) => read(inner, &link, &stream),
            Err(error) => Err(error.into()),
        };
        link.kill();
        result
    });
    inner.dismiss(&link);
    inner.events.down(&link.life);
    link.ended.close();
    result
}

fn read(inner: &Inner, link: &Link, stream: &TcpStream) -> Result<(), Broken> {
    let mut stream = BufReader::new(stream);
    while let Some(message) = frame::read::<Message>(&mut stream, FRAME_BYTES_MAX)? {
        inner.events.recv(link.life.id, message);
    }
    Ok(())
}

/// Writes until the outbox is closed; what is left inside is lost, as its connection is.
fn write(link: &Link) {
    let mut stream = &link.stream;
    while let Received::Item(frame) = link.outbox.recv_until(None) {
        if let Err(error) = stream.write_all(&frame) {
            tracing::warn!(peer = link.life.id.0, %error, "control connection: cannot write");
            break;
        }
    }
    link.kill();
}

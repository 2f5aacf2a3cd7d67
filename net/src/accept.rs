//! A thread that takes connections, and a thread for each of them.
//!
//! Ends when the gate of its owner is closed; the threads of connections hold passes of that gate, so that its owner can
//! wait for them.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use pd_sync::Gate;

/// Whose connections are taken.
pub(crate) trait Accept: Send + Sync + 'static {
    /// Name of the thread that listens.
    const LISTENER: &'static str;
    /// Name of the threads of connections.
    const THREAD: &'static str;

    /// Closed when no more connections are to be taken.
    fn gate(&self) -> &Gate;

    /// How many connections are served.
    fn accepted(&self) -> &AtomicU32;

    /// Most of them.
    fn connections_max(&self) -> u32;

    /// One was beyond the limit.
    fn on_excess(&self);

    /// Serves one, to its end.
    fn serve(self: &Arc<Self>, stream: TcpStream);
}

/// What takes connections.
#[derive(Debug)]
pub(crate) struct Listener {
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Takes connections from here on.
    ///
    /// # Errors
    /// If the socket has no address, or there is no thread for it.
    pub(crate) fn start<A: Accept>(inner: &Arc<A>, listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let inner = Arc::clone(inner);
        let thread = std::thread::Builder::new().name(A::LISTENER.into()).spawn(move || accept(&inner, &listener))?;
        Ok(Self { address, thread: Some(thread) })
    }

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for its end. The gate must be closed.
    pub(crate) fn join(&mut self) {
        // Wakes the listener, which looks at the gate.
        drop(TcpStream::connect_timeout(&self.address, Duration::from_secs(1)));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept<A: Accept>(inner: &Arc<A>, listener: &TcpListener) {
    for stream in listener.incoming() {
        if inner.gate().is_closed() {
            return;
        }
        let Ok(stream) = stream else {
            // Out of files, most likely: whoever calls tries again.
            std::thread::park_timeout(Duration::from_millis(10));
            continue;
        };
        if inner.accepted().fetch_add(1, Ordering::Relaxed) >= inner.connections_max() {
            inner.accepted().fetch_sub(1, Ordering::Relaxed);
            inner.on_excess();
            continue;
        }
        let shared = Arc::clone(inner);
        let thread = std::thread::Builder::new().name(A::THREAD.into()).spawn(move || {
            if let Some(_pass) = shared.gate().enter() {
                shared.serve(stream);
            }
            shared.accepted().fetch_sub(1, Ordering::Relaxed);
        });
        if thread.is_err() {
            inner.accepted().fetch_sub(1, Ordering::Relaxed);
        }
    }
}

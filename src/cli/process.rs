//! What commands share that run until they are told to stop: the runtime, signals, how they end.

use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::bad_input;

/// The status of a command: 2, and what is wrong, if it could not begin.
pub(super) fn ended(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => bad_input(&error),
    }
}

/// The runtime of HTTP and of peers: two threads, as the engine needs the others.
pub(super) fn runtime() -> Result<Runtime, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| format!("no runtime: {error}"))
}

/// SIGTERM and SIGINT: the first asks to end, the second insists.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on signals are kept for [`Self::asked`]; before, they end the process.
    pub(super) fn listen() -> Result<Self, String> {
        let of = |kind: SignalKind| signal(kind).map_err(|error| format!("signals cannot be heard: {error}"));
        Ok(Self { terminate: of(SignalKind::terminate())?, interrupt: of(SignalKind::interrupt())? })
    }

    /// Waits until somebody asks to end.
    pub(super) async fn asked(&mut self, patience: Duration) {
        let (name, _) = self.next().await;
        tracing::info!("{name}: draining, at most {} s; a second signal ends at once", patience.as_secs_f64());
    }

    /// Lets work end, unless somebody insists: then the process is over.
    pub(super) async fn unless_again<T>(&mut self, work: impl Future<Output = T>) -> T {
        let (name, number) = tokio::select! {
            done = work => return done,
            again = self.next() => again,
        };
        tracing::warn!("{name} again: what is under way is cut off");
        // Not through the runtime, which waits for threads that may be waiting, too.
        std::process::exit(128 + number)
    }

    async fn next(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
            _ = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
        }
    }
}

/// How long requests under way may take at the end.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

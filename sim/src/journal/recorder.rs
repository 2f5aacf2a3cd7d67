//! Records a world.

use std::io::{self, Write};

use pd_core::id::Epoch;
use pd_core::op::{Input, Output};
use pd_core::router::{RouterInput, RouterOutput};
use pd_core::time::Instant;

use super::{Header, Life, Who, Writer, Written};
use crate::observe::{Launch, Observer};

/// Writes a journal of all that it observes. The first error of the file below ends it, and is told at the end.
#[derive(Debug)]
pub struct Recorder<W: Write> {
    writer: io::Result<Writer<W>>,
}

impl<W: Write> Recorder<W> {
    /// Begins a journal.
    pub fn new(out: W, header: &Header) -> Self {
        Self { writer: Writer::new(out, header) }
    }

    /// Ends the journal at the end of the run.
    ///
    /// # Errors
    /// The first error of the file below.
    pub fn finish(&mut self, at: Instant) -> io::Result<Written> {
        self.finish_into(at).map(|(_, written)| written)
    }

    /// The same; returns what the journal was written to, too.
    ///
    /// # Errors
    /// The first error of the file below.
    pub fn finish_into(&mut self, at: Instant) -> io::Result<(W, Written)> {
        let over = Err(io::Error::other("the journal has been finished before"));
        std::mem::replace(&mut self.writer, over)?.finish(at)
    }

    fn write(&mut self, write: impl FnOnce(&mut Writer<W>) -> io::Result<()>) {
        if let Ok(writer) = &mut self.writer
            && let Err(error) = write(writer)
        {
            self.writer = Err(error);
        }
    }
}

impl<W: Write + std::fmt::Debug> Observer for Recorder<W> {
    fn on_launch(&mut self, now: Instant, launch: Launch<'_>) {
        let (who, life) = life(launch);
        self.write(|writer| writer.launch(now, who, &life));
    }

    fn on_life(&mut self, now: Instant, worker: u32, epoch: Option<Epoch>) {
        if epoch.is_none() {
            self.write(|writer| writer.stop(now, Who::Worker(worker)));
        }
    }

    fn on_worker(&mut self, now: Instant, worker: u32, input: &Input, outputs: &[Output]) {
        self.write(|writer| writer.worker(now, worker, input, outputs));
    }

    fn on_router(&mut self, now: Instant, input: &RouterInput, outputs: &[RouterOutput]) {
        self.write(|writer| writer.router(now, input, outputs));
    }
}

/// Whose life begins, and of what.
pub(super) fn life(launch: Launch<'_>) -> (Who, Life) {
    match launch {
        Launch::Worker { worker, config, cost } => (Who::Worker(worker), Life::worker(config, cost)),
        Launch::Router { config, cost } => (Who::Router, Life::router(config, cost)),
    }
}

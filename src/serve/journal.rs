//! `--journal` of a worker or a router: each input of the machine with its time, and a fingerprint of its answer, for `pd replay`.
//!
//! Records are put into blocks by whoever steps the machine; a thread of its own writes them. Few blocks may wait between the
//! two: a disk that does not keep up slows the machine down rather than losing its past. A process that dies leaves whole
//! blocks, of which the last is no older than the last rest of the machine or 64 KiB of records.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use pd_core::op::Input;
use pd_core::pump::{Step, Tap};
use pd_core::router::{Router, RouterInput};
use pd_core::time::Instant;
use pd_core::worker::Worker;
use pd_net::router::RouterTap;
use pd_sim::journal::{Detail, Header, Life, Who, Writer};

/// Writes what a machine lives through.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// `None` after an error, which has been told.
    writer: Option<Writer<Pipe>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    is_dirty: bool,
}

/// Blocks on their way to the file.
#[derive(Debug)]
struct Pipe {
    blocks: SyncSender<Vec<u8>>,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.blocks.send(bytes.to_vec()).map_err(|_| io::Error::other("the file could not be written"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Journal {
    /// Begins a journal at the start of a life.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub(crate) fn begin(path: &Path, subject: &str, who: Who, life: &Life) -> io::Result<Self> {
        let mut file = File::create(path)?;
        let (blocks, written) = sync_channel::<Vec<u8>>(BLOCKS_MAX);
        let thread = std::thread::Builder::new().name("journal".to_owned()).spawn(move || {
            written.into_iter().try_for_each(|block| file.write_all(&block))?;
            file.sync_data()
        })?;
        let mut writer = Writer::new(Pipe { blocks }, &Header::new(subject, Detail::Inputs))?;
        writer.launch(Instant::ZERO, who, life)?;
        writer.flush()?;
        Ok(Self { path: path.to_owned(), writer: Some(writer), thread: Some(thread), is_dirty: false })
    }

    /// The machine rests: what is recorded goes to the file.
    pub(crate) fn rest(&mut self) {
        if std::mem::take(&mut self.is_dirty) {
            self.write(Writer::flush);
        }
    }

    /// Ends the journal.
    pub(crate) fn finish(mut self, at: Instant) {
        let Some(writer) = self.writer.take() else { return };
        let finished = writer.finish(at).map(|_| ());
        let written = self.thread.take().map_or(Ok(Ok(())), JoinHandle::join);
        match (finished, written) {
            (Ok(()), Ok(Ok(()))) => {}
            (Err(error), _) | (_, Ok(Err(error))) => self.complain(&error),
            (Ok(()), Err(_)) => self.complain(&io::Error::other("its thread died")),
        }
    }

    fn write(&mut self, write: impl FnOnce(&mut Writer<Pipe>) -> io::Result<()>) {
        let Some(writer) = &mut self.writer else { return };
        if let Err(error) = write(writer) {
            self.writer = None;
            self.complain(&error);
        }
    }

    fn complain(&self, error: &io::Error) {
        tracing::error!("the journal {} ends here: {error}; serving goes on", self.path.display());
    }
}

impl Tap<Worker> for Journal {
    fn before(&mut self, at: Instant, input: &Input) {
        self.is_dirty = true;
        self.write(|writer| {
            writer.worker_input(at, 0, input);
            Ok(())
        });
    }

    fn after(&mut self, _: &Worker, step: Step) {
        self.write(|writer| writer.answer(step.outputs));
    }
}

impl Tap<Router> for Journal {
    fn before(&mut self, at: Instant, input: &RouterInput) {
        self.is_dirty = true;
        self.write(|writer| {
            writer.router_input(at, input);
            Ok(())
        });
    }

    fn after(&mut self, _: &Router, step: Step) {
        self.write(|writer| writer.answer(step.outputs));
    }
}

impl RouterTap for Journal {
    fn rest(&mut self) {
        Self::rest(self);
    }

    fn finish(self: Box<Self>, at: Instant) {
        Self::finish(*self, at);
    }
}

/// Blocks between the machine and the disk.
const BLOCKS_MAX: usize = 64;

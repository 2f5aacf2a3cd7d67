//! Looking into a run: flags of `pd sim` that record it.

use std::cell::RefCell;
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::rc::Rc;

use clap::{Args, ValueEnum};
use pd_core::time::Instant;
use pd_sim::journal::{self, Header, Recorder};
use pd_sim::words;
use pd_sim::world::World;

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Record all that every machine is told and answers, for `pd replay` and `pd diff`.
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// What the journal keeps of each step.
    #[arg(long, value_enum, default_value_t = Detail::Outputs, requires = "journal")]
    journal_detail: Detail,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Detail {
    /// Inputs and a fingerprint of the outputs: small, and enough to see that a step differs.
    Inputs,
    /// Outputs, too: enough to see in which field.
    Outputs,
}

/// A journal that is being written.
pub(crate) struct Journal {
    path: PathBuf,
    recorder: Rc<RefCell<Recorder<BufWriter<File>>>>,
}

impl Inspect {
    /// Why these runs cannot be inspected as asked, if they cannot.
    pub(crate) fn problem(&self, files: usize, runs: &[String]) -> Option<String> {
        self.journal.as_ref()?;
        if files > 1 {
            return Some(format!("--journal records one run; there are {files} files"));
        }
        (runs.len() > 1)
            .then(|| format!("--journal records one run; choose one with --variant NAME: {}", runs.join(", ")))
    }

    /// Has the world recorded, if that was asked for.
    pub(crate) fn record(&self, world: &mut World, subject: &str) -> Result<Option<Journal>, String> {
        let Some(path) = &self.journal else { return Ok(None) };
        let file = File::create(path).map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
        let detail = match self.journal_detail {
            Detail::Inputs => journal::Detail::Inputs,
            Detail::Outputs => journal::Detail::Outputs,
        };
        let recorder = Recorder::new(BufWriter::new(file), &Header::new(subject, detail));
        let recorder = Rc::new(RefCell::new(recorder));
        world.observe(Box::new(Rc::clone(&recorder)));
        Ok(Some(Journal { path: path.clone(), recorder }))
    }
}

impl Journal {
    /// Ends it at the end of the run, and says on stderr what was written.
    pub(crate) fn finish(self, at: Instant) -> Result<(), String> {
        let path = self.path.display();
        match self.recorder.borrow_mut().finish(at) {
            Ok(written) => {
                eprintln!(
                    "journal {path}: {}, {}",
                    words::plural(written.records, "record"),
                    words::bytes(written.bytes)
                );
                Ok(())
            }
            Err(error) => Err(format!("{path} cannot be written: {error}")),
        }
    }
}

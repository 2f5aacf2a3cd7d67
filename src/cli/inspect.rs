//! Looking into a run: flags of `pd sim` that record it, explain it, or stop it and show its state.

use std::cell::RefCell;
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::rc::Rc;

use clap::{Args, ValueEnum};
use pd_core::id::RequestId;
use pd_core::time::Instant;
use pd_sim::explain::{self, Wanted};
use pd_sim::journal::{self, Header, Recorder};
use pd_sim::scenario::error::nearest;
use pd_sim::setup::Setup;
use pd_sim::world::World;
use pd_sim::{dump, words};

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Explain a request instead of the report: its number, "worst" (by time to first token) or "all-slow" (the five
    /// worst).
    #[arg(long, value_name = "REQUEST", value_parser = wanted, conflicts_with_all = ["dump", "journal"])]
    explain: Option<Wanted>,
    /// Print the whole state at the time of --until instead of the report.
    #[arg(long, requires = "until", conflicts_with_all = ["json", "journal"])]
    dump: bool,
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

/// What `--explain` takes.
fn wanted(text: &str) -> Result<Wanted, String> {
    match text {
        "worst" => Ok(Wanted::Slowest(1)),
        "all-slow" => Ok(Wanted::Slowest(SLOW)),
        number => number.parse().map(|number| Wanted::One(RequestId(number))).map_err(|_| {
            let near =
                nearest(text, ["worst", "all-slow"]).map_or_else(String::new, |near| format!("; did you mean {near}?"));
            format!("it takes the number of a request, worst or all-slow{near}")
        }),
    }
}

/// Requests that are explained by "all-slow".
const SLOW: u32 = 5;

impl Inspect {
    /// The text that takes the place of the report of a case, if one is asked for. `make` makes the case anew.
    pub(crate) fn instead(
        &self,
        name: &str,
        json: bool,
        until: Option<Instant>,
        make: &mut dyn FnMut() -> Setup,
    ) -> Result<Option<String>, String> {
        if let (true, Some(until)) = (self.dump, until) {
            let (text, is_over) = dump::dump(make(), until);
            let note = if is_over { "(the run was over before)\n" } else { "" };
            return Ok(Some(format!("{name}\n{note}{text}")));
        }
        let Some(wanted) = self.explain else { return Ok(None) };
        let (_, explanations) = explain::explain(make, wanted).map_err(|error| format!("{name}: {error}"))?;
        let mut text = String::new();
        for explanation in &explanations {
            if json {
                let mut object = explanation.json();
                object["scenario"] = name.into();
                text += &format!("{object}\n");
            } else {
                text += &format!("\n{name}, {}", explanation.text());
            }
        }
        Ok(Some(text))
    }

    /// True if the report of a case is replaced by something else.
    pub(crate) const fn replaces_report(&self) -> bool {
        self.dump || self.explain.is_some()
    }

    /// The first of the flags that was given.
    pub(crate) fn first(&self) -> Option<&'static str> {
        let flags =
            [("--explain", self.explain.is_some()), ("--dump", self.dump), ("--journal", self.journal.is_some())];
        flags.into_iter().find_map(|(flag, is_given)| is_given.then_some(flag))
    }

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
        if world.has_skewed_clocks() {
            return Err(format!(
                "--journal: {subject} skews the clock of a worker, and a journal keeps one clock for all"
            ));
        }
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

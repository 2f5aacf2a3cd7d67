//! Sweeps and maps of `pd sim`: flags, progress, where runs are kept.

use std::fmt;
use std::io::Read as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;
use pd_core::codec::Sink as _;
use pd_core::digest::Digest;
use pd_sim::append_map;
use pd_sim::parallel;
use pd_sim::scenario::Document;
use pd_sim::sweep::log::Log;
use pd_sim::sweep::{self, RUNS_MAX};

use super::sim::print;
use crate::progress::bar;

#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    /// Sweep: keep finished runs in this file (JSON lines) and take from it those that are there.
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Sweep: worlds that run at the same time; as many as there are cores if not given. Results do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Sweep: print a line of comma-separated values per run.
    #[arg(long, conflicts_with = "json")]
    csv_lines: bool,
    /// Sweep: most runs (points x seeds); 1000 if not given.
    #[arg(long, value_name = "N")]
    runs_max: Option<u64>,
}

/// What is wrong, in words.
pub(crate) type Problem = Box<dyn fmt::Display>;

impl SweepArgs {
    /// The first flag that was given.
    pub(crate) fn first(&self) -> Option<&'static str> {
        [
            (self.resume.is_some(), "--resume"),
            (self.threads.is_some(), "--threads"),
            (self.csv_lines, "--csv-lines"),
            (self.runs_max.is_some(), "--runs-max"),
        ]
        .into_iter()
        .find_map(|(is_given, flag)| is_given.then_some(flag))
    }

    /// Runs a sweep and prints it; false if a gate is broken.
    pub(crate) fn run(&self, document: &Document, json: bool) -> Result<bool, Problem> {
        let problem = |error| Box::new(error) as Problem;
        let threads = self.threads.unwrap_or_else(parallel::threads);
        let mut is_good = true;
        if let Some(config) = document.append_map() {
            let flags = [
                (self.resume.is_some(), "--resume"),
                (self.csv_lines, "--csv-lines"),
                (self.runs_max.is_some(), "--runs-max"),
            ];
            if let Some((_, flag)) = flags.iter().find(|(is_given, _)| *is_given && document.sweep().is_none()) {
                return Err(Box::new(format!("{flag} is for a [sweep]; an [append_map] has no use for it")));
            }
            let bar = bar(document.name(), "{prefix} [{bar:30}] {pos}/{len} cells ({elapsed}, {eta} left)");
            bar.set_length(config.count() as u64);
            let map = config.run(document, threads, &mut |count| bar.set_position(count as u64)).map_err(problem)?;
            bar.finish_and_clear();
            is_good &= print(&if json { append_map::json(&map) } else { append_map::page(&map) });
            is_good &= map.broken().is_empty();
        }
        let Some(config) = document.sweep() else {
            return Ok(is_good);
        };
        let sweep = config.sweep(document, self.runs_max.unwrap_or(RUNS_MAX)).map_err(problem)?;
        let mut log = match &self.resume {
            Some(path) => Some(open(path, document.name())?),
            None => None,
        };
        let bar = bar(document.name(), "{prefix} [{bar:30}] {pos}/{len} runs ({elapsed}, {eta} left)");
        bar.set_length((sweep.points.len() * sweep.seeds.len()) as u64);
        let done = sweep.run(document, threads, log.as_mut(), &mut |count| bar.set_position(count as u64));
        bar.finish_and_clear();
        let done = done.map_err(problem)?;
        if let Some(path) = &self.resume {
            let total = done.sweep.points.len() * done.sweep.seeds.len();
            eprintln!("{}: {} of {total} runs were there", path.display(), done.resumed);
        }
        let text = match (json, self.csv_lines) {
            (true, _) => sweep::json(&done),
            (false, true) => sweep::csv(&done),
            (false, false) => sweep::page(&done),
        };
        if self.csv_lines {
            for broken in done.broken() {
                eprintln!("GATE BROKEN  {broken}");
            }
        }
        Ok(is_good & print(&text) & done.is_good())
    }
}

fn open(path: &Path, name: &str) -> Result<Log, Problem> {
    let log = Log::open(path, name, &build()).map_err(|error| Box::new(format!("--resume: {error}")) as Problem)?;
    if log.is_torn() {
        eprintln!("{}: the last line had no end and was cut off", path.display());
    }
    if log.others() > 0 {
        eprintln!("{}: {} runs are of another build of pd and are not used", path.display(), log.others());
    }
    Ok(log)
}

/// What this program is: a fingerprint of its file, because code that changed without its version may do otherwise.
fn build() -> String {
    let mut digest = Digest::new();
    let mut bytes = Vec::new();
    let read = std::env::current_exe().and_then(std::fs::File::open).and_then(|mut file| file.read_to_end(&mut bytes));
    digest.bytes(&bytes);
    match read {
        Ok(_) => format!("{} {:016x}", env!("CARGO_PKG_VERSION"), digest.finish()),
        // Without the file there is only the version; a system that hides it has hardly rebuilt it.
        Err(_) => env!("CARGO_PKG_VERSION").to_owned(),
    }
}

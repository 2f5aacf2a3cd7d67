//! `pd sim`: flags, progress, exit codes.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use indicatif::ProgressBar;
use pd_core::time::Instant;
use pd_sim::report;
use pd_sim::report::html::About;
use pd_sim::scenario::error::ScenarioError;
use pd_sim::scenario::{Case, Document, Overrides};
use pd_sim::units;
use pd_sim::world::World;

use super::bad_input;
use super::inspect::Inspect;
use super::outputs::{Outputs, Watched};
use super::sweep::SweepArgs;
use crate::progress::bar;

#[derive(Debug, Args)]
pub(crate) struct Sim {
    /// Scenario files (TOML).
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Seed of the run, instead of the file's.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Change a key, for instance worker.page_size=16 or worker.0.mode=decode; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Stop at this time of the run, for instance 90s or 10m.
    #[arg(long, value_name = "TIME", value_parser = instant)]
    until: Option<Instant>,
    /// Run only this variant ("base" for the file itself).
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Print one JSON object per run, a line each, instead of pages.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    inspect: Inspect,
    #[command(flatten)]
    outputs: Outputs,
    #[command(flatten)]
    sweep: SweepArgs,
}

fn instant(text: &str) -> Result<Instant, String> {
    units::duration(text).map(|span| Instant::ZERO + span).map_err(|error| error.to_string())
}

impl Sim {
    /// Runs the files; 1 if a gate is broken, 2 for bad input.
    pub(crate) fn run(&self) -> ExitCode {
        let overrides = Overrides { seed: self.seed, until: self.until, set: self.set.clone() };
        if let Err(problem) = self.outputs.check() {
            return bad_input(&problem);
        }
        let mut names_used = BTreeSet::new();
        let mut ran = 0;
        let mut broken_runs = 0;
        for file in &self.files {
            let read = Document::read(file, &overrides).and_then(|read| Ok((read.cases()?, read)));
            let (mut cases, document) = match read {
                Ok(read) => read,
                Err(error) => return bad_input(&error),
            };
            let names: Vec<String> = cases.iter().map(|case| short(&case.name).to_owned()).collect();
            let is_only = self.files.len() == 1 && (self.variant.is_some() || cases.len() == 1);
            let runs = |name: &String| self.variant.as_ref().is_none_or(|wanted| wanted == name);
            let chosen: Vec<String> = names.iter().filter(|name| runs(name)).cloned().collect();
            if let Some(problem) = self.inspect.problem(self.files.len(), &chosen) {
                return bad_input(&problem);
            }
            // A sweep or a map is the file itself, many times.
            if self.variant.is_none() && (document.sweep().is_some() || document.append_map().is_some()) {
                if let Some(flag) = self.outputs.first().or_else(|| self.inspect.first()) {
                    let problem = format!("{flag} shows one run; {} is a sweep of many", file.display());
                    return bad_input(&problem);
                }
                cases.remove(0);
                ran += 1;
                match self.sweep.run(&document, self.json) {
                    Ok(is_good) => broken_runs += u32::from(!is_good),
                    Err(error) => return bad_input(&error),
                }
            } else if let Some(flag) = self.sweep.first() {
                let problem = format!("{flag} is for files with a [sweep]; {} has none to run", file.display());
                return bad_input(&problem);
            }
            let skipped = names.len() - cases.len();
            for (index, case) in (skipped..).zip(cases) {
                if self.variant.as_deref().is_some_and(|wanted| wanted != short(&case.name)) {
                    continue;
                }
                ran += 1;
                let places = self.outputs.places(&case.name, is_only, &mut names_used);
                let again = || document.cases().map(|mut cases| cases.swap_remove(index));
                let result = if self.inspect.replaces_report() {
                    inspect(case, &again, self)
                } else {
                    let watched =
                        if self.outputs.is_empty() { Ok(None) } else { Watched::begin(places, &case.setup).map(Some) };
                    watched.and_then(|watched| run_case(case, self, watched.as_ref()))
                };
                match result {
                    Ok(is_good) => broken_runs += u32::from(!is_good),
                    Err(problem) => return bad_input(&problem),
                }
            }
            if ran == 0 {
                let wanted = self.variant.as_deref().unwrap_or_default();
                let problem =
                    format!("{}: there is no variant \"{wanted}\"; there are {}", file.display(), names.join(", "));
                return bad_input(&problem);
            }
        }
        if broken_runs > 0 {
            eprintln!("{broken_runs} of {ran} runs failed");
            return ExitCode::from(1);
        }
        ExitCode::SUCCESS
    }
}

/// The part of a case's name behind the file's.
fn short(name: &str) -> &str {
    name.split_once('/').map_or("base", |(_, variant)| variant)
}

/// Shows something else of a case than its report. `again` reads it once more: a world runs once.
fn inspect(case: Case, again: &dyn Fn() -> Result<Case, ScenarioError>, sim: &Sim) -> Result<bool, String> {
    let mut first = Some(case.setup);
    let mut make = || first.take().unwrap_or_else(|| again().expect("it was read a moment ago").setup);
    let text = sim.inspect.instead(&case.name, sim.json, sim.until, &mut make)?;
    Ok(text.is_none_or(|text| print(&text)))
}

/// Runs one case; false if a gate is broken.
fn run_case(case: Case, sim: &Sim, watched: Option<&Watched>) -> Result<bool, String> {
    let bar = progress(&case.name);
    let mut world = World::new(case.setup);
    if let Some(watched) = watched {
        watched.watch(&mut world);
    }
    let journal = sim.inspect.record(&mut world, &case.name)?;
    let outcome = world.run_with(&mut |done, total, now| {
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(format!("{:.0} s simulated", now.0 as f64 / 1e9));
    });
    bar.finish_and_clear();
    if let Some(journal) = journal {
        journal.finish(outcome.ended)?;
    }
    let values = report::values(&outcome);
    let broken: Vec<_> = case.gates.iter().filter_map(|gate| gate.check(&values).err()).collect();
    if let Some(watched) = watched {
        let (name, about, gates) = (&case.name, &case.about, &case.gates);
        watched.finish(&About { name, about, gates, values: &values, broken: &broken }, &outcome)?;
    }
    let text = if sim.json {
        report::json(&case.name, &outcome, &values, &broken) + "\n"
    } else {
        let mut text = report::page(&case.name, &case.about, &outcome, &values, &broken);
        for file in watched.iter().flat_map(|watched| watched.files()) {
            text += &format!("{:<12} {}\n", "written", file.display());
        }
        text
    };
    Ok(print(&text) && broken.is_empty() && outcome.violations.is_empty())
}

/// Writes a report; false, with a message, if that is not possible.
pub(super) fn print(text: &str) -> bool {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has gone (`| head`) is no reason to fail.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("error: the report cannot be written: {error}");
            false
        }
        Ok(()) | Err(_) => true,
    }
}

fn progress(name: &str) -> ProgressBar {
    bar(name, "{prefix} [{bar:30}] {pos}/{len} requests, {msg} ({elapsed})")
}

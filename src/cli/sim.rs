//! `pd sim`: flags, progress, exit codes.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use pd_core::time::Instant;
use pd_sim::report;
use pd_sim::scenario::error::ScenarioError;
use pd_sim::scenario::{self, Case, Overrides};
use pd_sim::units;
use pd_sim::world::World;

use super::inspect::Inspect;

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
}

fn instant(text: &str) -> Result<Instant, String> {
    units::duration(text).map(|span| Instant::ZERO + span).map_err(|error| error.to_string())
}

impl Sim {
    /// Runs the files; 1 if a gate is broken, 2 for bad input.
    pub(crate) fn run(&self) -> ExitCode {
        let overrides = Overrides { seed: self.seed, until: self.until, set: self.set.clone() };
        let mut ran = 0;
        let mut broken_runs = 0;
        for file in &self.files {
            let cases = match scenario::load(file, &overrides) {
                Ok(cases) => cases,
                Err(error) => {
                    return bad_input(&error);
                }
            };
            let names: Vec<String> = cases.iter().map(|case| short(&case.name).to_owned()).collect();
            let runs = |name: &String| self.variant.as_ref().is_none_or(|wanted| wanted == name);
            let chosen: Vec<String> = names.iter().filter(|name| runs(name)).cloned().collect();
            if let Some(problem) = self.inspect.problem(self.files.len(), &chosen) {
                return bad_input(&problem);
            }
            for (index, case) in cases.into_iter().enumerate() {
                if self.variant.as_deref().is_some_and(|wanted| wanted != short(&case.name)) {
                    continue;
                }
                ran += 1;
                let again = || scenario::load(file, &overrides).map(|mut cases| cases.swap_remove(index));
                let result =
                    if self.inspect.replaces_report() { inspect(case, &again, self) } else { run_case(case, self) };
                match result {
                    Ok(is_good) => broken_runs += u32::from(!is_good),
                    Err(problem) => return bad_input(&problem),
                }
            }
            if ran == 0 {
                let wanted = self.variant.as_deref().unwrap_or_default();
                eprintln!(
                    "error: {}: there is no variant \"{wanted}\"; there are {}",
                    file.display(),
                    names.join(", ")
                );
                return ExitCode::from(2);
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

fn bad_input(problem: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {problem}");
    ExitCode::from(2)
}

/// Shows something else of a case than its report. `again` reads it once more: a world runs once.
fn inspect(case: Case, again: &dyn Fn() -> Result<Case, ScenarioError>, sim: &Sim) -> Result<bool, String> {
    let mut first = Some(case.setup);
    let mut make = || first.take().unwrap_or_else(|| again().expect("it was read a moment ago").setup);
    match sim.inspect.instead(&case.name, sim.json, sim.until, &mut make)? {
        Some(text) => print(&text).map(|()| true),
        None => Ok(true),
    }
}

/// Runs a case; false if a gate is broken.
fn run_case(case: Case, sim: &Sim) -> Result<bool, String> {
    let bar = progress(&case.name);
    let mut world = World::new(case.setup);
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
    let text = if sim.json {
        report::json(&case.name, &outcome, &values, &broken) + "\n"
    } else {
        report::page(&case.name, &case.about, &outcome, &values, &broken)
    };
    print(&text).map(|()| broken.is_empty() && outcome.violations.is_empty())
}

/// Writes to stdout.
fn print(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has gone (`| head`) is no reason to fail.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("the report cannot be written: {error}"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A bar for runs that take a while; nothing where nobody looks.
fn progress(name: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0).with_message("");
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} requests, {msg} ({elapsed})") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

//! `pd swarm`: flags, threads, progress, files, exit codes.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
#[cfg(feature = "mutants")]
use pd_core::mutant::{Mutant, Mutation};
use pd_sim::hardware::Library;
use pd_sim::swarm::fleet::{Fleet, Found, Sum};
#[cfg(feature = "mutants")]
use pd_sim::swarm::mutants::{self, Bounds};
use pd_sim::swarm::{self, Finding, Kind, MENU, Stage, report};

use super::bad_input;
use crate::progress::bar;

#[derive(Debug, Args)]
pub(crate) struct Swarm {
    /// Seeds to run: so many, or from A to before B.
    #[arg(long, value_name = "N | A..B", default_value = "1000", value_parser = seeds, conflicts_with = "seed")]
    seeds: Range<u64>,
    /// Run one seed only.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Threads; as many as there are cores by default.
    #[arg(long, value_name = "J", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Go on for so many minutes, with as many seeds as it takes.
    #[arg(long, value_name = "M", value_parser = minutes, conflicts_with = "seed")]
    minutes: Option<f64>,
    /// Only faults of these kinds (as `do` of scenarios names them), or none.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = fault)]
    faults: Vec<String>,
    /// Run each seed twice and compare.
    #[arg(long)]
    twice: bool,
    /// Say which rare branches were taken, and which never.
    #[arg(long)]
    coverage: bool,
    /// Where failures go, as scenario files.
    #[arg(long, value_name = "DIR", default_value = "target/swarm")]
    out: PathBuf,
    /// Most runs to make a failure small.
    #[arg(long, value_name = "N", default_value_t = 3000)]
    tries: u32,
    /// Folder with hw/ and models/.
    #[arg(long, value_name = "DIR", default_value = "scenarios")]
    library: PathBuf,
    /// Plant this mistake in all machines.
    #[cfg(feature = "mutants")]
    #[arg(long, value_name = "NAME", value_parser = mutant)]
    mutant: Option<Mutant>,
    /// Look for each known mistake from several starting points, and say how soon it is found and how small it gets.
    #[cfg(feature = "mutants")]
    #[arg(long, conflicts_with_all = ["mutant", "seed", "minutes", "coverage", "twice"])]
    mutants: bool,
    /// Starting points of --mutants.
    #[cfg(feature = "mutants")]
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    starts: u64,
}

/// Kinds of failures that are made small.
const PURSUED_MAX: usize = 10;

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| {
        let digits = text.replace('_', "");
        digits.parse::<u64>().map_err(|_| format!("\"{text}\" is no number; write 10000 or 10000..20000"))
    };
    let range = match text.split_once("..") {
        Some((from, to)) => number(from)?..number(to)?,
        None => 0..number(text)?,
    };
    if range.is_empty() { Err("there are no seeds in it; write 10000 or 10000..20000".to_owned()) } else { Ok(range) }
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if minutes > 0.0 && minutes <= 100_000.0 => Ok(minutes),
        Ok(_) | Err(_) => Err("write a number of minutes, for instance 5 or 0.5".to_owned()),
    }
}

fn fault(name: &str) -> Result<String, String> {
    if name == "none" || Kind::parse(name).is_some() {
        return Ok(name.to_owned());
    }
    let names: Vec<&str> = MENU.iter().map(|kind| kind.name).collect();
    Err(format!("there is no such kind; there are {}, and none for no faults", names.join(", ")))
}

#[cfg(feature = "mutants")]
fn mutant(name: &str) -> Result<Mutant, String> {
    let names = || Mutant::ALL.iter().map(|mutant| mutant.name()).collect::<Vec<_>>().join(", ");
    Mutant::parse(name).ok_or_else(|| format!("there is no such mistake; there are {}", names()))
}

impl Swarm {
    /// Runs the seeds; 1 if any failed, 2 for bad input.
    pub(crate) fn run(&self) -> ExitCode {
        let library = match Library::new(&self.library).in_memory() {
            Ok(library) => library,
            Err(error) => {
                let help = "run pd where the folder scenarios is, or name a folder with hw/ and models/ by --library";
                return bad_input(&format!("{error}\n{help}"));
            }
        };
        let stage = Stage::new(library).twice(self.twice).coverage(self.coverage);
        #[cfg(feature = "mutants")]
        if self.mutants {
            return self.hunt(stage);
        }
        #[cfg(feature = "mutants")]
        let stage = stage.mutation(self.mutant.map(Mutation::of).unwrap_or_default());
        self.search(&stage)
    }

    /// Looks for all mistakes; 1 if one was missed.
    #[cfg(feature = "mutants")]
    fn hunt(&self, mut stage: Stage) -> ExitCode {
        let seeds = self.seeds.end - self.seeds.start;
        let bounds = Bounds { starts: self.starts, seeds, tries: self.tries, jobs: self.jobs() };
        let mut hunts = Vec::new();
        let bar = progress(Some(Mutant::ALL.len() as u64));
        for &mutant in Mutant::ALL {
            bar.set_message(mutant.name());
            let (hunt, back) = mutants::hunt(stage, mutant, bounds);
            stage = back;
            hunts.push(hunt);
            bar.inc(1);
        }
        bar.finish_and_clear();
        print!("{}", mutants::table(&hunts));
        ExitCode::from(u8::from(hunts.iter().any(|hunt| hunt.found.len() < bounds.starts as usize)))
    }

    fn search(&self, stage: &Stage) -> ExitCode {
        let begin = Instant::now();
        let sum = self.fleet(stage, begin);
        let seconds = begin.elapsed().as_secs_f64();
        print!("{}", report::summary(&sum, seconds, self.jobs()));
        if self.coverage {
            print!("{}", report::coverage(&sum.coverage));
        }
        if sum.found.is_empty() {
            return ExitCode::SUCCESS;
        }
        let mut found: Vec<&Found> = sum.found.values().collect();
        found.sort_by_key(|found| found.seed);
        for (index, found) in found.iter().enumerate() {
            println!("\n{} seeds: {}", found.count, found.failure);
            println!("  repeat it:  {}", self.command(found.seed));
            if index >= PURSUED_MAX {
                continue;
            }
            let finding = self.pursue(stage, found);
            if let Err(error) = self.dump(&finding) {
                return bad_input(&error);
            }
        }
        ExitCode::from(1)
    }

    fn fleet(&self, stage: &Stage, begin: Instant) -> Sum {
        let until = self.minutes.map(|minutes| begin + Duration::from_secs_f64(minutes * 60.0));
        let seeds = match (self.seed, until) {
            (Some(seed), _) => seed..seed + 1,
            (None, Some(_)) => self.seeds.start..u64::MAX,
            (None, None) => self.seeds.clone(),
        };
        let faults: Vec<&str> = self.faults.iter().map(String::as_str).collect();
        let total = seeds.end - seeds.start;
        let fleet = Fleet { seeds, faults: &faults, jobs: self.jobs(), first_only: self.stops_at_first() };
        let bar = progress(if until.is_some() { None } else { Some(total) });
        let sum = fleet.run(stage, &mut |sum| {
            if sum.seeds.is_multiple_of(16) {
                bar.set_position(sum.seeds);
                bar.set_message(format!("{} failed", sum.failed()));
            }
            until.is_none_or(|until| Instant::now() < until)
        });
        bar.finish_and_clear();
        sum
    }

    fn pursue(&self, stage: &Stage, found: &Found) -> Finding {
        let bar = progress(None);
        bar.set_message("making it small".to_owned());
        let faults: Vec<&str> = self.faults.iter().map(String::as_str).collect();
        let plan = swarm::draw(found.seed, &faults);
        let finding = swarm::pursue(stage, found.seed, &plan, &found.failure, self.tries);
        bar.finish_and_clear();
        finding
    }

    /// Writes the plan as drawn and the small one, and says where.
    fn dump(&self, finding: &Finding) -> Result<(), String> {
        let failed = |path: &PathBuf, error: std::io::Error| format!("{} cannot be written: {error}", path.display());
        fs::create_dir_all(&self.out).map_err(|error| failed(&self.out, error))?;
        let command = self.command(finding.seed);
        let drawn = self.out.join(format!("seed_{}.toml", finding.seed));
        fs::write(&drawn, finding.text_as_drawn(&command)).map_err(|error| failed(&drawn, error))?;
        let small = self.out.join(format!("{}.toml", finding.failure.symptom().slug()));
        fs::write(&small, finding.text(&command)).map_err(|error| failed(&small, error))?;
        let end = if finding.effort.is_minimal { "" } else { ", not yet minimal: raise --tries" };
        println!("  as drawn:   {} ({})", drawn.display(), report::size(&finding.plan));
        println!(
            "  made small: {} ({}; {} runs{end})",
            small.display(),
            report::size(&finding.small),
            finding.effort.tries
        );
        println!("  which says: {}", finding.small_failure);
        Ok(())
    }

    /// The command that repeats a seed.
    fn command(&self, seed: u64) -> String {
        let faults =
            if self.faults.is_empty() { String::new() } else { format!(" --faults {}", self.faults.join(",")) };
        let twice = if self.twice { " --twice" } else { "" };
        #[cfg(feature = "mutants")]
        let mutant = self.mutant.map_or_else(String::new, |mutant| format!(" --mutant {}", mutant.name()));
        #[cfg(not(feature = "mutants"))]
        let mutant = "";
        format!("pd swarm --seed {seed}{faults}{twice}{mutant}")
    }

    /// A planted mistake is to be found, not to be counted.
    #[cfg(feature = "mutants")]
    const fn stops_at_first(&self) -> bool {
        self.mutant.is_some()
    }

    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "asked as where there are mutants")]
    const fn stops_at_first(&self) -> bool {
        false
    }

    fn jobs(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let jobs = self.jobs.map_or_else(cores, usize::from);
        if self.seed.is_some() { 1 } else { jobs }
    }
}

/// A bar where somebody looks; one that only turns if nobody knows how long it takes.
fn progress(total: Option<u64>) -> ProgressBar {
    match total {
        Some(total) => {
            let bar = bar("", "[{bar:30}] {pos}/{len} seeds, {per_sec}, {msg} ({eta})");
            bar.set_length(total);
            bar
        }
        None => bar("", "{spinner} {pos} seeds, {per_sec}, {msg} ({elapsed})"),
    }
}

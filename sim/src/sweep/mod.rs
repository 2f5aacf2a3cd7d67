//! A scenario many times: points with different keys, the same seeds for all of them, run in parallel and compared.
//!
//! ```text
//!   points  x  seeds  ──>  one world each, on any thread  ──>  runs[point][seed], always in this order
//! ```
//! 1. All points get the same seeds, hence the same arrivals and lengths (common random numbers): differences between
//!    points are taken seed by seed, and are far sharper than the means.
//! 2. What comes out depends on neither the number of threads nor on which runs were resumed from a file.

mod config;
pub mod gate;
pub mod log;
mod page;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

pub use self::config::{Seeds, SweepConfig};
use self::gate::{Gate, Verdict};
use self::log::Log;
pub use self::page::{csv, json, page};
use crate::parallel;
use crate::report;
use crate::scenario::error::ScenarioError;
use crate::scenario::expect::{self, Values, value};
use crate::scenario::set::Change;
use crate::scenario::{Case, Document};
use crate::stats::Interval;
use crate::world::World;

/// Runs above which a sweep has to be asked for twice.
pub const RUNS_MAX: u64 = 1_000;

/// A sweep, ready to run.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Name of the scenario.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// What differs.
    pub points: Vec<Point>,
    /// The same for all points.
    pub seeds: Vec<u64>,
    /// Names of the values to show.
    pub show: Vec<String>,
    /// What must hold between points.
    pub gates: Vec<Gate>,
}

/// One point.
#[derive(Clone, PartialEq, Debug)]
pub struct Point {
    /// Its place, from 0.
    pub index: usize,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What it sets.
    pub changes: Vec<Change>,
}

/// What one run has shown.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Its seed.
    pub seed: u64,
    /// Its hash.
    pub hash: u64,
    /// Its values by name.
    pub values: Values,
    /// Gates of the scenario that did not hold, with what was found.
    pub broken: Vec<String>,
}

/// All runs of a sweep.
#[derive(Clone, Debug)]
pub struct Done {
    /// What was asked for.
    pub sweep: Sweep,
    /// By point, then by seed.
    pub runs: Vec<Vec<Run>>,
    /// How many runs came from a file.
    pub resumed: usize,
}

impl Point {
    /// Its name or number and what it sets.
    #[must_use]
    pub fn label(&self) -> String {
        let name = self.name.clone().unwrap_or_else(|| self.index.to_string());
        let keys: Vec<String> =
            self.changes.iter().map(|change| format!("{}={}", change.key, config::plain(&change.value))).collect();
        if keys.is_empty() { format!("point {name}") } else { format!("point {name} ({})", keys.join(", ")) }
    }

    /// The value that it sets a key to.
    #[must_use]
    pub fn sets(&self, key: &str) -> Option<String> {
        self.changes.iter().find(|change| change.key == key).map(|change| config::plain(&change.value))
    }
}

impl Sweep {
    /// Runs all points with all seeds. `log` has runs of earlier times and takes the new ones; `each` hears how many
    /// runs have ended.
    ///
    /// # Errors
    /// A point that cannot be a world, by name and key; a log that cannot be written.
    pub fn run(
        self,
        document: &Document,
        threads: NonZeroUsize,
        mut log: Option<&mut Log>,
        each: &mut dyn FnMut(usize),
    ) -> Result<Done, ScenarioError> {
        let jobs: Vec<(&Point, u64)> =
            self.points.iter().flat_map(|point| self.seeds.iter().map(move |seed| (point, *seed))).collect();
        let known = log.as_ref().map(|log| log.known().clone());
        let work = |&(point, seed): &(&Point, u64)| {
            let case = document.changed(&format!("{}/{}", self.name, point.label()), &point.changes, seed)?;
            let key = log::key(&case.setup);
            match known.as_ref().and_then(|known| known.get(&key)) {
                Some(run) => Ok((key, Run { broken: broken(&case.gates, &run.values), ..run.clone() }, true)),
                None => Ok((key, run(case, seed), false)),
            }
        };
        let mut count = 0;
        let results = parallel::in_order(threads, &jobs, work, &mut |_, (key, run, is_resumed)| {
            count += 1;
            each(count);
            match &mut log {
                Some(log) if !is_resumed => log
                    .append(*key, run)
                    .map_err(|error| document.error("sweep", format!("--resume: cannot be written: {error}"))),
                Some(_) | None => Ok(()),
            }
        })?;
        let resumed = results.iter().filter(|(_, _, is_resumed)| *is_resumed).count();
        let mut results = results.into_iter().map(|(_, run, _)| run);
        let runs = self.points.iter().map(|_| results.by_ref().take(self.seeds.len()).collect()).collect();
        Ok(Done { sweep: self, runs, resumed })
    }
}

fn run(case: Case, seed: u64) -> Run {
    let outcome = World::new(case.setup).run();
    let values = report::values(&outcome);
    Run { seed, hash: outcome.hash, broken: broken(&case.gates, &values), values }
}

/// The scenario's own gates that a run does not satisfy, in words.
fn broken(gates: &[expect::Gate], values: &Values) -> Vec<String> {
    let broken = gates.iter().filter_map(|gate| gate.check(values).err());
    let mut broken: Vec<String> = broken.map(|broken| format!("{}   found: {}", broken.gate, broken.found)).collect();
    match values.get("run.violations") {
        Some(&count) if count > 0.0 => broken.push(format!("run.violations == 0   found: {count}")),
        Some(_) | None => {}
    }
    broken
}

impl Done {
    /// Mean of a value over the seeds of a point, with its 95 % confidence interval.
    ///
    /// # Errors
    /// The runs have no such value; the nearest name.
    pub fn interval(&self, point: usize, name: &str) -> Result<Interval, String> {
        let samples = self.samples(point, name)?;
        Ok(Interval::of(&samples).expect("a sweep has a seed"))
    }

    /// Mean difference of a value to the first point, seed by seed, with its 95 % confidence interval.
    ///
    /// # Errors
    /// The runs have no such value; the nearest name.
    pub fn difference(&self, point: usize, name: &str) -> Result<Interval, String> {
        let samples = self.samples(point, name)?;
        let differences: Vec<f64> =
            samples.iter().zip(self.samples(0, name)?).map(|(one, first)| one - first).collect();
        Ok(Interval::of(&differences).expect("a sweep has a seed"))
    }

    /// What came of the sweep's gates.
    #[must_use]
    pub fn verdicts(&self) -> Vec<Verdict> {
        self.sweep.gates.iter().map(|gate| gate.check(self)).collect()
    }

    /// The gates that do not hold, of runs and between points, in words.
    #[must_use]
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for (runs, point) in self.runs.iter().zip(&self.sweep.points) {
            for run in runs {
                broken.extend(run.broken.iter().map(|text| format!("{}, seed {}: {text}", point.label(), run.seed)));
            }
        }
        for verdict in self.verdicts() {
            broken.extend(verdict.broken.map(|found| format!("{}   found: {found}", verdict.gate)));
        }
        broken
    }

    /// True if all gates hold, in each run and between points.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.broken().is_empty()
    }

    fn samples(&self, point: usize, name: &str) -> Result<Vec<f64>, String> {
        self.runs[point].iter().map(|run| value(&run.values, name)).collect()
    }
}

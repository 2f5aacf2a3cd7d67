//! Which deployment of so many GPUs serves a load best, what limits it, and what more of each thing would buy.
//!
//! Goodput is the largest rate at which the promised share of requests has its first token and its other tokens in
//! time. It is searched by bisection, seed by seed; all candidates get the same seeds and so the same requests (common
//! random numbers), and differences between deployments are differences of paired samples.
//!
//! ```text
//!   screen   all candidates, one seed, half of the span
//!   race     the best few, and the best of each kind, with all seeds and the whole span
//!   what if  the winner again with more of each resource; the largest elasticity names what limits
//! ```
//! Near saturation a capacity that is off by 2 % moves the tail by a factor: each point comes with how busy its
//! hardware was, and a goodput is only as true as the cost model's figures.

mod layout;
mod page;
pub mod search;
#[cfg(test)]
mod tests;
mod trial;
mod what_if;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

pub use self::layout::{Candidate, Layout, Tier};
pub use self::page::{json, page};
use self::search::{Bounds, largest};
pub use self::trial::{Goal, Trial, Usage};
pub use self::what_if::WhatIf;
use crate::parallel;
use crate::scenario::build::{self, Problem};
use crate::scenario::schema::File;
use crate::setup::Setup;
use crate::stats::Interval;

/// What is to be planned.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Model, patterns of workers, network, load.
    pub file: File,
    /// Where traces and hardware are looked for.
    pub folder: PathBuf,
    /// GPUs to deploy.
    pub gpus: u32,
    /// Sizes of groups.
    pub tps: Vec<u32>,
    /// Links to choose from; the scenario's own if empty.
    pub links: Vec<String>,
    /// Tiers to choose from; the scenario's own if empty.
    pub tiers: Vec<Tier>,
    /// What requests are promised.
    pub goal: Goal,
    /// At least one; two and more for an interval.
    pub seeds: Vec<u64>,
    /// Width of the last bracket, as a share.
    pub precision: f64,
}

/// A deployment and its goodput.
#[derive(Clone, Debug)]
pub struct Point {
    /// The deployment.
    pub candidate: Candidate,
    /// Largest rate that keeps the promise, in requests per second, by seed; 0 where none does.
    pub rates: Vec<f64>,
    /// The runs at those rates, by seed; none where no rate does.
    pub trials: Vec<Option<Trial>>,
    /// The runs just above, by seed; none where there was no bound.
    pub beyond: Vec<Option<Trial>>,
    /// It was only screened: one seed, half of the span.
    pub is_screened: bool,
}

/// What more of a resource buys.
#[derive(Clone, Debug)]
pub struct Gain {
    /// More of what.
    pub what_if: WhatIf,
    /// Goodput afterwards over goodput before, less 1, seed by seed.
    pub gain: Interval,
    /// Logarithm of that ratio over that of how much more there is: 1 if twice as much serves twice as much.
    pub elasticity: f64,
}

/// A plan with its figures.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What was asked for.
    pub plan: Plan,
    /// Raced before screened; each by goodput per GPU, the best first.
    pub points: Vec<Point>,
    /// Candidates that cannot be, and why.
    pub impossible: Vec<(Candidate, String)>,
    /// What more would buy for the best; empty if nothing keeps the promise.
    pub gains: Vec<Gain>,
}

impl Point {
    /// Goodput in requests per second.
    #[must_use]
    pub fn goodput(&self) -> Interval {
        Interval::of(&self.rates).expect("a plan has a seed")
    }

    /// Goodput per GPU.
    #[must_use]
    pub fn per_gpu(&self) -> f64 {
        self.goodput().mean / f64::from(self.candidate.layout.gpus())
    }

    /// How busy things were at the goodput, mean over the seeds.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let trials: Vec<&Usage> = self.trials.iter().flatten().map(|trial| &trial.usage).collect();
        let mean = |part: fn(&Usage) -> f64| {
            trials.iter().map(|usage| part(usage)).fold(0.0, |sum, one| sum + one) / (trials.len() as f64).max(1.0)
        };
        Usage {
            prefill: mean(|usage| usage.prefill),
            decode: mean(|usage| usage.decode),
            link: mean(|usage| usage.link),
            copy: mean(|usage| usage.copy),
            disk: mean(|usage| usage.disk),
            hits: mean(|usage| usage.hits),
            retractions: mean(|usage| usage.retractions),
        }
    }

    /// Which promise breaks first above the goodput: requests late with the first token, and late with the others.
    #[must_use]
    pub fn breaks(&self) -> (u64, u64) {
        let beyond = self.beyond.iter().flatten();
        beyond.fold((0, 0), |(first, rest), trial| (first + trial.late_first, rest + trial.late_rest))
    }
}

impl Planned {
    /// What limits the best deployment: the resource of the largest elasticity, if there is one that matters.
    ///
    /// A worker more brings memory, too: if memory alone does nearly as much, it is not the GPU that limits.
    #[must_use]
    pub fn limit(&self) -> Option<&'static str> {
        let best = self.gains.iter().max_by(|a, b| a.elasticity.total_cmp(&b.elasticity))?;
        if best.elasticity < ELASTICITY_MIN {
            return Some("SLO tail");
        }
        let memory = self.gains.iter().find(|gain| gain.what_if == WhatIf::KvMemory);
        let limit = match memory {
            Some(memory) if memory.gain.mean >= MEMORY_SHARE * best.gain.mean => memory,
            Some(_) | None => best,
        };
        Some(limit.what_if.limit())
    }
}

impl Plan {
    /// Plans. `each` hears how many searches are done, of how many that are known.
    ///
    /// # Errors
    /// What is wrong with the plan, or that no candidate is possible.
    pub fn run(&self, threads: NonZeroUsize, each: &mut dyn FnMut(usize, usize)) -> Result<Planned, Problem> {
        self.check()?;
        let candidates = self.candidates();
        let mut possible = Vec::new();
        let mut impossible = Vec::new();
        for candidate in candidates {
            match self.setup(&candidate, None, 1.0, self.seeds[0]) {
                Ok(_) => possible.push(candidate),
                Err(problem) => impossible.push((candidate, problem.message)),
            }
        }
        if possible.is_empty() {
            let why = impossible.first().map_or_else(
                || format!("groups of {:?} do not divide {} GPUs", self.tps, self.gpus),
                |(candidate, why)| format!("{candidate}: {why}"),
            );
            return Err(Problem {
                message: format!("no deployment of {} GPUs is possible: {why}", self.gpus),
                key: None,
            });
        }

        let screen = Goal { span: self.goal.span / 2, ..self.goal };
        let total = possible.len();
        let mut count = 0;
        let mut points = parallel::in_order(
            threads,
            &possible,
            |candidate| {
                let found =
                    self.find(candidate, None, &screen, self.seeds[0], None, self.precision.max(SCREEN_PRECISION))?;
                Ok(Point::new(candidate, vec![found], true))
            },
            &mut |_, _| {
                count += 1;
                each(count, total);
                Ok::<(), Problem>(())
            },
        )?;
        sort(&mut points);

        let racers = racers(&points);
        let mut jobs: Vec<(usize, u64)> = Vec::new();
        for &racer in &racers {
            jobs.extend(self.seeds.iter().map(|seed| (racer, *seed)));
        }
        let found = parallel::in_order(
            threads,
            &jobs,
            |&(racer, seed)| {
                let point = &points[racer];
                self.find(&point.candidate, None, &self.goal, seed, point.trials[0].as_ref(), self.precision)
            },
            &mut |index, _| {
                each(count + index + 1, count + jobs.len());
                Ok(())
            },
        )?;
        count += jobs.len();
        let mut found = found.into_iter();
        for &racer in &racers {
            let seeds = found.by_ref().take(self.seeds.len()).collect();
            points[racer] = Point::new(&points[racer].candidate.clone(), seeds, false);
        }
        sort(&mut points);

        let gains = match points.first() {
            Some(best) if best.rates.iter().all(|rate| *rate > 0.0) => {
                self.gains(best, threads, &mut |done, of| each(count + done, count + of))?
            }
            Some(_) | None => Vec::new(),
        };
        Ok(Planned { plan: self.clone(), points, impossible, gains })
    }

    /// The searches of one candidate with all seeds, as the race does them.
    ///
    /// # Errors
    /// Why the candidate cannot be.
    pub fn point(&self, candidate: &Candidate) -> Result<Point, Problem> {
        self.check()?;
        let found = self.seeds.iter().map(|seed| self.find(candidate, None, &self.goal, *seed, None, self.precision));
        Ok(Point::new(candidate, found.collect::<Result<_, _>>()?, false))
    }

    fn check(&self) -> Result<(), Problem> {
        let problem = |message: &str| Err(Problem { message: message.to_owned(), key: None });
        if !(1..=GPUS_MAX).contains(&self.gpus) {
            return problem(&format!("{} GPUs: there must be 1 to {GPUS_MAX}", self.gpus));
        }
        if self.seeds.is_empty() {
            return problem("there is no seed");
        }
        if self.tps.is_empty() || self.tps.contains(&0) {
            return problem("group sizes (--tp) must be 1 or more");
        }
        if !(1..=1000).contains(&self.goal.attain_per_mille) {
            return problem("the share of requests that must be in time lies between 0.001 and 1");
        }
        if self.goal.span < Duration::from_secs(1) {
            return problem("requests must arrive for at least 1s");
        }
        if !(PRECISION_MIN..=0.5).contains(&self.precision) {
            return problem(&format!("the precision must be from {} to 50 %", 100.0 * PRECISION_MIN));
        }
        if self.file.load.is_empty() {
            return problem("there is no load whose rate could be looked for");
        }
        for load in &self.file.load {
            trial::scale(&mut load.clone(), 1.0).map_err(|message| Problem { message, key: Some("load") })?;
        }
        Ok(())
    }

    fn candidates(&self) -> Vec<Candidate> {
        let own = |names: &[String]| -> Vec<Option<String>> {
            if names.is_empty() { vec![None] } else { names.iter().cloned().map(Some).collect() }
        };
        let links = own(&self.links);
        let tiers: Vec<Option<Tier>> =
            if self.tiers.is_empty() { vec![None] } else { self.tiers.iter().cloned().map(Some).collect() };
        let mut candidates = Vec::new();
        for layout in Layout::all(self.gpus, &self.tps) {
            for tier in &tiers {
                // Nothing goes between workers that do both.
                let links = if layout.is_split() { &links[..] } else { &links[..1] };
                for link in links {
                    let link = link.clone().filter(|_| layout.is_split());
                    candidates.push(Candidate { layout, link, tier: tier.clone() });
                }
            }
        }
        candidates
    }

    fn setup(&self, candidate: &Candidate, what_if: Option<WhatIf>, factor: f64, seed: u64) -> Result<Setup, Problem> {
        let mut candidate = candidate.clone();
        if let Some(what_if) = what_if {
            candidate.layout = what_if.layout(candidate.layout).0;
        }
        let mut file = candidate.deploy(&self.file);
        file.seed = seed;
        for load in &mut file.load {
            trial::scale(load, factor).map_err(|message| Problem { message, key: Some("load") })?;
        }
        let mut setup = build::setup(&file, &self.folder)?;
        if let Some(what_if) = what_if {
            what_if.apply(&mut setup);
        }
        Ok(setup)
    }

    fn find(
        &self,
        candidate: &Candidate,
        what_if: Option<WhatIf>,
        goal: &Goal,
        seed: u64,
        near: Option<&Trial>,
        precision: f64,
    ) -> Result<Found, Problem> {
        let mut found = Found::default();
        let bounds = Bounds { min: FACTOR_MIN, max: FACTOR_MAX, precision };
        let (start, stride) = near.map_or((1.0, 2.0), |trial| (trial.factor, 1.0 + 4.0 * precision));
        largest(bounds, start, stride, |factor| {
            let trial = goal.run(self.setup(candidate, what_if, factor, seed)?, factor);
            let is_met = goal.is_met(&trial);
            let place = if is_met { &mut found.at } else { &mut found.beyond };
            let is_closer =
                place.as_ref().is_none_or(|other| if is_met { factor > other.factor } else { factor < other.factor });
            if is_closer {
                *place = Some(trial);
            }
            Ok::<_, Problem>(is_met)
        })?;
        Ok(found)
    }

    fn gains(
        &self,
        best: &Point,
        threads: NonZeroUsize,
        each: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Gain>, Problem> {
        let setup = self.setup(&best.candidate, None, 1.0, self.seeds[0])?;
        let what_ifs = WhatIf::all(best.candidate.layout, &setup);
        let mut jobs = Vec::new();
        for &what_if in &what_ifs {
            jobs.extend((0..self.seeds.len()).map(|seed| (what_if, seed)));
        }
        let mut count = 0;
        let found = parallel::in_order(
            threads,
            &jobs,
            |&(what_if, seed)| {
                let near = best.trials[seed].as_ref();
                self.find(&best.candidate, Some(what_if), &self.goal, self.seeds[seed], near, self.precision)
            },
            &mut |_, _| {
                count += 1;
                each(count, jobs.len());
                Ok(())
            },
        )?;
        let mut found = found.into_iter();
        let mut gains = Vec::new();
        for what_if in what_ifs {
            let more = what_if.layout(best.candidate.layout).1;
            let rates = found.by_ref().take(self.seeds.len()).map(|found| found.rate());
            let ratios: Vec<f64> = rates.zip(&best.rates).map(|(after, before)| after / before).collect();
            let ratio = ratios.iter().sum::<f64>() / ratios.len() as f64;
            let gain: Vec<f64> = ratios.iter().map(|ratio| ratio - 1.0).collect();
            let gain = Interval::of(&gain).expect("a plan has a seed");
            gains.push(Gain { what_if, gain, elasticity: ratio.ln() / more.ln() });
        }
        Ok(gains)
    }
}

/// What a search has found.
#[derive(Clone, Debug, Default)]
struct Found {
    at: Option<Trial>,
    beyond: Option<Trial>,
}

impl Found {
    fn rate(&self) -> f64 {
        self.at.as_ref().map_or(0.0, |trial| trial.rate)
    }
}

impl Point {
    fn new(candidate: &Candidate, found: Vec<Found>, is_screened: bool) -> Self {
        let rates = found.iter().map(Found::rate).collect();
        let (trials, beyond) = found.into_iter().map(|found| (found.at, found.beyond)).unzip();
        Self { candidate: candidate.clone(), rates, trials, beyond, is_screened }
    }
}

/// What was raced before what was only screened, whose figures are coarser; then the best first.
fn sort(points: &mut [Point]) {
    points.sort_by(|a, b| a.is_screened.cmp(&b.is_screened).then(b.per_gpu().total_cmp(&a.per_gpu())));
}

/// The places of those worth a race: the first few, and the first of each kind.
fn racers(points: &[Point]) -> Vec<usize> {
    let first = |is_split: bool| points.iter().position(|point| point.candidate.layout.is_split() == is_split);
    let mut racers: Vec<usize> = (0..points.len().min(RACERS)).chain(first(true)).chain(first(false)).collect();
    racers.sort_unstable();
    racers.dedup();
    racers
}

/// Candidates that are raced at least.
const RACERS: usize = 6;
/// Most GPUs of a plan.
const GPUS_MAX: u32 = 1024;
/// Below this nothing is worth more of.
const ELASTICITY_MIN: f64 = 0.15;
/// Share of what a worker buys from which on it is its memory that does it.
const MEMORY_SHARE: f64 = 0.8;
/// Screening is not more precise than one seed can be.
const SCREEN_PRECISION: f64 = 0.03;
/// Rates of requests are rounded at the seventh digit.
const PRECISION_MIN: f64 = 0.001;
/// Factors of the load's own rate between which goodput is looked for.
const FACTOR_MIN: f64 = 1e-3;
const FACTOR_MAX: f64 = 1e5;

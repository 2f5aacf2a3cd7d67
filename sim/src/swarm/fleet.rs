//! Many seeds on several threads. What is found does not depend on how many there are.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use super::{Coverage, Failure, Plan, Ran, Stage, Symptom, draw};

/// Which plans are run, and until when.
#[derive(Clone, Debug)]
pub struct Fleet<'a> {
    /// The seeds.
    pub seeds: Range<u64>,
    /// Kinds of faults, by name; all if empty.
    pub faults: &'a [&'a str],
    /// Threads.
    pub jobs: usize,
    /// Stop behind the first seed that fails.
    pub first_only: bool,
}

/// What the runs have shown together.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// Seeds that were run.
    pub seeds: u64,
    /// Events handled.
    pub events: u64,
    /// Time in there, over all runs.
    pub simulated_ns: u128,
    /// Requests that arrived.
    pub requests: u64,
    /// Faults that were drawn.
    pub faults: u64,
    /// By symptom: the first seed, its failure, and how many seeds have it.
    pub found: BTreeMap<Symptom, Found>,
    /// Which rare branches were taken, if that was asked for.
    pub coverage: Coverage,
    /// Order-free fingerprint of all runs.
    pub hash: u64,
}

/// A kind of failure.
#[derive(Clone, Debug)]
pub struct Found {
    /// The lowest seed that has it.
    pub seed: u64,
    /// What was wrong there.
    pub failure: Failure,
    /// Seeds that have it first of all.
    pub count: u64,
}

impl Fleet<'_> {
    /// Runs them. `progress` is told of each run with the number of failures so far, and ends the rest by `false`.
    pub fn run(&self, stage: &Stage, progress: &mut dyn FnMut(&Sum) -> bool) -> Sum {
        let next = AtomicU64::new(self.seeds.start);
        let is_over = AtomicBool::new(false);
        let mut sum = Sum::default();
        thread::scope(|scope| {
            let (sender, results) = mpsc::sync_channel::<(u64, Plan, Ran)>(self.jobs * 4);
            for _ in 0..self.jobs.max(1) {
                let (next, is_over, sender) = (&next, &is_over, sender.clone());
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.seeds.end {
                            break;
                        }
                        let plan = draw(seed, self.faults);
                        let ran = stage.run(&plan);
                        let has_failed = !ran.failures.is_empty();
                        // Seeds are given out in order: those before this one are done or under way.
                        if has_failed && self.first_only {
                            is_over.store(true, Ordering::Relaxed);
                        }
                        if sender.send((seed, plan, ran)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for (seed, plan, ran) in results {
                sum.add(seed, &plan, ran);
                if !progress(&sum) {
                    is_over.store(true, Ordering::Relaxed);
                }
            }
        });
        sum
    }
}

impl Sum {
    fn add(&mut self, seed: u64, plan: &Plan, mut ran: Ran) {
        self.seeds += 1;
        self.events += ran.events;
        self.simulated_ns += u128::from(ran.simulated_ns);
        self.requests += ran.requests;
        self.faults += plan.faults.len() as u64;
        self.hash ^= ran.hash.rotate_left((seed % 64) as u32);
        if ran.reached != super::Reached::default() {
            for fault in &plan.faults {
                ran.reached.add(format!("fault.{}", fault.what));
            }
            self.coverage.add(&ran.reached);
        }
        let Some(failure) = ran.failures.into_iter().next() else { return };
        let found =
            self.found.entry(failure.symptom()).or_insert_with(|| Found { seed, failure: failure.clone(), count: 0 });
        found.count += 1;
        if seed < found.seed {
            found.seed = seed;
            found.failure = failure;
        }
    }

    /// Seeds that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.found.values().map(|found| found.count).sum()
    }

    /// The lowest seed that failed, and how.
    #[must_use]
    pub fn first(&self) -> Option<&Found> {
        self.found.values().min_by_key(|found| found.seed)
    }
}

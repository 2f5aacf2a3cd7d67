//! How soon a swarm finds each deliberate mistake, and how small it makes what it has found.

use pd_core::mutant::{Mutant, Mutation};

use super::fleet::Fleet;
use super::{Finding, Stage, draw, pursue};

/// How the search for one mutant went.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// The mistake.
    pub mutant: Mutant,
    /// One for each starting point at which it was found: seeds that it took, and the finding.
    pub found: Vec<(u64, Finding)>,
    /// Starting points.
    pub starts: u64,
}

/// Bounds of a search.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Starting points.
    pub starts: u64,
    /// Most seeds from each.
    pub seeds: u64,
    /// Most runs to make a finding small.
    pub tries: u32,
    /// Threads.
    pub jobs: usize,
}

/// Seeds between two starting points.
const APART: u64 = 1_000_000;

/// Looks for a mistake from several starting points.
#[must_use]
pub fn hunt(stage: Stage, mutant: Mutant, bounds: Bounds) -> (Hunt, Stage) {
    let stage = stage.mutation(Mutation::of(mutant));
    let mut found = Vec::new();
    for start in (0..bounds.starts).map(|start| start * APART) {
        let fleet = Fleet { seeds: start..start + bounds.seeds, faults: &[], jobs: bounds.jobs, first_only: true };
        let sum = fleet.run(&stage, &mut |_| true);
        if let Some(first) = sum.first() {
            let plan = draw(first.seed, &[]);
            let finding = pursue(&stage, first.seed, &plan, &first.failure, bounds.tries);
            found.push((first.seed - start + 1, finding));
        }
    }
    (Hunt { mutant, found, starts: bounds.starts }, stage)
}

impl Hunt {
    /// Median of seeds until it was found, of requests and of faults of the small plans; none if it was never found.
    #[must_use]
    pub fn medians(&self) -> Option<(u64, u64, u64)> {
        let median = |read: &dyn Fn(&(u64, Finding)) -> u64| {
            let mut all: Vec<u64> = self.found.iter().map(read).collect();
            all.sort_unstable();
            all.get(all.len() / 2).copied()
        };
        let requests = |(_, finding): &(u64, Finding)| finding.small.requests.len() as u64;
        let faults = |(_, finding): &(u64, Finding)| finding.small.faults.len() as u64;
        Some((median(&|(seeds, _)| *seeds)?, median(&requests)?, median(&faults)?))
    }
}

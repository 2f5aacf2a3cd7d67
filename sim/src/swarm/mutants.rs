//! How soon a swarm finds each deliberate mistake, and how small it makes what it has found.

use pd_core::mutant::{Mutant, Mutation};

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use super::fleet::Fleet;
use super::{Finding, Stage, draw, pursue, report};

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
    let mut stage = stage;
    let mut found = Vec::new();
    for start in (0..bounds.starts).map(|start| start * APART) {
        let mut next = start;
        loop {
            stage = stage.mutation(Mutation::of(mutant));
            let seeds = next..start + bounds.seeds;
            let fleet = Fleet { seeds, faults: &[], jobs: bounds.jobs, first_only: true };
            let sum = fleet.run(&stage, &mut |_| true);
            let Some(first) = sum.first() else { break };
            let plan = draw(first.seed, &[]);
            // What goes wrong without the mistake, too, says nothing of it.
            stage = stage.mutation(Mutation::default());
            if !stage.run(&plan).failures.is_empty() {
                next = first.seed + 1;
                continue;
            }
            stage = stage.mutation(Mutation::of(mutant));
            let finding = pursue(&stage, first.seed, &plan, &first.failure, bounds.tries);
            found.push((first.seed - start + 1, finding));
            break;
        }
    }
    (Hunt { mutant, found, starts: bounds.starts }, stage.mutation(Mutation::default()))
}

/// All searches as a table, and the medians over them.
#[must_use]
pub fn table(hunts: &[Hunt]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "mistake",
        "found",
        "seeds",
        "requests",
        "faults",
        "smallest",
        "noticed by",
    ]);
    let (mut requests, mut faults) = (Vec::new(), Vec::new());
    for hunt in hunts {
        let found = format!("{} of {}", hunt.found.len(), hunt.starts);
        let row = |seeds: String, requests: String, faults: String, size: String, by: String| {
            [hunt.mutant.name().to_owned(), found.clone(), seeds, requests, faults, size, by]
        };
        let Some((median_seeds, median_requests, median_faults)) = hunt.medians() else {
            table.add_row(row("-".into(), "-".into(), "-".into(), String::new(), String::new()));
            continue;
        };
        requests.push(median_requests);
        faults.push(median_faults);
        let size = |finding: &Finding| finding.small.requests.len() + finding.small.faults.len();
        let smallest = hunt.found.iter().map(|(_, finding)| finding).min_by_key(|finding| size(finding));
        let (size, by) = smallest.map_or_else(Default::default, |finding| {
            (report::size(&finding.small), finding.small_failure.noticed.to_string())
        });
        table.add_row(row(median_seeds.to_string(), median_requests.to_string(), median_faults.to_string(), size, by));
    }
    let caught = hunts.iter().filter(|hunt| !hunt.found.is_empty()).count();
    requests.sort_unstable();
    faults.sort_unstable();
    let middle = |sorted: &[u64]| sorted.get(sorted.len() / 2).copied().unwrap_or(0);
    format!(
        "{table}\n{caught} of {} mistakes found; median size {} requests, {} faults\n",
        hunts.len(),
        middle(&requests),
        middle(&faults)
    )
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

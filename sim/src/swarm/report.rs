//! What a swarm says at its end.

use std::fmt::Write as _;

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use super::fleet::Sum;
use super::{Coverage, Effort, Failure, Plan};

/// A failure, and the smallest plan that was found to fail like it.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Whose plan failed first.
    pub seed: u64,
    /// How.
    pub failure: Failure,
    /// The plan as drawn.
    pub plan: Plan,
    /// The small one.
    pub small: Plan,
    /// The failure of the small one.
    pub small_failure: Failure,
    /// What shrinking took.
    pub effort: Effort,
}

impl Finding {
    /// The scenario file of the small plan; `command` is what finds it again.
    #[must_use]
    pub fn text(&self, command: &str) -> String {
        let mut about = String::new();
        let _ = writeln!(about, "{}", self.small_failure);
        let _ = writeln!(about, "Found by `{command}`, shrunk in {} runs:", self.effort.tries);
        let _ = write!(about, "{}; it was {}.", size(&self.small), size(&self.plan));
        self.small.text(&about)
    }

    /// The scenario file of the plan as drawn.
    #[must_use]
    pub fn text_as_drawn(&self, command: &str) -> String {
        self.plan.text(&format!("{}\nFound by `{command}`.", self.failure))
    }
}

/// How large a plan is, in words.
#[must_use]
pub fn size(plan: &Plan) -> String {
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let loads = if plan.loads.is_empty() { String::new() } else { format!(" and {}", count(plan.loads.len(), "load")) };
    format!(
        "{}, {}{loads}, {}",
        count(plan.workers() as usize, "worker"),
        count(plan.requests.len(), "request"),
        count(plan.faults.len(), "fault")
    )
}

/// One paragraph over all runs; `seconds` is how long `jobs` threads took.
#[must_use]
pub fn summary(sum: &Sum, seconds: f64, jobs: usize) -> String {
    let hours = sum.simulated_ns as f64 / 3.6e12;
    let core_hours = seconds * jobs as f64 / 3600.0;
    format!(
        "{} seeds in {seconds:.1} s on {jobs} threads: {:.0} seeds/s, {:.0} k events/s\n\
         {} requests, {} faults, {hours:.0} simulated hours ({:.0} per core-hour), hash {:016x}\n\
         {} seeds failed, in {} ways\n",
        sum.seeds,
        sum.seeds as f64 / seconds.max(1e-9),
        sum.events as f64 / 1e3 / seconds.max(1e-9),
        sum.requests,
        sum.faults,
        hours / core_hours.max(1e-12),
        sum.hash,
        sum.failed(),
        sum.found.len()
    )
}

/// What was reached how often, rarest first, and what never was.
#[must_use]
pub fn coverage(coverage: &Coverage) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["runs", "reached"]);
    let mut counts: Vec<(u64, &str)> = coverage.counts().map(|(name, count)| (count, name)).collect();
    counts.sort_unstable();
    for (count, name) in counts {
        table.add_row([count.to_string(), name.to_owned()]);
    }
    let mut text = format!("{table}\n");
    let (had, all) = coverage.pairs();
    let _ = writeln!(text, "{had} of {all} pairs of these were reached in one run");
    let never = coverage.never();
    let never = if never.is_empty() { "none".to_owned() } else { never.join(", ") };
    let _ = writeln!(text, "marks that {} runs have never reached: {never}", coverage.runs());
    text
}

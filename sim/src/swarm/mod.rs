//! Looks for runs that go wrong: thousands of small deployments, each drawn from a seed, each with faults of its own.
//!
//! ```text
//!   seed --draw--> Plan --text--> scenario --load, run--> verdict
//!                   ^                                        |
//!                   └-------------- shrink <----- failure ---┘
//! ```
//!
//! 1. A plan is a scenario and runs as one. What a failure leaves behind is a scenario file with a gate that it breaks.
//! 2. Equal seeds draw equal plans, and equal plans run and shrink alike, on any number of threads.
//! 3. First there are faults, then all is well, and then every request must end: with its answer, a refusal that says
//!    why, or because its client went away.

mod coverage;
mod dice;
mod draw;
mod failure;
pub mod fleet;
mod keys;
mod menu;
#[cfg(feature = "mutants")]
pub mod mutants;
mod plan;
pub mod report;
mod run;
mod shrink;
#[cfg(test)]
mod tests;
mod theme;

pub use self::coverage::{Coverage, Reached};
pub use self::draw::draw;
pub use self::failure::{Failure, Noticed, Symptom};
pub use self::keys::{Keys, Value};
pub use self::menu::{Kind, MENU};
pub use self::plan::{Fault, Group, Plan, Request, Role};
pub use self::report::Finding;
pub use self::run::{Ran, Stage};
pub use self::shrink::{Effort, shrink};

/// Shrinks the plan of a failure; the small one has the same symptom.
#[must_use]
pub fn pursue(stage: &Stage, seed: u64, plan: &Plan, failure: &Failure, tries_max: u32) -> Finding {
    let symptom = failure.symptom();
    let mut small_failure = failure.clone();
    let (small, effort) = shrink(plan, tries_max, &mut |candidate| {
        let same = stage.run(candidate).failures.into_iter().find(|failure| failure.symptom() == symptom);
        let is_same = same.is_some();
        small_failure = same.unwrap_or_else(|| small_failure.clone());
        is_same
    });
    Finding { seed, failure: failure.clone(), plan: plan.clone(), small, small_failure, effort }
}

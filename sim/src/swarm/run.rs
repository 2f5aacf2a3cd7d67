//! One run of one plan: through the loader of scenarios, in a world with checkers, and a verdict.

use std::path::Path;
use std::sync::Arc;

use pd_core::mutant::Mutation;
use pd_core::time::Instant;

use super::coverage::Reached;
use super::failure::{Failure, Noticed, catch};
use super::plan::Plan;
use crate::hardware::Library;
use crate::record::Outcome;
use crate::scenario::{Case, Document, Overrides};
use crate::world::World;

/// Where plans are run.
#[derive(Debug)]
pub struct Stage {
    library: Arc<Library>,
    mutation: Mutation,
    /// Run each plan twice and compare.
    twice: bool,
    /// Note which rare branches were taken.
    coverage: bool,
}

/// What a run has shown.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// What must never happen, and did; the first one first.
    pub failures: Vec<Failure>,
    /// Fingerprint; 0 if there is none.
    pub hash: u64,
    /// Events handled.
    pub events: u64,
    /// How long it was in there.
    pub simulated_ns: u64,
    /// Requests that arrived.
    pub requests: u64,
    /// Which rare branches it took, if that was asked for.
    pub reached: Reached,
}

impl Stage {
    /// A stage with this hardware.
    #[must_use]
    pub fn new(library: Library) -> Self {
        Self { library: Arc::new(library), mutation: Mutation::default(), twice: false, coverage: false }
    }

    /// Runs each plan twice and compares.
    #[must_use]
    pub const fn twice(mut self, twice: bool) -> Self {
        self.twice = twice;
        self
    }

    /// Notes which rare branches are taken.
    #[must_use]
    pub const fn coverage(mut self, coverage: bool) -> Self {
        self.coverage = coverage;
        self
    }

    /// Plants a mistake in all machines.
    #[must_use]
    pub const fn mutation(mut self, mutation: Mutation) -> Self {
        self.mutation = mutation;
        self
    }

    /// Runs a plan.
    #[must_use]
    pub fn run(&self, plan: &Plan) -> Ran {
        let text = plan.text("");
        let first = self.once(&text);
        if self.twice && first.failures.is_empty() {
            let second = self.once(&text);
            if second.hash != first.hash {
                let what = format!("the same plan gave hash {:016x}, then {:016x}", first.hash, second.hash);
                return Ran { failures: vec![Failure { noticed: Noticed::Twice, what }], ..first };
            }
        }
        first
    }

    /// Makes a world of the text of a plan.
    ///
    /// # Errors
    /// If it is no scenario.
    pub fn load(&self, text: &str) -> Result<Case, Failure> {
        let library = Some(Arc::clone(&self.library));
        Document::of(text.to_owned(), Path::new("plan.toml"), &Overrides::default(), library)
            .and_then(|document| document.cases())
            .map(|mut cases| cases.swap_remove(0))
            .map_err(|error| Failure { noticed: Noticed::Loader, what: error.message })
    }

    fn once(&self, text: &str) -> Ran {
        let ran = self.load(text).and_then(|case| catch(|| self.play(case)));
        ran.unwrap_or_else(failed)
    }

    fn play(&self, case: Case) -> Ran {
        let mut setup = case.setup;
        for worker in &mut setup.workers {
            worker.config.mutate(self.mutation);
        }
        if let Some((config, _)) = &mut setup.router {
            config.mutation = self.mutation;
        }
        let mut world = World::new(setup);
        world.begin();
        let (mut events, mut since, mut now) = (0, 0, Instant::ZERO);
        while world.turn() {
            events += 1;
            if world.now() > now {
                (now, since) = (world.now(), events);
            }
            if events >= EVENTS_MAX || events - since >= EVENTS_AT_ONCE_MAX {
                let what = if events >= EVENTS_MAX {
                    format!("more than {EVENTS_MAX} events; the time is {now}")
                } else {
                    format!("time stands still: more than {EVENTS_AT_ONCE_MAX} events at {now}")
                };
                return Ran { events, simulated_ns: now.0, ..failed(Failure { noticed: Noticed::Hang, what }) };
            }
        }
        let outcome = world.finish();
        Ran {
            failures: failures(&outcome),
            hash: outcome.hash,
            events: outcome.events,
            simulated_ns: outcome.ended.0,
            requests: outcome.requests.len() as u64,
            reached: if self.coverage { Reached::of(&outcome) } else { Reached::default() },
        }
    }
}

fn failed(failure: Failure) -> Ran {
    Ran { failures: vec![failure], ..Ran::default() }
}

/// What the run of a world that got to its end did wrong.
fn failures(outcome: &Outcome) -> Vec<Failure> {
    let mut failures: Vec<Failure> = outcome
        .violations
        .iter()
        .map(|violation| Failure {
            noticed: Noticed::Checker(violation.checker.name().to_owned()),
            what: violation.what.clone(),
        })
        .collect();
    let unfinished = outcome.requests.iter().zip(0..).filter(|(record, _)| record.end.is_none());
    let unfinished: Vec<u64> = unfinished.map(|(_, index): (_, u64)| index).collect();
    if let Some(first) = unfinished.first() {
        let record = &outcome.requests[*first as usize];
        let what = format!(
            "a request has not ended: request {first}, {} of {} tokens, {} of them unfinished at {}",
            record.tokens,
            record.limit,
            unfinished.len(),
            outcome.ended
        );
        failures.push(Failure { noticed: Noticed::Liveness, what });
    }
    failures
}

/// Events beyond which a run counts as one without end; plans take some ten thousand at most.
const EVENTS_MAX: u64 = 1_000_000;
/// The same at one instant.
const EVENTS_AT_ONCE_MAX: u64 = 100_000;

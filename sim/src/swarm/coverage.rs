//! Which rare branches a swarm has taken, and which ones together.

use std::collections::{BTreeMap, BTreeSet};

use pd_core::metrics::MARKS;

use crate::record::{End, Outcome};
use crate::report;

/// What one run has reached, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reached(BTreeSet<String>);

/// What many runs have reached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Coverage {
    runs: u64,
    /// In how many runs.
    counts: BTreeMap<String, u64>,
    /// Pairs that were reached in the same run, the smaller name first.
    pairs: BTreeSet<(u16, u16)>,
    numbers: BTreeMap<String, u16>,
}

impl Reached {
    /// What a run has reached: marks, counters that are not 0, ways to end, reasons of misses.
    #[must_use]
    pub fn of(outcome: &Outcome) -> Self {
        let totals = report::totals(outcome);
        let mut reached: BTreeSet<String> = totals.marks.keys().map(|mark| format!("marks.{mark}")).collect();
        reached.extend(totals.counters().filter(|(_, count)| *count > 0).map(|(name, _)| format!("workers.{name}")));
        if let Some(router) = &outcome.router {
            reached.extend(router.counters().filter(|(_, count)| *count > 0).map(|(name, _)| format!("router.{name}")));
        }
        for record in &outcome.requests {
            match record.end {
                None => {}
                Some(End::RouterLost) => drop(reached.insert("router_lost".to_owned())),
                Some(End::Finished(finish)) => drop(reached.insert(format!("finish.{finish:?}"))),
                Some(End::Refused(refusal)) => drop(reached.insert(format!("refused.{}", variant(&refusal)))),
                Some(End::NotRouted(refusal)) => drop(reached.insert(format!("not_routed.{}", variant(&refusal)))),
            }
            let served = [&record.served, &record.sink_served].into_iter().flatten();
            for miss in served.flat_map(|served| &served.misses) {
                reached.insert(format!("misses.{}", miss.reason.name()));
            }
        }
        Self(reached)
    }

    /// Adds what the plan of the run had in it.
    pub fn add(&mut self, what: String) {
        self.0.insert(what);
    }
}

/// The name of a variant without its values.
fn variant(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

impl Coverage {
    /// Adds a run.
    pub fn add(&mut self, reached: &Reached) {
        self.runs += 1;
        let mut places = Vec::with_capacity(reached.0.len());
        for name in &reached.0 {
            *self.counts.entry(name.clone()).or_default() += 1;
            let next = self.numbers.len() as u16;
            places.push(*self.numbers.entry(name.clone()).or_insert(next));
        }
        for (index, one) in places.iter().enumerate() {
            for other in &places[index + 1..] {
                self.pairs.insert((*one.min(other), *one.max(other)));
            }
        }
    }

    /// Runs so far.
    #[must_use]
    pub const fn runs(&self) -> u64 {
        self.runs
    }

    /// In how many runs each thing was reached, by name.
    pub fn counts(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts.iter().map(|(name, count)| (name.as_str(), *count))
    }

    /// Marks of core that no run has reached.
    #[must_use]
    pub fn never(&self) -> Vec<&'static str> {
        MARKS.iter().copied().filter(|mark| !self.counts.contains_key(&format!("marks.{mark}"))).collect()
    }

    /// Pairs of things that were reached in one run, and pairs that there are among what was reached at all.
    #[must_use]
    pub fn pairs(&self) -> (u64, u64) {
        let count = self.counts.len() as u64;
        (self.pairs.len() as u64, count * count.saturating_sub(1) / 2)
    }
}

//! Which side should compute an append: the prefill worker (and hand over), or the decode worker itself?
//!
//! One conversation whose first tokens the decode worker holds asks again, while the decode worker serves others. In
//! each cell of reuse x length x decodes x link both answers are simulated, and the router is asked what it would do:
//!
//! ```text
//!   first turn ──> answers of others begin ──> prefill worker restarts ──> the append ──> the others' next tokens
//!                                             (it holds nothing)             TTFT            TPOT
//! ```
//! That the prefill worker holds nothing is the comparison of PPD (arXiv 2603.13358): in a plain pair the channel goes
//! one way, and the prefill worker computes history and answers again. What the decode worker holds is not sent again.
//!
//! An append is better by weights (1, w) if the share of TTFT that it saves is more than w times the share of TPOT that
//! the others lose. The crossover r* is the reuse from which on it is better, between two cells by linear
//! interpolation.

mod cell;
mod claim;
mod page;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;

use pd_core::cost::LinkCost;
use serde::Deserialize;

use self::cell::Cell;
pub use self::cell::Found;
pub use self::claim::{By, Claim, Side};
pub use self::page::{json, page};
use crate::parallel;
use crate::scenario::Document;
use crate::scenario::error::ScenarioError;
use crate::units::Count;

/// What an `[append_map]` table says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapConfig {
    /// Shares of the prompt that the decode worker holds, from 0 to less than 1, ascending.
    pub reuse: Vec<f64>,
    /// Lengths of the prompt.
    pub tokens: Vec<Count>,
    /// Answers under way on the decode worker.
    pub decodes: Vec<u32>,
    /// Links between the two workers, from the fastest to the slowest.
    pub links: Vec<String>,
    /// Weights of TPOT against a weight of 1 of TTFT.
    #[serde(default = "even")]
    pub w_tpot: Vec<f64>,
    /// Length of the prompts of the answers under way.
    #[serde(default = "short")]
    pub decode_prompt_tokens: Count,
    /// Tokens of each of those answers over which TPOT is taken, from the append on: how many an append has to itself.
    #[serde(default = "window")]
    pub window_tokens: u32,
    /// What must hold.
    #[serde(default)]
    pub expect: Vec<Claim>,
}

fn even() -> Vec<f64> {
    vec![1.0]
}

const fn short() -> Count {
    Count(256)
}

const fn window() -> u32 {
    256
}

/// A map with all its cells.
#[derive(Clone, Debug)]
pub struct Map {
    /// Name of the scenario.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// What was asked for.
    pub config: MapConfig,
    /// Link by link, then by decodes, by tokens, by reuse.
    pub cells: Vec<Found>,
}

impl MapConfig {
    /// Simulates all cells.
    ///
    /// # Errors
    /// What is wrong with the table or with the scenario.
    pub fn run(
        &self,
        document: &Document,
        threads: NonZeroUsize,
        each: &mut dyn FnMut(usize),
    ) -> Result<Map, ScenarioError> {
        let name = document.name();
        self.check().map_err(|(key, problem)| document.error(key, format!("{name}: [append_map] {problem}")))?;
        let file = document.file(name, &[])?;
        let mut slowest: Option<LinkCost> = None;
        for link in &self.links {
            let mut file = file.clone();
            file.network.far.clone_from(link);
            let cost = document.setup(name, &file)?.workers[0].far.cost;
            if slowest.is_none_or(|other| cost.bytes_per_second < other.bytes_per_second) {
                slowest = Some(cost);
            }
        }
        let slowest = slowest.expect("checked: there is a link");
        let jobs = self.jobs();
        let mut count = 0;
        let cells =
            parallel::in_order(threads, &jobs, |cell| cell.run(self, document, &file, slowest), &mut |_, _| {
                count += 1;
                each(count);
                Ok(())
            })?;
        Ok(Map { name: name.to_owned(), about: file.about, config: self.clone(), cells })
    }

    /// How many cells there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.links.len() * self.decodes.len() * self.tokens.len() * self.reuse.len()
    }

    fn jobs(&self) -> Vec<Cell> {
        let mut jobs = Vec::new();
        for link in &self.links {
            for &decodes in &self.decodes {
                for &Count(tokens) in &self.tokens {
                    for &reuse in &self.reuse {
                        jobs.push(Cell { link: link.clone(), decodes, tokens, reuse });
                    }
                }
            }
        }
        jobs
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let empty = [
            ("reuse", self.reuse.is_empty()),
            ("tokens", self.tokens.is_empty()),
            ("decodes", self.decodes.is_empty()),
            ("links", self.links.is_empty()),
            ("w_tpot", self.w_tpot.is_empty()),
        ];
        if let Some((key, _)) = empty.iter().find(|(_, is_empty)| *is_empty) {
            return Err((key, format!("{key} is empty, so there would be no cells")));
        }
        if let Some(wrong) = self.reuse.iter().find(|reuse| !(0.0..1.0).contains(*reuse)) {
            return Err((
                "reuse",
                format!("reuse has {wrong}; it must be from 0 to less than 1: one token is always new"),
            ));
        }
        if self.reuse.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(("reuse", "reuse must ascend: the crossover is looked for in this order".to_owned()));
        }
        if let Some(wrong) = self.w_tpot.iter().find(|weight| !weight.is_finite() || **weight < 0.0) {
            return Err(("w_tpot", format!("w_tpot has {wrong}; a weight is 0 or more")));
        }
        if let Some(Count(wrong)) = self.tokens.iter().find(|tokens| !(1..=TOKENS_MAX).contains(&tokens.0)) {
            return Err(("tokens", format!("tokens has {wrong}; it must be from 1 to {TOKENS_MAX}")));
        }
        if let Some(wrong) = self.decodes.iter().find(|decodes| !(1..=DECODES_MAX).contains(*decodes)) {
            return Err(("decodes", format!("decodes has {wrong}; it must be from 1 to {DECODES_MAX}")));
        }
        if !(1..=WINDOW_MAX).contains(&self.window_tokens) {
            let problem = format!("window_tokens is {}; it must be from 1 to {WINDOW_MAX}", self.window_tokens);
            return Err(("window_tokens", problem));
        }
        Ok(())
    }
}

impl Map {
    /// The cells of a row, by reuse.
    #[must_use]
    pub fn row(&self, link: &str, decodes: u32, tokens: u64) -> &[Found] {
        let is_of = |cell: &Found| cell.link == link && cell.decodes == decodes && cell.tokens == tokens;
        let from = self.cells.iter().position(is_of).unwrap_or(self.cells.len());
        &self.cells[from..(from + self.config.reuse.len()).min(self.cells.len())]
    }

    /// The reuse from which on appending is better, and its neighbours do not matter: 0 if it always is, none if it is
    /// not even at the largest reuse.
    #[must_use]
    pub fn crossover(row: &[Found], by: By) -> Option<f64> {
        let last = row.iter().rposition(|cell| cell.margin(by) <= 0.0);
        let Some(last) = last else { return Some(0.0) };
        let (below, above) = (&row[last], row.get(last + 1)?);
        let (low, high) = (below.margin(by), above.margin(by));
        Some(below.reuse + (above.reuse - below.reuse) * (-low / (high - low)))
    }

    /// In how many cells, of how many, the router does what is better by a measure, if it has that measure's weights.
    #[must_use]
    pub fn agreement(&self, by: By) -> (usize, usize) {
        let agree = self.cells.iter().filter(|cell| cell.router.side_by(by) == cell.winner(by)).count();
        (agree, self.cells.len())
    }

    /// The claims that do not hold, in words.
    #[must_use]
    pub fn broken(&self) -> Vec<String> {
        self.config.expect.iter().filter_map(|claim| claim.check(self).err()).collect()
    }
}

/// Longest prompt of a cell.
const TOKENS_MAX: u64 = 1 << 20;
/// Most answers under way.
const DECODES_MAX: u32 = 4096;
/// Most tokens over which TPOT is taken.
const WINDOW_MAX: u32 = 8192;

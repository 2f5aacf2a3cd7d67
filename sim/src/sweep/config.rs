//! The `[sweep]` table of a scenario.
//!
//! ```toml
//! [sweep]
//! grid = { "worker.0.count" = [1, 2, 4], "network.far" = ["net_25g", "net_400g"] }
//! # or: list = [{ name = "slow", "network.far" = "net_25g" }, { name = "fast", "network.far" = "net_400g" }]
//! seeds = 5
//! show = ["ttft.p50_ms", "tpot.mean_ms"]
//! expect = ["1.ttft.p50_ms < 0.ttft.p50_ms"]
//! ```

use serde::Deserialize;
use toml::{Table, Value};

use super::gate::Gate;
use super::{Point, Sweep};
use crate::scenario::Document;
use crate::scenario::error::ScenarioError;
use crate::scenario::set::Change;

/// What a `[sweep]` table says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepConfig {
    /// Keys with the values that each of them takes; points are all combinations, the last key (in the order of the
    /// alphabet) changes fastest.
    #[serde(default)]
    pub grid: Table,
    /// Points one by one, each a table of keys and values and, if it likes, a `name`. With a grid, each of them is
    /// combined with all of it.
    #[serde(default)]
    pub list: Vec<Table>,
    /// How many seeds, from the scenario's own on, or which. All points get the same ones.
    #[serde(default)]
    pub seeds: Seeds,
    /// Values to show, by their names in `pd sim --json`.
    #[serde(default = "usual")]
    pub show: Vec<String>,
    /// What must hold between points; see [`super::gate`].
    #[serde(default)]
    pub expect: Vec<String>,
}

/// Seeds of a sweep.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected a number of seeds or a list of them")]
pub enum Seeds {
    /// So many, from the scenario's seed on.
    Count(u32),
    /// These.
    List(Vec<u64>),
}

impl Default for Seeds {
    fn default() -> Self {
        Self::Count(1)
    }
}

fn usual() -> Vec<String> {
    ["ttft.p50_ms", "ttft.p99_ms", "tpot.mean_ms", "throughput.output_tokens_per_second"].map(str::to_owned).to_vec()
}

impl SweepConfig {
    /// The points and seeds of a scenario's sweep, at most `runs_max` runs.
    ///
    /// # Errors
    /// What is wrong: an empty list of values, too many runs, a gate that cannot be read, a name that is taken.
    pub fn sweep(&self, document: &Document, runs_max: u64) -> Result<Sweep, ScenarioError> {
        let name = document.name();
        let error = |key: &str, problem: String| document.error(key, format!("{name}: [sweep] {problem}"));
        let file = document.file(name, &[])?;
        let seeds = match &self.seeds {
            Seeds::Count(0) => return Err(error("seeds", "seeds is 0; it must be at least 1".to_owned())),
            Seeds::Count(count) => (0..u64::from(*count)).map(|step| file.seed.wrapping_add(step)).collect(),
            Seeds::List(list) if list.is_empty() => {
                return Err(error("seeds", "seeds is an empty list; name at least one".to_owned()));
            }
            Seeds::List(_) if document.seed().is_some() => vec![file.seed],
            Seeds::List(list) => list.clone(),
        };
        if let Some(twice) = seeds.iter().enumerate().find_map(|(at, seed)| seeds[..at].contains(seed).then_some(seed))
        {
            return Err(error("seeds", format!("seed {twice} is listed twice; it would count as two observations")));
        }
        if self.grid.is_empty() && self.list.is_empty() {
            return Err(error(
                "sweep",
                "has no points; give grid = { \"KEY\" = [VALUES] } or list = [{ \"KEY\" = VALUE }]".to_owned(),
            ));
        }
        let mut count = (self.list.len() as u64).max(1).saturating_mul(seeds.len() as u64);
        for (key, values) in &self.grid {
            match values.as_array() {
                None => {
                    let problem = format!("grid \"{key}\" is a {}; it must be a list of values", values.type_str());
                    return Err(error(key, problem));
                }
                Some(values) if values.is_empty() => {
                    return Err(error(key, format!("grid \"{key}\" has no values, so there would be no points")));
                }
                Some(values) => count = count.saturating_mul(values.len() as u64),
            }
        }
        if count > runs_max {
            let problem = format!(
                "has {count} runs (points x seeds), more than {runs_max}; shorten it, or say --runs-max {count}"
            );
            return Err(error("sweep", problem));
        }
        let points = self.points(&error)?;
        let gates = self.expect.iter().map(|text| {
            Gate::parse(text, &points).map_err(|problem| error("expect", format!("expect \"{text}\": {problem}")))
        });
        let gates = gates.collect::<Result<_, _>>()?;
        if self.show.is_empty() {
            return Err(error("show", "show is empty; name at least one value".to_owned()));
        }
        Ok(Sweep { name: name.to_owned(), about: file.about, points, seeds, show: self.show.clone(), gates })
    }

    fn points(&self, error: &dyn Fn(&str, String) -> ScenarioError) -> Result<Vec<Point>, ScenarioError> {
        let mut points: Vec<Keys> = Vec::new();
        for table in &self.list {
            let mut keys = table.clone();
            let name = match keys.remove("name") {
                None => None,
                Some(Value::String(name)) if is_name(&name) => Some(name),
                Some(other) => {
                    let problem = format!(
                        "list: a point cannot be called {other}; a name is letters, digits and _, and begins with a letter"
                    );
                    return Err(error("list", problem));
                }
            };
            if let Some(name) = &name
                && points.iter().any(|(other, _)| other.as_ref() == Some(name))
            {
                return Err(error("list", format!("list: two points are called \"{name}\"")));
            }
            points.push((name, keys.into_iter().collect()));
        }
        if points.is_empty() {
            points.push((None, Vec::new()));
        }
        for (key, values) in &self.grid {
            let values = values.as_array().into_iter().flatten();
            points = points
                .iter()
                .flat_map(|(name, keys)| {
                    values.clone().map(move |value| {
                        let mut keys = keys.clone();
                        keys.push((key.clone(), value.clone()));
                        // With a grid behind it, a name of the list is that of several points.
                        (name.clone(), keys)
                    })
                })
                .collect();
        }
        let point = |(index, (name, keys)): (usize, Keys)| {
            let mut point = Point { index, name, changes: Vec::new() };
            let texts: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect();
            let origin = format!("point {index} ({})", texts.join(", "));
            point.changes =
                keys.into_iter().map(|(key, value)| Change { origin: origin.clone(), key, value }).collect();
            point
        };
        Ok(points.into_iter().enumerate().map(point).collect())
    }
}

/// A point before it has a number: its name, keys and values.
type Keys = (Option<String>, Vec<(String, Value)>);

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// A value without the quotes of a string.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

//! Gates: what a run must have done. A run that did nothing fails.
//!
//! ```toml
//! [expect]
//! "requests.finished" = "== 2"
//! "request.1.storage_tokens" = ">= 25000"
//! "ttft.p99_ms" = "< 900"
//! "marks.hicache.scanned" = ">= 1"
//! ```
//!
//! The names are those of `pd sim --json`. Counters that a run never touched count as 0.

use std::collections::BTreeMap;
use std::fmt;

use super::error::nearest;

/// Values of a report by name.
pub type Values = BTreeMap<String, f64>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Relation {
    Less,
    AtMost,
    Equal,
    Differs,
    AtLeast,
    More,
}

/// One gate.
#[derive(Clone, PartialEq, Debug)]
pub struct Gate {
    name: String,
    relation: Relation,
    bound: f64,
}

/// A gate that did not hold.
#[derive(Clone, PartialEq, Debug)]
pub struct Broken {
    /// The gate.
    pub gate: String,
    /// What the run had instead, in words.
    pub found: String,
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let relation = match self.relation {
            Relation::Less => "<",
            Relation::AtMost => "<=",
            Relation::Equal => "==",
            Relation::Differs => "!=",
            Relation::AtLeast => ">=",
            Relation::More => ">",
        };
        write!(f, "{} {relation} {}", self.name, self.bound)
    }
}

/// Groups of values whose members appear only when something happened; a missing one is 0.
const SPARSE: [&str; 4] = ["marks.", "misses.", "refused.", "finish."];

/// The value of a report by its name; 0 for what never happened.
///
/// # Errors
/// There is no such value, and the nearest name.
pub fn value(values: &Values, name: &str) -> Result<f64, String> {
    match values.get(name) {
        Some(value) => Ok(*value),
        None if SPARSE.iter().any(|group| name.starts_with(group)) => Ok(0.0),
        None => Err(nearest(name, values.keys().map(String::as_str)).map_or_else(
            || "the report has no such value; `pd sim --json` lists them".to_owned(),
            |near| format!("the report has no such value; did you mean \"{near}\"?"),
        )),
    }
}

impl Gate {
    /// Reads the gates on one value: one, or several with commas between them, `">= 1, <= 30"`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse_all(name: &str, text: &str) -> Result<Vec<Self>, String> {
        text.split(',').map(|part| Self::parse(name, part)).collect()
    }

    /// Reads a gate such as `">= 25000"`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let text = text.trim();
        let operators = [
            ("<=", Relation::AtMost),
            (">=", Relation::AtLeast),
            ("==", Relation::Equal),
            ("!=", Relation::Differs),
            ("<", Relation::Less),
            (">", Relation::More),
        ];
        let (relation, rest) = operators
            .iter()
            .find_map(|(sign, relation)| text.strip_prefix(sign).map(|rest| (*relation, rest)))
            .ok_or_else(|| format!("\"{name}\" = \"{text}\": a gate starts with one of <, <=, ==, !=, >=, >"))?;
        let bound: f64 = rest.trim().replace('_', "").parse().map_err(|_| {
            format!("\"{name}\" = \"{text}\": behind {} there must be a number", &text[..text.len() - rest.len()])
        })?;
        Ok(Self { name: name.to_owned(), relation, bound })
    }

    /// The name of the value that it is about.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True if the value satisfies the gate.
    #[must_use]
    pub fn holds(&self, value: f64) -> bool {
        match self.relation {
            Relation::Less => value < self.bound,
            Relation::AtMost => value <= self.bound,
            Relation::Equal => (value - self.bound).abs() < 1e-9,
            Relation::Differs => (value - self.bound).abs() >= 1e-9,
            Relation::AtLeast => value >= self.bound,
            Relation::More => value > self.bound,
        }
    }

    /// Holds the gate against a report.
    ///
    /// # Errors
    /// What was found instead.
    pub fn check(&self, values: &Values) -> Result<(), Broken> {
        let broken = |found| Err(Broken { gate: self.to_string(), found });
        match value(values, &self.name) {
            Ok(value) if self.holds(value) => Ok(()),
            Ok(_) if !values.contains_key(&self.name) => broken("it never happened".to_owned()),
            Ok(value) => broken(format!("{value}")),
            Err(problem) => broken(problem),
        }
    }

    /// True if a run in which nothing happened would fail the gate.
    #[must_use]
    pub fn fails_idle(&self) -> bool {
        !self.holds(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, f64)]) -> Values {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value)).collect()
    }

    #[test]
    fn each_relation_holds_where_it_should() {
        for (text, below, at, above) in [
            ("< 5", true, false, false),
            ("<= 5", true, true, false),
            ("== 5", false, true, false),
            ("!= 5", true, false, true),
            (">= 5", false, true, true),
            ("> 5", false, false, true),
        ] {
            let gate = Gate::parse("x", text).unwrap();
            assert_eq!((gate.holds(4.0), gate.holds(5.0), gate.holds(6.0)), (below, at, above), "{text}");
        }
    }

    #[test]
    fn several_bounds_on_one_value_are_several_gates() {
        let gates = Gate::parse_all("x", ">= 1, < 30").unwrap();
        let holds = |value| gates.iter().all(|gate| gate.holds(value));
        assert_eq!((holds(0.0), holds(1.0), holds(29.0), holds(30.0)), (false, true, true, false));
        assert!(Gate::parse_all("x", ">= 1,").is_err());
    }

    #[test]
    fn a_gate_without_a_sign_or_a_number_is_refused_in_words() {
        assert!(Gate::parse("x", "5").unwrap_err().contains("starts with one of"));
        assert!(Gate::parse("x", ">= lots").unwrap_err().contains("a number"));
    }

    #[test]
    fn a_misspelt_value_breaks_the_gate_and_names_the_nearest() {
        let gate = Gate::parse("requests.finnished", ">= 1").unwrap();
        let broken = gate.check(&values(&[("requests.finished", 3.0)])).unwrap_err();
        assert!(broken.found.contains("requests.finished"), "{}", broken.found);
    }

    #[test]
    fn what_never_happened_counts_as_zero() {
        assert!(Gate::parse("marks.kv.write_back", "== 0").unwrap().check(&values(&[])).is_ok());
        assert!(Gate::parse("marks.kv.write_back", ">= 1").unwrap().check(&values(&[])).is_err());
    }
}

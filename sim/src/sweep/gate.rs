//! What must hold between the points of a sweep.
//!
//! ```text
//! 2.ttft.p50_ms < 0.ttft.p50_ms                                 points by index
//! fast.ttft.p50_ms <= 0.5 * slow.ttft.p50_ms                    by name
//! [network.far=net_25g].ttft.p50_ms / 0.ttft.p50_ms >= 1.2      by what they set
//! 1 < 0.tpot.mean_ms < 1.tpot.mean_ms                           chains
//! ```
//! Numbers, values of points, `+ - * /`, parentheses; `< <= == != >= >`. Each side is computed for each seed, and the
//! difference of the sides, averaged over the seeds, must satisfy the relation: with common random numbers that tells
//! points apart which single runs would not.

use std::fmt;

use super::{Done, Point};
use crate::scenario::expect::value;
use crate::stats::Interval;

/// One gate: sides with a relation between each and the next.
#[derive(Clone, PartialEq, Debug)]
pub struct Gate {
    text: String,
    first: Expression,
    rest: Vec<(Relation, Expression)>,
}

/// What came of a gate.
#[derive(Clone, PartialEq, Debug)]
pub struct Verdict {
    /// The gate.
    pub gate: String,
    /// None if it holds; else what was found.
    pub broken: Option<String>,
    /// True if a difference that holds is smaller than its 95 % confidence interval over the seeds.
    pub is_within_noise: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Relation {
    Less,
    AtMost,
    Equal,
    Differs,
    AtLeast,
    More,
}

#[derive(Clone, PartialEq, Debug)]
enum Expression {
    Number(f64),
    Value { point: usize, name: String },
    Binary(Box<Expression>, Operator, Box<Expression>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Gate {
    /// Reads a gate over these points.
    ///
    /// # Errors
    /// What is wrong with it: no relation, a point that is not there, something behind the end.
    pub fn parse(text: &str, points: &[Point]) -> Result<Self, String> {
        let mut reader = Reader { rest: text, points };
        let first = reader.sum()?;
        let mut rest = Vec::new();
        while let Some(relation) = reader.relation() {
            rest.push((relation, reader.sum()?));
        }
        if !reader.rest.trim().is_empty() {
            return Err(format!("cannot be read from \"{}\" on", reader.rest.trim()));
        }
        if rest.is_empty() {
            return Err("has no relation; write for instance 1.ttft.p50_ms < 0.ttft.p50_ms".to_owned());
        }
        let sides = std::iter::once(&first).chain(rest.iter().map(|(_, side)| side));
        if sides.clone().all(|side| !side.has_value()) {
            return Err("names no point, so it does not depend on the runs".to_owned());
        }
        Ok(Self { text: text.trim().to_owned(), first, rest })
    }

    /// Holds the gate against all runs.
    #[must_use]
    pub fn check(&self, done: &Done) -> Verdict {
        let mut verdict = Verdict { gate: self.text.clone(), broken: None, is_within_noise: false };
        let mut left = &self.first;
        for (relation, right) in &self.rest {
            match compare(*relation, left, right, done) {
                Ok(is_within_noise) => verdict.is_within_noise |= is_within_noise,
                Err(found) => {
                    verdict.broken = Some(found);
                    return verdict;
                }
            }
            left = right;
        }
        verdict
    }
}

/// Whether the difference is within noise, if the relation holds.
fn compare(relation: Relation, left: &Expression, right: &Expression, done: &Done) -> Result<bool, String> {
    let seeds = 0..done.sweep.seeds.len();
    let values = |side: &Expression| seeds.clone().map(|seed| side.value(done, seed)).collect::<Result<Vec<_>, _>>();
    let (lefts, rights) = (values(left)?, values(right)?);
    let differences: Vec<f64> = lefts.iter().zip(&rights).map(|(left, right)| left - right).collect();
    let difference = Interval::of(&differences).expect("a sweep has a seed");
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let scale = lefts.iter().chain(&rights).fold(0.0_f64, |scale, value| scale.max(value.abs()));
    let is_equal = difference.mean.abs() <= 1e-9 * scale.max(1.0);
    let holds = match relation {
        Relation::Less => difference.mean < 0.0,
        Relation::AtMost => difference.mean <= 0.0,
        Relation::Equal => is_equal,
        Relation::Differs => !is_equal,
        Relation::AtLeast => difference.mean >= 0.0,
        Relation::More => difference.mean > 0.0,
    };
    // A quotient by nothing is no number, and no relation holds for it.
    if !holds || !difference.mean.is_finite() {
        return Err(format!("{} against {}", mean(&lefts), mean(&rights)));
    }
    Ok(seeds.len() > 1 && relation != Relation::Equal && difference.covers(0.0))
}

impl Expression {
    fn has_value(&self) -> bool {
        match self {
            Self::Number(_) => false,
            Self::Value { .. } => true,
            Self::Binary(left, _, right) => left.has_value() || right.has_value(),
        }
    }

    fn value(&self, done: &Done, seed: usize) -> Result<f64, String> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Value { point, name } => value(&done.runs[*point][seed].values, name)
                .map_err(|problem| format!("{} has no \"{name}\": {problem}", done.sweep.points[*point].label())),
            Self::Binary(left, operator, right) => {
                let (left, right) = (left.value(done, seed)?, right.value(done, seed)?);
                Ok(match operator {
                    Operator::Add => left + right,
                    Operator::Subtract => left - right,
                    Operator::Multiply => left * right,
                    Operator::Divide => left / right,
                })
            }
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
    points: &'a [Point],
}

impl Reader<'_> {
    fn take(&mut self, sign: &str) -> bool {
        let rest = self.rest.trim_start();
        match rest.strip_prefix(sign) {
            Some(behind) => {
                self.rest = behind;
                true
            }
            None => false,
        }
    }

    fn relation(&mut self) -> Option<Relation> {
        let relations = [
            ("<=", Relation::AtMost),
            (">=", Relation::AtLeast),
            ("==", Relation::Equal),
            ("!=", Relation::Differs),
            ("<", Relation::Less),
            (">", Relation::More),
        ];
        relations.into_iter().find_map(|(sign, relation)| self.take(sign).then_some(relation))
    }

    fn sum(&mut self) -> Result<Expression, String> {
        self.chain(&[("+", Operator::Add), ("-", Operator::Subtract)], Self::product)
    }

    fn product(&mut self) -> Result<Expression, String> {
        self.chain(&[("*", Operator::Multiply), ("/", Operator::Divide)], Self::atom)
    }

    fn chain(
        &mut self,
        operators: &[(&str, Operator)],
        part: fn(&mut Self) -> Result<Expression, String>,
    ) -> Result<Expression, String> {
        let mut left = part(self)?;
        while let Some(operator) = operators.iter().find_map(|(sign, operator)| self.take(sign).then_some(*operator)) {
            left = Expression::Binary(Box::new(left), operator, Box::new(part(self)?));
        }
        Ok(left)
    }

    fn atom(&mut self) -> Result<Expression, String> {
        if self.take("(") {
            let inner = self.sum()?;
            return if self.take(")") { Ok(inner) } else { Err("a ( is not closed".to_owned()) };
        }
        if self.take("-") {
            let inner = self.atom()?;
            return Ok(Expression::Binary(Box::new(Expression::Number(0.0)), Operator::Subtract, Box::new(inner)));
        }
        if self.take("[") {
            let (keys, behind) = self.rest.split_once(']').ok_or("a [ is not closed")?;
            let point = self.selected(keys)?;
            self.rest = behind.strip_prefix('.').ok_or("behind [KEY=VALUE] there must be a dot and a value")?;
            let name = self.word();
            return if name.is_empty() {
                Err(format!("which value of [{keys}]?"))
            } else {
                Ok(Expression::Value { point, name })
            };
        }
        let word = self.word();
        if word.is_empty() {
            let found = self.rest.trim_start();
            return Err(format!("expected a number or POINT.VALUE, found \"{found}\""));
        }
        if word.starts_with(|first: char| first.is_ascii_digit())
            && let Ok(number) = word.replace('_', "").parse()
        {
            return Ok(Expression::Number(number));
        }
        let (point, name) =
            word.split_once('.').ok_or_else(|| format!("\"{word}\" is no number and names no value: POINT.VALUE"))?;
        Ok(Expression::Value { point: self.named(point)?, name: name.to_owned() })
    }

    fn word(&mut self) -> String {
        let rest = self.rest.trim_start();
        let is_part = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_');
        let end = rest.find(|letter| !is_part(letter)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        self.rest = behind;
        word.to_owned()
    }

    fn named(&self, name: &str) -> Result<usize, String> {
        let count = self.points.len();
        if let Ok(index) = name.parse::<usize>() {
            return if index < count {
                Ok(index)
            } else {
                Err(format!("there is no point {index}; the last is {}", count - 1))
            };
        }
        let mut named = self.points.iter().filter(|point| point.name.as_deref() == Some(name));
        match (named.next(), named.next()) {
            (Some(point), None) => Ok(point.index),
            (Some(_), Some(_)) => Err(format!("several points are called \"{name}\"; say which: [KEY=VALUE]")),
            (None, _) => {
                let names: Vec<&str> = self.points.iter().filter_map(|point| point.name.as_deref()).collect();
                Err(match names.is_empty() {
                    true => format!("no point is called \"{name}\"; they have numbers, 0 to {}", count - 1),
                    false => format!("no point is called \"{name}\"; there are {}", names.join(", ")),
                })
            }
        }
    }

    fn selected(&self, keys: &str) -> Result<usize, String> {
        let mut left: Vec<&Point> = self.points.iter().collect();
        for key in keys.split(',') {
            let (key, want) = key.split_once('=').ok_or_else(|| format!("[{keys}]: write [KEY=VALUE, KEY=VALUE]"))?;
            let (key, want) = (key.trim(), want.trim());
            left.retain(|point| match key {
                "name" => point.name.as_deref() == Some(want),
                key => point.sets(key).is_some_and(|value| value == want),
            });
        }
        match left[..] {
            [point] => Ok(point.index),
            [] => Err(format!("no point sets [{keys}]")),
            [first, second, ..] => Err(format!(
                "[{keys}] are several points, for instance {} and {}; name more of their keys",
                first.label(),
                second.label()
            )),
        }
    }
}

//! The keys of a plan and their values: what TOML says, in the few forms that a swarm needs.
//!
//! Values know what they are about (a length of time, a worker, a request), so that the shrinker can make any of them
//! simpler, and so that what is named by index follows when something before it is left out.

use std::fmt;

/// The value of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// `true` or `false`.
    Flag(bool),
    /// A whole number.
    Count(u64),
    /// A whole number that may be below zero.
    Signed(i64),
    /// A fraction in thousandths.
    PerMille(u64),
    /// A length of time in nanoseconds.
    Span(u64),
    /// A speed in bytes a second.
    Rate(u64),
    /// An amount of memory in bytes.
    Bytes(u64),
    /// A word.
    Word(&'static str),
    /// Index of a worker.
    Worker(u32),
    /// Index of a store.
    Store(u32),
    /// Ordinal of a request, by arrival.
    Request(u32),
    /// The first page, and the page behind the last one.
    Pages(u32, u32),
    /// A number that a load draws, both ends included.
    Between(u64, u64),
    /// A table in a line.
    Table(Keys),
}

/// Keys and values in the order in which they are written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Keys(Vec<(&'static str, Value)>);

impl Keys {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a key, or changes it.
    pub fn set(&mut self, key: &'static str, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    /// The same, for a chain.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: Value) -> Self {
        self.set(key, value);
        self
    }

    /// Takes a key away.
    pub fn remove(&mut self, key: &str) {
        self.0.retain(|(known, _)| *known != key);
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// The value of a key that is a length of time, in nanoseconds.
    #[must_use]
    pub fn span(&self, key: &str) -> Option<u64> {
        match self.get(key) {
            Some(Value::Span(ns)) => Some(*ns),
            Some(_) | None => None,
        }
    }

    /// The value of a key that is a number.
    #[must_use]
    pub fn count(&self, key: &str) -> Option<u64> {
        match self.get(key) {
            Some(Value::Count(count)) => Some(*count),
            Some(_) | None => None,
        }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(key, value)| (*key, value))
    }

    /// All of their values, to be changed; those inside of tables, too.
    pub(super) fn for_each_mut(&mut self, change: &mut dyn FnMut(&mut Value)) {
        for (_, value) in &mut self.0 {
            match value {
                Value::Table(keys) => keys.for_each_mut(change),
                Value::Flag(_)
                | Value::Count(_)
                | Value::Signed(_)
                | Value::PerMille(_)
                | Value::Span(_)
                | Value::Rate(_)
                | Value::Bytes(_)
                | Value::Word(_)
                | Value::Worker(_)
                | Value::Store(_)
                | Value::Request(_)
                | Value::Pages(..)
                | Value::Between(..) => change(value),
            }
        }
    }

    /// The keys as lines of TOML.
    pub(super) fn lines(&self, text: &mut String) {
        for (key, value) in self.iter() {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
}

impl Value {
    /// Simpler values of the same kind, the simplest first. Each is really simpler, so that shrinking ends.
    #[must_use]
    pub fn simpler(&self) -> Vec<Self> {
        match self {
            Self::Flag(_) | Self::Word(_) | Self::Table(_) => Vec::new(),
            Self::Worker(index) => lower(u64::from(*index), 0).map(|index| Self::Worker(index as u32)).collect(),
            Self::Store(index) => lower(u64::from(*index), 0).map(|index| Self::Store(index as u32)).collect(),
            Self::Request(index) => lower(u64::from(*index), 0).map(|index| Self::Request(index as u32)).collect(),
            Self::Count(count) => lower(*count, 1).map(Self::Count).collect(),
            Self::PerMille(share) => rounder(*share, &[1000, 500, 100]).into_iter().map(Self::PerMille).collect(),
            Self::Signed(number) if *number < 0 => {
                lower(number.unsigned_abs(), 0).map(|size| Self::Signed(-(size as i64))).collect()
            }
            Self::Signed(number) => lower(number.unsigned_abs(), 0).map(|size| Self::Signed(size as i64)).collect(),
            Self::Span(ns) => spans(*ns).map(Self::Span).collect(),
            Self::Bytes(bytes) => rounder(*bytes, &[1_000_000_000, 1_000_000]).into_iter().map(Self::Bytes).collect(),
            Self::Rate(rate) => rounder(*rate, &[1_000_000_000, 100_000_000]).into_iter().map(Self::Rate).collect(),
            Self::Pages(from, to) => {
                let fewer = lower(u64::from(to - from), 1).map(|count| Self::Pages(*from, from + count as u32));
                let earlier =
                    lower(u64::from(*from), 0).map(|first| Self::Pages(first as u32, to - from + first as u32));
                earlier.chain(fewer).collect()
            }
            Self::Between(low, high) => {
                let same = (low < high).then_some(Self::Between(*low, *low));
                same.into_iter().chain(lower(*low, 1).map(|low| Self::Between(low, *high))).collect()
            }
        }
    }
}

/// Numbers below this one and from `least` on: halving the way down, so that a few rounds find any bound exactly.
pub(super) fn lower(number: u64, least: u64) -> impl Iterator<Item = u64> {
    let mut step = number.saturating_sub(least);
    std::iter::from_fn(move || {
        (step > 0).then(|| {
            let candidate = number - step;
            step /= 2;
            candidate
        })
    })
}

/// Shorter or rounder times: none at all, then whole seconds, tenths and so on that are not longer.
pub(super) fn spans(ns: u64) -> impl Iterator<Item = u64> {
    const UNITS: [u64; 10] = [1_000_000_000, 100_000_000, 10_000_000, 1_000_000, 100_000, 10_000, 1_000, 100, 10, 1];
    let rank = move |ns: u64| UNITS.iter().position(|unit| ns.is_multiple_of(*unit)).unwrap_or(UNITS.len());
    let own = rank(ns);
    let round = UNITS.into_iter().map(move |unit| ns - ns % unit).filter(move |less| *less < ns && *less > 0);
    let half = UNITS.into_iter().filter_map(move |unit| {
        let half = ns / 2 - (ns / 2) % unit;
        (half > 0 && rank(half) <= own).then_some(half)
    });
    (ns > 0).then_some(0).into_iter().chain(round).chain(half.take(1))
}

/// Rounder numbers that are not larger, the roundest first; nothing that is as round as it can be.
fn rounder(number: u64, units: &[u64]) -> Vec<u64> {
    let candidates = units.iter().map(|unit| number - number % unit);
    let mut found: Vec<u64> = candidates.filter(|candidate| *candidate > 0 && *candidate < number).collect();
    found.dedup();
    found
}

/// A length of time as a scenario spells it: in the largest unit that makes it a whole number.
pub(super) fn span(ns: u64) -> String {
    let units = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];
    match units.into_iter().find(|(_, unit)| ns.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", ns / unit),
        None => format!("{ns}ns"),
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Count(count) => write!(f, "{count}"),
            Self::Signed(number) => write!(f, "{number}"),
            Self::PerMille(share) => write!(f, "{}.{:03}", share / 1000, share % 1000),
            Self::Span(ns) => write!(f, "\"{}\"", span(*ns)),
            Self::Bytes(bytes) => write!(f, "\"{bytes}B\""),
            Self::Rate(rate) => write!(f, "\"{rate}B/s\""),
            Self::Word(word) => write!(f, "\"{word}\""),
            Self::Worker(index) | Self::Store(index) | Self::Request(index) => write!(f, "{index}"),
            Self::Pages(from, to) => write!(f, "[{from}, {to}]"),
            Self::Between(low, high) if low == high => write!(f, "{low}"),
            Self::Between(low, high) => write!(f, "{{ uniform = [{low}, {high}] }}"),
            Self::Table(keys) => {
                let inner: Vec<String> = keys.iter().map(|(key, value)| format!("{key} = {value}")).collect();
                write!(f, "{{ {} }}", inner.join(", "))
            }
        }
    }
}

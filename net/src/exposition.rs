//! Metrics in Prometheus' text form, as workers and the router show them.
//!
//! Knows the form, not what is measured. What it writes a scraper takes; [`verify`] says why one would not.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

/// What the samples of a family are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// `_bucket`, `_sum` and `_count`.
    Histogram,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A text that grows, family by family.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Begins a family; its samples follow. No help, no line of help.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        // Writing into a string does not fail, here and below.
        if !help.is_empty() {
            let _ = writeln!(self.text, "# HELP {name} {help}");
        }
        let _ = writeln!(self.text, "# TYPE {name} {}", kind.name());
    }

    /// One sample, with labels as [`labels`] makes them.
    pub fn sample(&mut self, name: &str, labels: &str, value: impl fmt::Display) {
        let _ = if labels.is_empty() {
            writeln!(self.text, "{name} {value}")
        } else {
            writeln!(self.text, "{name}{{{labels}}} {value}")
        };
    }

    /// A family of one sample.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, labels: &str, value: impl fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, labels, value);
    }

    /// All of it.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }
}

/// Labels between the braces of a sample, with values escaped.
#[must_use]
pub fn labels(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{name}=\"");
        for one in value.chars() {
            match one {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                one => text.push(one),
            }
        }
        text.push('"');
    }
    text
}

/// Counts the samples of a text.
///
/// # Errors
/// The first line that a scraper would not take, and why: a family twice or torn apart, a sample before its type, one
/// that comes twice, a counter that does not end with `_total`, a value that is no number.
pub fn verify(text: &str) -> Result<usize, String> {
    let (mut families, mut samples) = (BTreeSet::new(), BTreeSet::new());
    let (mut family, mut kind) = ("", "");
    for line in text.lines() {
        let wrong = |why: &str| Err(format!("{why}: {line}"));
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, of)) = rest.split_once(' ') else { return wrong("a type without a name") };
            (family, kind) = (name, of);
            if !families.insert(family) {
                return wrong("a family twice");
            }
            if kind == "counter" && !family.ends_with("_total") {
                return wrong("a counter that does not end with _total");
            }
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let Some((series, value)) = line.rsplit_once(' ') else { return wrong("a sample without a value") };
        let name = series.split('{').next().unwrap_or_default();
        let ends: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        if !ends.iter().any(|end| name.strip_suffix(end) == Some(family)) || family.is_empty() {
            return wrong("a sample outside its family");
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
        if !name.bytes().all(is_name) || name.starts_with(|first: char| first.is_ascii_digit()) {
            return wrong("not a name");
        }
        if series.contains('{') != series.ends_with('}') {
            return wrong("braces that do not match");
        }
        if value.parse::<f64>().is_err() {
            return wrong("not a number");
        }
        if !samples.insert(series) {
            return wrong("a sample twice");
        }
    }
    Ok(samples.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_well_formed() {
        let mut text = Exposition::default();
        text.single("pd_pages", Kind::Gauge, "Pages of a tier.", &labels(&[("tier", "a \"b\" \\ \n")]), 3);
        text.family("pd_requests_total", Kind::Counter, "");
        text.sample("pd_requests_total", "", 1.5);
        let text = text.into_text();
        assert_eq!(
            text,
            "# HELP pd_pages Pages of a tier.\n# TYPE pd_pages gauge\npd_pages{tier=\"a \\\"b\\\" \\\\ \\n\"} 3\n\
             # TYPE pd_requests_total counter\npd_requests_total 1.5\n"
        );
        assert_eq!(verify(&text), Ok(2));
    }

    #[test]
    fn what_a_scraper_refuses_is_named() {
        for (text, why) in [
            ("a 1\n", "outside its family"),
            ("# TYPE a gauge\nb 1\n", "outside its family"),
            ("# TYPE a gauge\na 1\n# TYPE a gauge\n", "a family twice"),
            ("# TYPE a gauge\na{x=\"1\"} 1\na{x=\"1\"} 2\n", "a sample twice"),
            ("# TYPE a counter\na 1\n", "_total"),
            ("# TYPE a gauge\na one\n", "not a number"),
            ("# TYPE a gauge\na{x=\"1\" 1\n", "braces"),
            ("# TYPE a histogram\na 1\n", "outside its family"),
        ] {
            let said = verify(text).expect_err(text);
            assert!(said.contains(why), "{text:?}: {said}");
        }
    }
}

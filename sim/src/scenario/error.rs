//! What is wrong with a scenario: which file, which line, what was meant.

use std::fmt;
use std::path::{Path, PathBuf};

/// A scenario that cannot be run, in words for its author.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScenarioError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1, where one can be named.
    pub line: Option<usize>,
    /// What is wrong and what to do.
    pub message: String,
}

impl ScenarioError {
    /// An error about a file as a whole.
    #[must_use]
    pub fn new(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.to_path_buf(), line: None, message: message.into() }
    }

    /// An error of the TOML reader, with the line it points at and the nearest known name for an unknown one.
    #[must_use]
    pub fn toml(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let line = error.span().map(|span| line_of(text, span.start));
        Self { file: file.to_path_buf(), line, message: with_nearest(error.message(), &[]) }
    }

    /// The same, pointing at the first line that sets `key`.
    #[must_use]
    pub fn at_key(mut self, text: &str, key: &str) -> Self {
        self.line = self.line.or_else(|| line_of_key(text, key));
        self
    }
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.message),
            None => write!(f, "{}: {}", self.file.display(), self.message),
        }
    }
}

impl std::error::Error for ScenarioError {}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let last = key.rsplit('.').next().unwrap_or(key);
    let sets = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix('"').unwrap_or(line);
        line.strip_prefix(key).or_else(|| line.strip_prefix(last)).is_some_and(|rest| {
            let rest = rest.strip_prefix('"').unwrap_or(rest);
            rest.trim_start().starts_with('=')
        })
    };
    text.lines().position(sets).map(|index| index + 1)
}

/// Adds the nearest of the names that serde lists, and of `others`, to its "unknown field" and "unknown variant" messages.
#[must_use]
pub fn with_nearest(message: &str, others: &[&str]) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((unknown, known)) if message.starts_with("unknown") && !known.is_empty() => {
            match nearest(unknown, known.iter().chain(others).copied()) {
                Some(name) => format!("{message}; did you mean `{name}`?"),
                None => message.to_owned(),
            }
        }
        Some(_) | None => message.to_owned(),
    }
}

/// The candidate that looks most like `name`, if one looks like it at all.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| ((strsim::jaro_winkler(name, candidate) * 1000.0) as u32, candidate))
        .filter(|(likeness, _)| *likeness >= 700)
        .max_by_key(|&(likeness, candidate)| (likeness, std::cmp::Reverse(candidate)))
        .map(|(_, candidate)| candidate)
}

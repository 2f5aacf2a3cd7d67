//! Scenario files: reading them, changing them (`--set`, variants), and making a world of them.

pub mod build;
pub mod error;
pub mod expect;
pub mod loads;
pub mod schema;
mod script;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use pd_core::time::Instant;
use toml::{Table, Value};

use self::error::{ScenarioError, nearest};
use self::expect::Gate;
use self::schema::File;
use crate::report::Names;
use crate::setup::Setup;

/// One run that a file describes: the file itself, or one of its variants.
#[derive(Debug)]
pub struct Case {
    /// Name of the file, and of the variant behind a slash.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// The world to run.
    pub setup: Setup,
    /// What must hold afterwards.
    pub gates: Vec<Gate>,
}

/// Changes from the command line.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--seed`.
    pub seed: Option<u64>,
    /// `--until`.
    pub until: Option<Instant>,
    /// `--set key=value`, in order.
    pub set: Vec<String>,
}

/// Reads a scenario file and makes a world of it and of each of its variants.
///
/// # Errors
/// What is wrong, with file, line and the nearest right name.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Vec<Case>, ScenarioError> {
    let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    // Once from the text itself, for errors that know their line.
    let file: File = toml::from_str(&text).map_err(|error| ScenarioError::toml(path, &text, &error))?;
    let mut table: Table = toml::from_str(&text).map_err(|error| ScenarioError::toml(path, &text, &error))?;
    for change in &overrides.set {
        let (key, value) = change
            .split_once('=')
            .ok_or_else(|| ScenarioError::new(path, format!("--set {change}: write --set key=value")))?;
        let (key, value) = (key.trim(), parse_value(value.trim()));
        set(&mut table, key, value)
            .map_err(|problem| ScenarioError::new(path, format!("--set {change}: {problem}")))?;
    }
    let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let mut cases = Vec::new();
    let mut base = table.clone();
    base.remove("variant");
    cases.push(case(path, &text, &stem, &base, None, overrides)?);
    for (index, variant) in file.variant.iter().enumerate() {
        if variant.name == "base" || file.variant[..index].iter().any(|other| other.name == variant.name) {
            let problem = format!("the name \"{}\" of a variant is taken (\"base\" is the file itself)", variant.name);
            return Err(ScenarioError::new(path, problem).at_key(&text, "name"));
        }
        let mut changed = base.clone();
        for (key, value) in &variant.set {
            set(&mut changed, key, value.clone()).map_err(|problem| {
                ScenarioError::new(path, format!("variant \"{}\", set \"{key}\": {problem}", variant.name))
                    .at_key(&text, key)
            })?;
        }
        cases.push(case(path, &text, &format!("{stem}/{}", variant.name), &changed, Some(variant), overrides)?);
    }
    Ok(cases)
}

fn case(
    path: &Path,
    text: &str,
    name: &str,
    table: &Table,
    variant: Option<&schema::Variant>,
    overrides: &Overrides,
) -> Result<Case, ScenarioError> {
    let mut file: File = table.clone().try_into().map_err(|error: toml::de::Error| {
        let mut error = ScenarioError::toml(path, text, &error);
        error.line = None;
        error.message = format!("{name}, with its changes: {}", error.message);
        error
    })?;
    if let Some(variant) = variant {
        file.event.extend(variant.event.iter().cloned());
        if !variant.expect.is_empty() {
            file.expect.clone_from(&variant.expect);
        }
        file.about.clone_from(&variant.about);
    }
    file.seed = overrides.seed.unwrap_or(file.seed);
    let mut gates = Vec::new();
    for (key, gate) in &file.expect {
        gates.extend(
            Gate::parse_all(key, gate)
                .map_err(|problem| ScenarioError::new(path, format!("[expect]: {problem}")).at_key(text, key))?,
        );
    }
    if !gates.iter().any(Gate::fails_idle) {
        let problem = "[expect] has no gate that a run in which nothing happens would fail; \
                       add one, for instance \"requests.finished\" = \">= 1\"";
        return Err(ScenarioError::new(path, format!("{name}: {problem}")));
    }
    let folder = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    let mut setup = build::setup(&file, &folder).map_err(|problem| {
        let mut error = ScenarioError::new(path, format!("{name}: {}", problem.message));
        if let Some(key) = problem.key {
            error = error.at_key(text, key);
        }
        error
    })?;
    let names = Names::of(&setup);
    for gate in &gates {
        names.check(gate.name()).map_err(|problem| {
            ScenarioError::new(path, format!("{name}: [expect] \"{}\": {problem}", gate.name()))
                .at_key(text, gate.name())
        })?;
    }
    if overrides.until.is_some() {
        setup.until = overrides.until;
    }
    Ok(Case { name: name.to_owned(), about: file.about, setup, gates })
}

fn unreadable(path: &Path, error: &std::io::Error) -> ScenarioError {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut names: Vec<String> = fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.retain(|name| name.ends_with(".toml"));
    names.sort();
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let hint = nearest(&name, names.iter().map(String::as_str))
        .map_or_else(String::new, |near| format!("; did you mean {}?", folder.join(near).display()));
    ScenarioError::new(path, format!("cannot be read: {error}{hint}"))
}

/// A value as TOML reads it, or else a string.
fn parse_value(text: &str) -> Value {
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Sets a dotted key. List items are named by index; `worker.mode` without an index means all items.
fn set(table: &mut Table, key: &str, value: Value) -> Result<(), String> {
    let (head, rest) = key.split_once('.').map_or((key, None), |(head, rest)| (head, Some(rest)));
    let Some(rest) = rest else {
        table.insert(head.to_owned(), value);
        return Ok(());
    };
    let names: Vec<String> = table.keys().cloned().collect();
    match table.get_mut(head) {
        Some(Value::Table(inner)) => set(inner, rest, value),
        Some(Value::Array(items)) => {
            let (index, field) = match rest.split_once('.') {
                Some((index, field)) if index.parse::<usize>().is_ok() => (index.parse::<usize>().ok(), field),
                Some(_) | None => (None, rest),
            };
            let count = items.len();
            if let Some(index) = index {
                let item = items.get_mut(index).ok_or_else(|| {
                    format!(
                        "there are {count} items in \"{head}\", so the last one is {head}.{}",
                        count.saturating_sub(1)
                    )
                })?;
                return set_item(item, head, field, value);
            }
            items.iter_mut().try_for_each(|item| set_item(item, head, field, value.clone()))
        }
        Some(_) => Err(format!("\"{head}\" is a plain value and has no \"{rest}\"")),
        None if matches!(head, "network" | "router" | "expect") => {
            let mut inner = Table::new();
            set(&mut inner, rest, value)?;
            table.insert(head.to_owned(), Value::Table(inner));
            Ok(())
        }
        None => Err(match nearest(head, names.iter().map(String::as_str)) {
            Some(near) => format!("there is no \"{head}\"; did you mean \"{near}\"?"),
            None => format!("there is no \"{head}\"; there are {}", names.join(", ")),
        }),
    }
}

fn set_item(item: &mut Value, head: &str, field: &str, value: Value) -> Result<(), String> {
    match item {
        Value::Table(inner) => set(inner, field, value),
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Array(_) => Err(format!("the items of \"{head}\" have no \"{field}\"")),
    }
}

//! Changing a scenario by key: `--set`, variants and points of a sweep.
//!
//! A key is dotted; items of lists are named by index, to set one of their keys or all of the item, and without an index
//! all of them are meant. A part with dots in
//! it is quoted: `expect."requests.finished"`.

use toml::{Table, Value};

use super::error::nearest;
use super::schema::File;

/// One key and its new value.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    /// Who wants it, for messages: `--set worker.tp=2`, `variant "fast"`, `point 3`.
    pub origin: String,
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Value,
}

impl Change {
    /// Reads `key=value`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("--set {text}: write --set key=value"))?;
        Ok(Self { origin: format!("--set {text}"), key: key.trim().to_owned(), value: parse_value(value.trim()) })
    }

    /// Makes the change.
    ///
    /// # Errors
    /// Why there is no such key, with the origin in front.
    pub fn apply(&self, table: &mut Table) -> Result<(), String> {
        self.parts()
            .and_then(|parts| set(table, &parts, self.value.clone()))
            .map_err(|problem| format!("{}: {problem}", self.origin_of_key()))
    }

    /// Who wants what, for messages.
    #[must_use]
    pub fn origin_of_key(&self) -> String {
        if self.origin.starts_with("--set") {
            self.origin.clone()
        } else {
            format!("{}, set \"{}\"", self.origin, self.key)
        }
    }

    /// True if it changes a gate.
    pub(super) fn is_gate(&self) -> bool {
        self.parts().is_ok_and(|parts| parts.len() > 1 && parts[0] == "expect")
    }

    /// True if its first part is one of `heads`.
    pub(super) fn is_of(&self, heads: &[&str]) -> bool {
        self.parts().is_ok_and(|parts| heads.contains(&parts[0].as_str()))
    }

    /// True if its last part is `key`.
    pub(super) fn ends_with(&self, key: &str) -> bool {
        self.parts().is_ok_and(|parts| parts.last().is_some_and(|last| last == key))
    }

    fn parts(&self) -> Result<Vec<String>, String> {
        let mut parts = split(&self.key)?;
        // Names of values have dots, and gates are not nested: quotes are not needed to tell what is meant.
        if parts[0] == "expect" && parts.len() > 2 {
            let name = parts.split_off(1).join(".");
            parts.push(name);
        }
        Ok(parts)
    }
}

/// The change after which a table stops being a scenario in the way that `message` says.
pub(super) fn culprit<'a>(base: &Table, changes: &'a [Change], message: &str) -> Option<&'a Change> {
    let mut table = base.clone();
    let says = |table: &Table| File::deserialize_table(table).err().is_some_and(|error| error.message() == message);
    if says(&table) {
        return None;
    }
    changes.iter().find(|change| change.apply(&mut table).is_ok() && says(&table))
}

/// A value as TOML reads it, or else a string.
fn parse_value(text: &str) -> Value {
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// The parts of a dotted key; quoted parts may have dots.
fn split(key: &str) -> Result<Vec<String>, String> {
    let mut parts = Vec::new();
    let mut rest = key.trim();
    loop {
        let quote = rest.chars().next().filter(|first| matches!(first, '"' | '\''));
        let (part, behind) = match quote {
            Some(quote) => rest[1..].split_once(quote).ok_or_else(|| format!("{quote} is not closed in the key"))?,
            None => rest.find('.').map_or((rest, ""), |dot| rest.split_at(dot)),
        };
        if part.is_empty() {
            return Err(format!("the key \"{key}\" has an empty part"));
        }
        parts.push(part.to_owned());
        match behind.strip_prefix('.') {
            Some(next) => rest = next,
            None if behind.is_empty() => return Ok(parts),
            None => return Err(format!("behind a quoted part of a key there must be a dot, found \"{behind}\"")),
        }
    }
}

fn set(table: &mut Table, parts: &[String], value: Value) -> Result<(), String> {
    let (head, rest) = parts.split_first().expect("a key has a part");
    if rest.is_empty() {
        table.insert(head.clone(), value);
        return Ok(());
    }
    let names: Vec<String> = table.keys().cloned().collect();
    match table.get_mut(head) {
        Some(Value::Table(inner)) => set(inner, rest, value),
        Some(Value::Array(items)) => {
            let count = items.len();
            if let Ok(index) = rest[0].parse::<usize>() {
                let item = items.get_mut(index).ok_or_else(|| match count {
                    0 => format!("there are no items in \"{head}\""),
                    _ => format!("there are {count} items in \"{head}\", so the last one is {head}.{}", count - 1),
                })?;
                if rest.len() == 1 {
                    *item = value;
                    return Ok(());
                }
                return set_item(item, head, &rest[1..], value);
            }
            items.iter_mut().try_for_each(|item| set_item(item, head, rest, value.clone()))
        }
        Some(_) => Err(format!("\"{head}\" is a plain value and has no \"{}\"", rest.join("."))),
        None if matches!(head.as_str(), "network" | "router" | "expect") => {
            let mut inner = Table::new();
            set(&mut inner, rest, value)?;
            table.insert(head.clone(), Value::Table(inner));
            Ok(())
        }
        None => Err(match nearest(head, names.iter().map(String::as_str)) {
            Some(near) => format!("there is no \"{head}\"; did you mean \"{near}\"?"),
            None => format!("there is no \"{head}\"; there are {}", names.join(", ")),
        }),
    }
}

fn set_item(item: &mut Value, head: &str, parts: &[String], value: Value) -> Result<(), String> {
    match item {
        Value::Table(inner) => set(inner, parts, value),
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Array(_) => Err(format!("the items of \"{head}\" have no \"{}\"", parts.join("."))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str, change: &str) -> Result<Table, String> {
        let mut table: Table = toml::from_str(text).unwrap();
        Change::parse(change)?.apply(&mut table)?;
        Ok(table)
    }

    #[test]
    fn a_gate_is_named_with_or_without_quotes() {
        for key in ["expect.\"requests.finished\"", "expect.'requests.finished'", "expect.requests.finished"] {
            let table = changed("[expect]\n\"requests.finished\" = \"== 1\"", &format!("{key}=>= 5")).unwrap();
            assert_eq!(table["expect"]["requests.finished"].as_str(), Some(">= 5"), "{key}");
            assert_eq!(table["expect"].as_table().unwrap().len(), 1);
        }
    }

    #[test]
    fn bad_keys_are_refused_in_words() {
        for (change, part) in [
            ("worker.tp", "write --set key=value"),
            ("expect.\"a.b=1", "not closed"),
            ("worker..tp=1", "empty part"),
            ("expect.\"a.b\"c=1", "must be a dot"),
            ("wroker.tp=1", "did you mean \"worker\"?"),
            ("worker.2.tp=1", "the last one is worker.0"),
            ("none.0.tp=1", "there are no items"),
            ("seed.tp=1", "plain value"),
        ] {
            let text = "seed = 1\nnone = []\n[[worker]]\ntp = 1\n[expect]";
            let message = changed(text, change).unwrap_err();
            assert!(message.contains(part) && message.starts_with("--set "), "{change}: {message}");
        }
    }
}

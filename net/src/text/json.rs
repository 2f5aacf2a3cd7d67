//! JSON as Python writes it: prompts of models were made by `json.dumps(..., ensure_ascii=False)`, and a space more or
//! less is another prompt.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};

/// How `tojson` was called.
#[derive(Clone, Debug)]
pub(super) struct Style {
    /// Spaces per level; `None` for one line.
    pub(super) indent: Option<usize>,
    /// Between two items.
    pub(super) item: String,
    /// Between a key and its value.
    pub(super) key: String,
    /// Escape all but ASCII: a backslash, `u`, and four hexadecimal digits for each UTF-16 unit.
    pub(super) is_ascii: bool,
    /// Order keys.
    pub(super) is_sorted: bool,
}

impl Style {
    /// As `json.dumps` without arguments, except for `ensure_ascii`.
    pub(super) fn new(indent: Option<usize>) -> Self {
        let item = if indent.is_some() { "," } else { ", " };
        Self { indent, item: item.into(), key: ": ".into(), is_ascii: false, is_sorted: false }
    }

    /// Writes a value.
    ///
    /// # Errors
    /// The value is none that JSON has (undefined, a function).
    pub(super) fn dump(&self, value: &Value) -> Result<String, minijinja::Error> {
        let mut out = String::new();
        self.write(value, 0, &mut out)?;
        Ok(out)
    }

    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), minijinja::Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value, out),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list('[', ']', items.len(), depth, out, |style, at, out| style.write(&items[at], depth + 1, out))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.is_sorted {
                    keys.sort();
                }
                self.list('{', '}', keys.len(), depth, out, |style, at, out| {
                    let key = &keys[at];
                    match key.as_str() {
                        Some(text) => style.string(text, out),
                        None => style.string(&key.to_string(), out),
                    }
                    out.push_str(&style.key);
                    style.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            ValueKind::Undefined | ValueKind::Bytes | ValueKind::Plain | ValueKind::Invalid | _ => {
                let problem = format!("a value of type {} is not JSON", value.kind());
                return Err(minijinja::Error::new(minijinja::ErrorKind::BadSerialization, problem));
            }
        }
        Ok(())
    }

    fn list(
        &self,
        open: char,
        close: char,
        count: usize,
        depth: usize,
        out: &mut String,
        mut each: impl FnMut(&Self, usize, &mut String) -> Result<(), minijinja::Error>,
    ) -> Result<(), minijinja::Error> {
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        out.push(open);
        for at in 0..count {
            if at > 0 {
                out.push_str(&self.item);
            }
            line(depth + 1, out);
            each(self, at, out)?;
        }
        if count > 0 {
            line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "one of the writers")]
    fn number(&self, value: &Value, out: &mut String) {
        if value.is_integer() {
            let _ = write!(out, "{value}");
            return;
        }
        let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
        let size = number.abs();
        if number.is_nan() {
            out.push_str("NaN");
        } else if number.is_infinite() {
            out.push_str(if number > 0.0 { "Infinity" } else { "-Infinity" });
        } else if size != 0.0 && !(1e-4..1e16).contains(&size) {
            // Python writes 1e-07 where Rust writes 1e-7.
            let text = format!("{number:e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            let sign = if exponent < 0 { '-' } else { '+' };
            let _ = write!(out, "{digits}e{sign}{:02}", exponent.abs());
        } else {
            let _ = write!(out, "{number:?}");
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                other if u32::from(other) < 0x20 || (self.is_ascii && !other.is_ascii()) => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                other => out.push(other),
            }
        }
        out.push('"');
    }
}

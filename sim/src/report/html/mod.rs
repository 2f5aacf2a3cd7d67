//! A run as one HTML page that needs no network: charts are drawn by the script in it from the data in it.
//!
//! Owns which facts are on the page and how much of each; how they look is in `page.css`, `plot.js` and `page.js`.
//!
//! 1. Texts of the user (names, `about`, link names) reach the page only inside the JSON block, where `<` is escaped,
//!    or through `escape`; the script puts them in as text, never as markup.
//! 2. The page is bounded: series are coarsened, of many requests the slowest and a sample are shown, and it says so.

mod data;
#[cfg(test)]
mod tests;

use crate::record::Outcome;
use crate::report::collect::Collector;
use crate::scenario::expect::{Broken, Gate, Values};

/// What was run, and what was expected of it.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// Name of the case.
    pub name: &'a str,
    /// What it shows.
    pub about: &'a str,
    /// What must hold.
    pub gates: &'a [Gate],
    /// Values of the run.
    pub values: &'a Values,
    /// What did not hold.
    pub broken: &'a [Broken],
}

/// The page of a run.
#[must_use]
pub fn page(about: &About<'_>, collector: &Collector, outcome: &Outcome) -> String {
    let data = data::data(about, collector, outcome).to_string();
    let mut page = String::new();
    let mut rest = TEMPLATE;
    while let Some((before, behind)) = rest.split_once("{{") {
        let (name, after) = behind.split_once("}}").expect("each placeholder of the template is closed");
        page += before;
        match name {
            "title" => page += &escape(about.name),
            "style" => page += STYLE,
            "data" => page += &in_script(&data),
            "plot" => page += PLOT,
            "script" => page += SCRIPT,
            _ => unreachable!("the template has no placeholder {name}"),
        }
        rest = after;
    }
    page + rest
}

/// Text as it stands between tags or in an attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// JSON as it stands in a script element: `</script>` and `<!--` in a string must not end or open anything. In JSON, `<`
/// occurs in strings only.
fn in_script(json: &str) -> String {
    json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const PLOT: &str = include_str!("plot.js");
const SCRIPT: &str = include_str!("page.js");

//! What a sweep has shown: a table, JSON lines, CSV.

use std::fmt::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde_json::json;

use super::{Done, config};
use crate::stats::Interval;

/// The table of a sweep for a person: a line per point, means with 95 % confidence intervals, and the difference to the
/// first point.
#[must_use]
pub fn page(done: &Done) -> String {
    let sweep = &done.sweep;
    let mut out = String::new();
    let _ = writeln!(out, "\n{}\n{}", sweep.name, "=".repeat(sweep.name.chars().count()));
    for line in sweep.about.trim().lines() {
        let _ = writeln!(out, "{}", line.trim());
    }
    let seeds = sweep.seeds.len();
    let _ = writeln!(
        out,
        "\n{} points, {}\n",
        sweep.points.len(),
        match seeds {
            1 => format!("seed {}", sweep.seeds[0]),
            count => format!(
                "{count} seeds; +- is the 95 % confidence interval of the mean, d the difference to point 0 seed by seed"
            ),
        }
    );
    let mut keys: Vec<&str> = Vec::new();
    for change in sweep.points.iter().flat_map(|point| &point.changes) {
        if !keys.contains(&change.key.as_str()) {
            keys.push(&change.key);
        }
    }
    let mut table = Table::new();
    table.load_preset(NOTHING);
    let mut header = vec!["point".to_owned()];
    header.extend(keys.iter().map(|key| short_key(key, &keys)));
    for name in &sweep.show {
        header.extend([name.clone(), "d".to_owned()]);
    }
    table.set_header(header);
    for column in table.column_iter_mut().skip(1 + keys.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut missing = Vec::new();
    for point in &sweep.points {
        let mut row =
            vec![point.name.as_ref().map_or_else(|| point.index.to_string(), |name| format!("{} {name}", point.index))];
        row.extend(keys.iter().map(|key| point.sets(key).unwrap_or_else(|| "-".to_owned())));
        for name in &sweep.show {
            match (done.interval(point.index, name), done.difference(point.index, name)) {
                (Ok(value), _) if point.index == 0 => row.extend([number(value, false), String::new()]),
                (Ok(value), Ok(difference)) => row.extend([number(value, false), number(difference, true)]),
                (Ok(value), Err(_)) => row.extend([number(value, false), "-".to_owned()]),
                (Err(problem), _) => {
                    row.extend(["-".to_owned(), String::new()]);
                    missing.push(format!("{}: {name}: {problem}", point.label()));
                }
            }
        }
        table.add_row(row);
    }
    let _ = writeln!(out, "{table}\n");
    for problem in missing.iter().take(LINES_MAX) {
        let _ = writeln!(out, "NO VALUE     {problem}");
    }
    let broken = done.broken();
    for text in broken.iter().take(LINES_MAX) {
        let _ = writeln!(out, "GATE BROKEN  {text}");
    }
    if broken.len() > LINES_MAX {
        let _ = writeln!(out, "             and {} more", broken.len() - LINES_MAX);
    }
    for verdict in done.verdicts().into_iter().filter(|verdict| verdict.broken.is_none()) {
        let note = if verdict.is_within_noise { "   (less than the confidence interval)" } else { "" };
        let _ = writeln!(out, "holds        {}{note}", verdict.gate);
    }
    out
}

/// The end of a dotted key that tells it from the other keys.
fn short_key(key: &str, keys: &[&str]) -> String {
    let starts = key.rmatch_indices('.').map(|(at, _)| at + 1).chain([0]);
    let mut ends = starts.map(|start| &key[start..]);
    let is_alone = |end: &&str| keys.iter().filter(|other| other.ends_with(*end)).count() == 1;
    ends.find(|end| is_alone(end)).unwrap_or(key).to_owned()
}

fn number(interval: Interval, is_difference: bool) -> String {
    let Interval { mean, half_width } = interval;
    let width = if half_width.is_finite() { half_width } else { 0.0 };
    let digits = match mean.abs().max(width) {
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 1.0 => 2,
        _ => 4,
    };
    let mean = if is_difference { format!("{mean:+.digits$}") } else { format!("{mean:.digits$}") };
    if half_width.is_finite() && half_width > 0.0 { format!("{mean} +-{half_width:.digits$}") } else { mean }
}

/// One JSON object per point with all values that all its runs have, and one with the gates.
#[must_use]
pub fn json(done: &Done) -> String {
    let sweep = &done.sweep;
    let mut out = String::new();
    let object = |interval: Interval| {
        let half_width = interval.half_width.is_finite().then_some(interval.half_width);
        json!({ "mean": interval.mean, "half_width": half_width })
    };
    for point in &sweep.points {
        let runs = &done.runs[point.index];
        let mut values = serde_json::Map::new();
        let mut versus_first = serde_json::Map::new();
        for name in runs[0].values.keys() {
            if let Ok(interval) = done.interval(point.index, name) {
                values.insert(name.clone(), object(interval));
            }
            if let Ok(difference) = done.difference(point.index, name) {
                versus_first.insert(name.clone(), object(difference));
            }
        }
        let set: serde_json::Map<String, serde_json::Value> =
            point.changes.iter().map(|change| (change.key.clone(), json!(config::plain(&change.value)))).collect();
        let runs = runs
            .iter()
            .map(|run| json!({ "seed": run.seed, "hash": format!("{:016x}", run.hash), "broken": run.broken }));
        let line = json!({
            "scenario": sweep.name, "point": point.index, "name": point.name, "set": set,
            "runs": runs.collect::<Vec<_>>(), "values": values, "versus_first": versus_first,
        });
        let _ = writeln!(out, "{line}");
    }
    let verdicts = done.verdicts().into_iter().map(
        |verdict| json!({ "gate": verdict.gate, "broken": verdict.broken, "within_noise": verdict.is_within_noise }),
    );
    let _ = writeln!(out, "{}", json!({ "scenario": sweep.name, "gates": verdicts.collect::<Vec<_>>() }));
    out
}

/// A line per run: point, name, what it sets, seed, hash and the values to show.
#[must_use]
pub fn csv(done: &Done) -> String {
    let sweep = &done.sweep;
    let quoted = |text: &str| match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let mut out = String::from("point,label,seed,hash");
    for name in &sweep.show {
        let _ = write!(out, ",{}", quoted(name));
    }
    out.push('\n');
    for point in &sweep.points {
        for run in &done.runs[point.index] {
            let _ = write!(out, "{},{},{},{:016x}", point.index, quoted(&point.label()), run.seed, run.hash);
            for name in &sweep.show {
                match crate::scenario::expect::value(&run.values, name) {
                    Ok(value) => {
                        let _ = write!(out, ",{value}");
                    }
                    Err(_) => out.push(','),
                }
            }
            out.push('\n');
        }
    }
    out
}

/// Most lines of a kind.
const LINES_MAX: usize = 10;

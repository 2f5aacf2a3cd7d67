//! The page that `pd sim` prints.

use std::fmt::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use super::{Hits, Latencies, REQUESTS_LISTED_MAX, milliseconds, totals, what_limits};
use crate::record::{Outcome, Record};
use crate::scenario::expect::{Broken, Values};
use crate::stats::Summary;
use crate::words::at;

/// The report of one run for a person.
#[must_use]
pub fn page(name: &str, about: &str, outcome: &Outcome, values: &Values, broken: &[Broken]) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "\n{name}\n{}", "=".repeat(name.chars().count()));
    for line in about.trim().lines() {
        let _ = writeln!(out, "{}", line.trim());
    }
    let _ = writeln!(out);
    if outcome.requests.len() <= REQUESTS_LISTED_MAX {
        let _ = writeln!(out, "{}\n", requests(outcome));
    }
    if outcome.requests.len() > REQUESTS_LISTED_MAX || outcome.requests.len() > 4 {
        let _ = writeln!(out, "{}\n", latencies(outcome));
    }
    for (label, text) in summary(outcome, values) {
        let _ = writeln!(out, "{label:<12} {text}");
    }
    if !outcome.idle.is_empty() {
        let _ = writeln!(out, "{:<12} {}", "events", idle(outcome));
    }
    for violation in outcome.violations.iter().take(5) {
        let _ = writeln!(out, "VIOLATION    {violation}");
    }
    for broken in broken {
        let _ = writeln!(out, "GATE BROKEN  {}   found: {}", broken.gate, broken.found);
    }
    out
}

/// The events of the script that did nothing to anybody.
fn idle(outcome: &Outcome) -> String {
    let all = &outcome.idle;
    let mut text = String::from(if all.len() == 1 { "this event hit nothing: " } else { "these events hit nothing: " });
    let shown: Vec<String> =
        all.iter().take(IDLE_SHOWN).map(|idle| format!("{} at {}", idle.what, at(idle.at))).collect();
    text += &shown.join(", ");
    if all.len() > IDLE_SHOWN {
        let _ = write!(text, " and {} more", all.len() - IDLE_SHOWN);
    }
    text
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn latencies(outcome: &Outcome) -> Table {
    let mut table = table(&["ms", "mean", "p50", "p90", "p99", "max"]);
    let mut row = |name: &str, summary: Option<Summary>| {
        let Some(summary) = summary else { return };
        let ms = |ns: f64| format!("{:.2}", milliseconds(ns));
        table.add_row(vec![
            name.to_owned(),
            ms(summary.mean),
            ms(summary.p50 as f64),
            ms(summary.p90 as f64),
            ms(summary.p99 as f64),
            ms(summary.max as f64),
        ]);
    };
    for (name, summary) in latency_rows(outcome) {
        row(name, summary);
    }
    table
}

/// Latencies by name, in the order of reports.
pub(super) fn latency_rows(outcome: &Outcome) -> [(&'static str, Option<Summary>); 5] {
    let Latencies { ttft, itl, tpot, e2e, queue } = Latencies::of(outcome);
    [("TTFT", ttft), ("ITL", itl), ("TPOT", tpot), ("E2E", e2e), ("queue", queue)]
}

fn requests(outcome: &Outcome) -> Table {
    let mut table =
        table(&["request", "at", "prompt", "L1", "L2", "L3", "computed", "TTFT ms", "tokens", "end", "why not cached"]);
    if let Some(column) = table.column_mut(10) {
        column.set_cell_alignment(CellAlignment::Left);
    }
    for (ordinal, record) in outcome.requests.iter().enumerate() {
        let served = super::served(record);
        let part =
            |part: fn(&pd_core::event::Served) -> u32| served.map_or_else(String::new, |one| part(one).to_string());
        table.add_row(vec![
            ordinal.to_string(),
            format!("{:.1}s", record.arrival.0 as f64 / 1e9),
            record.prompt_tokens.to_string(),
            part(|served| served.device),
            part(|served| served.host),
            part(|served| served.storage),
            part(|served| served.misses.iter().map(|miss| miss.tokens).sum()),
            record.ttft_ns().map_or_else(String::new, |ns| format!("{:.1}", milliseconds(ns as f64))),
            record.tokens.to_string(),
            super::end_name(record),
            reasons(record),
        ]);
    }
    table
}

/// Which tokens of a prompt no cache served, and why.
pub(super) fn reasons(record: &Record) -> String {
    use pd_core::event::MissReason;
    let Some(served) = super::served(record) else { return String::new() };
    let texts: Vec<String> = served
        .misses
        .iter()
        .map(|miss| {
            if let MissReason::Hole { page } = miss.reason {
                format!("{} behind a hole at page {page}", miss.tokens)
            } else if let MissReason::TooShort { threshold } = miss.reason {
                format!("{} too_short (< {threshold} to fetch)", miss.tokens)
            } else {
                format!("{} {}", miss.tokens, miss.reason.name())
            }
        })
        .collect();
    texts.join(", ")
}

/// Requests that ended before their answer although nothing failed; nothing where there are none.
fn ended_early(values: &Values) -> String {
    let count = |name: &str| values.get(name).copied().filter(|count| *count > 0.0);
    let words = [("requests.cancelled", "cancelled"), ("requests.late", "late")];
    words.iter().filter_map(|(name, word)| Some(format!("{} {word}, ", count(name)?))).collect()
}

/// Key figures: label and text.
pub(super) fn summary(outcome: &Outcome, values: &Values) -> Vec<(&'static str, String)> {
    let value = |name: &str| values.get(name).copied().unwrap_or(0.0);
    let hits = Hits::of(outcome);
    let share = |tokens: u64| 100.0 * tokens as f64 / (hits.prompt as f64).max(1.0);
    let mut lines = vec![
        (
            "requests",
            format!(
                "{} arrived, {} finished, {} refused, {} failed, {}{} unfinished; {:.2}/s over {:.1} s",
                value("requests.arrived"),
                value("requests.finished"),
                value("requests.refused"),
                value("requests.failed"),
                ended_early(values),
                value("requests.unfinished"),
                value("throughput.requests_per_second"),
                value("run.seconds"),
            ),
        ),
        (
            "tokens",
            format!(
                "{} in ({:.0}/s), {} out ({:.0}/s)",
                value("tokens.input"),
                value("throughput.input_tokens_per_second"),
                value("tokens.output"),
                value("throughput.output_tokens_per_second"),
            ),
        ),
        (
            "cache",
            format!(
                "{:.2} % of {} prompt tokens: L1 {:.2} %, L2 {:.2} %, L3 {:.2} %",
                share(hits.cached()),
                hits.prompt,
                share(hits.device),
                share(hits.host),
                share(hits.storage),
            ),
        ),
    ];
    let mut misses: Vec<(f64, &str)> =
        values.iter().filter_map(|(name, tokens)| Some((*tokens, name.strip_prefix("misses.")?))).collect();
    misses.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    if !misses.is_empty() {
        let texts: Vec<String> = misses.iter().map(|(tokens, reason)| format!("{reason} {tokens}")).collect();
        lines.push(("misses", format!("{} (tokens)", texts.join(", "))));
    }
    let refused: Vec<String> =
        values.iter().filter_map(|(name, count)| Some(format!("{} {count}", name.strip_prefix("refused.")?))).collect();
    if !refused.is_empty() {
        lines.push(("refused", refused.join(", ")));
    }
    let counters = totals(outcome);
    let moved = counters.backup_pages + counters.load_back_pages + counters.persist_pages + counters.prefetch_pages;
    if moved > 0 {
        lines.push((
            "tiers",
            format!(
                "pages backed up {}, persisted {}, prefetched {}, loaded back {}; dropped from L1 {}, from L2 {}",
                counters.backup_pages,
                counters.persist_pages,
                counters.prefetch_pages,
                counters.load_back_pages,
                counters.device_evicted_pages,
                counters.host_evicted_pages,
            ),
        ));
    }
    if !outcome.transfers.is_empty() || counters.handoffs_failed + counters.handoffs_received > 0 {
        let bytes = value("transfers.bytes");
        let wire: f64 = outcome.transfers.iter().map(|transfer| transfer.ended.ns_since(transfer.started) as f64).sum();
        lines.push((
            "hand-offs",
            format!(
                "{} done, {} failed, {} retried, {} prompts computed by decode; {} pushes of {:.2} GB, mean {:.2} ms from start to end",
                counters.handoffs_received,
                counters.handoffs_failed,
                counters.handoff_retries,
                counters.local_recomputes,
                outcome.transfers.len(),
                bytes / 1e9,
                milliseconds(wire / (outcome.transfers.len() as f64).max(1.0)),
            ),
        ));
    }
    let limits: Vec<String> =
        what_limits(outcome).iter().take(3).map(|(busy, what)| format!("{what} {busy:.1} % busy")).collect();
    lines.push(("limits", limits.join(", ")));
    lines.push(("hash", format!("{:016x}  ({} events)", outcome.hash, outcome.events)));
    lines
}

/// Events that hit nothing and are named on the page.
const IDLE_SHOWN: usize = 5;

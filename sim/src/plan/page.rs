//! A plan as a table, and as JSON lines.

use std::fmt::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde_json::json;

use super::{Planned, Point};
use crate::stats::Interval;

/// The plan for a person.
#[must_use]
pub fn page(planned: &Planned) -> String {
    let plan = &planned.plan;
    let goal = &plan.goal;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "\n{} on {} GPUs: {:.1} % of requests with TTFT <= {:?} and TPOT <= {:?}; {} seeds of {:?}, the first tenth not \
         counted\n",
        plan.file.model,
        plan.gpus,
        f64::from(goal.attain_per_mille) / 10.0,
        goal.ttft,
        goal.tpot,
        plan.seeds.len(),
        goal.span,
    );
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header([
        "deployment",
        "req/s",
        "+-",
        "per GPU",
        "P busy",
        "D busy",
        "link",
        "copy",
        "disk",
        "hits",
        "breaks",
    ]);
    for column in table.column_iter_mut().skip(1).take(9) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for point in &planned.points {
        table.add_row(row(point));
    }
    let _ = writeln!(out, "{table}\n");
    let _ = writeln!(
        out,
        "~ screened only: one seed, half of the span. P, D busy: mean time with a step, in percent (a unified worker is \
         P; a decode\nstep runs whatever its batch). breaks: which promise breaks first above the goodput.\n"
    );
    for (candidate, why) in planned.impossible.iter().take(LINES_MAX) {
        let _ = writeln!(out, "impossible   {candidate}: {why}");
    }
    if planned.impossible.len() > LINES_MAX {
        let _ = writeln!(out, "             and {} more", planned.impossible.len() - LINES_MAX);
    }
    let Some(best) = planned.points.first().filter(|best| best.goodput().mean > 0.0) else {
        let _ = writeln!(
            out,
            "best         none: no deployment keeps the promise at any rate; raise --slo-ttft or --slo-tpot"
        );
        return out;
    };
    let _ = writeln!(out, "best         {}: {} req/s", best.candidate, interval(best.goodput(), 2));
    if best.usage().prefill >= BUSY {
        let _ = writeln!(
            out,
            "beware       GPUs are {:.0} % busy: this close to saturation a capacity that is off by 2 % moves the tail by a factor",
            best.usage().prefill
        );
    }
    if let Some(limit) = planned.limit() {
        let _ = writeln!(out, "limits       {limit}\n");
    }
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(["what more would buy", "goodput %", "+-", "elasticity"]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for gain in &planned.gains {
        let width = Some(gain.gain.half_width).filter(|width| width.is_finite());
        // What rounds to nothing is said as such.
        if 100.0 * gain.gain.mean.abs() < 0.05 && width.is_none_or(|width| 100.0 * width < 0.05) {
            table.add_row([gain.what_if.about(), "nothing"]);
            continue;
        }
        table.add_row([
            gain.what_if.about().to_owned(),
            format!("{:+.1}", 100.0 * gain.gain.mean),
            width.map_or_else(String::new, |width| format!("{:.1}", 100.0 * width)),
            format!("{:.2}", gain.elasticity),
        ]);
    }
    if !planned.gains.is_empty() {
        let _ = writeln!(out, "{table}");
    }
    out
}

fn row(point: &Point) -> Vec<String> {
    let goodput = point.goodput();
    let usage = point.usage();
    let percent = |value: f64| format!("{value:.0}");
    let (first, rest) = point.breaks();
    let breaks = match (first, rest) {
        (0, 0) => "",
        (first, rest) if first >= 3 * rest => "TTFT",
        (first, rest) if rest >= 3 * first => "TPOT",
        _ => "both",
    };
    let mark = if point.is_screened { "~" } else { "" };
    vec![
        format!("{mark}{}", point.candidate),
        format!("{:.2}", goodput.mean),
        if goodput.half_width.is_finite() { format!("{:.2}", goodput.half_width) } else { String::new() },
        format!("{:.3}", point.per_gpu()),
        percent(usage.prefill),
        percent(usage.decode),
        percent(usage.link),
        percent(usage.copy),
        percent(usage.disk),
        percent(usage.hits),
        breaks.to_owned(),
    ]
}

fn interval(interval: Interval, digits: usize) -> String {
    let Interval { mean, half_width } = interval;
    if half_width.is_finite() { format!("{mean:.digits$} +-{half_width:.digits$}") } else { format!("{mean:.digits$}") }
}

/// A JSON object per deployment, the best first, and one with what limits it and what more would buy.
#[must_use]
pub fn json(planned: &Planned) -> String {
    let mut out = String::new();
    let object = |interval: Interval| json!({ "mean": interval.mean, "half_width": Some(interval.half_width).filter(|width| width.is_finite()) });
    for point in &planned.points {
        let usage = point.usage();
        let (late_first, late_rest) = point.breaks();
        let line = json!({
            "deployment": point.candidate.to_string(),
            "gpus": point.candidate.layout.gpus(),
            "goodput": object(point.goodput()),
            "per_gpu": point.per_gpu(),
            "rates": point.rates,
            "screened": point.is_screened,
            "busy_percent": {
                "prefill": usage.prefill, "decode": usage.decode, "link": usage.link, "copy": usage.copy,
                "disk": usage.disk,
            },
            "hits_percent": usage.hits,
            "retractions": usage.retractions,
            "beyond": { "late_first": late_first, "late_rest": late_rest },
        });
        let _ = writeln!(out, "{line}");
    }
    let gains = planned.gains.iter().map(|gain| {
        json!({
            "more": gain.what_if.about(), "resource": gain.what_if.limit(), "gain": object(gain.gain),
            "elasticity": gain.elasticity,
        })
    });
    let impossible = planned
        .impossible
        .iter()
        .map(|(candidate, why)| json!({ "deployment": candidate.to_string(), "why": why }))
        .collect::<Vec<_>>();
    let last = json!({
        "limits": planned.limit(), "gains": gains.collect::<Vec<_>>(), "impossible": impossible,
    });
    let _ = writeln!(out, "{last}");
    out
}

/// GPUs above this are near saturation.
const BUSY: f64 = 90.0;
/// Most lines of a kind.
const LINES_MAX: usize = 5;

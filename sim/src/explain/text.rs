//! The answer as a page.

use std::fmt::Write;

use pd_core::router::{Alternative, Outlook, Rank};
use pd_core::time::Instant;

use super::path::Sum;
use super::story::{Decision, MoveKind};
use super::why::{detail, served};
use super::{Explanation, site};
use crate::record::End;
use crate::words::{at, bytes, count, ms, plural};

/// The page.
pub(super) fn page(e: &Explanation) -> String {
    let mut out = String::new();
    let record = &e.story.record;
    let end = match record.end {
        None => "not ended".to_owned(),
        Some(End::Finished(finish)) => format!("ended: {finish:?}"),
        Some(End::Refused(refusal)) => format!("refused: {refusal:?}"),
        Some(End::NotRouted(refusal)) => format!("refused by the router: {refusal:?}"),
        Some(End::RouterLost) => "lost: the router went away with it".to_owned(),
    };
    let _ = writeln!(
        out,
        "request {}: {} of prompt, {} of {} of answer, sent at {}, {end}",
        e.story.request,
        plural(u64::from(record.prompt_tokens), "token"),
        count(u64::from(record.tokens)),
        count(u64::from(record.limit)),
        at(record.arrival)
    );
    let _ = writeln!(out);
    sums(e, &mut out);
    let _ = writeln!(out, "\nwhy");
    let findings = e.findings();
    for finding in &findings {
        wrap(&mut out, "  - ", &finding.text);
    }
    let advice: Vec<&str> = findings.iter().filter_map(|finding| finding.advice.as_deref()).collect();
    if !advice.is_empty() {
        let _ = writeln!(out, "\nwhat to do");
        for (index, line) in advice.iter().enumerate() {
            if !advice[..index].contains(line) {
                wrap(&mut out, "  - ", line);
            }
        }
    }
    sources(e, &mut out);
    if e.story.decisions.iter().any(|decision| !decision.alternatives.is_empty()) {
        let _ = writeln!(out, "\nrouting");
        for decision in &e.story.decisions {
            routing(decision, &mut out);
        }
    }
    let _ = writeln!(out, "\nlog (ms since it was sent)");
    for (when, line) in log(e) {
        let since = format!("{:.3}", when.ns_since(record.arrival) as f64 / 1e6);
        let _ = writeln!(out, "  {since:>12}  {line}");
    }
    out
}

/// TTFT and E2E as sums, and what each part of TTFT was.
fn sums(e: &Explanation, out: &mut String) {
    let name = if e.story.record.first_token.is_some() { "TTFT" } else { "time" };
    wrap(out, "", &format!("{name} {}", sum(&e.ttft, false)));
    if let Some(rest) = &e.rest {
        let (total, _) = Sum { total_ns: e.ttft.total_ns + rest.total_ns, parts: Vec::new() }.tenths();
        // The decoding takes what the rounding leaves, so that the line adds up.
        let (ttft, _) = e.ttft.tenths();
        let (_, tenths) = rest.tenths();
        let mut parts = vec![format!("{} TTFT", tenth(ttft))];
        let short = (total - ttft).cast_signed() - tenths.iter().sum::<u64>().cast_signed();
        for (index, ((part, _), tenths)) in rest.parts.iter().zip(&tenths).enumerate() {
            let tenths = if index == 0 { tenths.saturating_add_signed(short) } else { *tenths };
            if tenths > 0 {
                parts.push(format!("{} {}", tenth(tenths), part.cause.words(true)));
            }
        }
        let steps = e.story.steps;
        let mut line = format!("E2E  {} ms = {}", tenth(total), parts.join(" + "));
        if steps.count > 0 {
            let _ = write!(
                line,
                " ({}, on average {:.1} sequences in each)",
                plural(u64::from(steps.count), "step"),
                steps.rows as f64 / f64::from(steps.count)
            );
        }
        wrap(out, "", &line);
    }
    let _ = writeln!(out);
    let (_, tenths) = e.ttft.tenths();
    for ((part, _), tenths) in e.ttft.parts.iter().zip(tenths) {
        let whose = part.worker.map_or_else(String::new, |worker| format!(" (worker {worker})"));
        let detail = detail(e, part.cause).map_or_else(String::new, |detail| format!(": {detail}"));
        wrap(out, &format!("  {:>9} ms  ", tenth(tenths)), &format!("{}{whose}{detail}", part.cause.words(false)));
    }
}

fn tenth(tenths: u64) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// `530.6 ms = 0.1 routing + ...`; what rounds to nothing is left out, and the rest adds up.
fn sum(sum: &Sum, is_decoding: bool) -> String {
    let (total, tenths) = sum.tenths();
    let parts: Vec<String> = sum
        .parts
        .iter()
        .zip(&tenths)
        .filter(|(_, tenths)| **tenths > 0)
        .map(|((part, _), tenths)| format!("{} {}", tenth(*tenths), part.cause.words(is_decoding)))
        .collect();
    format!("{} ms = {}", tenth(total), if parts.is_empty() { "0".to_owned() } else { parts.join(" + ") })
}

/// Where the prompt came from, tier by tier.
fn sources(e: &Explanation, out: &mut String) {
    let (Some(served), Some(visit)) = (served(e), e.story.computing()) else { return };
    let _ = writeln!(
        out,
        "\nprompt on worker {} (life {}), {}",
        visit.worker,
        visit.life,
        plural(u64::from(served.prompt), "token")
    );
    let fetched: u32 = e.story.moves_of(MoveKind::Prefetch).map(|one| one.pages).sum();
    for (tier, tokens, how) in [
        ("L1", served.device, String::new()),
        ("L2", served.host, String::new()),
        (
            "L3",
            served.storage,
            if fetched > 0 { format!("  {} read", plural(u64::from(fetched), "page")) } else { String::new() },
        ),
    ] {
        let _ = writeln!(out, "  {tier:<9}{:>9}{how}", count(u64::from(tokens)));
    }
    for miss in &served.misses {
        let _ = writeln!(out, "  {:<9}{:>9}  {}", "computed", count(u64::from(miss.tokens)), miss.reason.name());
    }
    if let Some(sink) = e.story.record.sink_served.as_deref().filter(|_| e.story.record.prefill.is_some()) {
        let had = sink.device + sink.host + sink.storage;
        let _ = writeln!(
            out,
            "  the decode worker had {} of it; the rest was pushed to it",
            plural(u64::from(had), "token")
        );
    }
}

/// A decision of the router and its alternatives.
fn routing(decision: &Decision, out: &mut String) {
    let chosen: Vec<u32> = match &decision.result {
        Err(refusal) => {
            let _ = writeln!(out, "  {}: refused, {refusal:?}", at(decision.at));
            Vec::new()
        }
        Ok(route) => {
            let place = match route.prefill {
                Some(prefill) => format!("prefill on worker {prefill}, decode on worker {}", route.decode),
                None => format!("worker {}", route.decode),
            };
            let mut line = format!("{}: {place}, because of {}", at(decision.at), route.reason.cause.name());
            if route.reason.last_resort {
                line += "; all breakers of a role were open";
            }
            if let Some(append) = route.reason.append {
                let side = |side: Option<Outlook>| match side {
                    None => "impossible".to_owned(),
                    Some(side) => format!("{} to the first token and {} a step", ms(side.ttft_ns), ms(side.tpot_ns)),
                };
                let _ = write!(line, "; a pair: {}, an append: {}", side(append.pair), side(append.append));
            }
            wrap(out, "  ", &line);
            route.prefill.iter().chain([&route.decode]).map(|worker| worker.0).collect()
        }
    };
    let cost = |one: &Alternative| one.queue_ns.saturating_add(one.prefill_ns);
    let mut others: Vec<&Alternative> = decision.alternatives.iter().collect();
    others.sort_by_key(|one| (!chosen.contains(&one.worker.0), one.rank, cost(one), one.worker));
    for one in others.iter().take(ALTERNATIVES_SHOWN) {
        let mark = if chosen.contains(&one.worker.0) { "*" } else { " " };
        let rank = match one.rank {
            Rank::Good => "",
            Rank::Avoided => "; has failed this request",
            Rank::LastResort => "; its breaker is open",
        };
        let _ = writeln!(
            out,
            "   {mark} worker {:<3} {:?}: queue {}, {} cached, rest to compute {} or to send {}; {}{rank}",
            one.worker,
            one.mode,
            ms(one.queue_ns),
            count(u64::from(one.cached)),
            ms(one.prefill_ns),
            ms(one.transfer_ns),
            plural(u64::from(one.legs), "request")
        );
    }
    if others.len() > ALTERNATIVES_SHOWN {
        let _ = writeln!(out, "     and {} more", others.len() - ALTERNATIVES_SHOWN);
    }
}

/// All that happened to it, in order.
pub(super) fn log(e: &Explanation) -> Vec<(Instant, String)> {
    let story = &e.story;
    let record = &story.record;
    let mut lines = Vec::new();
    for visit in &story.visits {
        let (running, waiting) = visit.load;
        lines.push((
            visit.at,
            format!("comes to worker {} for {}; {running} running, {waiting} waiting", visit.worker, visit.role.name()),
        ));
        if let (Some(admitted), Some(served)) = (visit.admitted, &visit.served) {
            lines.push((
                admitted,
                format!(
                    "admitted on worker {}: L1 {}, L2 {}, L3 {} tokens",
                    visit.worker,
                    count(u64::from(served.device)),
                    count(u64::from(served.host)),
                    count(u64::from(served.storage))
                ),
            ));
        }
        if let Some((left, how)) = &visit.left {
            lines.push((*left, format!("{how} on worker {}", visit.worker)));
        }
    }
    for one in &story.moves {
        let what = match one.kind {
            MoveKind::Prefetch => "reads from L3",
            MoveKind::LoadBack => "copies L2 -> L1",
            MoveKind::Push => "pushes",
            MoveKind::Query => "asks L3 about",
        };
        let to = one.to.map_or_else(String::new, |to| format!(" to worker {to}"));
        let pages = plural(u64::from(one.pages), "page");
        let size = if one.bytes > 0 { format!(", {}", bytes(one.bytes)) } else { String::new() };
        let took = match one.done {
            Some(done) => format!("took {}", ms(done.ns_since(one.at))),
            None => "did not end".to_owned(),
        };
        let failed = match one.failed.as_slice() {
            [] => String::new(),
            [(page, fault), ..] => format!("; {} failed, the first page {page} with {fault:?}", one.failed.len()),
        };
        lines.push((one.at, format!("worker {} {what} {pages}{to}{size}; {took}{failed}", one.worker)));
    }
    for chunk in &story.chunks {
        let others = match chunk.others {
            (0, _) => "alone".to_owned(),
            (_, tokens) => format!(
                "with {} of request {}",
                plural(u64::from(tokens), "token"),
                crate::words::requests(&chunk.with)
            ),
        };
        let took = chunk
            .done
            .map_or_else(|| "not done".to_owned(), |done| format!("done after {}", ms(done.ns_since(chunk.at))));
        lines.push((
            chunk.at,
            format!(
                "worker {} launches a forward of tokens {} to {}, {others}; {took}",
                chunk.worker,
                count(u64::from(chunk.start)),
                count(u64::from(chunk.start + chunk.count) - 1),
            ),
        ));
    }
    lines.extend(story.retractions.iter().map(|(when, worker)| (*when, format!("retracted on worker {worker}"))));
    lines.extend(story.notes.iter().cloned());
    for (label, when) in [("first token", record.first_token), ("last token", record.last_token)] {
        lines.extend(when.map(|when| (when, label.to_owned())));
    }
    let end = record.finished.unwrap_or(e.ended);
    for (when, action) in e.site.actions.iter().filter(|(when, _)| *when >= record.arrival && *when <= end) {
        lines.push((*when, format!("script: {}", site::action(action))));
    }
    lines.sort_by_key(|(when, _)| *when);
    if lines.len() > LOG_LINES_MAX {
        let cut = lines.len() - LOG_LINES_MAX;
        let tail = lines.split_off(lines.len() - LOG_LINES_MAX / 2);
        lines.truncate(LOG_LINES_MAX / 2);
        let when = lines.last().map_or(Instant::ZERO, |(when, _)| *when);
        lines.push((when, format!("... {} left out ...", plural(cut as u64, "line"))));
        lines.extend(tail);
    }
    lines
}

/// Writes a paragraph, its later lines below the text of the first.
fn wrap(out: &mut String, indent: &str, text: &str) {
    let mut line = indent.to_owned();
    let blank = " ".repeat(indent.chars().count());
    let mut is_empty = true;
    for word in text.split(' ') {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(out, "{line}");
            line.clone_from(&blank);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    let _ = writeln!(out, "{line}");
}

const WIDTH: usize = 118;
const ALTERNATIVES_SHOWN: usize = 6;
const LOG_LINES_MAX: usize = 60;

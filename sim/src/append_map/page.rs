//! The map as tables, and as JSON lines.

use std::fmt::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use pd_core::router::Outlook;
use serde_json::json;

use super::{By, Found, Map, Side};

/// The map for a person: a picture of letters and the crossovers.
#[must_use]
pub fn page(map: &Map) -> String {
    let config = &map.config;
    let mut out = String::new();
    let _ = writeln!(out, "\n{}\n{}", map.name, "=".repeat(map.name.chars().count()));
    for line in map.about.trim().lines() {
        let _ = writeln!(out, "{}", line.trim());
    }
    let measures = measures(map);
    let _ = writeln!(
        out,
        "\nD: the append is better off on the decode worker, P: over the pair. A letter for each reuse {}.\n\
         r*: reuse from which on the decode worker is better; \"never\": not even at {}.\n",
        texts(&config.reuse),
        config.reuse.last().copied().unwrap_or_default(),
    );
    let mut table = Table::new();
    table.load_preset(NOTHING);
    let mut header = vec!["link".to_owned(), "decodes".to_owned(), "tokens".to_owned()];
    for by in &measures {
        header.extend([word(*by), "r*".to_owned()]);
    }
    header.extend(["router".to_owned(), "r*".to_owned()]);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1).take(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for link in &config.links {
        for &decodes in &config.decodes {
            for tokens in &config.tokens {
                let row = map.row(link, decodes, tokens.0);
                let mut cells = vec![link.clone(), decodes.to_string(), tokens.0.to_string()];
                for by in &measures {
                    let letters = row.iter().map(|cell| letter(cell.winner(*by))).collect();
                    cells.extend([letters, star(Map::crossover(row, *by))]);
                }
                let letters = row.iter().map(|cell| letter(cell.router.side)).collect();
                cells.extend([letters, star(router_crossover(row))]);
                table.add_row(cells);
            }
        }
    }
    let _ = writeln!(out, "{table}\n");
    for by in &measures {
        let (agree, count) = map.agreement(*by);
        let share = 100.0 * agree as f64 / count as f64;
        let _ = writeln!(
            out,
            "router       does what is better by {} in {agree} of {count} cells ({share:.1} %)",
            word(*by)
        );
    }
    let mut lost: Vec<f64> = map.cells.iter().map(|cell| cell.lost_share(config.window_tokens)).collect();
    lost.sort_by(f64::total_cmp);
    let _ = writeln!(
        out,
        "stall        an answer under way lost {:.2} of the append's time to first token in the median cell ({:.2} to {:.2})",
        lost[lost.len() / 2],
        lost[0],
        lost[lost.len() - 1],
    );
    for broken in map.broken() {
        let _ = writeln!(out, "GATE BROKEN  {broken}");
    }
    out
}

fn measures(map: &Map) -> Vec<By> {
    let weighted = map.config.w_tpot.iter().map(|weight| By::Weighted(*weight));
    [By::Ttft, By::Tpot].into_iter().chain(weighted).collect()
}

fn word(by: By) -> String {
    match by {
        By::Ttft => "TTFT".to_owned(),
        By::Tpot => "TPOT".to_owned(),
        By::Weighted(w_tpot) => format!("TTFT:TPOT 1:{w_tpot}"),
    }
}

const fn letter(side: Side) -> char {
    match side {
        Side::Pair => 'P',
        Side::Append => 'D',
    }
}

fn star(crossover: Option<f64>) -> String {
    crossover.map_or_else(|| "never".to_owned(), |reuse| format!("{reuse:.2}"))
}

/// The smallest reuse from which on the router appends.
fn router_crossover(row: &[Found]) -> Option<f64> {
    match row.iter().rposition(|cell| cell.router.side == Side::Pair) {
        None => Some(0.0),
        Some(last) => row.get(last + 1).map(|cell| cell.reuse),
    }
}

fn texts(values: &[f64]) -> String {
    values.iter().map(f64::to_string).collect::<Vec<_>>().join(", ")
}

/// A JSON object per cell, one per crossover, and one with agreements and gates.
#[must_use]
pub fn json(map: &Map) -> String {
    let mut out = String::new();
    let ms = |ns: f64| ns / 1e6;
    let side = |side: Option<Outlook>| {
        side.map(|side| json!({ "ttft_ms": ms(side.ttft_ns as f64), "tpot_ms": ms(side.tpot_ns as f64) }))
    };
    for cell in &map.cells {
        let line = json!({
            "scenario": map.name, "link": cell.link, "decodes": cell.decodes, "tokens": cell.tokens,
            "reuse": cell.reuse, "reused_tokens": cell.reused_tokens,
            "pair": { "ttft_ms": ms(cell.pair.ttft_ns), "tpot_ms": ms(cell.pair.tpot_ns) },
            "append": { "ttft_ms": ms(cell.append.ttft_ns), "tpot_ms": ms(cell.append.tpot_ns) },
            "router": {
                "side": cell.router.side,
                "pair": side(cell.router.reason.pair),
                "append": side(cell.router.reason.append),
            },
        });
        let _ = writeln!(out, "{line}");
    }
    let config = &map.config;
    for link in &config.links {
        for &decodes in &config.decodes {
            for tokens in &config.tokens {
                let row = map.row(link, decodes, tokens.0);
                for by in measures(map) {
                    let line = json!({
                        "scenario": map.name, "link": link, "decodes": decodes, "tokens": tokens.0, "by": by,
                        "crossover": Map::crossover(row, by), "router": router_crossover(row),
                    });
                    let _ = writeln!(out, "{line}");
                }
            }
        }
    }
    let agreements: Vec<_> = measures(map)
        .into_iter()
        .map(|by| {
            let (cells, of) = map.agreement(by);
            json!({ "by": by, "cells": cells, "of": of })
        })
        .collect();
    let _ = writeln!(out, "{}", json!({ "scenario": map.name, "agreement": agreements, "broken": map.broken() }));
    out
}

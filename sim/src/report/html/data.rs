//! The data of the page, as compact JSON. Times are in seconds unless a name says otherwise.

use std::collections::BTreeMap;

use pd_core::time::Instant;
use serde_json::{Value, json};

use super::About;
use crate::observe::Ending;
use crate::record::{Outcome, Record};
use crate::report::collect::{Collector, Deed, Phase, What, ending_name, mode_name};
use crate::report::page::{latency_rows, reasons, summary};
use crate::report::series::{Level, Sample, Series};
use crate::report::{busy_percent, cdf, end_name, milliseconds, served, served_ns};
use crate::stats::{Samples, Summary};

/// Everything that the script draws.
pub(super) fn data(about: &About<'_>, collector: &Collector, outcome: &Outcome) -> Value {
    let series_count = collector.workers.len() * 8 + collector.links.len();
    let limit = (SAMPLES_MAX / series_count.max(1)).clamp(200, 2000);
    let (requests, bins) = (requests(collector, outcome), bins(outcome));
    json!({
        "name": about.name,
        "about": about.about.trim(),
        "end": seconds(outcome.ended),
        "served": served_ns(outcome) / 1e9,
        "gates": gates(about),
        "violations": outcome.violations.len(),
        "violation": outcome.violations.first().map(|one| one.to_string()),
        "figures": figures(about, outcome),
        "latencies": latencies(outcome),
        "utilisation": utilisation(collector, outcome),
        "curves": curves(outcome),
        "phases": Phase::ALL.map(Phase::name),
        "requests": requests,
        "bins": bins,
        "workers": workers(collector, outcome.ended, limit),
        "links": links(collector, outcome, limit),
        "moves": moves(collector),
        "marks": collector.marks.iter().map(|mark| json!([
            seconds(mark.at), mark.worker, mark.label, u8::from(mark.is_scripted),
        ])).collect::<Vec<_>>(),
    })
}

fn gates(about: &About<'_>) -> Vec<Value> {
    let found = |gate: &str| about.broken.iter().find(|broken| broken.gate == gate).map(|broken| &broken.found);
    about.gates.iter().map(ToString::to_string).map(|gate| json!([gate, found(&gate)])).collect()
}

fn figures(about: &About<'_>, outcome: &Outcome) -> Vec<Value> {
    summary(outcome, about.values).into_iter().map(|(label, text)| json!([label, text])).collect()
}

fn latencies(outcome: &Outcome) -> Vec<Value> {
    let row = |(name, summary): (&str, Option<Summary>)| {
        let summary = summary?;
        let [p50, p90, p99, max] = [summary.p50, summary.p90, summary.p99, summary.max].map(|ns| ns as f64 / 1e6);
        Some(json!([name, summary.count, summary.mean / 1e6, p50, p90, p99, max]))
    };
    latency_rows(outcome).into_iter().filter_map(row).collect()
}

/// How busy each resource was while requests were served: by kind, in words, the busiest first.
fn utilisation(collector: &Collector, outcome: &Outcome) -> Vec<Value> {
    let total = served_ns(outcome);
    let percent = |busy_ns: u64| (100.0 * busy_ns as f64 / total).min(100.0);
    let gpus = (0..).zip(&outcome.workers);
    let gpus = gpus.map(|(index, worker)| (percent(worker.lanes.forward_busy_ns), format!("GPU of worker {index}")));
    let links = outcome.links.iter().map(|(name, used)| (busy_percent(outcome, total, used), format!("link {name}")));
    let disks = outcome.stores.iter().map(|store| {
        let busy_ns = store.disk.read.busy_ns.max(store.disk.write.busy_ns);
        (percent(busy_ns), format!("disk of {}", store.name))
    });
    let memory = (0..).zip(&collector.workers).map(|(index, levels)| {
        let share = 100.0 * levels.device_pinned.max() as f64 / f64::from(levels.device_total).max(1.0);
        (share, format!("L1 of worker {index}"))
    });
    let kinds: [(&str, Vec<(f64, String)>); 4] = [
        ("devices: time with a forward", gpus.collect()),
        ("links: bytes, of those that they could carry", links.collect()),
        ("disks: time with a transfer", disks.collect()),
        ("memory: pages in use at the peak", memory.collect()),
    ];
    let kinds = kinds.into_iter().filter_map(|(how, mut all)| {
        all.retain(|(share, _)| *share >= 0.05);
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        all.truncate(UTILISATION_MAX);
        let rows: Vec<Value> = all.into_iter().map(|(share, what)| json!([round(share), what])).collect();
        (!rows.is_empty()).then(|| json!([how, rows]))
    });
    kinds.collect()
}

fn curves(outcome: &Outcome) -> Vec<Value> {
    let over = |value: fn(&Record) -> Option<u64>| {
        let mut samples = Samples::new();
        samples.extend(outcome.requests.iter().filter(|record| record.is_complete()).filter_map(value));
        let sorted = samples.finish();
        (cdf::of_sorted(&sorted), sorted.summary())
    };
    let itl = (cdf::of_histogram(&outcome.itl), outcome.itl.summary());
    let curves = [
        ("TTFT", "time to first token, by request", over(Record::ttft_ns)),
        ("TPOT", "mean time per token behind the first, by request", over(Record::tpot_ns)),
        ("ITL", "time between two tokens, over all tokens", itl),
        ("E2E", "time to the last token, by request", over(Record::e2e_ns)),
    ];
    let curve = |(name, what, (curve, summary)): (&str, &str, (cdf::Curve, Summary))| {
        let [p50, p90, p99] = [summary.p50, summary.p90, summary.p99].map(|ns| milliseconds(ns as f64));
        json!({
            "name": name,
            "what": what,
            "count": summary.count,
            "marks": [p50, p90, p99],
            "x": curve.iter().map(|point| milliseconds(point.1 as f64)).collect::<Vec<_>>(),
            "y": curve.iter().map(|point| round(point.0 / 10.0)).collect::<Vec<_>>(),
        })
    };
    curves.into_iter().map(curve).collect()
}

/// The requests that are drawn: those that waited longest for their first token, or for nothing, and every n-th of the
/// rest. Who is refused at once has not waited.
fn requests(collector: &Collector, outcome: &Outcome) -> Value {
    let mut order: Vec<usize> = (0..outcome.requests.len()).collect();
    let slowness = |index: usize| {
        let record = &outcome.requests[index];
        let life_ns = record.finished.unwrap_or(outcome.ended).ns_since(record.arrival);
        (std::cmp::Reverse(record.ttft_ns().unwrap_or(life_ns)), index)
    };
    order.sort_by_key(|index| slowness(*index));
    let mut rest = order.split_off(order.len().min(REQUESTS_WORST));
    rest.sort_unstable();
    let step = rest.len().div_ceil(REQUESTS_SAMPLED).max(1);
    let rest_count = rest.len();
    let sample = rest.into_iter().step_by(step);
    let worst_count = order.len();
    let mut rows = Vec::new();
    for (rank, index) in order.into_iter().chain(sample).enumerate() {
        let record = &outcome.requests[index];
        let phases = collector.journey(index).phases(record, outcome.ended);
        let phases: Vec<f64> = phases
            .iter()
            .flat_map(|(phase, _, to)| [f64::from(*phase as u8), seconds(Instant(to.ns_since(record.arrival)))])
            .collect();
        let tokens = served(record).map_or([0; 3], |served| [served.device, served.host, served.storage]);
        rows.push(json!([
            index,
            seconds(record.arrival),
            phases,
            record.ttft_ns().map(|ns| milliseconds(ns as f64)),
            record.e2e_ns().map(|ns| milliseconds(ns as f64)),
            record.prompt_tokens,
            tokens,
            record.tokens,
            if record.is_complete() { String::new() } else { end_name(record) },
            record.prefill,
            record.decode,
            reasons(record),
            u8::from(rank < worst_count),
        ]));
    }
    json!({ "count": outcome.requests.len(), "worst": worst_count, "rest": rest_count, "step": step, "rows": rows })
}

/// Tokens of prompts by source and by reason, over the time of their admission.
fn bins(outcome: &Outcome) -> Value {
    let width_ns = (served_ns(outcome) / BINS as f64).ceil().max(1.0) as u64;
    let mut tiers = [[0_u64; BINS]; 3];
    let mut reasons: BTreeMap<&str, [u64; BINS]> = BTreeMap::new();
    for record in &outcome.requests {
        let Some(served) = served(record) else { continue };
        let at = record.admitted.unwrap_or(record.arrival);
        let bin = ((at.0 / width_ns) as usize).min(BINS - 1);
        for (tier, tokens) in tiers.iter_mut().zip([served.device, served.host, served.storage]) {
            tier[bin] += u64::from(tokens);
        }
        for miss in &served.misses {
            reasons.entry(miss.reason.name()).or_insert([0; BINS])[bin] += u64::from(miss.tokens);
        }
    }
    let total = |counts: &[u64; BINS]| counts.iter().sum::<u64>();
    let mut reasons: Vec<(&str, [u64; BINS])> = reasons.into_iter().collect();
    reasons.sort_by_key(|(name, counts)| (std::cmp::Reverse(total(counts)), *name));
    json!({
        "width": seconds(Instant(width_ns)),
        "tiers": tiers.map(|counts| counts.to_vec()),
        "reasons": reasons.iter().map(|(name, counts)| json!([name, counts.to_vec()])).collect::<Vec<_>>(),
    })
}

fn workers(collector: &Collector, end: Instant, limit: usize) -> Vec<Value> {
    let all = collector.workers.iter().zip(&collector.plan.workers);
    all.map(|(levels, plan)| {
        json!({
            "mode": mode_name(plan.mode),
            "store": plan.store,
            "pages": [levels.device_total, levels.host_total],
            "used": [series(&levels.device_used, end, limit, 1.0), series(&levels.host_used, end, limit, 1.0)],
            "pinned": [series(&levels.device_pinned, end, limit, 1.0), series(&levels.host_pinned, end, limit, 1.0)],
            "stored": series(&levels.stored, end, limit, 1.0),
            "running": series(&levels.running, end, limit, 1.0),
            "waiting": series(&levels.waiting, end, limit, 1.0),
            "busy": series(&levels.busy, end, limit, 0.01),
        })
    })
    .collect()
}

fn links(collector: &Collector, outcome: &Outcome, limit: usize) -> Vec<Value> {
    let mut links: Vec<(u64, Value)> = Vec::new();
    for (link, level) in &collector.links {
        let Some((name, used)) = outcome.links.get(*link as usize) else { continue };
        if level.rate.max() > 0 {
            links.push((
                used.bytes,
                json!({
                    "name": name,
                    "capacity": level.capacity as f64 / 1e9,
                    "bytes": used.bytes as f64 / 1e9,
                    "rate": series(&level.rate, outcome.ended, limit, 1e6),
                }),
            ));
        }
    }
    links.sort_by_key(|link| std::cmp::Reverse(link.0));
    links.into_iter().map(|(_, link)| link).collect()
}

fn moves(collector: &Collector) -> Value {
    let (moves, count) = collector.moves();
    let row = |deed: &Deed| {
        let began = deed.began?;
        let to = if let What::Push { to, .. } = deed.what { Some(to) } else { None };
        let request = deed.request.map(|request| request.0);
        let length = seconds(Instant(deed.ended.ns_since(began)));
        let ending = if deed.ending == Ending::Done { "" } else { ending_name(deed.ending) };
        Some(json!([deed.what.name(), deed.worker, to, seconds(began), length, deed.bytes, request, ending]))
    };
    json!({ "count": count, "rows": moves.iter().filter_map(row).collect::<Vec<_>>() })
}

/// A series as columns: gaps between buckets (in buckets), mean, and where a bucket holds more than one value also the
/// smallest, the largest and the last one. Values are divided by `unit`.
fn series(level: &Level, end: Instant, limit: usize, unit: f64) -> Value {
    if level.max() == 0 {
        return Value::Null;
    }
    let Series { width_ns: width, samples } = level.series(end, limit);
    let scaled = |value: u64| round(value as f64 / unit);
    let mut before = 0;
    let mut gaps = Vec::with_capacity(samples.len());
    for sample in &samples {
        let index = sample.at.0 / width;
        gaps.push(index - before);
        before = index;
    }
    let means: Vec<f64> = samples.iter().map(|sample| round(sample.mean / unit)).collect();
    if width == 1 {
        return json!({ "w": 1e-9, "t": gaps, "v": means });
    }
    let column =
        |value: fn(&Sample) -> u64| -> Vec<f64> { samples.iter().map(|sample| scaled(value(sample))).collect() };
    json!({
        "w": width as f64 / 1e9,
        "t": gaps,
        "v": means,
        "lo": column(|sample| sample.min),
        "hi": column(|sample| sample.max),
        "l": column(|sample| sample.last),
    })
}

fn seconds(at: Instant) -> f64 {
    at.0 as f64 / 1e9
}

/// Four digits are enough to draw.
fn round(value: f64) -> f64 {
    if value == 0.0 || value.abs() >= 1000.0 {
        return value.round();
    }
    let scale = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

/// Samples of all series together.
const SAMPLES_MAX: usize = 60_000;
/// Bars over the time of the run.
const BINS: usize = 120;
/// The slowest requests, which are all drawn.
const REQUESTS_WORST: usize = 200;
/// Most of the others.
const REQUESTS_SAMPLED: usize = 300;
/// Resources of a kind that are listed.
const UTILISATION_MAX: usize = 20;

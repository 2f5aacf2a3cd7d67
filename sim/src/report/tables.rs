//! Tables of a run as CSV files, one folder per run. Times are in seconds since the start of the run, exact to the ns.
//!
//! | file | one row for each | columns |
//! |---|---|---|
//! | `requests.csv` | request | its record: times, tokens, where its prompt came from, phases in ms, how it ended |
//! | `misses.csv` | request and reason | tokens of its prompt that no cache served, and why |
//! | `forwards.csv` | forward pass | worker, times, sequences, prompt chunks and tokens in it |
//! | `transfers.csv` | other command | copies, pushes, reads and writes of L3: worker, lane, times, pages, bytes |
//! | `tiers.csv` | worker, value, sample | pages of L1 and L2, objects of L3, running and waiting requests, GPU busy |
//! | `links.csv` | link and sample | bytes per second |
//! | `workers.csv` | worker and counter | the counters of `pd sim --json`, by worker |
//!
//! An empty field is something that never happened. A sample covers `span_s` from `at_s` on; from there up to the next
//! sample of the same series the value stays `last`. Forwards and transfers are written as they end, in that order; the
//! others at the end of the run.

use std::fmt;
use std::io::{self, Write};

use csv::Writer;
use pd_core::event::{MissReason, Served};
use pd_core::op::LaneKind;
use pd_core::time::Instant;

use super::collect::{Collector, Deed, Phase, What, WriteError, ending_name, mode_name};
use super::series::Level;
use super::{end_name, milliseconds, served};
use crate::record::{Outcome, Record};

/// The names of the files.
pub const FILES: [&str; 7] =
    ["requests.csv", "misses.csv", "forwards.csv", "transfers.csv", "tiers.csv", "links.csv", "workers.csv"];

/// Opens one of the files by name.
pub type Open = Box<dyn FnMut(&str) -> io::Result<Box<dyn Write>>>;

/// Writes the tables of a run.
pub struct Tables {
    open: Open,
    forwards: Writer<Box<dyn Write>>,
    transfers: Writer<Box<dyn Write>>,
    error: Option<WriteError>,
}

impl Tables {
    /// Writes to files that `open` opens.
    ///
    /// # Errors
    /// The first file that cannot be opened.
    pub fn new(mut open: Open) -> Result<Self, WriteError> {
        let forwards = table(&mut open, "forwards.csv", &FORWARDS)?;
        let transfers = table(&mut open, "transfers.csv", &TRANSFERS)?;
        Ok(Self { open, forwards, transfers, error: None })
    }

    /// A command has ended on its device.
    pub(super) fn deed(&mut self, deed: &Deed) {
        if self.error.is_some() {
            return;
        }
        let times = [Some(deed.issued), deed.began, Some(deed.ended)].map(seconds);
        let [issued, began, ended] = times;
        let (file, row) = if let What::Forward { sequences, chunks, prefill_tokens, decode_tokens } = deed.what {
            let numbers = [sequences, chunks, prefill_tokens, decode_tokens].map(|number| number.to_string());
            let mut row = vec![deed.worker.to_string(), deed.op.epoch.to_string(), deed.op.seq.to_string()];
            row.extend([issued, began, ended, ending_name(deed.ending).to_owned(), deed.what.name().to_owned()]);
            row.extend(numbers);
            ("forwards.csv", self.forwards.write_record(row))
        } else {
            let to = if let What::Push { to, .. } = deed.what { to.to_string() } else { String::new() };
            let lane = match deed.what.lane() {
                LaneKind::Compute => "compute",
                LaneKind::CopyIn => "copy_in",
                LaneKind::CopyOut => "copy_out",
                LaneKind::Storage => "storage",
                LaneKind::Wire => "wire",
            };
            let mut row = vec![deed.worker.to_string(), deed.op.epoch.to_string(), deed.op.seq.to_string()];
            row.extend([issued, began, ended, ending_name(deed.ending).to_owned(), deed.what.name().to_owned()]);
            row.extend([lane.to_owned(), to, optional(deed.request)]);
            row.extend([deed.what.pages().to_string(), deed.bytes.to_string()]);
            ("transfers.csv", self.transfers.write_record(row))
        };
        self.error = row.err().map(|error| failed(file, error));
    }

    /// Writes what is known at the end.
    pub(super) fn finish(mut self, collector: &Collector, outcome: &Outcome) -> Result<(), WriteError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        self.forwards.flush().map_err(|error| WriteError { what: "forwards.csv".into(), error })?;
        self.transfers.flush().map_err(|error| WriteError { what: "transfers.csv".into(), error })?;
        self.write("requests.csv", &REQUESTS, |put| {
            for (request, record) in outcome.requests.iter().enumerate() {
                put(requests_row(request, record, collector, outcome.ended))?;
            }
            Ok(())
        })?;
        self.write("misses.csv", &MISSES, |put| {
            for (request, record) in outcome.requests.iter().enumerate() {
                for miss in served(record).into_iter().flat_map(|served| &served.misses) {
                    let detail = match miss.reason {
                        MissReason::Hole { page } => page.to_string(),
                        MissReason::TooShort { threshold } => threshold.to_string(),
                        MissReason::PartialPage
                        | MissReason::LastToken
                        | MissReason::NothingStored
                        | MissReason::Revoked
                        | MissReason::Timeout
                        | MissReason::HostMemory
                        | MissReason::Capacity
                        | MissReason::Checksum
                        | MissReason::Namespace
                        | MissReason::StorageFailed
                        | MissReason::Vanished
                        | MissReason::Recompute
                        | MissReason::LoadBackMinimum
                        | MissReason::Evicted
                        | MissReason::ComputedMeanwhile => String::new(),
                    };
                    let worker = optional(record.prefill.or(record.decode));
                    let reason = miss.reason.name().to_owned();
                    let admitted = seconds(record.admitted);
                    put(vec![request.to_string(), admitted, worker, reason, miss.tokens.to_string(), detail])?;
                }
            }
            Ok(())
        })?;
        self.write("tiers.csv", &TIERS, |put| {
            for (worker, levels) in collector.workers.iter().enumerate() {
                for (name, unit, level) in levels.series() {
                    samples(level, outcome.ended, &[worker.to_string(), name.to_owned(), unit.to_owned()], put)?;
                }
            }
            Ok(())
        })?;
        self.write("links.csv", &LINKS, |put| {
            for (link, level) in &collector.links {
                let name = outcome.links.get(*link as usize).map_or_else(String::new, |(name, _)| name.clone());
                samples(&level.rate, outcome.ended, &[name, level.capacity.to_string()], put)?;
            }
            Ok(())
        })?;
        self.write("workers.csv", &WORKERS, |put| {
            for (worker, record) in outcome.workers.iter().enumerate() {
                let mode = collector.plan.workers.get(worker).map_or("", |plan| mode_name(plan.mode));
                let lanes = record.lanes;
                let own = [
                    ("lives", u64::from(record.lives)),
                    ("steps", record.steps),
                    ("forward_busy_ns", lanes.forward_busy_ns),
                    ("forward_stall_ns", lanes.forward_stall_ns),
                    ("lane_commands", lanes.commands),
                ];
                for (name, value) in own.into_iter().chain(record.metrics.counters()) {
                    put(vec![worker.to_string(), mode.to_owned(), name.to_owned(), value.to_string()])?;
                }
                for (mark, count) in &record.metrics.marks {
                    put(vec![worker.to_string(), mode.to_owned(), format!("marks.{mark}"), count.to_string()])?;
                }
            }
            Ok(())
        })
    }

    fn write(
        &mut self,
        name: &str,
        header: &[&str],
        rows: impl FnOnce(&mut dyn FnMut(Vec<String>) -> csv::Result<()>) -> csv::Result<()>,
    ) -> Result<(), WriteError> {
        let mut writer = table(&mut self.open, name, header)?;
        rows(&mut |row| writer.write_record(row)).map_err(|error| failed(name, error))?;
        writer.flush().map_err(|error| WriteError { what: name.to_owned(), error })
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").field("error", &self.error).finish_non_exhaustive()
    }
}

fn requests_row(request: usize, record: &Record, collector: &Collector, end: Instant) -> Vec<String> {
    let journey = collector.journey(request);
    let mut row = vec![request.to_string(), optional(record.session), end_name(record)];
    row.extend([optional(record.prefill), optional(record.decode)]);
    row.extend([Some(record.arrival), record.routed, record.admitted].map(seconds));
    row.extend([journey.fetched.map(|span| span.0), journey.fetched.map(|span| span.1)].map(seconds));
    row.extend([journey.computed, journey.pushed.map(|span| span.0), journey.pushed.map(|span| span.1)].map(seconds));
    row.extend([record.handed_over, record.first_token, record.last_token, record.finished].map(seconds));
    for ns in [record.ttft_ns(), record.tpot_ns(), record.e2e_ns()] {
        row.push(ns.map_or_else(String::new, |ns| milliseconds(ns as f64).to_string()));
    }
    row.extend(Phase::ALL.map(|phase| milliseconds(journey.time_in(phase, record, end) as f64).to_string()));
    let numbers = [record.prompt_tokens, record.counted_tokens, record.limit, record.tokens];
    row.extend(numbers.map(|number| number.to_string()));
    row.extend([record.retries, record.retractions].map(|number| number.to_string()));
    let parts = |served: Option<&Served>| {
        let part = |value: fn(&Served) -> u32| served.map_or_else(String::new, |served| value(served).to_string());
        let missed: fn(&Served) -> u32 = |served| served.misses.iter().map(|miss| miss.tokens).sum();
        [part(|served| served.device), part(|served| served.host), part(|served| served.storage), part(missed)]
    };
    row.extend(parts(record.served.as_deref()));
    row.extend(parts(record.sink_served.as_deref()));
    row
}

fn samples(
    level: &Level,
    end: Instant,
    head: &[String],
    put: &mut dyn FnMut(Vec<String>) -> csv::Result<()>,
) -> csv::Result<()> {
    if level.max() == 0 {
        return Ok(());
    }
    for sample in level.series(end, usize::MAX).samples {
        let mut row = head.to_vec();
        row.extend([seconds(Some(sample.at)), seconds(Some(Instant(sample.span_ns)))]);
        row.extend([sample.mean.to_string(), sample.min.to_string(), sample.max.to_string(), sample.last.to_string()]);
        put(row)?;
    }
    Ok(())
}

fn table(open: &mut Open, name: &str, header: &[&str]) -> Result<Writer<Box<dyn Write>>, WriteError> {
    let file = open(name).map_err(|error| WriteError { what: name.to_owned(), error })?;
    let mut writer = Writer::from_writer(file);
    writer.write_record(header).map_err(|error| failed(name, error))?;
    Ok(writer)
}

fn failed(name: &str, error: csv::Error) -> WriteError {
    WriteError { what: name.to_owned(), error: error.into() }
}

fn seconds(at: Option<Instant>) -> String {
    at.map_or_else(String::new, |at| format!("{}.{:09}", at.0 / 1_000_000_000, at.0 % 1_000_000_000))
}

fn optional<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

const REQUESTS: [&str; 39] = [
    "request",
    "session",
    "end",
    "prefill_worker",
    "decode_worker",
    "arrival_s",
    "routed_s",
    "admitted_s",
    "l3_fetch_begin_s",
    "l3_fetch_end_s",
    "prompt_computed_s",
    "push_begin_s",
    "push_end_s",
    "handed_over_s",
    "first_token_s",
    "last_token_s",
    "finished_s",
    "ttft_ms",
    "tpot_ms",
    "e2e_ms",
    "queue_ms",
    "prefetch_ms",
    "prefill_ms",
    "hand_off_ms",
    "decode_ms",
    "prompt_tokens",
    "counted_prompt_tokens",
    "limit_tokens",
    "answer_tokens",
    "retries",
    "retractions",
    "l1_tokens",
    "l2_tokens",
    "l3_tokens",
    "computed_tokens",
    "decode_l1_tokens",
    "decode_l2_tokens",
    "decode_l3_tokens",
    "decode_missed_tokens",
];
const MISSES: [&str; 6] = ["request", "admitted_s", "worker", "reason", "tokens", "page_or_threshold"];
const FORWARDS: [&str; 12] = [
    "worker",
    "life",
    "op",
    "issued_s",
    "gpu_begin_s",
    "gpu_end_s",
    "ending",
    "kind",
    "sequences",
    "chunks",
    "prefill_tokens",
    "decode_tokens",
];
const TRANSFERS: [&str; 13] = [
    "worker",
    "life",
    "op",
    "issued_s",
    "begin_s",
    "end_s",
    "ending",
    "kind",
    "lane",
    "to_worker",
    "request",
    "pages",
    "bytes",
];
const TIERS: [&str; 9] = ["worker", "value", "unit", "at_s", "span_s", "mean", "min", "max", "last"];
const LINKS: [&str; 8] = [
    "link",
    "capacity_bytes_per_s",
    "at_s",
    "span_s",
    "mean_bytes_per_s",
    "min_bytes_per_s",
    "max_bytes_per_s",
    "last_bytes_per_s",
];
const WORKERS: [&str; 4] = ["worker", "mode", "counter", "value"];

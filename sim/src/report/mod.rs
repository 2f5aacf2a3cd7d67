//! What a run has shown, twice: flat values by name (for gates and `--json`) and a page that a person can read.

pub mod cdf;
pub mod collect;
pub mod html;

mod limits;
mod names;
mod page;
pub mod perfetto;
pub mod series;
pub mod tables;

use pd_core::event::{Finish, Served};
use pd_core::metrics::Metrics;

use crate::link::LinkUse;
use crate::record::{End, Outcome, Record};
use crate::scenario::expect::Values;
use crate::stats::{Samples, Summary};

pub use self::limits::what_limits;
pub use self::names::Names;
pub use self::page::page;

/// Requests up to which a report has values and a line for each of them.
pub const REQUESTS_LISTED_MAX: usize = 24;

/// Latencies of the requests that got their whole answer.
#[derive(Clone, Copy, Debug)]
pub struct Latencies {
    /// Time to first token.
    pub ttft: Option<Summary>,
    /// Time between tokens, over all tokens.
    pub itl: Option<Summary>,
    /// Time per token behind the first, by request.
    pub tpot: Option<Summary>,
    /// Time to the last token.
    pub e2e: Option<Summary>,
    /// From arrival to admission.
    pub queue: Option<Summary>,
}

impl Latencies {
    /// Of a run.
    #[must_use]
    pub fn of(outcome: &Outcome) -> Self {
        let over = |value: fn(&Record) -> Option<u64>| {
            let mut samples = Samples::new();
            samples.extend(outcome.requests.iter().filter(|record| record.is_complete()).filter_map(value));
            let sorted = samples.finish();
            (!sorted.values().is_empty()).then(|| sorted.summary())
        };
        Self {
            ttft: over(Record::ttft_ns),
            itl: (outcome.itl.count() > 0).then(|| outcome.itl.summary()),
            tpot: over(Record::tpot_ns),
            e2e: over(Record::e2e_ns),
            queue: over(|record| Some(record.admitted?.ns_since(record.arrival))),
        }
    }
}

/// Tokens of prompts by source, over all requests that were admitted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hits {
    /// Tokens of admitted prompts.
    pub prompt: u64,
    /// From L1.
    pub device: u64,
    /// From L2.
    pub host: u64,
    /// From L3.
    pub storage: u64,
}

impl Hits {
    /// Of a run.
    #[must_use]
    pub fn of(outcome: &Outcome) -> Self {
        let mut hits = Self::default();
        for served in outcome.requests.iter().filter_map(served) {
            hits.prompt += u64::from(served.prompt);
            hits.device += u64::from(served.device);
            hits.host += u64::from(served.host);
            hits.storage += u64::from(served.storage);
        }
        hits
    }

    /// Tokens that were not computed.
    #[must_use]
    pub const fn cached(&self) -> u64 {
        self.device + self.host + self.storage
    }
}

/// How long requests were served: up to the last answer or, if some are left, to the end. What a run lingers afterwards,
/// for its writes, is nobody's latency.
pub(crate) fn served_ns(outcome: &Outcome) -> f64 {
    let ends = outcome.requests.iter().map(|record| record.finished.unwrap_or(outcome.ended));
    (ends.max().unwrap_or(outcome.ended).0 as f64).max(1.0)
}

/// Share of the time of service, [`served_ns`], for which a link carried as much as it can, in percent.
pub(crate) fn busy_percent(outcome: &Outcome, served_ns: f64, used: &LinkUse) -> f64 {
    let stretch = outcome.ended.0 as f64 / served_ns;
    (100.0 * used.bytes as f64 / (used.bytes_max as f64).max(1.0) * stretch).min(100.0)
}

/// Where a prompt's KV came from: at the worker that computed it or, if no prefill did, at the decode worker.
pub(crate) fn served(record: &Record) -> Option<&Served> {
    record.served.as_deref().or(record.sink_served.as_deref())
}

fn milliseconds(ns: f64) -> f64 {
    ns / 1e6
}

fn put_summary(values: &mut Values, name: &str, summary: Option<Summary>) {
    let Some(summary) = summary else { return };
    for (part, ns) in [
        ("mean", summary.mean),
        ("p50", summary.p50 as f64),
        ("p90", summary.p90 as f64),
        ("p99", summary.p99 as f64),
        ("max", summary.max as f64),
    ] {
        values.insert(format!("{name}.{part}_ms"), milliseconds(ns));
    }
}

fn put_served(values: &mut Values, prefix: &str, served: &Served) {
    values.insert(format!("{prefix}.device_tokens"), f64::from(served.device));
    values.insert(format!("{prefix}.host_tokens"), f64::from(served.host));
    values.insert(format!("{prefix}.storage_tokens"), f64::from(served.storage));
    let computed: u32 = served.misses.iter().map(|miss| miss.tokens).sum();
    values.insert(format!("{prefix}.missed_tokens"), f64::from(computed));
}

/// All values of a run by name.
#[must_use]
pub fn values(outcome: &Outcome) -> Values {
    let mut values = Values::new();
    let mut put = |name: &str, value: f64| {
        values.insert(name.to_owned(), value);
    };
    let requests = &outcome.requests;
    let count = |want: fn(&Record) -> bool| requests.iter().filter(|record| want(record)).count() as f64;
    put("requests.arrived", requests.len() as f64);
    put("requests.finished", count(Record::is_complete));
    put(
        "requests.refused",
        count(|record| matches!(record.end, Some(End::Refused(_) | End::NotRouted(_) | End::RouterLost))),
    );
    put("requests.unfinished", count(|record| record.end.is_none()));
    put("requests.failed", count(|record| matches!(record.end, Some(End::Finished(Finish::Failed(_))))));
    put("requests.cancelled", count(|record| record.end == Some(End::Finished(Finish::Cancelled))));
    put("requests.late", count(|record| record.end == Some(End::Finished(Finish::Deadline))));
    put("requests.retries", requests.iter().map(|record| f64::from(record.retries)).sum());
    put("requests.retractions", requests.iter().map(|record| f64::from(record.retractions)).sum());
    let output: u64 = requests.iter().map(|record| u64::from(record.tokens)).sum();
    let input: u64 = requests.iter().filter(|one| one.is_complete()).map(|one| u64::from(one.prompt_tokens)).sum();
    let seconds = served_ns(outcome) / 1e9;
    put("tokens.input", input as f64);
    put("tokens.output", output as f64);
    put("throughput.input_tokens_per_second", input as f64 / seconds);
    put("throughput.output_tokens_per_second", output as f64 / seconds);
    put("throughput.requests_per_second", count(Record::is_complete) / seconds);
    put("run.seconds", seconds);
    put("run.events", outcome.events as f64);
    put("run.violations", outcome.violations.len() as f64);
    put("run.lost_letters", outcome.lost_letters as f64);
    put("events.idle", outcome.idle.len() as f64);

    let hits = Hits::of(outcome);
    put("hits.prompt_tokens", hits.prompt as f64);
    put("hits.device_tokens", hits.device as f64);
    put("hits.host_tokens", hits.host as f64);
    put("hits.storage_tokens", hits.storage as f64);
    put("hits.rate_percent", 100.0 * hits.cached() as f64 / (hits.prompt as f64).max(1.0));
    put("transfers.count", outcome.transfers.len() as f64);
    put("transfers.bytes", outcome.transfers.iter().map(|transfer| transfer.bytes).sum::<u64>() as f64);

    let latencies = Latencies::of(outcome);
    for (name, summary) in [
        ("ttft", latencies.ttft),
        ("itl", latencies.itl),
        ("tpot", latencies.tpot),
        ("e2e", latencies.e2e),
        ("queue", latencies.queue),
    ] {
        put_summary(&mut values, name, summary);
    }
    for record in requests {
        let end = match record.end {
            None => continue,
            Some(End::Finished(finish)) => format!("finish.{}", word(&format!("{finish:?}"))),
            Some(End::Refused(refusal)) => format!("refused.{}", word(&format!("{refusal:?}"))),
            Some(End::NotRouted(refusal)) => format!("refused.{}", word(&format!("{refusal:?}"))),
            Some(End::RouterLost) => "refused.router_lost".to_owned(),
        };
        *values.entry(end).or_default() += 1.0;
        for miss in served(record).into_iter().flat_map(|served| &served.misses) {
            *values.entry(format!("misses.{}", miss.reason.name())).or_default() += f64::from(miss.tokens);
        }
    }
    let totals = totals(outcome);
    for (name, value) in totals.counters() {
        values.insert(format!("workers.{name}"), value as f64);
    }
    for (mark, value) in &totals.marks {
        values.insert(format!("marks.{mark}"), *value as f64);
    }
    if let Some(router) = &outcome.router {
        for (name, value) in router.counters() {
            values.insert(format!("router.{name}"), value as f64);
        }
    }
    let served = served_ns(outcome);
    for (name, used) in &outcome.links {
        values.insert(format!("links.{name}.bytes"), used.bytes as f64);
        values.insert(format!("links.{name}.busy_percent"), busy_percent(outcome, served, used));
    }
    for store in &outcome.stores {
        values.insert(format!("stores.{}.objects", store.name), store.objects as f64);
        values.insert(format!("stores.{}.bytes", store.name), store.bytes as f64);
    }
    if requests.len() <= REQUESTS_LISTED_MAX {
        for (ordinal, record) in requests.iter().enumerate() {
            let prefix = format!("request.{ordinal}");
            if let Some(served) = &record.served {
                put_served(&mut values, &prefix, served);
            }
            if let Some(served) = &record.sink_served {
                put_served(&mut values, &format!("{prefix}.sink"), served);
            }
            values.insert(format!("{prefix}.tokens"), f64::from(record.tokens));
            if let Some(ttft) = record.ttft_ns() {
                values.insert(format!("{prefix}.ttft_ms"), milliseconds(ttft as f64));
            }
        }
    }
    values
}

/// Counters of all workers together.
#[must_use]
pub fn totals(outcome: &Outcome) -> Metrics {
    let mut totals = Metrics::default();
    for worker in &outcome.workers {
        totals.merge(&worker.metrics);
    }
    totals
}

/// How a request ended, as one word.
pub(crate) fn end_name(record: &Record) -> String {
    match record.end {
        None => "unfinished".to_owned(),
        Some(End::Finished(finish)) => word(&format!("{finish:?}")),
        Some(End::Refused(refusal)) => word(&format!("{refusal:?}")),
        Some(End::NotRouted(refusal)) => word(&format!("{refusal:?}")),
        Some(End::RouterLost) => "router_lost".to_owned(),
    }
}

/// `QueueFull { max: 3 }` as `queue_full`; `Failed(Lane(Io))` as `failed_lane_io`.
fn word(debug: &str) -> String {
    let mut word = String::new();
    for letter in debug.chars().take_while(|letter| *letter != ' ' && *letter != '{') {
        match letter {
            '(' => word.push('_'),
            ')' => {}
            letter if letter.is_ascii_uppercase() => {
                if !word.is_empty() && !word.ends_with('_') {
                    word.push('_');
                }
                word.push(letter.to_ascii_lowercase());
            }
            letter => word.push(letter),
        }
    }
    word
}

/// The report as one JSON object: name, hash, values and the gates that did not hold.
#[must_use]
pub fn json(name: &str, outcome: &Outcome, values: &Values, broken: &[crate::scenario::expect::Broken]) -> String {
    let broken: Vec<_> =
        broken.iter().map(|broken| serde_json::json!({ "gate": broken.gate, "found": broken.found })).collect();
    serde_json::json!({
        "scenario": name,
        "hash": format!("{:016x}", outcome.hash),
        "values": values,
        "broken": broken,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use pd_core::event::{Failure, Finish};

    use super::{names, values, word};
    use crate::record::End;

    #[test]
    fn who_went_away_or_was_late_did_not_fail() {
        let count = |finish, name: &str| values(&names::one_request(End::Finished(finish)))[name];
        assert_eq!(count(Finish::Cancelled, "requests.cancelled"), 1.0);
        assert_eq!(count(Finish::Cancelled, "requests.failed"), 0.0);
        assert_eq!(count(Finish::Deadline, "requests.late"), 1.0);
        assert_eq!(count(Finish::Deadline, "requests.failed"), 0.0);
        assert_eq!(count(Finish::Failed(Failure::Memory), "requests.failed"), 1.0);
    }

    #[test]
    fn names_of_variants_become_words() {
        assert_eq!(word("QueueFull { max: 3 }"), "queue_full");
        assert_eq!(word("Failed(Lane(Io))"), "failed_lane_io");
        assert_eq!(word("Length"), "length");
    }
}

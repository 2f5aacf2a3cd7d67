//! Counters, gauges and histograms in Prometheus' text form, under the names of sglang-router where they mean the same.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pd_core::config::Mode;
use pd_core::router::BreakerView;

use super::App;
use super::members::mode_name;
use crate::exposition::{Exposition, Kind, labels as join};

/// What the shell counts; the machine counts the rest.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    counters: BTreeMap<&'static str, BTreeMap<String, u64>>,
    histograms: BTreeMap<&'static str, BTreeMap<String, Histogram>>,
}

#[derive(Debug, Default)]
struct Histogram {
    counts: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

impl Metrics {
    pub(super) fn count(&self, name: &'static str, labels: &[(&str, &str)]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let series = inner.counters.entry(name).or_default();
        // Labels come from clients, too; their number has an end.
        let labels = join(labels);
        if series.len() < SERIES_MAX || series.contains_key(&labels) {
            *series.entry(labels).or_default() += 1;
        }
    }

    pub(super) fn observe(&self, name: &'static str, labels: &[(&str, &str)], value: Duration) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let series = inner.histograms.entry(name).or_default();
        let labels = join(labels);
        if series.len() >= SERIES_MAX && !series.contains_key(&labels) {
            return;
        }
        let histogram = series.entry(labels).or_default();
        let seconds = value.as_secs_f64();
        histogram.count += 1;
        histogram.sum += seconds;
        for (count, bound) in histogram.counts.iter_mut().zip(BUCKETS) {
            *count += u64::from(seconds <= bound);
        }
    }
}

impl App {
    /// The whole exposition.
    pub(super) fn exposition(&self) -> String {
        let mut text = Exposition::default();
        {
            let inner = self.metrics.inner.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, series) in &inner.counters {
                text.family(name, Kind::Counter, "");
                for (labels, value) in series {
                    text.sample(name, labels, value);
                }
            }
            for (name, series) in &inner.histograms {
                text.family(name, Kind::Histogram, "");
                for (labels, histogram) in series {
                    let comma = if labels.is_empty() { "" } else { "," };
                    let bounds = BUCKETS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
                    for (bound, count) in bounds.zip(histogram.counts.iter().chain([&histogram.count])) {
                        text.sample(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"{bound}\""), count);
                    }
                    text.sample(&format!("{name}_sum"), labels, histogram.sum);
                    text.sample(&format!("{name}_count"), labels, histogram.count);
                }
            }
        }
        self.expose_workers(&mut text);
        let (machine, aborted) = self.brain.metrics();
        for (name, value) in machine.counters() {
            let name = format!("pd_router_{name}_total");
            text.single(&name, Kind::Counter, "", "", value);
        }
        for (name, kind, value) in [
            ("pd_router_aborts_total", Kind::Counter, aborted),
            ("pd_router_index_entries", Kind::Gauge, u64::from(self.brain.look(|router| router.index_entries()))),
            ("smg_http_connections_active", Kind::Gauge, self.brain.live() as u64),
        ] {
            text.single(name, kind, "", "", value);
        }
        text.into_text()
    }

    fn expose_workers(&self, text: &mut Exposition) {
        let members = self.members.all();
        let name = "smg_worker_pool_size";
        text.family(name, Kind::Gauge, "");
        for mode in [Mode::Unified, Mode::Prefill, Mode::Decode] {
            let count = members.iter().filter(|member| member.spec.mode == mode && member.is_up()).count();
            text.sample(name, &join(&[("worker_type", mode_name(mode)), ("connection_mode", "http")]), count);
        }
        let labels: Vec<String> =
            members.iter().map(|member| join(&[("worker", &member.spec.target.to_string())])).collect();
        let mut family = |name: &str, kind: Kind, values: Vec<u64>| {
            text.family(name, kind, "");
            for (labels, value) in labels.iter().zip(values) {
                text.sample(name, labels, value);
            }
        };
        let each = |value: &dyn Fn(&super::members::Member) -> u64| members.iter().map(|one| value(one)).collect();
        family("smg_worker_health", Kind::Gauge, each(&|one| u64::from(one.is_up())));
        family("smg_worker_requests_active", Kind::Gauge, each(&|one| u64::from(one.active.load(Ordering::Relaxed))));
        // 0 closed, 1 open, 2 half-open, as sglang-router has it; the worse of the worker's two roles.
        let breakers: Vec<_> = self.brain.look(|router| router.breakers().collect());
        let state = |id| {
            let states = breakers.iter().filter(|(worker, ..)| *worker == id).map(|(_, _, view)| match view {
                BreakerView::Closed { .. } => 0,
                BreakerView::Open { .. } => 1,
                BreakerView::HalfOpen { .. } => 2,
            });
            states.max().unwrap_or(0)
        };
        family("smg_worker_cb_state", Kind::Gauge, each(&|one| state(one.id)));
        let name = "smg_worker_health_checks_total";
        text.family(name, Kind::Counter, "");
        for member in &members {
            let worker = member.spec.target.to_string();
            for (result, count) in [("success", &member.checks_ok), ("failure", &member.checks_bad)] {
                let labels = join(&[("worker", &worker), ("result", result)]);
                text.sample(name, &labels, count.load(Ordering::Relaxed));
            }
        }
    }
}

/// vLLM's bounds of the time to first token: SGLang's begin at 0.1 s, where a cached prompt is long over.
const BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Most series of a family.
const SERIES_MAX: usize = 256;

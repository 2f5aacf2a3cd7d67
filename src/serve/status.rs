//! What the rest of the process sees of a worker: a snapshot that its thread renews between steps.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pd_core::kv::Occupancy;
use pd_core::metrics::Metrics;
use pd_core::sched::Load;
use pd_core::worker::Worker;
use pd_net::exposition::{self, Exposition, Kind};

/// A worker at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) load: Load,
    pub(crate) tiers: Occupancy,
    pub(crate) metrics: Metrics,
    pub(crate) rooms: usize,
    pub(crate) ops_in_flight: usize,
    /// Tokens generated per second since the snapshot before.
    pub(crate) tokens_per_second: f64,
}

/// Where the snapshot lies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status(Arc<Mutex<Snapshot>>);

impl Status {
    /// The last snapshot.
    pub(crate) fn get(&self) -> Snapshot {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, snapshot: Snapshot) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }
}

/// Renews a [`Status`], not more often than is of use to anybody.
#[derive(Debug)]
pub(crate) struct Publisher {
    status: Status,
    last: Instant,
    generated: u64,
    /// Something happened since.
    is_stale: bool,
}

impl Publisher {
    pub(crate) fn new(status: Status) -> Self {
        Self { status, last: Instant::now(), generated: 0, is_stale: true }
    }

    /// How long the worker's thread may sleep before it calls again.
    pub(crate) fn patience(&self) -> Duration {
        if self.is_stale { PAUSE / 20 } else { PAUSE }
    }

    /// Called between steps; `is_idle` if nothing is to be done now.
    pub(crate) fn publish(&mut self, worker: &Worker, is_idle: bool) {
        self.is_stale |= !is_idle;
        let since = self.last.elapsed();
        if since < PAUSE && !(is_idle && self.is_stale) {
            return;
        }
        (self.last, self.is_stale) = (Instant::now(), false);
        let metrics = worker.metrics().clone();
        let new = metrics.generated_tokens.saturating_sub(self.generated);
        self.generated = metrics.generated_tokens;
        self.status.put(Snapshot {
            load: worker.load(),
            tiers: worker.kv().occupancy(),
            rooms: worker.transfer().rooms(),
            ops_in_flight: worker.ops_in_flight(),
            tokens_per_second: new as f64 / since.as_secs_f64(),
            metrics,
        });
    }
}

impl Snapshot {
    /// Share of prompt tokens that came from a tier, 0 to 1.
    pub(crate) fn hit_rate(&self) -> f64 {
        let hits = self.metrics.device_hit_tokens + self.metrics.host_hit_tokens + self.metrics.storage_hit_tokens;
        hits as f64 / ((hits + self.metrics.computed_tokens) as f64).max(1.0)
    }

    /// All of it in Prometheus' text format: under SGLang's names where the meaning is equal, under ours elsewhere.
    pub(crate) fn prometheus(&self, model: &str, page_size: u32) -> String {
        let mut text = Exposition::default();
        let labels = exposition::labels(&[("model_name", model)]);
        let mut put = |kind, name: &str, help: &str, value: f64| text.single(name, kind, help, &labels, value);
        let (metrics, tiers) = (&self.metrics, &self.tiers);
        let used = f64::from(tiers.device_used) / f64::from(tiers.device_total.max(1));
        put(Kind::Gauge, "sglang:num_running_reqs", "Admitted requests.", f64::from(self.load.running));
        put(Kind::Gauge, "sglang:num_queue_reqs", "Requests that wait.", f64::from(self.load.waiting));
        put(
            Kind::Gauge,
            "sglang:num_used_tokens",
            "Tokens in L1.",
            f64::from(tiers.device_used) * f64::from(page_size),
        );
        put(Kind::Gauge, "sglang:token_usage", "Share of L1 in use.", used);
        put(Kind::Gauge, "sglang:gen_throughput", "Tokens generated per second, lately.", self.tokens_per_second);
        put(Kind::Gauge, "sglang:cache_hit_rate", "Share of prompt tokens from a tier.", self.hit_rate());
        let prompts =
            metrics.computed_tokens + metrics.device_hit_tokens + metrics.host_hit_tokens + metrics.storage_hit_tokens;
        put(Kind::Counter, "sglang:prompt_tokens_total", "Prompt tokens, cached ones included.", prompts as f64);
        put(Kind::Counter, "sglang:generation_tokens_total", "Tokens generated.", metrics.generated_tokens as f64);
        put(Kind::Counter, "sglang:num_requests_total", "Requests that were taken.", metrics.requests as f64);
        put(
            Kind::Counter,
            "sglang:num_retractions_total",
            "Sequences that gave pages back.",
            metrics.retractions as f64,
        );
        put(Kind::Gauge, "pd_rooms", "Hand-offs that are open.", self.rooms as f64);
        put(Kind::Gauge, "pd_commands", "Commands in flight.", self.ops_in_flight as f64);
        for (name, pages) in [
            ("device_used", tiers.device_used),
            ("device_pinned", tiers.device_pinned),
            ("device_total", tiers.device_total),
            ("host_used", tiers.host_used),
            ("host_pinned", tiers.host_pinned),
            ("host_total", tiers.host_total),
        ] {
            put(Kind::Gauge, &format!("pd_{name}_pages"), "Pages of a tier.", f64::from(pages));
        }
        for (name, value) in metrics.counters() {
            put(Kind::Counter, &format!("pd_{name}_total"), "See Metrics in pd-core.", value as f64);
        }
        text.family("pd_mark_total", Kind::Counter, "Rare branches that were taken.");
        for (mark, count) in &metrics.marks {
            text.sample("pd_mark_total", &exposition::labels(&[("mark", mark)]), count);
        }
        text.into_text()
    }
}

/// Longest age of a snapshot of a worker that is busy.
const PAUSE: Duration = Duration::from_millis(100);

//! One world at one rate: does it keep its promises?
//!
//! Arrivals come for a fixed span; those of the first tenth are warm-up and are not judged, and nor is what the world
//! does after the last one, except that each request that was taken has to end. Rates scale the load itself: the gaps
//! between arrivals shrink, contents and lengths are the same at all rates and for all candidates.

use std::time::Duration;

use pd_core::config::Mode;
use pd_core::time::{Instant, nanos};

use crate::load::LoadConfig;
use crate::record::{Outcome, Record};
use crate::report::{Hits, busy_percent, served_ns};
use crate::setup::{Arrival, Setup, Source};
use crate::units::{Count, Rate, Span};
use crate::world::World;

/// What requests are promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Goal {
    /// Longest time to the first token.
    pub ttft: Duration,
    /// Longest time per token behind it.
    pub tpot: Duration,
    /// How many requests of a thousand must have both.
    pub attain_per_mille: u32,
    /// For how long requests arrive.
    pub span: Duration,
}

/// What a world at one rate has shown.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Trial {
    /// Times the rate of the load as it is written.
    pub factor: f64,
    /// Judged requests.
    pub judged: u64,
    /// Judged requests per second.
    pub rate: f64,
    /// Those with both promises kept.
    pub kept: u64,
    /// Those whose first token was late or never came.
    pub late_first: u64,
    /// Those whose other tokens were late.
    pub late_rest: u64,
    /// How busy things were while requests were served.
    pub usage: Usage,
}

/// Shares of time, in percent, of the busiest thing of each kind; GPUs as means over their workers.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Usage {
    /// GPUs that only prefill, or do both.
    pub prefill: f64,
    /// GPUs that only decode: time with a step, however small its batch.
    pub decode: f64,
    /// Links between workers.
    pub link: f64,
    /// Copies between GPU and host.
    pub copy: f64,
    /// Disks.
    pub disk: f64,
    /// Prompt tokens that were cached.
    pub hits: f64,
    /// Sequences that had to give their pages back.
    pub retractions: f64,
}

impl Goal {
    /// True if a trial keeps the promise.
    #[must_use]
    pub fn is_met(&self, trial: &Trial) -> bool {
        trial.judged > 0 && trial.kept * 1000 >= trial.judged * u64::from(self.attain_per_mille)
    }

    fn warm_until(&self) -> Instant {
        Instant(nanos(self.span) / 10)
    }

    fn end(&self) -> Instant {
        Instant(nanos(self.span))
    }

    /// Runs a world whose load has been scaled by `factor`.
    #[must_use]
    pub fn run(&self, mut setup: Setup, factor: f64) -> Trial {
        let modes: Vec<Mode> = setup.workers.iter().map(|worker| worker.config.mode).collect();
        let end = self.end();
        setup.loads = setup.loads.into_iter().map(|inner| Box::new(Window { inner, end }) as Box<dyn Source>).collect();
        setup.linger = Duration::ZERO;
        setup.until = None;
        let outcome = World::new(setup).run();
        let mut trial = Trial { factor, usage: Usage::of(&outcome, &modes), ..Trial::default() };
        for record in outcome.requests.iter().filter(|record| record.arrival >= self.warm_until()) {
            trial.judged += 1;
            *match self.judge(record) {
                Promise::Kept => &mut trial.kept,
                Promise::LateFirst => &mut trial.late_first,
                Promise::LateRest => &mut trial.late_rest,
            } += 1;
        }
        // A trace may be over before the span is.
        let last = outcome.requests.last().map_or(end, |record| record.arrival);
        let end = if last.0 < end.0 / 10 * 9 { last } else { end };
        trial.rate = trial.judged as f64 / (end.0.saturating_sub(self.warm_until().0).max(1) as f64 / 1e9);
        trial
    }

    fn judge(&self, record: &Record) -> Promise {
        let is_within = |ns: Option<u64>, limit: Duration| ns.is_none_or(|ns| ns <= nanos(limit));
        if !record.is_complete() || !is_within(record.ttft_ns(), self.ttft) {
            Promise::LateFirst
        } else if is_within(record.tpot_ns(), self.tpot) {
            Promise::Kept
        } else {
            Promise::LateRest
        }
    }
}

/// What became of a request's promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Promise {
    Kept,
    /// The first token was late, or the answer never complete.
    LateFirst,
    LateRest,
}

/// Requests up to an instant.
#[derive(Debug)]
struct Window {
    inner: Box<dyn Source>,
    end: Instant,
}

impl Source for Window {
    fn next(&self) -> Option<Instant> {
        self.inner.next().filter(|at| *at <= self.end)
    }
    fn take(&mut self) -> Arrival {
        self.inner.take()
    }
    fn finished(&mut self, now: Instant, ordinal: u64, is_complete: bool) {
        self.inner.finished(now, ordinal, is_complete);
    }
    fn total(&self) -> u64 {
        self.inner.total()
    }
}

impl Usage {
    fn of(outcome: &Outcome, modes: &[Mode]) -> Self {
        let total = served_ns(outcome);
        let gpus = |want: fn(Mode) -> bool| {
            let busy = outcome.workers.iter().zip(modes).filter(|(_, mode)| want(**mode));
            let busy: Vec<f64> = busy.map(|(worker, _)| 100.0 * worker.lanes.forward_busy_ns as f64 / total).collect();
            (busy.iter().fold(0.0, |sum, one| sum + one) / (busy.len() as f64).max(1.0)).min(100.0)
        };
        let link = |kinds: &[&str]| {
            let links = outcome.links.iter().filter(|(name, _)| kinds.iter().any(|kind| name.contains(kind)));
            links.map(|(_, used)| busy_percent(outcome, total, used)).fold(0.0, f64::max)
        };
        let disks = outcome.stores.iter().map(|store| store.disk.read.busy_ns.max(store.disk.write.busy_ns));
        let hits = Hits::of(outcome);
        Self {
            prefill: gpus(|mode| mode != Mode::Decode),
            decode: gpus(|mode| mode == Mode::Decode),
            link: link(&["nvlink", "nic", "fabric"]),
            copy: link(&["h2d", "d2h"]),
            disk: (100.0 * disks.max().unwrap_or(0) as f64 / total).min(100.0),
            hits: 100.0 * hits.cached() as f64 / (hits.prompt as f64).max(1.0),
            retractions: outcome.requests.iter().map(|record| u64::from(record.retractions)).sum::<u64>() as f64,
        }
    }
}

/// Makes a load's requests come `factor` times as often, and long enough.
///
/// # Errors
/// The load has no rate of its own, and which has.
pub(super) fn scale(load: &mut LoadConfig, factor: f64) -> Result<(), String> {
    let rate = |rate: &mut Rate| {
        let interval = rate.span_ns as f64 / rate.count as f64 / factor;
        // Counts of a long span keep more digits than a short span does.
        *rate = Rate { count: RATE_UNIT, span_ns: (interval * RATE_UNIT as f64).round().max(1.0) as u64 };
    };
    let span =
        |span: &mut Span| *span = Span(Duration::from_nanos((span.ns() as f64 / factor).round().max(1.0) as u64));
    let endless = Count(u64::from(u32::MAX));
    match load {
        LoadConfig::Poisson(load) => {
            rate(&mut load.rate);
            load.requests = endless;
        }
        LoadConfig::OnOff(load) => {
            rate(&mut load.rate);
            load.requests = endless;
        }
        LoadConfig::Fixed(load) => {
            span(&mut load.every);
            load.requests = endless;
        }
        LoadConfig::Burst(load) => {
            span(&mut load.every);
            load.requests = endless;
        }
        LoadConfig::Sessions(load) => {
            let Some(starts) = &mut load.rate else {
                return Err("a load of sessions that all begin at once has no rate; give it one".to_owned());
            };
            rate(starts);
            load.sessions = Count(u64::from(u32::MAX / load.turns.max().max(1)));
        }
        LoadConfig::Trace(load) => load.speed *= factor,
        LoadConfig::Closed(_) | LoadConfig::List(_) | LoadConfig::Journal(_) => {
            return Err("a load of kind \"closed\", \"list\" or \"journal\" has no rate to look for; \
                        take poisson, fixed, burst, on_off, sessions with a rate, or trace"
                .to_owned());
        }
    }
    Ok(())
}

/// Requests by which scaled rates are counted.
const RATE_UNIT: u64 = 1_000_000;

//! So many clients, each of which asks its next question after its answer and a pause.

use pd_core::rng::{Rng, Stream};
use pd_core::time::Instant;

use super::config::ClosedConfig;
use super::dice::Pause;
use super::open::Requests;
use super::{Arrival, Context, LoadError};

/// A closed loop. Which client asks does not matter: the k-th request is the same in every run of a seed.
#[derive(Debug)]
pub(super) struct Closed {
    start: Instant,
    /// Clients that have not asked yet.
    fresh: u32,
    left: u32,
    think: Pause,
    rng: Rng,
    requests: Requests,
}

impl Closed {
    pub(super) fn new(config: &ClosedConfig, cx: &Context<'_>) -> Result<Self, LoadError> {
        Ok(Self {
            start: Instant(config.start.ns()),
            fresh: cx.count("concurrency", config.concurrency.0)?,
            left: cx.count("requests", config.requests.0)?,
            think: config.think.clone(),
            rng: cx.rng(Stream::Think),
            requests: Requests::new(&config.drawn(), cx)?,
        })
    }

    pub(super) fn next_arrival(&mut self) -> Option<(Instant, Arrival)> {
        self.fresh = self.fresh.checked_sub(1)?;
        self.ask(self.start)
    }

    pub(super) fn ended(&mut self, now: Instant) -> Option<(Instant, Arrival)> {
        let pause_ns = self.think.draw_ns(&mut self.rng);
        self.ask(now.after_ns(pause_ns))
    }

    fn ask(&mut self, at: Instant) -> Option<(Instant, Arrival)> {
        self.left = self.left.checked_sub(1)?;
        Some((at, self.requests.draw()))
    }
}

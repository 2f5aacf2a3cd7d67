//! Loads whose arrivals do not wait for answers, and the drawing of requests that share prefixes.

use pd_core::rng::{Rng, Stream};
use pd_core::time::Instant;

use crate::units::{Rate, Span};

use super::config::{Drawn, PrefixConfig};
use super::content::{Chain, Source};
use super::dice::{Lengths, exponential_q32};
use super::{Arrival, Context, LoadError, ordinal};

/// Arrivals of one process.
#[derive(Debug)]
pub(super) struct Open {
    process: Process,
    /// Time that the process has run, in nanoseconds with 32 more bits behind the point: gaps are not rounded one by one.
    clock_q32: u128,
    start: Instant,
    left: u32,
    rng: Rng,
    requests: Requests,
}

/// When requests arrive.
#[derive(Debug)]
pub(super) enum Process {
    Poisson { gap_q32: u128 },
    Fixed { every_ns: u64 },
    Burst { size: u32, every_ns: u64 },
    OnOff { gap_q32: u128, on_ns: u64, off_ns: u64 },
}

/// Draws one request after the other.
#[derive(Debug)]
pub(super) struct Requests {
    index: u32,
    empty: Chain,
    issued: u32,
    prompt_tokens: Lengths,
    output_tokens: Lengths,
    lengths: Rng,
    prefixes: Prefixes,
    content: Rng,
    priority: i32,
}

/// Common prefixes with their weights.
#[derive(Debug)]
pub(super) struct Prefixes {
    /// Source, length, and the sum of weights up to and with this one.
    groups: Vec<(Source, u32, u64)>,
}

impl Open {
    pub(super) fn new(drawn: &Drawn<'_>, process: Process, cx: &Context<'_>) -> Result<Self, LoadError> {
        Ok(Self {
            process,
            clock_q32: 0,
            start: Instant(drawn.start.ns()),
            left: cx.count("requests", drawn.requests)?,
            rng: cx.rng(Stream::Arrivals),
            requests: Requests::new(drawn, cx)?,
        })
    }

    pub(super) fn next_arrival(&mut self) -> Option<(Instant, Arrival)> {
        self.left = self.left.checked_sub(1)?;
        let at = self.start.after_ns(self.process.next_ns(self.requests.issued(), &mut self.clock_q32, &mut self.rng));
        Some((at, self.requests.draw()))
    }
}

impl Process {
    pub(super) fn poisson(rate: Rate) -> Self {
        Self::Poisson { gap_q32: rate.interval_q32() }
    }

    pub(super) fn fixed(every: Span) -> Self {
        Self::Fixed { every_ns: every.ns() }
    }

    pub(super) fn burst(size: u64, every: Span, cx: &Context<'_>) -> Result<Self, LoadError> {
        Ok(Self::Burst { size: cx.count("size", size)?, every_ns: every.ns() })
    }

    pub(super) fn on_off(rate: Rate, on: Span, off: Span, cx: &Context<'_>) -> Result<Self, LoadError> {
        if on == Span::default() {
            return Err(cx.error("on", "is 0s; expected a time in which requests arrive"));
        }
        Ok(Self::OnOff { gap_q32: rate.interval_q32(), on_ns: on.ns(), off_ns: off.ns() })
    }

    /// When the request numbered `count` arrives, in nanoseconds after the start.
    pub(super) fn next_ns(&self, count: u32, clock_q32: &mut u128, rng: &mut Rng) -> u64 {
        let mut clock_ns = |gap_q32| {
            *clock_q32 += exponential_q32(gap_q32, rng);
            u64::try_from(*clock_q32 >> 32).unwrap_or(u64::MAX)
        };
        match self {
            Self::Poisson { gap_q32 } => clock_ns(*gap_q32),
            Self::Fixed { every_ns } => every_ns.saturating_mul(u64::from(count)),
            Self::Burst { size, every_ns } => every_ns.saturating_mul(u64::from(count / size)),
            Self::OnOff { gap_q32, on_ns, off_ns } => {
                // The clock runs only while the load is on.
                let on = clock_ns(*gap_q32);
                on.saturating_add((on / on_ns).saturating_mul(*off_ns))
            }
        }
    }
}

impl Requests {
    pub(super) fn new(drawn: &Drawn<'_>, cx: &Context<'_>) -> Result<Self, LoadError> {
        let prefixes = Prefixes::new(drawn.prefixes, cx)?;
        let longest = prefixes.max() + u64::from(drawn.prompt_tokens.max());
        cx.length("prompt_tokens", longest)?;
        Ok(Self {
            index: cx.index,
            empty: cx.chain(),
            issued: 0,
            prompt_tokens: drawn.prompt_tokens.clone(),
            output_tokens: drawn.output_tokens.clone(),
            lengths: cx.rng(Stream::Lengths),
            prefixes,
            content: cx.rng(Stream::Content),
            priority: drawn.priority,
        })
    }

    pub(super) fn issued(&self) -> u32 {
        self.issued
    }

    pub(super) fn draw(&mut self) -> Arrival {
        let ordinal = ordinal(self.index, self.issued);
        let unique_tokens = self.prompt_tokens.draw(&mut self.lengths);
        let output_tokens = self.output_tokens.draw(&mut self.lengths);
        let mut chain = self.empty.clone();
        self.prefixes.begin(&mut chain, unique_tokens, &mut self.content);
        chain.append(Source::unique(self.index, u64::from(self.issued)), unique_tokens);
        self.issued += 1;
        Arrival {
            ordinal,
            session: ordinal,
            turn: 0,
            counted_tokens: chain.length(),
            output_tokens,
            answer: chain.answer(),
            prompt: chain.into_prompt(),
            priority: self.priority,
        }
    }
}

impl Prefixes {
    pub(super) fn new(configs: &[PrefixConfig], cx: &Context<'_>) -> Result<Self, LoadError> {
        let mut groups = Vec::new();
        let mut weights = 0;
        for (index, config) in (0..).zip(configs) {
            let tokens = match config.tokens.0 {
                0 => 0,
                tokens => cx.length("prefixes", tokens)?,
            };
            weights += u64::from(config.weight);
            let source = match &config.content {
                Some(name) => Source::named(name),
                None => Source::group(cx.index, index),
            };
            groups.push((source, tokens, weights));
        }
        if weights == 0 && !groups.is_empty() {
            return Err(cx.error("prefixes", "all weights are 0; expected one above"));
        }
        Ok(Self { groups })
    }

    /// Begins a prompt with one of the prefixes, and makes room for what follows.
    pub(super) fn begin(&self, chain: &mut Chain, more_tokens: u32, rng: &mut Rng) {
        let Some((_, _, weights)) = self.groups.last() else {
            chain.reserve(more_tokens);
            return;
        };
        let drawn = rng.below(*weights);
        let group = self.groups.partition_point(|(_, _, sum)| *sum <= drawn);
        let (source, tokens, _) = self.groups[group];
        chain.reserve(tokens + more_tokens);
        chain.append(source, tokens);
    }

    /// The longest.
    pub(super) fn max(&self) -> u64 {
        self.groups.iter().map(|(_, tokens, _)| u64::from(*tokens)).max().unwrap_or(0)
    }
}

//! What the clients of a run do: when they ask, what, and how long the answers are.
//!
//! Owns arrival processes and contents of prompts; knows nothing of workers, queues or answers beyond their length.
//! The world drives it: it takes [`Load::next_arrival`] until there is none, and tells each end of a request, which in
//! closed loops and sessions brings the next arrival.
//!
//! 1. Equal configuration, seed and order of ends give equal arrivals, bit for bit.
//! 2. Each use of randomness has a stream of its own, and each session has its own two, so that what a session says does
//!    not depend on how fast others are served.
//! 3. Contents do not depend on the seed: only which, when and how long does.
//! 4. [`Load::next_arrival`] is in order of time; what an end brings is never before that end.

mod closed;
mod config;
mod content;
mod dice;
mod list;
mod open;
mod replay;
mod sessions;

use std::path::Path;

use thiserror::Error;

use pd_core::key::Namespace;
use pd_core::op::Prompt;
use pd_core::rng::{Rng, Stream};
use pd_core::time::Instant;

use crate::scenario::error::nearest;
use crate::trace::{TOKENS_MAX, TraceError};

pub use config::{
    BurstConfig, ClosedConfig, FixedConfig, JournalConfig, ListConfig, ListPrefix, ListRequest, LoadConfig,
    OnOffConfig, PoissonConfig, PrefixConfig, SessionsConfig, TraceConfig,
};
pub use content::{Answer, Chain, Source, answer_token};
pub use dice::{Lengths, Pause};

/// The clients of one `[[load]]` table.
#[derive(Debug)]
pub struct Load(Kind);

#[derive(Debug)]
enum Kind {
    Open(open::Open),
    Closed(closed::Closed),
    Sessions(sessions::Sessions),
    Replay(replay::Replay),
    List(list::List),
}

/// All loads of a run as one.
#[derive(Debug)]
pub struct Loads {
    loads: Vec<Load>,
    /// The next arrival of each load that has one.
    next: Vec<Option<(Instant, Arrival)>>,
}

/// One request as it reaches the deployment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Its name, unique in the run: index of the load << 32 | count of its arrivals before.
    pub ordinal: u64,
    /// The conversation it belongs to: index of the load << 32 | index of the session. One request, one session in
    /// loads without sessions.
    pub session: u64,
    /// Which turn of it, from 0.
    pub turn: u32,
    /// What is asked.
    pub prompt: Prompt,
    /// Tokens of the prompt as a study of the trace counts them; differs from the prompt's length if it was padded.
    pub counted_tokens: u32,
    /// Tokens of the answer, at least 1.
    pub output_tokens: u32,
    /// What the engine will say.
    pub answer: Answer,
    /// Larger is more urgent.
    pub priority: i32,
}

/// What a load needs to know of the run.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The seed of the run.
    pub seed: u64,
    /// Index of the load among those of the run; tells their streams, contents and ordinals apart.
    pub index: u32,
    /// The namespace that prompts belong to, unless they say otherwise; its page size is that of their keys.
    pub namespace: &'a Namespace,
    /// Where relative names of traces start.
    pub directory: &'a Path,
}

/// Why a load cannot be.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Its trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A value is wrong by itself or together with another.
    #[error("load {index}: {key}: {problem}")]
    Value {
        /// Which `[[load]]` table, from 0.
        index: u32,
        /// Which key of it.
        key: &'static str,
        /// What is wrong, and what is expected.
        problem: String,
    },
}

impl Load {
    /// Prepares the clients of one table.
    ///
    /// # Errors
    /// As [`LoadError`] says.
    ///
    /// # Panics
    /// If `page_size` is 0.
    pub fn new(config: &LoadConfig, cx: &Context<'_>) -> Result<Self, LoadError> {
        use open::{Open, Process};
        let kind = match config {
            LoadConfig::Poisson(config) => Kind::Open(Open::new(&config.drawn(), Process::poisson(config.rate), cx)?),
            LoadConfig::Fixed(config) => Kind::Open(Open::new(&config.drawn(), Process::fixed(config.every), cx)?),
            LoadConfig::Burst(config) => {
                let process = Process::burst(config.size.0, config.every, cx)?;
                Kind::Open(Open::new(&config.drawn(), process, cx)?)
            }
            LoadConfig::OnOff(config) => {
                let process = Process::on_off(config.rate, config.on, config.off, cx)?;
                Kind::Open(Open::new(&config.drawn(), process, cx)?)
            }
            LoadConfig::Closed(config) => Kind::Closed(closed::Closed::new(config, cx)?),
            LoadConfig::Sessions(config) => Kind::Sessions(sessions::Sessions::new(config, cx)?),
            LoadConfig::Trace(config) => Kind::Replay(replay::Replay::new(config, cx)?),
            LoadConfig::List(config) => Kind::List(list::List::new(config, cx)?),
            // Its answers and its events come with it, so it is read by who makes the run: see `scenario::loads`.
            LoadConfig::Journal(_) => return Err(cx.error("kind", "a journal is the only load of its run")),
        };
        Ok(Self(kind))
    }

    /// The next arrival that does not wait for an answer.
    pub fn next_arrival(&mut self) -> Option<(Instant, Arrival)> {
        match &mut self.0 {
            Kind::Open(load) => load.next_arrival(),
            Kind::Closed(load) => load.next_arrival(),
            Kind::Sessions(load) => load.next_arrival(),
            Kind::Replay(load) => load.next_arrival(),
            Kind::List(load) => load.next_arrival(),
        }
    }

    /// The client has its whole answer: what does it ask next?
    pub fn finished(&mut self, ordinal: u64, now: Instant) -> Option<(Instant, Arrival)> {
        match &mut self.0 {
            Kind::Closed(load) => load.ended(now),
            Kind::Sessions(load) => load.finished(ordinal, now),
            Kind::Open(_) | Kind::Replay(_) | Kind::List(_) => None,
        }
    }

    /// The client gave up or was turned away. A client of a closed loop asks its next question; a session ends.
    pub fn failed(&mut self, ordinal: u64, now: Instant) -> Option<(Instant, Arrival)> {
        match &mut self.0 {
            Kind::Closed(load) => load.ended(now),
            Kind::Sessions(load) => {
                load.failed(ordinal);
                None
            }
            Kind::Open(_) | Kind::Replay(_) | Kind::List(_) => None,
        }
    }
}

impl Loads {
    /// Prepares the clients of all tables; `cx.index` is that of the first, 0.
    ///
    /// # Errors
    /// As [`LoadError`] says.
    ///
    /// # Panics
    /// If `cx.index` is not 0.
    pub fn new(configs: &[LoadConfig], cx: &Context<'_>) -> Result<Self, LoadError> {
        assert!(cx.index == 0, "ordinals name their load by its place");
        for (index, config) in (0..).zip(configs) {
            check_prefixes(config, configs, &Context { index, ..*cx })?;
        }
        let load = |(index, config)| Load::new(config, &Context { index, ..*cx });
        let mut loads = (cx.index..).zip(configs).map(load).collect::<Result<Vec<_>, _>>()?;
        let next = loads.iter_mut().map(Load::next_arrival).collect();
        Ok(Self { loads, next })
    }

    /// As [`Load::next_arrival`], of all loads; at the same instant the earlier table goes first.
    pub fn next_arrival(&mut self) -> Option<(Instant, Arrival)> {
        let waiting = self.next.iter().enumerate().filter_map(|(index, next)| Some((next.as_ref()?.0, index)));
        let (_, index) = waiting.min()?;
        let next = self.loads[index].next_arrival();
        std::mem::replace(&mut self.next[index], next)
    }

    /// As [`Load::finished`].
    pub fn finished(&mut self, ordinal: u64, now: Instant) -> Option<(Instant, Arrival)> {
        self.loads.get_mut((ordinal >> 32) as usize)?.finished(ordinal, now)
    }

    /// As [`Load::failed`].
    pub fn failed(&mut self, ordinal: u64, now: Instant) -> Option<(Instant, Arrival)> {
        self.loads.get_mut((ordinal >> 32) as usize)?.failed(ordinal, now)
    }
}

impl Context<'_> {
    fn rng(&self, stream: Stream) -> Rng {
        Rng::new(self.seed, stream, u64::from(self.index))
    }

    fn ordinal(&self, count: u32) -> u64 {
        ordinal(self.index, count)
    }

    fn chain(&self) -> Chain {
        Chain::new(self.namespace.root(), self.namespace.page_size)
    }

    fn error(&self, key: &'static str, problem: impl Into<String>) -> LoadError {
        LoadError::Value { index: self.index, key, problem: problem.into() }
    }

    /// Checks how many there are of something.
    fn count(&self, key: &'static str, count: u64) -> Result<u32, LoadError> {
        match u32::try_from(count) {
            Ok(count) if count > 0 => Ok(count),
            Ok(_) | Err(_) => Err(self.error(key, format!("is {count}; expected 1 to {}", u32::MAX))),
        }
    }

    /// Checks the longest prompt and answer that may come together.
    fn length(&self, key: &'static str, tokens: u64) -> Result<u32, LoadError> {
        match u32::try_from(tokens) {
            Ok(tokens) if (1..=TOKENS_MAX).contains(&tokens) => Ok(tokens),
            Ok(_) | Err(_) => {
                Err(self.error(key, format!("may come to {tokens} tokens; expected 1 to {TOKENS_MAX} in all")))
            }
        }
    }
}

/// Checks that what a list's prompts begin with is a content that some request of some load has: a misspelt name would
/// be a prefix that nobody shares.
fn check_prefixes(config: &LoadConfig, all: &[LoadConfig], cx: &Context<'_>) -> Result<(), LoadError> {
    let LoadConfig::List(list) = config else { return Ok(()) };
    let known = || all.iter().flat_map(LoadConfig::contents);
    for prefix in list.requests.iter().filter_map(|request| request.prefix.as_ref()) {
        if known().any(|name| name == prefix.of) {
            continue;
        }
        let hint = match nearest(&prefix.of, known()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "give a request content = \"...\" of that name".to_owned(),
        };
        return Err(cx.error("prefix", format!("no request has the content \"{}\"; {hint}", prefix.of)));
    }
    Ok(())
}

fn ordinal(index: u32, count: u32) -> u64 {
    u64::from(index) << 32 | u64::from(count)
}

#[cfg(test)]
mod tests;

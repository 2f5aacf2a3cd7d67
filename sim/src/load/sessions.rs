//! Conversations: each turn's prompt is the prompt before, its answer, and what the user adds after a pause.

use std::collections::BTreeMap;

use pd_core::rng::{Rng, Stream};
use pd_core::time::Instant;

use super::config::SessionsConfig;
use super::content::{Answer, Chain, Source};
use super::dice::Lengths;
use super::open::{Prefixes, Process};
use super::{Arrival, Context, LoadError, ordinal};

/// Sessions of one table.
#[derive(Debug)]
pub(super) struct Sessions {
    seed: u64,
    index: u32,
    empty: Chain,
    config: SessionsConfig,
    prefixes: Prefixes,
    content: Rng,
    arrivals: Rng,
    clock_q32: u128,
    /// Sessions begun, and in all.
    begun: u32,
    count: u32,
    issued: u32,
    /// Sessions that wait for an answer, by the request's ordinal.
    waiting: BTreeMap<u64, Session>,
}

#[derive(Debug)]
struct Session {
    number: u32,
    turn: u32,
    turns: u32,
    /// All that was said, up to the prompt that waits for its answer.
    chain: Chain,
    answer: Answer,
    output_tokens: u32,
    lengths: Rng,
    think: Rng,
}

impl Sessions {
    pub(super) fn new(config: &SessionsConfig, cx: &Context<'_>) -> Result<Self, LoadError> {
        let prefixes = Prefixes::new(&config.prefixes, cx)?;
        let longest = |lengths: &Lengths| u64::from(lengths.max());
        let per_turn = longest(&config.user_tokens) + longest(&config.output_tokens);
        let first = prefixes.max() + longest(&config.first_prompt_tokens);
        cx.length("turns", first.saturating_add(longest(&config.turns).saturating_mul(per_turn)))?;
        let count = cx.count("sessions", config.sessions.0)?;
        if config.sessions.0.saturating_mul(longest(&config.turns)) > u64::from(u32::MAX) {
            return Err(cx.error("turns", format!("times sessions are more than {} requests", u32::MAX)));
        }
        Ok(Self {
            seed: cx.seed,
            index: cx.index,
            empty: cx.chain(),
            config: config.clone(),
            prefixes,
            content: cx.rng(Stream::Content),
            arrivals: cx.rng(Stream::Arrivals),
            clock_q32: 0,
            begun: 0,
            count,
            issued: 0,
            waiting: BTreeMap::new(),
        })
    }

    pub(super) fn next_arrival(&mut self) -> Option<(Instant, Arrival)> {
        if self.begun == self.count {
            return None;
        }
        let number = self.begun;
        self.begun += 1;
        let start = Instant(self.config.start.ns());
        let at = self.config.rate.map_or(start, |rate| {
            start.after_ns(Process::poisson(rate).next_ns(number, &mut self.clock_q32, &mut self.arrivals))
        });
        let entity = ordinal(self.index, number);
        let mut lengths = Rng::new(self.seed, Stream::Lengths, entity);
        let turns = self.config.turns.draw(&mut lengths);
        let first_tokens = self.config.first_prompt_tokens.draw(&mut lengths);
        let mut chain = self.empty.clone();
        self.prefixes.begin(&mut chain, first_tokens, &mut self.content);
        chain.append(Source::user(self.index, number, 0), first_tokens);
        let think = Rng::new(self.seed, Stream::Think, entity);
        let answer = Answer::default();
        let session = Session { number, turn: 0, turns, chain, answer, output_tokens: 0, lengths, think };
        Some((at, self.ask(session)))
    }

    pub(super) fn finished(&mut self, ordinal: u64, now: Instant) -> Option<(Instant, Arrival)> {
        let mut session = self.waiting.remove(&ordinal)?;
        session.turn += 1;
        if session.turn == session.turns {
            return None;
        }
        let pause_ns = self.config.think.draw_ns(&mut session.think);
        let user_tokens = self.config.user_tokens.draw(&mut session.lengths);
        session.chain.append_answer(&session.answer, session.output_tokens);
        session.chain.append(Source::user(self.index, session.number, session.turn), user_tokens);
        Some((now.after_ns(pause_ns), self.ask(session)))
    }

    pub(super) fn failed(&mut self, ordinal: u64) {
        self.waiting.remove(&ordinal);
    }

    /// Asks what the session's chain holds.
    fn ask(&mut self, mut session: Session) -> Arrival {
        session.output_tokens = self.config.output_tokens.draw(&mut session.lengths);
        session.answer = session.chain.answer();
        let arrival = Arrival {
            ordinal: ordinal(self.index, self.issued),
            session: ordinal(self.index, session.number),
            turn: session.turn,
            prompt: session.chain.prompt(),
            counted_tokens: session.chain.length(),
            output_tokens: session.output_tokens,
            answer: session.answer.clone(),
            priority: self.config.priority,
        };
        self.issued += 1;
        self.waiting.insert(arrival.ordinal, session);
        arrival
    }
}

//! The loads of a scenario as a source of a world.

use std::path::Path;

use pd_core::id::PageKey;
use pd_core::time::Instant;

use crate::heap::Heap;
use crate::load::{Arrival as Loaded, Context, LoadConfig, Loads, answer_token};
use crate::setup::{Answer, Arrival, Source};

/// The answers of all loads.
pub const ANSWER: Answer = answer_token;

/// How prompts are keyed.
#[derive(Clone, Copy, Debug)]
pub struct Prompts {
    /// Root of their namespace.
    pub root: PageKey,
    /// Tokens per page.
    pub page_size: u32,
}

/// All loads of a scenario, as one source.
///
/// # Errors
/// What is wrong with them, in words.
pub fn sources(
    loads: &[LoadConfig],
    seed: u64,
    directory: &Path,
    prompts: Prompts,
) -> Result<Vec<Box<dyn Source>>, String> {
    let context = Context { seed, index: 0, root: prompts.root, page_size: prompts.page_size, directory };
    let mut all = Loads::new(loads, &context).map_err(|error| error.to_string())?;
    let next = all.next_arrival();
    let has_sessions = loads.iter().map(|load| matches!(load, LoadConfig::Sessions(_))).collect();
    Ok(vec![Box::new(Clients { loads: all, next, answers: Heap::new(), has_sessions })])
}

#[derive(Debug)]
struct Clients {
    loads: Loads,
    /// The next arrival that waits for no answer.
    next: Option<(Instant, Loaded)>,
    /// Arrivals that answers have brought.
    answers: Heap<Loaded>,
    /// By load.
    has_sessions: Vec<bool>,
}

impl Source for Clients {
    fn next(&self) -> Option<Instant> {
        [self.next.as_ref().map(|(at, _)| *at), self.answers.peek_time()].into_iter().flatten().min()
    }

    fn take(&mut self) -> Arrival {
        let answer_at = self.answers.peek_time();
        let is_open = self.next.as_ref().is_some_and(|(at, _)| answer_at.is_none_or(|answer_at| *at <= answer_at));
        let (_, arrival) = if is_open {
            let next = self.loads.next_arrival();
            std::mem::replace(&mut self.next, next).expect("there is an open arrival")
        } else {
            self.answers.pop().expect("a request is taken when there is one")
        };
        let load = (arrival.session >> 32) as usize;
        Arrival {
            ordinal: arrival.ordinal,
            session: self.has_sessions.get(load).copied().unwrap_or(false).then_some(arrival.session),
            prompt: arrival.prompt,
            output_tokens: arrival.output_tokens,
            priority: arrival.priority,
            seed: arrival.answer.seed,
        }
    }

    fn finished(&mut self, now: Instant, ordinal: u64, is_complete: bool) {
        let more = if is_complete { self.loads.finished(ordinal, now) } else { self.loads.failed(ordinal, now) };
        if let Some((at, arrival)) = more {
            self.answers.push(at, arrival);
        }
    }
}

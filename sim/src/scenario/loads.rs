//! The loads of a scenario as one source of requests for the world.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use pd_core::key::Namespace;
use pd_core::time::Instant;

use crate::load::{self, Context, LoadConfig, Loads, answer_token};
use crate::setup::{Answer, Arrival, Source};

/// What the simulated engine says.
pub const ANSWER: Answer = answer_token;

/// All loads of a scenario.
///
/// # Errors
/// What is wrong with a load or its trace, in words.
pub fn sources(
    configs: &[LoadConfig],
    seed: u64,
    folder: &Path,
    namespace: &Namespace,
) -> Result<Vec<Box<dyn Source>>, String> {
    let cx = Context { seed, index: 0, namespace, directory: folder };
    let mut loads = Loads::new(configs, &cx).map_err(|error| error.to_string())?;
    let next = loads.next_arrival();
    Ok(vec![Box::new(Clients { loads, next, brought: BTreeMap::new(), count: 0 })])
}

/// The clients of all loads. Requests that wait for nobody come in order of time; those that an answer brings are kept
/// beside them.
#[derive(Debug)]
struct Clients {
    loads: Loads,
    next: Option<(Instant, load::Arrival)>,
    brought: BTreeMap<(Instant, u64), load::Arrival>,
    count: u64,
}

impl Source for Clients {
    fn next(&self) -> Option<Instant> {
        let brought = self.brought.first_key_value().map(|((at, _), _)| *at);
        let open = self.next.as_ref().map(|(at, _)| *at);
        [brought, open].into_iter().flatten().min()
    }

    fn take(&mut self) -> Arrival {
        let open = self.next.as_ref().map(|(at, _)| Reverse(*at));
        let brought = self.brought.first_key_value().map(|((at, _), _)| Reverse(*at));
        // At the same instant the open load goes first.
        let arrival = if open >= brought {
            let next = self.loads.next_arrival();
            let (_, arrival) = std::mem::replace(&mut self.next, next).expect("asked for only when there is one");
            arrival
        } else {
            self.brought.pop_first().expect("asked for only when there is one").1
        };
        Arrival {
            ordinal: arrival.ordinal,
            session: Some(arrival.session),
            counted_tokens: arrival.counted_tokens,
            prompt: arrival.prompt,
            output_tokens: arrival.output_tokens,
            priority: arrival.priority,
            seed: arrival.answer.seed,
        }
    }

    fn finished(&mut self, now: Instant, ordinal: u64, is_complete: bool) {
        let arrival = if is_complete { self.loads.finished(ordinal, now) } else { self.loads.failed(ordinal, now) };
        if let Some((at, arrival)) = arrival {
            self.brought.insert((at, self.count), arrival);
            self.count += 1;
        }
    }
}

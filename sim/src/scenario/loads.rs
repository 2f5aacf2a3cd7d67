//! The loads of a scenario as one source of requests for the world.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use pd_core::event::Control;
use pd_core::key::Namespace;
use pd_core::time::Instant;

use crate::fault::{Action, Cancel, Order};
use crate::journal::requests::{Recording, Request};
use crate::load::{self, Context, JournalConfig, LoadConfig, Loads, answer_token};
use crate::setup::{Answer, Answers, Arrival, Setup, Source};

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

/// Gives a run the requests of journals, with their answers, their clients' leaving and the orders of operators.
///
/// # Errors
/// Which file cannot be taken and why; or that its pages are not those of the workers.
pub(super) fn recorded(config: &JournalConfig, folder: &Path, setup: &mut Setup) -> Result<(), String> {
    let files: Vec<_> = config.files.iter().map(|file| folder.join(file)).collect();
    let Recording { page_size, root, requests, orders, notes } = Recording::read(&files)?;
    let have = setup.prompts.page_size;
    if page_size != have {
        return Err(format!(
            "the journal's pages hold {page_size} tokens, those of this scenario {have}, and prompts are keyed by page; \
             set page_size = {page_size} for all workers (--set worker.page_size={page_size})"
        ));
    }
    // The prompts bring the keys that the real worker gave them.
    for worker in &mut setup.workers {
        worker.config.kv.root = root;
    }
    for (at, mode, order) in orders {
        let takes = |worker: u32| -> Option<Action> {
            let (order_for, has_store) = (Order { worker }, setup.workers[worker as usize].store.is_some());
            match order {
                Control::Flush => Some(Action::Flush(order_for)),
                Control::AttachStorage => has_store.then_some(Action::AttachStorage(order_for)),
                Control::DetachStorage => has_store.then_some(Action::DetachStorage(order_for)),
                Control::ClearStorage => has_store.then_some(Action::ClearStorage(order_for)),
                Control::Drain => None,
            }
        };
        let is_like = |worker: &u32| setup.workers[*worker as usize].config.mode == mode;
        let all = 0..setup.workers.len() as u32;
        let like: Vec<u32> = all.clone().filter(is_like).collect();
        let actions: Vec<_> =
            if like.is_empty() { all.collect() } else { like }.into_iter().filter_map(takes).collect();
        setup.script.extend(actions.into_iter().map(|action| (at, action)));
    }
    let gone = requests.iter().zip(0..).filter_map(|(request, number)| Some((request.cancelled?, number)));
    setup.script.extend(gone.map(|(at, request)| (at, Action::Cancel(Cancel { request }))));
    setup.answers = Answers::Recorded(requests.iter().map(|request| request.answer.clone()).collect(), ANSWER);
    setup.notes.extend(notes);
    setup.loads = vec![Box::new(Recorded { total: requests.len() as u64, requests: requests.into_iter(), taken: 0 })];
    Ok(())
}

/// The clients of a journal: they wait for nobody.
#[derive(Debug)]
struct Recorded {
    requests: std::vec::IntoIter<Request>,
    total: u64,
    taken: u64,
}

impl Source for Recorded {
    fn next(&self) -> Option<Instant> {
        self.requests.as_slice().first().map(|request| request.at)
    }

    fn take(&mut self) -> Arrival {
        let request = self.requests.next().expect("asked for only when there is one");
        let ordinal = self.taken;
        self.taken += 1;
        Arrival {
            ordinal,
            session: Some(ordinal),
            counted_tokens: request.prompt.length,
            prompt: request.prompt,
            output_tokens: request.output_tokens,
            priority: request.priority,
            seed: ordinal,
        }
    }

    fn finished(&mut self, _: Instant, _: u64, _: bool) {}

    fn total(&self) -> u64 {
        self.total
    }
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

//! Why was this request slow, and why was its prompt not in the cache? An answer in the words of a person.
//!
//! A scenario runs twice: the first time to learn which requests are meant and what their prompts are, the second time
//! with a watcher that follows them and every page of their prompts from the start. The runs are equal, since nothing
//! that watches can change one.
//!
//! ```text
//!   watch    inputs, outputs and queries of all machines ──▶ stories (facts) and the site (lives, disks, script)
//!   cause    where the legs of a request stand ──▶ what it waits for, at each instant
//!   path     causes over time ──▶ TTFT and E2E as sums that are exact
//!   why      stories ──▶ findings: sentences, each with what to do about it
//!   text, json
//! ```

mod advice;
mod cause;
mod flights;
mod json;
mod misses;
mod path;
mod site;
mod story;
mod text;
mod watch;
mod why;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use pd_core::id::{PageKey, RequestId};
use pd_core::op::Input;
use pd_core::op::Output;
use pd_core::router::{RouterInput, RouterOutput};
use pd_core::time::Instant;
use thiserror::Error;

pub use self::path::{Cause, Part, Sum, Timeline};
pub use self::site::{Scan, Site, StoreSite, WorkerSite};
pub use self::story::{Chunk, Decision, Move, MoveKind, PageEvent, Role, Steps, Story, Visit};
use self::watch::Watcher;
pub use self::why::Finding;
use crate::observe::Observer;
use crate::record::Outcome;
use crate::setup::Setup;
use crate::world::World;

/// Which requests are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// This one.
    One(RequestId),
    /// So many of the slowest, by time to first token; those that never got one come behind all others.
    Slowest(u32),
    /// Every one. For small runs.
    All,
}

/// There is no such request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("there is no request {}; {}", .wanted.0, match .count {
    0 => "no request arrived in this run".to_owned(),
    1 => "the only one is request 0".to_owned(),
    count => format!("there are requests 0 to {}", count - 1),
})]
pub struct NoSuchRequest {
    /// What was asked for.
    pub wanted: RequestId,
    /// How many there are.
    pub count: u64,
}

/// One request explained.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The facts.
    pub story: Story,
    /// Where it happened.
    pub site: Rc<Site>,
    /// From its arrival to its first token; to its end, or that of the run, if it never got one.
    pub ttft: Sum,
    /// From the first token to the end.
    pub rest: Option<Sum>,
    /// Earlier requests that had the same beginning: name, shared full pages, and who computed it.
    pub kin: Vec<Kin>,
    /// When the run ended.
    pub ended: Instant,
}

/// An earlier request with the same beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kin {
    /// Which.
    pub request: RequestId,
    /// When it came.
    pub at: Instant,
    /// Full pages that both prompts begin with.
    pub pages: u32,
    /// Who computed its prompt.
    pub worker: Option<u32>,
    /// Who decoded.
    pub decode: Option<u32>,
}

/// Runs what `make` makes, twice, and explains the requests that are meant, slowest first.
///
/// # Errors
/// If there is no such request.
pub fn explain(make: &mut dyn FnMut() -> Setup, wanted: Wanted) -> Result<(Outcome, Vec<Explanation>), NoSuchRequest> {
    let scout = Rc::new(RefCell::new(Scout::default()));
    let mut world = World::new(make());
    world.observe(Box::new(Rc::clone(&scout)));
    let outcome = world.run();
    drop(world);
    let count = outcome.requests.len() as u64;
    let chosen: Vec<RequestId> = match wanted {
        Wanted::One(wanted) if wanted.0 < count => vec![wanted],
        Wanted::One(wanted) => return Err(NoSuchRequest { wanted, count }),
        Wanted::Slowest(many) => slowest(&outcome, many),
        Wanted::All => (0..count).map(RequestId).collect(),
    };
    let named: BTreeSet<RequestId> =
        if wanted == Wanted::All { BTreeSet::new() } else { chosen.iter().copied().collect() };
    let prompts = Rc::new(std::mem::take(&mut scout.borrow_mut().prompts));
    let setup = make();
    let watcher = Rc::new(RefCell::new(Watcher::new(&named, Site::new(&setup), Rc::clone(&prompts))));
    let mut world = World::new(setup);
    world.observe(Box::new(Rc::clone(&watcher)));
    let outcome = world.run();
    drop(world);
    let mut watcher = watcher.borrow_mut();
    let site = Rc::new(watcher.site.clone());
    let explanations = chosen.iter().filter_map(|request| {
        let mut story = watcher.stories.remove(request)?;
        story.record = outcome.requests[request.0 as usize].clone();
        Some(Explanation::new(story, Rc::clone(&site), &outcome, &prompts))
    });
    let explanations = explanations.collect();
    Ok((outcome, explanations))
}

/// The slowest requests, slowest first.
fn slowest(outcome: &Outcome, many: u32) -> Vec<RequestId> {
    let mut order: Vec<(Option<u64>, RequestId)> =
        (0..).zip(&outcome.requests).map(|(request, record)| (record.ttft_ns(), RequestId(request))).collect();
    order.sort_by_key(|(ttft, request)| (std::cmp::Reverse(*ttft), *request));
    order.into_iter().take(many as usize).map(|(_, request)| request).collect()
}

impl Explanation {
    fn new(story: Story, site: Rc<Site>, outcome: &Outcome, prompts: &[Vec<PageKey>]) -> Self {
        let record = &story.record;
        let end = record.finished.unwrap_or(outcome.ended);
        let first = record.first_token.unwrap_or(end);
        let ttft = story.timeline.sum(record.arrival, first);
        let rest = record.first_token.map(|first| story.timeline.sum(first, end));
        let kin = kin(&story, outcome, prompts);
        Self { story, site, ttft, rest, kin, ended: outcome.ended }
    }

    /// The answer as a page.
    #[must_use]
    pub fn text(&self) -> String {
        text::page(self)
    }

    /// The same as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        json::object(self)
    }

    /// What was found, the most important first.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        why::findings(self)
    }
}

/// Earlier requests whose prompts begin like this one's, longest first.
fn kin(story: &Story, outcome: &Outcome, prompts: &[Vec<PageKey>]) -> Vec<Kin> {
    let mut found = Vec::new();
    for (index, (record, keys)) in outcome.requests.iter().zip(prompts).enumerate().take(story.request.0 as usize) {
        // Keys are chained: a common prefix ends where the first pair differs, and is found by bisection.
        let limit = keys.len().min(story.keys.len());
        let (mut pages, mut end) = (0, limit);
        while pages < end {
            let middle = pages.midpoint(end);
            if keys[middle] == story.keys[middle] {
                pages = middle + 1;
            } else {
                end = middle;
            }
        }
        if pages > 0 && record.admitted.is_some() {
            found.push(Kin {
                request: RequestId(index as u64),
                at: record.arrival,
                pages: pages as u32,
                worker: record.prefill.or(record.decode),
                decode: record.decode,
            });
        }
    }
    // The latest of those that share most.
    found.sort_by_key(|kin| (std::cmp::Reverse(kin.pages), std::cmp::Reverse(kin.request)));
    found.truncate(KIN_MAX);
    found
}

const KIN_MAX: usize = 8;

/// Learns the prompts of a run.
#[derive(Debug, Default)]
struct Scout {
    prompts: Vec<Vec<PageKey>>,
}

impl Scout {
    fn see(&mut self, request: RequestId, keys: &[PageKey]) {
        let index = request.0 as usize;
        if self.prompts.len() <= index {
            self.prompts.resize(index + 1, Vec::new());
        }
        if self.prompts[index].is_empty() {
            self.prompts[index] = keys.to_vec();
        }
    }
}

impl Observer for Scout {
    fn on_worker(&mut self, _now: Instant, _worker: u32, input: &Input, _outputs: &[Output]) {
        if let Input::Submit(submit) = input {
            self.see(submit.request, &submit.prompt.keys);
        }
    }
    fn on_router(&mut self, _now: Instant, input: &RouterInput, _outputs: &[RouterOutput]) {
        if let RouterInput::Submit(ask) = input {
            self.see(ask.request, &ask.keys);
        }
    }
}

//! Watches a run for its reports: knows which command was for whom, keeps values over time, and hands each fact on.
//!
//! One [`Collector`] serves all reports of a run. What is handed on at once (Perfetto, CSV) is not kept; what is kept
//! is bounded: series by `Level`, bars by [`MOVES_MAX`], and 100 bytes a request. It cannot change the run.

mod deed;
mod phases;
mod plan;
mod tiers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use pd_core::event::Event;
use pd_core::id::{Epoch, OpId, PageKey, RequestId, Room};
use pd_core::op::{Command, Input, LaneKind, Leg, Output, Submit};
use pd_core::time::Instant;

pub use self::deed::{Deed, What, ending_name};
use self::phases::cover;
pub use self::phases::{Journey, Phase};
pub use self::plan::{Plan, WorkerPlan, mode_name};
pub use self::tiers::{LinkLevel, WorkerLevels};
use crate::observe::{Activity, Ending, Gauge, LinkRate, Observer};
use crate::record::{Outcome, Record};
use crate::report::perfetto::Perfetto;
use crate::report::tables::Tables;
use crate::setup::Action;

/// Watches a run for its reports.
#[derive(Debug)]
pub struct Collector {
    /// Names and sizes.
    pub plan: Plan,
    /// By request.
    pub journeys: Vec<Journey>,
    /// By worker.
    pub workers: Vec<WorkerLevels>,
    /// By link; links that never carried anything have none.
    pub links: BTreeMap<u32, LinkLevel>,
    /// What the script did and which workers came and went, in order.
    pub marks: Vec<Incident>,
    /// By kind: the longest ones.
    moves: BTreeMap<&'static str, Longest>,
    moves_count: u64,
    started: BTreeMap<(u32, OpId), Started>,
    rooms: BTreeMap<Room, RequestId>,
    /// Page keys of those that wait at a worker with L3.
    waiting: BTreeMap<(u32, RequestId), Vec<PageKey>>,
    waiting_for: BTreeSet<(u32, PageKey, RequestId)>,
    perfetto: Option<Perfetto>,
    tables: Option<Tables>,
}

/// Moves with the shortest one on top: (length in ns, later ones first, the move).
type Longest = BinaryHeap<Reverse<(u64, u64, Bar)>>;

/// A command in flight.
#[derive(Debug)]
struct Started {
    what: What,
    issued: Instant,
    /// Whose pages it asks for or moves, or whose prompts it completes.
    requests: Vec<RequestId>,
}

/// A move of pages, to be drawn as a bar.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar(pub Deed);

/// Something that happened to the deployment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Incident {
    /// When.
    pub at: Instant,
    /// To whom, if to one worker.
    pub worker: Option<u32>,
    /// What, in a few words.
    pub label: String,
    /// True for what the script does; false for what follows from it.
    pub is_scripted: bool,
}

impl Collector {
    /// Watches a world like this.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let limit = (SAMPLES_MAX / plan.workers.len().max(1)).clamp(512, 8192);
        Self {
            journeys: Vec::new(),
            workers: plan.workers.iter().map(|worker| WorkerLevels::new(worker, limit)).collect(),
            links: BTreeMap::new(),
            marks: Vec::new(),
            moves: BTreeMap::new(),
            moves_count: 0,
            started: BTreeMap::new(),
            rooms: BTreeMap::new(),
            waiting: BTreeMap::new(),
            waiting_for: BTreeSet::new(),
            perfetto: None,
            tables: None,
            plan,
        }
    }

    /// Also writes a trace.
    #[must_use]
    pub fn with_perfetto(mut self, perfetto: Perfetto) -> Self {
        self.perfetto = Some(perfetto);
        self
    }

    /// Also writes tables.
    #[must_use]
    pub fn with_tables(mut self, tables: Tables) -> Self {
        self.tables = Some(tables);
        self
    }

    /// The longest moves of pages of each kind in order of their beginning, and how many there were in all.
    #[must_use]
    pub fn moves(&self) -> (Vec<Deed>, u64) {
        let mut moves: Vec<Deed> = self.moves.values().flatten().map(|Reverse((_, _, bar))| bar.0).collect();
        moves.sort_by_key(|deed| (deed.began, deed.ended, deed.worker, deed.op));
        (moves, self.moves_count)
    }

    /// What is known of a request.
    #[must_use]
    pub fn journey(&self, request: usize) -> Journey {
        self.journeys.get(request).copied().unwrap_or_default()
    }

    /// The run is over: writes what waits for the end.
    ///
    /// # Errors
    /// What could not be written.
    pub fn finish(&mut self, outcome: &Outcome) -> Result<(), WriteError> {
        if let Some(mut perfetto) = self.perfetto.take() {
            perfetto.finish(self, outcome).map_err(|error| WriteError { what: "the Perfetto trace".into(), error })?;
        }
        if let Some(tables) = self.tables.take() {
            tables.finish(self, outcome)?;
        }
        Ok(())
    }

    fn journey_mut(&mut self, request: RequestId) -> &mut Journey {
        let index = request.0 as usize;
        if index >= self.journeys.len() {
            self.journeys.resize(index + 1, Journey::default());
        }
        &mut self.journeys[index]
    }

    fn submitted(&mut self, worker: u32, submit: &Submit) {
        let request = submit.request;
        match submit.leg {
            Leg::Whole | Leg::Prefill { .. } => {
                let journey = self.journey_mut(request);
                journey.computes = Some(worker);
                journey.computed = None;
                if self.plan.workers[worker as usize].store.is_some() {
                    self.waiting_for.extend(submit.prompt.keys.iter().map(|key| (worker, *key, request)));
                    self.waiting.insert((worker, request), submit.prompt.keys.clone());
                }
            }
            Leg::Decode { room, .. } => {
                if let Some(old) = self.journey_mut(request).room.replace(room) {
                    self.rooms.remove(&old);
                }
                self.rooms.insert(room, request);
            }
        }
    }

    /// A request no longer waits at a worker.
    fn no_longer_waits(&mut self, worker: u32, request: RequestId) {
        for key in self.waiting.remove(&(worker, request)).unwrap_or_default() {
            self.waiting_for.remove(&(worker, key, request));
        }
    }

    /// Who waits for any of these pages.
    fn waiters(&self, worker: u32, keys: impl Iterator<Item = PageKey>) -> Vec<RequestId> {
        let mut found = BTreeSet::new();
        for key in keys {
            let range = (worker, key, RequestId(0))..=(worker, key, RequestId(u64::MAX));
            found.extend(self.waiting_for.range(range).map(|(_, _, request)| *request));
        }
        found.into_iter().collect()
    }

    fn started(&mut self, now: Instant, worker: u32, op: OpId, command: &Command) {
        let requests = match command {
            Command::Forward(batch) => batch
                .runs()
                .iter()
                .filter(|run| run.sample)
                .map(|run| run.request)
                .filter(|request| {
                    let journey = self.journey(request.0 as usize);
                    journey.computed.is_none() && journey.computes == Some(worker)
                })
                .collect(),
            Command::Query(keys) => self.waiters(worker, keys.iter().copied()),
            Command::Prefetch(objects) => self.waiters(worker, objects.iter().map(|object| object.key)),
            Command::Push(push) => self.rooms.get(&push.room).copied().into_iter().collect(),
            Command::LoadBack(_)
            | Command::Backup(_)
            | Command::Persist(_)
            | Command::Discard(_)
            | Command::Scan { .. }
            | Command::Wipe
            | Command::Touch(_) => Vec::new(),
        };
        self.started.insert((worker, op), Started { what: What::of(command), issued: now, requests });
    }

    fn note_journeys(&mut self, started: &Started, began: Instant, ended: Instant) {
        for &request in &started.requests {
            let journey = self.journey_mut(request);
            match started.what.lane() {
                LaneKind::Compute => {
                    journey.computed.get_or_insert(ended);
                }
                LaneKind::Storage => cover(&mut journey.fetched, began, ended),
                LaneKind::Wire => cover(&mut journey.pushed, began, ended),
                LaneKind::CopyIn | LaneKind::CopyOut => {}
            }
        }
    }

    fn keep_move(&mut self, deed: Deed, began: Instant) {
        self.moves_count += 1;
        let moves = self.moves.entry(deed.what.name()).or_default();
        moves.push(Reverse((deed.ended.ns_since(began), u64::MAX - self.moves_count, Bar(deed))));
        if moves.len() > MOVES_MAX {
            moves.pop();
        }
    }

    fn mark(&mut self, at: Instant, worker: Option<u32>, label: String, is_scripted: bool) {
        if self.marks.len() < MARKS_MAX {
            let mark = Incident { at, worker, label, is_scripted };
            if let Some(perfetto) = &mut self.perfetto {
                perfetto.incident(&mark);
            }
            self.marks.push(mark);
        }
    }
}

impl Observer for Collector {
    fn on_end(&mut self, now: Instant, request: RequestId, record: &Record) {
        let journey = *self.journey_mut(request);
        if let Some(room) = journey.room {
            self.rooms.remove(&room);
        }
        if let Some(perfetto) = &mut self.perfetto {
            perfetto.request(request, record, &journey, now);
        }
    }

    fn on_worker(&mut self, now: Instant, worker: u32, input: &Input, outputs: &[Output]) {
        if let Input::Submit(submit) = input {
            self.submitted(worker, submit);
        }
        for output in outputs {
            match output {
                Output::Start { op, command, .. } => self.started(now, worker, *op, command),
                Output::Emit { request, event } => {
                    match event {
                        Event::Token(_) => continue,
                        Event::Admitted(_) | Event::Finished { .. } | Event::Refused(_) | Event::HandedOver => {
                            self.no_longer_waits(worker, *request);
                        }
                        Event::Retracted | Event::Received(_) => {}
                    }
                    if let Some(perfetto) = &mut self.perfetto {
                        perfetto.said(now, worker, *request, event);
                    }
                }
                Output::Send { .. } | Output::Publish(_) => {}
            }
        }
    }

    fn on_life(&mut self, now: Instant, worker: u32, epoch: Option<Epoch>) {
        if let Some(epoch) = epoch {
            if epoch.0 > 0 {
                self.mark(now, Some(worker), format!("worker {worker} is up again"), false);
            }
            return;
        }
        self.workers[worker as usize].clear(now);
        self.waiting.retain(|(other, _), _| *other != worker);
        self.waiting_for.retain(|(other, _, _)| *other != worker);
        self.mark(now, Some(worker), format!("worker {worker} is down"), false);
    }

    fn on_action(&mut self, now: Instant, action: &Action) {
        let (worker, label) = action.describe();
        self.mark(now, worker, label, true);
    }

    fn on_activity(&mut self, activity: &Activity) {
        let Activity { worker, op, page_bytes, began, ended, ending, .. } = *activity;
        let Some(started) = self.started.remove(&(worker, op)) else { return };
        if let Some(began) = began {
            if ending != Ending::Cut {
                self.note_journeys(&started, began, ended);
            }
            if started.what.lane() == LaneKind::Compute {
                self.workers[worker as usize].forward(began, ended);
            }
        }
        let request = if let [request] = started.requests[..] { Some(request) } else { None };
        let Started { what, issued, .. } = started;
        let bytes = u64::from(what.pages()) * page_bytes;
        let deed = Deed { worker, op, what, bytes, request, issued, began, ended, ending };
        if let Some(perfetto) = &mut self.perfetto {
            perfetto.deed(&deed);
        }
        if let Some(tables) = &mut self.tables {
            tables.deed(&deed);
        }
        if let Some(began) = began.filter(|_| deed.what.is_move()) {
            self.keep_move(deed, began);
        }
    }

    fn on_link(&mut self, now: Instant, rate: LinkRate) {
        let limit = (SAMPLES_MAX / self.plan.workers.len().max(1)).clamp(512, 8192);
        let link = self.links.entry(rate.link).or_insert_with(|| LinkLevel::new(limit));
        link.set(now, rate);
    }

    fn on_gauge(&mut self, now: Instant, worker: u32, gauge: &Gauge) {
        self.workers[worker as usize].set(now, gauge);
    }
}

impl PartialOrd for Bar {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bar {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.worker, self.0.op).cmp(&(other.0.worker, other.0.op))
    }
}

/// A file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be written: {error}")]
pub struct WriteError {
    /// Which.
    pub what: String,
    /// Why.
    pub error: std::io::Error,
}

/// Most moves of pages of one kind that are drawn: the longest ones.
pub const MOVES_MAX: usize = 1000;
/// Most incidents that are kept.
const MARKS_MAX: usize = 2000;
/// Samples of one kind of series, over all workers.
const SAMPLES_MAX: usize = 65_536;

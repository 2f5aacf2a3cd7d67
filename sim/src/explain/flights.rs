//! Commands in flight: whose pages they move, what they share a device with, what became of them.

use std::collections::BTreeSet;

use pd_core::batch::Run;
use pd_core::id::{PageKey, RequestId, Room};
use pd_core::op::{Command, Fault, LaneKind, Outcome};
use pd_core::sched::State;
use pd_core::time::Instant;

use super::story::{Chunk, Move, MoveKind, PageEvent, Presence};
use super::watch::{Watcher, wipe};

/// A command in flight.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) at: Instant,
    pub(super) lane: LaneKind,
    pub(super) after: Vec<u64>,
    /// Sequences of a forward, and their tokens in it.
    pub(super) runs: Vec<(RequestId, u32)>,
    /// Pieces per page and layer, of a push.
    pieces: u32,
    pub(super) room: Option<Room>,
    pub(super) to: Option<u32>,
    pub(super) pages: u32,
    /// What a storage command is about.
    pub(super) keys: Vec<PageKey>,
    pub(super) what: Doing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doing {
    Forward,
    LoadBack,
    Query,
    Prefetch,
    Persist,
    Discard,
    Wipe,
    Push,
    /// Nothing that a request could wait for.
    Else,
}

impl Watcher {
    pub(super) fn on_start(&mut self, now: Instant, worker: u32, op: u64, after: Vec<u64>, command: &Command) {
        let mut flight = Flight {
            at: now,
            lane: command.lane(),
            after,
            runs: Vec::new(),
            pieces: 1,
            room: None,
            to: None,
            pages: 0,
            keys: Vec::new(),
            what: Doing::Else,
        };
        match command {
            Command::Forward(batch) => {
                let runs = batch.runs();
                flight.what = Doing::Forward;
                flight.runs = runs.iter().map(|run| (run.request, run.count)).collect();
                self.on_forward(now, worker, op, &flight.after, runs);
            }
            Command::LoadBack(pages) => (flight.what, flight.pages) = (Doing::LoadBack, pages.len() as u32),
            Command::Query(keys) => (flight.what, flight.keys) = (Doing::Query, keys.clone()),
            Command::Discard(keys) => (flight.what, flight.keys) = (Doing::Discard, keys.clone()),
            Command::Wipe => flight.what = Doing::Wipe,
            Command::Prefetch(objects) | Command::Persist(objects) => {
                let is_read = matches!(command, Command::Prefetch(_));
                flight.what = if is_read { Doing::Prefetch } else { Doing::Persist };
                flight.pages = objects.len() as u32;
                flight.keys = objects.iter().map(|object| object.key).collect();
            }
            Command::Push(push) => {
                (flight.what, flight.pages) = (Doing::Push, push.pages.len() as u32);
                (flight.room, flight.to, flight.pieces) = (Some(push.room), Some(push.to.0), push.pieces.max(1));
            }
            Command::Backup(_) | Command::Scan { .. } | Command::Touch(_) => {}
        }
        self.begin_move(worker, op, &flight);
        self.flights[worker as usize].insert(op, flight);
    }

    /// The life of a worker is over: what it had in flight does not end, and its numbers are used again.
    pub(super) fn cut(&mut self, worker: u32) {
        self.flights[worker as usize].clear();
        for story in self.stories.values_mut() {
            for one in story.moves.iter_mut().filter(|one| one.worker == worker && one.done.is_none()) {
                one.op = CUT;
            }
            for chunk in story.chunks.iter_mut().filter(|chunk| chunk.worker == worker && chunk.done.is_none()) {
                chunk.op = CUT;
            }
        }
    }

    fn on_forward(&mut self, now: Instant, worker: u32, op: u64, after: &[u64], runs: &[Run]) {
        let tokens: u32 = runs.iter().map(|run| run.count).sum();
        for run in runs {
            let Some(story) = self.stories.get_mut(&run.request).filter(|story| story.is_here && !story.is_over) else {
                continue;
            };
            let prompt = story.visit(worker).map_or(u32::MAX, |visit| visit.prompt);
            let others = (runs.len() as u32 - 1, tokens - run.count);
            if run.start < prompt {
                let (start, count) = (run.start, run.count);
                let with = runs.iter().map(|run| run.request).filter(|other| *other != run.request).collect();
                story.chunks.push(Chunk { worker, op, at: now, done: None, start, count, others, with });
            } else {
                story.steps.count += 1;
                story.steps.rows += runs.len() as u64;
                story.steps.prefill_tokens +=
                    runs.iter().filter(|run| run.count > 1).map(|run| u64::from(run.count)).sum::<u64>();
            }
            for &load in after {
                let Some(flight) = self.flights[worker as usize].get(&load) else { continue };
                let is_known = story.moves.iter().any(|one| (one.worker, one.op) == (worker, load));
                if flight.what == Doing::LoadBack && !is_known {
                    let bytes = u64::from(flight.pages) * self.site.workers[worker as usize].config.kv.page_bytes;
                    story.moves.push(a_move(MoveKind::LoadBack, worker, load, flight, bytes));
                }
            }
        }
    }

    /// A command that moves pages of a request, or shares a device with one that does.
    fn begin_move(&mut self, worker: u32, op: u64, flight: &Flight) {
        let kind = match flight.what {
            Doing::Prefetch => MoveKind::Prefetch,
            Doing::Query => MoveKind::Query,
            Doing::Push => MoveKind::Push,
            Doing::Persist => return self.share(worker, op, flight),
            Doing::Forward | Doing::LoadBack | Doing::Discard | Doing::Wipe | Doing::Else => return,
        };
        self.share(worker, op, flight);
        let owner = flight.room.and_then(|room| self.rooms.get(&room)).copied();
        let bytes = u64::from(flight.pages) * self.site.workers[worker as usize].config.kv.page_bytes;
        for story in self.stories.values_mut().filter(|story| story.is_here && !story.is_over) {
            let is_ours = match kind {
                MoveKind::Push => owner == Some(story.request),
                MoveKind::Prefetch | MoveKind::Query | MoveKind::LoadBack => {
                    let waits = story.legs.get(&worker).is_some_and(|leg| match leg.presence {
                        // One that computes may have its tail fetched meanwhile.
                        Presence::Here(standing) => standing.stage == State::Waiting || standing.fetch.is_some(),
                        Presence::Coming => true,
                        Presence::Gone => false,
                    });
                    waits && flight.keys.iter().any(|key| story.places.contains_key(key))
                }
            };
            if !is_ours {
                continue;
            }
            let mut one = a_move(kind, worker, op, flight, bytes);
            for (index, flights) in self.flights.iter().enumerate() {
                for (&other, theirs) in flights {
                    let is_shared =
                        self.site.share(worker, flight.to, index as u32, theirs.to, flight.lane, theirs.lane)
                            && is_traffic(theirs.what);
                    if is_shared {
                        one.shared.insert((index as u32, other));
                        one.shared_with.extend(theirs.room.and_then(|room| self.rooms.get(&room)));
                    }
                }
            }
            // Commands of one fetch do not disturb each other.
            let own: BTreeSet<_> = story.moves.iter().map(|own| (own.worker, own.op)).collect();
            one.shared.retain(|other| !own.contains(other));
            one.shared_with.remove(&story.request);
            story.moves.push(one);
        }
    }

    /// Notes that a new command shares a device with moves that are under way.
    fn share(&mut self, worker: u32, op: u64, flight: &Flight) {
        let owner = flight.room.and_then(|room| self.rooms.get(&room)).copied();
        for story in self.stories.values_mut().filter(|story| story.is_here && !story.is_over) {
            let is_own = owner == Some(story.request)
                || flight.what == Doing::Prefetch && flight.keys.iter().any(|key| story.places.contains_key(key));
            if is_own {
                continue;
            }
            for one in story.moves.iter_mut().filter(|one| one.done.is_none()) {
                let lane = match one.kind {
                    MoveKind::Push => LaneKind::Wire,
                    MoveKind::LoadBack => LaneKind::CopyIn,
                    MoveKind::Prefetch | MoveKind::Query => LaneKind::Storage,
                };
                if self.site.share(one.worker, one.to, worker, flight.to, lane, flight.lane) {
                    one.shared.insert((worker, op));
                    one.shared_with.extend(owner);
                }
            }
        }
    }

    pub(super) fn on_done(&mut self, now: Instant, worker: u32, op: u64, outcome: &Outcome) {
        if let Outcome::Scanned { keys, foreign, torn, .. } = outcome {
            self.site.scanned(now, worker, keys.len() as u64, *foreign, *torn);
        }
        let Some(flight) = self.flights[worker as usize].remove(&op) else { return };
        let fault = |item: usize| match outcome {
            Outcome::Failed(fault) => Some(*fault),
            Outcome::Partly(failed) => {
                failed.iter().find(|(index, _)| *index as usize == item).map(|(_, fault)| *fault)
            }
            Outcome::Moved | Outcome::Sampled(_) | Outcome::Found(_) | Outcome::Scanned { .. } => None,
        };
        for story in self.stories.values_mut() {
            for one in story.moves.iter_mut().filter(|one| (one.worker, one.op) == (worker, op)) {
                one.done.get_or_insert(now);
            }
            for chunk in story.chunks.iter_mut().rev().filter(|one| (one.worker, one.op) == (worker, op)) {
                chunk.done.get_or_insert(now);
            }
            if flight.what == Doing::Wipe {
                wipe(story, now);
            }
            for (item, page) in
                flight.keys.iter().enumerate().filter_map(|(item, key)| Some((item, *story.places.get(key)?)))
            {
                let Some(event) = page_event(flight.what, worker, fault(item)) else { continue };
                if let PageEvent::FetchFailed { fault, .. } = event {
                    let ours = story.moves.iter_mut().filter(|one| (one.worker, one.op) == (worker, op));
                    ours.for_each(|one| one.failed.push((page, fault)));
                }
                story.history.entry(page).or_default().push((now, event));
            }
        }
    }
}

fn a_move(kind: MoveKind, worker: u32, op: u64, flight: &Flight, bytes: u64) -> Move {
    Move {
        kind,
        worker,
        to: flight.to,
        op,
        at: flight.at,
        done: None,
        pages: if kind == MoveKind::Query { flight.keys.len() as u32 } else { flight.pages },
        bytes: if kind == MoveKind::Query { 0 } else { bytes },
        pieces: flight.pieces,
        failed: Vec::new(),
        shared: BTreeSet::new(),
        shared_with: BTreeSet::new(),
    }
}

const fn is_traffic(what: Doing) -> bool {
    matches!(what, Doing::Prefetch | Doing::Persist | Doing::Push)
}

fn page_event(what: Doing, worker: u32, fault: Option<Fault>) -> Option<PageEvent> {
    Some(match (what, fault) {
        (Doing::Prefetch, None) => PageEvent::Fetched { worker },
        (Doing::Prefetch, Some(fault)) => PageEvent::FetchFailed { worker, fault },
        (Doing::Persist, None) => PageEvent::Persisted { worker },
        (Doing::Persist, Some(fault)) => PageEvent::PersistFailed { worker, fault },
        (Doing::Discard, None) => PageEvent::Discarded { worker },
        (
            Doing::Forward | Doing::LoadBack | Doing::Query | Doing::Discard | Doing::Wipe | Doing::Push | Doing::Else,
            _,
        ) => return None,
    })
}

/// The number of a command whose life has ended.
const CUT: u64 = u64::MAX;

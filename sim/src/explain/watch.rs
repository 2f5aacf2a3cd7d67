//! Watches a run for what concerns some requests.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use pd_core::config::WorkerConfig;
use pd_core::event::Event;
use pd_core::id::{Epoch, PageKey, RequestId, Room};
use pd_core::kv::Prospect;
use pd_core::message::Message;
use pd_core::op::{Input, Leg as Share, Output, Submit};
use pd_core::router::{Alternative, Ask, Router, RouterInput, RouterOutput};
use pd_core::sched::{State, Wait};
use pd_core::time::Instant;
use pd_core::worker::Worker;

use super::flights::{Doing, Flight};
use super::path::Cause;
use super::site::Site;
use super::story::{Decision, Leg, PageEvent, Presence, Role, Story, Visit};
use crate::observe::{Launch, Observer};
use crate::record::Record;
use crate::setup::Action;
use crate::words;

/// Gathers the stories of some requests, and what happened around them.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) stories: BTreeMap<RequestId, Story>,
    pub(super) site: Site,
    /// Keys of all prompts, from an earlier run of the same; empty if pages need not be followed.
    prompts: Rc<Vec<Vec<PageKey>>>,
    /// Is every request of interest?
    is_all: bool,
    /// Commands in flight, by worker.
    pub(super) flights: Vec<BTreeMap<u64, Flight>>,
    pub(super) rooms: BTreeMap<Room, RequestId>,
    /// What the next input of a worker or the router was found to mean, before it was taken.
    prospect: Option<(Prospect, (u32, u32))>,
    alternatives: BTreeMap<RequestId, Vec<Alternative>>,
    asks: BTreeMap<RequestId, Ask>,
}

impl Watcher {
    /// Watches for these requests; for all of them if none is named.
    pub(super) fn new(wanted: &BTreeSet<RequestId>, site: Site, prompts: Rc<Vec<Vec<PageKey>>>) -> Self {
        let story = |request: &RequestId| {
            let keys = prompts.get(request.0 as usize).cloned().unwrap_or_default();
            let places = keys.iter().copied().zip(0..).collect();
            (*request, Story { request: *request, keys, places, ..Story::default() })
        };
        Self {
            stories: wanted.iter().map(story).collect(),
            flights: (0..site.workers.len()).map(|_| BTreeMap::new()).collect(),
            site,
            prompts,
            is_all: wanted.is_empty(),
            rooms: BTreeMap::new(),
            prospect: None,
            alternatives: BTreeMap::new(),
            asks: BTreeMap::new(),
        }
    }

    fn is_live(&self, request: RequestId) -> bool {
        self.stories.get(&request).is_some_and(|story| story.is_here && !story.is_over)
    }

    fn live(&mut self, request: RequestId) -> Option<&mut Story> {
        self.stories.get_mut(&request).filter(|story| story.is_here && !story.is_over)
    }

    /// Notes what a request waits for from here on.
    fn sample(&mut self, now: Instant, request: RequestId) {
        if let Some(story) = self.stories.get(&request).filter(|story| story.is_here && !story.is_over) {
            let part = self.part(story);
            let Some(story) = self.stories.get_mut(&request) else { return };
            story.timeline.turn(now, part);
            let (Cause::Queue | Cause::Others, Some(worker), false) = (part.cause, part.worker, story.has_token) else {
                return;
            };
            for (&op, flight) in &self.flights[worker as usize] {
                if flight.what == Doing::Forward && story.waited_for.insert((worker, op)) {
                    for (whose, tokens) in flight.runs.iter().filter(|(whose, _)| *whose != request) {
                        *story.blockers.entry(*whose).or_default() += u64::from(*tokens);
                    }
                }
            }
        }
    }

    fn on_submit(&mut self, now: Instant, worker: u32, submit: &Submit, asked: bool) {
        let (prospect, load) = self.prospect.take().map_or((None, (0, 0)), |(one, load)| (Some(one), load));
        let life = self.site.workers[worker as usize].life.unwrap_or_default();
        let (role, room) = match submit.leg {
            Share::Whole => (Role::Whole, None),
            Share::Prefill { room } => (Role::Prefill, Some(room)),
            Share::Decode { room, .. } => (Role::Decode, Some(room)),
        };
        if let Some(room) = room {
            self.rooms.insert(room, submit.request);
        }
        let Some(story) = self.live(submit.request) else { return };
        story.room = room.or(story.room);
        if asked {
            story.notes.push((now, format!("worker {worker} was asked to compute the prompt by the decode worker")));
        }
        story.visits.push(Visit {
            worker,
            life,
            role,
            at: now,
            prompt: submit.prompt.length,
            prospect,
            load,
            first: None,
            ahead: 0,
            plan: None,
            patience: None,
            admitted: None,
            served: None,
            left: None,
        });
        let leg = Leg { role, presence: Presence::Coming, is_retracted: false };
        story.legs.entry(worker).or_insert(leg).role = role;
    }

    fn on_emit(&mut self, now: Instant, worker: u32, request: RequestId, event: &Event) {
        let Some(story) = self.live(request) else { return };
        match event {
            Event::Token(_) => story.has_token = true,
            Event::Admitted(served) => {
                if let Some(visit) = story.visit(worker) {
                    visit.admitted.get_or_insert(now);
                    visit.served.get_or_insert_with(|| served.clone());
                }
            }
            // The prefill worker has said so itself.
            Event::Received(_) => {}
            Event::Retracted => {
                story.retractions.push((now, worker));
                if let Some(leg) = story.legs.get_mut(&worker) {
                    leg.is_retracted = true;
                }
            }
            Event::HandedOver => leave(story, now, worker, "handed over".to_owned()),
            Event::Finished { reason, .. } => leave(story, now, worker, format!("finished: {reason:?}")),
            Event::Refused(refusal) => leave(story, now, worker, format!("refused: {refusal:?}")),
        }
    }

    fn on_message(&mut self, now: Instant, worker: u32, message: &Message) {
        match message {
            Message::Want(want) => {
                if let Some(prompt) = &want.prompt {
                    // A prefill worker that no router told: its leg begins here.
                    let submit = Submit {
                        request: want.request,
                        prompt: (**prompt).clone(),
                        limit: 1,
                        stop: Vec::new(),
                        priority: 0,
                        deadline: None,
                        leg: Share::Prefill { room: want.room },
                    };
                    self.on_submit(now, worker, &submit, true);
                }
            }
            Message::Abort { room, by, reason, .. } => {
                let owner = self.rooms.get(room).copied();
                if let Some(story) = owner.and_then(|request| self.live(request)) {
                    story
                        .notes
                        .push((now, format!("the {by:?} of the hand-off gave up ({reason:?}), worker {worker} hears")));
                }
            }
            Message::Hello(_)
            | Message::Incompatible(_)
            | Message::Ping { .. }
            | Message::Pong { .. }
            | Message::Handoff(_)
            | Message::AbortAck { .. } => {}
        }
    }

    fn on_pages(&mut self, now: Instant, request: Option<u64>, pages: Option<[u32; 2]>, event: PageEvent) {
        let Some(request) = request else { return };
        let [from, to] = pages.unwrap_or([0, u32::MAX]);
        let prompts = Rc::clone(&self.prompts);
        let Some(keys) = prompts.get(request as usize) else { return };
        let range = keys.get(from as usize..keys.len().min(to as usize)).unwrap_or_default();
        for story in self.stories.values_mut() {
            for page in range.iter().filter_map(|key| story.places.get(key)) {
                story.history.entry(*page).or_default().push((now, event));
            }
        }
    }
}

pub(super) fn wipe(story: &mut Story, now: Instant) {
    for events in story.history.values_mut() {
        events.push((now, PageEvent::Wiped));
    }
}

fn leave(story: &mut Story, now: Instant, worker: u32, how: String) {
    if let Some(visit) = story.visit(worker) {
        visit.left = Some((now, how));
    }
}

impl Observer for Watcher {
    fn on_arrival(&mut self, now: Instant, request: RequestId, record: &Record) {
        if self.is_all {
            let keys = self.prompts.get(request.0 as usize).cloned().unwrap_or_default();
            let places = keys.iter().copied().zip(0..).collect();
            self.stories.insert(request, Story { request, keys, places, ..Story::default() });
        }
        let has_router = self.site.has_router;
        let Some(story) = self.stories.get_mut(&request) else { return };
        story.is_here = true;
        story.record = record.clone();
        if !has_router {
            let leg = Leg { role: Role::Whole, presence: Presence::Coming, is_retracted: false };
            story.legs.insert(0, leg);
        }
        self.sample(now, request);
    }

    fn on_end(&mut self, _now: Instant, request: RequestId, record: &Record) {
        if let Some(story) = self.stories.get_mut(&request) {
            story.record = record.clone();
            story.is_over = true;
        }
    }

    fn on_launch(&mut self, _now: Instant, launch: Launch<'_>) {
        if let Launch::Worker { worker, config, .. } = launch {
            *self.site.workers[worker as usize].config = WorkerConfig::clone(config);
        }
    }

    fn on_life(&mut self, now: Instant, worker: u32, epoch: Option<Epoch>) {
        self.site.lives(now, worker, epoch);
        self.cut(worker);
        let has_router = self.site.has_router;
        let concerned: Vec<RequestId> =
            self.stories.iter().filter(|(_, story)| story.legs.contains_key(&worker)).map(|(id, _)| *id).collect();
        for request in concerned {
            if epoch.is_none()
                && let Some(story) = self.live(request)
            {
                leave(story, now, worker, "the worker went away".to_owned());
                story.legs.remove(&worker);
                if !has_router {
                    let leg = Leg { role: Role::Whole, presence: Presence::Coming, is_retracted: false };
                    story.legs.insert(worker, leg);
                }
            }
            self.sample(now, request);
        }
    }

    fn on_action(&mut self, now: Instant, action: &Action) {
        self.site.actions.push((now, action.clone()));
        if let Action::StoreRemove(damage) = action {
            self.on_pages(now, damage.request, damage.pages, PageEvent::Removed);
        }
        if let Action::StoreTear(damage) = action {
            self.on_pages(now, damage.request, damage.pages, PageEvent::Torn);
        }
        if let Action::StoreWipe(_) = action {
            self.stories.values_mut().for_each(|story| wipe(story, now));
        }
        if let Action::Cancel(cancel) = action
            && let Some(story) = self.live(RequestId(cancel.request))
        {
            story.notes.push((now, "its client went away (script: cancel)".to_owned()));
        }
    }

    fn before_worker(&mut self, _now: Instant, _worker: u32, input: &Input, machine: &Worker) {
        self.prospect = None;
        if let Input::Submit(submit) = input
            && self.is_live(submit.request)
        {
            let load = machine.load();
            self.prospect = Some((machine.prospect(&submit.prompt), (load.running, load.waiting)));
        }
    }

    fn on_worker(&mut self, now: Instant, worker: u32, input: &Input, outputs: &[Output]) {
        match input {
            Input::Submit(submit) => self.on_submit(now, worker, submit, false),
            Input::Done { op, outcome } => self.on_done(now, worker, op.seq, outcome),
            Input::Recv { message, .. } => self.on_message(now, worker, message),
            Input::Tick | Input::Cancel { .. } | Input::Peer { .. } | Input::Control(_) => {}
        }
        for output in outputs {
            match output {
                Output::Start { op, after, command } => {
                    let after = after.iter().map(|op| op.seq).collect();
                    self.on_start(now, worker, op.seq, after, command);
                }
                Output::Emit { request, event } => self.on_emit(now, worker, *request, event),
                Output::Send { message: Message::Want(want), .. } => {
                    if let Some(story) = self.live(want.request) {
                        story.notes.push((
                            now,
                            format!(
                                "decode worker {worker} offers {} for the KV, it has {} already",
                                words::plural(want.pages.len() as u64, "page"),
                                want.have
                            ),
                        ));
                    }
                }
                Output::Send { .. } | Output::Publish(_) => {}
            }
        }
    }

    fn after_worker(&mut self, now: Instant, worker: u32, machine: &Worker) {
        let is_concerned = |story: &Story| story.is_here && !story.is_over && story.legs.contains_key(&worker);
        let concerned: Vec<RequestId> =
            self.stories.iter().filter(|(_, story)| is_concerned(story)).map(|(request, _)| *request).collect();
        for request in concerned {
            let standing = machine.standing(request);
            if let Some(story) = self.stories.get_mut(&request) {
                if let (Some(standing), Some(visit)) = (standing, story.visit(worker)) {
                    if standing.stage == State::Waiting && visit.admitted.is_none() {
                        visit.first.get_or_insert(standing);
                        visit.ahead = visit.ahead.max(standing.ahead);
                    }
                    visit.plan = standing.fetch.or(visit.plan);
                    if let Wait::Fetch(until) = standing.wait {
                        visit.patience = Some(until);
                    }
                }
                if let Some(leg) = story.legs.get_mut(&worker) {
                    leg.presence = match (standing, leg.presence) {
                        (Some(standing), _) => Presence::Here(standing),
                        (None, Presence::Coming) => Presence::Coming,
                        (None, Presence::Here(_) | Presence::Gone) => Presence::Gone,
                    };
                    leg.is_retracted &=
                        standing.is_some_and(|one| matches!(one.stage, State::Waiting | State::Retracting));
                }
            }
            self.sample(now, request);
        }
    }

    fn before_router(&mut self, now: Instant, input: &RouterInput, router: &Router) {
        match input {
            RouterInput::Submit(ask) if self.is_live(ask.request) => {
                self.alternatives.insert(ask.request, router.candidates(now, ask));
                self.asks.insert(ask.request, (**ask).clone());
            }
            // A retry is routed in a step that is not about the request.
            RouterInput::Tick | RouterInput::Failed { .. } | RouterInput::Worker { .. } => {
                let waiting = router.requests().filter(|view| view.waits_until.is_some()).map(|view| view.request);
                let failed = if let RouterInput::Failed { request, .. } = input { Some(*request) } else { None };
                for request in waiting.chain(failed).collect::<Vec<_>>() {
                    if let Some(ask) = self.asks.get(&request).filter(|_| self.is_live(request)) {
                        self.alternatives.insert(request, router.candidates(now, ask));
                    }
                }
            }
            RouterInput::Submit(_)
            | RouterInput::Cancel { .. }
            | RouterInput::FirstToken { .. }
            | RouterInput::Finished { .. }
            | RouterInput::Load { .. }
            | RouterInput::Changes { .. }
            | RouterInput::Drain { .. } => {}
        }
    }

    fn on_router(&mut self, now: Instant, input: &RouterInput, outputs: &[RouterOutput]) {
        let mut changed = BTreeSet::new();
        if let RouterInput::Failed { request, worker, fault, attempt, .. } = input
            && let Some(story) = self.live(*request)
        {
            story.notes.push((now, format!("attempt {attempt} failed on worker {worker}: {fault:?}")));
            story.legs.clear();
            changed.insert(*request);
        }
        for output in outputs {
            let (request, result) = match output {
                RouterOutput::Route(route) => (route.request, Ok(route.clone())),
                RouterOutput::Refuse { request, refusal } => (*request, Err(*refusal)),
                RouterOutput::Cancel { request, worker, .. } => {
                    if let Some(story) = self.live(*request) {
                        leave(story, now, worker.0, "called back by the router".to_owned());
                        story.legs.remove(&worker.0);
                        changed.insert(*request);
                    }
                    continue;
                }
            };
            let alternatives = self.alternatives.remove(&request).unwrap_or_default();
            let Some(story) = self.live(request) else { continue };
            story.legs.clear();
            if let Ok(route) = &result {
                let coming = |role| Leg { role, presence: Presence::Coming, is_retracted: false };
                match route.prefill {
                    Some(prefill) => {
                        story.legs.insert(prefill.0, coming(Role::Prefill));
                        story.legs.insert(route.decode.0, coming(Role::Decode));
                    }
                    None => _ = story.legs.insert(route.decode.0, coming(Role::Whole)),
                }
            }
            story.decisions.push(Decision { at: now, result, alternatives });
            changed.insert(request);
        }
        for request in changed {
            self.sample(now, request);
        }
    }
}

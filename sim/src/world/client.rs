//! The clients and the shell of the router: who asked for what, which worker serves it, and what came back.
//!
//! Owns the records. A leg is open until its worker says its last word on it (finished, refused, handed over); what a
//! worker says of a leg that has been called back is not for the client.

use std::collections::{BTreeMap, BTreeSet};

use pd_core::event::{Event, Failure, Finish, Refusal};
use pd_core::id::{PageKey, RequestId, Token, WorkerId};
use pd_core::key::page_key;
use pd_core::op::{Input, Leg, Prompt, Submit};
use pd_core::router::{Ask, Route, RouteFault, RouterInput, RouterOutput};
use pd_core::time::Instant;

use super::WorldOf;
use crate::lane::{Mark, Text};
use crate::node::Serve;
use crate::record::{End, Record};
use crate::setup::{Answer, Source};
use crate::stats::LogHistogram;

/// All requests so far.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) records: Vec<Record>,
    pub(super) itl: LogHistogram,
    sources: Vec<Box<dyn Source>>,
    answer: Answer,
    has_router: bool,
    /// What is needed of a request until it ends.
    live: Vec<Option<Box<Live>>>,
    live_count: u32,
    /// Legs that were called back and whose worker has not confirmed it.
    called_back: BTreeSet<(RequestId, u32)>,
    arrival_at: Option<Instant>,
    has_ended: bool,
    /// Requests that wait for the only worker to come back.
    parked: Vec<RequestId>,
    /// Page keys of the prompts that the script names, once they have arrived.
    kept: BTreeMap<RequestId, Vec<PageKey>>,
}

#[derive(Debug)]
struct Live {
    prompt: Prompt,
    priority: i32,
    seed: u64,
    attempt: u32,
    /// Tokens had before this attempt.
    tokens_before: u32,
    /// Indices of the workers with an open leg; `NOBODY` for none.
    prefill: u32,
    decode: u32,
    source: u32,
    ordinal: u64,
}

const NOBODY: u32 = u32::MAX;

impl Clients {
    pub(super) fn new(sources: Vec<Box<dyn Source>>, answer: Answer, has_router: bool) -> Self {
        Self {
            records: Vec::new(),
            itl: LogHistogram::new(),
            sources,
            answer,
            has_router,
            live: Vec::new(),
            live_count: 0,
            called_back: BTreeSet::new(),
            arrival_at: None,
            has_ended: false,
            parked: Vec::new(),
            kept: BTreeMap::new(),
        }
    }

    /// The page keys of this request will be asked for.
    pub(super) fn keep(&mut self, request: RequestId) {
        self.kept.insert(request, Vec::new());
    }

    /// The page keys of a prompt that was to be kept.
    pub(super) fn keys(&self, request: RequestId) -> &[PageKey] {
        self.kept.get(&request).map_or(&[], Vec::as_slice)
    }

    /// True if no request is live and none is to come.
    pub(super) fn is_idle(&self) -> bool {
        self.live_count == 0 && self.next_arrival().is_none()
    }

    /// Requests that have ended, and requests that are known of.
    pub(super) fn progress(&self) -> (u64, u64) {
        let arrived = self.records.len() as u64;
        let known = self.sources.iter().map(|source| source.total()).sum::<u64>();
        (arrived - u64::from(self.live_count), known.max(arrived))
    }

    /// True once after requests have ended.
    pub(super) fn has_ended(&mut self) -> bool {
        std::mem::take(&mut self.has_ended)
    }

    /// The prompt of a request that is still live.
    pub(super) fn prompt(&self, request: RequestId) -> Option<&Prompt> {
        self.live.get(request.0 as usize)?.as_ref().map(|live| &live.prompt)
    }

    /// Takes note of what a worker says; returns what the router must know.
    #[inline]
    pub(super) fn on_event(
        &mut self,
        now: Instant,
        node: u32,
        request: RequestId,
        event: Event,
    ) -> Option<RouterInput> {
        let index = request.0 as usize;
        if let Event::Token(_) = event {
            if !self.called_back.is_empty() && self.called_back.contains(&(request, node)) {
                return None;
            }
            let record = self.records.get_mut(index)?;
            if record.decode != Some(node) || record.end.is_some() {
                return None;
            }
            record.tokens += 1;
            if let Some(last) = record.last_token.replace(now) {
                self.itl.push(now.ns_since(last));
            }
            if record.first_token.is_some() && record.retries == 0 {
                return None;
            }
        }
        self.on_rare_event(now, node, request, event)
    }

    fn on_rare_event(&mut self, now: Instant, node: u32, request: RequestId, event: Event) -> Option<RouterInput> {
        let index = request.0 as usize;
        if !self.called_back.is_empty() && self.called_back.contains(&(request, node)) {
            if matches!(event, Event::Finished { .. } | Event::Refused(_) | Event::HandedOver) {
                self.called_back.remove(&(request, node));
            }
            return None;
        }
        let live = self.live.get_mut(index)?.as_mut()?;
        let record = &mut self.records[index];
        let is_prefill = live.prefill == node;
        if !is_prefill && live.decode != node {
            return None;
        }
        let attempt = live.attempt;
        match event {
            Event::Token(_) => {
                record.first_token.get_or_insert(now);
                let is_first = record.tokens == live.tokens_before + 1;
                is_first.then_some(RouterInput::FirstToken { request, attempt })
            }
            Event::Admitted(served) => {
                if is_prefill || record.prefill.is_none() {
                    record.admitted.get_or_insert(now);
                    record.served = Some(served);
                } else {
                    record.sink_served = Some(served);
                }
                None
            }
            Event::HandedOver => {
                record.handed_over.get_or_insert(now);
                live.prefill = NOBODY;
                None
            }
            Event::Retracted => {
                record.retractions += 1;
                None
            }
            Event::Finished { reason: Finish::Failed(failure), .. } => {
                live.close(node);
                // A sink whose source failed finds another one or computes the prompt itself.
                if is_prefill {
                    return None;
                }
                let fault = if failure == Failure::Peer { RouteFault::Peer } else { RouteFault::Aborted };
                self.fail(now, request, node, fault, End::Finished(Finish::Failed(failure)))
            }
            Event::Finished { reason, .. } => {
                live.close(node);
                if is_prefill {
                    return None;
                }
                self.end(now, request, End::Finished(reason));
                Some(RouterInput::Finished { request, output: self.records[index].tokens })
            }
            Event::Refused(refusal) => {
                live.close(node);
                let fault = match refusal {
                    Refusal::QueueFull { .. } | Refusal::Draining | Refusal::WrongMode => RouteFault::Refused,
                    Refusal::DuplicateRequest | Refusal::DuplicateRoom => RouteFault::Aborted,
                    Refusal::Late => RouteFault::Timeout,
                    Refusal::NeverFits { .. } | Refusal::Malformed | Refusal::NoOutput => RouteFault::BadRequest,
                };
                self.fail(now, request, node, fault, End::Refused(refusal))
            }
        }
    }

    /// A leg ended badly: the router's matter or, without one, the end.
    fn fail(
        &mut self,
        now: Instant,
        request: RequestId,
        node: u32,
        fault: RouteFault,
        end: End,
    ) -> Option<RouterInput> {
        let index = request.0 as usize;
        if !self.has_router {
            self.end(now, request, end);
            return None;
        }
        let attempt = self.live[index].as_ref()?.attempt;
        let output = self.records[index].tokens;
        Some(RouterInput::Failed { request, attempt, worker: WorkerId(node), fault, output })
    }

    /// Ends a request for its client.
    pub(super) fn end(&mut self, now: Instant, request: RequestId, end: End) {
        let index = request.0 as usize;
        let Some(live) = self.live[index].take() else { return };
        let record = &mut self.records[index];
        record.finished = Some(now);
        record.end = Some(end);
        self.live_count -= 1;
        self.has_ended = true;
        self.sources[live.source as usize].finished(now, live.ordinal, record.is_complete());
    }

    fn next_arrival(&self) -> Option<(Instant, usize)> {
        let times = self.sources.iter().zip(0..).filter_map(|(source, index)| Some((source.next()?, index)));
        times.min()
    }

    /// Takes the next arrival.
    fn arrive(&mut self, now: Instant) -> Option<RequestId> {
        let (_, source) = self.next_arrival().filter(|(at, _)| *at <= now)?;
        let arrival = self.sources[source].take();
        let request = RequestId(self.records.len() as u64);
        self.records.push(Record {
            arrival: now,
            prompt_tokens: arrival.prompt.length,
            counted_tokens: arrival.counted_tokens,
            limit: arrival.output_tokens,
            session: arrival.session,
            ..Record::default()
        });
        self.live.push(Some(Box::new(Live {
            prompt: arrival.prompt,
            priority: arrival.priority,
            seed: arrival.seed,
            attempt: 0,
            tokens_before: 0,
            prefill: NOBODY,
            decode: NOBODY,
            source: source as u32,
            ordinal: arrival.ordinal,
        })));
        self.live_count += 1;
        if let (Some(keys), Some(Some(live))) = (self.kept.get_mut(&request), self.live.last()) {
            keys.clone_from(&live.prompt.keys);
        }
        Some(request)
    }

    /// Opens the legs of an attempt; false if there is nothing left to generate.
    fn open(&mut self, now: Instant, request: RequestId, attempt: u32, prefill: Option<u32>, decode: u32) -> bool {
        let index = request.0 as usize;
        let record = &mut self.records[index];
        let Some(live) = &mut self.live[index] else { return false };
        record.routed.get_or_insert(now);
        record.retries = attempt;
        record.prefill = prefill;
        record.decode = Some(decode);
        live.attempt = attempt;
        live.tokens_before = record.tokens;
        live.prefill = prefill.unwrap_or(NOBODY);
        live.decode = decode;
        record.tokens < record.limit
    }

    /// A leg as its worker gets it: the prompt and what the client has already had of the answer.
    fn submit(&self, request: RequestId, leg: Leg, page_size: u32) -> Option<Submit> {
        let live = self.live[request.0 as usize].as_ref()?;
        let record = &self.records[request.0 as usize];
        let mut prompt = live.prompt.clone();
        for index in 0..record.tokens {
            prompt.tokens.push((self.answer)(live.seed, index));
        }
        prompt.length += record.tokens;
        let missing = prompt.length as usize - prompt.tokens.len();
        while prompt.keys.len() < (prompt.length / page_size) as usize {
            let start = prompt.keys.len() * page_size as usize - missing;
            let page: &[Token] = &prompt.tokens[start..start + page_size as usize];
            let key = page_key(prompt.keys.last().copied().unwrap_or(prompt.root), page);
            prompt.keys.push(key);
        }
        Some(Submit {
            request,
            prompt,
            limit: record.limit - record.tokens,
            stop: Vec::new(),
            priority: live.priority,
            deadline: None,
            leg,
        })
    }

    /// The legs of a life that has ended are closed; returns what the only worker has to be asked again.
    pub(super) fn lose(&mut self, node: u32) {
        self.called_back.retain(|(_, other)| *other != node);
        for (live, request) in self.live.iter_mut().zip(0..) {
            let Some(live) = live else { continue };
            if live.close(node) && !self.has_router {
                self.parked.push(RequestId(request));
            }
        }
    }

    /// Requests that waited for the only worker.
    pub(super) fn unpark(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.parked)
    }

    fn call_back(&mut self, request: RequestId, node: u32) -> bool {
        let is_open = self.live[request.0 as usize].as_mut().is_some_and(|live| live.close(node));
        if is_open {
            self.called_back.insert((request, node));
        }
        is_open
    }
}

impl Live {
    /// Closes the leg at a worker; false if there was none.
    fn close(&mut self, node: u32) -> bool {
        let slot = if self.prefill == node { &mut self.prefill } else { &mut self.decode };
        std::mem::replace(slot, if *slot == node { NOBODY } else { *slot }) == node
    }
}

impl<M: Serve> WorldOf<M> {
    /// The next arrivals are due.
    pub(super) fn arrive(&mut self) {
        if self.clients.arrival_at != Some(self.now) {
            return;
        }
        self.clients.arrival_at = None;
        while let Some(request) = self.clients.arrive(self.now) {
            let live = self.clients.live[request.0 as usize].as_ref().expect("a request is live when it arrives");
            let record = &self.clients.records[request.0 as usize];
            self.fabric.texts.push(Text { prompt: live.prompt.length, seed: live.seed });
            if let Some(memory) = &mut self.fabric.memory {
                memory.tell(request, &live.prompt, live.seed);
            }
            if let Some(router) = &self.router {
                let ask = Ask {
                    request,
                    keys: live.prompt.keys.clone(),
                    length: live.prompt.length,
                    limit: record.limit,
                    priority: live.priority,
                    session: record.session,
                };
                let note = Mark::Note(Box::new(RouterInput::Submit(Box::new(ask))));
                self.fabric.heap.push(self.now.after_ns(router.latency_ns), note);
            } else {
                self.submit_whole(request);
            }
        }
        self.arm_arrival();
    }

    pub(super) fn arm_arrival(&mut self) {
        let Some((at, _)) = self.clients.next_arrival() else { return };
        let at = at.max(self.now);
        if self.clients.arrival_at.is_none_or(|arrival_at| at < arrival_at) {
            self.clients.arrival_at = Some(at);
            self.fabric.heap.push(at, Mark::Arrival);
        }
    }

    /// Without a router: to the only worker, as soon as it is up.
    pub(super) fn submit_whole(&mut self, request: RequestId) {
        if self.fabric.lives[0].is_none() {
            self.clients.parked.push(request);
            return;
        }
        let record = &self.clients.records[request.0 as usize];
        let attempt = if record.routed.is_some() { record.retries + 1 } else { 0 };
        if self.clients.open(self.now, request, attempt, None, 0) {
            self.submit_leg(request, 0, Leg::Whole, 0);
        } else {
            self.end(request, End::Finished(Finish::Length));
        }
    }

    pub(super) fn end(&mut self, request: RequestId, end: End) {
        self.clients.end(self.now, request, end);
        if self.clients.has_ended() {
            self.arm_arrival();
            self.end_if_idle();
        }
    }

    /// The client of a request goes away.
    pub(super) fn cancel(&mut self, request: RequestId) {
        if self.clients.prompt(request).is_none() {
            return;
        }
        if let Some(router) = &self.router {
            let note = Mark::Note(Box::new(RouterInput::Cancel { request }));
            self.fabric.heap.push(self.now.after_ns(router.latency_ns), note);
        } else {
            self.post(0, 0, Input::Cancel { request });
        }
    }

    pub(super) fn feed_router(&mut self, input: RouterInput) {
        let now = self.now;
        if let RouterInput::Cancel { request } = input
            && self.clients.prompt(request).is_none()
        {
            return;
        }
        let cancelled = if let RouterInput::Cancel { request } = input { Some(request) } else { None };
        let Some(router) = &mut self.router else { return };
        let outputs: Vec<RouterOutput> = router.pump.feed(now, input).collect();
        for output in outputs {
            match output {
                RouterOutput::Route(route) => self.route(&route),
                RouterOutput::Cancel { request, worker, .. } => {
                    if self.clients.call_back(request, worker.0) {
                        let latency_ns = self.router.as_ref().map_or(0, |router| router.latency_ns);
                        self.post(worker.0, latency_ns, Input::Cancel { request });
                    }
                }
                RouterOutput::Refuse { request, refusal } => self.end(request, End::NotRouted(refusal)),
            }
        }
        if let Some(request) = cancelled {
            self.end(request, End::Finished(Finish::Cancelled));
        }
        self.arm_router();
    }

    fn route(&mut self, route: &Route) {
        let Route { request, attempt, prefill, decode, room, .. } = *route;
        if !self.clients.open(self.now, request, attempt, prefill.map(|id| id.0), decode.0) {
            let output = self.clients.records[request.0 as usize].tokens;
            self.end(request, End::Finished(Finish::Length));
            self.note(RouterInput::Finished { request, output });
            return;
        }
        let latency_ns = self.router.as_ref().map_or(0, |router| router.latency_ns);
        if let Some(prefill) = prefill {
            self.submit_leg(request, decode.0, Leg::Decode { room, prefill }, latency_ns);
            self.submit_leg(request, prefill.0, Leg::Prefill { room }, latency_ns);
        } else {
            self.submit_leg(request, decode.0, Leg::Whole, latency_ns);
        }
    }

    fn submit_leg(&mut self, request: RequestId, node: u32, leg: Leg, latency_ns: u64) {
        let page_size = self.nodes[node as usize].config.kv.page_size;
        if let Some(submit) = self.clients.submit(request, leg, page_size) {
            self.post(node, latency_ns, Input::Submit(Box::new(submit)));
        }
    }

    /// What could not be delivered: the router hears that a submit met a closed door.
    pub(super) fn return_to_sender(&mut self, to: u32, input: Input) {
        let Input::Submit(submit) = input else { return };
        let request = submit.request;
        let Some(live) = &mut self.clients.live[request.0 as usize] else { return };
        let is_open = live.close(to);
        let attempt = live.attempt;
        if self.router.is_none() {
            if is_open {
                self.clients.parked.push(request);
            }
        } else if is_open {
            let output = self.clients.records[request.0 as usize].tokens;
            let fault = RouteFault::Connection;
            self.note(RouterInput::Failed { request, attempt, worker: WorkerId(to), fault, output });
        }
    }

    pub(super) fn note(&mut self, input: RouterInput) {
        if let Some(router) = &self.router {
            self.fabric.heap.push(self.now.after_ns(router.latency_ns), Mark::Note(Box::new(input)));
        }
    }

    pub(super) fn tick_router(&mut self) {
        let now = self.now;
        let Some(router) = &mut self.router else { return };
        if router.tick_at != Some(now) {
            return;
        }
        router.tick_at = None;
        if router.pump.deadline().is_some_and(|(at, _)| at <= now) {
            self.feed_router(RouterInput::Tick);
        }
        self.arm_router();
    }

    fn arm_router(&mut self) {
        let Some(router) = &mut self.router else { return };
        let Some((at, _)) = router.pump.deadline() else { return };
        let at = at.max(self.now);
        if router.tick_at.is_none_or(|tick_at| at < tick_at) {
            router.tick_at = Some(at);
            self.fabric.heap.push(at, Mark::RouterTick);
        }
    }
}

//! The clients: who asked for what, which worker serves it, and what came back.
//!
//! Owns the records. A leg is open until its worker says its last word on it (finished, refused, handed over); what a
//! worker says of a leg that has been called back is not for the client.

use std::collections::{BTreeMap, BTreeSet};

use pd_core::event::{Event, Failure, Finish, Refusal};
use pd_core::id::{PageKey, RequestId, Token, WorkerId};
use pd_core::key::page_key;
use pd_core::op::{Leg, Prompt, Submit};
use pd_core::router::{RouteFault, RouterInput};
use pd_core::time::Instant;

use crate::record::{End, Record};
use crate::setup::{Answers, Source};
use crate::stats::LogHistogram;

/// All requests so far.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(super) records: Vec<Record>,
    pub(super) itl: LogHistogram,
    sources: Vec<Box<dyn Source>>,
    answers: Answers,
    has_router: bool,
    /// What is needed of a request until it ends.
    pub(super) live: Vec<Option<Box<Live>>>,
    live_count: u32,
    /// Legs that were called back and whose worker has not confirmed it.
    called_back: BTreeSet<(RequestId, u32)>,
    /// The earliest arrival in the event queue.
    pub(super) arrival_at: Option<Instant>,
    /// Requests that have ended since the world last looked.
    pub(super) ended: Vec<RequestId>,
    /// Requests that wait for the only worker to come back.
    pub(super) parked: Vec<RequestId>,
    /// Page keys of the prompts that the script names, once they have arrived.
    kept: BTreeMap<RequestId, Vec<PageKey>>,
}

/// What is needed of a request until it ends.
#[derive(Debug)]
pub(crate) struct Live {
    pub(super) prompt: Prompt,
    pub(super) priority: i32,
    pub(super) seed: u64,
    pub(super) attempt: u32,
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
    pub(super) fn new(sources: Vec<Box<dyn Source>>, answers: Answers, has_router: bool) -> Self {
        Self {
            records: Vec::new(),
            itl: LogHistogram::new(),
            sources,
            answers,
            has_router,
            live: Vec::new(),
            live_count: 0,
            called_back: BTreeSet::new(),
            arrival_at: None,
            ended: Vec::new(),
            parked: Vec::new(),
            kept: BTreeMap::new(),
        }
    }

    /// The page keys of this request will be asked for.
    pub(super) fn keep(&mut self, request: RequestId) {
        self.kept.insert(request, Vec::new());
    }

    /// The requests that are live.
    pub(crate) fn live_requests(&self) -> impl Iterator<Item = RequestId> {
        (0..).zip(&self.live).filter(|(_, live)| live.is_some()).map(|(request, _)| RequestId(request))
    }

    /// The requests with an open leg at a worker.
    pub(crate) fn legs_at(&self, node: u32) -> Vec<RequestId> {
        let has_leg = |live: &Live| live.prefill == node || live.decode == node;
        let live = (0..).zip(&self.live).filter(|(_, live)| live.as_deref().is_some_and(has_leg));
        live.map(|(request, _)| RequestId(request)).collect()
    }

    /// The workers with an open leg of a request.
    pub(crate) fn open_legs(&self, request: RequestId) -> Vec<u32> {
        let live = self.live.get(request.0 as usize).and_then(Option::as_deref);
        let legs = live.map_or([NOBODY; 2], |live| [live.prefill, live.decode]);
        legs.into_iter().filter(|node| *node != NOBODY).collect()
    }

    /// The page keys of a prompt that was to be kept.
    pub(crate) fn keys(&self, request: RequestId) -> &[PageKey] {
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

    /// Requests that have arrived and have not ended.
    pub(super) fn unfinished(&self) -> Vec<RequestId> {
        let live = self.live.iter().zip(0..).filter(|(live, _)| live.is_some());
        live.map(|(_, request)| RequestId(request)).collect()
    }

    /// True if requests have ended since the world last looked.
    pub(super) const fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// The prompt of a request that is still live.
    pub(super) fn prompt(&self, request: RequestId) -> Option<&Prompt> {
        self.live.get(request.0 as usize)?.as_ref().map(|live| &live.prompt)
    }

    /// The workers with an open leg of a request.
    pub(super) fn workers(&self, request: RequestId) -> [Option<u32>; 2] {
        let live = self.live.get(request.0 as usize).and_then(Option::as_ref);
        let open = |node: u32| (node != NOBODY).then_some(node);
        live.map_or([None; 2], |live| [open(live.prefill), open(live.decode)])
    }

    /// Takes note of tokens of a request, one at the end of each step, none of them its first. Times between tokens are
    /// the caller's to note, except for the first.
    pub(super) fn on_tokens(&mut self, node: u32, request: RequestId, ends: &[Instant]) -> bool {
        if !self.called_back.is_empty() && self.called_back.contains(&(request, node)) {
            return false;
        }
        let (Some(record), Some((&first, &last))) =
            (self.records.get_mut(request.0 as usize), ends.first().zip(ends.last()))
        else {
            return false;
        };
        if record.decode != Some(node) || record.end.is_some() {
            return false;
        }
        record.tokens += ends.len() as u32;
        let before = record.last_token.replace(last).expect("the first token came step by step");
        self.itl.push(first.ns_since(before));
        true
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
            // The prefill worker has said so itself.
            Event::Received(_) => None,
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
                    Refusal::NeverFits { .. }
                    | Refusal::PromptTooLong { .. }
                    | Refusal::Malformed
                    | Refusal::NoOutput => RouteFault::BadRequest,
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
        self.ended.push(request);
        self.sources[live.source as usize].finished(now, live.ordinal, record.is_complete());
    }

    pub(super) fn next_arrival(&self) -> Option<(Instant, usize)> {
        let times = self.sources.iter().zip(0..).filter_map(|(source, index)| Some((source.next()?, index)));
        times.min()
    }

    /// Takes the next arrival.
    pub(super) fn arrive(&mut self, now: Instant) -> Option<RequestId> {
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
    pub(super) fn open(
        &mut self,
        now: Instant,
        request: RequestId,
        attempt: u32,
        prefill: Option<u32>,
        decode: u32,
    ) -> bool {
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
    pub(super) fn submit(&self, request: RequestId, leg: Leg, page_size: u32) -> Option<Submit> {
        let live = self.live[request.0 as usize].as_ref()?;
        let record = &self.records[request.0 as usize];
        let mut prompt = live.prompt.clone();
        for index in 0..record.tokens {
            prompt.tokens.push(self.answers.token(live.seed, index));
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

    pub(crate) fn call_back(&mut self, request: RequestId, node: u32) -> bool {
        let is_open = self.live[request.0 as usize].as_mut().is_some_and(|live| live.close(node));
        if is_open {
            self.called_back.insert((request, node));
        }
        is_open
    }
}

impl Live {
    /// Closes the leg at a worker; false if there was none.
    pub(super) fn close(&mut self, node: u32) -> bool {
        let slot = if self.prefill == node { &mut self.prefill } else { &mut self.decode };
        std::mem::replace(slot, if *slot == node { NOBODY } else { *slot }) == node
    }
}

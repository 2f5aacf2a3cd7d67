//! What a client is told of each leg: in order, once, the truth, and nothing after the end.
//!
//! ```text
//!  Submit ─> taken ─ Admitted ─ [Received] ─> told ( Token | Retracted )* ─> Finished
//!              └───────────────────────────────────────────────────────────> Finished | Refused
//!
//!  a prefill leg: HandedOver, no tokens; Received: a leg that took over from one
//! ```
//!
//! Answers are a pure function of the request, so each token is known in advance. A cancel is answered in its own step. A
//! worker never has fewer sequences than legs that wait for a last word.

use std::collections::BTreeMap;

use pd_core::config::WorkerConfig;
use pd_core::event::{Event, Finish, Refusal, Served};
use pd_core::id::{RequestId, WorkerId};
use pd_core::message::Want;
use pd_core::op::{Leg as Part, Submit};
use pd_core::router::{RouterInput, RouterOutput};
use pd_core::time::{Instant, nanos};

use super::{About, Checker, Log};
use crate::lane::Fabric;

/// A leg that its worker has not had its last word on.
#[derive(Clone, Copy, Debug)]
struct Leg {
    is_prefill: bool,
    prompt: u32,
    limit: u32,
    told: u32,
    is_admitted: bool,
}

/// All legs of all workers.
#[derive(Debug)]
pub(super) struct Lifecycle {
    legs: Vec<BTreeMap<RequestId, Leg>>,
    /// Legs of a newer attempt that wait for the name of the one before.
    waiting: Vec<BTreeMap<RequestId, Leg>>,
    /// Where the router has sent a request.
    routed: BTreeMap<RequestId, (Option<WorkerId>, WorkerId)>,
    /// What prefill workers said of where they had a prompt from.
    sources: BTreeMap<RequestId, Vec<Served>>,
    checks_tokens: bool,
    /// The present input submits a request that is live there already.
    duplicate: Option<RequestId>,
    cancelled: Option<RequestId>,
    /// A sink asks here for a prompt that no router announced.
    asked: Option<RequestId>,
}

impl Lifecycle {
    pub(super) fn new(workers: usize, checks_tokens: bool) -> Self {
        let legs = vec![BTreeMap::new(); workers];
        Self {
            waiting: legs.clone(),
            legs,
            routed: BTreeMap::new(),
            sources: BTreeMap::new(),
            checks_tokens,
            duplicate: None,
            cancelled: None,
            asked: None,
        }
    }

    pub(super) fn on_life(&mut self, worker: u32) {
        self.legs[worker as usize].clear();
        self.waiting[worker as usize].clear();
    }

    pub(super) fn on_router_life(&mut self) {
        self.routed.clear();
    }

    #[inline]
    pub(super) fn begin(&mut self) {
        (self.duplicate, self.cancelled, self.asked) = (None, None, None);
    }

    /// A worker is given a leg. Returns when it has to have ended there.
    pub(super) fn submit(
        &mut self,
        log: &mut Log,
        now: Instant,
        worker: u32,
        submit: &Submit,
        fabric: &Fabric,
        config: &WorkerConfig,
    ) -> Option<Instant> {
        let request = submit.request;
        let legs = &mut self.legs[worker as usize];
        let is_prefill = matches!(submit.leg, Part::Prefill { .. });
        let prompt = submit.prompt.length;
        // An answer ends where the context does.
        let limit = submit.limit.min(config.sched.context_length.saturating_sub(prompt));
        let leg = Leg { is_prefill, prompt, limit, told: 0, is_admitted: false };
        if legs.contains_key(&request) {
            // It is refused in this step, or has its turn when the other one has ended.
            self.duplicate = Some(request);
            self.waiting[worker as usize].insert(request, leg);
            return None;
        }
        legs.insert(request, leg);
        let text = fabric.texts.get(request.0 as usize).copied().unwrap_or_default();
        if prompt < text.prompt {
            log.report(Checker::Lifecycle, About::leg(worker, request), "is submitted with less than its prompt");
        }
        let default = config.sched.default_deadline;
        submit.deadline.or_else(|| (nanos(default) > 0).then(|| now + default))
    }

    /// A worker is asked by a sink for a prompt that no router announced.
    pub(super) fn asked(&mut self, worker: u32, want: &Want) {
        let leg = Leg { is_prefill: true, prompt: want.length, limit: 1, told: 0, is_admitted: false };
        self.legs[worker as usize].entry(want.request).or_insert_with(|| {
            self.asked = Some(want.request);
            leg
        });
    }

    pub(super) fn cancel(&mut self, worker: u32, request: RequestId) {
        self.cancelled = Some(request).filter(|request| self.legs[worker as usize].contains_key(request));
    }

    /// A worker says something to a client. True if it is its last word.
    #[inline]
    pub(super) fn event(
        &mut self,
        log: &mut Log,
        worker: u32,
        request: RequestId,
        event: &Event,
        fabric: &Fabric,
    ) -> bool {
        let about = About::leg(worker, request);
        if self.duplicate == Some(request) && matches!(event, Event::Refused(_)) {
            self.duplicate = None;
            self.waiting[worker as usize].remove(&request);
            return false;
        }
        let Some(leg) = self.legs[worker as usize].get_mut(&request) else {
            log.report(Checker::Lifecycle, about, format!("{} after the end, or before the begin", name(event)));
            return false;
        };
        let mut wrong = |what: String| log.report(Checker::Lifecycle, about, what);
        match event {
            Event::Token(token) => {
                if leg.is_prefill || !leg.is_admitted {
                    wrong(format!("token {token} of a leg that generates none (yet)"));
                }
                if leg.told >= leg.limit {
                    wrong(format!("token {token} beyond the limit of {}", leg.limit));
                }
                if self.checks_tokens {
                    let expected = fabric.answer(request, leg.prompt + leg.told);
                    if *token != expected {
                        wrong(format!("token {token} where {expected} is due"));
                    }
                }
                leg.told += 1;
                return false;
            }
            Event::Admitted(served) => {
                if std::mem::replace(&mut leg.is_admitted, true) {
                    wrong("is admitted twice".to_owned());
                }
                if !served.is_of(leg.prompt) {
                    wrong(format!("served and missed are not a prompt of {}: {served:?}", leg.prompt));
                }
                if leg.is_prefill {
                    self.sources.entry(request).or_default().push(Served::clone(served));
                }
                return false;
            }
            Event::Retracted => {
                if leg.is_prefill || !leg.is_admitted {
                    wrong("gives pages back that it cannot have".to_owned());
                }
                return false;
            }
            Event::Received(served) => {
                if leg.is_prefill || !leg.is_admitted || leg.told > 0 {
                    wrong("receives a prompt that it does not wait for".to_owned());
                }
                // Of several prefill workers, one after the other, any may be the one that delivered.
                if !self.sources.get(&request).is_some_and(|said| said.contains(served)) {
                    wrong(format!("is told what no prefill worker of it has said: {served:?}"));
                }
                return false;
            }
            Event::HandedOver => {
                if !leg.is_prefill {
                    wrong("is handed over, and is no prefill leg".to_owned());
                }
            }
            Event::Finished { reason, output } => {
                if *output != leg.told {
                    wrong(format!("ends with {output} tokens and was told {}", leg.told));
                }
                if *reason == Finish::Length && leg.told != leg.limit {
                    wrong(format!("ends at its limit of {} after {} tokens", leg.limit, leg.told));
                }
            }
            Event::Refused(Refusal::DuplicateRequest) => {
                // A sequence that has had its last word may still hold the name.
            }
            Event::Refused(_) => {
                if leg.is_admitted {
                    wrong("is refused after it was admitted".to_owned());
                }
            }
        }
        self.legs[worker as usize].remove(&request);
        if let Some(newer) = self.waiting[worker as usize].remove(&request) {
            self.legs[worker as usize].insert(request, newer);
        }
        true
    }

    /// A step of a worker is over; `is_here` tells whether it has a request.
    #[inline]
    pub(super) fn settle(&mut self, log: &mut Log, worker: u32, is_here: impl Fn(RequestId) -> bool) {
        // Declined, which is between the two ends and no client's matter.
        if let Some(request) = self.asked.take().filter(|request| !is_here(*request)) {
            self.legs[worker as usize].remove(&request);
        }
        if let Some(request) = self.cancelled.take()
            && self.legs[worker as usize].contains_key(&request)
        {
            log.report(Checker::Lifecycle, About::leg(worker, request), "is cancelled and goes on");
        }
    }

    /// The worker accounts for so many sequences.
    #[inline]
    pub(super) fn count(&mut self, log: &mut Log, worker: u32, requests: u32) {
        let legs = &mut self.legs[worker as usize];
        if legs.len() > requests as usize {
            let what = format!("{} requests wait for a last word and {requests} are there", legs.len());
            log.report(Checker::Lifecycle, About::worker(worker), what);
            legs.clear();
        }
    }

    /// Requests that have not had their last word.
    pub(super) fn open(&self, worker: u32) -> Vec<RequestId> {
        self.legs[worker as usize].keys().copied().collect()
    }

    /// The router tells the workers of a request that its client has gone.
    pub(super) fn routed(&mut self, log: &mut Log, input: &RouterInput, outputs: &[RouterOutput]) {
        match input {
            RouterInput::Cancel { request } => {
                let is_told = |worker: WorkerId| {
                    let told = |output: &RouterOutput| match output {
                        RouterOutput::Cancel { request: other, worker: whom, .. } => {
                            other == request && *whom == worker
                        }
                        RouterOutput::Route(_) | RouterOutput::Refuse { .. } => false,
                    };
                    outputs.iter().any(told)
                };
                if let Some((_, decode)) = self.routed.remove(request)
                    && !is_told(decode)
                {
                    let what = format!("is cancelled, and worker {decode} is not told");
                    log.report(Checker::Lifecycle, About::request(*request), what);
                }
            }
            RouterInput::Finished { request, .. } | RouterInput::Failed { request, .. } => {
                _ = self.routed.remove(request)
            }
            RouterInput::Worker { id, .. } => {
                self.routed.retain(|_, (prefill, decode)| decode != id && *prefill != Some(*id));
            }
            RouterInput::Tick
            | RouterInput::Submit(_)
            | RouterInput::FirstToken { .. }
            | RouterInput::Load { .. }
            | RouterInput::Changes { .. }
            | RouterInput::Drain { .. } => {}
        }
        for output in outputs {
            match output {
                RouterOutput::Route(route) => _ = self.routed.insert(route.request, (route.prefill, route.decode)),
                RouterOutput::Refuse { request, .. } => _ = self.routed.remove(request),
                RouterOutput::Cancel { .. } => {}
            }
        }
    }
}

const fn name(event: &Event) -> &'static str {
    match event {
        Event::Admitted(_) => "admitted",
        Event::Token(_) => "a token",
        Event::HandedOver => "handed over",
        Event::Finished { .. } => "finished",
        Event::Refused(_) => "refused",
        Event::Retracted => "retracted",
        Event::Received(_) => "received",
    }
}

//! The worker, as the API edge sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use pd_core::event::{Control, Event};
use pd_core::id::{RequestId, WorkerId};
use pd_core::op::{Input, Leg, Submit};
use pd_gpu::{Sampling, SamplingError};
use pd_net::http::backend::{
    Backend, ControlError, Health, Info, Job, JobEvent, JobLeg, Load, Order, Refused, Source, TierLoad, TransferLoad,
    events,
};
use pd_net::http::kv_events::KvEvents;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::clock::Clock;
use super::compute::Sample;
use super::shell::{Mailbox, NewJob, Sink, Told};
use super::status::Status;
use super::storage::Storage;

/// Finds prefill workers.
pub(crate) trait Resolve: Send + Sync {
    /// The worker whose bootstrap server is here, and a connection to it on its way.
    fn resolve(&self, host: String, port: Option<u16>) -> BoxFuture<'static, Result<WorkerId, String>>;
}

/// A worker's doorway.
pub(crate) struct Door {
    pub(crate) inbox: Mailbox,
    pub(crate) info: Info,
    pub(crate) status: Status,
    pub(crate) clock: Clock,
    pub(crate) runtime: Handle,
    /// None where nothing is handed over.
    pub(crate) peers: Option<Arc<dyn Resolve>>,
    pub(crate) storage: Arc<Storage>,
    pub(crate) kv_events: Option<Arc<KvEvents>>,
    pub(crate) page_size: u32,
    pub(crate) page_bytes: u64,
    pub(crate) running_max: u32,
    pub(crate) vocabulary: u32,
    /// Seeds of requests that bring none.
    pub(crate) seeds: AtomicU64,
    pub(crate) is_draining: AtomicBool,
}

impl Door {
    /// No new requests from here on.
    pub(crate) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
        self.tell(Input::Control(Control::Drain));
    }

    /// Tells the worker what must not be lost, without making the caller wait. There is nobody to tell once it has ended.
    fn tell(&self, input: Input) {
        if let Err(pd_sync::Refused::Full(told)) = self.inbox.try_send(Told::Input(input)) {
            let inbox = Arc::clone(&self.inbox);
            self.runtime.spawn_blocking(move || drop(inbox.send(told)));
        }
    }

    fn sampling(&self, job: &Job) -> Result<Sampling, Refused> {
        let asked = &job.sampling;
        if asked.prompt_logprobs_from.is_some() {
            let problem = "this engine does not score prompts".to_owned();
            return Err(Refused::Sampling { field: "prompt_logprobs", problem });
        }
        let sampling = Sampling {
            temperature: asked.temperature,
            top_p: asked.top_p,
            top_k: asked.top_k.map_or(-1, i64::from),
            min_p: asked.min_p,
            frequency_penalty: asked.frequency_penalty,
            presence_penalty: asked.presence_penalty,
            repetition_penalty: asked.repetition_penalty,
            logit_bias: asked.bias.iter().map(|(token, bias)| (token.0, *bias)).collect(),
            seed: asked.seed.unwrap_or_else(|| self.seed(job)),
            min_tokens: asked.min_tokens,
            stop: job.stop.clone(),
            logprobs: asked.logprobs,
        };
        sampling
            .check(self.vocabulary)
            .map_err(|error| Refused::Sampling { field: field(&error), problem: error.to_string() })?;
        if let Some(token) = job.prompt.tokens.iter().find(|token| token.0 >= self.vocabulary) {
            let problem = format!("token {token} is not in the vocabulary of {}", self.vocabulary);
            return Err(Refused::Sampling { field: "input_ids", problem });
        }
        Ok(sampling)
    }

    /// Both halves of a hand-off draw alike: their seed comes from the room.
    fn seed(&self, job: &Job) -> u64 {
        match job.leg {
            JobLeg::Whole => self.seeds.fetch_add(1, Ordering::Relaxed),
            JobLeg::Prefill { room } | JobLeg::Decode { room, .. } => room.0,
        }
    }
}

impl Backend for Door {
    fn submit(&self, job: Job) -> Result<mpsc::Receiver<JobEvent>, Refused> {
        let sampling = self.sampling(&job)?;
        let (sender, receiver) = events(job.limit);
        let refusals = sender.clone();
        let now = std::time::Instant::now();
        let deadline = job.deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(now);
            self.clock.now().after_ns(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
        });
        let tokens = job.prompt.tokens.clone();
        let new = move |leg: Leg| {
            let submit = Submit {
                request: job.request,
                prompt: job.prompt,
                limit: job.limit,
                stop: job.stop,
                priority: job.priority,
                deadline,
                leg,
            };
            let sink = Box::new(Client { events: sender });
            Told::Job(Box::new(NewJob { submit, tokens, sampling, sink }))
        };
        match job.leg {
            JobLeg::Whole => hand_in(&self.inbox, new(Leg::Whole))?,
            JobLeg::Prefill { room } => hand_in(&self.inbox, new(Leg::Prefill { room }))?,
            JobLeg::Decode { room, from: Source::Fake } => {
                hand_in(&self.inbox, new(Leg::Decode { room, prefill: WorkerId::FAKE }))?;
            }
            JobLeg::Decode { room, from: Source::At { host, port } } => {
                let Some(peers) = &self.peers else {
                    return Err(Refused::Peer("this worker takes nothing over: it serves in unified mode".into()));
                };
                let (found, inbox) = (peers.resolve(host, port), Arc::clone(&self.inbox));
                let span = tracing::error_span!("handoff", request = %job.request, rid = job.rid, room = room.0);
                let take = async move {
                    let found = found.await.map_err(Refused::Peer);
                    let taken = found.and_then(|prefill| hand_in(&inbox, new(Leg::Decode { room, prefill })));
                    if let Err(refused) = taken {
                        // The first event of a queue that holds a whole answer; it fails only if nobody listens.
                        let _ = refusals.try_send(JobEvent::Refused(refused));
                    }
                };
                self.runtime.spawn(take.instrument(span));
            }
        }
        Ok(receiver)
    }

    fn cancel(&self, request: RequestId) {
        self.tell(Input::Cancel { request });
    }

    fn info(&self) -> &Info {
        &self.info
    }

    fn health(&self) -> Health {
        if self.is_draining.load(Ordering::Relaxed) {
            Health::Draining
        } else if self.inbox.is_closed() {
            Health::Failed("the worker's thread has ended; see its log".into())
        } else {
            Health::Ready
        }
    }

    fn load(&self) -> Load {
        let now = self.status.get();
        let (tiers, metrics) = (&now.tiers, &now.metrics);
        let tier = |name: &str, used: u64, total: u64, hit_tokens: u64| TierLoad {
            name: name.to_owned(),
            used_pages: used,
            total_pages: total,
            hit_tokens,
        };
        Load {
            running: now.load.running,
            waiting: now.load.waiting,
            retracted: 0,
            waiting_uncached_tokens: now.load.waiting_tokens,
            used_tokens: u64::from(tiers.device_used) * u64::from(self.page_size),
            total_tokens: u64::from(tiers.device_total) * u64::from(self.page_size),
            running_max: self.running_max,
            tokens_per_second: now.tokens_per_second,
            hit_rate: now.hit_rate(),
            tiers: vec![
                tier("device", tiers.device_used.into(), tiers.device_total.into(), metrics.device_hit_tokens),
                tier("host", tiers.host_used.into(), tiers.host_total.into(), metrics.host_hit_tokens),
                tier("storage", tiers.stored, 0, metrics.storage_hit_tokens),
            ],
            transfer: TransferLoad {
                bootstrapping: 0,
                moving: now.rooms as u32,
                completed: metrics.handoffs_sent + metrics.handoffs_received,
                failed: metrics.handoffs_failed,
                bytes: metrics.push_pages * self.page_bytes,
                gigabytes_per_second: 0.0,
            },
            storage: self.storage.info(),
        }
    }

    fn metrics(&self) -> String {
        self.status.get().prometheus(&self.info.model, self.page_size)
    }

    fn kv_events(&self) -> Option<&Arc<KvEvents>> {
        self.kv_events.as_ref()
    }

    fn control(&self, order: Order) -> BoxFuture<'_, Result<String, ControlError>> {
        let (control, done) = match order {
            Order::Flush => (Control::Flush, "L1 and L2 are forgotten; what is in use stays until its users are done"),
            Order::Attach(attach) => {
                // A task of its own: a client that goes away in the middle must not leave half of it done.
                let storage = Arc::clone(&self.storage);
                let attached = self.runtime.spawn(async move { storage.attach(*attach).await });
                return async move {
                    attached.await.unwrap_or_else(|error| Err(ControlError::Failed(error.to_string())))
                }
                .boxed();
            }
            Order::Detach => {
                let detached = self.storage.detach();
                let done = detached.map(|()| "L3 is not used any more; operations in flight end first".to_owned());
                return futures_util::future::ready(done).boxed();
            }
            Order::ClearStorage if !self.storage.is_attached() => {
                let error = ControlError::Invalid("no L3 is attached".into());
                return futures_util::future::ready(Err(error)).boxed();
            }
            Order::ClearStorage => {
                (Control::ClearStorage, "everything of this worker's namespace is being removed from L3")
            }
        };
        let sent = self.inbox.try_send(Told::Input(Input::Control(control)));
        let result = sent.map(|()| done.to_owned()).map_err(|unsent| unheard(&unsent));
        futures_util::future::ready(result).boxed()
    }
}

/// A client's end of the worker's thread.
struct Client {
    events: mpsc::Sender<JobEvent>,
}

impl Client {
    fn put(&self, event: JobEvent) -> bool {
        match self.events.try_send(event) {
            // The queue holds a whole answer: what does not fit is a repeated retraction, which says nothing new.
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

impl Sink for Client {
    fn event(&mut self, event: Event, sample: Option<Sample>) -> bool {
        let event = match event {
            // Who computed the prompt had it from there: what a client of a single worker would be told.
            Event::Admitted(served) | Event::Received(served) => JobEvent::Admitted(served),
            Event::Token(token) => {
                let logprobs = sample.filter(|sample| sample.token == token).and_then(|sample| sample.logprobs);
                let (logprob, top) = logprobs.map_or((None, Vec::new()), |all| (Some(all.chosen), all.top));
                JobEvent::Token { token, logprob, top }
            }
            Event::HandedOver => JobEvent::HandedOver,
            Event::Finished { reason, .. } => JobEvent::Finished { reason },
            Event::Refused(refusal) => JobEvent::Refused(Refused::Machine(refusal)),
            Event::Retracted => JobEvent::Retracted,
        };
        self.put(event)
    }
}

/// Gives the worker a job; it is refused rather than waited with where the worker does not keep up.
fn hand_in(inbox: &Mailbox, job: Told) -> Result<(), Refused> {
    inbox.try_send(job).map_err(|unsent| match unsent {
        pd_sync::Refused::Full(_) => Refused::Unavailable("its inbox is full; try again later".into()),
        pd_sync::Refused::Closed(_) => Refused::Unavailable("it has stopped".into()),
    })
}

/// Why the worker does not hear an order.
pub(crate) fn unheard(order: &pd_sync::Refused<Told>) -> ControlError {
    match order {
        pd_sync::Refused::Full(_) => ControlError::Busy("the worker's inbox is full; try again".into()),
        pd_sync::Refused::Closed(_) => ControlError::Failed("the worker has stopped".into()),
    }
}

/// Which field of a request a refusal is about.
const fn field(error: &SamplingError) -> &'static str {
    match error {
        SamplingError::Temperature(_) => "temperature",
        SamplingError::TopP(_) => "top_p",
        SamplingError::TopK(_) => "top_k",
        SamplingError::MinP(_) => "min_p",
        SamplingError::Frequency(_) => "frequency_penalty",
        SamplingError::Presence(_) => "presence_penalty",
        SamplingError::Repetition(_) => "repetition_penalty",
        SamplingError::BiasToken { .. } | SamplingError::Bias { .. } => "logit_bias",
        SamplingError::Stop { .. } => "stop_token_ids",
    }
}

#[cfg(test)]
mod tests;

//! A worker without a machine: answers by a function of the prompt, at once, always the same. For tests of what stands
//! in front of a worker, and for trying clients without a model.
//!
//! Unless told otherwise it repeats the prompt's tokens in a stride that depends on the seed, and ends with the end of
//! sequence after a number of tokens that depends on the prompt. It keeps the keys of prompts it has seen, so a prompt
//! that comes again is served from cache.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use pd_core::config::Mode;
use pd_core::event::{Failure, Finish, Miss, MissReason, Served};
use pd_core::id::{PageKey, RequestId, Token};
use pd_core::key::Namespace;
use tokio::sync::{mpsc, watch};

use super::backend::{
    Backend, ControlError, Health, Info, Job, JobEvent, JobLeg, Load, Order, Refused, Scored, TierLoad, events,
};
use super::kv_events::KvEvents;

/// How a job is answered: its tokens, without what ends them.
pub type Answers = dyn Fn(&Job) -> Vec<Token> + Send + Sync;

/// The worker.
pub struct Mock {
    info: Info,
    kv_events: Option<Arc<KvEvents>>,
    answers: Option<Box<Answers>>,
    state: Mutex<State>,
    cancels: watch::Sender<Vec<RequestId>>,
    submissions: watch::Sender<usize>,
}

#[derive(Debug)]
struct State {
    health: Health,
    refusal: Option<Refused>,
    is_held: bool,
    /// Jobs that wait for a release, with the queues of their events.
    held: BTreeMap<RequestId, (Job, mpsc::Sender<JobEvent>)>,
    jobs: Vec<Job>,
    orders: Vec<Order>,
    keys: BTreeSet<PageKey>,
    hits: u64,
}

impl std::fmt::Debug for Mock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mock").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Mock {
    /// A worker of this kind that is ready.
    #[must_use]
    pub fn new(info: Info) -> Self {
        let state = State {
            health: Health::Ready,
            refusal: None,
            is_held: false,
            held: BTreeMap::new(),
            jobs: Vec::new(),
            orders: Vec::new(),
            keys: BTreeSet::new(),
            hits: 0,
        };
        Self {
            info,
            kv_events: None,
            answers: None,
            state: Mutex::new(state),
            cancels: watch::channel(Vec::new()).0,
            submissions: watch::channel(0).0,
        }
    }

    /// The facts of a small model with pages of 4 tokens and a context of 512.
    #[must_use]
    pub fn info(model: &str, mode: Mode) -> Info {
        Info {
            model: model.into(),
            model_path: format!("/models/{model}"),
            tokenizer_path: format!("/models/{model}"),
            model_type: "llama".into(),
            architectures: vec!["LlamaForCausalLM".into()],
            mode,
            namespace: Namespace {
                model: model.into(),
                dtype: "f32".into(),
                page_size: 4,
                layout: "page_first".into(),
                ..Namespace::default()
            },
            context_length: 512,
            epoch: 1,
            tp: 1,
            bootstrap_port: None,
            logprobs_max: 20,
            has_prompt_logprobs: true,
            settings: serde_json::Map::new(),
        }
    }

    /// Answers by this function.
    #[must_use]
    pub fn with_answers(mut self, answers: impl Fn(&Job) -> Vec<Token> + Send + Sync + 'static) -> Self {
        self.answers = Some(Box::new(answers));
        self
    }

    /// Publishes what it is told to.
    #[must_use]
    pub fn with_kv_events(mut self, events: Arc<KvEvents>) -> Self {
        self.kv_events = Some(events);
        self
    }

    /// From here on, jobs get no events until they are released or cancelled.
    pub fn hold(&self) {
        self.lock().is_held = true;
    }

    /// Sends one token to each held job, and keeps holding it.
    pub fn trickle(&self, token: Token) {
        for (_, sender) in self.lock().held.values() {
            send(sender, JobEvent::Token { token, logprob: None, top: Vec::new() });
        }
    }

    /// Answers what was held.
    pub fn release(&self) {
        let mut state = self.lock();
        state.is_held = false;
        for (job, sender) in std::mem::take(&mut state.held).into_values() {
            self.answer(&mut state, &job, &sender);
        }
    }

    /// Fails what was held, as if its peer were lost.
    pub fn fail(&self) {
        for (_, sender) in std::mem::take(&mut self.lock().held).into_values() {
            send(&sender, JobEvent::Finished { reason: Finish::Failed(Failure::Peer) });
        }
    }

    /// Refuses the next job.
    pub fn refuse(&self, refused: Refused) {
        self.lock().refusal = Some(refused);
    }

    /// Changes what health checks hear.
    pub fn set_health(&self, health: Health) {
        self.lock().health = health;
    }

    /// All jobs so far.
    #[must_use]
    pub fn jobs(&self) -> Vec<Job> {
        self.lock().jobs.clone()
    }

    /// All orders so far.
    #[must_use]
    pub fn orders(&self) -> Vec<Order> {
        self.lock().orders.clone()
    }

    /// All cancelled requests so far, to be looked at or waited for.
    #[must_use]
    pub fn cancels(&self) -> watch::Receiver<Vec<RequestId>> {
        self.cancels.subscribe()
    }

    /// The number of jobs so far, to be waited for.
    #[must_use]
    pub fn submissions(&self) -> watch::Receiver<usize> {
        self.submissions.subscribe()
    }

    fn answer(&self, state: &mut State, job: &Job, sender: &mpsc::Sender<JobEvent>) {
        send(sender, JobEvent::Admitted(Box::new(self.served(state, job))));
        if let Some(from) = job.sampling.prompt_logprobs_from {
            let scores = job.prompt.tokens.iter().enumerate().skip(from as usize);
            let score = |(at, &token): (usize, &Token)| Scored {
                token,
                logprob: (at > 0).then_some(-0.5),
                top: if at > 0 { alternatives(token, job.sampling.logprobs) } else { Vec::new() },
            };
            send(sender, JobEvent::Prompt(scores.map(score).collect()));
        }
        let mut tokens = self.answers.as_ref().map_or_else(|| repeat(job), |answers| answers(job));
        let eos = job.stop.first().copied();
        if let Some(eos) = eos {
            tokens.resize(tokens.len().max(job.sampling.min_tokens as usize), job.prompt.tokens[0]);
            tokens.push(eos);
        }
        let is_prefill = matches!(job.leg, JobLeg::Prefill { .. });
        let limit = if is_prefill { 1 } else { job.limit as usize };
        tokens.truncate(limit);
        let mut reason = Finish::Length;
        for (at, token) in tokens.into_iter().enumerate() {
            let logprob = job.sampling.logprobs.map(|_| -0.5);
            send(sender, JobEvent::Token { token, logprob, top: alternatives(token, job.sampling.logprobs) });
            if job.stop.contains(&token) && at + 1 >= job.sampling.min_tokens as usize {
                reason = Finish::Stop;
                break;
            }
        }
        send(sender, if is_prefill { JobEvent::HandedOver } else { JobEvent::Finished { reason } });
    }

    fn served(&self, state: &mut State, job: &Job) -> Served {
        let page = self.info.namespace.page_size;
        let known = job.prompt.keys.iter().take_while(|key| state.keys.contains(key)).count();
        let known = u32::try_from(known).unwrap_or(0);
        state.keys.extend(&job.prompt.keys);
        // The last token is always computed.
        let device = (known * page).min((job.prompt.length - 1) / page * page);
        state.hits += u64::from(device);
        let misses = vec![Miss { reason: MissReason::NothingStored, tokens: job.prompt.length - device }];
        Served { prompt: job.prompt.length, device, misses, ..Served::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The prompt's tokens in some order: with an end of sequence between 4 and 16 of them, else as many as are asked for.
fn repeat(job: &Job) -> Vec<Token> {
    let tokens: Vec<Token> = job.prompt.tokens.iter().copied().filter(|token| !job.stop.contains(token)).collect();
    let Some(&first) = tokens.first() else { return Vec::new() };
    let stride = 1 + job.sampling.seed.unwrap_or(0) % 7;
    let count = if job.stop.is_empty() { job.limit } else { job.limit.min(4 + job.prompt.length % 13) };
    (0..u64::from(count))
        .map(|at| {
            let index =
                usize::try_from((at * stride + job.prompt.length as u64 / 2) % tokens.len() as u64).unwrap_or(0);
            tokens.get(index).copied().unwrap_or(first)
        })
        .collect()
}

fn alternatives(token: Token, count: Option<u32>) -> Vec<(Token, f32)> {
    #[expect(clippy::cast_precision_loss, reason = "few")]
    (0..count.unwrap_or(0)).map(|at| (Token((token.0 + at) % 256), -0.5 - at as f32)).collect()
}

/// The queue holds whole answers; it is only ever full or closed when the client has gone.
fn send(sender: &mpsc::Sender<JobEvent>, event: JobEvent) {
    let _ = sender.try_send(event);
}

impl Backend for Mock {
    fn submit(&self, job: Job) -> Result<mpsc::Receiver<JobEvent>, Refused> {
        let mut state = self.lock();
        if let Some(refused) = state.refusal.take() {
            return Err(refused);
        }
        let (sender, receiver) = events(job.limit);
        state.jobs.push(job.clone());
        if state.is_held {
            send(&sender, JobEvent::Admitted(Box::new(self.served(&mut state, &job))));
            state.held.insert(job.request, (job, sender));
        } else {
            self.answer(&mut state, &job, &sender);
        }
        self.submissions.send_replace(state.jobs.len());
        Ok(receiver)
    }

    fn cancel(&self, request: RequestId) {
        if let Some((_, sender)) = self.lock().held.remove(&request) {
            send(&sender, JobEvent::Finished { reason: Finish::Cancelled });
        }
        self.cancels.send_modify(|cancels| cancels.push(request));
    }

    fn info(&self) -> &Info {
        &self.info
    }

    fn health(&self) -> Health {
        self.lock().health.clone()
    }

    fn load(&self) -> Load {
        let state = self.lock();
        let running = u32::try_from(state.held.len()).unwrap_or(u32::MAX);
        let tier = |name: &str, hit_tokens| TierLoad { name: name.into(), hit_tokens, ..TierLoad::default() };
        Load {
            running,
            total_tokens: 4096,
            running_max: 64,
            tiers: vec![tier("device", state.hits), tier("host", 0)],
            ..Load::default()
        }
    }

    fn metrics(&self) -> String {
        format!("# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs {}\n", self.lock().held.len())
    }

    fn kv_events(&self) -> Option<&Arc<KvEvents>> {
        self.kv_events.as_ref()
    }

    fn control(&self, order: Order) -> BoxFuture<'_, Result<String, ControlError>> {
        let mut state = self.lock();
        let answer = match &order {
            Order::Attach(attach) if attach.backend != "file" => {
                Err(ControlError::Invalid(format!("there is no storage backend {:?}; use file", attach.backend)))
            }
            Order::Attach(_) if !state.held.is_empty() => {
                Err(ControlError::Busy(format!("{} requests are running", state.held.len())))
            }
            Order::Attach(_) => Ok("HiCache storage backend attached.".into()),
            Order::Detach => Ok("HiCache storage backend detached.".into()),
            Order::ClearStorage => Ok("HiCache storage backend cleared.".into()),
            Order::Flush => {
                state.keys.clear();
                Ok("Cache flushed.".into())
            }
        };
        if answer.is_ok() {
            state.orders.push(order);
        }
        Box::pin(std::future::ready(answer))
    }
}

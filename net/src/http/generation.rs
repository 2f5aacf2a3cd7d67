//! One sequence between the worker's events and the client's text.
//!
//! ```text
//!   JobEvent::Token ──> detokenizer ──> stop strings ──> Piece { text, token, logprob }
//!   JobEvent::Finished / a stop string ────────────────> End   { rest of the text, why }
//! ```
//!
//! Each token gives one piece, with or without text, so clients can count tokens and measure gaps. Dropping a generation
//! before its end cancels it at the worker.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pd_core::event::{Finish, Served};
use pd_core::id::Token;
use pd_core::key::page_keys;
use pd_core::op::Prompt;
use tokio::sync::mpsc;

use super::Edge;
use super::ask::Ask;
use super::backend::{Job, JobEvent, JobLeg, Scored};
use super::error::ApiError;
use super::live::Guard;
use crate::text::{Detokenizer, Ending, Passed, StopStrings};

/// One sequence being generated.
#[derive(Debug)]
pub(super) struct Generation {
    /// Its place in the request.
    pub(super) index: usize,
    /// Its name towards the client.
    pub(super) rid: String,
    pub(super) prompt_tokens: u32,
    /// Where the prompt's KV came from, once admitted.
    pub(super) served: Option<Box<Served>>,
    /// Log probabilities of the prompt, if asked for.
    pub(super) scores: Vec<Scored>,
    /// The answer so far.
    pub(super) tokens: Vec<Token>,
    pub(super) retractions: u32,
    pub(super) started: Instant,
    pub(super) first_token: Option<Duration>,
    guard: Guard,
    events: mpsc::Receiver<JobEvent>,
    /// An event that was looked at before its time.
    ahead: Option<JobEvent>,
    detokenizer: Detokenizer,
    stops: StopStrings,
    stop_tokens: Vec<Token>,
    is_stop_shown: bool,
    min_tokens: usize,
    matched: Option<Matched>,
    /// The next step, when a token and the end came together.
    end: Option<End>,
    is_over: bool,
    /// The client asked for no token, only for what is known of the prompt.
    is_silent: bool,
}

/// What comes next of a sequence.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Piece(Piece),
    End(End),
}

/// One token.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Piece {
    /// Text that is certain now; often that of earlier tokens.
    pub(super) text: String,
    pub(super) token: Token,
    pub(super) logprob: Option<f32>,
    pub(super) top: Vec<(Token, f32)>,
}

/// The end of an answer.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct End {
    /// Text that was held back.
    pub(super) text: String,
    pub(super) why: Why,
}

/// Why an answer ended.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Why {
    Stop(Matched),
    Length,
    /// Somebody asked for it.
    Abort,
    Failed(Box<ApiError>),
}

/// What stopped an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Matched {
    Token(Token),
    Text(String),
}

impl Why {
    /// OpenAI's word, with `abort` as SGLang and vLLM have it.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Stop(_) => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Failed(_) => "error",
        }
    }

    /// What stopped it, as `matched_stop` and `stop_reason` have it.
    pub(super) fn matched(&self) -> serde_json::Value {
        match self {
            Self::Stop(Matched::Token(token)) => token.0.into(),
            Self::Stop(Matched::Text(text)) => text.as_str().into(),
            Self::Length | Self::Abort | Self::Failed(_) => serde_json::Value::Null,
        }
    }
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) text: String,
    /// Its tokens, with text where each became certain.
    pub(super) pieces: Vec<Piece>,
    pub(super) why: Why,
    pub(super) generation: Generation,
}

/// All answers of a request, or the first error; then the other sequences are cancelled.
pub(super) async fn collect(generations: Vec<Generation>) -> Result<Vec<Answer>, ApiError> {
    futures_util::future::try_join_all(generations.into_iter().map(Generation::collect)).await
}

/// Submits all sequences of a request, in order. If one is refused, those before it are cancelled.
pub(super) fn start(edge: &Arc<Edge>, ask: &Ask) -> Result<Vec<Generation>, ApiError> {
    let info = edge.info();
    let limits = ask.limits(info)?;
    let mut namespace = info.namespace.clone();
    let root = if ask.salt.is_empty() {
        namespace.root()
    } else {
        // A salt of the deployment stays in force.
        namespace.salt = format!("{}:{}{}", namespace.salt.len(), namespace.salt, ask.salt);
        namespace.root()
    };
    let choices = ask.choices as usize;
    let mut generations = Vec::with_capacity(ask.prompts.len() * choices);
    for (at, (tokens, limit)) in ask.prompts.iter().zip(limits).enumerate() {
        let length = u32::try_from(tokens.len()).expect("within the context length");
        let keys = page_keys(root, namespace.page_size, tokens);
        for choice in 0..choices {
            let index = at * choices + choice;
            let prompt = Prompt { root, length, keys: keys.clone(), tokens: tokens.clone() };
            generations.push(submit(edge, ask, index, at, prompt, limit)?);
        }
    }
    Ok(generations)
}

fn submit(
    edge: &Arc<Edge>,
    ask: &Ask,
    index: usize,
    at: usize,
    prompt: Prompt,
    limit: u32,
) -> Result<Generation, ApiError> {
    let leg = ask.legs[index].clone();
    let name = ask.rids.names.get(at).unwrap_or(&ask.rids.names[0]);
    let is_alone = ask.choices == 1 && (ask.prompts.len() == 1 || ask.rids.names.len() > 1);
    let rid = if is_alone { name.clone() } else { format!("{name}-{index}") };
    let room = match &leg {
        JobLeg::Whole => None,
        JobLeg::Prefill { room } | JobLeg::Decode { room, .. } => Some(*room).filter(|room| !room.is_fake()),
    };
    for (other, other_room) in edge.live().named(&rid) {
        if room.is_some() && other_room != room {
            // A router tries again: the same request with a new room. Nobody waits for the old one.
            edge.backend().cancel(other);
        } else if ask.rids.is_given && room.is_none() {
            return Err(ApiError::refused(&super::backend::Refused::Machine(
                pd_core::event::Refusal::DuplicateRequest,
            )));
        }
    }
    let request = edge.request_id(room);
    let mut sampling = ask.sampling.clone();
    sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(index as u64 % u64::from(ask.choices)));
    let prompt_tokens = prompt.length;
    let mut guard = edge.live().enter(edge.backend(), (&rid, name), request, room, prompt_tokens, ask.route);
    let job = Job {
        request,
        rid: rid.clone(),
        prompt,
        limit,
        stop: ask.stop.tokens.clone(),
        priority: ask.priority,
        deadline: edge.config().request_timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
        leg,
        sampling,
    };
    let min_tokens = job.sampling.min_tokens as usize;
    let events = edge.backend().submit(job).map_err(|refused| {
        guard.ended("refused");
        ApiError::refused(&refused)
    })?;
    Ok(Generation {
        index,
        rid,
        prompt_tokens,
        served: None,
        scores: Vec::new(),
        tokens: Vec::new(),
        retractions: 0,
        started: Instant::now(),
        first_token: None,
        guard,
        events,
        ahead: None,
        detokenizer: Detokenizer::new(Arc::clone(edge.text()), ask.is_special_skipped),
        stops: StopStrings::new(ask.stop.texts.clone(), ask.stop.ending),
        stop_tokens: ask.stop.tokens.clone(),
        is_stop_shown: ask.stop.ending == Ending::Included,
        min_tokens,
        matched: None,
        end: None,
        is_over: false,
        is_silent: ask.limit == Some(0),
    })
}

impl Generation {
    /// Waits until the first token or the end is there, so that what goes wrong before it has a status of its own.
    pub(super) async fn begin(&mut self) -> Result<(), ApiError> {
        loop {
            match self.events.recv().await {
                Some(JobEvent::Refused(refused)) => {
                    self.guard.ended("refused");
                    return Err(ApiError::refused(&refused));
                }
                Some(JobEvent::Finished { reason }) if ApiError::ended(reason).is_some() => {
                    self.guard.ended("failed");
                    return Err(ApiError::ended(reason).expect("just looked at"));
                }
                None => {
                    self.guard.ended("failed");
                    return Err(closed());
                }
                Some(event @ (JobEvent::Token { .. } | JobEvent::HandedOver | JobEvent::Finished { .. })) => {
                    self.ahead = Some(event);
                    return Ok(());
                }
                Some(event @ (JobEvent::Admitted(_) | JobEvent::Prompt(_) | JobEvent::Retracted)) => self.note(event),
            }
        }
    }

    /// The next token or the end; `None` behind the end.
    pub(super) fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Option<Step>> {
        if let Some(end) = self.end.take() {
            return Poll::Ready(Some(Step::End(end)));
        }
        if self.is_over {
            return Poll::Ready(None);
        }
        loop {
            let event = match self.ahead.take() {
                Some(event) => Some(event),
                None => std::task::ready!(self.events.poll_recv(context)),
            };
            let why = match event {
                Some(JobEvent::Token { token, logprob, top }) => {
                    let piece = self.token(token, logprob, top);
                    if self.is_silent {
                        continue;
                    }
                    return Poll::Ready(Some(Step::Piece(piece)));
                }
                Some(JobEvent::HandedOver) => Why::Length,
                Some(JobEvent::Finished { reason }) => self.why(reason),
                Some(JobEvent::Refused(refused)) => Why::Failed(Box::new(ApiError::refused(&refused))),
                None => Why::Failed(Box::new(closed())),
                Some(event @ (JobEvent::Admitted(_) | JobEvent::Prompt(_) | JobEvent::Retracted)) => {
                    self.note(event);
                    continue;
                }
            };
            return Poll::Ready(Some(self.over(why)));
        }
    }

    /// The whole answer.
    pub(super) async fn collect(mut self) -> Result<Answer, ApiError> {
        self.begin().await?;
        let (mut text, mut pieces) = (String::new(), Vec::new());
        loop {
            match std::future::poll_fn(|context| self.poll_step(context)).await {
                Some(Step::Piece(piece)) => {
                    text.push_str(&piece.text);
                    pieces.push(piece);
                }
                Some(Step::End(End { why: Why::Failed(error), .. })) => return Err(*error),
                Some(Step::End(end)) => {
                    text.push_str(&end.text);
                    return Ok(Answer { text, pieces, why: end.why, generation: self });
                }
                None => return Err(closed()),
            }
        }
    }

    /// Tokens of the answer, as they are billed.
    pub(super) fn output_tokens(&self) -> u32 {
        if self.is_silent { 0 } else { u32::try_from(self.tokens.len()).unwrap_or(u32::MAX) }
    }

    /// Prompt tokens that came from some cache.
    pub(super) fn cached_tokens(&self) -> u32 {
        self.served.as_ref().map_or(0, |served| served.device + served.host + served.storage)
    }

    fn note(&mut self, event: JobEvent) {
        match event {
            JobEvent::Admitted(served) => {
                self.guard.admitted();
                self.served = Some(served);
            }
            JobEvent::Prompt(scores) => self.scores = scores,
            JobEvent::Retracted => self.retractions += 1,
            JobEvent::Token { .. } | JobEvent::HandedOver | JobEvent::Finished { .. } | JobEvent::Refused(_) => {}
        }
    }

    fn token(&mut self, token: Token, logprob: Option<f32>, top: Vec<(Token, f32)>) -> Piece {
        self.first_token.get_or_insert_with(|| self.started.elapsed());
        self.tokens.push(token);
        self.guard.produced(u32::try_from(self.tokens.len()).unwrap_or(u32::MAX));
        let mut text = String::new();
        let may_stop = self.tokens.len() >= self.min_tokens;
        let is_stop = may_stop && self.stop_tokens.binary_search(&token).is_ok();
        if is_stop {
            self.matched = Some(Matched::Token(token));
        }
        if !is_stop || self.is_stop_shown {
            let mut raw = String::new();
            self.detokenizer.push(token, &mut raw);
            if !may_stop {
                text = raw;
            } else if let Passed::Stopped(stop) = self.stops.push(&raw, &mut text) {
                self.guard.stop();
                self.is_over = true;
                self.end = Some(End { text: String::new(), why: Why::Stop(Matched::Text(stop)) });
            }
        }
        Piece { text, token, logprob, top }
    }

    fn why(&self, reason: Finish) -> Why {
        match reason {
            Finish::Stop => {
                let last = self.tokens.last().copied().unwrap_or_default();
                Why::Stop(self.matched.clone().unwrap_or(Matched::Token(last)))
            }
            Finish::Length => Why::Length,
            Finish::Cancelled => Why::Abort,
            Finish::Deadline | Finish::Failed(_) => match ApiError::ended(reason) {
                Some(error) => Why::Failed(Box::new(error)),
                None => Why::Abort,
            },
        }
    }

    fn over(&mut self, why: Why) -> Step {
        self.is_over = true;
        self.guard.ended(why.name());
        let (mut raw, mut text) = (String::new(), String::new());
        if !self.is_silent {
            self.detokenizer.finish(&mut raw);
            let why_text = self.stops.push(&raw, &mut text);
            self.stops.finish(&mut text);
            if let Passed::Stopped(stop) = why_text {
                return Step::End(End { text, why: Why::Stop(Matched::Text(stop)) });
            }
        }
        let why = if self.is_silent && matches!(why, Why::Stop(_)) { Why::Length } else { why };
        Step::End(End { text, why })
    }
}

fn closed() -> ApiError {
    ApiError { retry_after: Some(1), ..ApiError::internal("the worker stopped before the answer was complete") }
}

//! One request, timed: the clock is read when bytes arrive, before they are looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Uri};
use serde::Serialize;
use tokio::time::Instant;

use super::backend::read;
use crate::client::sse::SseParser;
use crate::client::{Pool, reason};

/// What is known of one request.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct RequestRecord {
    /// Which script, and which of its turns.
    pub script: usize,
    /// Counts from 0.
    pub turn: usize,
    /// When it was sent, in seconds since the start of the run.
    pub start: f64,
    /// How long it had waited for `max_concurrency`, in seconds.
    pub queue: f64,
    /// Seconds to the first token; 0 if none came.
    pub ttft: f64,
    /// Seconds between tokens, as far as chunks show them.
    pub itl: Vec<f64>,
    /// Seconds to the end of the answer.
    pub latency: f64,
    /// Tokens of the prompt, as the server counts them if it does.
    pub prompt_tokens: u32,
    /// Tokens of the answer, as the server counts them if it does, else chunks.
    pub output_tokens: u32,
    /// Tokens of the prompt that the server had cached; absent if it does not say.
    pub cached_tokens: Option<u32>,
    /// Why it failed.
    pub error: Option<String>,
}

impl RequestRecord {
    /// Mean seconds per token after the first; absent with fewer than two.
    #[must_use]
    pub fn tpot(&self) -> Option<f64> {
        (self.output_tokens > 1).then(|| (self.latency - self.ttft) / f64::from(self.output_tokens - 1))
    }
}

/// What all requests of a run share.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) pool: Pool,
    pub(super) uri: Uri,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) timeout: Duration,
    pub(super) is_stream: bool,
    /// Tokens that have come, over all requests.
    pub(super) tokens: Arc<AtomicU64>,
}

impl Caller {
    /// Sends a request and reads its answer to the end. `on_first` is told the time to the first token.
    pub(super) async fn call(
        &self,
        body: Bytes,
        prompt_tokens: u32,
        on_first: impl FnOnce(f64),
    ) -> (RequestRecord, String) {
        let started = Instant::now();
        let mut record = RequestRecord { prompt_tokens, ..RequestRecord::default() };
        let mut answer = String::new();
        let work = self.exchange(started, body, &mut record, &mut answer, on_first);
        let ended = tokio::time::timeout(self.timeout, work).await;
        record.error = match ended {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some(format!("no end within {} s", self.timeout.as_secs_f64())),
        };
        if record.error.is_some() {
            record.latency = started.elapsed().as_secs_f64();
        }
        (record, answer)
    }

    async fn exchange(
        &self,
        started: Instant,
        body: Bytes,
        record: &mut RequestRecord,
        answer: &mut String,
        on_first: impl FnOnce(f64),
    ) -> Result<(), String> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        let response = self.pool.request(request).await.map_err(|error| reason(&error))?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let text = http_body_util::Limited::new(body, ERROR_BYTES_MAX).collect().await;
            let text = text.map(|text| text.to_bytes()).unwrap_or_default();
            let text: String = String::from_utf8_lossy(&text).chars().take(200).collect();
            return Err(format!("{status}: {text}"));
        }
        let mut clock = Clock { started, last: None, tokens: 0, on_first: Some(on_first) };
        let mut parser = SseParser::default();
        let mut whole = Vec::new();
        let (mut counted, mut failed) = (false, None);
        while let Some(frame) = body.frame().await {
            let now = Instant::now();
            let Ok(data) = frame.map_err(|error| reason(&error))?.into_data() else { continue };
            if !self.is_stream {
                whole.extend_from_slice(&data);
                if whole.len() > ANSWER_BYTES_MAX {
                    return Err(format!("the answer is larger than {ANSWER_BYTES_MAX} bytes"));
                }
                continue;
            }
            parser
                .push(&data, |event| {
                    let said = read(event, answer, clock.tokens);
                    counted |= said.tokens.is_some();
                    let new = clock.on_event(now, &said, record);
                    self.tokens.fetch_add(new, Ordering::Relaxed);
                    failed = failed.take().or(said.error);
                })
                .map_err(|error| error.to_string())?;
        }
        let now = Instant::now();
        if !self.is_stream {
            let said = read(&whole, answer, clock.tokens);
            counted = said.tokens.is_some();
            let new = clock.on_event(now, &said, record);
            self.tokens.fetch_add(new, Ordering::Relaxed);
            failed = said.error;
        }
        // The last token ends the answer; what comes after it is bookkeeping.
        let end = clock.last.unwrap_or(now);
        record.latency = if self.is_stream { (end - started).as_secs_f64() } else { (now - started).as_secs_f64() };
        if let Some(why) = failed {
            return Err(why);
        }
        if record.output_tokens == 0 || (clock.last.is_none() && !counted) {
            return Err("the answer has no tokens".into());
        }
        if !parser.is_between_events() {
            return Err("the stream ends in the middle of an event".into());
        }
        Ok(())
    }
}

/// When tokens came.
struct Clock<F> {
    started: Instant,
    last: Option<Instant>,
    tokens: u32,
    on_first: Option<F>,
}

impl<F: FnOnce(f64)> Clock<F> {
    /// Takes an event that arrived at `now`; returns the tokens that it brought.
    fn on_event(&mut self, now: Instant, said: &super::backend::Said, record: &mut RequestRecord) -> u64 {
        if let Some(tokens) = said.prompt_tokens {
            record.prompt_tokens = tokens;
        }
        record.cached_tokens = said.cached_tokens.or(record.cached_tokens);
        let before = self.tokens;
        if let Some(tokens) = said.tokens {
            self.tokens = self.tokens.max(tokens);
        } else if said.has_text {
            self.tokens = self.tokens.saturating_add(1);
        }
        if said.has_text {
            match self.last.replace(now) {
                None => {
                    record.ttft = (now - self.started).as_secs_f64();
                    if let Some(on_first) = self.on_first.take() {
                        on_first(record.ttft);
                    }
                }
                Some(last) => {
                    // A chunk of several tokens is as many equal steps.
                    let new = self.tokens.saturating_sub(before).clamp(1, GAPS_MAX);
                    let gap = (now - last).as_secs_f64() / f64::from(new);
                    record.itl.extend(std::iter::repeat_n(gap, new as usize));
                }
            }
        }
        record.output_tokens = self.tokens;
        u64::from(self.tokens - before)
    }
}

const ERROR_BYTES_MAX: usize = 1 << 16;
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Most tokens that one chunk is believed to hold.
const GAPS_MAX: u32 = 65_536;

//! The answer on its way to the client: bytes pass as they come.
//!
//! Owns everything that must end with the answer: the request's ticket, the prefill leg that may still be draining, and
//! the worker's count. If the client goes away, dropping this cancels all of it. If the worker goes away between two
//! events of a stream, the client gets an error as an event and `[DONE]`; in the middle of an event, or of a body that is
//! no stream, the connection is cut, because nothing that could follow would make sense of what was sent.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::task::JoinHandle;

use pd_core::id::WorkerId;
use pd_core::router::RouteFault;

use super::App;
use super::body::Kind;
use super::brain::Ticket;
use super::errors::Refusal;
use super::leg::{Active, Begun};
use super::logprobs::PromptLogprobs;
use crate::client::reason;
use crate::client::sse::SseParser;

/// A body that comes from a worker.
pub(super) struct Tail {
    app: Arc<App>,
    kind: Kind,
    is_events: bool,
    queue: VecDeque<Bytes>,
    rest: Option<Incoming>,
    /// What ends an answer before its end: too much time, or the end of the router.
    end: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    ticket: Option<Ticket>,
    attempt: u32,
    worker: WorkerId,
    _active: Active,
    _prefill: Option<AbortOnDrop>,
    merge: Option<(PromptLogprobs, SseParser)>,
    /// The last bytes sent, to know whether an event is complete.
    last: [u8; 2],
    events: u32,
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(super) struct AbortOnDrop(pub(super) JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The worker's side has broken off.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off: {0}")]
pub(super) struct BrokenOff(String);

impl Tail {
    /// Takes over an answer whose first byte is there.
    pub(super) fn new(
        app: Arc<App>,
        (kind, is_events): (Kind, bool),
        ticket: Ticket,
        (attempt, worker): (u32, WorkerId),
        begun: Begun,
        prefill: Option<AbortOnDrop>,
        merge: Option<PromptLogprobs>,
    ) -> Self {
        let limit = super::config::secs(app.config.request_timeout_secs);
        let mut stage = app.stage.subscribe();
        let end = Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(limit) => "it took longer than request_timeout_secs",
                _ = stage.wait_for(|stage| *stage >= super::Stage::Cut) => "the router is shutting down",
            }
        });
        let mut tail = Self {
            app,
            kind,
            is_events,
            queue: VecDeque::new(),
            rest: Some(begun.rest),
            end,
            ticket: Some(ticket),
            attempt,
            worker,
            _active: begun.active,
            _prefill: prefill,
            merge: merge.map(|merge| (merge, SseParser::default())),
            last: *b"\n\n",
            events: 0,
        };
        if let Some(first) = begun.first {
            tail.take(first);
        }
        tail.close_if_whole();
        tail
    }

    /// The last byte of a body of known length is its end. The server asks for no more then, so that waiting for the
    /// end would never see it, and would take a whole answer for one that its client has left.
    fn close_if_whole(&mut self) {
        if self.rest.as_ref().is_some_and(Body::is_end_stream) {
            // Nothing is broken: there is no error.
            self.close(None);
        }
    }

    fn take(&mut self, data: Bytes) {
        self.note(&data);
        let Some((logprobs, parser)) = &mut self.merge else {
            self.queue.push_back(data);
            return;
        };
        let queue = &mut self.queue;
        let parsed = parser.push(&data, |event| {
            let merged = logprobs.merge(event);
            let mut bytes = Vec::from(b"data: ".as_slice());
            bytes.extend_from_slice(merged.as_deref().unwrap_or(event));
            bytes.extend_from_slice(b"\n\n");
            queue.push_back(bytes.into());
        });
        if parsed.is_err() {
            self.rest = None;
        }
    }

    /// Counts events, and remembers how the data ended.
    fn note(&mut self, data: &[u8]) {
        if self.is_events {
            let mut previous = self.last[1];
            for &byte in data {
                self.events += u32::from(byte == b'\n' && previous == b'\n');
                previous = byte;
            }
        }
        match data {
            [] => {}
            [one] => self.last = [self.last[1], *one],
            [.., before, last] => self.last = [*before, *last],
        }
    }

    /// The worker is done, or broke off.
    fn close(&mut self, broken: Option<(RouteFault, String)>) -> Option<BrokenOff> {
        self.rest = None;
        let ticket = self.ticket.take();
        let Some((fault, why)) = broken else {
            if let Some(ticket) = ticket {
                ticket.finish(self.events);
            }
            return None;
        };
        self.app.metrics.count("smg_router_request_errors_total", &[("error_type", "stream_error")]);
        tracing::warn!(worker = %self.worker, "an answer broke off: {why}");
        if let Some(ticket) = ticket {
            ticket.break_off(self.attempt, self.worker, fault, self.events.max(1));
        }
        let is_whole = match &self.merge {
            Some((_, parser)) => parser.is_between_events(),
            None => self.last == *b"\n\n",
        };
        if !self.is_events || !is_whole {
            return Some(BrokenOff(why));
        }
        let refusal = Refusal::new(StatusCode::BAD_GATEWAY, "stream_error", format!("the answer broke off: {why}"));
        self.queue.push_back(error_event(self.kind, &refusal).into());
        None
    }
}

/// A failure as the last events of a stream.
fn error_event(kind: Kind, refusal: &Refusal) -> String {
    match kind {
        Kind::Messages => {
            let message = super::body::quote(&refusal.message);
            format!(
                "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"api_error\",\"message\":{message}}}}}\n\n"
            )
        }
        Kind::Responses => {
            format!("event: error\ndata: {}\n\n", refusal.json().replacen('{', "{\"type\":\"error\",", 1))
        }
        Kind::Chat | Kind::Completion | Kind::Generate => format!("data: {}\n\ndata: [DONE]\n\n", refusal.json()),
    }
}

impl Body for Tail {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        loop {
            if let Some(data) = self.queue.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            let Some(rest) = &mut self.rest else {
                return Poll::Ready(None);
            };
            let broken = match Pin::new(rest).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.take(data);
                        if self.rest.is_none() {
                            let why = "an event is too large to be merged".to_owned();
                            if let Some(error) = self.close(Some((RouteFault::Aborted, why))) {
                                return Poll::Ready(Some(Err(error)));
                            }
                        }
                        self.close_if_whole();
                    }
                    continue;
                }
                Poll::Ready(Some(Err(error))) => Some((RouteFault::Connection, reason(&error))),
                Poll::Ready(None) => None,
                Poll::Pending => match self.end.as_mut().poll(cx) {
                    Poll::Ready(why) => Some((RouteFault::Peer, why.to_owned())),
                    Poll::Pending => return Poll::Pending,
                },
            };
            if let Some(error) = self.close(broken) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        // A stream has no length that could be promised: it may end with an event of ours.
        match &self.rest {
            Some(rest) if !self.is_events && self.merge.is_none() => {
                let queued: u64 = self.queue.iter().map(|data| data.len() as u64).sum();
                rest.size_hint().exact().map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + queued))
            }
            None if !self.is_events && self.merge.is_none() => {
                SizeHint::with_exact(self.queue.iter().map(|data| data.len() as u64).sum())
            }
            Some(_) | None => SizeHint::default(),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.queue.is_empty()
    }
}

//! Answers as server-sent events, written by hand for exact bytes: `data: {...}\n\n`, at the end `data: [DONE]\n\n`.
//!
//! 1. The stream is driven by the client's socket: it takes events out of the sequences' queues only when the last bytes
//!    were accepted, and makes at most [`BYTES_MAX`] at a time. The queues hold whole answers, so a slow client delays
//!    only itself.
//! 2. A failure in the middle is one `data: {"error": ...}` event, then `[DONE]`.
//! 3. Dropping the stream (the client has gone) drops its sequences, which cancels them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use serde::Serialize;

use super::generation::{End, Generation, Piece, Step, Why};

/// About the most bytes that are made ahead of the socket.
const BYTES_MAX: usize = 16 << 10;

/// How a route words its events.
pub(super) trait Render: Send + Unpin + 'static {
    /// Before all others.
    fn start(&mut self, generations: &[Generation], out: &mut Out);
    /// A token of a sequence.
    fn piece(&mut self, generation: &Generation, piece: Piece, out: &mut Out);
    /// The end of a sequence, which did not fail.
    fn end(&mut self, generation: &Generation, end: End, out: &mut Out);
    /// Behind all others.
    fn finish(&mut self, generations: &[Generation], out: &mut Out);
}

/// Events that were not sent yet.
#[derive(Debug, Default)]
pub(super) struct Out {
    bytes: Vec<u8>,
}

impl Out {
    /// Adds one event.
    pub(super) fn event(&mut self, value: &impl Serialize) {
        self.bytes.extend_from_slice(b"data: ");
        let start = self.bytes.len();
        if serde_json::to_writer(&mut self.bytes, value).is_err() {
            // Only maps with keys that are no texts cannot be written, and no route has one.
            self.bytes.truncate(start);
            self.bytes.extend_from_slice(b"null");
        }
        self.bytes.extend_from_slice(b"\n\n");
    }

    fn done(&mut self) {
        self.bytes.extend_from_slice(b"data: [DONE]\n\n");
    }
}

struct Events<R> {
    generations: Vec<Generation>,
    /// Sequences that have not ended.
    open: Vec<bool>,
    render: R,
    out: Out,
    state: State,
    /// Who comes first next time, so that a client that reads slowly still sees all of its sequences go on.
    turn: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Middle,
    Done,
}

/// The response that streams these sequences.
pub(super) fn response(generations: Vec<Generation>, render: impl Render) -> Response {
    let open = vec![true; generations.len()];
    let events = Events { generations, open, render, out: Out::default(), state: State::Start, turn: 0 };
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(events)).into_response()
}

impl<R: Render> Events<R> {
    /// Turns what is there into events. False when every sequence waits.
    fn advance(&mut self, context: &mut Context<'_>) -> bool {
        let before = self.out.bytes.len();
        let count = self.generations.len();
        self.turn = (self.turn + 1) % count.max(1);
        for at in (0..count).map(|at| (at + self.turn) % count) {
            while self.open[at] && self.out.bytes.len() < BYTES_MAX {
                match self.generations[at].poll_step(context) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Step::Piece(piece))) => {
                        self.render.piece(&self.generations[at], piece, &mut self.out)
                    }
                    Poll::Ready(Some(Step::End(End { why: Why::Failed(error), .. }))) => {
                        self.out.event(&error.json());
                        self.close();
                        return true;
                    }
                    Poll::Ready(Some(Step::End(end))) => {
                        self.open[at] = false;
                        self.render.end(&self.generations[at], end, &mut self.out);
                    }
                    Poll::Ready(None) => self.open[at] = false,
                }
            }
        }
        if !self.open.contains(&true) {
            self.render.finish(&self.generations, &mut self.out);
            self.close();
        }
        self.out.bytes.len() > before
    }

    fn close(&mut self) {
        self.out.done();
        self.state = State::Done;
        self.generations.clear();
        self.open.clear();
    }
}

impl<R: Render> Stream for Events<R> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.state == State::Done {
            return Poll::Ready(None);
        }
        if this.state == State::Start {
            this.state = State::Middle;
            this.render.start(&this.generations, &mut this.out);
        }
        this.advance(context);
        if this.out.bytes.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Bytes::from(std::mem::take(&mut this.out.bytes)))))
    }
}

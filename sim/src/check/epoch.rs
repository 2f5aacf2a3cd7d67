//! Nothing of an earlier life, or of an earlier attempt of the router, has an effect in a later one.
//!
//! Lives grow; a worker names commands and messages by its own life; what it does with messages of other lives is seen by
//! the hand-off's checker, which reports it here. The router leaves an attempt alone of which an earlier one has failed.

use std::collections::BTreeMap;

use pd_core::id::{Epoch, RequestId};
use pd_core::message::{End, Message};
use pd_core::router::{RouterInput, RouterOutput};

use super::{About, Checker, Log};

/// What is known of attempts of the router.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    /// The attempt of the last route of each live request.
    attempts: BTreeMap<RequestId, u32>,
}

impl Epochs {
    /// A worker begins the life `new`.
    pub(super) fn on_life(&self, log: &mut Log, worker: u32, old: Epoch, new: Epoch, has_lived: bool) {
        if has_lived && new <= old {
            log.report(Checker::Epoch, About::worker(worker), format!("lives life {new} after life {old}"));
        }
    }

    /// A command leaves.
    #[inline]
    pub(super) fn started(&self, log: &mut Log, worker: u32, own: Epoch, epoch: Epoch) {
        if epoch != own {
            log.report(
                Checker::Epoch,
                About::worker(worker),
                format!("starts a command of life {epoch} in life {own}"),
            );
        }
    }

    /// A message leaves.
    pub(super) fn sent(&self, log: &mut Log, worker: u32, own: Epoch, message: &Message) {
        let epoch = match message {
            Message::Hello(hello) => hello.epoch,
            Message::Want(want) => want.epoch,
            Message::Handoff(handoff) => handoff.source,
            Message::Abort { epoch, source, by, .. } => match by {
                End::Sink => *epoch,
                End::Source => *source,
            },
            // Of an earlier life, too: that one writes no more.
            Message::AbortAck { .. } => return,
            Message::Incompatible(_) | Message::Ping { .. } | Message::Pong { .. } => return,
        };
        if epoch != own {
            log.report(Checker::Epoch, About::worker(worker), format!("speaks for life {epoch} in life {own}"));
        }
    }

    /// The router has taken an input.
    pub(super) fn routed(&mut self, log: &mut Log, input: &RouterInput, outputs: &[RouterOutput]) {
        match input {
            RouterInput::Failed { request, attempt, .. } | RouterInput::FirstToken { request, attempt } => {
                let is_stale = self.attempts.get(request).is_some_and(|current| attempt < current);
                let ends = |output: &RouterOutput| match output {
                    RouterOutput::Cancel { request: other, .. } => other == request,
                    RouterOutput::Route(_) | RouterOutput::Refuse { .. } => false,
                };
                if is_stale && outputs.iter().any(ends) {
                    let what = format!("what is said of attempt {attempt} ends a later one");
                    log.report(Checker::Epoch, About::request(*request), what);
                }
            }
            RouterInput::Finished { request, .. } | RouterInput::Cancel { request } => {
                _ = self.attempts.remove(request)
            }
            RouterInput::Tick
            | RouterInput::Submit(_)
            | RouterInput::Worker { .. }
            | RouterInput::Load { .. }
            | RouterInput::Changes { .. }
            | RouterInput::Drain { .. } => {}
        }
        for output in outputs {
            match output {
                RouterOutput::Route(route) => {
                    let former = self.attempts.insert(route.request, route.attempt);
                    if former.is_some_and(|former| route.attempt <= former) {
                        let what = format!("attempt {} is routed twice", route.attempt);
                        log.report(Checker::Epoch, About::request(route.request), what);
                    }
                }
                RouterOutput::Refuse { request, .. } => _ = self.attempts.remove(request),
                RouterOutput::Cancel { .. } => {}
            }
        }
    }
}

//! What a run has shown: per request, per worker, per link, and one hash over all of it.

use pd_core::digest::Digest;
use pd_core::event::{Finish, Refusal, Served};
use pd_core::metrics::Metrics;
use pd_core::router::{RouteRefusal, RouterMetrics};
use pd_core::time::Instant;

use crate::check::Violation;
use crate::disk::DiskUse;
use crate::lane::{LaneUse, Transfer};
use crate::link::LinkUse;
use crate::stats::LogHistogram;

/// The life of one request as its client saw it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// When the client sent it.
    pub arrival: Instant,
    /// When it was first sent to a worker.
    pub routed: Option<Instant>,
    /// When the worker that computes the prompt first admitted it.
    pub admitted: Option<Instant>,
    /// When its prompt's KV was handed over, in a pair.
    pub handed_over: Option<Instant>,
    /// First token.
    pub first_token: Option<Instant>,
    /// Last token.
    pub last_token: Option<Instant>,
    /// When it ended.
    pub finished: Option<Instant>,
    /// How.
    pub end: Option<End>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// The same as a study of the trace counts them; differs if the prompt was padded.
    pub counted_tokens: u32,
    /// Tokens asked for.
    pub limit: u32,
    /// Tokens received.
    pub tokens: u32,
    /// Where the prompt's KV came from, at the worker that computed it.
    pub served: Option<Box<Served>>,
    /// The same at the decode worker of a pair.
    pub sink_served: Option<Box<Served>>,
    /// Attempts after the first one.
    pub retries: u32,
    /// Times that it gave its pages back.
    pub retractions: u32,
    /// Index of the worker that computes the prompt, if another one decodes.
    pub prefill: Option<u32>,
    /// Index of the worker that decodes, or does it all.
    pub decode: Option<u32>,
    /// The conversation.
    pub session: Option<u64>,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A worker ended it.
    Finished(Finish),
    /// A worker did not take it.
    Refused(Refusal),
    /// The router did not send it anywhere (any more).
    NotRouted(RouteRefusal),
    /// The router died with its connection to the client, or was not there.
    RouterLost,
}

/// A line of the script that hit nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Idle {
    /// When its time came, or would have come.
    pub at: Instant,
    /// Its `do`.
    pub what: &'static str,
}

/// What one worker did, over all of its lives.
#[derive(Clone, Debug, Default)]
pub struct WorkerRecord {
    /// Its counters.
    pub metrics: Metrics,
    /// Its lanes.
    pub lanes: LaneUse,
    /// Steps of its machine.
    pub steps: u64,
    /// Lives.
    pub lives: u32,
    /// Fingerprint over all its steps.
    pub fingerprint: u64,
}

/// What a store did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreRecord {
    /// Its name.
    pub name: String,
    /// Its disk.
    pub disk: DiskUse,
    /// Objects at the end.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// All that a run has shown.
#[derive(Debug)]
pub struct Outcome {
    /// When it ended.
    pub ended: Instant,
    /// Events handled.
    pub events: u64,
    /// By request, in the order of arrival.
    pub requests: Vec<Record>,
    /// Times between tokens, over all requests.
    pub itl: LogHistogram,
    /// By worker.
    pub workers: Vec<WorkerRecord>,
    /// The router's counters, if there was one.
    pub router: Option<RouterMetrics>,
    /// Pushes, by end.
    pub transfers: Vec<Transfer>,
    /// Name and use of each link.
    pub links: Vec<(String, LinkUse)>,
    /// By store.
    pub stores: Vec<StoreRecord>,
    /// What must never happen, and did. Empty unless checked.
    pub violations: Vec<Violation>,
    /// Lines of the script that hit nothing: what they were to show, the run does not show.
    pub idle: Vec<Idle>,
    /// Messages and submits that found their receiver gone.
    pub lost_letters: u64,
    /// Fingerprint of the run: all steps of all machines and all records.
    pub hash: u64,
}

impl Record {
    /// Time to first token.
    #[must_use]
    pub fn ttft_ns(&self) -> Option<u64> {
        Some(self.first_token?.ns_since(self.arrival))
    }

    /// Time per token behind the first; none for answers of one token.
    #[must_use]
    pub fn tpot_ns(&self) -> Option<u64> {
        let gaps = self.tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some(self.last_token?.ns_since(self.first_token?) / u64::from(gaps))
    }

    /// Time to the end.
    #[must_use]
    pub fn e2e_ns(&self) -> Option<u64> {
        Some(self.finished?.ns_since(self.arrival))
    }

    /// True if it ended with its whole answer.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self.end, Some(End::Finished(Finish::Stop | Finish::Length)))
    }

    pub(crate) fn digest(&self, digest: &mut Digest) {
        digest.value(&self.arrival);
        for at in [self.routed, self.admitted, self.handed_over, self.first_token, self.last_token, self.finished] {
            digest.value(&at);
        }
        match self.end {
            None => digest.word(0),
            Some(End::Finished(finish)) => digest.value(&finish),
            Some(End::Refused(refusal)) => digest.value(&refusal),
            Some(End::NotRouted(refusal)) => digest.value(&refusal),
            Some(End::RouterLost) => digest.word(1),
        }
        for count in [self.prompt_tokens, self.limit, self.tokens, self.retries, self.retractions] {
            digest.word(u64::from(count));
        }
        digest.value(&self.served);
        digest.value(&self.sink_served);
        digest.value(&self.prefill);
        digest.value(&self.decode);
    }
}

impl Outcome {
    /// The fingerprint of the machines and the records.
    pub(crate) fn fold(workers: &[WorkerRecord], requests: &[Record], violations: &[Violation], ended: Instant) -> u64 {
        let mut digest = Digest::new();
        digest.value(&ended);
        for worker in workers {
            digest.word(worker.fingerprint);
            digest.word(worker.steps);
        }
        for request in requests {
            request.digest(&mut digest);
        }
        digest.word(violations.len() as u64);
        digest.finish()
    }
}

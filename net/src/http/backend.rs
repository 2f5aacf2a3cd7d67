//! What the API edge asks of a worker, in words of its own: one thread owns the worker's machine, and this is the
//! doorway to it.
//!
//! ```text
//!   handler ── submit(Job) ──> worker          events of one job:
//!           <─ JobEvent ... ──                 Admitted  Token* (Retracted Token*)*  Finished | HandedOver
//!           ── cancel(id) ──>                  Refused
//! ```
//!
//! 1. Nothing here blocks: the engine thread sends with `try_send` into a queue that holds a whole answer
//!    ([`events`]), so a client that reads slowly costs memory of its own answer and no time of anybody.
//! 2. A job's events end with exactly one of [`JobEvent::Finished`], [`JobEvent::HandedOver`] or
//!    [`JobEvent::Refused`]; a queue that closes without it counts as a failure of the worker.
//! 3. [`Backend::cancel`] of a job that is over, or never was, does nothing.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use pd_core::config::Mode;
use pd_core::event::{Finish, Refusal, Served};
use pd_core::id::{RequestId, Room, Token};
use pd_core::key::Namespace;
use pd_core::op::Prompt;
use serde::Serialize;
use tokio::sync::mpsc;

use super::kv_events::KvEvents;

/// A worker, as the API edge sees it.
pub trait Backend: Send + Sync + 'static {
    /// Takes a job. Its progress comes through the receiver, which should be one end of [`events`].
    ///
    /// # Errors
    /// The job is refused at once; a worker may also refuse it by an event.
    fn submit(&self, job: Job) -> Result<mpsc::Receiver<JobEvent>, Refused>;

    /// Ends a job: its client has gone, or asked to stop, or has read enough.
    fn cancel(&self, request: RequestId);

    /// What this worker is and serves. Asked for with each request: cheap, and constant but for the storage.
    fn info(&self) -> &Info;

    /// Whether it is there.
    fn health(&self) -> Health;

    /// How busy it is.
    fn load(&self) -> Load;

    /// All metrics in Prometheus' text format.
    fn metrics(&self) -> String;

    /// What comes into its cache and leaves it, if it says so.
    fn kv_events(&self) -> Option<&Arc<KvEvents>>;

    /// Carries out an operator's order; the text says what was done.
    fn control(&self, order: Order) -> BoxFuture<'_, Result<String, ControlError>>;
}

/// One sequence to generate.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name towards the worker. Both halves of a hand-off have the same one, made from the room.
    pub request: RequestId,
    /// Its name towards the client.
    pub rid: String,
    /// What to continue, keyed, with all of its tokens.
    pub prompt: Prompt,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Most tokens to generate, at least 1.
    pub limit: u32,
    /// Tokens that end the answer, the end of sequence included unless it is to be ignored.
    pub stop: Vec<Token>,
    /// Larger is more urgent.
    pub priority: i32,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// Which part of the work falls to this worker.
    pub leg: JobLeg,
}

/// How tokens are chosen.
#[derive(Clone, PartialEq, Debug)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Mass of the most likely tokens to choose from, more than 0 to 1.
    pub top_p: f32,
    /// How many of the most likely tokens to choose from; `None` for all.
    pub top_k: Option<u32>,
    /// Least probability, relative to the most likely token's.
    pub min_p: f32,
    /// Lowers tokens by how often the answer has them already, -2 to 2.
    pub frequency_penalty: f32,
    /// Lowers tokens that the answer has already, -2 to 2.
    pub presence_penalty: f32,
    /// Divides logits of tokens that prompt or answer have already; 1 is none.
    pub repetition_penalty: f32,
    /// Makes the choice repeatable. Each of several answers to a prompt has its own.
    pub seed: Option<u64>,
    /// Added to the logits of single tokens.
    pub bias: Vec<(Token, f32)>,
    /// Tokens before which no stop token may be chosen.
    pub min_tokens: u32,
    /// Report the log probability of each token, and this many of the most likely ones.
    pub logprobs: Option<u32>,
    /// Report log probabilities of the prompt from this position on, through [`JobEvent::Prompt`].
    pub prompt_logprobs_from: Option<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: None,
            bias: Vec::new(),
            min_tokens: 0,
            logprobs: None,
            prompt_logprobs_from: None,
        }
    }
}

/// Which part of a job a worker is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JobLeg {
    /// Prefill and decode here.
    Whole,
    /// Prefill here, then hand over to whoever asks for the room (nobody, where the room is a fake).
    Prefill {
        /// The hand-off.
        room: Room,
    },
    /// Take over, then decode here.
    Decode {
        /// The hand-off.
        room: Room,
        /// Who computes the prompt.
        from: Source,
    },
}

/// Where the KV of a decode leg comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nobody: SGLang's bootstrap host 2.2.2.2. The KV counts as there.
    Fake,
    /// The prefill worker whose bootstrap server is here.
    At {
        /// Its name or address.
        host: String,
        /// Its port; without one, that of this worker's own configuration.
        port: Option<u16>,
    },
}

/// Progress of one job.
#[derive(Clone, PartialEq, Debug)]
pub enum JobEvent {
    /// It left the queue; where its prompt's KV comes from.
    Admitted(Box<Served>),
    /// Log probabilities of the prompt, from the position asked for.
    Prompt(Vec<Scored>),
    /// One token of the answer. A stop token comes, too, before its [`JobEvent::Finished`].
    Token {
        /// Which.
        token: Token,
        /// Its log probability, if asked for.
        logprob: Option<f32>,
        /// The most likely tokens and their log probabilities, most likely first.
        top: Vec<(Token, f32)>,
    },
    /// The prompt's KV is with the decode worker (prefill leg only; the last event).
    HandedOver,
    /// The answer is complete or will not go on.
    Finished {
        /// Why.
        reason: Finish,
    },
    /// The job was not taken.
    Refused(Refused),
    /// The sequence gave its pages back and waits to be resumed. The only event that may be lost.
    Retracted,
}

/// A token with its log probability; the first one of a text has none.
#[derive(Clone, PartialEq, Debug)]
pub struct Scored {
    /// Which.
    pub token: Token,
    /// Its log probability given what stands before it.
    pub logprob: Option<f32>,
    /// The most likely tokens in its place.
    pub top: Vec<(Token, f32)>,
}

/// Why a job was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The machine says so.
    Machine(Refusal),
    /// The worker is not there yet, or no more (HTTP 503).
    Unavailable(String),
    /// The decode leg's prefill worker cannot be found or used (HTTP 502).
    Peer(String),
    /// Something in the sampling cannot be done by this engine (HTTP 400).
    Sampling {
        /// Which field of [`Sampling`].
        field: &'static str,
        /// Why not.
        problem: String,
    },
}

/// A queue that holds all events of a job with this limit, so that sending never has to wait.
///
/// Four single events and the tokens; what is left over is for [`JobEvent::Retracted`].
#[must_use]
pub fn events(limit: u32) -> (mpsc::Sender<JobEvent>, mpsc::Receiver<JobEvent>) {
    mpsc::channel(limit as usize + 16)
}

/// What a worker is.
#[derive(Clone, Debug)]
pub struct Info {
    /// The model's name towards clients.
    pub model: String,
    /// Where its weights are.
    pub model_path: String,
    /// Where its tokenizer is.
    pub tokenizer_path: String,
    /// `model_type` of its `config.json`.
    pub model_type: String,
    /// `architectures` of its `config.json`.
    pub architectures: Vec<String>,
    /// What the worker serves.
    pub mode: Mode,
    /// What its page keys are chained from.
    pub namespace: Namespace,
    /// Most tokens of a prompt and its answer together.
    pub context_length: u32,
    /// Which life of the worker this is; keeps names of requests apart from those of earlier lives.
    pub epoch: u32,
    /// Tensor-parallel ranks.
    pub tp: u32,
    /// Port of the bootstrap server (prefill).
    pub bootstrap_port: Option<u16>,
    /// Most alternatives per token in log probabilities.
    pub logprobs_max: u32,
    /// True if the engine can score prompts (`echo` with `logprobs`).
    pub has_prompt_logprobs: bool,
    /// All resolved settings, for `/server_info`.
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// Whether a worker is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    /// It loads.
    Starting,
    /// It takes requests.
    Ready,
    /// It ends what it has and takes nothing new.
    Draining,
    /// It cannot serve; why.
    Failed(String),
}

/// How busy a worker is.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Load {
    /// Sequences that are computed.
    pub running: u32,
    /// Requests that wait.
    pub waiting: u32,
    /// Sequences that gave their pages back and wait to be resumed.
    pub retracted: u32,
    /// Prompt tokens that wait and are in no cache.
    pub waiting_uncached_tokens: u64,
    /// Tokens in use in L1.
    pub used_tokens: u64,
    /// Most tokens in L1.
    pub total_tokens: u64,
    /// Most sequences computed at once.
    pub running_max: u32,
    /// Tokens generated per second, lately.
    pub tokens_per_second: f64,
    /// Share of prompt tokens served from any tier, 0 to 1.
    pub hit_rate: f64,
    /// The tiers, L1 first.
    pub tiers: Vec<TierLoad>,
    /// The hand-offs.
    pub transfer: TransferLoad,
    /// The storage backend in use.
    pub storage: StorageInfo,
}

/// One tier of the cache.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct TierLoad {
    /// `device`, `host` or `storage`.
    pub name: String,
    /// Pages that hold something.
    pub used_pages: u64,
    /// Pages there are.
    pub total_pages: u64,
    /// Prompt tokens served from here.
    pub hit_tokens: u64,
}

/// Hand-offs of a worker.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct TransferLoad {
    /// Rooms that wait for their other end.
    pub bootstrapping: u32,
    /// Rooms whose pages are moving.
    pub moving: u32,
    /// Hand-offs that went well.
    pub completed: u64,
    /// Hand-offs that did not.
    pub failed: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Lately.
    pub gigabytes_per_second: f64,
}

/// What L3 is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct StorageInfo {
    /// Its kind; `None` when it is detached.
    pub backend: Option<String>,
    /// Its settings, as JSON; `None` when it is detached.
    pub settings: Option<String>,
    /// How long requests wait for it.
    pub prefetch_policy: String,
    /// When pages are written down to it.
    pub write_policy: String,
}

/// An operator's order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Forget L1 and L2.
    Flush,
    /// Start using L3.
    Attach(Box<Attach>),
    /// Stop using L3.
    Detach,
    /// Remove everything of this worker's namespaces from L3.
    ClearStorage,
}

/// Which L3, and how.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attach {
    /// Its kind (`file`).
    pub backend: String,
    /// Settings of that kind, as JSON.
    pub settings: Option<String>,
    /// How long requests wait for it; `None` to leave as it is.
    pub prefetch_policy: Option<String>,
    /// When pages are written down; `None` to leave as it is.
    pub write_policy: Option<String>,
}

/// Why an order was not carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlError {
    /// It makes no sense here: what and why (HTTP 400).
    Invalid(String),
    /// Not now: what stands in the way (HTTP 409).
    Busy(String),
    /// It was tried and failed (HTTP 500).
    Failed(String),
}

//! What a `[[load]]` table of a scenario may say.
//!
//! Durations and rates are texts with units ("250ms", "3.4/s", see [`crate::units`]); lengths are tokens, fixed or drawn
//! (see [`Lengths`]). A key that a kind does not know is an error.

use std::path::PathBuf;

use serde::Deserialize;

use crate::trace::Format;
use crate::units::{Count, Rate, Span};

use super::dice::{Lengths, Pause};

/// One `[[load]]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LoadConfig {
    /// Arrivals at random, independent of each other and of answers.
    Poisson(PoissonConfig),
    /// One arrival every so often.
    Fixed(FixedConfig),
    /// Many at once, every so often.
    Burst(BurstConfig),
    /// Poisson for a while, silence for a while.
    OnOff(OnOffConfig),
    /// So many clients, each of which asks again after its answer.
    Closed(ClosedConfig),
    /// Conversations of several turns.
    Sessions(SessionsConfig),
    /// A recorded workload.
    Trace(TraceConfig),
    /// Requests one by one.
    List(ListConfig),
    /// What real workers were asked for.
    Journal(JournalConfig),
}

impl LoadConfig {
    /// The contents that it has prompts of, by name.
    pub(super) fn contents(&self) -> impl Iterator<Item = &str> {
        let (prefixes, requests): (&[PrefixConfig], &[ListRequest]) = match self {
            Self::Poisson(config) => (&config.prefixes, &[]),
            Self::Fixed(config) => (&config.prefixes, &[]),
            Self::Burst(config) => (&config.prefixes, &[]),
            Self::OnOff(config) => (&config.prefixes, &[]),
            Self::Closed(config) => (&config.prefixes, &[]),
            Self::Sessions(config) => (&config.prefixes, &[]),
            Self::Trace(_) | Self::Journal(_) => (&[], &[]),
            Self::List(config) => (&[], &config.requests),
        };
        let requests = requests.iter().filter_map(|request| request.content.as_deref());
        prefixes.iter().filter_map(|prefix| prefix.content.as_deref()).chain(requests)
    }
}

/// One way for prompts to begin alike.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixConfig {
    /// Length of the common prefix; 0 for prompts that share nothing.
    pub tokens: Count,
    /// How many parts of all prompts begin so.
    #[serde(default = "one")]
    pub weight: u32,
    /// A name makes it the same prefix in all loads, and that of the content of this name in a list.
    pub content: Option<String>,
}

/// Declares the table of a kind whose requests are drawn: its own keys, then those that all of them have.
macro_rules! drawn {
    ($(#[$doc:meta])* $name:ident { $($(#[$key_doc:meta])* $key:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$key_doc])* pub $key: $type,)*
            /// Requests in all.
            pub requests: Count,
            /// Length of a prompt behind its common prefix.
            pub prompt_tokens: Lengths,
            /// Length of an answer.
            pub output_tokens: Lengths,
            /// Common prefixes; none if empty.
            #[serde(default)]
            pub prefixes: Vec<PrefixConfig>,
            /// Larger is more urgent.
            #[serde(default)]
            pub priority: i32,
            /// When the load begins.
            #[serde(default)]
            pub start: Span,
        }

        impl $name {
            pub(super) fn drawn(&self) -> Drawn<'_> {
                Drawn {
                    requests: self.requests.0,
                    prompt_tokens: &self.prompt_tokens,
                    output_tokens: &self.output_tokens,
                    prefixes: &self.prefixes,
                    priority: self.priority,
                    start: self.start,
                }
            }
        }
    };
}

/// The keys that all kinds with drawn requests have.
#[derive(Debug)]
pub(super) struct Drawn<'a> {
    pub(super) requests: u64,
    pub(super) prompt_tokens: &'a Lengths,
    pub(super) output_tokens: &'a Lengths,
    pub(super) prefixes: &'a [PrefixConfig],
    pub(super) priority: i32,
    pub(super) start: Span,
}

drawn! {
    /// `kind = "poisson"`.
    PoissonConfig {
        /// Mean rate.
        rate: Rate,
    }
}
drawn! {
    /// `kind = "fixed"`.
    FixedConfig {
        /// Time between two arrivals; the first comes at the start.
        every: Span,
    }
}
drawn! {
    /// `kind = "burst"`.
    BurstConfig {
        /// Arrivals at the same instant.
        size: Count,
        /// Time between two bursts; the first comes at the start.
        every: Span,
    }
}
drawn! {
    /// `kind = "on_off"`.
    OnOffConfig {
        /// Mean rate while it is on.
        rate: Rate,
        /// How long it is on.
        on: Span,
        /// How long it is off.
        off: Span,
    }
}
drawn! {
    /// `kind = "closed"`.
    ClosedConfig {
        /// Clients; all ask first at the start.
        concurrency: Count,
        #[serde(default)]
        /// Pause between an answer and the client's next request.
        think: Pause,
    }
}

/// `kind = "sessions"`: a turn's prompt is the prompt before, its answer and what the user adds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionsConfig {
    /// Conversations.
    pub sessions: Count,
    /// Turns of each.
    pub turns: Lengths,
    /// Pause between an answer and the next turn.
    #[serde(default)]
    pub think: Pause,
    /// Length of the first prompt behind its common prefix.
    pub first_prompt_tokens: Lengths,
    /// Length of what the user adds in each later turn.
    pub user_tokens: Lengths,
    /// Length of an answer.
    pub output_tokens: Lengths,
    /// How often a session begins (Poisson); all begin at the start if not given.
    pub rate: Option<Rate>,
    /// Common prefixes of first prompts; none if empty.
    #[serde(default)]
    pub prefixes: Vec<PrefixConfig>,
    /// Larger is more urgent.
    #[serde(default)]
    pub priority: i32,
    /// When the load begins.
    #[serde(default)]
    pub start: Span,
}

/// `kind = "trace"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceConfig {
    /// The file, relative to the scenario's directory.
    pub file: PathBuf,
    /// Its format.
    pub format: Format,
    /// Tokens per block of a Mooncake file, where it is not 512.
    pub block: Option<u32>,
    /// 2.0 replays twice as fast. Kept to six decimals.
    #[serde(default = "normal")]
    pub speed: f64,
    /// Spread arrivals that were recorded in buckets of 3 s over their bucket.
    #[serde(default = "yes")]
    pub jitter: bool,
    /// Replay only the first so many rows.
    pub requests: Option<Count>,
    /// Fill the last block of each prompt and add one token, so that each block is whole pages and one token is left
    /// to compute. For comparison with studies that count a partial last block as cached.
    #[serde(default)]
    pub pad: bool,
    /// Ask for one token only: for studies of prompts.
    #[serde(default)]
    pub prompts_only: bool,
    /// Larger is more urgent.
    #[serde(default)]
    pub priority: i32,
    /// When the load begins.
    #[serde(default)]
    pub start: Span,
}

/// `kind = "journal"`: the only load of its run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalConfig {
    /// What `pd serve --journal` wrote, relative to the scenario's directory: of one worker that decodes, or of a prefill
    /// and a decode worker.
    pub files: Vec<PathBuf>,
}

/// `kind = "list"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListConfig {
    /// The requests, in any order.
    pub requests: Vec<ListRequest>,
    /// Larger is more urgent, for requests that do not say.
    #[serde(default)]
    pub priority: i32,
    /// When the load begins.
    #[serde(default)]
    pub start: Span,
}

/// One request of a list.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// Arrival, counted from the start of the load.
    pub at: Span,
    /// Length of the prompt, its prefix included.
    pub prompt_tokens: Count,
    /// Length of the answer.
    #[serde(default = "one_token")]
    pub output_tokens: Count,
    /// Prompts of the same content have the same tokens as far as both reach. Without a name nothing is shared.
    pub content: Option<String>,
    /// The prompt begins with the first tokens of another content, and goes on with its own. Holds for the content's
    /// name from here on.
    pub prefix: Option<ListPrefix>,
    /// LoRA adapter; a namespace of its own.
    #[serde(default)]
    pub lora: String,
    /// The tenant's cache salt; a namespace of its own.
    #[serde(default)]
    pub salt: String,
    /// Larger is more urgent.
    pub priority: Option<i32>,
}

/// `prefix = { of = "A", tokens = 640 }`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListPrefix {
    /// Name of the other content.
    pub of: String,
    /// How much of it.
    pub tokens: Count,
}

fn one() -> u32 {
    1
}

fn one_token() -> Count {
    Count(1)
}

fn normal() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

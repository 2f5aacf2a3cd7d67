//! What all machines of a run were told and what they answered, in one file: enough to live it again, bit for bit.
//!
//! The form is that of production, too: it is written as a stream with bounded memory, and what was written before a
//! process died can be read.
//!
//! ```text
//!  file     magic 8 bytes | version u32 | block 0: the header, JSON | block 1 | block 2 | ...
//!  block    length u32 | CRC-32 of (number of the block u32, payload) | payload             little endian
//!  payload  records, none of which spans blocks, in the compact form of pd_core::codec
//!  record   tag | who | ns since the record before, or since 0 for the first of a block | rest
//!  rest     Launch: configuration and cost as JSON     Stop, End: nothing
//!           Step: input | fingerprint of the outputs | the outputs, if the header says so
//! ```
//!
//! 1. A reader never allocates more than the file has bytes.
//! 2. A journal that was written to its end has an `End`; one without was cut off.
//! 3. A block is believed only if its checksum is right; what is read before a torn or damaged one stands.

pub mod diff;
mod read;
mod recorder;
pub mod replay;
pub mod requests;
#[cfg(test)]
mod tests;
mod write;

use std::fmt;
use std::io;

use pd_core::codec::{Codec, DecodeError};
use pd_core::config::WorkerConfig;
use pd_core::cost::{Cost, Recipe};
use pd_core::digest::Digest;
use pd_core::message::VERSION as CODEC;
use pd_core::op::{Input, Output};
use pd_core::router::{RouterConfig, RouterInput, RouterOutput};
use pd_core::time::Instant;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::read::Reader;
pub use self::recorder::Recorder;
pub use self::write::{Writer, Written};
use crate::words;

/// First bytes of a journal: no text file has them.
pub const MAGIC: [u8; 8] = *b"\x89pdjrnl\n";
/// Version of the file's form.
pub const VERSION: u32 = 1;
/// Largest block; a length beyond it is damage.
const BLOCK_BYTES_MAX: u32 = 1 << 30;

/// What a journal says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// Version of pd that wrote it.
    pub pd: String,
    /// Fingerprint of the machines' sources ([`pd_core::BUILD`]): others may answer differently.
    pub build: String,
    /// Version of the codec in its records.
    pub codec: u32,
    /// What is kept of each step.
    pub detail: Detail,
    /// What was run: the name of a scenario or of a deployment.
    pub subject: String,
}

impl Header {
    /// The header of this build.
    #[must_use]
    pub fn new(subject: impl Into<String>, detail: Detail) -> Self {
        Self {
            pd: env!("CARGO_PKG_VERSION").to_owned(),
            build: pd_core::BUILD.to_owned(),
            codec: CODEC,
            detail,
            subject: subject.into(),
        }
    }

    /// True if this very build wrote it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.build == pd_core::BUILD
    }
}

/// What a journal keeps of each step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// The input and the fingerprint of the outputs: enough to replay it and to see that a step differs.
    Inputs,
    /// The outputs, too: enough to see in which field.
    Outputs,
}

/// Whose record it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    /// The router.
    Router,
    /// A worker, by index.
    Worker(u32),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Router => f.write_str("router"),
            Self::Worker(index) => write!(f, "worker {index}"),
        }
    }
}

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// A machine begins a life.
    Launch {
        /// When.
        at: Instant,
        /// Whose.
        who: Who,
        /// What it is made of.
        life: Box<Life>,
    },
    /// A life has ended.
    Stop {
        /// When.
        at: Instant,
        /// Whose.
        who: Who,
    },
    /// A machine was told something and answered.
    Step(Box<StepRecord>),
    /// Nothing more was recorded.
    End {
        /// When.
        at: Instant,
    },
}

/// What makes a machine that answers the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Life {
    /// A worker.
    Worker {
        /// What it is told.
        config: Box<WorkerConfig>,
        /// What it believes that things cost.
        cost: Box<Recipe>,
    },
    /// A router.
    Router {
        /// What it is told.
        config: Box<RouterConfig>,
        /// What it believes that things cost.
        cost: Box<Recipe>,
    },
}

impl Life {
    /// Of a worker.
    #[must_use]
    pub fn worker(config: &WorkerConfig, cost: &Cost) -> Self {
        Self::Worker { config: Box::new(config.clone()), cost: Box::new(cost.recipe()) }
    }

    /// Of a router.
    #[must_use]
    pub fn router(config: &RouterConfig, cost: &Cost) -> Self {
        Self::Router { config: Box::new(config.clone()), cost: Box::new(cost.recipe()) }
    }
}

/// One step of a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StepRecord {
    /// When.
    pub at: Instant,
    /// Whose.
    pub who: Who,
    /// What it was told.
    pub told: Told,
    /// Fingerprint over the codec form of what it answered, as in [`pd_core::pump::Step`].
    pub outputs: u64,
    /// What it answered, if the journal keeps that.
    pub asked: Option<Asked>,
}

/// What a machine was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// A worker.
    Worker(Input),
    /// A router.
    Router(RouterInput),
}

/// What a machine answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// A worker.
    Worker(Vec<Output>),
    /// A router.
    Router(Vec<RouterOutput>),
}

impl Told {
    /// In one line.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::Worker(input) => words::input(input),
            Self::Router(input) => words::router_input(input),
        }
    }
}

impl Asked {
    /// A line for each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Worker(outputs) => outputs.iter().map(words::output).collect(),
            Self::Router(outputs) => outputs.iter().map(words::router_output).collect(),
        }
    }
}

impl Record {
    /// When it happened.
    #[must_use]
    pub fn at(&self) -> Instant {
        match self {
            Self::Launch { at, .. } | Self::Stop { at, .. } | Self::End { at } => *at,
            Self::Step(step) => step.at,
        }
    }

    /// Whose it is; none at the end of all.
    #[must_use]
    pub fn who(&self) -> Option<Who> {
        match self {
            Self::Launch { who, .. } | Self::Stop { who, .. } => Some(*who),
            Self::Step(step) => Some(step.who),
            Self::End { .. } => None,
        }
    }

    /// In one line, without time and machine.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::Launch { life, .. } => match &**life {
                Life::Worker { config, .. } => format!("life {} begins", config.epoch),
                Life::Router { .. } => "begins".to_owned(),
            },
            Self::Stop { .. } => "the life ends".to_owned(),
            Self::Step(step) => step.told.line(),
            Self::End { .. } => "the record ends".to_owned(),
        }
    }
}

/// The fingerprint of outputs, as a pump makes it.
pub(crate) fn fingerprint<T: Codec>(outputs: &[T]) -> u64 {
    let mut digest = Digest::new();
    for output in outputs {
        output.encode(&mut digest);
    }
    digest.finish()
}

/// How far a journal could be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extent {
    /// Whole blocks, the header's included.
    pub blocks: u32,
    /// Their bytes, from the start of the file.
    pub bytes: u64,
    /// Records in them.
    pub records: u64,
    /// The time of the last of those.
    pub until: Instant,
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let records = words::plural(self.records, "record");
        write!(f, "the {records} before it, up to {}, are whole", words::at(self.until))
    }
}

/// Why a journal cannot be read, or not to its end.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The file system says no.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Something else.
    #[error("is not a journal: it does not start with the journal's mark{hint}")]
    NotAJournal {
        /// What it may be instead.
        hint: &'static str,
    },
    /// Another version of the form.
    #[error("is a journal of version {found}; this pd reads version {VERSION}: read it with the pd that wrote it")]
    Version {
        /// What it says.
        found: u32,
    },
    /// Another version of the codec.
    #[error(
        "was written by pd {pd} with version {found} of the codec; this pd reads version {CODEC}: \
         read it with the pd that wrote it"
    )]
    Codec {
        /// What it says.
        found: u32,
        /// Which pd wrote it.
        pd: String,
    },
    /// The header is no header.
    #[error("has a header that cannot be understood: {0}")]
    Header(serde_json::Error),
    /// The file ends too early.
    #[error("is cut off in block {}, at byte {}; {extent}", .extent.blocks, .extent.bytes)]
    Torn {
        /// What comes before the tear.
        extent: Extent,
    },
    /// The file ends between two blocks, but not with the last record.
    #[error("ends without its last record, at byte {}: who wrote it did not end well; {extent}", .extent.bytes)]
    Unclosed {
        /// All that there is.
        extent: Extent,
    },
    /// A checksum is wrong.
    #[error("is damaged in block {}, at byte {}: its checksum is wrong; {extent}", .extent.blocks, .extent.bytes)]
    Damaged {
        /// What comes before.
        extent: Extent,
    },
    /// A record with the right checksum makes no sense.
    #[error("has a record in block {} that cannot be understood: {problem}; {extent}", .extent.blocks)]
    Record {
        /// What is wrong with it.
        problem: RecordError,
        /// What comes before.
        extent: Extent,
    },
    /// Something behind the last record.
    #[error("goes on behind its last record, at byte {}", .extent.bytes)]
    Trailing {
        /// What comes before.
        extent: Extent,
    },
}

/// What is wrong with one record.
#[derive(Debug, Error)]
pub enum RecordError {
    /// Its bytes.
    #[error("{0}")]
    Bytes(#[from] DecodeError),
    /// Its configuration.
    #[error("a configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// Its time.
    #[error("its time is beyond all times")]
    Time,
}

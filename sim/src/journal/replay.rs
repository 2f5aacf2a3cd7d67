//! Lives a journal again: feeds it to fresh machines and compares each answer.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::Read;

use pd_core::pump::{NoTap, Pump};
use pd_core::router::Router;
use pd_core::time::Instant;
use pd_core::worker::Worker;
use thiserror::Error;

use super::{Asked, JournalError, Life, Reader, Record, StepRecord, Told, Who, fingerprint};
use crate::fields::{Difference, differences};
use crate::node::Serve;
use crate::words;

/// What a replay has shown.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Replayed {
    /// Steps that agreed, by machine.
    pub steps: BTreeMap<Who, u64>,
    /// Lives that began.
    pub lives: u64,
    /// The time of the last record.
    pub until: Instant,
}

impl Replayed {
    /// Steps that agreed.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.steps.values().sum()
    }
}

/// Why a replay did not get to the end of its journal.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// A step answered differently.
    #[error("{0}")]
    Diverged(Box<Divergence>),
    /// The journal cannot be read to its end. What was read agreed.
    #[error("{0}")]
    Journal(#[from] JournalError),
    /// It says what no journal of this build can say.
    #[error("{who} at {}: {problem}", words::at(*.at))]
    Impossible {
        /// Whose record.
        who: Who,
        /// When.
        at: Instant,
        /// What is wrong with it.
        problem: String,
    },
}

/// The first step that answered differently.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Divergence {
    /// The step as it was recorded.
    pub recorded: StepRecord,
    /// Counts the steps of this life of this machine from 0.
    pub number: u64,
    /// The life, of a worker.
    pub life: Option<u32>,
    /// The fingerprint of the outputs now.
    pub outputs: u64,
    /// The outputs now.
    pub asked: Asked,
    /// The fields that differ, recorded first; empty if the journal keeps no outputs.
    pub fields: Vec<Difference>,
    /// The steps of this machine before it.
    pub before: Vec<Past>,
}

/// A step that went by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Past {
    /// When.
    pub at: Instant,
    /// What the machine was told, in one line.
    pub told: String,
    /// What it answered, a line each.
    pub asked: Vec<String>,
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>16}  {}", words::at(self.at), self.told)?;
        let shown = self.asked.len().min(OUTPUTS_SHOWN);
        for line in &self.asked[..shown] {
            write!(f, "\n{:>18}-> {line}", "")?;
        }
        if shown < self.asked.len() {
            write!(f, "\n{:>18}-> and {} more", "", self.asked.len() - shown)?;
        }
        Ok(())
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { recorded, number, .. } = self;
        let life = self.life.map_or_else(String::new, |life| format!(", life {life}"));
        writeln!(f, "{}{life}, step {number} at {}: another answer", recorded.who, words::at(recorded.at))?;
        writeln!(f, "  input     {}", recorded.told.line())?;
        let list = |f: &mut fmt::Formatter<'_>, label: &str, lines: &[String]| {
            if lines.is_empty() {
                writeln!(f, "  {label:<9} nothing")?;
            }
            for (index, line) in lines.iter().enumerate() {
                writeln!(f, "  {:<9} [{index}] {line}", if index == 0 { label } else { "" })?;
            }
            Ok(())
        };
        match &recorded.asked {
            Some(asked) => list(f, "recorded", &asked.lines())?,
            None => writeln!(
                f,
                "  recorded  fingerprint {:016x}; the journal keeps no outputs (--journal-detail outputs does)",
                recorded.outputs
            )?,
        }
        list(f, "now", &self.asked.lines())?;
        for field in &self.fields {
            writeln!(f, "  field     {}: recorded {}, now {}", field.path, field.one, field.other)?;
        }
        if !self.before.is_empty() {
            writeln!(f, "  before it on this machine:")?;
            for past in &self.before {
                writeln!(f, "  {past}")?;
            }
        }
        Ok(())
    }
}

/// Feeds a journal to fresh machines of this build and compares each step; `replayed` says how far it came, whatever
/// the result.
///
/// # Errors
/// At the first step that answers differently, where the journal ends too early or is damaged, or says what cannot be.
pub fn replay<R: Read>(journal: &mut Reader<R>, replayed: &mut Replayed) -> Result<(), ReplayError> {
    replay_on::<Worker, R>(journal, replayed)
}

/// The same for another kind of worker.
///
/// # Errors
/// As [`replay`].
pub fn replay_on<M: Serve, R: Read>(journal: &mut Reader<R>, replayed: &mut Replayed) -> Result<(), ReplayError> {
    replay_watched::<M, R>(journal, replayed, &mut ())
}

/// Looks on while machines live again.
pub trait Watch {
    /// A life begins.
    fn on_launch(&mut self, who: Who, life: &Life) {
        let _ = (who, life);
    }
    /// A step was lived, and answered as it was recorded.
    fn on_step(&mut self, step: &StepRecord, asked: &Asked) {
        let _ = (step, asked);
    }
}

impl Watch for () {}

/// The same with somebody looking on.
///
/// # Errors
/// As [`replay`].
pub fn replay_watched<M: Serve, R: Read>(
    journal: &mut Reader<R>,
    replayed: &mut Replayed,
    watch: &mut impl Watch,
) -> Result<(), ReplayError> {
    let mut machines: BTreeMap<Who, Machine<M>> = BTreeMap::new();
    for record in journal {
        let record = record?;
        replayed.until = record.at();
        match record {
            Record::Launch { at, who, life } => {
                let impossible = |problem| ReplayError::Impossible { who, at, problem };
                watch.on_launch(who, &life);
                machines.insert(who, Machine::launch(who, *life).map_err(impossible)?);
                replayed.lives += 1;
            }
            Record::Stop { who, .. } => drop(machines.remove(&who)),
            Record::Step(step) => {
                let (who, at) = (step.who, step.at);
                let machine = machines.get_mut(&who).ok_or_else(|| ReplayError::Impossible {
                    who,
                    at,
                    problem: "a step of a life that has not begun".to_owned(),
                })?;
                machine.step(*step, watch)?;
                *replayed.steps.entry(who).or_default() += 1;
            }
            Record::End { .. } => {}
        }
    }
    Ok(())
}

/// A machine that lives again.
struct Machine<M: Serve> {
    kind: Kind<M>,
    life: Option<u32>,
    steps: u64,
    past: VecDeque<(Instant, Told, Asked)>,
}

enum Kind<M: Serve> {
    Worker(Box<Pump<M, NoTap>>),
    Router(Box<Pump<Router, NoTap>>),
}

impl<M: Serve> Machine<M> {
    fn launch(who: Who, life: Life) -> Result<Self, String> {
        let in_words = |error: &dyn fmt::Display| format!("its configuration is refused: {error}");
        let (kind, life) = match (who, life) {
            (Who::Worker(_), Life::Worker { config, cost }) => {
                config.check().map_err(|error| in_words(&error))?;
                let cost = cost.make().map_err(|error| in_words(&error))?;
                let life = config.epoch.0;
                (Kind::Worker(Box::new(Pump::new(M::launch(*config, cost), NoTap))), Some(life))
            }
            (Who::Router, Life::Router { config, cost }) => {
                let cost = cost.make().map_err(|error| in_words(&error))?;
                let router = Router::new(*config, cost).map_err(|error| in_words(&error))?;
                (Kind::Router(Box::new(Pump::new(router, NoTap))), None)
            }
            (Who::Worker(_), Life::Router { .. }) | (Who::Router, Life::Worker { .. }) => {
                return Err("the configuration is of another kind of machine".to_owned());
            }
        };
        Ok(Self { kind, life, steps: 0, past: VecDeque::new() })
    }

    fn step(&mut self, step: StepRecord, watch: &mut impl Watch) -> Result<(), ReplayError> {
        let (asked, outputs) = match (&mut self.kind, &step.told) {
            (Kind::Worker(pump), Told::Worker(input)) => {
                let asked: Vec<_> = pump.feed(step.at, input.clone()).collect();
                let outputs = fingerprint(&asked);
                (Asked::Worker(asked), outputs)
            }
            (Kind::Router(pump), Told::Router(input)) => {
                let asked: Vec<_> = pump.feed(step.at, input.clone()).collect();
                let outputs = fingerprint(&asked);
                (Asked::Router(asked), outputs)
            }
            (Kind::Worker(_), Told::Router(_)) | (Kind::Router(_), Told::Worker(_)) => {
                unreachable!("a record is decoded by whose it is")
            }
        };
        if outputs != step.outputs {
            let fields = step.asked.as_ref().map_or_else(Vec::new, |recorded| match (recorded, &asked) {
                (Asked::Worker(recorded), Asked::Worker(asked)) => differences(recorded, asked, FIELDS_SHOWN),
                (Asked::Router(recorded), Asked::Router(asked)) => differences(recorded, asked, FIELDS_SHOWN),
                (Asked::Worker(_), Asked::Router(_)) | (Asked::Router(_), Asked::Worker(_)) => Vec::new(),
            });
            let before = self.past.iter().map(|(at, told, asked)| past(*at, told, asked)).collect();
            let (number, life) = (self.steps, self.life);
            let divergence = Divergence { recorded: step, number, life, outputs, asked, fields, before };
            return Err(ReplayError::Diverged(Box::new(divergence)));
        }
        self.steps += 1;
        watch.on_step(&step, &asked);
        remember(&mut self.past, (step.at, step.told, asked));
        Ok(())
    }
}

pub(super) fn past(at: Instant, told: &Told, asked: &Asked) -> Past {
    Past { at, told: told.line(), asked: asked.lines() }
}

/// Keeps the last few.
pub(super) fn remember<T>(past: &mut VecDeque<T>, step: T) {
    if past.len() == PAST_KEPT {
        past.pop_front();
    }
    past.push_back(step);
}

/// Steps of each machine that are kept as context.
const PAST_KEPT: usize = 5;
/// Fields that a difference lists.
pub(super) const FIELDS_SHOWN: usize = 12;
/// Outputs of a step that a context lists.
const OUTPUTS_SHOWN: usize = 6;

//! The first thing in which two runs differ, be they recorded or run here.
//!
//! Both are read event by event, in step, with bounded memory: a run that differs early is stopped early.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::rc::Rc;

use pd_core::codec::Codec;
use pd_core::id::Epoch;
use pd_core::op::{Input, Output};
use pd_core::router::{RouterInput, RouterOutput};
use pd_core::time::Instant;

use super::recorder::life;
use super::replay::{FIELDS_SHOWN, Past, remember};
use super::{Asked, JournalError, Life, Reader, Record, StepRecord, Told, Who, fingerprint};
use crate::fields::{Difference, differences};
use crate::observe::{Launch, Observer};
use crate::setup::Setup;
use crate::words;
use crate::world::World;

/// One of the two runs.
#[derive(Debug)]
pub enum Run {
    /// A journal.
    Recorded(Box<Reader<BufReader<File>>>),
    /// A world that runs as far as it is asked about.
    Live(Box<Live>),
}

/// A world that runs as far as it is asked about.
#[derive(Debug)]
pub struct Live {
    world: World,
    told: Rc<RefCell<VecDeque<Record>>>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    New,
    Running,
    Ended,
}

impl Run {
    /// A run of this setup.
    #[must_use]
    pub fn live(setup: Setup) -> Self {
        let mut world = World::new(setup);
        let told = Rc::new(RefCell::new(VecDeque::new()));
        world.observe(Box::new(Teller(Rc::clone(&told))));
        Self::Live(Box::new(Live { world, told, state: State::New }))
    }

    /// A journal.
    #[must_use]
    pub fn recorded(reader: Reader<BufReader<File>>) -> Self {
        Self::Recorded(Box::new(reader))
    }

    fn next(&mut self) -> Result<Option<Record>, JournalError> {
        match self {
            Self::Recorded(reader) => reader.next().transpose(),
            Self::Live(live) => Ok(live.next()),
        }
    }
}

impl Live {
    fn next(&mut self) -> Option<Record> {
        loop {
            if let Some(record) = self.told.borrow_mut().pop_front() {
                return Some(record);
            }
            match self.state {
                State::New => {
                    self.world.begin();
                    self.state = State::Running;
                }
                State::Running => {
                    if !self.world.turn() {
                        self.state = State::Ended;
                        return Some(Record::End { at: self.world.now() });
                    }
                }
                State::Ended => return None,
            }
        }
    }
}

#[derive(Debug)]
struct Teller(Rc<RefCell<VecDeque<Record>>>);

impl Teller {
    fn tell(&self, record: Record) {
        self.0.borrow_mut().push_back(record);
    }
}

impl Observer for Teller {
    fn on_launch(&mut self, at: Instant, launch: Launch<'_>) {
        let (who, life) = life(launch);
        self.tell(Record::Launch { at, who, life: Box::new(life) });
    }

    fn on_life(&mut self, at: Instant, worker: u32, epoch: Option<Epoch>) {
        if epoch.is_none() {
            self.tell(Record::Stop { at, who: Who::Worker(worker) });
        }
    }

    fn on_worker(&mut self, at: Instant, worker: u32, input: &Input, outputs: &[Output]) {
        self.tell(Record::Step(Box::new(StepRecord {
            at,
            who: Who::Worker(worker),
            told: Told::Worker(input.clone()),
            outputs: fingerprint(outputs),
            asked: Some(Asked::Worker(outputs.to_vec())),
        })));
    }

    fn on_router(&mut self, at: Instant, input: &RouterInput, outputs: &[RouterOutput]) {
        self.tell(Record::Step(Box::new(StepRecord {
            at,
            who: Who::Router,
            told: Told::Router(input.clone()),
            outputs: fingerprint(outputs),
            asked: Some(Asked::Router(outputs.to_vec())),
        })));
    }
}

/// What a comparison has shown.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Events that are the same in both.
    pub events: u64,
    /// Up to when.
    pub until: Instant,
    /// Configurations that differ, of lives that begin at the same time in both.
    pub configs: Vec<ConfigDifference>,
    /// The first event that differs.
    pub first: Option<Box<FirstDifference>>,
}

/// Two configurations of one life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigDifference {
    /// Whose.
    pub who: Who,
    /// When the life begins.
    pub at: Instant,
    /// The fields that differ.
    pub fields: Vec<Difference>,
}

/// The first event that differs.
#[derive(Debug)]
pub struct FirstDifference {
    /// What differs.
    pub kind: Kind,
    /// The event of one run; none if it is over.
    pub one: Option<Record>,
    /// That of the other.
    pub other: Option<Record>,
    /// The fields that differ.
    pub fields: Vec<Difference>,
    /// What both were told before on the machines concerned.
    pub before: Vec<(Who, Vec<Past>)>,
}

/// In what an event differs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// One run is over.
    Length,
    /// It is another machine's turn, or another sort of event.
    Event,
    /// The same event comes at another time.
    Time,
    /// A machine is told something else.
    Input,
    /// A machine is told the same and answers differently: what differs is in that machine.
    Outputs,
}

impl Comparison {
    /// True if nothing differs.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.configs.is_empty() && self.first.is_none()
    }
}

/// Compares two runs up to the first event that differs.
///
/// # Errors
/// If a journal cannot be read; the flag says whether it is the other run's.
pub fn compare(mut one: Run, mut other: Run) -> Result<Comparison, (bool, JournalError)> {
    let mut comparison = Comparison::default();
    let mut past: BTreeMap<Who, VecDeque<StepRecord>> = BTreeMap::new();
    loop {
        let pair = (one.next().map_err(|error| (false, error))?, other.next().map_err(|error| (true, error))?);
        let difference = match &pair {
            (None, None) => return Ok(comparison),
            (Some(a), Some(b)) => kind(a, b),
            (Some(_), None) | (None, Some(_)) => Some(Kind::Length),
        };
        if let Some(kind) = difference {
            comparison.first = Some(Box::new(first(kind, pair, &past)));
            return Ok(comparison);
        }
        let (Some(one), Some(other)) = pair else { unreachable!("a run that is over differs from one that is not") };
        comparison.events += 1;
        comparison.until = one.at();
        match (one, other) {
            (Record::Launch { at, who, life: one }, Record::Launch { life: other, .. }) if one != other => {
                let fields = differ_lives(&one, &other);
                if comparison.configs.len() < CONFIGS_SHOWN {
                    comparison.configs.push(ConfigDifference { who, at, fields });
                }
            }
            (Record::Step(step), _) => remember(past.entry(step.who).or_default(), *step),
            (Record::Launch { .. } | Record::Stop { .. } | Record::End { .. }, _) => {}
        }
    }
}

/// In what two events differ; configurations are another matter.
fn kind(one: &Record, other: &Record) -> Option<Kind> {
    let is_event = std::mem::discriminant(one) == std::mem::discriminant(other) && one.who() == other.who();
    let is_time = one.at() == other.at();
    match (one, other) {
        _ if !is_event => Some(Kind::Event),
        (Record::Step(one), Record::Step(other)) => {
            let is_same_answer = one.outputs == other.outputs;
            match (is_time, one.told == other.told) {
                (_, false) => Some(Kind::Input),
                (false, true) => Some(Kind::Time),
                (true, true) => (!is_same_answer).then_some(Kind::Outputs),
            }
        }
        _ => (!is_time).then_some(Kind::Time),
    }
}

fn first(
    kind: Kind,
    (one, other): (Option<Record>, Option<Record>),
    past: &BTreeMap<Who, VecDeque<StepRecord>>,
) -> FirstDifference {
    let fields = match (&one, &other) {
        (Some(Record::Step(one)), Some(Record::Step(other))) if kind == Kind::Input => match (&one.told, &other.told) {
            (Told::Worker(one), Told::Worker(other)) => fields(one, other),
            (Told::Router(one), Told::Router(other)) => fields(one, other),
            (Told::Worker(_), Told::Router(_)) | (Told::Router(_), Told::Worker(_)) => Vec::new(),
        },
        (Some(Record::Step(one)), Some(Record::Step(other))) if kind == Kind::Outputs => {
            match (&one.asked, &other.asked) {
                (Some(Asked::Worker(one)), Some(Asked::Worker(other))) => fields(one, other),
                (Some(Asked::Router(one)), Some(Asked::Router(other))) => fields(one, other),
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    };
    let mut concerned: Vec<Who> = [&one, &other].into_iter().flatten().filter_map(Record::who).collect();
    concerned.dedup();
    let before = concerned
        .into_iter()
        .map(|who| (who, past.get(&who).into_iter().flatten().map(past_of).collect::<Vec<_>>()))
        .filter(|(_, steps)| !steps.is_empty())
        .collect();
    FirstDifference { kind, one, other, fields, before }
}

/// Fields that differ in the codec's form: what only one process knows of a value (buffers that come back) does not count.
fn fields<T: Codec + fmt::Debug>(one: &T, other: &T) -> Vec<Difference> {
    let plain = |value: &T| T::from_bytes(&value.to_bytes()).expect("what was encoded can be decoded");
    differences(&plain(one), &plain(other), FIELDS_SHOWN)
}

fn past_of(step: &StepRecord) -> Past {
    let asked = step.asked.as_ref().map_or_else(Vec::new, Asked::lines);
    Past { at: step.at, told: step.told.line(), asked }
}

fn differ_lives(one: &Life, other: &Life) -> Vec<Difference> {
    match (one, other) {
        (Life::Worker { config: a, cost: c }, Life::Worker { config: b, cost: d }) => {
            let mut fields = differences(a, b, FIELDS_SHOWN);
            fields.extend(differences(c, d, FIELDS_SHOWN));
            fields
        }
        (Life::Router { config: a, cost: c }, Life::Router { config: b, cost: d }) => {
            let mut fields = differences(a, b, FIELDS_SHOWN);
            fields.extend(differences(c, d, FIELDS_SHOWN));
            fields
        }
        (Life::Worker { .. }, Life::Router { .. }) | (Life::Router { .. }, Life::Worker { .. }) => {
            differences(one, other, FIELDS_SHOWN)
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for config in &self.configs {
            writeln!(f, "{}, life from {}: another configuration", config.who, words::at(config.at))?;
            for field in &config.fields {
                writeln!(f, "  {}: A {}, B {}", field.path, field.one, field.other)?;
            }
        }
        let events = words::plural(self.events, "event");
        match &self.first {
            None => writeln!(f, "no event differs: {events}, up to {}", words::at(self.until)),
            Some(first) => {
                writeln!(f, "{events} are the same, up to {}; then:", words::at(self.until))?;
                write!(f, "{first}")
            }
        }
    }
}

impl fmt::Display for FirstDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Length => "one run is over, the other goes on",
            Kind::Event => "another event",
            Kind::Time => "the same event at another time",
            Kind::Input => "another input: what made it differ came earlier or from outside (load, hardware, script)",
            Kind::Outputs => "the same input, another answer: the difference is in this machine",
        };
        writeln!(f, "{what}")?;
        for (label, record) in [("A", &self.one), ("B", &self.other)] {
            match record {
                None => writeln!(f, "  {label}  is over")?,
                Some(record) => {
                    let who = record.who().map_or_else(String::new, |who| format!("{who}: "));
                    writeln!(f, "  {label}  {}  {who}{}", words::at(record.at()), record.line())?;
                    if let Record::Step(step) = record
                        && let Some(asked) = &step.asked
                    {
                        for (index, line) in asked.lines().iter().enumerate().take(OUTPUTS_SHOWN) {
                            writeln!(f, "       -> [{index}] {line}")?;
                        }
                    }
                }
            }
        }
        for field in &self.fields {
            writeln!(f, "  field  {}: A {}, B {}", field.path, field.one, field.other)?;
        }
        if self.kind == Kind::Outputs && self.fields.is_empty() {
            writeln!(f, "  a journal keeps only the fingerprint of its outputs (--journal-detail outputs keeps them)")?;
        }
        for (who, steps) in &self.before {
            writeln!(f, "  before it, in both, on {who}:")?;
            for past in steps {
                writeln!(f, "  {past}")?;
            }
        }
        Ok(())
    }
}

/// Configurations that are listed; a fleet differs a thousand times in the same way.
const CONFIGS_SHOWN: usize = 4;
/// Outputs of the differing step that are listed.
const OUTPUTS_SHOWN: usize = 12;

//! What a real worker was asked for: the outside events of journals that `pd serve --journal` wrote.
//!
//! Owns what is taken and what is left: requests with their times, prompts, priorities and answers, clients that went
//! away, orders of operators. When anything was admitted, computed, found or moved is the simulation's own to say. A
//! journal keeps inputs, so the machine lives once more to tell what it answered.
//!
//! 1. Time 0 is the first request's. Times of two machines are not compared: a pair's are those of its prefill worker,
//!    and what the decode worker saw happened so long after its own leg of a request.
//! 2. An answer that was not complete (its client went away, its time was over, the journal ends) is as long as it was
//!    allowed to be; the client goes away at its time again.
//! 3. What the worker would refuse anywhere (malformed, twice) and the end of the process (drain) are no workload.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::path::Path;

use pd_core::config::{Mode, WorkerConfig};
use pd_core::event::{Control, Event, Finish, Refusal};
use pd_core::id::{PageKey, RequestId, Room, Token};
use pd_core::op::{Input, Leg, Output, Prompt, Submit};
use pd_core::time::Instant;
use pd_core::worker::Worker;

use super::replay::{ReplayError, Replayed, Watch, replay_watched};
use super::{Asked, JournalError, Life, Reader, StepRecord, Told, Who};
use crate::trace::TOKENS_MAX;
use crate::words::plural;

/// What a deployment was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recording {
    /// Tokens of a page.
    pub page_size: u32,
    /// The worker's namespace.
    pub root: PageKey,
    /// In order of arrival.
    pub requests: Vec<Request>,
    /// What operators ordered, and workers of which mode.
    pub orders: Vec<(Instant, Mode, Control)>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// One request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// When it came.
    pub at: Instant,
    /// What was asked, all of its tokens included.
    pub prompt: Prompt,
    /// Tokens of the answer, at least 1.
    pub output_tokens: u32,
    /// The answer as far as it came.
    pub answer: Vec<Token>,
    /// Larger is more urgent.
    pub priority: i32,
    /// When its client went away.
    pub cancelled: Option<Instant>,
}

impl Recording {
    /// Reads the journal of a worker that decodes, or those of a prefill and a decode worker, in any order.
    ///
    /// # Errors
    /// Which file cannot be taken, why, and what would do.
    pub fn read<P: AsRef<Path>>(files: &[P]) -> Result<Self, String> {
        let mut notes = Vec::new();
        let mut workers = files.iter().map(|file| read(file.as_ref(), &mut notes)).collect::<Result<Vec<_>, _>>()?;
        let (page_size, root, requests, orders) = match workers.as_mut_slice() {
            [alone] => (alone.page_size, alone.root, alone.alone(&mut notes)?, alone.orders(0, 0)),
            [one, other] => {
                let (prefill, decode) = match (one.mode, other.mode) {
                    (Mode::Prefill, Mode::Decode) => (one, other),
                    (Mode::Decode, Mode::Prefill) => (other, one),
                    (a, b) => {
                        return Err(format!(
                            "{} and {} are journals of a {} and a {} worker; two journals are those of a prefill \
                             and a decode worker",
                            one.file,
                            other.file,
                            word(a),
                            word(b)
                        ));
                    }
                };
                if (prefill.page_size, prefill.root) != (decode.page_size, decode.root) {
                    let (one, other) = (&prefill.file, &decode.file);
                    return Err(format!("{one} and {other} are of other models or page sizes: no pair"));
                }
                let (requests, shift_ns) = pair(prefill, decode, &mut notes)?;
                let mut orders = prefill.orders(0, 0);
                orders.extend(decode.orders(shift_ns.0, shift_ns.1));
                (prefill.page_size, prefill.root, requests, orders)
            }
            [] => return Err("no journal is named".to_owned()),
            more => {
                return Err(format!(
                    "{} journals are named: clocks of several machines cannot be laid side by side; name one worker's, \
                     or a prefill and a decode worker's",
                    more.len()
                ));
            }
        };
        let mut recording = Self { page_size, root, requests, orders, notes };
        recording.begin_at_zero();
        Ok(recording)
    }

    fn begin_at_zero(&mut self) {
        self.requests.sort_by_key(|request| request.at);
        let begin = self.requests.first().map_or(Instant::ZERO, |request| request.at);
        let moved = |at: Instant| Instant(at.ns_since(begin));
        for request in &mut self.requests {
            request.at = moved(request.at);
            request.cancelled = request.cancelled.map(moved);
        }
        for (at, _, _) in &mut self.orders {
            *at = moved(*at);
        }
        self.orders.sort_by_key(|(at, _, _)| *at);
    }
}

/// What one journal tells.
#[derive(Debug)]
struct Recorded {
    file: String,
    mode: Mode,
    page_size: u32,
    root: PageKey,
    legs: Vec<Asking>,
    orders: Vec<(Instant, Control)>,
}

/// One leg of a request.
#[derive(Debug)]
struct Asking {
    at: Instant,
    submit: Submit,
    answer: Vec<Token>,
    cancelled: Option<Instant>,
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The answer is complete.
    Complete,
    /// It is not, or its leg ends before it.
    Short,
    /// The worker would have refused it anywhere.
    Nonsense,
}

impl Asking {
    fn output_tokens(&self) -> u32 {
        let tokens = if self.end == Some(End::Complete) { self.answer.len() as u32 } else { self.submit.limit };
        tokens.clamp(1, TOKENS_MAX)
    }
}

impl Recorded {
    /// The requests of a worker that gives whole answers.
    fn alone(&mut self, notes: &mut Vec<String>) -> Result<Vec<Request>, String> {
        let Self { file, mode, .. } = self;
        if *mode == Mode::Prefill {
            return Err(format!(
                "{file} is the journal of a prefill worker, which does not know how long answers are; \
                 add that of its decode worker: journal:{file},DECODE"
            ));
        }
        let legs = std::mem::take(&mut self.legs).into_iter();
        let requests = legs.filter(|leg| !matches!(leg.submit.leg, Leg::Prefill { .. })).map(|leg| Request {
            at: leg.at,
            output_tokens: leg.output_tokens(),
            prompt: leg.submit.prompt,
            answer: leg.answer,
            priority: leg.submit.priority,
            cancelled: leg.cancelled,
        });
        let requests: Vec<Request> = requests.collect();
        let unfinished = requests.iter().filter(|request| request.cancelled.is_some()).count();
        if unfinished > 0 {
            notes.push(format!("{file}: {} of clients that went away", plural(unfinished as u64, "request")));
        }
        if requests.is_empty() { Err(format!("{file} has no request")) } else { Ok(requests) }
    }

    /// What operators ordered, at times that are `later` and `earlier` by so many nanoseconds.
    fn orders(&mut self, later_ns: u64, earlier_ns: u64) -> Vec<(Instant, Mode, Control)> {
        let moved = |at: Instant| Instant(at.after_ns(later_ns).0.saturating_sub(earlier_ns));
        std::mem::take(&mut self.orders).into_iter().map(|(at, order)| (moved(at), self.mode, order)).collect()
    }
}

/// The requests that went through both, and by how many nanoseconds the decode worker's times are to be later or earlier.
fn pair(
    prefill: &mut Recorded,
    decode: &mut Recorded,
    notes: &mut Vec<String>,
) -> Result<(Vec<Request>, (u64, u64)), String> {
    // Rooms may be used again, one after the other.
    let mut rooms: BTreeMap<Room, VecDeque<Asking>> = BTreeMap::new();
    for leg in std::mem::take(&mut decode.legs) {
        if let Leg::Decode { room, .. } = leg.submit.leg {
            rooms.entry(room).or_default().push_back(leg);
        }
    }
    let (mut requests, mut left_out, mut shift_ns) = (Vec::new(), 0, None);
    for leg in std::mem::take(&mut prefill.legs) {
        let Leg::Prefill { room } = leg.submit.leg else { continue };
        let Some(taken) = rooms.get_mut(&room).and_then(VecDeque::pop_front) else {
            left_out += 1;
            continue;
        };
        shift_ns.get_or_insert((leg.at.ns_since(taken.at), taken.at.ns_since(leg.at)));
        let cancelled = taken.cancelled.map(|at| leg.at.after_ns(at.ns_since(taken.at)));
        requests.push(Request {
            at: leg.at,
            output_tokens: taken.output_tokens(),
            prompt: leg.submit.prompt,
            answer: taken.answer,
            priority: leg.submit.priority,
            cancelled: cancelled.or(leg.cancelled),
        });
    }
    let Some(shift_ns) = shift_ns else {
        let (one, other) = (&prefill.file, &decode.file);
        return Err(format!("{one} and {other} have no request in common: they are no pair"));
    };
    let unasked: usize = rooms.values().map(VecDeque::len).sum();
    if left_out > 0 {
        let count = plural(left_out, "request");
        notes.push(format!("{}: {count} that {} did not take over are left out", prefill.file, decode.file));
    }
    if unasked > 0 {
        let count = plural(unasked as u64, "request");
        notes.push(format!("{}: {count} from elsewhere than {} are left out", decode.file, prefill.file));
    }
    Ok((requests, shift_ns))
}

/// Lives a journal again.
fn read(path: &Path, notes: &mut Vec<String>) -> Result<Recorded, String> {
    let file = path.display().to_string();
    let opened = File::open(path).map_err(Into::into).and_then(Reader::buffered);
    let mut journal = opened.map_err(|error: JournalError| format!("{file} {error}"))?;
    let header = journal.header().clone();
    let mut listener = Listener::default();
    match replay_watched::<Worker, _>(&mut journal, &mut Replayed::default(), &mut listener) {
        Ok(()) => {}
        // A worker that was killed: what was written stands.
        Err(ReplayError::Journal(
            error @ (JournalError::Torn { .. } | JournalError::Unclosed { .. } | JournalError::Damaged { .. }),
        )) => notes.push(format!("{file} {error}")),
        Err(ReplayError::Diverged(divergence)) => {
            return Err(format!(
                "{file}: step {} answers differently: it was recorded by pd {} with machines {}, these are {}; \
                 take it with the pd that wrote it",
                divergence.number,
                header.pd,
                header.build,
                pd_core::BUILD
            ));
        }
        Err(error @ (ReplayError::Journal(_) | ReplayError::Impossible { .. })) => {
            return Err(format!("{file} {error}"));
        }
    }
    if listener.machines.len() > 1 || listener.lives > 1 {
        return Err(format!(
            "{file} is a journal of {} with launches in all: {}, as pd sim writes; the journal of one life of one \
             worker is wanted, as pd serve --journal writes; of a simulation, run the scenario",
            plural(listener.machines.len() as u64, "machine"),
            listener.lives
        ));
    }
    let Some(config) = listener.config else { return Err(format!("{file} is no journal of a worker")) };
    let mut legs = listener.legs;
    legs.retain(|leg| leg.end != Some(End::Nonsense));
    Ok(Recorded {
        file,
        mode: config.mode,
        page_size: config.kv.page_size,
        root: config.kv.root,
        legs,
        orders: listener.orders,
    })
}

/// Takes down what a worker is told and what it says to clients.
#[derive(Debug, Default)]
struct Listener {
    machines: BTreeSet<Who>,
    lives: u64,
    config: Option<Box<WorkerConfig>>,
    legs: Vec<Asking>,
    /// The latest leg of each request.
    live: BTreeMap<RequestId, usize>,
    orders: Vec<(Instant, Control)>,
    has_heard: bool,
}

impl Watch for Listener {
    fn on_launch(&mut self, who: Who, life: &Life) {
        self.machines.insert(who);
        self.lives += 1;
        if let Life::Worker { config, .. } = life {
            self.config = Some(config.clone());
        }
    }

    fn on_step(&mut self, step: &StepRecord, asked: &Asked) {
        let (Told::Worker(input), Asked::Worker(outputs)) = (&step.told, asked) else { return };
        self.told(step.at, input);
        for output in outputs {
            if let Output::Emit { request, event } = output {
                self.said(*request, event);
            }
        }
    }
}

impl Listener {
    fn told(&mut self, at: Instant, input: &Input) {
        let is_first = !std::mem::replace(&mut self.has_heard, true);
        match input {
            Input::Submit(submit) => {
                if self.leg(submit.request).is_some_and(|leg| leg.end.is_none()) {
                    return;
                }
                self.live.insert(submit.request, self.legs.len());
                let submit = (**submit).clone();
                self.legs.push(Asking { at, submit, answer: Vec::new(), cancelled: None, end: None });
            }
            Input::Cancel { request } => {
                if let Some(leg) = self.leg(*request).filter(|leg| leg.end.is_none()) {
                    leg.cancelled.get_or_insert(at);
                }
            }
            Input::Control(Control::Drain) => {}
            // No operator's order: so begins a worker without an L3 to which one could be attached.
            Input::Control(Control::DetachStorage) if is_first => {}
            Input::Control(
                order @ (Control::Flush | Control::AttachStorage | Control::DetachStorage | Control::ClearStorage),
            ) => self.orders.push((at, *order)),
            Input::Tick | Input::Peer { .. } | Input::Recv { .. } | Input::Done { .. } => {}
        }
    }

    fn said(&mut self, request: RequestId, event: &Event) {
        let Some(leg) = self.leg(request) else { return };
        match event {
            Event::Token(token) => leg.answer.push(*token),
            Event::Finished { reason: Finish::Stop | Finish::Length, .. } => leg.end = Some(End::Complete),
            Event::Finished { reason: Finish::Cancelled | Finish::Deadline | Finish::Failed(_), .. }
            | Event::HandedOver => leg.end = Some(End::Short),
            // Said to the second of the same name, of which no note was taken.
            Event::Refused(Refusal::DuplicateRequest) => {}
            Event::Refused(Refusal::Malformed | Refusal::NoOutput | Refusal::DuplicateRoom | Refusal::WrongMode) => {
                leg.end = Some(End::Nonsense)
            }
            Event::Refused(
                Refusal::QueueFull { .. }
                | Refusal::NeverFits { .. }
                | Refusal::Draining
                | Refusal::Late
                | Refusal::PromptTooLong { .. },
            ) => leg.end = Some(End::Short),
            Event::Admitted(_) | Event::Received(_) | Event::Retracted => {}
        }
    }

    fn leg(&mut self, request: RequestId) -> Option<&mut Asking> {
        self.live.get(&request).map(|at| &mut self.legs[*at])
    }
}

const fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Unified => "unified",
        Mode::Prefill => "prefill",
        Mode::Decode => "decode",
    }
}

#[cfg(test)]
mod tests;

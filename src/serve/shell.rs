//! The thread of a worker: it owns the machine, tells it what happened, and has carried out what it asks for.
//!
//! ```text
//!   HTTP ─ Job ──▶ ┌───────┐          ┌──────────┐ start  lanes: compute, copies, storage, wire
//!   peers ─ Input ▶│ inbox │─▶ pump ─▶│ dispatch │ send   peers
//!   lanes ─ Done ─▶└───────┘          └──────────┘ emit   clients
//! ```
//!
//! Nothing here waits for anything but the inbox, and the machine's own deadline bounds that.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pd_core::event::Event;
use pd_core::id::{OpId, RequestId, Token, WorkerId};
use pd_core::message::Message;
use pd_core::op::{Command, Fault, Input, LaneKind, Leg, Outcome, Output, Push, Submit};
use pd_core::pump::Pump;
use pd_core::worker::Worker;
use pd_sync::{Inbox, Received};

use pd_net::http::kv_events::KvEvents;

use super::clock::Clock;
use super::compute::{ComputeTask, Sample, Sampling};
use super::journal::Journal;
use super::order::{Due, Orders};
use super::status::Publisher;
use super::storage::StartStorage;

/// What the thread is told.
pub(crate) enum Told {
    /// A request of a client.
    Job(Box<NewJob>),
    /// Something that the machine is to know.
    Input(Input),
    /// A command is over.
    Done {
        /// Which.
        op: OpId,
        /// How it ended.
        outcome: Outcome,
        /// What a forward says of its tokens to those who asked.
        samples: Vec<(RequestId, Sample)>,
    },
    /// Another L3 is to be used.
    Attach(Box<StorageChange>),
}

/// What a worker is told waits here. Full, it holds back whoever sends:
///
/// - lanes wait for room. The thread never waits for a lane, whose queue takes every command at once, so there will be
///   room; and a lane answers no command from inside the call that starts it, so the thread never sends to itself (a
///   storage lane that is closed would: it is closed after the thread has ended);
/// - peers wait, too, which holds back the other end of their connection;
/// - the API edge does not: it refuses requests (503).
pub(crate) type Mailbox = Arc<Inbox<Told>>;

/// The end that hears. Once it is gone nobody waits for room any more, and what waits inside is dropped: clients of jobs
/// among that see their queue close.
pub(crate) struct Hearing(Mailbox);

impl Hearing {
    /// An inbox, and the end that hears.
    pub(crate) fn open() -> (Mailbox, Self) {
        let inbox = Arc::new(Inbox::new(INBOX_ITEMS_MAX));
        (Arc::clone(&inbox), Self(inbox))
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.0.close();
        while self.0.try_recv().is_some() {}
    }
}

/// A change of L3, which is made only while no request is served.
pub(crate) struct StorageChange {
    /// What carries out storage commands from then on; `None` to go on with the one before.
    pub(crate) start: Option<StartStorage>,
    /// Told how many requests stood in the way.
    pub(crate) reply: Box<dyn FnOnce(usize) + Send>,
}

/// A request on its way to the machine.
pub(crate) struct NewJob {
    pub(crate) submit: Submit,
    /// All tokens of the prompt.
    pub(crate) tokens: Vec<Token>,
    pub(crate) sampling: Sampling,
    /// Where its events go; once it refuses one, the request is cancelled.
    pub(crate) sink: Box<dyn Sink>,
}

/// Where the events of a request go.
pub(crate) trait Sink: Send {
    /// Takes an event, with what is known of a token beside its number. False if nobody listens any more.
    fn event(&mut self, event: Event, sample: Option<Sample>) -> bool;
}

/// The lanes of a worker, from the outside: each takes a command and answers it once with [`Told::Done`].
pub(crate) struct Lanes {
    pub(crate) compute: Box<dyn Fn(ComputeTask) + Send>,
    pub(crate) copy: Box<dyn Fn(OpId, Command) + Send>,
    /// None without L3.
    pub(crate) storage: Option<StartStorage>,
    pub(crate) wire: Arc<dyn Wire>,
    /// Whom to tell of changes of the cache, if anybody is to be told.
    pub(crate) kv_events: Option<Arc<KvEvents>>,
}

/// What carries KV to peers and lets theirs in.
pub(crate) trait Wire: Send + Sync {
    /// Carries pages to a peer; answered once.
    fn push(&self, op: OpId, push: Push);
    /// Sends a message to a peer, in order, if it is up. A want leases its pages to the peer.
    fn send(&self, to: WorkerId, message: &Message);
    /// Ends the leases that the news ends. False if a write of one still goes on: the machine must not hear of it yet.
    fn may_hear(&self, input: &Input) -> bool;
}

/// The worker's thread.
pub(crate) struct Shell {
    pump: Pump<Worker, Option<Journal>>,
    clock: Clock,
    inbox: Hearing,
    lanes: Lanes,
    publisher: Publisher,
    orders: Orders,
    live: BTreeMap<RequestId, Live>,
    /// What was heard of peers and must wait; see [`Wire::may_hear`].
    held: BTreeMap<WorkerId, VecDeque<Input>>,
    due: Due,
    /// Answers to commands that never started.
    unstarted: VecDeque<OpId>,
    /// Forwards that have not ended, in their order, which is that of their ends.
    forwards: VecDeque<OpId>,
    /// Requests that the engine forgets when this forward has ended: those before it may name them.
    over: VecDeque<(OpId, RequestId)>,
}

struct Live {
    sink: Box<dyn Sink>,
    prompt: u32,
    emitted: u32,
    /// The first token comes from a prefill worker: the engine has to be told of it.
    is_sink: bool,
    samples: VecDeque<Sample>,
    is_cancelled: bool,
}

impl Shell {
    pub(crate) fn new(
        worker: Worker,
        journal: Option<Journal>,
        clock: Clock,
        inbox: Hearing,
        lanes: Lanes,
        publisher: Publisher,
    ) -> Self {
        Self {
            pump: Pump::new(worker, journal),
            clock,
            inbox,
            lanes,
            publisher,
            orders: Orders::default(),
            live: BTreeMap::new(),
            held: BTreeMap::new(),
            due: Due::default(),
            unstarted: VecDeque::new(),
            forwards: VecDeque::new(),
            over: VecDeque::new(),
        }
    }

    /// Works until the inbox is closed and empty.
    pub(crate) fn run(mut self) {
        loop {
            let due = self.pump.deadline().map(|(at, _)| Duration::from_nanos(at.ns_since(self.clock.now())));
            let rest = self.publisher.patience();
            let until = std::time::Instant::now() + due.map_or(rest, |due| due.min(rest));
            match self.inbox.0.recv_until(Some(until)) {
                Received::Closed => break,
                Received::Item(told) => {
                    self.take(told);
                    // Deadlines are kept also where the inbox is never empty.
                    self.tick();
                    self.publisher.publish(&self.pump.machine, false);
                }
                Received::Timeout => {
                    self.tick();
                    self.hear_held();
                    if let Some(journal) = &mut self.pump.tap {
                        journal.rest();
                    }
                    self.publisher.publish(&self.pump.machine, true);
                }
            }
        }
        let now = self.clock.now();
        if let Some(journal) = self.pump.tap.take() {
            journal.finish(now);
        }
    }

    /// Tells the machine the time if it asked for that.
    fn tick(&mut self) {
        if self.pump.deadline().is_some_and(|(at, _)| at <= self.clock.now()) {
            self.feed(Input::Tick);
            self.answer_unstarted();
        }
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Job(job) => self.on_job(*job),
            Told::Input(input) => self.hear(input),
            Told::Done { op, outcome, samples } => {
                for (request, sample) in samples {
                    if let Some(live) = self.live.get_mut(&request) {
                        live.samples.push_back(sample);
                    }
                }
                self.orders.end(op, !matches!(outcome, Outcome::Failed(_)), &mut self.due);
                self.ended(op);
                self.feed(Input::Done { op, outcome });
            }
            Told::Attach(change) => self.on_attach(*change),
        }
        self.answer_unstarted();
    }

    /// Commands whose prerequisites failed are over.
    fn answer_unstarted(&mut self) {
        while let Some(op) = self.unstarted.pop_front() {
            self.ended(op);
            self.feed(Input::Done { op, outcome: Outcome::Failed(Fault::Prerequisite) });
        }
    }

    /// If that was a forward: requests that no other one can name are forgotten.
    fn ended(&mut self, op: OpId) {
        if self.forwards.front() != Some(&op) {
            return;
        }
        self.forwards.pop_front();
        while let Some(&(last, request)) = self.over.front()
            && last <= op
        {
            self.over.pop_front();
            (self.lanes.compute)(ComputeTask::Forget { request });
        }
    }

    fn on_job(&mut self, job: NewJob) {
        let NewJob { submit, tokens, sampling, mut sink } = job;
        let request = submit.request;
        if self.live.contains_key(&request) {
            sink.event(Event::Refused(pd_core::event::Refusal::DuplicateRequest), None);
            return;
        }
        let is_sink = matches!(submit.leg, Leg::Decode { .. });
        let prompt = submit.prompt.length;
        let live = Live { sink, prompt, emitted: 0, is_sink, samples: VecDeque::new(), is_cancelled: false };
        self.live.insert(request, live);
        (self.lanes.compute)(ComputeTask::Admit { request, tokens, sampling });
        self.feed(Input::Submit(Box::new(submit)));
    }

    fn on_attach(&mut self, change: StorageChange) {
        let requests = self.live.len();
        if requests == 0 {
            let is_other = change.start.is_some();
            // What waits for a backup goes down into the new one: objects are named by their content.
            if is_other {
                self.lanes.storage = change.start;
            }
            for input in StorageChange::inputs(is_other) {
                self.feed(input);
            }
        }
        (change.reply)(requests);
    }

    /// Tells the machine what is heard of a peer, once nothing that it ends can be written any more. What waits for that
    /// holds up what comes behind it from the same peer.
    fn hear(&mut self, input: Input) {
        let peer = match &input {
            Input::Peer { id, .. } => *id,
            Input::Recv { from, .. } => *from,
            Input::Tick | Input::Submit(_) | Input::Cancel { .. } | Input::Done { .. } | Input::Control(_) => {
                self.feed(input);
                return;
            }
        };
        if self.held.is_empty() && self.lanes.wire.may_hear(&input) {
            self.feed(input);
        } else {
            self.held.entry(peer).or_default().push_back(input);
            self.hear_held();
        }
    }

    fn hear_held(&mut self) {
        let peers: Vec<WorkerId> = self.held.keys().copied().collect();
        for peer in peers {
            while let Some(input) = self.held.get_mut(&peer).and_then(VecDeque::pop_front) {
                if !self.lanes.wire.may_hear(&input) {
                    self.held.entry(peer).or_default().push_front(input);
                    break;
                }
                self.feed(input);
            }
        }
        self.held.retain(|_, inputs| !inputs.is_empty());
    }

    fn feed(&mut self, input: Input) {
        let now = self.clock.now();
        self.pump.step(now, input);
        let mut gone = Vec::new();
        let mut over = Vec::new();
        let Self { pump, lanes, orders, live, due, forwards, .. } = self;
        for output in pump.drain() {
            match output {
                Output::Start { op, after, command } => {
                    if command.lane() == LaneKind::Compute {
                        forwards.push_back(op);
                    }
                    orders.add(op, &after, command, due);
                }
                Output::Send { to, message } => lanes.wire.send(to, &message),
                Output::Emit { request, event } => {
                    if emit(lanes, live, request, event, &mut gone) {
                        over.push(request);
                    }
                }
                Output::Publish(changes) => {
                    if let Some(events) = &lanes.kv_events {
                        events.publish(&changes);
                    }
                }
            }
        }
        for (op, command) in self.due.start.drain(..) {
            start(&self.lanes, op, command);
        }
        self.unstarted.extend(self.due.failed.drain(..));
        for request in over {
            match self.forwards.back() {
                Some(&last) => self.over.push_back((last, request)),
                None => (self.lanes.compute)(ComputeTask::Forget { request }),
            }
        }
        for request in gone {
            self.feed(Input::Cancel { request });
        }
    }
}

/// Hands an event to its client, and says whether that was the last one. Remembers who does not listen any more.
fn emit(
    lanes: &Lanes,
    live: &mut BTreeMap<RequestId, Live>,
    request: RequestId,
    event: Event,
    gone: &mut Vec<RequestId>,
) -> bool {
    let Some(client) = live.get_mut(&request) else { return false };
    let is_last = matches!(event, Event::Finished { .. } | Event::Refused(_) | Event::HandedOver);
    let mut sample = None;
    if let Event::Token(token) = event {
        if client.is_sink && client.emitted == 0 {
            let position = client.prompt;
            (lanes.compute)(ComputeTask::Set { request, position, token });
        }
        client.emitted += 1;
        sample = client.samples.pop_front();
    }
    if !client.sink.event(event, sample) && !client.is_cancelled && !is_last {
        client.is_cancelled = true;
        gone.push(request);
    }
    if is_last {
        live.remove(&request);
    }
    is_last
}

fn start(lanes: &Lanes, op: OpId, command: Command) {
    match command.lane() {
        LaneKind::Compute => {
            if let Command::Forward(batch) = command {
                (lanes.compute)(ComputeTask::Forward { op, batch });
            }
        }
        LaneKind::CopyIn | LaneKind::CopyOut => (lanes.copy)(op, command),
        LaneKind::Storage => {
            if let Some(storage) = &lanes.storage {
                storage(op, command);
            }
        }
        LaneKind::Wire => {
            if let Command::Push(push) = command {
                lanes.wire.push(op, *push);
            }
        }
    }
}

/// Items in an inbox: several for each request and command that may be under way.
const INBOX_ITEMS_MAX: usize = 8192;

#[cfg(test)]
mod tests;

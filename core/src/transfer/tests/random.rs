//! Random interleavings of both ends, with cuts, restarts, aborts, copies of old messages, failing pushes and time.
//!
//! What must hold: no page is released while a push that names it can still land, no push lands in a page of another
//! request, each leg ends exactly once, source pages are not given back while read, and once faults have stopped
//! everything ends and all pages are free.

use std::boxed::Box;
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::net::{D, End, Net, P, Q, ROOT, layout, prompt};
use crate::config::Mode;
use crate::event::Served;
use crate::id::{Epoch, Generation, GpuPage, RequestId, Room, Token, WorkerId};
use crate::message::{AbortReason, End as Side, Handoff, Hello, Message, Mismatch, VERSION, Want};
use crate::mutant::Mutant;
use crate::op::{Fault, Outcome};

#[derive(Clone, Copy, Debug)]
enum Act {
    Begin { is_offered_late: bool, prefill: bool, length: u32, have: u32 },
    OfferLate,
    Deliver { line: usize },
    Compute { leg: usize, pages: u32 },
    HandOver { leg: usize },
    Finish { flight: usize, outcome: u8 },
    AbortSink { leg: usize },
    AbortSource { leg: usize },
    Wait { seconds: u64 },
    Cut { at_sink: bool, prefill: bool },
    Connect { prefill: bool },
    Restart { worker: u8 },
    Copy { old: usize },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (any::<bool>(), any::<bool>(), 1..20_u32, 0..6_u32).prop_map(|(is_offered_late, prefill, length, have)| {
            Act::Begin { is_offered_late, prefill, length, have }
        }),
        2 => Just(Act::OfferLate),
        20 => (0..4_usize).prop_map(|line| Act::Deliver { line }),
        8 => (0..8_usize, 1..4_u32).prop_map(|(leg, pages)| Act::Compute { leg, pages }),
        5 => (0..8_usize).prop_map(|leg| Act::HandOver { leg }),
        8 => (0..8_usize, any::<u8>()).prop_map(|(flight, outcome)| Act::Finish { flight, outcome }),
        2 => (0..8_usize).prop_map(|leg| Act::AbortSink { leg }),
        2 => (0..8_usize).prop_map(|leg| Act::AbortSource { leg }),
        3 => (1..12_u64).prop_map(|seconds| Act::Wait { seconds }),
        1 => (150..310_u64).prop_map(|seconds| Act::Wait { seconds }),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(at_sink, prefill)| Act::Cut { at_sink, prefill }),
        3 => any::<bool>().prop_map(|prefill| Act::Connect { prefill }),
        1 => (0..3_u8).prop_map(|worker| Act::Restart { worker }),
        6 => (0..64_usize).prop_map(|old| Act::Copy { old }),
    ]
}

struct Run {
    net: Net,
    begun: u64,
    late: Vec<(u64, u32, bool)>,
    /// Messages to prefills and to the decode worker that were delivered, to be delivered again.
    old: Vec<(WorkerId, WorkerId, Message)>,
}

fn prefill(second: bool) -> WorkerId {
    if second { Q } else { P }
}

impl Run {
    fn new(mutant: Option<Mutant>) -> Self {
        let mut net = Net::new();
        if let Some(mutant) = mutant {
            net.mutate(mutant);
        }
        Self { net, begun: 0, late: Vec::new(), old: Vec::new() }
    }

    fn apply(&mut self, act: Act) {
        let net = &mut self.net;
        match act {
            Act::Begin { is_offered_late, prefill: second, length, have } => {
                if net.node(D).free.len() < 6 {
                    return;
                }
                self.begun += 1;
                let request = RequestId(self.begun);
                if is_offered_late {
                    self.late.push((self.begun, length, second));
                } else {
                    net.offer(prefill(second), request, Room(request.0), length, None).expect("a room of its own");
                }
                let deadline = (length % 3 == 0).then(|| net.now.after_ns(20_000_000_000));
                net.want(D, request, prefill(second), length, have.min(length.div_ceil(4)), deadline);
            }
            Act::OfferLate => {
                if let Some((request, length, second)) = self.late.pop() {
                    // The same prefill may have been asked by the sink meanwhile.
                    let _ = net.offer(prefill(second), RequestId(request), Room(request), length, None);
                }
            }
            Act::Deliver { line } => {
                let (from, to) = [(D, P), (P, D), (D, Q), (Q, D)][line];
                for _ in 0..3 {
                    if let Some(message) = net.deliver(from, to) {
                        self.old.push((from, to, message));
                    }
                }
            }
            Act::Compute { leg, pages } => {
                if let Some((worker, request)) = self.wanted(leg) {
                    self.net.compute(worker, request, pages);
                }
            }
            Act::HandOver { leg } => {
                if let Some((worker, request)) = self.wanted(leg) {
                    let length = self.net.node(worker).sources[&request].length;
                    self.net.compute(worker, request, length);
                    if self.net.node(worker).sources.get(&request).is_some_and(|leg| !leg.is_handed) {
                        self.net.hand_over(worker, request);
                    }
                }
            }
            Act::Finish { flight, outcome } => {
                if net.flights.is_empty() {
                    return;
                }
                let index = flight % net.flights.len();
                let outcome = match outcome % 8 {
                    0 => Outcome::Failed(Fault::Io),
                    1 => Outcome::Partly(vec![(0, Fault::Io)]),
                    _ => Outcome::Moved,
                };
                net.finish(index, outcome);
            }
            Act::AbortSink { leg } => {
                let requests: Vec<_> = net.node(D).sinks.keys().copied().collect();
                if let Some(request) = requests.get(leg) {
                    net.abort(D, *request, AbortReason::Cancelled);
                }
            }
            Act::AbortSource { leg } => {
                let legs = [P, Q].map(|id| net.node(id).sources.keys().map(move |it| (id, *it)).collect::<Vec<_>>());
                if let Some((worker, request)) = legs.concat().get(leg) {
                    net.abort(*worker, *request, AbortReason::Refused);
                }
            }
            Act::Wait { seconds } => net.wait_seconds(seconds),
            Act::Cut { at_sink, prefill: second } => {
                let peer = prefill(second);
                let (at, of) = if at_sink { (D, peer) } else { (peer, D) };
                if net.views.contains_key(&(at, of)) {
                    net.cut(at, of);
                }
            }
            Act::Connect { prefill: second } => Self::connect(net, prefill(second)),
            Act::Restart { worker } => {
                let worker = [D, P, Q][usize::from(worker)];
                if worker == D {
                    // The pages of the earlier life are gone with it, and so are its sources' reasons to write.
                    net.flights.retain(|flight| flight.op.is_some());
                }
                net.restart(worker);
                self.late.retain(|(_, _, second)| prefill(*second) != worker && worker != D);
            }
            Act::Copy { old } => {
                // Copies arrive at any time, those of messages that were lost with their connection too. Only that the
                // first message of a connection is its own Hello is what a transport has to see to.
                if let Some((from, to, message)) = self.old.get(self.old.len().wrapping_sub(old + 1)).cloned()
                    && !matches!(message, Message::Hello(_))
                    && net.views.get(&(to, from)).is_some_and(|view| net.views.get(&(from, to)) == Some(view))
                {
                    net.say(from, to, message);
                }
            }
        }
    }

    /// Brings a connection up again, if an end misses it.
    fn connect(net: &mut Net, peer: WorkerId) {
        let views = [(D, peer), (peer, D)].map(|end| net.views.get(&end).copied());
        if views[0].is_some() && views[0] == views[1] {
            return;
        }
        for (at, of) in [(D, peer), (peer, D)] {
            // Of the same life an end has to hear the end of the old connection first.
            if net.views.contains_key(&(at, of)) {
                net.cut(at, of);
            }
        }
        net.connect(D, peer);
    }

    /// A source leg whose prompt may be computed.
    fn wanted(&self, leg: usize) -> Option<(WorkerId, RequestId)> {
        let legs = [P, Q].into_iter().flat_map(|id| {
            let node = self.net.node(id);
            node.sources.iter().filter_map(move |(request, leg)| {
                (node.transfer.is_wanted(*request) && !leg.is_handed).then_some((id, *request))
            })
        });
        let legs: Vec<_> = legs.collect();
        (!legs.is_empty()).then(|| legs[leg % legs.len()])
    }

    /// Faults are over: everything ends.
    fn end(&mut self) {
        self.late.clear();
        for _ in 0..200 {
            for peer in [P, Q] {
                Self::connect(&mut self.net, peer);
            }
            self.net.deliver_all();
            self.net.finish_all();
            while let Some((worker, request)) = self.wanted(0) {
                self.net.compute(worker, request, 100);
                self.net.hand_over(worker, request);
                self.net.finish_all();
                self.net.deliver_all();
            }
            if [D, P, Q].iter().all(|id| self.net.node(*id).transfer.is_idle()) {
                break;
            }
            self.net.wait_seconds(4);
        }
        let mut faults: Vec<String> = Vec::new();
        for id in [D, P, Q] {
            let node = self.net.node(id);
            if !node.transfer.is_idle() || !node.sources.is_empty() || !node.sinks.is_empty() {
                faults.push(format!("{id} is not done: {:?} {:?} {:?}", node.sources, node.sinks, node.transfer));
            }
            if node.free.len() != 64 {
                faults.push(format!("{id} has {} of 64 pages", node.free.len()));
            }
            let mut ends: Vec<String> = node.ends.iter().map(|(request, _)| request.to_string()).collect();
            let count = ends.len();
            ends.sort();
            ends.dedup();
            // A leg that failed at its source may be offered there again by a late router; a sink has one end.
            if id == D && ends.len() != count {
                faults.push(format!("{id}: a request with two ends: {:?}", node.ends));
            }
        }
        self.net.faults.extend(faults);
    }
}

fn run(acts: &[Act], mutant: Option<Mutant>) -> Run {
    let mut run = Run::new(mutant);
    for act in acts {
        run.apply(*act);
        if !run.net.faults.is_empty() {
            return run;
        }
    }
    run.end();
    run
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_page_is_reused_while_it_may_be_written_and_everything_ends(acts in prop::collection::vec(act(), 1..160)) {
        let run = run(&acts, None);
        prop_assert!(run.net.faults.is_empty(), "{:#?}", run.net.faults);
    }
}

/// A message with small numbers, so that some of them fit what is open.
fn forged() -> impl Strategy<Value = Message> {
    let numbers = (0..12_u64, 0..12_u32, 0..3_u32, 0..3_u32);
    (0..9_u8, numbers, 0..20_u32, 0..6_u32, any::<bool>()).prop_map(
        |(kind, (room, generation, epoch, source), length, have, flag)| {
            let by = if flag { Side::Source } else { Side::Sink };
            let (epoch, source, generation) = (Epoch(epoch), Epoch(source), Generation(generation));
            // Prompts that nobody announced are in rooms that no test opens.
            let room = Room(if kind == 5 { room + 1000 } else { room });
            let request = RequestId(room.0);
            let reason = AbortReason::Unknown;
            match kind {
                0 => Message::Ping { number: room.0 },
                1 => Message::Pong { number: room.0 },
                2 => Message::Abort { room, generation, epoch, source, by, reason },
                3 => Message::AbortAck { room, generation, epoch, source },
                4 | 5 => {
                    let pages = (have..length.div_ceil(4).max(have)).map(GpuPage).collect();
                    let prompt = (kind == 5).then(|| prompt(request, length).into());
                    Message::Want(Want { room, generation, epoch, source, request, length, have, pages, prompt }.into())
                }
                6 => {
                    let last = prompt(request, length).keys.last().copied();
                    let (token, served) = (Token(have), Box::new(Served::from_nowhere(length)));
                    let handoff = Handoff { room, generation, epoch, source, request, length, last, token, served };
                    Message::Handoff(handoff.into())
                }
                7 => Message::Incompatible(Mismatch::Shape),
                _ => {
                    let (mode, root, version) = (Mode::Prefill, ROOT, if flag { VERSION } else { have });
                    Message::Hello(Hello { version, epoch, mode, root, layout: layout(), generation }.into())
                }
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_a_peer_says_stops_a_worker(
        acts in prop::collection::vec((act(), forged(), 0..4_usize), 1..120),
    ) {
        let mut run = Run::new(None);
        for (act, message, line) in acts {
            run.apply(act);
            let (from, to) = [(D, P), (P, D), (D, Q), (Q, D)][line];
            // A liar may cost its own requests and pages; each step checks that the machine stays sound.
            run.net.say(from, to, message);
        }
    }
}

/// Runs that do nothing prove nothing: most branches are taken in a few hundred random runs, and each deliberate
/// mistake is seen in some of them.
#[test]
fn random_runs_reach_the_rare_branches_and_see_each_mistake() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = prop::collection::vec(act(), 100..160);
    let mut draw = || strategy.new_tree(&mut runner).expect("a strategy that never rejects").current();
    let cases: Vec<Vec<Act>> = (0..300).map(|_| draw()).collect();
    let mut ends = [0; 5];
    let mut marks = crate::metrics::Metrics::default();
    for case in &cases {
        let run = run(case, None);
        run.net.is_clean();
        for node in run.net.nodes.values() {
            marks.merge(&node.metrics);
            for (_, end) in &node.ends {
                ends[match end {
                    End::Sent => 0,
                    End::SourceFailed(_) => 1,
                    End::Landed(_) => 2,
                    End::SinkFailed(_) => 3,
                    End::Aborted => 4,
                }] += 1;
            }
        }
    }
    assert!(ends.iter().all(|count| *count > 50), "{ends:?}");
    assert!(marks.handoff_retries > 50 && marks.stale_inputs > 50, "{marks:?}");
    let rare = ["transfer.abort_again", "transfer.abort_of_unknown", "transfer.push_again", "transfer.silent"];
    for mark in rare.into_iter().chain(["transfer.want_refused"]) {
        assert!(marks.marks.contains_key(mark), "{mark} was never reached: {:?}", marks.marks);
    }
    for mutant in [Mutant::FenceOnTimeout, Mutant::FenceOnSourceAbort, Mutant::AckBeforeDrained, Mutant::BelieveCopies]
    {
        let seen = cases.iter().filter(|case| !run(case, Some(mutant)).net.faults.is_empty()).count();
        std::println!("{mutant:?}: seen in {seen} of {} runs", cases.len());
        assert!(seen > 0, "{mutant:?} was not seen");
    }
}

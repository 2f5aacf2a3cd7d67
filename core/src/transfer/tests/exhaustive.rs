//! Every interleaving of two hand-offs between two workers, up to a number of moves.
//!
//! A move delivers the next message of a line, computes and hands over a prompt, ends a push well or badly, cancels at
//! either end, lets time pass, cuts a connection at one end, brings it up again, or restarts a worker; at most
//! `FAULTS_MAX` of them are faults. States are told apart by a fingerprint, so each is visited once, at its least depth.
//! From each of them everything must end once faults stop, with all pages free; what must never happen is what the net
//! looks for (see the random test beside this one).
//!
//! `PD_EXHAUSTIVE_DEPTH=16 cargo test -p pd-core exhaustive -- --nocapture` goes deeper than the default.

use std::collections::{BTreeSet, VecDeque};
use std::format;
use std::println;
use std::string::String;

use std::vec::Vec;

use super::net::{D, Net, P, config};
use crate::codec::Codec;
use crate::config::Mode;
use crate::digest::Digest;
use crate::id::{RequestId, WorkerId};
use crate::message::AbortReason;
use crate::mutant::Mutant;
use crate::op::{Fault, Outcome};

/// What can happen next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Move {
    Deliver(WorkerId, WorkerId),
    Serve(RequestId),
    Land(usize),
    FailPush(usize),
    Cancel(WorkerId, RequestId),
    Wait,
    Cut(WorkerId, WorkerId),
    Connect,
    Restart(WorkerId),
}

impl Move {
    const fn is_fault(self) -> bool {
        !matches!(self, Self::Deliver(..) | Self::Serve(_) | Self::Land(_) | Self::Connect)
    }
}

const REQUESTS: [RequestId; 2] = [RequestId(1), RequestId(2)];
const FAULTS_MAX: usize = 2;

/// The net after some moves.
fn after(moves: &[Move], mutant: Option<Mutant>) -> Net {
    let mut net = Net::strangers(&[(D, Mode::Decode), (P, Mode::Prefill)], &config());
    if let Some(mutant) = mutant {
        net.mutate(mutant);
    }
    net.connect(D, P);
    net.deliver_all();
    net.begin(1, P, 6, 0);
    net.begin(2, P, 5, 1);
    for one in moves {
        apply(&mut net, *one);
    }
    net
}

fn apply(net: &mut Net, one: Move) {
    match one {
        Move::Deliver(from, to) => {
            net.deliver(from, to);
        }
        Move::Serve(request) => {
            net.compute(P, request, 100);
            if net.node(P).sources.get(&request).is_some_and(|leg| !leg.is_handed) {
                net.hand_over(P, request);
            }
        }
        Move::Land(flight) => net.finish(flight, Outcome::Moved),
        Move::FailPush(flight) => net.finish(flight, Outcome::Failed(Fault::Io)),
        Move::Cancel(worker, request) => net.abort(worker, request, AbortReason::Cancelled),
        Move::Wait => net.wait_seconds(4),
        Move::Cut(at, peer) => net.cut(at, peer),
        Move::Connect => connect(net),
        Move::Restart(worker) => {
            if worker == D {
                net.flights.retain(|flight| flight.op.is_some());
            }
            net.restart(worker);
        }
    }
}

/// Brings the connection up again; an end that still believes in the old one hears of its end first.
fn connect(net: &mut Net) {
    for (at, of) in [(D, P), (P, D)] {
        if net.views.contains_key(&(at, of)) {
            net.cut(at, of);
        }
    }
    net.connect(D, P);
}

fn is_connected(net: &Net) -> bool {
    let views = [(D, P), (P, D)].map(|end| net.views.get(&end).copied());
    views[0].is_some() && views[0] == views[1]
}

/// A source leg whose prompt may be computed.
fn is_wanted(net: &Net, request: RequestId) -> bool {
    let node = net.node(P);
    node.transfer.is_wanted(request) && node.sources.get(&request).is_some_and(|leg| !leg.is_handed)
}

fn moves(net: &Net, faults: usize) -> Vec<Move> {
    let mut moves = Vec::new();
    for (from, to) in [(D, P), (P, D)] {
        if net.lines.get(&(from, to)).is_some_and(|line| !line.is_empty()) {
            moves.push(Move::Deliver(from, to));
        }
    }
    moves.extend(REQUESTS.into_iter().filter(|request| is_wanted(net, *request)).map(Move::Serve));
    moves.extend((0..net.flights.len()).map(Move::Land));
    if !is_connected(net) {
        moves.push(Move::Connect);
    }
    if faults < FAULTS_MAX {
        moves.extend((0..net.flights.len()).map(Move::FailPush));
        moves.extend(net.node(D).sinks.keys().map(|request| Move::Cancel(D, *request)));
        moves.extend(net.node(P).sources.keys().map(|request| Move::Cancel(P, *request)));
        moves.push(Move::Wait);
        for (at, peer) in [(D, P), (P, D)] {
            if net.views.contains_key(&(at, peer)) {
                moves.push(Move::Cut(at, peer));
            }
        }
        moves.extend([D, P].map(Move::Restart));
    }
    moves
}

/// What tells states apart. Connections are numbered as they come; two states that differ only in that are two.
fn fingerprint(net: &Net, faults: usize) -> u64 {
    let mut digest = Digest::new();
    digest.word(faults as u64);
    digest.value(&net.now);
    for node in net.nodes.values() {
        node.transfer.digest(&mut digest);
        node.ops.digest(&mut digest);
        digest.value(&node.epoch);
        for text in [format!("{:?}", node.sources), format!("{:?}", node.sinks), format!("{:?}", node.ends)] {
            text.encode(&mut digest);
        }
        format!("{:?} {:?}", node.owner, node.content).encode(&mut digest);
    }
    format!("{:?} {:?} {:?}", net.lines, net.views, net.flights).encode(&mut digest);
    digest.finish()
}

/// Faults are over: everything ends. What is wrong otherwise.
fn ends_badly(net: &mut Net) -> Vec<String> {
    for _ in 0..200 {
        if !is_connected(net) {
            connect(net);
        }
        net.deliver_all();
        net.finish_all();
        for request in REQUESTS {
            if is_wanted(net, request) {
                apply(net, Move::Serve(request));
                net.finish_all();
                net.deliver_all();
            }
        }
        if [D, P].iter().all(|id| net.node(*id).transfer.is_idle()) {
            break;
        }
        net.wait_seconds(4);
    }
    let mut faults = net.faults.clone();
    for id in [D, P] {
        let node = net.node(id);
        if !node.transfer.is_idle() || !node.sources.is_empty() || !node.sinks.is_empty() {
            faults.push(format!("{id} is not done: {:?} {:?}", node.sources, node.sinks));
        }
        if node.free.len() != 64 {
            faults.push(format!("{id} has {} of 64 pages", node.free.len()));
        }
    }
    faults
}

/// Visits all states up to a depth; how many there are, or the first moves after which something is wrong.
fn search(depth: usize, mutant: Option<Mutant>) -> Result<usize, (Vec<Move>, Vec<String>)> {
    let mut seen = BTreeSet::new();
    let mut paths: VecDeque<Vec<Move>> = VecDeque::from([Vec::new()]);
    while let Some(path) = paths.pop_front() {
        let mut net = after(&path, mutant);
        if !net.faults.is_empty() {
            return Err((path, net.faults));
        }
        let faults = path.iter().filter(|one| one.is_fault()).count();
        if !seen.insert(fingerprint(&net, faults)) {
            continue;
        }
        if path.len() < depth {
            for one in moves(&net, faults) {
                let mut longer = path.clone();
                longer.push(one);
                paths.push_back(longer);
            }
        }
        let wrong = ends_badly(&mut net);
        if !wrong.is_empty() {
            return Err((path, wrong));
        }
    }
    Ok(seen.len())
}

#[test]
fn exhaustive_every_interleaving_of_two_handoffs_ends_well() {
    let depth = std::env::var("PD_EXHAUSTIVE_DEPTH").ok().and_then(|depth| depth.parse().ok()).unwrap_or(7);
    match search(depth, None) {
        Ok(states) => {
            println!("{states} states of up to {depth} moves");
            assert!(states > 1_000, "only {states} states");
        }
        Err((path, wrong)) => panic!("after {path:?}: {wrong:#?}"),
    }
}

#[test]
fn exhaustive_search_finds_mistakes_at_their_least_depth() {
    for mutant in [Mutant::FenceOnTimeout, Mutant::FenceOnSourceAbort, Mutant::AckBeforeDrained] {
        let found = search(8, Some(mutant));
        let Err((path, _)) = found else { panic!("{mutant:?} is not found") };
        println!("{mutant:?}: {path:?}");
    }
}

//! What tests do with a net: begin requests, compute, cut, deliver, wait.

use std::boxed::Box;
use std::format;
use std::string::String;
use std::vec::Vec;

use super::net::{D, End, Net, PAGE_SIZE, SinkLeg, SourceLeg, prompt};
use crate::event::{Refusal, Served};
use crate::id::{GpuPage, RequestId, Room, Token, WorkerId};
use crate::kv::Lease;
use crate::message::{AbortReason, Message};
use crate::op::{Fault, Outcome};
use crate::time::Instant;

impl Net {
    pub(super) fn offer(
        &mut self,
        id: WorkerId,
        request: RequestId,
        room: Room,
        length: u32,
        deadline: Option<Instant>,
    ) -> Result<(), Refusal> {
        let offered = self.step(id, |transfer, cx, _| transfer.offer(cx, request, room, length, deadline));
        if offered.is_ok() {
            let leg = SourceLeg { room, length, pushed: 0, is_handed: false };
            self.nodes.get_mut(&id).expect("a worker of the net").sources.insert(request, leg);
        }
        offered
    }

    pub(super) fn want(
        &mut self,
        id: WorkerId,
        request: RequestId,
        prefill: WorkerId,
        length: u32,
        have: u32,
        deadline: Option<Instant>,
    ) {
        let leg = SinkLeg { room: Room(request.0), prompt: prompt(request, length), have, lease: None, deadline };
        self.nodes.get_mut(&id).expect("a worker of the net").sinks.insert(request, leg);
        self.want_again(id, request, prefill);
    }

    pub(super) fn want_again(&mut self, id: WorkerId, request: RequestId, prefill: WorkerId) {
        let leg = &self.nodes[&id].sinks[&request];
        let (room, prompt, have, deadline) = (leg.room, leg.prompt.clone(), leg.have, leg.deadline);
        let table = self.take_pages(id, request, prompt.length.div_ceil(PAGE_SIZE));
        let pages = table[have as usize..].to_vec();
        let lease = Lease::for_test(request, table);
        let leg = self.nodes.get_mut(&id).and_then(|node| node.sinks.get_mut(&request));
        leg.expect("inserted above").lease = Some(lease);
        self.step(id, |transfer, cx, _| transfer.want(cx, request, room, prefill, &prompt, have, &pages, deadline))
            .expect("a room of its own");
    }

    /// Both legs of a request.
    pub(super) fn begin(&mut self, request: u64, prefill: WorkerId, length: u32, have: u32) -> RequestId {
        let id = RequestId(request);
        self.offer(prefill, id, Room(request), length, None).expect("a room of its own");
        self.want(D, id, prefill, length, have, None);
        id
    }

    /// Computes the next pages of a prompt; source pages are numbered like those of the prompt.
    pub(super) fn compute(&mut self, id: WorkerId, request: RequestId, count: u32) {
        let leg = self.nodes.get_mut(&id).and_then(|node| node.sources.get_mut(&request)).expect("a leg");
        let from = leg.pushed;
        let to = (from + count).min(leg.length.div_ceil(PAGE_SIZE));
        leg.pushed = to;
        let pages: Vec<GpuPage> = (from..to).map(GpuPage).collect();
        self.step(id, |transfer, cx, _| transfer.push(cx, request, from, &pages, &[]));
    }

    pub(super) fn hand_over(&mut self, id: WorkerId, request: RequestId) {
        let leg = self.nodes.get_mut(&id).and_then(|node| node.sources.get_mut(&request)).expect("a leg");
        leg.is_handed = true;
        let last = prompt(request, leg.length).keys.last().copied();
        let token = Token(request.0 as u32 + 1000);
        let served = Box::new(Served::from_nowhere(leg.length));
        self.step(id, |transfer, cx, _| transfer.hand_over(cx, request, token, last, served));
        self.tick(id);
    }

    /// Computes and hands over.
    pub(super) fn serve(&mut self, id: WorkerId, request: RequestId) {
        self.compute(id, request, u32::MAX / 2);
        self.hand_over(id, request);
    }

    pub(super) fn abort(&mut self, id: WorkerId, request: RequestId, reason: AbortReason) {
        self.step(id, |transfer, cx, events| events.extend(transfer.abort(cx, request, reason)));
        if self.nodes[&id].sinks.contains_key(&request) {
            self.end_sink(id, request, End::Aborted);
        }
    }

    /// A push in flight ends; what landed is in the sink's pages.
    pub(super) fn finish(&mut self, index: usize, outcome: Outcome) {
        let flight = self.flights.remove(index);
        let (to, can_land) = (flight.push.to, self.can_land(&flight));
        let outcome = if can_land { outcome } else { Outcome::Failed(Fault::Unreachable) };
        let fails = |index: usize| match &outcome {
            Outcome::Moved => false,
            Outcome::Partly(failed) => failed.iter().any(|(at, _)| *at as usize == index),
            Outcome::Failed(_) | Outcome::Sampled(_) | Outcome::Found(_) | Outcome::Scanned { .. } => true,
        };
        for (index, (from, page)) in flight.push.pages.iter().enumerate() {
            // A write that failed may have landed none the less.
            if !can_land {
                continue;
            }
            let owner = self.nodes[&to].owner.get(page).copied();
            self.expect(owner == Some(flight.request), format!("{} wrote to a page of {owner:?}", flight.request));
            let content = if fails(index) { (RequestId(0), 0) } else { (flight.request, from.0) };
            self.nodes.get_mut(&to).expect("a worker of the net").content.insert(*page, content);
        }
        if let Some(op) = flight.op {
            self.nodes.get_mut(&flight.from).expect("a worker of the net").ops.finish(op).expect("in flight");
            self.step(flight.from, |transfer, cx, events| events.extend(transfer.on_done(cx, op, outcome)));
        }
    }

    pub(super) fn finish_all(&mut self) {
        while !self.flights.is_empty() {
            self.finish(0, Outcome::Moved);
        }
    }

    /// Both ends learn that they are connected.
    pub(super) fn connect(&mut self, a: WorkerId, b: WorkerId) {
        self.connections += 1;
        for (one, other) in [(a, b), (b, a)] {
            let epoch = self.nodes[&other].epoch;
            self.views.insert((one, other), self.connections);
            self.step(one, |transfer, cx, events| events.extend(transfer.on_peer(cx, other, Some(epoch))));
        }
    }

    /// One end learns that the other is torn down.
    pub(super) fn cut(&mut self, at: WorkerId, peer: WorkerId) {
        self.views.remove(&(at, peer));
        self.step(at, |transfer, cx, events| events.extend(transfer.on_peer(cx, peer, None)));
    }

    pub(super) fn deliver(&mut self, from: WorkerId, to: WorkerId) -> Option<Message> {
        let (connection, message) = self.lines.get_mut(&(from, to))?.pop_front()?;
        if self.views.get(&(to, from)) == Some(&connection) {
            self.say(from, to, message.clone());
        }
        Some(message)
    }

    /// A message arrives, whoever made it.
    pub(super) fn say(&mut self, from: WorkerId, to: WorkerId, message: Message) {
        self.step(to, |transfer, cx, events| events.extend(transfer.on_message(cx, from, message)));
    }

    pub(super) fn deliver_all(&mut self) {
        while let Some(line) = self.lines.iter().find(|(_, queue)| !queue.is_empty()).map(|(line, _)| *line) {
            self.deliver(line.0, line.1);
        }
    }

    pub(super) fn tick(&mut self, id: WorkerId) {
        self.step(id, |_, _, _| ());
    }

    /// Lets time pass, with a tick at each deadline of each worker; messages stay where they are.
    pub(super) fn wait(&mut self, until: Instant) {
        loop {
            let due = self.nodes.iter().filter_map(|(id, node)| Some((node.transfer.deadline()?.0, *id))).min();
            let Some((at, id)) = due.filter(|(at, _)| *at <= until) else { break };
            self.now = self.now.max(at);
            self.tick(id);
        }
        self.now = self.now.max(until);
    }

    pub(super) fn wait_seconds(&mut self, seconds: u64) {
        self.wait(self.now.after_ns(seconds * 1_000_000_000));
    }

    /// Lets time pass while messages arrive.
    pub(super) fn live_seconds(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.wait_seconds(1);
            self.deliver_all();
        }
    }

    pub(super) fn ends(&self, id: WorkerId) -> &[(RequestId, End)] {
        &self.nodes[&id].ends
    }

    /// Everything that is queued for a line, without delivering it.
    pub(super) fn queued(&self, from: WorkerId, to: WorkerId) -> Vec<Message> {
        self.lines.get(&(from, to)).into_iter().flatten().map(|(_, message)| message.clone()).collect()
    }

    pub(super) fn is_clean(&self) {
        assert_eq!(self.faults, Vec::<String>::new());
    }
}

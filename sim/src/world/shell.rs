//! The shell of the router: arrivals go to it as asks, its routes become submits, its refusals ends.
//!
//! Without a router all requests go to the only worker, and wait for it while it is down.

use pd_core::cost::Cost;
use pd_core::event::{Event, Finish};
use pd_core::id::{Epoch, RequestId, WorkerId};
use pd_core::op::{Input, Leg};
use pd_core::pump::{NoTap, Pump};
use pd_core::router::{Ask, Route, RouteFault, Router, RouterConfig, RouterInput, RouterMetrics, RouterOutput};
use pd_core::time::Instant;

use super::WorldOf;
use crate::fault::{Class, Faults, Parcel, ROUTER, reporter};
use crate::lane::{Fabric, Mark, Text};
use crate::node::Serve;
use crate::observe::Launch;
use crate::record::End;

/// The router and where it is.
#[derive(Debug)]
pub(crate) struct RouterNode {
    config: RouterConfig,
    cost: Cost,
    pub(super) pump: Pump<Router, NoTap>,
    pub(crate) latency_ns: u64,
    tick_at: Option<Instant>,
    /// The lines of the script because of which it is away.
    pub(crate) away: Vec<u32>,
    /// What earlier lives did.
    past: RouterMetrics,
}

impl RouterNode {
    pub(super) fn new(config: RouterConfig, cost: Cost, latency_ns: u64) -> Self {
        let pump = Self::launch(&config, &cost);
        Self { config, cost, pump, latency_ns, tick_at: None, away: Vec::new(), past: RouterMetrics::default() }
    }

    fn launch(config: &RouterConfig, cost: &Cost) -> Pump<Router, NoTap> {
        let router = Router::new(config.clone(), cost.clone()).expect("the router's configuration is in range");
        Pump::new(router, NoTap)
    }

    /// Its life ends; the next one knows nothing and begins once no line of the script keeps it away.
    pub(crate) fn restart(&mut self, line: u32) {
        self.past.merge(self.pump.machine.metrics());
        self.config.epoch.0 += 1;
        self.pump = Self::launch(&self.config, &self.cost);
        self.tick_at = None;
        self.away.push(line);
    }

    /// Of all lives.
    pub(super) fn metrics(&self) -> RouterMetrics {
        let mut metrics = self.past.clone();
        metrics.merge(self.pump.machine.metrics());
        metrics
    }
}

/// Sends a note to the router, as far as it gets.
pub(super) fn note_at(faults: &mut Faults, fabric: &mut Fabric, at: Instant, note: RouterInput) {
    let Some(from) = reporter(&note) else {
        if let RouterInput::Failed { worker, .. } = &note
            && let Some((by, _)) = faults.post.stray(worker.0, ROUTER, &mut fabric.hits)
        {
            fabric.heap.push(at.after_ns(by), Mark::Note(Box::new(note.clone())));
        }
        fabric.heap.push(at, Mark::Note(Box::new(note)));
        return;
    };
    if faults.post.is_quiet(at) {
        fabric.heap.push(at, Mark::Note(Box::new(note)));
        return;
    }
    // That a worker is there is asked again until the answer comes.
    let class = if matches!(note, RouterInput::Worker { .. }) { Class::Stream } else { Class::Loose };
    let fate = faults.post.fate(at, from, ROUTER, class, &mut fabric.hits);
    if let Some(copy) = fate.copy {
        fabric.heap.push(copy, Mark::Note(Box::new(note.clone())));
    }
    if let Some(at) = fate.at {
        fabric.heap.push(at, Mark::Note(Box::new(note)));
    }
}

impl<M: Serve> WorldOf<M> {
    /// The next arrivals are due.
    pub(super) fn arrive(&mut self) {
        if self.clients.arrival_at != Some(self.now) {
            return;
        }
        self.clients.arrival_at = None;
        while let Some(request) = self.clients.arrive(self.now) {
            let live = self.clients.live[request.0 as usize].as_ref().expect("a request is live when it arrives");
            let record = &self.clients.records[request.0 as usize];
            for observer in &mut self.observers {
                observer.on_arrival(self.now, request, record);
            }
            self.fabric.texts.push(Text { prompt: live.prompt.length, seed: live.seed });
            if let Some(memory) = &mut self.fabric.memory {
                memory.tell(request, &live.prompt, live.seed);
            }
            if self.router.as_ref().is_some_and(|router| !router.away.is_empty()) {
                self.end(request, End::RouterLost);
            } else if let Some(router) = &self.router {
                let ask = Ask {
                    request,
                    keys: live.prompt.keys.clone(),
                    length: live.prompt.length,
                    limit: record.limit,
                    priority: live.priority,
                    session: record.session,
                };
                let note = Mark::Note(Box::new(RouterInput::Submit(Box::new(ask))));
                self.fabric.heap.push(self.now.after_ns(router.latency_ns), note);
            } else {
                self.submit_whole(request);
            }
        }
        self.arm_arrival();
    }

    /// Tells the observers what the router is made of.
    pub(crate) fn tell_router(&mut self) {
        let Some(router) = &self.router else { return };
        let machine = &router.pump.machine;
        for observer in &mut self.observers {
            observer.on_launch(self.now, Launch::Router { config: machine.config(), cost: machine.cost() });
        }
    }

    pub(super) fn arm_arrival(&mut self) {
        let Some((at, _)) = self.clients.next_arrival() else { return };
        let at = at.max(self.now);
        if self.clients.arrival_at.is_none_or(|arrival_at| at < arrival_at) {
            self.clients.arrival_at = Some(at);
            self.fabric.heap.push(at, Mark::Arrival);
        }
    }

    /// Without a router: to the only worker, as soon as it is up.
    pub(super) fn submit_whole(&mut self, request: RequestId) {
        if self.fabric.lives[0].is_none() {
            self.clients.parked.push(request);
            return;
        }
        let record = &self.clients.records[request.0 as usize];
        let attempt = if record.routed.is_some() { record.retries + 1 } else { 0 };
        if self.clients.open(self.now, request, attempt, None, 0) {
            self.submit_leg(request, 0, Leg::Whole, 0);
        } else {
            self.end(request, End::Finished(Finish::Length));
        }
    }

    pub(crate) fn end(&mut self, request: RequestId, end: End) {
        self.land_request(request);
        self.clients.end(self.now, request, end);
        if self.clients.has_ended() {
            self.tell_ends();
            self.arm_arrival();
            self.end_if_idle();
        }
    }

    /// Tells the observers who has ended.
    pub(super) fn tell_ends(&mut self) {
        for request in self.clients.ended.drain(..) {
            for observer in &mut self.observers {
                observer.on_end(self.now, request, &self.clients.records[request.0 as usize]);
            }
        }
    }

    /// The client of a request goes away; false if there is none.
    pub(crate) fn cancel(&mut self, request: RequestId) -> bool {
        if self.clients.prompt(request).is_none() {
            return false;
        }
        if let Some(router) = &self.router {
            let note = Mark::Note(Box::new(RouterInput::Cancel { request }));
            self.fabric.heap.push(self.now.after_ns(router.latency_ns), note);
        } else {
            self.post(0, 0, Input::Cancel { request });
        }
        true
    }

    pub(crate) fn feed_router(&mut self, input: RouterInput) {
        let now = self.now;
        if self.router.as_ref().is_none_or(|router| !router.away.is_empty()) {
            return;
        }
        if let RouterInput::Cancel { request } = input
            && self.clients.prompt(request).is_none()
        {
            return;
        }
        if let RouterInput::Submit(ask) = &input
            && self.clients.prompt(ask.request).is_none()
        {
            // The router has restarted since the client sent it.
            return;
        }
        let cancelled = if let RouterInput::Cancel { request } = input { Some(request) } else { None };
        let Some(router) = &mut self.router else { return };
        if self.observers.is_empty() && self.checks.is_none() {
            router.pump.step(now, input);
        } else {
            let told = input.clone();
            for observer in &mut self.observers {
                observer.before_router(now, &told, &router.pump.machine);
            }
            router.pump.step(now, input);
            if let Some(checks) = &mut self.checks {
                checks.on_router(now, &told, router.pump.outputs());
            }
            for observer in &mut self.observers {
                observer.on_router(now, &told, router.pump.outputs());
            }
        }
        let outputs: Vec<RouterOutput> = router.pump.drain().collect();
        for output in outputs {
            match output {
                RouterOutput::Route(route) => self.route(&route),
                RouterOutput::Cancel { request, worker, .. } => {
                    self.land(worker.0);
                    if self.clients.call_back(request, worker.0) {
                        let latency_ns = self.router.as_ref().map_or(0, |router| router.latency_ns);
                        self.post(worker.0, latency_ns, Input::Cancel { request });
                    }
                }
                RouterOutput::Refuse { request, refusal } => self.end(request, End::NotRouted(refusal)),
            }
        }
        if let Some(request) = cancelled {
            self.end(request, End::Finished(Finish::Cancelled));
        }
        self.arm_router();
    }

    fn route(&mut self, route: &Route) {
        let Route { request, attempt, prefill, decode, room, .. } = *route;
        self.land_request(request);
        if !self.clients.open(self.now, request, attempt, prefill.map(|id| id.0), decode.0) {
            let output = self.clients.records[request.0 as usize].tokens;
            self.end(request, End::Finished(Finish::Length));
            self.note(RouterInput::Finished { request, output });
            return;
        }
        let latency_ns = self.router.as_ref().map_or(0, |router| router.latency_ns);
        if let Some(prefill) = prefill {
            self.submit_leg(request, decode.0, Leg::Decode { room, prefill }, latency_ns);
            self.submit_leg(request, prefill.0, Leg::Prefill { room }, latency_ns);
        } else {
            self.submit_leg(request, decode.0, Leg::Whole, latency_ns);
        }
    }

    fn submit_leg(&mut self, request: RequestId, node: u32, leg: Leg, latency_ns: u64) {
        let page_size = self.nodes[node as usize].config.kv.page_size;
        if let Some(submit) = self.clients.submit(request, leg, page_size) {
            self.post(node, latency_ns, Input::Submit(Box::new(submit)));
        }
    }

    /// What could not be delivered: the router hears that a submit met a closed door.
    pub(super) fn return_to_sender(&mut self, to: u32, input: Input) {
        let Input::Submit(submit) = input else { return };
        let request = submit.request;
        self.land_request(request);
        let Some(live) = &mut self.clients.live[request.0 as usize] else { return };
        let is_open = live.close(to);
        let attempt = live.attempt;
        if self.router.is_none() {
            if is_open {
                self.clients.parked.push(request);
            }
        } else if is_open {
            let output = self.clients.records[request.0 as usize].tokens;
            let fault = RouteFault::Connection;
            self.note(RouterInput::Failed { request, attempt, worker: WorkerId(to), fault, output });
        }
    }

    pub(super) fn note(&mut self, input: RouterInput) {
        if let Some(router) = &self.router {
            note_at(&mut self.faults, &mut self.fabric, self.now.after_ns(router.latency_ns), input);
        }
    }

    /// Something arrives at the router, unless the way there is cut.
    pub(super) fn take_note(&mut self, input: Box<RouterInput>) {
        if let Some(from) = reporter(&input)
            && let Some(line) = self.faults.post.cut_by(from, ROUTER)
        {
            self.fabric.hits.add(line, 1);
            self.faults.post.hold(from, ROUTER, Parcel::Note(input));
            return;
        }
        self.feed_router(*input);
    }

    /// What a worker tells a client arrives, unless the way is cut, or the life in which it was said is over.
    pub(crate) fn emit(&mut self, node: u32, epoch: Epoch, request: RequestId, event: Event) {
        if let Some(line) = self.faults.post.cut_by(node, ROUTER) {
            self.fabric.hits.add(line, 1);
            self.faults.post.hold(node, ROUTER, Parcel::Emit { node, epoch, request, event });
            return;
        }
        if self.fabric.lives[node as usize] != Some(epoch) {
            return;
        }
        if let Some(note) = self.clients.on_event(self.now, node, request, event) {
            self.note(note);
        }
        if self.clients.has_ended() {
            self.tell_ends();
            self.arm_arrival();
            self.end_if_idle();
        }
    }

    pub(super) fn tick_router(&mut self) {
        let now = self.now;
        let Some(router) = &mut self.router else { return };
        if router.tick_at != Some(now) {
            return;
        }
        router.tick_at = None;
        if router.pump.deadline().is_some_and(|(at, _)| at <= now) {
            self.feed_router(RouterInput::Tick);
        }
        self.arm_router();
    }

    fn arm_router(&mut self) {
        let Some(router) = &mut self.router else { return };
        let Some((at, _)) = router.pump.deadline() else { return };
        let at = at.max(self.now);
        if router.tick_at.is_none_or(|tick_at| at < tick_at) {
            router.tick_at = Some(at);
            self.fabric.heap.push(at, Mark::RouterTick);
        }
    }
}

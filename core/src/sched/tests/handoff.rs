//! Prefill and decode legs over the real hand-off: workers that exchange messages and pages.

use std::vec::Vec;

use proptest::prelude::*;

use crate::config::{Mode, WorkerConfig};
use crate::event::{Event, Finish};
use crate::id::{Epoch, RequestId, Room, WorkerId};
use crate::op::{Command, Fault, Leg};

use super::toy::{Started, Toy};
use super::{config, words};

/// Worker 0 decodes, the others prefill.
struct Cluster {
    toys: Vec<Toy>,
    down: Vec<u32>,
    /// Loads from L2 of the decode worker take for ever.
    holds_loads: bool,
}

impl Cluster {
    fn new(prefills: u32, pages: u32, change: impl Fn(&mut WorkerConfig)) -> Self {
        let toy = |id: u32| {
            let mut config = config(pages);
            config.worker = WorkerId(id);
            config.mode = if id == 0 { Mode::Decode } else { Mode::Prefill };
            change(&mut config);
            Toy::new(config)
        };
        let mut cluster = Self { toys: (0..=prefills).map(toy).collect(), down: Vec::new(), holds_loads: false };
        for id in 1..=prefills {
            cluster.link(0, id, Some(Epoch(0)));
            cluster.link(id, 0, Some(Epoch(0)));
        }
        while cluster.deliver() {}
        cluster
    }

    fn link(&mut self, at: u32, peer: u32, up: Option<Epoch>) {
        let toy = &mut self.toys[at as usize];
        let events = toy.transfer.on_peer(&mut toy.bench.cx(), WorkerId(peer), up);
        toy.route(events);
        toy.settle();
    }

    /// A prefill worker dies: its commands and messages are lost.
    fn kill(&mut self, id: u32) {
        self.down.push(id);
        self.link(0, id, None);
    }

    fn submit(&mut self, request: u64, tokens: &[u32], limit: u32, prefill: u32) {
        let room = Room(request);
        if !self.down.contains(&prefill) {
            let leg = Leg::Prefill { room };
            self.toys[prefill as usize].submit_with(request, tokens, limit, |submit| submit.leg = leg);
        }
        let leg = Leg::Decode { room, prefill: WorkerId(prefill) };
        self.toys[0].submit_with(request, tokens, limit, |submit| submit.leg = leg);
    }

    /// Delivers one message of each worker.
    fn deliver(&mut self) -> bool {
        let mut any = false;
        for from in 0..self.toys.len() {
            let Some((to, message)) = self.toys[from].sent.pop_front() else { continue };
            any = true;
            if self.down.contains(&to.0) || self.down.contains(&(from as u32)) {
                continue;
            }
            let toy = &mut self.toys[to.0 as usize];
            if let crate::message::Message::Want(want) = &message
                && let Some(prompt) = &want.prompt
            {
                toy.expect(want.request, prompt);
            }
            let events = toy.transfer.on_message(&mut toy.bench.cx(), WorkerId(from as u32), message);
            toy.route(events);
            toy.settle();
        }
        any
    }

    /// Completes one command of each worker.
    fn work(&mut self, mut fault: impl FnMut(u32, &Command) -> Option<Fault>) -> bool {
        let mut any = false;
        for id in 0..self.toys.len() {
            if self.down.contains(&(id as u32)) {
                continue;
            }
            let toy = &mut self.toys[id];
            let ready = toy.ready();
            let is_free = |started: &&Started| {
                ready.contains(&started.op)
                    && !(self.holds_loads && id == 0 && matches!(started.command, Command::LoadBack(_)))
            };
            let Some(started) = toy.lane.iter().find(is_free) else { continue };
            let op = started.op;
            let fault = fault(id as u32, &started.command);
            toy.complete(op, fault);
            any = true;
            for (to, page, content) in core::mem::take(&mut self.toys[id].pushed) {
                self.toys[to.0 as usize].device.insert(page, content);
            }
        }
        any
    }

    fn step(&mut self) -> bool {
        self.deliver() | self.work(|_, _| None)
    }

    fn run(&mut self) {
        for _ in 0..20_000 {
            if self.step() {
                continue;
            }
            if self.toys.iter().enumerate().all(|(id, toy)| toy.sched.is_empty() || self.down.contains(&(id as u32)))
                && self.toys[0].transfer.quarantined().next().is_none()
            {
                return;
            }
            let up = self.toys.iter().enumerate().filter(|(id, _)| !self.down.contains(&(*id as u32)));
            let at = up
                .flat_map(|(_, toy)| [toy.sched.deadline(), toy.kv.deadline(), toy.transfer.deadline()])
                .flatten()
                .map(|(at, _)| at)
                .min()
                .expect("someone waits for something");
            let down = &self.down;
            for (_, toy) in self.toys.iter_mut().enumerate().filter(|(id, _)| !down.contains(&(*id as u32))) {
                toy.advance(at);
            }
        }
        panic!("it never comes to rest");
    }

    /// Every message and completion in any order, and whatever may go wrong.
    fn act(&mut self, action: &Action, request: u64) {
        let count = self.toys.len();
        match *action {
            Action::Submit { family, prompt, limit, prefill } => {
                self.submit(request, &words(family, prompt), limit, 1 + prefill);
            }
            Action::Cancel { worker, request } => {
                if !self.down.contains(&(worker as u32)) {
                    self.toys[worker % count].cancel(request);
                }
            }
            Action::Deliver => _ = self.deliver(),
            Action::Work { fails } => {
                _ = self.work(|id, _| (fails == Some(id)).then_some(Fault::Device));
            }
            Action::Kill => {
                if self.down.is_empty() {
                    self.kill(1);
                }
            }
        }
    }

    fn check_rest(&self) {
        for (id, toy) in self.toys.iter().enumerate() {
            if !self.down.contains(&(id as u32)) {
                toy.check_rest();
            }
        }
    }
}

fn is_good(event: &Event) -> bool {
    matches!(event, Event::Finished { reason: Finish::Length | Finish::Stop, .. })
}

#[test]
fn a_prompt_is_computed_on_one_worker_and_continued_on_the_other() {
    let mut cluster = Cluster::new(1, 64, |_| {});
    cluster.submit(1, &words(1, 37), 9, 1);
    cluster.submit(2, &words(2, 16), 1, 1);
    cluster.submit(3, &words(3, 2), 5, 1);
    cluster.run();
    for request in 1..4 {
        assert_eq!(cluster.toys[1].ending(request), Event::HandedOver);
        assert!(is_good(&cluster.toys[0].ending(request)));
        cluster.toys[0].check_answer(request);
    }
    assert_eq!(cluster.toys[0].bench.metrics.computed_tokens, 0, "decode computes no prompt");
    assert_eq!(cluster.toys[1].bench.metrics.push_pages, 10 + 4 + 1);
    cluster.check_rest();
}

#[test]
fn pages_that_the_sink_has_are_not_pushed() {
    let mut cluster = Cluster::new(1, 64, |_| {});
    cluster.submit(1, &words(1, 37), 2, 1);
    cluster.run();
    let pushed = cluster.toys[1].bench.metrics.push_pages;
    cluster.submit(2, &words(1, 37), 2, 1);
    cluster.run();
    assert_eq!(cluster.toys[1].bench.metrics.push_pages - pushed, 1, "the partial page");
    cluster.submit(3, &words(1, 36), 2, 1);
    cluster.run();
    assert_eq!(cluster.toys[1].bench.metrics.push_pages - pushed, 1, "nothing at all");
    (1..4).for_each(|request| cluster.toys[0].check_answer(request));
    cluster.check_rest();
}

/// A cluster whose prefill worker finds this prompt in L3, and computes a page in the time in which it is fetched.
fn with_l3(tokens: &[u32], change: impl Fn(&mut WorkerConfig)) -> Cluster {
    let change = |config: &mut WorkerConfig| {
        if config.mode == Mode::Prefill {
            super::tail::set_up(config, super::tail::PAGE_NS);
        }
        change(config);
    };
    let mut first = Cluster::new(1, 128, change);
    first.submit(1, tokens, 1, 1);
    first.run();
    let mut cluster = Cluster::new(1, 128, change);
    cluster.toys[1].bench.cost = super::tail::cost();
    cluster.toys[1].store = core::mem::take(&mut first.toys[1].store);
    while cluster.step() {}
    cluster
}

#[test]
fn what_a_prefill_leg_takes_of_its_tail_is_pushed_once_and_in_order() {
    for (layerwise, has) in [(true, 0), (true, 40), (false, 0)] {
        let tokens = words(1, 160);
        let mut cluster = with_l3(&tokens, |config| config.transfer.layerwise = layerwise);
        if has > 0 {
            // The sink has the beginning.
            cluster.submit(2, &tokens[..has], 1, 1);
            cluster.run();
        }
        let pushed = cluster.toys[1].bench.metrics.push_pages;
        cluster.submit(3, &tokens, 5, 1);
        cluster.run();
        assert_eq!(cluster.toys[1].ending(3), Event::HandedOver);
        assert!(is_good(&cluster.toys[0].ending(3)));
        cluster.toys[0].check_answer(3);
        let metrics = &cluster.toys[1].bench.metrics;
        assert!(metrics.marks.contains_key("kv.tail_taken"), "it had a tail");
        assert_eq!(metrics.push_pages - pushed, 40 - has as u64 / 4);
        cluster.check_rest();
    }
}

#[test]
fn a_load_of_the_tail_that_fails_under_a_prefill_leg_fails_no_request() {
    let tokens = words(1, 160);
    let mut cluster = with_l3(&tokens, |_| {});
    cluster.submit(3, &tokens, 5, 1);
    for _ in 0..10_000 {
        let fails = |id, command: &Command| (id == 1 && matches!(command, Command::LoadBack(_))).then_some(Fault::Io);
        if !(cluster.deliver() | cluster.work(fails)) {
            break;
        }
    }
    cluster.run();
    assert!(is_good(&cluster.toys[0].ending(3)), "it is computed somewhere: {:?}", cluster.toys[0].ending(3));
    cluster.toys[0].check_answer(3);
    cluster.check_rest();
}

#[test]
fn without_layers_nothing_is_pushed_before_the_last_chunk_is_done() {
    let mut cluster = Cluster::new(1, 64, |config| config.transfer.layerwise = false);
    cluster.submit(1, &words(1, 37), 9, 1);
    let mut forwards = 0;
    loop {
        let lane = &cluster.toys[1].lane;
        let pushes = lane.iter().filter(|started| matches!(started.command, Command::Push(_))).count();
        let is_computed = cluster.toys[1].bench.metrics.computed_tokens == 37;
        assert_eq!(pushes, usize::from(is_computed), "one push of everything, behind nothing");
        if is_computed {
            break;
        }
        forwards += u32::from(!lane.is_empty());
        cluster.step();
    }
    assert!(forwards > 1, "the prompt is longer than a chunk");
    cluster.run();
    assert_eq!(cluster.toys[1].bench.metrics.push_pages, 10);
    assert!(is_good(&cluster.toys[0].ending(1)));
    cluster.toys[0].check_answer(1);
    cluster.check_rest();
}

#[test]
fn without_layers_a_failed_forward_of_the_source_is_computed_again() {
    for place in 0..3 {
        let mut cluster = Cluster::new(1, 64, |config| config.transfer.layerwise = false);
        cluster.submit(1, &words(1, 37), 6, 1);
        let mut count = 0;
        loop {
            let is_delivered = cluster.deliver();
            let is_worked = cluster.work(|id, command| {
                count += u32::from(id == 1 && matches!(command, Command::Forward(_)));
                (id == 1 && count == place + 1 && matches!(command, Command::Forward(_))).then_some(Fault::Device)
            });
            if !is_delivered && !is_worked {
                break;
            }
        }
        cluster.run();
        assert!(is_good(&cluster.toys[0].ending(1)), "failure {place}");
        assert_eq!(cluster.toys[0].bench.metrics.local_recomputes, 0, "nobody else had to compute it");
        assert_eq!(cluster.toys[1].ending(1), Event::HandedOver);
        cluster.toys[0].check_answer(1);
        cluster.check_rest();
    }
}

#[test]
fn cancelling_either_end_at_any_point_gives_everything_back() {
    for worker in 0..2 {
        for step in 0..40 {
            let mut cluster = Cluster::new(1, 24, |_| {});
            cluster.submit(1, &words(1, 37), 6, 1);
            cluster.submit(2, &words(1, 30), 6, 1);
            for _ in 0..step {
                cluster.step();
            }
            cluster.toys[worker].cancel(1);
            cluster.run();
            for request in 1..3 {
                cluster.toys[0].check_answer(request);
                cluster.toys[1].ending(request);
            }
            assert!(is_good(&cluster.toys[0].ending(2)), "the other request is not affected");
            assert!(worker == 0 || is_good(&cluster.toys[0].ending(1)), "whoever cancels the prefill leg");
            cluster.check_rest();
        }
    }
}

#[test]
fn a_failure_on_the_prefill_worker_does_not_fail_the_request() {
    for place in 0..12 {
        for prefills in 1..3 {
            let mut cluster = Cluster::new(prefills, 64, |_| {});
            cluster.submit(1, &words(1, 50), 6, 1);
            let mut count = 0;
            loop {
                let is_delivered = cluster.deliver();
                let is_worked = cluster.work(|id, _| {
                    if id != 1 {
                        return None;
                    }
                    count += 1;
                    (count - 1 == place).then_some(Fault::Device)
                });
                if !is_delivered && !is_worked {
                    break;
                }
            }
            cluster.run();
            assert!(is_good(&cluster.toys[0].ending(1)), "failure {place} with {prefills} prefills");
            cluster.toys[0].check_answer(1);
            cluster.check_rest();
        }
    }
}

#[test]
fn the_death_of_a_prefill_worker_does_not_fail_the_request() {
    for step in 0..16 {
        for prefills in 1..3 {
            let mut cluster = Cluster::new(prefills, 64, |_| {});
            cluster.submit(1, &words(1, 50), 6, 1);
            for _ in 0..step {
                cluster.step();
            }
            cluster.kill(1);
            cluster.run();
            assert!(is_good(&cluster.toys[0].ending(1)), "death at {step} with {prefills} prefills");
            cluster.toys[0].check_answer(1);
            let metrics = &cluster.toys[0].bench.metrics;
            assert!(prefills == 1 || metrics.local_recomputes == 0, "another prefill is asked");
            cluster.check_rest();
        }
    }
}

#[test]
fn a_sink_whose_pages_are_leased_goes_on_while_others_are_retracted() {
    let mut cluster = Cluster::new(1, 14, |config| {
        config.sched.reserve_steps = 1;
        config.sched.clip_max_new_tokens = 1;
    });
    for request in 1..8 {
        cluster.submit(request, &words(request as u32, 9), 30, 1);
    }
    cluster.run();
    assert!(cluster.toys[0].bench.metrics.retractions > 0);
    for request in 1..8 {
        assert!(is_good(&cluster.toys[0].ending(request)));
        cluster.toys[0].check_answer(request);
    }
    cluster.check_rest();
}

#[test]
fn a_load_back_that_fails_after_the_hand_off_has_landed_repeats_no_token() {
    let mut cluster = Cluster::new(1, 16, |config| config.kv.host_pages = 64);
    for request in 1..4 {
        cluster.submit(request, &words(request as u32, 36), 4, 1);
        cluster.run();
    }
    cluster.holds_loads = true;
    cluster.submit(4, &words(1, 36), 9, 1);
    while cluster.step() {}
    let toy = &mut cluster.toys[0];
    assert_eq!(toy.tokens(4).len(), 1, "landed, and decoding waits for the load");
    let load = toy.lane.iter().find(|started| matches!(started.command, Command::LoadBack(_))).expect("it is held");
    let op = load.op;
    toy.complete(op, Some(Fault::Io));
    cluster.holds_loads = false;
    cluster.run();
    assert!(is_good(&cluster.toys[0].ending(4)));
    cluster.toys[0].check_answer(4);
    cluster.check_rest();
}

#[test]
fn a_room_in_use_is_refused_at_the_door_of_the_prefill_worker() {
    let mut cluster = Cluster::new(1, 64, |_| {});
    for request in 1..3 {
        let leg = Leg::Prefill { room: Room(5) };
        cluster.toys[1].submit_with(request, &words(1, 9), 1, |submit| submit.leg = leg);
    }
    assert_eq!(cluster.toys[1].ending(2), Event::Refused(crate::event::Refusal::DuplicateRoom));
    assert_eq!(cluster.toys[1].sched.waiting_on(RequestId(1)), Some(crate::sched::Wait::Handoff));
    cluster.toys[1].cancel(1);
    cluster.run();
    cluster.check_rest();
}

#[derive(Clone, Debug)]
enum Action {
    Submit { family: u32, prompt: u32, limit: u32, prefill: u32 },
    Cancel { worker: usize, request: u64 },
    Deliver,
    Work { fails: Option<u32> },
    Kill,
}

#[expect(clippy::disallowed_types, reason = "what the macro expands to")]
fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..3_u32, 1..40_u32, 1..12_u32, 0..2_u32)
            .prop_map(|(family, prompt, limit, prefill)| Action::Submit { family, prompt, limit, prefill }),
        1 => (0..3_usize, 0..12_u64).prop_map(|(worker, request)| Action::Cancel { worker, request }),
        8 => Just(Action::Deliver),
        8 => Just(Action::Work { fails: None }),
        1 => (0..3_u32).prop_map(|id| Action::Work { fails: Some(id) }),
        1 => Just(Action::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn both_legs_of_every_request_end_once_and_every_page_comes_back(
        actions in prop::collection::vec(action(), 1..80),
        (pages, clip) in (14..40_u32, 1..12_u32),
        host in 0..20_u32,
        layerwise in any::<bool>(),
    ) {
        let mut cluster = Cluster::new(2, pages, |config| {
            config.transfer.layerwise = layerwise;
            config.sched.clip_max_new_tokens = clip;
            config.sched.reserve_steps = 2;
            config.kv.host_pages = host;
        });
        let mut requests = 0;
        for action in &actions {
            cluster.act(action, requests);
            requests += u64::from(matches!(action, Action::Submit { .. }));
        }
        cluster.run();
        for request in 0..requests {
            cluster.toys[0].check_answer(request);
        }
        cluster.check_rest();
    }
}

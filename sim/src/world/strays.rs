//! Messages that no well-behaved connection brings, put into a world: copies, and those of other attempts and lives. A
//! worker without mistakes takes no notice; a mutant that does is caught.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use pd_core::event::Served;
use pd_core::id::{Epoch, Generation, RequestId, WorkerId};
use pd_core::message::{Handoff, Message, Want};
use pd_core::mutant::{Mutant, Mutation};
use pd_core::pump::{NoTap, Pump};
use pd_core::router::{Ask, Member, RouteFault, Router};

use super::*;
use crate::check::{Checker, Violation};
use crate::scenario::{self, Overrides};

/// Keeps the first want.
#[derive(Debug, Default)]
struct FirstWant(Option<Want>);

impl Observer for FirstWant {
    fn on_worker(&mut self, _: Instant, _: u32, input: &Input, _: &[Output]) {
        if let Input::Recv { message: Message::Want(want), .. } = input {
            self.0.get_or_insert_with(|| (**want).clone());
        }
    }
}

fn pair(mutant: Option<Mutant>) -> Setup {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/one_p_one_d.toml");
    let overrides = Overrides { set: vec!["load.0.requests=3".to_owned()], ..Overrides::default() };
    let mut setup = scenario::load(&path, &overrides).expect("a good scenario").remove(0).setup;
    setup.until = mutant.map(|_| Instant(60_000_000_000));
    if let Some(mutant) = mutant {
        setup.workers.iter_mut().for_each(|worker| worker.config.mutate(Mutation::of(mutant)));
    }
    setup
}

/// Runs until the source has the first want, then lets `stray` say what else arrives, and where.
fn run(mutant: Option<Mutant>, stray: impl Fn(&Want, &World) -> (u32, Message)) -> Vec<Violation> {
    let mut world = World::new(pair(mutant));
    let first = Rc::new(RefCell::new(FirstWant::default()));
    world.observe(Box::new(first.clone()));
    world.begin();
    while first.borrow().0.is_none() {
        assert!(world.turn(), "a sink asks");
    }
    let want = first.borrow().0.clone().expect("seen above");
    let (to, message) = stray(&want, &world);
    let input = Input::Recv { from: WorkerId(1 - to), message };
    let sender = world.nodes[to as usize].seen[1 - to as usize];
    let letter = Letter { to, epoch: Epoch(0), sender, input };
    world.fabric.heap.push(world.now, Mark::Letter(Box::new(letter)));
    while world.turn() {}
    world.finish().violations
}

fn handoff(want: &Want, world: &World) -> Handoff {
    let prompt = world.clients.prompt(want.request).expect("it is live");
    Handoff {
        room: want.room,
        generation: want.generation,
        epoch: want.epoch,
        source: want.source,
        request: want.request,
        length: want.length,
        last: prompt.keys.last().copied(),
        token: pd_core::id::Token(0),
        served: Box::new(Served::from_nowhere(want.length)),
    }
}

fn is_caught(mutant: Mutant, stray: impl Fn(&Want, &World) -> (u32, Message)) {
    assert_eq!(run(None, &stray), [], "without a mistake");
    let found = run(Some(mutant), &stray);
    let by = |violation: &Violation| violation.checker.name() == mutant.caught_by();
    assert!(found.iter().any(by), "{}: {found:?}", mutant.name());
}

#[test]
fn a_want_that_comes_twice_is_taken_once() {
    is_caught(Mutant::BelieveCopies, |want, _| (0, Message::Want(want.clone().into())));
}

#[test]
fn a_hand_off_of_another_attempt_is_not_taken() {
    is_caught(Mutant::GenerationIgnored, |want, world| {
        let handoff = Handoff { generation: Generation(want.generation.0 + 7), ..handoff(want, world) };
        (1, Message::Handoff(handoff.into()))
    });
}

#[test]
fn a_want_of_another_life_is_not_taken() {
    is_caught(Mutant::EpochIgnored, |want, _| {
        let stray = Want { source: Epoch(9), request: RequestId(77), room: pd_core::id::Room(77), ..want.clone() };
        let generation = Generation(want.generation.0 + 7);
        let prompt = prompt(want.length);
        (0, Message::Want(Want { generation, prompt: Some(prompt.into()), ..stray }.into()))
    });
}

/// A prompt that nobody has announced.
fn prompt(length: u32) -> pd_core::op::Prompt {
    let keys = (0..length / 64).map(|page| pd_core::id::PageKey(u128::from(page) + 1)).collect();
    let tokens = (0..length % 64).map(pd_core::id::Token).collect();
    pd_core::op::Prompt { root: pd_core::id::PageKey(0), length, keys, tokens }
}

/// A router by itself: the failure of attempt 0 comes again after attempt 1 was routed to the same pair.
#[test]
fn a_failure_of_an_earlier_attempt_leaves_the_present_one_alone() {
    let found = |mutation: Mutation| {
        let setup = pair(None);
        let mut checks = Checks::new(&setup);
        let (config, cost) = setup.router.expect("a pair has a router");
        let config = pd_core::router::RouterConfig { mutation, ..config };
        let mut pump = Pump::new(Router::new(config, cost).expect("a good configuration"), NoTap);
        let mut now = Instant(1);
        let mut tell = |input: RouterInput| {
            now = now.after_ns(60_000_000_000);
            pump.step(now, input.clone());
            checks.on_router(now, &input, pump.outputs());
            pump.drain().count()
        };
        for (id, mode) in [(0, pd_core::config::Mode::Prefill), (1, pd_core::config::Mode::Decode)] {
            let member = Member { epoch: Epoch(0), mode, pages: 1000 };
            tell(RouterInput::Worker { id: WorkerId(id), up: Some(member) });
        }
        let request = RequestId(0);
        tell(RouterInput::Submit(Box::new(Ask { request, length: 100, limit: 10, ..Ask::default() })));
        let failed =
            RouterInput::Failed { request, attempt: 0, worker: WorkerId(1), fault: RouteFault::Refused, output: 0 };
        tell(failed.clone());
        assert!(tell(RouterInput::Tick) > 0, "attempt 1 is routed");
        tell(failed);
        checks.into_violations()
    };
    assert_eq!(found(Mutation::default()), []);
    let caught = found(Mutation::of(Mutant::AttemptIgnored));
    assert!(caught.iter().any(|violation| violation.checker == Checker::Epoch), "{caught:?}");
}

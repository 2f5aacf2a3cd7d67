//! The worker as a whole, by hand: what it does with completions that are not its own, orders and bytes of strangers.

use alloc::boxed::Box;
use alloc::vec::Vec;

use proptest::prelude::*;

use crate::codec::Codec;
use crate::config::WorkerConfig;
use crate::config::{KvConfig, Mode, SchedConfig, TransferConfig};
use crate::cost::Cost;
use crate::event::{Control, Event, Finish, Refusal};
use crate::id::{Epoch, OpId, PageKey, RequestId, Token, WorkerId};
use crate::machine::{Machine, Outbox};
use crate::message::Message;
use crate::op::{Command, Input, Leg, Outcome, Output, Submit};
use crate::pump::{NoTap, Pump};
use crate::testkit::prompt;
use crate::time::Instant;
use crate::worker::Worker;

fn config() -> WorkerConfig {
    WorkerConfig {
        worker: WorkerId(0),
        epoch: Epoch(3),
        mode: Mode::Unified,
        seed: 1,
        kv: KvConfig { page_size: 4, page_bytes: 1024, gpu_pages: 64, ..KvConfig::default() },
        sched: SchedConfig { chunked_prefill_size: 64, ..SchedConfig::default() },
        transfer: TransferConfig::default(),
    }
}

fn pump() -> Pump<Worker, NoTap> {
    let worker = Worker::new(config(), Cost::fixed(1_000_000, 1_000, 1_000_000, 256)).expect("a valid configuration");
    Pump::new(worker, NoTap)
}

fn submit(request: u64, tokens: core::ops::Range<u32>, limit: u32) -> Input {
    Input::Submit(Box::new(Submit {
        request: RequestId(request),
        prompt: prompt(PageKey(1), 4, &tokens.collect::<Vec<_>>()),
        limit,
        stop: Vec::new(),
        priority: 0,
        deadline: None,
        leg: Leg::Whole,
    }))
}

/// Answers each forward with one token per run until nothing is in flight; the events in order.
fn drive(pump: &mut Pump<Worker, NoTap>, input: Input) -> Vec<Event> {
    let mut events = Vec::new();
    let mut inputs = alloc::collections::VecDeque::from([input]);
    let mut now = Instant::ZERO;
    while let Some(input) = inputs.pop_front() {
        now = now.after_ns(1_000);
        for output in pump.feed(now, input) {
            match output {
                Output::Start { op, command: Command::Forward(batch), .. } => {
                    let sampled = batch.runs().iter().filter(|run| run.sample).map(|run| Token(run.start + run.count));
                    inputs.push_back(Input::Done { op, outcome: Outcome::Sampled(sampled.collect()) });
                }
                Output::Start { op, .. } => inputs.push_back(Input::Done { op, outcome: Outcome::Moved }),
                Output::Emit { event, .. } => events.push(event),
                Output::Send { .. } | Output::Publish(_) => {}
            }
        }
        pump.machine.check();
    }
    events
}

#[test]
fn a_request_is_admitted_answered_and_ended_in_this_order() {
    let mut pump = pump();
    let events = drive(&mut pump, submit(1, 0..10, 3));
    assert!(matches!(events[0], Event::Admitted(_)));
    assert_eq!(events[1..4], [10, 11, 12].map(|token| Event::Token(Token(token))));
    assert_eq!(events[4], Event::Finished { reason: Finish::Length, output: 3 });
    assert_eq!((events.len(), pump.machine.ops_in_flight()), (5, 0));
}

#[test]
fn a_completion_of_an_earlier_life_changes_a_counter_and_nothing_else() {
    let mut pump = pump();
    drive(&mut pump, submit(1, 0..10, 3));
    let digest = |worker: &Worker| {
        let mut digest = crate::digest::Digest::new();
        worker.digest(&mut digest);
        digest.finish()
    };
    let before = digest(&pump.machine);
    for op in [OpId { epoch: Epoch(2), seq: 0 }, OpId { epoch: Epoch(3), seq: 0 }, OpId { epoch: Epoch(3), seq: 999 }] {
        let outcome = Outcome::Moved;
        assert_eq!(pump.feed(Instant(1 << 40), Input::Done { op, outcome }).count(), 0);
    }
    assert_eq!(digest(&pump.machine), before);
    assert_eq!(pump.machine.metrics().stale_inputs, 3);
}

#[test]
fn a_draining_worker_refuses_new_requests_with_the_reason() {
    let mut pump = pump();
    drive(&mut pump, Input::Control(Control::Drain));
    assert_eq!(drive(&mut pump, submit(1, 0..10, 3)), [Event::Refused(Refusal::Draining)]);
}

#[test]
fn a_flush_is_always_carried_out_and_the_prompt_is_computed_again() {
    let mut pump = pump();
    drive(&mut pump, submit(1, 0..17, 1));
    drive(&mut pump, Input::Control(Control::Flush));
    let events = drive(&mut pump, submit(2, 0..17, 1));
    let Event::Admitted(served) = &events[0] else { panic!("{events:?}") };
    assert_eq!(served.device, 0);
}

#[test]
fn a_configuration_out_of_range_names_the_key() {
    let mut config = config();
    config.kv.page_size = 3;
    let error = Worker::new(config, Cost::fixed(1, 1, 1, 1)).expect_err("3 is no power of two");
    assert!(alloc::format!("{error}").contains("page_size is 3"), "{error}");
}

proptest! {
    #[test]
    fn bytes_of_a_stranger_never_panic_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Message::from_bytes(&bytes);
        let _ = Input::from_bytes(&bytes);
        let _ = Output::from_bytes(&bytes);
    }

    /// Whatever decodes is fed as it is: a worker survives any message of a peer, and encodes it to the same bytes.
    #[test]
    fn a_worker_survives_whatever_decodes(bytes in prop::collection::vec(any::<u8>(), 1..200), tag in 0_u8..8) {
        let mut bytes = bytes;
        bytes[0] = tag;
        let mut pump = pump();
        let mut out = Outbox::default();
        pump.machine.step(Instant::ZERO, Input::Peer { id: WorkerId(5), up: Some(Epoch(1)) }, &mut out);
        let mut source = crate::codec::Source::new(&bytes);
        if let Ok(message) = Message::decode(&mut source) {
            prop_assert_eq!(&message.to_bytes()[..], &bytes[..source.at()]);
            pump.machine.step(Instant(1), Input::Recv { from: WorkerId(5), message }, &mut out);
            pump.machine.check();
        }
    }
}

//! Machines' inputs and outputs, counts, times and sizes in the words of a person; one line each.

use pd_core::event::{Event, Finish, Served};
use pd_core::id::{OpId, RequestId};
use pd_core::message::Message;
use pd_core::op::{Command, Input, LaneKind, Leg, Outcome, Output, Submit};
use pd_core::router::{Route, RouterInput, RouterOutput};
use pd_core::time::Instant;

/// `25153` as `25,153`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 page`, `393 pages`.
#[must_use]
pub fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A length of time in milliseconds, with microseconds where that says more.
#[must_use]
pub fn ms(ns: u64) -> String {
    match ns {
        0 => "0 ms".to_owned(),
        1..1_000_000 => format!("{:.3} ms", ns as f64 / 1e6),
        1_000_000..10_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.3} s", ns as f64 / 1e9),
    }
}

/// A point in time in seconds.
#[must_use]
pub fn at(at: Instant) -> String {
    if at == Instant::MAX { "the end of time".to_owned() } else { format!("{:.6} s", at.0 as f64 / 1e9) }
}

/// An amount of memory.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{} B", count(bytes)),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// How fast so many bytes went in so much time.
#[must_use]
pub fn rate(bytes: u64, ns: u64) -> String {
    format!("{:.1} GB/s", bytes as f64 / (ns as f64).max(1.0))
}

/// Requests by name, the first few of them.
#[must_use]
pub fn requests<'a>(requests: impl IntoIterator<Item = &'a RequestId>) -> String {
    let names: Vec<String> = requests.into_iter().map(|request| request.0.to_string()).collect();
    match names.len() {
        0..=LISTED_MAX => names.join(", "),
        many => format!("{} and {} more", names[..LISTED_MAX].join(", "), many - LISTED_MAX),
    }
}

/// A command's name.
#[must_use]
pub fn op(op: OpId) -> String {
    if op.epoch.0 == 0 { format!("#{}", op.seq) } else { format!("#{}.{}", op.epoch, op.seq) }
}

/// The lane of a command.
#[must_use]
pub const fn lane(lane: LaneKind) -> &'static str {
    match lane {
        LaneKind::Compute => "GPU",
        LaneKind::CopyIn => "copy L2 -> L1",
        LaneKind::CopyOut => "copy L1 -> L2",
        LaneKind::Storage => "L3",
        LaneKind::Wire => "wire",
    }
}

/// What a worker was told.
#[must_use]
pub fn input(input: &Input) -> String {
    match input {
        Input::Tick => "tick".to_owned(),
        Input::Submit(one) => submit(one),
        Input::Cancel { request } => format!("cancel request {request}"),
        Input::Peer { id, up: Some(epoch) } => format!("worker {id} is connected, life {epoch}"),
        Input::Peer { id, up: None } => format!("worker {id} is gone"),
        Input::Recv { from, message } => format!("from worker {from}: {}", self::message(message)),
        Input::Done { op, outcome } => format!("done {}: {}", self::op(*op), self::outcome(outcome)),
        Input::Control(control) => format!("control {control:?}"),
    }
}

fn submit(submit: &Submit) -> String {
    let leg = match submit.leg {
        Leg::Whole => "all of it".to_owned(),
        Leg::Prefill { room } => format!("prefill, room {room}"),
        Leg::Decode { room, prefill } => format!("decode, room {room}, prefill on worker {prefill}"),
    };
    let prompt = plural(u64::from(submit.prompt.length), "token");
    format!("submit request {} ({prompt}, up to {} of answer; {leg})", submit.request, submit.limit)
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Moved => "all moved".to_owned(),
        Outcome::Partly(failed) => match failed.first() {
            Some((_, fault)) => format!("{} failed, the first with {fault:?}", plural(failed.len() as u64, "item")),
            None => "all moved".to_owned(),
        },
        Outcome::Sampled(sampled) => plural(sampled.tokens().len() as u64, "token"),
        Outcome::Found(held) => {
            format!("{} of {} found", held.iter().filter(|held| **held).count(), held.len())
        }
        Outcome::Scanned { keys, foreign, torn, .. } => {
            format!("{}, {foreign} foreign, {torn} torn", plural(keys.len() as u64, "object"))
        }
        Outcome::Failed(fault) => format!("failed with {fault:?}"),
    }
}

fn message(message: &Message) -> String {
    match message {
        Message::Hello(hello) => format!("hello, life {}, {:?}", hello.epoch, hello.mode),
        Message::Incompatible(mismatch) => format!("incompatible: {mismatch}"),
        Message::Ping { number } => format!("ping {number}"),
        Message::Pong { number } => format!("pong {number}"),
        Message::Want(want) => format!(
            "want room {}: request {}, {} (has {})",
            want.room,
            want.request,
            plural(want.pages.len() as u64, "page"),
            want.have
        ),
        Message::Handoff(handoff) => format!("hand-off of room {}, request {}", handoff.room, handoff.request),
        Message::Abort { room, by, reason, .. } => format!("abort of room {room} by the {by:?}: {reason:?}"),
        Message::AbortAck { room, .. } => format!("abort of room {room} acknowledged"),
    }
}

/// What a worker asked for.
#[must_use]
pub fn output(output: &Output) -> String {
    match output {
        Output::Start { op, after, command } => {
            let after = match after.as_slice() {
                [] => String::new(),
                after => format!(" after {}", after.iter().map(|op| self::op(*op)).collect::<Vec<_>>().join(", ")),
            };
            format!("start {}{after}: {}", self::op(*op), self::command(command))
        }
        Output::Send { to, message } => format!("to worker {to}: {}", self::message(message)),
        Output::Emit { request, event } => format!("request {request}: {}", self::event(event)),
        Output::Publish(changes) => format!("publish {}", plural(changes.len() as u64, "change")),
    }
}

/// What a command does.
#[must_use]
pub fn command(command: &Command) -> String {
    let pages = |count: usize| plural(count as u64, "page");
    match command {
        Command::Forward(batch) => {
            let runs = batch.runs();
            let tokens: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
            let whose: Vec<RequestId> = runs.iter().map(|run| run.request).collect();
            format!("forward of {} for request {}", plural(tokens, "token"), requests(&whose))
        }
        Command::LoadBack(moved) => format!("load back {}", pages(moved.len())),
        Command::Backup(moved) => format!("back up {}", pages(moved.len())),
        Command::Query(keys) => format!("query {}", plural(keys.len() as u64, "key")),
        Command::Prefetch(objects) => format!("prefetch {}", pages(objects.len())),
        Command::Persist(objects) => format!("persist {}", pages(objects.len())),
        Command::Discard(keys) => format!("discard {}", pages(keys.len())),
        Command::Scan { after: None } => "scan L3".to_owned(),
        Command::Scan { after: Some(key) } => format!("scan L3 behind {key:?}"),
        Command::Wipe => "wipe L3".to_owned(),
        Command::Touch(keys) => format!("note uses of {}", pages(keys.len())),
        Command::Push(push) => format!("push {} of room {} to worker {}", pages(push.pages.len()), push.room, push.to),
    }
}

fn parts(served: &Served) -> String {
    let Served { prompt, device, host, storage, .. } = served;
    format!("L1 {device}, L2 {host}, L3 {storage} of {}", plural(u64::from(*prompt), "token"))
}

fn event(event: &Event) -> String {
    match event {
        Event::Admitted(served) => format!("admitted; {}", parts(served)),
        Event::Received(served) => format!("received; its prefill worker had {}", parts(served)),
        Event::Token(token) => format!("token {token}"),
        Event::HandedOver => "handed over".to_owned(),
        Event::Finished { reason: Finish::Failed(failure), .. } => format!("failed: {failure:?}"),
        Event::Finished { reason, output } => {
            format!("finished ({reason:?}) with {}", plural(u64::from(*output), "token"))
        }
        Event::Refused(refusal) => format!("refused: {refusal:?}"),
        Event::Retracted => "retracted".to_owned(),
    }
}

/// What the router was told.
#[must_use]
pub fn router_input(input: &RouterInput) -> String {
    match input {
        RouterInput::Tick => "tick".to_owned(),
        RouterInput::Submit(ask) => {
            let prompt = plural(u64::from(ask.length), "token");
            format!("request {} ({prompt}, up to {} of answer)", ask.request, ask.limit)
        }
        RouterInput::Cancel { request } => format!("cancel request {request}"),
        RouterInput::Worker { id, up: Some(member) } => {
            format!("worker {id} is up, life {}, {:?}", member.epoch, member.mode)
        }
        RouterInput::Worker { id, up: None } => format!("worker {id} is gone"),
        RouterInput::FirstToken { request, attempt } => format!("request {request}, attempt {attempt}: first token"),
        RouterInput::Finished { request, output } => {
            format!("request {request} is finished with {}", plural(u64::from(*output), "token"))
        }
        RouterInput::Failed { request, attempt, worker, fault, .. } => {
            format!("request {request}, attempt {attempt} failed on worker {worker}: {fault:?}")
        }
        RouterInput::Load { worker, load } => {
            format!("load of worker {worker}: {} running, {} waiting", load.running, load.waiting)
        }
        RouterInput::Changes { worker, changes } => {
            format!("cache of worker {worker}: {}", plural(changes.len() as u64, "change"))
        }
        RouterInput::Drain { worker } => format!("worker {worker} drains"),
    }
}

/// What the router asked for.
#[must_use]
pub fn router_output(output: &RouterOutput) -> String {
    match output {
        RouterOutput::Route(route) => self::route(route),
        RouterOutput::Cancel { request, worker, .. } => format!("call request {request} back from worker {worker}"),
        RouterOutput::Refuse { request, refusal } => format!("refuse request {request}: {refusal:?}"),
    }
}

fn route(route: &Route) -> String {
    let where_to = match route.prefill {
        Some(prefill) => format!("prefill on worker {prefill}, decode on worker {}", route.decode),
        None => format!("worker {}", route.decode),
    };
    format!("request {}, attempt {}: {where_to} ({})", route.request, route.attempt, route.reason.cause.name())
}

/// Names in a list before it is cut short.
const LISTED_MAX: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_units_fit_their_size() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(25_153), "25,153");
        assert_eq!(count(1_000_000), "1,000,000");
        assert_eq!(plural(1, "page"), "1 page");
        assert_eq!(ms(22), "0.000 ms");
        assert_eq!(ms(530_600_000), "530.6 ms");
        assert_eq!(bytes(3_296_722_944), "3.30 GB");
        assert_eq!(rate(3_296_722_944, 487_000_000), "6.8 GB/s");
    }
}

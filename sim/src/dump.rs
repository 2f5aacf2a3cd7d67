//! The whole state of a world at an instant, as text that a person can read.
//!
//! Workers: their requests and what each waits for, tiers, hand-offs, commands in flight. Router: members, breakers,
//! requests. Links and disks: who moves what. Long lists are cut, and say so.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;

use pd_core::id::{Epoch, OpId, RequestId};
use pd_core::op::{Input, Output};
use pd_core::router::{BreakerView, Router};
use pd_core::sched::{Hold, Standing, State, Wait};
use pd_core::time::Instant;
use pd_core::transfer;
use pd_core::worker::Worker;

use crate::lane::Place;
use crate::observe::Observer;
use crate::setup::Setup;
use crate::words::{self, at, bytes, count, ms, plural, rate};
use crate::world::World;

/// Runs a setup up to an instant and writes down its state then. True behind the text if the run was over before.
#[must_use]
pub fn dump(mut setup: Setup, until: Instant) -> (String, bool) {
    setup.until = Some(until);
    let commands = Rc::new(RefCell::new(Commands::default()));
    let mut world = World::new(setup);
    world.observe(Box::new(Rc::clone(&commands)));
    world.begin();
    while world.turn() {}
    let is_over = world.requests_count().1 == 0 && world.now() < until;
    let text = page(&world, &commands.borrow(), until);
    (text, is_over)
}

/// Commands in flight, by worker.
#[derive(Debug, Default)]
struct Commands {
    flights: BTreeMap<u32, BTreeMap<OpId, Flight>>,
    lives: BTreeMap<u32, Option<Epoch>>,
}

#[derive(Debug)]
struct Flight {
    at: Instant,
    after: Vec<OpId>,
    lane: &'static str,
    what: String,
}

impl Observer for Commands {
    fn on_worker(&mut self, now: Instant, worker: u32, input: &Input, outputs: &[Output]) {
        let flights = self.flights.entry(worker).or_default();
        if let Input::Done { op, .. } = input {
            flights.remove(op);
        }
        for output in outputs {
            if let Output::Start { op, after, command } = output {
                let (lane, what) = (words::lane(command.lane()), words::command(command));
                flights.insert(*op, Flight { at: now, after: after.clone(), lane, what });
            }
        }
    }

    fn on_life(&mut self, _now: Instant, worker: u32, epoch: Option<Epoch>) {
        self.flights.remove(&worker);
        self.lives.insert(worker, epoch);
    }
}

fn page(world: &World, commands: &Commands, until: Instant) -> String {
    let mut out = String::new();
    let (arrived, live) = world.requests_count();
    let last =
        if world.now() < until { format!(" (nothing happened since {})", at(world.now())) } else { String::new() };
    let _ = writeln!(out, "state at {}{last}: {} arrived, {live} of them live", at(until), plural(arrived, "request"));
    if let Some(router) = world.router() {
        self::router(router, until, &mut out);
    }
    for index in 0..world.workers_count() {
        match world.machine(index) {
            Some(machine) => worker(index, machine, commands, until, &mut out),
            None => _ = writeln!(out, "\nworker {index}: down"),
        }
    }
    fabric(world, until, &mut out);
    out
}

fn router(router: &Router, now: Instant, out: &mut String) {
    let _ = writeln!(
        out,
        "\nrouter: {} live, {} in the index",
        plural(router.live() as u64, "request"),
        plural(u64::from(router.index_entries()), "page")
    );
    let members: Vec<String> = router
        .members()
        .map(|one| {
            format!(
                "worker {} life {} {:?}{}: {}, {} of them decode; prefills of {}; {} known there",
                one.worker,
                one.member.epoch,
                one.member.mode,
                if one.is_draining { ", draining" } else { "" },
                plural(u64::from(one.legs), "leg"),
                one.decodes,
                ms(one.prefill_ns),
                plural(u64::from(one.held), "page")
            )
        })
        .collect();
    list(out, "members", &members);
    let breakers: Vec<String> = router
        .breakers()
        .map(|(worker, role, breaker)| match breaker {
            BreakerView::Closed { failures } => {
                format!("worker {worker} as {role:?}: closed, {} so far", plural(u64::from(failures), "failure"))
            }
            BreakerView::Open { until } => {
                format!("worker {worker} as {role:?}: open for {} more", ms(until.ns_since(now)))
            }
            BreakerView::HalfOpen { successes } => {
                format!("worker {worker} as {role:?}: half-open, {} so far", plural(u64::from(successes), "success"))
            }
        })
        .collect();
    list(out, "breakers", &breakers);
    let requests: Vec<String> = router
        .requests()
        .map(|one| {
            let state = match (one.waits_until, one.prefill, one.decode) {
                (Some(until), ..) => format!("waits {} for its next attempt", ms(until.ns_since(now))),
                (None, Some(prefill), Some(decode)) => {
                    format!("prefill on worker {prefill}, decode on worker {decode}")
                }
                (None, _, Some(decode)) => format!("on worker {decode}"),
                (None, _, None) => "nowhere".to_owned(),
            };
            format!("request {}, attempt {}: {state}; {} streamed", one.request, one.attempt, one.output)
        })
        .collect();
    list(out, "requests", &requests);
}

fn worker(index: u32, machine: &Worker, commands: &Commands, now: Instant, out: &mut String) {
    let config = machine.config();
    let load = machine.load();
    let _ = writeln!(
        out,
        "\nworker {index}: life {}, {:?}; {} admitted, {} waiting with {} tokens",
        config.epoch,
        config.mode,
        load.running,
        load.waiting,
        count(load.waiting_tokens)
    );
    let (device, host) = machine.kv().tier_views();
    for (name, tier) in [("L1", device), ("L2", host)] {
        if tier.total > 0 {
            let _ = writeln!(
                out,
                "  {name}         {} of {} pages free, {} hold cache, {} pinned",
                count(u64::from(tier.free)),
                count(u64::from(tier.total)),
                count(u64::from(tier.idle())),
                count(u64::from(tier.pinned))
            );
        }
    }
    storage(machine, out);
    let standings: Vec<String> = machine.standings().map(|one| standing(&one, now)).collect();
    list(out, "requests", &standings);
    hand_offs(machine, now, out);
    in_flight(index, machine, commands, now, out);
}

fn storage(machine: &Worker, out: &mut String) {
    let storage = machine.kv().storage_view();
    if storage.is_attached {
        let _ = writeln!(
            out,
            "  L3         {}{}{} known; waiting: {} to back up, {} to persist, {} to fetch; {} reserved for fetches",
            if storage.is_shared { "shared, " } else { "private, " },
            if storage.is_scanning { "being scanned, " } else { "" },
            plural(storage.present, "page"),
            plural(u64::from(storage.backups_waiting), "page"),
            plural(u64::from(storage.persists_waiting), "page"),
            match storage.fetches_waiting {
                1 => "1 batch".to_owned(),
                many => format!("{many} batches"),
            },
            plural(u64::from(storage.fetching_pages), "page of L2").replace("page of L2s", "pages of L2")
        );
    }
    if let Some(retry) = storage.retry_at {
        let failed = plural(u64::from(storage.retries), "failed write");
        let _ = writeln!(out, "             {failed}, the first is tried again at {}", at(retry));
    }
}

fn standing(one: &Standing, now: Instant) -> String {
    let progress = match one.stage {
        State::Waiting | State::Offered => plural(u64::from(one.prompt), "token"),
        State::Receiving
        | State::Prefilling
        | State::Running
        | State::HandingOver
        | State::Retracting
        | State::Leaving => {
            format!(
                "{} of {} prompt tokens computed ({} launched), {} of {} generated, {}",
                count(u64::from(one.committed.min(one.prompt))),
                count(u64::from(one.prompt)),
                count(u64::from(one.computed.min(one.prompt))),
                one.generated,
                one.limit,
                plural(u64::from(one.pages), "page")
            )
        }
    };
    let mut line = format!("request {} {:?}: {progress}; waits for {}", one.request, one.stage, wait(one, now));
    if one.stage == State::Waiting {
        let _ = write!(line, "; {} before it", one.ahead);
        if one.overtaken > 0 {
            let _ = write!(line, ", {} overtook it", one.overtaken);
        }
    }
    if let Some(plan) = one.fetch {
        let _ = write!(line, "; L3 {:?}: pages {} to {} of {}", plan.stage, plan.local, plan.until, plan.cap);
        if let Some(weighed) = plan.weighed {
            let _ = write!(line, ", fetch {} against compute {}", ms(weighed.fetch_ns), ms(weighed.compute_ns));
            if let Some(both_ns) = weighed.both_ns {
                let _ = write!(line, ", both at once {}", ms(both_ns));
            }
        }
    }
    line
}

fn wait(one: &Standing, now: Instant) -> String {
    match (one.wait, one.hold) {
        (Wait::Op(op), _) => format!("command {}", words::op(op)),
        (Wait::Peer(worker), _) => format!("its KV from worker {worker}"),
        (Wait::Handoff, _) => "the other end of its hand-off".to_owned(),
        (Wait::Fetch(Instant::MAX), _) => "its pages from L3".to_owned(),
        (Wait::Fetch(until), _) => format!("its pages from L3, {} more at most", ms(until.ns_since(now))),
        (Wait::Memory, Some(Hold::Pages { needed, available })) => {
            format!("device pages: needs {needed}, {available} can be had")
        }
        (Wait::Memory, _) => "device pages".to_owned(),
        (Wait::Queue, Some(Hold::Device { forwards })) => {
            format!("its turn: {} in flight", plural(u64::from(forwards), "forward"))
        }
        (Wait::Queue, Some(Hold::Running { max })) => format!("its turn: {max} are admitted (max_running_requests)"),
        (Wait::Queue, Some(Hold::Leader { request })) => format!("request {request}, which computes the same prefix"),
        (Wait::Queue, Some(Hold::Budget | Hold::Pages { .. }) | None) => "its turn".to_owned(),
    }
}

fn hand_offs(machine: &Worker, now: Instant, out: &mut String) {
    let transfer = machine.transfer();
    let rooms: Vec<String> = transfer
        .room_views()
        .iter()
        .map(|room| {
            let wait = match room.wait {
                transfer::Wait::Peer(worker) => format!("the connection to worker {worker}"),
                transfer::Wait::Handoff(worker) => format!("the hand-off of worker {worker}"),
                transfer::Wait::Retry => "the scheduler, to ask another prefill".to_owned(),
                transfer::Wait::Settle => "the next step".to_owned(),
                transfer::Wait::Want => "the sink's pages".to_owned(),
                transfer::Wait::Prompt => "the prompt to be computed".to_owned(),
                transfer::Wait::Pushes(many) => match many {
                    1 => "1 push in flight".to_owned(),
                    many => format!("{many} pushes in flight"),
                },
            };
            format!("room {} of request {}, {:?}: waits for {wait}", room.room, room.request, room.end)
        })
        .collect();
    list(out, "hand-offs", &rooms);
    let peers: Vec<String> = transfer
        .peer_views()
        .filter(|peer| peer.rooms > 0 || peer.is_silent || peer.link != "open")
        .map(|peer| {
            let silent = if peer.is_silent { ", silent" } else { "" };
            format!(
                "worker {} life {}: {}{silent}, {}",
                peer.id,
                peer.epoch,
                peer.link,
                plural(u64::from(peer.rooms), "room")
            )
        })
        .collect();
    list(out, "peers", &peers);
    let quarantined: Vec<String> = transfer
        .quarantine_views()
        .map(|one| format!("{} that were of request {}", plural(u64::from(one.pages), "page"), one.request))
        .collect();
    list(out, "quarantine", &quarantined);
    if let Some(next) = transfer.next_timer().filter(|_| transfer.rooms() > 0) {
        let _ = writeln!(out, "  deadline   of a hand-off, a ping or an abort in {}", ms(next.ns_since(now)));
    }
}

fn in_flight(index: u32, machine: &Worker, commands: &Commands, now: Instant, out: &mut String) {
    let none = BTreeMap::new();
    let flights = commands.flights.get(&index).unwrap_or(&none);
    let users: BTreeMap<OpId, Vec<RequestId>> =
        machine.kv().moves().into_iter().map(|one| (one.op, one.users)).collect();
    let lines: Vec<String> = flights
        .iter()
        .map(|(op, flight)| {
            let open: Vec<String> = flight
                .after
                .iter()
                .filter(|prior| flights.contains_key(prior))
                .map(|prior| words::op(*prior))
                .collect();
            let waits = if open.is_empty() { String::new() } else { format!("; behind {}", open.join(", ")) };
            let whose = match users.get(op).map(Vec::as_slice) {
                None | Some([]) => String::new(),
                Some(users) => format!("; for request {}", words::requests(users)),
            };
            let since = ms(now.ns_since(flight.at));
            format!("{} {}: {}; since {since}{waits}{whose}", words::op(*op), flight.lane, flight.what)
        })
        .collect();
    list(out, "in flight", &lines);
}

fn fabric(world: &World, now: Instant, out: &mut String) {
    let fabric = world.fabric();
    let whose = |place: Place| {
        let op = OpId { epoch: place.epoch, seq: place.seq };
        format!("worker {} {}", place.node, words::op(op))
    };
    let flows: Vec<String> = fabric
        .flows()
        .filter_map(|(id, place)| {
            let flow = fabric.links.flow(now, id)?;
            let links: Vec<&str> = flow.links.iter().map(|link| fabric.links.name(*link)).collect();
            let speed = match flow.rate {
                0 => "setting up, or stalled".to_owned(),
                speed => format!("at {}", rate(speed, 1_000_000_000)),
            };
            Some(format!(
                "{}: {} of {} over {}, {speed}",
                whose(place),
                bytes(flow.moved),
                bytes(flow.bytes),
                if links.is_empty() { "no link".to_owned() } else { links.join(", ") }
            ))
        })
        .collect();
    let _ = writeln!(out, "\nlinks: {}", plural(flows.len() as u64, "flow"));
    list(out, "flows", &flows);
    for (index, depot) in fabric.depots.iter().enumerate() {
        let view = depot.disk.view();
        let _ = writeln!(
            out,
            "\nstore {}: {}, {}; disk: reads {} waiting and {} commands under way, writes {} and {}, fsyncs {}",
            depot.name,
            plural(depot.store.count(), "object"),
            bytes(depot.store.bytes()),
            view.reads.0,
            view.reads.1,
            view.writes.0,
            view.writes.1,
            view.fsyncs.0 + view.fsyncs.1
        );
        let jobs: Vec<String> =
            fabric.jobs(index).map(|(job, place)| format!("job {}: {}", job.0, whose(place))).collect();
        list(out, "jobs", &jobs);
    }
}

/// A labelled list; nothing if it is empty.
fn list(out: &mut String, label: &str, lines: &[String]) {
    for (index, line) in lines.iter().take(LINES_MAX).enumerate() {
        let _ = writeln!(out, "  {:<10} {line}", if index == 0 { label } else { "" });
    }
    if lines.len() > LINES_MAX {
        let _ = writeln!(out, "  {:<10} and {} more", "", lines.len() - LINES_MAX);
    }
}

/// Lines of one list.
const LINES_MAX: usize = 64;

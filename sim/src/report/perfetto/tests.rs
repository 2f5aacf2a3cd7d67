//! Traces read back by a strict reader of the format: every field is known, slices nest, times never go back.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use super::proto::track;
use super::*;
use crate::scenario::{self, Overrides};
use crate::world::World;

/// A place to write to that the test keeps.
#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Field {
    Int(u64),
    Bytes(Vec<u8>),
}

impl Field {
    fn int(&self) -> u64 {
        let Self::Int(value) = self else { panic!("{self:?} is not a number") };
        *value
    }
    fn message(&self) -> Vec<(u32, Self)> {
        let Self::Bytes(bytes) = self else { panic!("{self:?} is not a message") };
        parse(bytes)
    }
    fn text(&self) -> String {
        let Self::Bytes(bytes) = self else { panic!("{self:?} is not a text") };
        String::from_utf8(bytes.clone()).expect("texts are UTF-8")
    }
}

fn varint(bytes: &[u8], at: &mut usize) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a number of more than ten bytes");
}

fn parse(bytes: &[u8]) -> Vec<(u32, Field)> {
    let mut at = 0;
    let mut fields = Vec::new();
    while at < bytes.len() {
        let key = varint(bytes, &mut at);
        let field = match key & 7 {
            0 => Field::Int(varint(bytes, &mut at)),
            1 => {
                at += 8;
                Field::Int(u64::from_le_bytes(bytes[at - 8..at].try_into().expect("eight bytes")))
            }
            2 => {
                let length = varint(bytes, &mut at) as usize;
                at += length;
                Field::Bytes(bytes[at - length..at].to_vec())
            }
            other => panic!("wire type {other}"),
        };
        fields.push(((key >> 3) as u32, field));
    }
    fields
}

/// What a strict reader found in a trace.
#[derive(Debug, Default)]
struct Found {
    /// Names of tracks, with their group's in front.
    tracks: BTreeMap<u64, String>,
    slices: BTreeMap<String, u32>,
    instants: u32,
    counts: BTreeMap<String, u32>,
    flows: BTreeMap<u64, (u32, u32)>,
    arguments: BTreeSet<String>,
}

fn read(bytes: &[u8]) -> Found {
    let mut found = Found::default();
    let (mut names, mut argument_names) = (BTreeMap::new(), BTreeMap::new());
    let mut open: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    for (number, (field, packet)) in parse(bytes).into_iter().enumerate() {
        assert_eq!(field, trace::PACKET);
        let packet = packet.message();
        let known =
            [packet::TIMESTAMP, packet::SEQUENCE, packet::TRACK_EVENT, packet::INTERNED, packet::FLAGS, packet::TRACK];
        assert!(packet.iter().all(|(field, _)| known.contains(field)), "an unknown field of a packet");
        let one = |field: u32| packet.iter().find(|(other, _)| *other == field).map(|(_, value)| value);
        assert_eq!(one(packet::SEQUENCE).map(Field::int), Some(SEQUENCE_ID));
        if number == 0 {
            assert_eq!(one(packet::FLAGS).map(Field::int), Some(packet::CLEARED), "interning starts afresh");
        }
        for (kind, entry) in one(packet::INTERNED).map(Field::message).unwrap_or_default() {
            let entry = entry.message();
            let known = if kind == interned::EVENT_NAME { &mut names } else { &mut argument_names };
            assert_eq!((entry[0].0, entry[1].0), (interned::ENTRY_ID, interned::ENTRY_NAME));
            assert!(known.insert(entry[0].1.int(), entry[1].1.text()).is_none(), "a number names one thing");
        }
        if let Some(descriptor) = one(packet::TRACK).map(Field::message) {
            let get = |field: u32| descriptor.iter().find(|(other, _)| *other == field).map(|(_, value)| value.clone());
            let id = get(track::UUID).expect("a track has an id").int();
            let name = match (get(track::PROCESS), get(track::PARENT)) {
                (Some(process), None) => process.message()[1].1.text(),
                (None, Some(parent)) => {
                    let group = &found.tracks[&parent.int()];
                    format!("{group}/{}", get(track::NAME).expect("a track has a name").text())
                }
                other => panic!("a track is a process or has a parent: {other:?}"),
            };
            assert!(found.tracks.insert(id, name).is_none(), "track {id} is announced once");
        }
        let Some(event) = one(packet::TRACK_EVENT).map(Field::message) else { continue };
        let known = [
            event::ANNOTATION,
            event::TYPE,
            event::NAME_ID,
            event::TRACK,
            event::NAME,
            event::COUNTER_VALUE,
            event::FLOW,
            event::FLOW_END,
        ];
        assert!(event.iter().all(|(field, _)| known.contains(field)), "an unknown field of an event");
        let at = one(packet::TIMESTAMP).expect("an event has a time").int();
        let get = |field: u32| event.iter().find(|(other, _)| *other == field).map(|(_, value)| value.clone());
        let id = get(event::TRACK).expect("an event is on a track").int();
        let name = found.tracks.get(&id).expect("a track is announced before its events").clone();
        assert!(last.insert(id, at).unwrap_or(0) <= at, "time goes back on {name}");
        for (_, argument) in event.iter().filter(|(field, _)| *field == event::ANNOTATION) {
            found.arguments.insert(argument_names[&argument.message()[0].1.int()].clone());
        }
        let own = || match (get(event::NAME_ID), get(event::NAME)) {
            (Some(id), None) => names[&id.int()].clone(),
            (None, Some(name)) => name.text(),
            other => panic!("an event has one name: {other:?}"),
        };
        match get(event::TYPE).expect("an event has a type").int() {
            event::BEGIN => {
                let kind: String = own().chars().take_while(|letter| !letter.is_ascii_digit()).collect();
                *found.slices.entry(kind.trim().to_owned()).or_default() += 1;
                open.entry(id).or_default().push(at);
            }
            event::END => {
                let began = open.get_mut(&id).and_then(Vec::pop).expect("an end follows a beginning");
                assert!(began <= at);
            }
            event::INSTANT => {
                own();
                found.instants += 1;
            }
            event::COUNTER => {
                assert!(get(event::COUNTER_VALUE).is_some());
                *found.counts.entry(name).or_default() += 1;
            }
            other => panic!("type {other}"),
        }
        if let Some(flow) = get(event::FLOW) {
            found.flows.entry(flow.int()).or_default().0 += 1;
        }
        if let Some(flow) = get(event::FLOW_END) {
            found.flows.entry(flow.int()).or_default().1 += 1;
        }
    }
    assert!(open.values().all(Vec::is_empty), "every slice ends");
    found
}

/// The trace of a run, and its requests.
fn traced(file: &str, set: &[&str]) -> (Found, Outcome) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios").join(file);
    let overrides = Overrides { set: set.iter().map(ToString::to_string).collect(), ..Overrides::default() };
    let case = scenario::load(&path, &overrides).unwrap_or_else(|error| panic!("{error}")).remove(0);
    let bytes = Shared::default();
    let plan = Plan::of(&case.setup);
    let collector = Collector::new(plan.clone()).with_perfetto(Perfetto::new(Box::new(bytes.clone()), &plan));
    let collector = Rc::new(RefCell::new(collector));
    let mut world = World::new(case.setup);
    world.observe(Box::new(Rc::clone(&collector)));
    let outcome = world.run();
    collector.borrow_mut().finish(&outcome).expect("memory can be written");
    let bytes = bytes.0.borrow();
    (read(&bytes), outcome)
}

#[test]
fn a_pair_has_lanes_counters_requests_and_arrows() {
    let (found, outcome) = traced("two_p_two_d.toml", &["load.0.requests=60"]);
    for name in [
        "worker 0 (prefill)/GPU",
        "worker 0 (prefill)/wire",
        "worker 0 (prefill)/scheduler",
        "worker 2 (decode)/GPU",
        "worker 2 (decode)/receive",
        "worker 2 (decode)/L1 used",
        "requests/requests",
        "links/w0.nic.out",
    ] {
        assert!(found.tracks.values().any(|track| track == name), "no track {name}: {:?}", found.tracks);
    }
    let forwards: u64 = outcome.workers.iter().map(|worker| worker.lanes.forwards).sum();
    let slices = |name: &str| found.slices.get(name).copied().unwrap_or(0);
    assert_eq!(u64::from(slices("prefill") + slices("decode") + slices("mixed")), forwards + 2 * 60);
    assert_eq!(slices("request"), 60);
    assert_eq!(slices("push"), outcome.transfers.len() as u32);
    assert_eq!(slices("receive"), 60);
    assert_eq!(found.flows.len(), 60);
    assert!(found.flows.values().all(|(from, to)| *from >= 1 && *to == 1), "each hand-off is one arrow");
    assert!(found.counts["links/w0.nic.out"] > 10);
    for name in ["tokens", "sequences", "chunks", "pages", "bytes", "request", "L1 tokens"] {
        assert!(found.arguments.contains(name), "no argument {name}");
    }
}

#[test]
fn a_restart_shows_storage_copies_and_the_script() {
    let (found, _) = traced("restart_reload.toml", &[]);
    for kind in ["prefetch", "persist", "backup", "load back", "scan", "request", "queue"] {
        assert!(found.slices.contains_key(kind), "no slice {kind}: {:?}", found.slices);
    }
    assert!(found.instants >= 3, "restart, down, up");
    assert!(found.tracks.values().any(|track| track == "script and lives/script"));
    assert!(found.counts["worker 0 (unified)/L3 objects"] > 2);
}

#[test]
fn a_run_that_is_cut_short_still_balances() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/two_p_two_d.toml");
    let overrides = Overrides { until: Some(Instant(20_000_000_000)), ..Overrides::default() };
    let case = scenario::load(&path, &overrides).unwrap_or_else(|error| panic!("{error}")).remove(0);
    let bytes = Shared::default();
    let plan = Plan::of(&case.setup);
    let collector = Collector::new(plan.clone()).with_perfetto(Perfetto::new(Box::new(bytes.clone()), &plan));
    let collector = Rc::new(RefCell::new(collector));
    let mut world = World::new(case.setup);
    world.observe(Box::new(Rc::clone(&collector)));
    let outcome = world.run();
    collector.borrow_mut().finish(&outcome).expect("memory can be written");
    let unfinished = outcome.requests.iter().filter(|record| record.end.is_none()).count();
    assert!(unfinished > 0, "the run is cut short");
    let found = read(&bytes.0.borrow());
    assert_eq!(found.slices["request"] as usize, outcome.requests.len());
}

#[test]
fn a_writer_that_fails_is_reported_at_the_end() {
    #[derive(Debug)]
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other("no space"))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/short_prompt.toml");
    let case = scenario::load(&path, &Overrides::default()).unwrap_or_else(|error| panic!("{error}")).remove(0);
    let plan = Plan::of(&case.setup);
    let mut collector = Collector::new(plan.clone()).with_perfetto(Perfetto::new(Box::new(Full), &plan));
    let outcome = World::new(case.setup).run();
    let error = collector.finish(&outcome).expect_err("nothing could be written");
    assert_eq!(error.to_string(), "the Perfetto trace cannot be written: no space");
}

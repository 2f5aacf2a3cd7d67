//! Reports watch and change nothing: a run that is watched for all of them has the hash of the run without.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::rc::Rc;

use pd::sim::report::collect::{Collector, Plan};
use pd::sim::report::html::{self, About};
use pd::sim::report::perfetto::Perfetto;
use pd::sim::report::tables::{FILES, Tables};
use pd::sim::scenario::{self, Overrides};
use pd::sim::world::World;

use crate::root;

/// Files in memory.
#[derive(Clone, Default)]
struct Files(Rc<RefCell<BTreeMap<String, Vec<u8>>>>);

struct OneFile(Files, String);

impl Write for OneFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.0.borrow_mut().entry(self.1.clone()).or_default().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Files {
    fn open(&self, name: &str) -> Box<dyn Write> {
        Box::new(OneFile(self.clone(), name.to_owned()))
    }
    fn rows(&self, name: &str) -> Vec<BTreeMap<String, String>> {
        let files = self.0.borrow();
        let mut reader = csv::Reader::from_reader(files[name].as_slice());
        reader.deserialize().map(|row| row.unwrap_or_else(|error| panic!("{name}: {error}"))).collect()
    }
}

#[test]
fn watched_runs_have_the_hash_of_the_run_alone() {
    for name in ["restart_reload", "two_p_two_d", "host_pressure", "unequal_tp", "overload", "fake_backend"] {
        let path = root().join(format!("scenarios/{name}.toml"));
        let load = || scenario::load(&path, &Overrides::default()).unwrap_or_else(|error| panic!("{error}"));
        for (alone, watched) in load().into_iter().zip(load()) {
            let hash = World::new(alone.setup).run().hash;
            let files = Files::default();
            let plan = Plan::of(&watched.setup);
            let opener = files.clone();
            let tables = Tables::new(Box::new(move |name| Ok(opener.open(name)))).expect("memory can be written");
            let trace = Perfetto::new(files.open("trace"), &plan);
            let collector = Collector::new(plan).with_perfetto(trace).with_tables(tables);
            let collector = Rc::new(RefCell::new(collector));
            let mut world = World::new(watched.setup);
            world.observe(Box::new(Rc::clone(&collector)));
            let outcome = world.run();
            assert_eq!(outcome.hash, hash, "{}", watched.name);
            collector.borrow_mut().finish(&outcome).expect("memory can be written");

            let values = pd::sim::report::values(&outcome);
            let about = About {
                name: &watched.name,
                about: &watched.about,
                gates: &watched.gates,
                values: &values,
                broken: &[],
            };
            assert!(html::page(&about, &collector.borrow(), &outcome).len() > 10_000);
            assert!(files.0.borrow()["trace"].len() > 1000);
            let count = |name: &str| files.rows(name).len();
            assert!(FILES.iter().all(|name| files.0.borrow().contains_key(*name)), "{}: all tables", watched.name);
            assert_eq!(count("requests.csv"), outcome.requests.len());
            let forwards: u64 = outcome.workers.iter().map(|worker| worker.lanes.forwards).sum();
            let done = files.rows("forwards.csv").iter().filter(|row| row["ending"] == "done").count() as u64;
            assert_eq!(done, forwards, "{}: each forward has a row", watched.name);
        }
    }
}

#[test]
fn tables_hold_what_the_run_counted() {
    let path = root().join("scenarios/two_p_two_d.toml");
    let case = scenario::load(&path, &Overrides::default()).unwrap_or_else(|error| panic!("{error}")).remove(0);
    let files = Files::default();
    let opener = files.clone();
    let tables = Tables::new(Box::new(move |name| Ok(opener.open(name)))).expect("memory can be written");
    let collector = Rc::new(RefCell::new(Collector::new(Plan::of(&case.setup)).with_tables(tables)));
    let mut world = World::new(case.setup);
    world.observe(Box::new(Rc::clone(&collector)));
    let outcome = world.run();
    collector.borrow_mut().finish(&outcome).expect("memory can be written");

    let number = |row: &BTreeMap<String, String>, column: &str| row[column].parse::<f64>().expect("a number");
    // Phases of a request add up to its life.
    for row in files.rows("requests.csv") {
        let phases = ["queue_ms", "prefetch_ms", "prefill_ms", "hand_off_ms", "decode_ms"];
        let sum: f64 = phases.iter().map(|phase| number(&row, phase)).sum();
        assert!((sum - number(&row, "e2e_ms")).abs() < 1e-3, "request {}: {sum} ms", row["request"]);
        assert!(number(&row, "hand_off_ms") > 0.0, "a pair hands over");
    }
    // A link carries the area under its rate.
    let (name, used) = outcome.links.iter().find(|(name, _)| name == "w0.nic.out").expect("a prefill sends");
    let rows: Vec<_> = files.rows("links.csv").into_iter().filter(|row| row["link"] == *name).collect();
    let mut carried = 0.0;
    for (row, next) in rows.iter().zip(rows.iter().skip(1).map(Some).chain([None])) {
        let (at, span) = (number(row, "at_s"), number(row, "span_s"));
        carried += number(row, "mean_bytes_per_s") * span;
        let until = next.map_or(outcome.ended.0 as f64 / 1e9, |next| number(next, "at_s"));
        carried += number(row, "last_bytes_per_s") * (until - at - span).max(0.0);
    }
    let bytes = used.bytes as f64;
    assert!((carried - bytes).abs() < bytes * 1e-6, "{carried} bytes under the curve, {bytes} carried");
    // Pushes are those of the record, with the same times.
    let pushes = files.rows("transfers.csv").into_iter().filter(|row| row["kind"] == "push");
    let pushed: Vec<(String, String)> = pushes.map(|row| (row["bytes"].clone(), row["end_s"].clone())).collect();
    let expected: Vec<(String, String)> = outcome
        .transfers
        .iter()
        .map(|transfer| (transfer.bytes.to_string(), transfer.ended.to_string().trim_end_matches('s').to_owned()))
        .collect();
    assert_eq!(pushed, expected);
    let tokens: f64 = files.rows("forwards.csv").iter().map(|row| number(row, "prefill_tokens")).sum();
    let computed: u64 = outcome.workers.iter().map(|worker| worker.metrics.computed_tokens).sum();
    // A chunk of one token that completes a prompt counts as decode in a forward.
    let missed = computed as f64 - tokens;
    assert!((0.0..600.0).contains(&missed), "{tokens} tokens in forwards, {computed} counted");
}

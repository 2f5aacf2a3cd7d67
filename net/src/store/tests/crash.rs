//! Random histories, simulated crashes and damages against a naive model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(u64, u8)>),
    Discard(Vec<u64>),
    Wipe(bool),
    Touch(Vec<u64>),
    Settle,
    Reopen,
    Crash,
}

/// What is done to a file, places as shares of what there is.
#[derive(Clone, Debug)]
enum Harm {
    Truncate { file: u16, at: u16 },
    Flip { file: u16, at: u16, bit: u8 },
    Zero { file: u16, at: u16, length: u16 },
    Misdirect { from: (u16, u16), to: (u16, u16), blocks: u8 },
}

const SIZES: [usize; 5] = [40, 700, 5000, 16384, 20001];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = 0..24_u64;
    let step = prop_oneof![
        8 => prop::collection::vec((number.clone(), 0..SIZES.len() as u8), 1..5).prop_map(Step::Write),
        2 => prop::collection::vec(number.clone(), 1..4).prop_map(Step::Discard),
        1 => any::<bool>().prop_map(Step::Wipe),
        1 => prop::collection::vec(number, 1..4).prop_map(Step::Touch),
        2 => Just(Step::Settle),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..40)
}

fn harms() -> impl Strategy<Value = Vec<Harm>> {
    let place = || (any::<u16>(), any::<u16>());
    let harm = prop_oneof![
        1 => place().prop_map(|(file, at)| Harm::Truncate { file, at }),
        4 => (place(), 0..8_u8).prop_map(|((file, at), bit)| Harm::Flip { file, at, bit }),
        2 => (place(), 1..9000_u16).prop_map(|((file, at), length)| Harm::Zero { file, at, length }),
        2 => (place(), place(), 1..6_u8).prop_map(|(from, to, blocks)| Harm::Misdirect { from, to, blocks }),
    ];
    prop::collection::vec(harm, 0..4)
}

/// Even numbers are of one namespace, odd ones of another.
fn page(number: u64, size: u8) -> Page {
    let root = if number.is_multiple_of(2) { ROOT } else { OTHER_ROOT };
    Page::of(root, number, SIZES[usize::from(size)])
}

/// Damages files and says which ranges changed: (file, from, to).
fn harm(dir: &Path, harms: &[Harm]) -> Vec<(String, u64, u64)> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("a folder")
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter(|name| name.ends_with(".seg") || name == "index.snap")
        .collect();
    names.sort_unstable();
    let mut changed = Vec::new();
    let pick = |file: u16, at: u16| {
        let name = &names[usize::from(file) % names.len()];
        let open = OpenOptions::new().read(true).write(true).open(dir.join(name)).expect("a file");
        let length = open.metadata().expect("its length").len();
        (name.clone(), open, length * u64::from(at) / 65536, length)
    };
    if names.is_empty() {
        return changed;
    }
    for what in harms {
        let (name, from, to) = match *what {
            Harm::Truncate { file, at } => {
                let (name, open, at, length) = pick(file, at);
                open.set_len(at).expect("cut");
                (name, at, length)
            }
            Harm::Flip { file, at, bit } => {
                let (name, open, at, length) = pick(file, at);
                if at >= length {
                    continue;
                }
                let mut byte = [0];
                open.read_exact_at(&mut byte, at).expect("a byte");
                open.write_all_at(&[byte[0] ^ 1 << bit], at).expect("a byte");
                (name, at, at + 1)
            }
            Harm::Zero { file, at, length } => {
                let (name, open, at, all) = pick(file, at);
                let length = u64::from(length).min(all - at);
                open.write_all_at(&vec![0; length as usize], at).expect("zeros");
                (name, at, at + length)
            }
            Harm::Misdirect { from, to, blocks } => {
                let (_, source, from, source_length) = pick(from.0, from.1);
                let (name, sink, to, sink_length) = pick(to.0, to.1);
                let (from, to) = (from / 4096 * 4096, to / 4096 * 4096);
                let length = (u64::from(blocks) * 4096).min(source_length - from).min(sink_length - to);
                let mut bytes = vec![0; length as usize];
                source.read_exact_at(&mut bytes, from).expect("bytes");
                sink.write_all_at(&bytes, to).expect("bytes");
                (name, to, to + length)
            }
        };
        changed.push((name, from, to));
    }
    changed
}

/// Does what the steps say; the model is what was acknowledged: number to size.
struct Run {
    dir: TempDir,
    store: Option<Store>,
    held: BTreeMap<u64, u8>,
    /// The size that a key has, once and for all: a key means the same bytes for ever.
    sizes: BTreeMap<u64, u8>,
}

impl Run {
    fn new() -> Self {
        let dir = folder();
        let store = Some(open(dir.path()).0);
        Self { dir, store, held: BTreeMap::new(), sizes: BTreeMap::new() }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("is open")
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(pages) => {
                let sized: Vec<(u64, u8)> =
                    pages.iter().map(|(number, size)| (*number, *self.sizes.entry(*number).or_insert(*size))).collect();
                let pages: Vec<Page> = sized.iter().map(|(number, size)| page(*number, *size)).collect();
                assert!(write(self.store(), &pages).iter().all(Result::is_ok));
                self.held.extend(sized);
            }
            Step::Discard(numbers) => {
                let keys: Vec<PageKey> = numbers.iter().map(|number| page(*number, 0).key).collect();
                self.store().discard(&keys).expect("a disk that works");
                self.held.retain(|number, _| !numbers.contains(number));
            }
            Step::Wipe(is_odd) => {
                self.store().wipe(if *is_odd { OTHER_ROOT } else { ROOT }).expect("a disk that works");
                self.held.retain(|number, _| number.is_multiple_of(2) == *is_odd);
            }
            Step::Touch(numbers) => {
                self.store().touch(&numbers.iter().map(|number| page(*number, 0).key).collect::<Vec<PageKey>>());
            }
            Step::Settle => self.store().settle(),
            Step::Reopen => {
                self.store = None;
                let (store, report) = open(self.dir.path());
                assert_eq!((report.recovered, report.torn, report.damaged, report.foreign), (0, 0, 0, 0), "{report}");
                self.store = Some(store);
            }
            Step::Crash => {
                let dir = image(self.store());
                self.store = None;
                let (store, report) = open(dir.path());
                assert_eq!((report.torn, report.damaged, report.foreign), (0, 0, 0), "{report}");
                (self.dir, self.store) = (dir, Some(store));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_acknowledged_is_found_unless_its_bytes_were_damaged(steps in steps(), harms in harms()) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
        }
        for number in 0..24 {
            let page = page(number, run.sizes.get(&number).copied().unwrap_or(0));
            let wanted = if run.held.contains_key(&number) { Ok(()) } else { Err(Fault::Missing) };
            prop_assert_eq!(page.read(run.store()), wanted, "page {} without a crash", number);
        }
        // Nothing moves from here on.
        run.store().settle();
        let places: BTreeMap<u64, (String, u64, u64)> = run
            .held
            .keys()
            .map(|number| (*number, place(run.store(), page(*number, 0).key).expect("is held")))
            .collect();
        let crashed = image(run.store());
        let changed = harm(crashed.path(), &harms);
        let (store, report) = open(crashed.path());
        let is_hit = |number: &u64| {
            let (name, at, length) = &places[number];
            changed.iter().any(|(other, from, to)| other == name && *from < at + length && *to > *at)
        };
        // Who asks for what by which name is not changed by damages.
        let mut lost = BTreeSet::new();
        for number in 0..24 {
            let page = page(number, run.sizes.get(&number).copied().unwrap_or(0));
            match page.read(&store) {
                Ok(()) => prop_assert!(
                    run.held.contains_key(&number) || !changed.is_empty(),
                    "page {} is back without a damage", number
                ),
                Err(fault) => {
                    if run.held.contains_key(&number) {
                        prop_assert!(is_hit(&number), "page {} was lost ({:?}): {}", number, fault, report);
                        lost.insert(number);
                    }
                }
            }
        }
        let is_flips = !harms.is_empty() && harms.iter().all(|harm| matches!(harm, Harm::Flip { .. }));
        let counted = report.torn + report.damaged + report.foreign + store.stats().damaged;
        if is_flips && !lost.is_empty() {
            prop_assert!(counted + report.foreign_files.len() as u64 > 0, "lost {:?}, uncounted: {}", lost, report);
        }
        // All of it can be written anew, and is there after the next crash.
        for (number, size) in &run.sizes {
            page(*number, *size).write(&store).expect("a disk that works");
        }
        let crashed = image(&store);
        let (store, report) = open(crashed.path());
        for (number, size) in &run.sizes {
            let page = page(*number, *size);
            prop_assert!(page.read(&store).is_ok() || !changed.is_empty(), "page {} again: {}", number, report);
        }
    }
}

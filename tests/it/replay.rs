//! A recorded run replays: fresh machines that are told the same at the same times answer the same, step by step; and
//! two runs that differ are told apart at the first event.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;

use pd::core::router::Policy;
use pd::sim::journal::diff::{Comparison, Kind, Run, compare};
use pd::sim::journal::replay::{ReplayError, Replayed, replay};
use pd::sim::journal::{Asked, Detail, Header, Life, Reader, Record, Recorder, Told, Who, Writer};
use pd::sim::record::Outcome;
use pd::sim::scenario::{self, Case, Overrides};
use pd::sim::world::World;

use crate::root;

fn cases(name: &str, overrides: &Overrides) -> Vec<Case> {
    let path = root().join("scenarios").join(name);
    scenario::load(&path, overrides).unwrap_or_else(|error| panic!("{error}"))
}

fn case(name: &str) -> Case {
    cases(name, &Overrides::default()).remove(0)
}

/// Runs a case and records it; with what the world says of it.
fn record(mut case: Case, detail: Detail) -> (Vec<u8>, Outcome) {
    case.setup.check = false;
    let recorder = Rc::new(RefCell::new(Recorder::new(Vec::new(), &Header::new(case.name, detail))));
    let mut world = World::new(case.setup);
    world.observe(Box::new(Rc::clone(&recorder)));
    let outcome = world.run();
    let (bytes, _) = recorder.borrow_mut().finish_into(outcome.ended).expect("memory takes all");
    (bytes, outcome)
}

#[test]
fn every_life_of_every_machine_replays_to_the_same_answers() {
    for name in ["restart_reload.toml", "one_p_one_d.toml", "host_pressure.toml"] {
        for detail in [Detail::Inputs, Detail::Outputs] {
            let (bytes, outcome) = record(case(name), detail);
            let mut replayed = Replayed::default();
            replay(&mut Reader::new(&bytes[..]).expect("journals in memory are whole"), &mut replayed)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            for (index, worker) in outcome.workers.iter().enumerate() {
                assert_eq!(replayed.steps[&Who::Worker(index as u32)], worker.steps, "{name}: worker {index}");
            }
            let lives: u32 = outcome.workers.iter().map(|worker| worker.lives).sum();
            assert_eq!(replayed.lives, u64::from(lives) + u64::from(outcome.router.is_some()));
            assert_eq!(replayed.until, outcome.ended);
        }
    }
}

/// The same journal, with other configurations.
fn reconfigured(bytes: &[u8], detail: Detail, change: fn(&mut Life)) -> Vec<u8> {
    let reader = Reader::new(bytes).expect("journals in memory are whole");
    let mut writer = Writer::new(Vec::new(), &Header::new("changed", detail)).expect("journals in memory are whole");
    for record in reader {
        match record.expect("journals in memory are whole") {
            Record::Launch { at, who, mut life } => {
                change(&mut life);
                writer.launch(at, who, &life).expect("journals in memory are whole");
            }
            Record::Stop { at, who } => writer.stop(at, who).expect("journals in memory are whole"),
            Record::Step(step) => match (&step.told, step.asked.as_ref(), step.who) {
                (Told::Worker(input), Some(Asked::Worker(outputs)), Who::Worker(index)) => {
                    writer.worker(step.at, index, input, outputs).expect("journals in memory are whole");
                }
                (Told::Router(input), Some(Asked::Router(outputs)), _) => {
                    writer.router(step.at, input, outputs).expect("journals in memory are whole")
                }
                _ => panic!("a journal with outputs"),
            },
            Record::End { at } => return writer.finish(at).expect("journals in memory are whole").0,
        }
    }
    panic!("a journal has an end")
}

/// Negative control: machines that are configured differently are noticed, with the field.
#[test]
fn a_replay_on_another_configuration_names_the_first_step_and_the_field() {
    let (bytes, _) = record(case("one_p_one_d.toml"), Detail::Outputs);
    let smaller = |life: &mut Life| match life {
        Life::Worker { config, .. } => config.sched.chunked_prefill_size = 512,
        Life::Router { .. } => {}
    };
    let changed = reconfigured(&bytes, Detail::Outputs, smaller);
    let mut replayed = Replayed::default();
    let Err(ReplayError::Diverged(divergence)) =
        replay(&mut Reader::new(&changed[..]).expect("journals in memory are whole"), &mut replayed)
    else {
        panic!("another chunk size is another behaviour")
    };
    assert_eq!(divergence.recorded.who, Who::Worker(0));
    assert!(divergence.fields.iter().any(|field| field.path.ends_with("count")), "{divergence}");
    assert!(divergence.to_string().contains("before it on this machine"), "{divergence}");

    let other = |life: &mut Life| match life {
        Life::Router { config, .. } => (config.policy, config.epoch.0) = (Policy::Random, 5),
        Life::Worker { .. } => {}
    };
    // Without outputs the step is named all the same.
    let changed = reconfigured(&bytes, Detail::Inputs, other);
    let Err(ReplayError::Diverged(divergence)) =
        replay(&mut Reader::new(&changed[..]).expect("journals in memory are whole"), &mut Replayed::default())
    else {
        panic!("another policy is another behaviour")
    };
    assert_eq!(divergence.recorded.who, Who::Router);
    assert!(divergence.fields.is_empty() && divergence.to_string().contains("--journal-detail outputs"));
}

fn live(name: &str, seed: Option<u64>, set: &[&str]) -> Run {
    let set = set.iter().map(|&change| change.to_owned()).collect();
    Run::live(cases(name, &Overrides { seed, set, ..Overrides::default() }).remove(0).setup)
}

fn compared(one: Run, other: Run) -> Comparison {
    compare(one, other).unwrap_or_else(|(_, error)| panic!("{error}"))
}

#[test]
fn equal_runs_do_not_differ_and_other_seeds_do_at_their_first_request() {
    let equal = compared(live("one_p_one_d.toml", Some(1), &[]), live("one_p_one_d.toml", Some(1), &[]));
    assert!(equal.is_equal() && equal.events > 1_000, "{equal}");

    let other = compared(live("one_p_one_d.toml", Some(1), &[]), live("one_p_one_d.toml", Some(2), &[]));
    let first = other.first.as_ref().expect("another seed is another load");
    assert_eq!(first.kind, Kind::Input);
    let told = |record: &Option<Record>| record.as_ref().map_or_else(String::new, Record::line);
    assert!(told(&first.one).starts_with("request 0") && told(&first.other).starts_with("request 0"), "{other}");
    assert!(first.fields.iter().any(|field| field.path == "Submit.length"), "{other}");
    assert!(other.configs.iter().all(|config| config.fields.iter().all(|field| field.path == "seed")), "{other}");
}

#[test]
fn a_key_that_changes_an_answer_is_traced_to_the_machine_that_gave_it() {
    let one = live("restart_reload.toml", None, &[]);
    let other = live("restart_reload.toml", None, &["worker.0.chunked_prefill_size=4096"]);
    let comparison = compared(one, other);
    assert_eq!(comparison.configs[0].fields[0].path, "sched.chunked_prefill_size");
    let first = comparison.first.as_ref().expect("another chunk");
    assert_eq!((first.kind, first.one.as_ref().and_then(Record::who)), (Kind::Outputs, Some(Who::Worker(0))));
    assert!(first.fields.iter().any(|field| (&field.one[..], &field.other[..]) == ("8192", "4096")), "{comparison}");
}

#[test]
fn a_journal_equals_the_run_that_it_is_of() {
    let folder = Scratch::new("journal_equals");
    let (bytes, _) = record(case("restart_reload.toml"), Detail::Inputs);
    let path = folder.write("run.journal", &bytes);
    let recorded = Run::recorded(Reader::buffered(File::open(path).expect("journals in memory are whole")).unwrap());
    let comparison = compared(recorded, live("restart_reload.toml", None, &[]));
    assert!(comparison.is_equal() && comparison.events > 50, "{comparison}");
}

/// A folder that is gone after the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).expect("journals in memory are whole");
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("journals in memory are whole");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left behind, it does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The command, with arguments separated by blanks; `%` stands for the scratch folder.
pub(crate) fn pd(folder: &Scratch, arguments: &str) -> (Output, String) {
    let arguments = arguments.split(' ').map(|argument| argument.replace('%', &folder.0.display().to_string()));
    let output = Command::new(env!("CARGO_BIN_EXE_pd"))
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("journals in memory are whole");
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8(text).expect("journals in memory are whole");
    (output, text)
}

#[test]
fn the_commands_say_by_their_exit_code_what_they_found() {
    let folder = Scratch::new("commands");
    let run = "sim scenarios/restart_reload.toml --variant base --journal %/a.journal";
    let mut torn = Vec::new();
    for (arguments, code, says) in [
        (run, 0, "journal "),
        ("replay %/a.journal", 0, "steps of 1 machine in 2 lives agree"),
        ("diff %/a.journal scenarios/restart_reload.toml", 0, "no event differs"),
        ("diff %/a.journal scenarios/restart_reload.toml:torn", 1, "another input"),
        ("diff scenarios/one_p_one_d.toml --seed-b 9", 1, "field  Submit."),
        ("diff scenarios/restart_reload.toml:hol scenarios/restart_reload.toml", 2, "did you mean \"hole\"?"),
        ("replay scenarios/restart_reload.toml", 2, "is not a journal"),
        ("replay %/nothing", 2, "cannot be read"),
        ("sim scenarios/restart_reload.toml --journal %/b.journal", 2, "choose one with --variant NAME: base, hole"),
        ("diff %/a.journal %/a.journal --seed-b 2", 2, "is a journal; --set and --seed change scenarios"),
    ] {
        let (output, text) = pd(&folder, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {text}");
        assert!(text.contains(says), "{arguments}: {text}");
        if torn.is_empty() {
            torn = fs::read(folder.path("a.journal")).expect("journals in memory are whole");
        }
    }
    torn.truncate(torn.len() - 3);
    folder.write("torn.journal", &torn);
    let (output, text) = pd(&folder, "replay %/torn.journal");
    assert_eq!(output.status.code(), Some(2));
    assert!(text.contains("is cut off in block") && text.contains("records before it"), "{text}");
    torn[100] ^= 1;
    folder.write("damaged.journal", &torn);
    let (output, text) = pd(&folder, "replay %/damaged.journal");
    assert_eq!(output.status.code(), Some(2));
    assert!(text.contains("its checksum is wrong"), "{text}");
}

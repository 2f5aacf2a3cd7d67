//! The tree as our guide wants it.

use std::fs;
use std::path::{Path, PathBuf};

use pd::core::metrics::MARKS;

use crate::root;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for part in ["core/src", "gpu/src", "net/src", "sim/src", "src", "sync/src", "tests", "benches"] {
        sources(&root().join(part), &mut found);
    }
    found.sort();
    assert!(found.len() > 50, "the walk finds the sources");
    found
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let long: Vec<String> = all_sources()
        .iter()
        .filter_map(|path| {
            let lines = fs::read_to_string(path).expect("a readable file").lines().count();
            (lines > 520).then(|| format!("{}: {lines} lines", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "split by noun:\n{}", long.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<String> = all_sources()
        .iter()
        .filter(|path| !fs::read_to_string(path).expect("a readable file").contains("//!"))
        .map(|path| path.display().to_string())
        .collect();
    assert!(silent.is_empty(), "no module documentation:\n{}", silent.join("\n"));
}

#[test]
fn nothing_is_left_unfinished_or_switched_off() {
    // Spelt so that this file does not find itself.
    let marks = [
        "to".to_owned() + "do!(",
        "unimpl".to_owned() + "emented!(",
        "#[ig".to_owned() + "nore",
        "FIX".to_owned() + "ME",
    ];
    let mut found = Vec::new();
    for path in all_sources() {
        let text = fs::read_to_string(&path).expect("a readable file");
        for mark in &marks {
            if text.contains(mark.as_str()) {
                found.push(format!("{}: {mark}", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_mark_is_listed_and_every_listed_mark_is_made() {
    let mut made = Vec::new();
    let mut files = Vec::new();
    sources(&root().join("core/src"), &mut files);
    files.retain(|path| !path.ends_with("metrics.rs"));
    for path in files {
        let text = fs::read_to_string(&path).expect("a readable file");
        made.extend(text.split('"').skip(1).step_by(2).filter(|word| MARKS.contains(word)).map(str::to_owned));
        // What is given to `mark` by name; a choice between names is asserted where it is made.
        for rest in text.split(".mark(\"").skip(1) {
            let name = rest.split('"').next().expect("a string ends");
            assert!(MARKS.contains(&name), "{}: add the mark {name} to MARKS", path.display());
        }
    }
    let idle: Vec<_> = MARKS.iter().filter(|mark| !made.iter().any(|one| one == *mark)).collect();
    assert!(idle.is_empty(), "nothing makes these marks: {idle:?}");
    assert!(MARKS.is_sorted(), "MARKS is searched by bisection");
}

#[test]
fn core_depends_on_the_allowed_crates_only() {
    let manifest = fs::read_to_string(root().join("core/Cargo.toml")).expect("part of the repository");
    let section = manifest.split("[dependencies]").nth(1).expect("a section").split("\n[").next().expect("its text");
    let names: Vec<&str> =
        section.lines().filter_map(|line| line.split(['.', ' ', '=']).next()).filter(|name| !name.is_empty()).collect();
    assert_eq!(names, ["blake3", "rand_chacha", "serde", "thiserror"]);
}

//! Fingerprints the sources, so that a journal can say which machines wrote it.

use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=src");
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    files.sort();
    let mut hash = SEED;
    for file in files {
        // Of tests nothing depends.
        let name = file.to_string_lossy().replace('\\', "/");
        if name.contains("/tests") || name.ends_with("testkit.rs") {
            continue;
        }
        hash = mix(hash, name.as_bytes());
        hash = mix(hash, &fs::read(&file).expect("a source that was just listed can be read"));
    }
    println!("cargo::rustc-env=PD_CORE_BUILD={hash:016x}");
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the sources are beside this file") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// FNV-1a. It tells builds apart and resists nobody.
fn mix(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

const SEED: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

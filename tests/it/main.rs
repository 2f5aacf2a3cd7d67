//! Tests of the whole: every scenario, determinism, replay, oracles, tidiness of the tree.

mod explain;
mod mutants;
mod oracles;
mod papers;
mod replay;
mod reports;
mod scenarios;
mod swarm;
mod sweeps;
mod tidy;

use std::path::{Path, PathBuf};

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// All scenario files, in order: those of the folder itself, then the catalogue of known failures and what swarms have found.
fn scenario_files() -> Vec<PathBuf> {
    let mut files = toml_files("scenarios");
    files.extend(toml_files("scenarios/known"));
    files.extend(toml_files("scenarios/found"));
    files
}

fn toml_files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root().join(folder))
        .expect("the folder is part of the repository")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    files.sort();
    files
}

//! `pd diff`: the first thing in which two runs differ.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use pd_sim::journal::diff::{Run, compare};
use pd_sim::journal::{JournalError, MAGIC, Reader};
use pd_sim::scenario::{self, Overrides};

use super::bad_input;

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// A journal, or a scenario as FILE.toml or FILE.toml:VARIANT.
    #[arg(value_name = "A")]
    one: String,
    /// The other one; A again, if left out.
    #[arg(value_name = "B", required_unless_present_any = ["set_b", "seed_b"])]
    other: Option<String>,
    /// Change a key of both scenarios; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Change a key of B only; may be given several times.
    #[arg(long = "set-b", value_name = "KEY=VALUE")]
    set_b: Vec<String>,
    /// Seed of both scenarios.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Seed of B only.
    #[arg(long = "seed-b", value_name = "N")]
    seed_b: Option<u64>,
}

impl Diff {
    /// Compares; 0 if nothing differs, 1 if something does, 2 for bad input.
    pub(crate) fn run(&self) -> ExitCode {
        let one = Overrides { seed: self.seed, until: None, set: self.set.clone() };
        let mut other = one.clone();
        other.seed = self.seed_b.or(self.seed);
        other.set.extend(self.set_b.iter().cloned());
        let name = self.other.as_deref().unwrap_or(&self.one);
        let runs = open(&self.one, &one).and_then(|a| Ok((a, open(name, &other)?)));
        let result = runs.and_then(|(a, b)| {
            compare(a, b).map_err(|(is_other, error)| format!("{} {error}", if is_other { name } else { &self.one }))
        });
        match result {
            Ok(comparison) => {
                println!("A  {}\nB  {name}", self.one);
                print!("{comparison}");
                ExitCode::from(u8::from(!comparison.is_equal()))
            }
            Err(problem) => bad_input(&problem),
        }
    }
}

/// A journal by its first bytes, else a scenario and one of its variants.
fn open(name: &str, overrides: &Overrides) -> Result<Run, String> {
    let path = Path::new(name);
    if is_journal(path) {
        if !overrides.set.is_empty() || overrides.seed.is_some() {
            return Err(format!("{name} is a journal; --set and --seed change scenarios"));
        }
        let reader = File::open(path).map_err(JournalError::Io).and_then(Reader::buffered);
        return reader.map(Run::recorded).map_err(|error| format!("{name} {error}"));
    }
    // A variant is named behind the last colon, unless a file has that very name.
    let (file, variant) = match name.rsplit_once(':') {
        Some((file, variant)) if !path.exists() => (PathBuf::from(file), variant),
        Some(_) | None => (path.to_path_buf(), "base"),
    };
    if file.extension().is_none_or(|end| end != "toml") {
        // Neither: what a reader of journals has to say about it is the better message.
        let reader = File::open(&file).map_err(JournalError::Io).and_then(Reader::buffered);
        return reader.map(Run::recorded).map_err(|error| format!("{} {error}", file.display()));
    }
    let cases = scenario::load(&file, overrides).map_err(|error| error.to_string())?;
    let mut names = Vec::new();
    for case in cases {
        let short = case.name.split_once('/').map_or("base", |(_, variant)| variant).to_owned();
        if short == variant {
            return Ok(Run::live(case.setup));
        }
        names.push(short);
    }
    let near = scenario::error::nearest(variant, names.iter().map(String::as_str))
        .map_or_else(String::new, |near| format!("; did you mean \"{near}\"?"));
    Err(format!("{}: there is no variant \"{variant}\"{near} There are {}", file.display(), names.join(", ")))
}

fn is_journal(path: &Path) -> bool {
    use std::io::Read;
    let mut head = [0; 8];
    File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == MAGIC
}

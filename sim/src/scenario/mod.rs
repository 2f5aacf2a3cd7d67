//! Scenario files: reading them, changing them (`--set`, variants), and making a world of them.

pub mod build;
pub mod error;
pub mod expect;
pub mod loads;
mod router;
pub mod schema;
mod script;
mod service;
pub mod set;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pd_core::time::Instant;
use toml::{Table, Value};

use self::error::{ScenarioError, nearest};
use self::expect::Gate;
use self::schema::File;
use self::set::Change;
use crate::append_map::MapConfig;
use crate::hardware::Library;
use crate::report::Names;
use crate::setup::Setup;
use crate::sweep::SweepConfig;

/// One run that a file describes: the file itself, or one of its variants.
#[derive(Debug)]
pub struct Case {
    /// Name of the file, and of the variant behind a slash.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// The world to run.
    pub setup: Setup,
    /// What must hold afterwards.
    pub gates: Vec<Gate>,
}

/// Changes from the command line.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--seed`.
    pub seed: Option<u64>,
    /// `--until`.
    pub until: Option<Instant>,
    /// `--set key=value`, in order.
    pub set: Vec<String>,
    /// `--load journal:FILE,...`: instead of the file's loads, what real workers were asked for. The file's gates are about
    /// its own loads and do not hold for these; those of `set` do.
    pub load: Option<Vec<PathBuf>>,
}

/// Reads a scenario file and makes a world of it and of each of its variants.
///
/// # Errors
/// What is wrong, with file, line and the nearest right name.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Vec<Case>, ScenarioError> {
    Document::read(path, overrides)?.cases()
}

/// A scenario file that has been read, ready to be made into worlds: as it is, by variant or by point of a sweep.
#[derive(Debug)]
pub struct Document {
    path: PathBuf,
    text: String,
    stem: String,
    /// The file as it is written, without its variants and sweeps.
    base: Table,
    variants: Vec<schema::Variant>,
    sweep: Option<SweepConfig>,
    map: Option<MapConfig>,
    sets: Vec<Change>,
    seed: Option<u64>,
    until: Option<Instant>,
    /// Its loads are not those that the file's gates are about.
    has_other_load: bool,
    /// Hardware and models, if not those around the file.
    library: Option<Arc<Library>>,
}

impl Document {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong, with file, line and the nearest right name.
    pub fn read(path: &Path, overrides: &Overrides) -> Result<Self, ScenarioError> {
        let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
        Self::of(text, path, overrides, None)
    }

    /// Takes a text that is at hand and, if it is given, a library to take hardware and models from. `path` is what errors
    /// call it, and where its traces are.
    ///
    /// # Errors
    /// What is wrong, with file, line and the nearest right name.
    pub fn of(
        text: String,
        path: &Path,
        overrides: &Overrides,
        library: Option<Arc<Library>>,
    ) -> Result<Self, ScenarioError> {
        // Once from the text itself, for errors that know their line.
        let file: File = toml::from_str(&text).map_err(|error| ScenarioError::toml(path, &text, &error))?;
        let mut base: Table = toml::from_str(&text).map_err(|error| ScenarioError::toml(path, &text, &error))?;
        if let Some(files) = &overrides.load {
            base.insert("load".to_owned(), journal(files).map_err(|problem| ScenarioError::new(path, problem))?);
            base.remove("expect");
        }
        let sets = overrides.set.iter().map(|change| Change::parse(change)).collect::<Result<Vec<_>, _>>();
        let sets = sets.map_err(|problem| ScenarioError::new(path, problem))?;
        let mut document = Self {
            path: path.to_path_buf(),
            stem: path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()),
            base: Table::new(),
            variants: file.variant,
            sweep: None,
            map: None,
            sets: Vec::new(),
            seed: overrides.seed,
            until: overrides.until,
            has_other_load: overrides.load.is_some(),
            library,
            text,
        };
        // What is changed of a sweep itself is no business of its worlds.
        let (of_sweep, sets): (Vec<_>, Vec<_>) = sets.into_iter().partition(|set| set.is_of(&["sweep", "append_map"]));
        let whole = document.parse(document.name(), &base, &of_sweep)?;
        for part in ["variant", "sweep", "append_map"] {
            base.remove(part);
        }
        (document.base, document.sets) = (base, sets);
        (document.sweep, document.map) = (whole.sweep, whole.append_map);
        Ok(document)
    }

    /// The file's name without its ending.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.stem
    }

    /// The table of its sweep.
    #[must_use]
    pub const fn sweep(&self) -> Option<&SweepConfig> {
        self.sweep.as_ref()
    }

    /// The table of its map.
    #[must_use]
    pub const fn append_map(&self) -> Option<&MapConfig> {
        self.map.as_ref()
    }

    /// The seed that the command line asks for.
    #[must_use]
    pub const fn seed(&self) -> Option<u64> {
        self.seed
    }

    /// An error about this file, at the first line that sets `key`.
    #[must_use]
    pub fn error(&self, key: &str, message: impl Into<String>) -> ScenarioError {
        ScenarioError::new(&self.path, message).at_key(&self.text, key)
    }

    /// The file itself and its variants.
    ///
    /// # Errors
    /// What is wrong, with file, line and the nearest right name.
    pub fn cases(&self) -> Result<Vec<Case>, ScenarioError> {
        let mut cases = vec![self.case(&self.stem, &[], None, self.seed)?];
        for (index, variant) in self.variants.iter().enumerate() {
            if variant.name == "base" || self.variants[..index].iter().any(|other| other.name == variant.name) {
                let name = &variant.name;
                let problem = format!("the name \"{name}\" of a variant is taken (\"base\" is the file itself)");
                return Err(self.error("name", problem));
            }
            let origin = format!("variant \"{}\"", variant.name);
            let changes: Vec<Change> = variant
                .set
                .iter()
                .map(|(key, value)| Change { origin: origin.clone(), key: key.clone(), value: value.clone() })
                .collect();
            cases.push(self.case(&format!("{}/{}", self.stem, variant.name), &changes, Some(variant), self.seed)?);
        }
        Ok(cases)
    }

    /// The file with changes and a seed: one run of a sweep.
    ///
    /// # Errors
    /// What is wrong, and whose change it is.
    pub fn changed(&self, name: &str, changes: &[Change], seed: u64) -> Result<Case, ScenarioError> {
        self.case(name, changes, None, Some(seed))
    }

    /// The keys of the file with what the command line changes.
    ///
    /// # Errors
    /// What is wrong, and whose change it is.
    pub fn file(&self, name: &str, changes: &[Change]) -> Result<File, ScenarioError> {
        let changes: Vec<Change> = self.sets.iter().chain(changes).cloned().collect();
        let mut file = self.parse(name, &self.base, &changes)?;
        file.seed = self.seed.unwrap_or(file.seed);
        Ok(file)
    }

    /// Makes a world of keys that come from this file.
    ///
    /// # Errors
    /// What is wrong.
    pub fn setup(&self, name: &str, file: &File) -> Result<Setup, ScenarioError> {
        self.build(name, file, &self.sets)
    }

    fn parse(&self, name: &str, base: &Table, changes: &[Change]) -> Result<File, ScenarioError> {
        let mut table = base.clone();
        for change in changes {
            change.apply(&mut table).map_err(|problem| {
                let error = ScenarioError::new(&self.path, problem);
                if self.sets.contains(change) { error } else { error.at_key(&self.text, &change.key) }
            })?;
        }
        File::deserialize_table(&table).map_err(|error| {
            let origin = set::culprit(base, changes, error.message());
            let mut problem = ScenarioError::toml(&self.path, &self.text, &error);
            problem.line = None;
            problem.message = match origin {
                Some(change) => format!("{name}: {}: {}", change.origin_of_key(), problem.message),
                None => format!("{name}, with its changes: {}", problem.message),
            };
            problem
        })
    }

    fn build(&self, name: &str, file: &File, changes: &[Change]) -> Result<Setup, ScenarioError> {
        let folder = self.path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        let setup = match &self.library {
            Some(library) => build::setup_with(file, &folder, library),
            None => build::setup(file, &folder),
        };
        let mut setup = setup.map_err(|problem| {
            let Some(key) = problem.key else {
                return ScenarioError::new(&self.path, format!("{name}: {}", problem.message));
            };
            // A value that a change brought is not to be found in the file.
            match changes.iter().rfind(|change| change.ends_with(key)) {
                Some(change) => {
                    let message = format!("{name}: {}: {}", change.origin_of_key(), problem.message);
                    ScenarioError::new(&self.path, message)
                }
                None => self.error(key, format!("{name}: {}", problem.message)),
            }
        })?;
        if self.until.is_some() {
            setup.until = self.until;
        }
        Ok(setup)
    }

    fn case(
        &self,
        name: &str,
        changes: &[Change],
        variant: Option<&schema::Variant>,
        seed: Option<u64>,
    ) -> Result<Case, ScenarioError> {
        let mut base = self.base.clone();
        if let Some(variant) = variant.filter(|variant| !variant.expect.is_empty() && !self.has_other_load) {
            let gates = variant.expect.iter().map(|(key, gate)| (key.clone(), Value::String(gate.clone())));
            base.insert("expect".to_owned(), Value::Table(gates.collect()));
        }
        // What the command line says of gates holds for those of a variant, too.
        let (gates, keys): (Vec<_>, Vec<_>) = self.sets.iter().cloned().partition(Change::is_gate);
        let changes: Vec<Change> = keys.into_iter().chain(changes.iter().cloned()).chain(gates).collect();
        let mut file = self.parse(name, &base, &changes)?;
        if let Some(variant) = variant {
            file.event.extend(variant.event.iter().cloned());
            file.about.clone_from(&variant.about);
        }
        file.seed = seed.unwrap_or(file.seed);
        let mut gates = Vec::new();
        for (key, gate) in &file.expect {
            gates
                .extend(Gate::parse_all(key, gate).map_err(|problem| self.error(key, format!("[expect]: {problem}")))?);
        }
        if !self.has_other_load && !gates.iter().any(Gate::fails_idle) {
            let problem = "[expect] has no gate that a run in which nothing happens would fail; \
                           add one, for instance \"requests.finished\" = \">= 1\"";
            return Err(ScenarioError::new(&self.path, format!("{name}: {problem}")));
        }
        let setup = self.build(name, &file, &changes)?;
        let names = Names::of(&setup);
        for gate in &gates {
            names.check(gate.name()).map_err(|problem| {
                self.error(gate.name(), format!("{name}: [expect] \"{}\": {problem}", gate.name()))
            })?;
        }
        Ok(Case { name: name.to_owned(), about: file.about, setup, gates })
    }
}

/// The `load` of a scenario that takes its requests from journals, which are named relative to where we are.
fn journal(files: &[PathBuf]) -> Result<Value, String> {
    let absolute = |file: &PathBuf| {
        let path = std::path::absolute(file).map_err(|error| format!("{}: {error}", file.display()))?;
        path.into_os_string().into_string().map(Value::String).map_err(|_| format!("{}: not UTF-8", file.display()))
    };
    let files = files.iter().map(absolute).collect::<Result<Vec<_>, String>>()?;
    let load = Table::from_iter([
        ("kind".to_owned(), Value::String("journal".to_owned())),
        ("files".to_owned(), Value::Array(files)),
    ]);
    Ok(Value::Array(vec![Value::Table(load)]))
}

fn unreadable(path: &Path, error: &std::io::Error) -> ScenarioError {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut names: Vec<String> = fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.retain(|name| name.ends_with(".toml"));
    names.sort();
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let hint = nearest(&name, names.iter().map(String::as_str))
        .map_or_else(String::new, |near| format!("; did you mean {}?", folder.join(near).display()));
    ScenarioError::new(path, format!("cannot be read: {error}{hint}"))
}

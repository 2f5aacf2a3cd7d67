//! Files of GPUs, links, disks and models.
//!
//! Owns finding and reading them: a bare name is `<name>.toml` in `hw/` or `models/` of a library folder, anything with
//! a separator or an extension is a path. What the values mean is the business of [`pd_core::cost`]; each file says by
//! `kind` what it is, so that a link is never taken for a GPU.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pd_core::cost::{Cost, CostError, Disk, Hardware, Link, Model};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::Spanned;

/// A folder with `hw/` and `models/`.
#[derive(Clone, Debug)]
pub struct Library {
    root: PathBuf,
    /// Where relative paths start.
    base: PathBuf,
    kept: Kept,
}

/// What has been read once and for all, by name.
#[derive(Clone, Debug, Default)]
struct Kept {
    gpus: BTreeMap<String, Hardware>,
    links: BTreeMap<String, Link>,
    disks: BTreeMap<String, Disk>,
    models: BTreeMap<String, Model>,
}

impl Library {
    /// The library in `root`, for instance `scenarios`. Relative paths start in the working directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), base: PathBuf::new(), kept: Kept::default() }
    }

    /// The library that a file in `folder` uses: that of the nearest folder upwards, or else of a checkout that is the
    /// working directory. Relative paths start in `folder`.
    ///
    /// # Errors
    /// If there is none.
    pub fn of_folder(folder: &Path) -> Result<Self, LoadError> {
        // As the user wrote it as far as that goes, then in full: a bare file name has no folders to go up.
        let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let full = std::path::absolute(here).unwrap_or_else(|_| here.to_path_buf());
        let checkout = Path::new("scenarios");
        let has_library = |root: &&Path| root.join(Kind::Gpu.folder()).is_dir();
        folder
            .ancestors()
            .chain(full.ancestors())
            .chain([checkout])
            .find(has_library)
            .map(|root| Self { root: root.to_path_buf(), base: folder.to_path_buf(), kept: Kept::default() })
            .ok_or_else(|| LoadError::NoLibrary { folder: full.display().to_string() })
    }

    /// The same library, read completely: for many worlds in a row, which then touch no file of it.
    ///
    /// # Errors
    /// The first file that is wrong.
    pub fn in_memory(mut self) -> Result<Self, LoadError> {
        let mut kept = Kept::default();
        for name in self.names(Kind::Gpu)? {
            kept.gpus.insert(name.clone(), self.gpu(&name)?);
        }
        for name in self.names(Kind::Link)? {
            kept.links.insert(name.clone(), self.link(&name)?);
        }
        for name in self.names(Kind::Disk)? {
            kept.disks.insert(name.clone(), self.disk(&name)?);
        }
        for name in self.names(Kind::Model)? {
            kept.models.insert(name.clone(), self.model(&name)?);
        }
        self.kept = kept;
        Ok(self)
    }

    /// A GPU by name or path.
    pub fn gpu(&self, name: &str) -> Result<Hardware, LoadError> {
        match self.kept.gpus.get(name) {
            Some(kept) => Ok(kept.clone()),
            None => self.load(name, "hw", Kind::Gpu),
        }
    }

    /// A link by name or path.
    pub fn link(&self, name: &str) -> Result<Link, LoadError> {
        match self.kept.links.get(name) {
            Some(kept) => Ok(kept.clone()),
            None => self.load(name, "hw", Kind::Link),
        }
    }

    /// A disk by name or path.
    pub fn disk(&self, name: &str) -> Result<Disk, LoadError> {
        match self.kept.disks.get(name) {
            Some(kept) => Ok(kept.clone()),
            None => self.load(name, "hw", Kind::Disk),
        }
    }

    /// A model by name or path.
    pub fn model(&self, name: &str) -> Result<Model, LoadError> {
        match self.kept.models.get(name) {
            Some(kept) => Ok(kept.clone()),
            None => self.load(name, "models", Kind::Model),
        }
    }

    /// A model on `tp` GPUs, both by name or path.
    pub fn cost(&self, gpu: &str, model: &str, tp: u32) -> Result<Cost, LoadError> {
        let (hardware, shape) = (self.gpu(gpu)?, self.model(model)?);
        Cost::new(&hardware, &shape, tp).map_err(|error| LoadError::Impossible {
            gpu: gpu.to_owned(),
            model: model.to_owned(),
            error,
        })
    }

    /// The names of a kind, in order; files that do not parse far enough to say their kind are errors.
    pub fn names(&self, kind: Kind) -> Result<Vec<String>, LoadError> {
        let mut names = Vec::new();
        for name in list(&self.root.join(kind.folder()))? {
            let path = self.root.join(kind.folder()).join(format!("{name}.toml"));
            if head(&path, &read(&path)?)?.kind.into_inner() == kind {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn load<T: DeserializeOwned>(&self, name: &str, folder: &str, kind: Kind) -> Result<T, LoadError> {
        let is_path = name.contains(['/', '\\']) || Path::new(name).extension().is_some_and(|end| end == "toml");
        let path = if is_path { self.base.join(name) } else { self.root.join(folder).join(format!("{name}.toml")) };
        let text = match read(&path) {
            Err(LoadError::Io { error, .. }) if !is_path && error.kind() == io::ErrorKind::NotFound => {
                return Err(LoadError::unknown(name, &self.root.join(folder)));
            }
            other => other?,
        };
        parse(&path, &text, kind)
    }
}

/// What a file describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A GPU with its host constants.
    Gpu,
    /// A link between two memories.
    Link,
    /// A disk or another store.
    Disk,
    /// The shape of a model.
    Model,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::Gpu | Self::Link | Self::Disk => "hw",
            Self::Model => "models",
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Link => "link",
            Self::Disk => "disk",
            Self::Model => "model",
        }
    }
}

/// The text of a file: a line of `about` as its comment, the kind, the values.
///
/// # Errors
/// If a value is larger than TOML's integers.
pub fn to_toml<T: Serialize>(kind: Kind, about: &str, values: &T) -> Result<String, toml::ser::Error> {
    let values = toml::to_string(values)?;
    Ok(format!("# {about}\nkind = \"{}\"\n{values}", kind.word()))
}

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no folder of GPUs, links, disks and models.
    #[error(
        "neither {folder} nor a folder above it has the library, folders hw/ and models/; copy those of pd's scenarios"
    )]
    NoLibrary {
        /// Where the search began.
        folder: String,
    },
    /// No file has that name.
    #[error("no {name}.toml in {folder}{}", hint(nearest.as_deref()))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        folder: String,
        /// The existing name that resembles it most.
        nearest: Option<String>,
    },
    /// The file cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        error: io::Error,
    },
    /// The file says something wrong.
    #[error("{path}:{line}: {message}")]
    Parse {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong with the line.
        message: String,
    },
    /// The file describes something else.
    #[error("{path}:{line}: is a {have}, expected a {want}")]
    Kind {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What the file says it is.
        have: &'static str,
        /// What it has to be here.
        want: &'static str,
    },
    /// The model does not work on the GPU.
    #[error("{model} on {gpu}: {error}")]
    Impossible {
        /// As asked for.
        gpu: String,
        /// As asked for.
        model: String,
        /// Which field is to blame.
        error: CostError,
    },
}

impl LoadError {
    fn unknown(name: &str, folder: &Path) -> Self {
        // A folder that cannot be listed has no names to offer; the error is about the name either way.
        let names = list(folder).unwrap_or_default();
        let nearest = names
            .into_iter()
            .map(|candidate| (strsim::damerau_levenshtein(name, &candidate), candidate))
            .min()
            .filter(|(distance, candidate)| *distance <= candidate.len().max(name.len()) / 2)
            .map(|(_, candidate)| candidate);
        Self::Unknown { name: name.to_owned(), folder: shown(folder), nearest }
    }
}

#[derive(Deserialize)]
struct Head {
    kind: Spanned<Kind>,
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str, want: Kind) -> Result<T, LoadError> {
    let kind = head(path, text)?.kind;
    let (span, have) = (kind.span(), kind.into_inner());
    if have != want {
        let (path, line) = (shown(path), line_of(text, span.start));
        return Err(LoadError::Kind { path, line, have: have.word(), want: want.word() });
    }
    // The values know nothing of `kind` and refuse unknown keys. Blanking its line keeps the numbers of all others.
    let start = text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[span.end..].find('\n').map_or(text.len(), |newline| span.end + newline);
    let rest = format!("{}{}{}", &text[..start], " ".repeat(end - start), &text[end..]);
    toml::from_str(&rest).map_err(|error| parse_error(path, text, &error))
}

fn head(path: &Path, text: &str) -> Result<Head, LoadError> {
    toml::from_str(text).map_err(|error| parse_error(path, text, &error))
}

fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> LoadError {
    let line = error.span().map_or(1, |span| line_of(text, span.start));
    LoadError::Parse { path: shown(path), line, message: error.message().to_owned() }
}

fn read(path: &Path) -> Result<String, LoadError> {
    fs::read_to_string(path).map_err(|error| LoadError::Io { path: shown(path), error })
}

/// The path in full: where a library lies does not follow from where the user is.
fn shown(path: &Path) -> String {
    std::path::absolute(path).map_or_else(|_| path.display().to_string(), |full| full.display().to_string())
}

fn list(folder: &Path) -> Result<Vec<String>, LoadError> {
    let failed = |error| LoadError::Io { path: shown(folder), error };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|end| end == "toml") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

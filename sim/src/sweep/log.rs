//! Runs of a sweep in a file of JSON lines, so that a sweep that was stopped goes on where it was.
//!
//! ```text
//! {"pd_sweep":1,"scenario":"NAME","build":"...","key":"...","run":{"seed":1,"hash":...,"values":{...},"broken":[]}}
//! ```
//! 1. The key is a fingerprint of the world (all of its setup: hardware, load, seed), so a changed point is run again
//!    whatever it is called.
//! 2. A line of another build is not used: its code may do something else.
//! 3. A line of another scenario is refused: the file is probably the wrong one.
//! 4. A last line without its end was being written when the power went: it is cut off.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use pd_core::codec::Sink;
use pd_core::digest::Digest;
use serde::{Deserialize, Serialize};

use super::Run;
use crate::setup::Setup;

/// A file of runs.
#[derive(Debug)]
pub struct Log {
    file: File,
    scenario: String,
    build: String,
    known: BTreeMap<u64, Run>,
    others: usize,
    is_torn: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    pd_sweep: u32,
    scenario: String,
    build: String,
    key: String,
    run: Run,
}

/// Why a file of runs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A line in it is no run.
    #[error("{}:{line}: is no run of a sweep ({problem}); remove the line, or name another file", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A line in it is of another scenario.
    #[error(
        "{}:{line}: is a run of scenario \"{found}\", this is \"{want}\"; name another file for this one",
        path.display()
    )]
    Scenario {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The scenario of the line.
        found: String,
        /// The scenario that is to be run.
        want: String,
    },
}

impl Log {
    /// Opens a file, or begins it. `build` tells apart programs that may behave differently.
    ///
    /// # Errors
    /// As [`LogError`] says.
    pub fn open(path: &Path, scenario: &str, build: &str) -> Result<Self, LogError> {
        let io_error = |error| LogError::Io { path: path.to_path_buf(), error };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io_error)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io_error)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let is_torn = whole < bytes.len();
        if is_torn {
            file.set_len(whole as u64).map_err(io_error)?;
        }
        file.seek(SeekFrom::Start(whole as u64)).map_err(io_error)?;
        let (scenario, build) = (scenario.to_owned(), build.to_owned());
        let mut log = Self { file, scenario, build, known: BTreeMap::new(), others: 0, is_torn };
        let lines = bytes[..whole].split(|byte| *byte == b'\n').zip(1..).filter(|(text, _)| !text.is_empty());
        for (text, number) in lines {
            let problem = |problem| LogError::Line { path: path.to_path_buf(), line: number, problem };
            let line: Line = serde_json::from_slice(text).map_err(|error| problem(error.to_string()))?;
            if line.pd_sweep != FORMAT {
                return Err(problem(format!("format {}, this program writes {FORMAT}", line.pd_sweep)));
            }
            if line.scenario != log.scenario {
                let (path, want) = (path.to_path_buf(), log.scenario);
                return Err(LogError::Scenario { path, line: number, found: line.scenario, want });
            }
            let key = u64::from_str_radix(&line.key, 16).map_err(|error| problem(format!("key: {error}")))?;
            if line.build == log.build {
                log.known.insert(key, line.run);
            } else {
                log.others += 1;
            }
        }
        Ok(log)
    }

    /// Runs of this build, by key.
    #[must_use]
    pub const fn known(&self) -> &BTreeMap<u64, Run> {
        &self.known
    }

    /// Lines of other builds.
    #[must_use]
    pub const fn others(&self) -> usize {
        self.others
    }

    /// True if a last line without its end was cut off.
    #[must_use]
    pub const fn is_torn(&self) -> bool {
        self.is_torn
    }

    /// Adds a run; it is handed to the system before this returns.
    ///
    /// # Errors
    /// That of the system.
    pub fn append(&mut self, key: u64, run: &Run) -> io::Result<()> {
        let line = Line {
            pd_sweep: FORMAT,
            scenario: self.scenario.clone(),
            build: self.build.clone(),
            key: format!("{key:016x}"),
            run: run.clone(),
        };
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes())
    }
}

/// A fingerprint of a world before it has begun: workers, hardware, links, loads, script and seed.
#[must_use]
pub fn key(setup: &Setup) -> u64 {
    let mut print = Fingerprint(Digest::new());
    // What is printed of a value is all of it, and it is derived, so that nothing can be left out by mistake.
    write!(print, "{setup:?}").expect("a digest takes everything");
    print.0.finish()
}

struct Fingerprint(Digest);

impl fmt::Write for Fingerprint {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.bytes(text.as_bytes());
        Ok(())
    }
}

/// Version of the lines.
const FORMAT: u32 = 1;

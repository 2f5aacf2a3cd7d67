//! Workers that are listed in a file: read, checked, and compared with what was there before.
//!
//! ```toml
//! [[worker]]
//! url = "http://10.0.0.1:30000"
//! mode = "prefill"          # prefill, decode or unified
//! bootstrap_port = 8998     # prefill only
//! ```
//! A file that ends in `.json` holds the same as a list, or as `{"worker": [...]}`. A file that makes no sense changes
//! nothing: the workers stay as they are, and the error says what to mend.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use pd_core::config::Mode;

use super::config::Spec;

/// Why a list of workers is not taken.
#[derive(Debug, Error)]
#[error("{}: {why}", path.display())]
pub struct DiscoveryError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// A file that is looked at again and again.
#[derive(Debug)]
pub(super) struct Watch {
    path: PathBuf,
    last: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    worker: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    url: String,
    #[serde(default)]
    mode: Mode,
    bootstrap_port: Option<u16>,
}

impl Watch {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, last: None }
    }

    /// The list, if the file has changed since the last look. An error is told once for each state of the file.
    pub(super) async fn look(&mut self) -> Result<Option<Vec<Spec>>, DiscoveryError> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let fail = |why: String| DiscoveryError { path: self.path.clone(), why };
        let text = match read {
            Ok(Ok(text)) => text,
            Ok(Err(why)) => {
                // An unreadable file is told of once, and read anew when it is back.
                let marker = format!("\0{why}");
                if self.last.as_ref() == Some(&marker) {
                    return Ok(None);
                }
                let error = fail(why);
                self.last = Some(marker);
                return Err(error);
            }
            Err(_) => return Err(fail("the reading thread was stopped".into())),
        };
        if self.last.as_ref() == Some(&text) {
            return Ok(None);
        }
        let parsed = parse(&text, self.path.extension().is_some_and(|extension| extension == "json"));
        self.last = Some(text);
        parsed.map(Some).map_err(|why| DiscoveryError { path: self.path.clone(), why })
    }
}

fn read(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > FILE_BYTES_MAX {
        return Err(format!("it has {length} bytes; a list of workers has at most {FILE_BYTES_MAX}"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// Parses a list of workers.
pub(super) fn parse(text: &str, is_json: bool) -> Result<Vec<Spec>, String> {
    let entries = if is_json {
        let value: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if value.is_array() {
            serde_json::from_value::<Vec<Entry>>(value).map_err(|error| error.to_string())?
        } else {
            serde_json::from_value::<List>(value).map_err(|error| error.to_string())?.worker
        }
    } else {
        toml::from_str::<List>(text).map_err(|error| error.to_string())?.worker
    };
    let mut specs: Vec<Spec> = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let fail = |why: String| format!("worker {index} ({:?}): {why}", entry.url);
        let mut spec = Spec::parse(&entry.url, entry.mode).map_err(fail)?;
        if let Some(port) = entry.bootstrap_port {
            if entry.mode != Mode::Prefill {
                return Err(fail("only prefill workers have a bootstrap_port".into()));
            }
            if port == 0 {
                return Err(fail("bootstrap_port must be from 1 to 65535".into()));
            }
            spec.bootstrap_port = Some(port);
        }
        if specs.iter().any(|other| other.target == spec.target) {
            return Err(fail("this address is listed twice".into()));
        }
        specs.push(spec);
    }
    Ok(specs)
}

/// Room for about ten thousand workers.
const FILE_BYTES_MAX: u64 = 1 << 20;

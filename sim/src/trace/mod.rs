//! Recorded workloads: who asked when, with which prompt, for how long an answer.
//!
//! Owns the file formats and the statistics of what is in them; knows nothing of pages, seeds of content or load
//! generation (`crate::load` replays a trace). Bytes of a file can never cause a panic; what is wrong is said with
//! file, line and field.
//!
//! 1. Rows are in order of `at_ns`; the first of a real trace is at or near 0.
//! 2. The block size belongs to the trace, never to the simulator.
//! 3. `Content::Blocks` names exactly the blocks that the prompt touches, the last one perhaps in part.

mod azure;
mod bailian;
mod columns;
mod mooncake;
mod stats;
mod tokens;
mod write;

use std::io::Read;
use std::path::Path;
use std::{fs, io};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use thiserror::Error;

use pd_core::rng::Rng;

pub use stats::{Hits, Spread, Stats, stats};
pub use write::Loss;

/// A workload as it was recorded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trace {
    /// The requests, in order of arrival.
    pub rows: Vec<Row>,
}

/// One recorded request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Arrival in nanoseconds since the start of the trace.
    pub at_ns: u64,
    /// Tokens of the prompt, at least 1.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// What is known of the tokens.
    pub content: Content,
}

/// What a trace knows of the tokens of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Ids of blocks of tokens; the same id means the same tokens behind the same prefix.
    Blocks {
        /// Tokens per block.
        block: u32,
        /// One id for each block the prompt touches.
        ids: Vec<u64>,
    },
    /// The tokens themselves.
    Tokens {
        /// Those of the prompt.
        prompt: Vec<u32>,
        /// Those of the answer; empty if not recorded.
        output: Vec<u32>,
    },
    /// Nothing: the row shares no prefix with any other.
    Opaque,
}

/// How a file is to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Mooncake's JSON lines: `timestamp` (ms), `input_length`, `output_length`, `hash_ids`.
    Mooncake,
    /// Azure's CSV: `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`.
    Azure,
    /// JSON lines with token ids: `input_toks`, `output_toks`, `arrival_time_ns`, `input_tok_ids`, `output_tok_ids`.
    Tokens,
    /// Alibaba's qwen-bailian JSON lines: `timestamp` (s), `input_length`, `output_length`, `hash_ids` of 16 tokens.
    Bailian,
    /// BurstGPT's CSV: `Timestamp` (s), `Request tokens`, `Response tokens` among other columns.
    Burstgpt,
    /// Vidur's CSV: `arrived_at` (s), `num_prefill_tokens`, `num_decode_tokens`.
    Vidur,
}

/// Why a trace could not be read.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file is not there, or may not be read.
    #[error("cannot read trace {file}: {why}{hint}")]
    File {
        /// The path as given.
        file: String,
        /// What the system says.
        why: io::Error,
        /// A file of nearly this name, as a question.
        hint: String,
    },
    /// The compressed data is damaged.
    #[error("{file}: damaged gzip data ({why})")]
    Gzip {
        /// The path as given.
        file: String,
        /// What the decoder says.
        why: io::Error,
    },
    /// The file is larger than [`TRACE_BYTES_MAX`].
    #[error("{file}: more than {TRACE_BYTES_MAX} bytes of text")]
    Size {
        /// The path as given.
        file: String,
    },
    /// Something in a line is wrong.
    #[error("{file}:{line}: {problem}")]
    Line {
        /// The path as given.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What and where.
        problem: Problem,
    },
}

/// What is wrong with a line.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{}: {found}; expected {expected}", if field.is_empty() { "the line" } else { field })]
pub struct Problem {
    /// The field, or empty for the line as a whole.
    pub field: String,
    /// What is there.
    pub found: String,
    /// What should be there.
    pub expected: String,
}

impl Trace {
    /// Reads a file, compressed or not.
    ///
    /// `block` is the block size of a Mooncake or bailian file, 512 or 16 if none is given; other formats have none.
    ///
    /// # Errors
    /// As [`TraceError`] says.
    pub fn read(path: &Path, format: Format, block: Option<u32>) -> Result<Self, TraceError> {
        let file = path.display().to_string();
        let bytes = fs::read(path).map_err(|why| TraceError::File { hint: hint(path), file: file.clone(), why })?;
        Self::parse(&file, &bytes, format, block)
    }

    /// Reads the bytes of a file; `file` is its name in errors, and gzip data is told by its first bytes or by the
    /// name's end.
    ///
    /// # Errors
    /// As [`TraceError`] says.
    pub fn parse(file: &str, bytes: &[u8], format: Format, block: Option<u32>) -> Result<Self, TraceError> {
        let unpacked;
        let text = if bytes.starts_with(&[0x1f, 0x8b]) || file.ends_with(".gz") {
            unpacked = unpack(file, bytes)?;
            &unpacked
        } else {
            bytes
        };
        let rows = match format {
            Format::Mooncake => mooncake::rows(text, block.unwrap_or(mooncake::BLOCK_TOKENS)),
            Format::Azure => azure::rows(text),
            Format::Tokens => tokens::rows(text),
            Format::Bailian => bailian::rows(text, block.unwrap_or(bailian::BLOCK_TOKENS)),
            Format::Burstgpt => columns::BURSTGPT.rows(text),
            Format::Vidur => columns::VIDUR.rows(text),
        };
        let mut rows = rows.map_err(|(line, problem)| TraceError::Line { file: file.into(), line, problem })?;
        rows.sort_by_key(|row| row.at_ns);
        Ok(Self { rows })
    }

    /// Spreads arrivals that were recorded in buckets of 3 s uniformly over their bucket, keeping their order.
    ///
    /// Mooncake's published traces are quantised so (to within 3 ms of a multiple of 3 s). A trace that has an arrival
    /// anywhere else was not, and stays as it is: then the result is `false`.
    pub fn jitter(&mut self, rng: &mut Rng) -> bool {
        let bucket = |row: &Row| (row.at_ns + BUCKET_NS / 2) / BUCKET_NS * BUCKET_NS;
        if self.rows.iter().any(|row| row.at_ns.abs_diff(bucket(row)) > BUCKET_SLACK_NS) {
            return false;
        }
        for rows in self.rows.chunk_by_mut(|a, b| bucket(a) == bucket(b)) {
            // Sorted draws go to the rows in order; how often the stream is drawn depends on the trace only.
            let mut offsets: Vec<u64> = rows.iter().map(|_| rng.below(BUCKET_NS)).collect();
            offsets.sort_unstable();
            for (row, offset) in rows.iter_mut().zip(offsets) {
                row.at_ns = bucket(row) + offset;
            }
        }
        true
    }
}

/// Width of the buckets that [`Trace::jitter`] fills.
pub const BUCKET_NS: u64 = 3_000_000_000;
/// How far from a multiple of [`BUCKET_NS`] a quantised arrival may be (seen: 3 ms).
const BUCKET_SLACK_NS: u64 = 10_000_000;
/// Largest trace, unpacked.
pub const TRACE_BYTES_MAX: u64 = 4 << 30;
/// Longest prompt or answer in a trace or a load; bounds what one row can make a builder of prompts allocate.
pub const TOKENS_MAX: u32 = 1 << 24;
/// Latest arrival: 100 years, so that sums of times stay far from the end of `u64`.
pub const AT_NS_MAX: u64 = 100 * 366 * 86_400 * 1_000_000_000;

/// The rows of a format, or the line and what is wrong with it.
type Rows = Result<Vec<Row>, (usize, Problem)>;

fn unpack(file: &str, bytes: &[u8]) -> Result<Vec<u8>, TraceError> {
    let mut text = Vec::with_capacity(bytes.len() * 4);
    let mut source = MultiGzDecoder::new(bytes).take(TRACE_BYTES_MAX + 1);
    source.read_to_end(&mut text).map_err(|why| TraceError::Gzip { file: file.into(), why })?;
    if text.len() as u64 > TRACE_BYTES_MAX {
        return Err(TraceError::Size { file: file.into() });
    }
    Ok(text)
}

/// "; did you mean x?" with the file in the same directory whose name is nearest.
fn hint(path: &Path) -> String {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let wanted = path.file_name().unwrap_or_default().to_string_lossy();
    let Ok(entries) = fs::read_dir(directory) else {
        return format!("; there is no directory {}", directory.display());
    };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    let nearest = names.map(|name| (strsim::damerau_levenshtein(&wanted, &name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= wanted.len().max(6) / 2 => {
            format!("; did you mean {}?", directory.join(name).display())
        }
        Some(_) | None => String::new(),
    }
}

/// The lines that hold something, counted from 1, without their ends.
fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).enumerate();
    lines.filter(|(_, line)| !line.is_empty()).map(|(index, line)| (index + 1, line))
}

/// Reads a line of JSON. The fast path is typed and stops at the first error; only then is the line read again to find
/// out which of `fields` it was.
fn json<'a, T: Deserialize<'a>>(line: &'a [u8], fields: &[(&str, Kind, Need)]) -> Result<T, Problem> {
    serde_json::from_slice(line).map_err(|why| diagnose(line, fields, &why))
}

/// What a field of a JSON line has to be.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Integer { max: u64 },
    Integers { max: u64 },
}

/// Whether a field may be left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Need {
    Must,
    May,
}

fn diagnose(line: &[u8], fields: &[(&str, Kind, Need)], why: &serde_json::Error) -> Problem {
    let names: Vec<&str> = fields.iter().map(|(name, _, _)| *name).collect();
    let whole = |found: String| Problem {
        field: String::new(),
        found,
        expected: format!("a JSON object with {}", names.join(", ")),
    };
    let object = match serde_json::from_slice::<serde_json::Value>(line) {
        Ok(serde_json::Value::Object(object)) => object,
        Ok(other) => return whole(format!("is {}", excerpt(&other.to_string()))),
        Err(why) => return whole(format!("is not JSON ({})", why.to_string().replace("line 1 ", ""))),
    };
    for (name, kind, need) in fields {
        let fits = |value: &serde_json::Value, max: u64| value.as_u64().is_some_and(|value| value <= max);
        let (wrong, expected) = match (object.get(*name), kind) {
            (None, _) if *need == Need::May => continue,
            (None | Some(serde_json::Value::Null), _) => ("missing".into(), kind.to_string()),
            (Some(value), Kind::Integer { max }) if !fits(value, *max) => {
                (format!("is {}", excerpt(&value.to_string())), kind.to_string())
            }
            (Some(value), Kind::Integers { max }) => {
                let Some(items) = value.as_array() else {
                    return Problem {
                        field: (*name).into(),
                        found: format!("is {}", excerpt(&value.to_string())),
                        expected: kind.to_string(),
                    };
                };
                match items.iter().position(|item| !fits(item, *max)) {
                    None => continue,
                    Some(at) => {
                        (format!("item {at} is {}", excerpt(&items[at].to_string())), format!("integers up to {max}"))
                    }
                }
            }
            (Some(_), Kind::Integer { .. }) => continue,
        };
        return Problem { field: (*name).into(), found: wrong, expected };
    }
    whole(format!("cannot be read ({why})"))
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer { max } => write!(f, "an integer up to {max}"),
            Self::Integers { max } => write!(f, "a list of integers up to {max}"),
        }
    }
}

/// Enough of a value to recognise it.
fn excerpt(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into(),
    }
}

/// Checks a count of tokens.
fn tokens_in(field: &str, count: u64, least: u32) -> Result<u32, Problem> {
    match u32::try_from(count) {
        Ok(count) if (least..=TOKENS_MAX).contains(&count) => Ok(count),
        Ok(_) | Err(_) => Err(Problem {
            field: field.into(),
            found: format!("is {count}"),
            expected: format!("{least} to {TOKENS_MAX} tokens"),
        }),
    }
}

/// Checks that there is an id for each block that a prompt touches.
fn blocks(ids: Vec<u64>, prompt_tokens: u32, block: u32) -> Result<Content, Problem> {
    let block = block.max(1);
    let touched = prompt_tokens.div_ceil(block);
    if ids.len() != touched as usize {
        return Err(Problem {
            field: "hash_ids".into(),
            found: format!("has {} ids", ids.len()),
            expected: format!("{touched}, which is input_length {prompt_tokens} in blocks of {block}"),
        });
    }
    Ok(Content::Blocks { block, ids })
}

/// Checks an arrival given in units of `unit_ns`.
fn at_ns(field: &str, at: u64, unit_ns: u64) -> Result<u64, Problem> {
    match at.checked_mul(unit_ns) {
        Some(at_ns) if at_ns <= AT_NS_MAX => Ok(at_ns),
        Some(_) | None => Err(Problem {
            field: field.into(),
            found: format!("is {at}"),
            expected: format!("at most {}, which is 100 years", AT_NS_MAX / unit_ns),
        }),
    }
}

#[cfg(test)]
mod tests;

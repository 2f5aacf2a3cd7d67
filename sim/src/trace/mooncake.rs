//! Mooncake's traces (FAST'25): JSON lines of arrival, lengths and the ids of the prompt's blocks.

use serde::Deserialize;

use super::{AT_NS_MAX, Kind, Need, Problem, Row, Rows, TOKENS_MAX, at_ns, blocks, json, lines, tokens_in};

/// Tokens per block in the published files.
pub(super) const BLOCK_TOKENS: u32 = 512;

/// Unknown fields are let pass: later releases add some (`session_id`).
#[derive(Deserialize)]
struct Line {
    timestamp: u64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

const FIELDS: [(&str, Kind, Need); 4] = [
    ("timestamp", Kind::Integer { max: AT_NS_MAX / NS_PER_MS }, Need::Must),
    ("input_length", Kind::Integer { max: TOKENS_MAX as u64 }, Need::Must),
    ("output_length", Kind::Integer { max: TOKENS_MAX as u64 }, Need::Must),
    ("hash_ids", Kind::Integers { max: u64::MAX }, Need::Must),
];

const NS_PER_MS: u64 = 1_000_000;

pub(super) fn rows(text: &[u8], block: u32) -> Rows {
    lines(text).map(|(number, line)| row(line, block).map_err(|problem| (number, problem))).collect()
}

fn row(line: &[u8], block: u32) -> Result<Row, Problem> {
    let line: Line = json(line, &FIELDS)?;
    let prompt_tokens = tokens_in("input_length", line.input_length, 1)?;
    let content = blocks(line.hash_ids, prompt_tokens, block)?;
    Ok(Row {
        at_ns: at_ns("timestamp", line.timestamp, NS_PER_MS)?,
        prompt_tokens,
        output_tokens: tokens_in("output_length", line.output_length, 0)?,
        content,
    })
}

//! Alibaba's qwen-bailian usage traces: JSON lines of arrival in seconds, lengths and the ids of blocks of 16 tokens.

use serde::Deserialize;

use super::{AT_NS_MAX, Kind, Need, Problem, Row, Rows, TOKENS_MAX, blocks, json, lines, tokens_in};

/// Tokens per block in the published files.
pub(super) const BLOCK_TOKENS: u32 = 16;

/// Fields that say who asked and in which chat are let pass: the ids tell what is shared.
#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

const FIELDS: [(&str, Kind, Need); 3] = [
    ("input_length", Kind::Integer { max: TOKENS_MAX as u64 }, Need::Must),
    ("output_length", Kind::Integer { max: TOKENS_MAX as u64 }, Need::Must),
    ("hash_ids", Kind::Integers { max: u64::MAX }, Need::Must),
];

pub(super) fn rows(text: &[u8], block: u32) -> Rows {
    lines(text).map(|(number, line)| row(line, block).map_err(|problem| (number, problem))).collect()
}

fn row(line: &[u8], block: u32) -> Result<Row, Problem> {
    let line: Line = json(line, &FIELDS)?;
    let prompt_tokens = tokens_in("input_length", line.input_length, 1)?;
    let content = blocks(line.hash_ids, prompt_tokens, block)?;
    let at_ns = line.timestamp * 1e9;
    if !(0.0..=AT_NS_MAX as f64).contains(&at_ns) {
        return Err(Problem {
            field: "timestamp".into(),
            found: format!("is {}", line.timestamp),
            expected: "seconds from 0 to 100 years".into(),
        });
    }
    Ok(Row {
        at_ns: at_ns.round() as u64,
        prompt_tokens,
        output_tokens: tokens_in("output_length", line.output_length, 0)?,
        content,
    })
}

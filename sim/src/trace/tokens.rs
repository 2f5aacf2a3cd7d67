//! JSON lines with real token ids, as LLMServingSim publishes ShareGPT. Arrivals, answers and the two counts may be
//! missing; counts that are there must agree with the lists.

use serde::Deserialize;

use super::{AT_NS_MAX, Content, Kind, Need, Problem, Row, Rows, TOKENS_MAX, at_ns, json, lines, tokens_in};

#[derive(Deserialize)]
struct Line {
    input_toks: Option<u64>,
    output_toks: Option<u64>,
    arrival_time_ns: Option<u64>,
    input_tok_ids: Vec<u32>,
    output_tok_ids: Option<Vec<u32>>,
}

const FIELDS: [(&str, Kind, Need); 5] = [
    ("input_toks", Kind::Integer { max: TOKENS_MAX as u64 }, Need::May),
    ("output_toks", Kind::Integer { max: TOKENS_MAX as u64 }, Need::May),
    ("arrival_time_ns", Kind::Integer { max: AT_NS_MAX }, Need::May),
    ("input_tok_ids", Kind::Integers { max: u32::MAX as u64 }, Need::Must),
    ("output_tok_ids", Kind::Integers { max: u32::MAX as u64 }, Need::May),
];

pub(super) fn rows(text: &[u8]) -> Rows {
    lines(text).map(|(number, line)| row(line).map_err(|problem| (number, problem))).collect()
}

fn row(line: &[u8]) -> Result<Row, Problem> {
    let line: Line = json(line, &FIELDS)?;
    let prompt_tokens = tokens_in("input_tok_ids", line.input_tok_ids.len() as u64, 1)?;
    agree("input_toks", line.input_toks, "input_tok_ids", prompt_tokens)?;
    let output_tokens = match &line.output_tok_ids {
        Some(ids) => {
            let count = tokens_in("output_tok_ids", ids.len() as u64, 0)?;
            agree("output_toks", line.output_toks, "output_tok_ids", count)?;
            count
        }
        None => match line.output_toks {
            Some(count) => tokens_in("output_toks", count, 0)?,
            None => {
                return Err(Problem {
                    field: "output_toks".into(),
                    found: "missing".into(),
                    expected: "the length of the answer here, or its tokens in output_tok_ids".into(),
                });
            }
        },
    };
    Ok(Row {
        at_ns: at_ns("arrival_time_ns", line.arrival_time_ns.unwrap_or(0), 1)?,
        prompt_tokens,
        output_tokens,
        content: Content::Tokens { prompt: line.input_tok_ids, output: line.output_tok_ids.unwrap_or_default() },
    })
}

fn agree(field: &str, count: Option<u64>, list: &str, length: u32) -> Result<(), Problem> {
    match count {
        Some(count) if count != u64::from(length) => Err(Problem {
            field: field.into(),
            found: format!("is {count}"),
            expected: format!("{length}, the length of {list}"),
        }),
        Some(_) | None => Ok(()),
    }
}

//! Azure's LLM inference traces of 2023: CSV of arrival and lengths, without content.

use super::{AT_NS_MAX, Content, Problem, Row, Rows, lines, tokens_in};

const HEADER: [&str; 3] = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];

pub(super) fn rows(text: &[u8]) -> Rows {
    let mut lines = lines(text);
    let Some((number, header)) = lines.next() else {
        return Ok(Vec::new());
    };
    let header = cells(header).map_err(|problem| (number, problem))?;
    if header != HEADER {
        let problem = Problem {
            field: "header".into(),
            found: format!("is \"{}\"", super::excerpt(&header.join(","))),
            expected: format!("\"{}\"", HEADER.join(",")),
        };
        return Err((number, problem));
    }
    let mut rows =
        lines.map(|(number, line)| row(line).map_err(|problem| (number, problem))).collect::<Result<Vec<_>, _>>()?;
    let first = rows.iter().map(|row| row.at_ns).min().unwrap_or(0);
    for row in &mut rows {
        row.at_ns -= first;
    }
    Ok(rows)
}

fn cells(line: &[u8]) -> Result<[&str; 3], Problem> {
    let whole = |found: String| Problem { field: String::new(), found, expected: HEADER.join(",") };
    let line = str::from_utf8(line).map_err(|_| whole("is not UTF-8".into()))?;
    let mut cells = line.split(',').map(str::trim);
    match (cells.next(), cells.next(), cells.next(), cells.next()) {
        (Some(a), Some(b), Some(c), None) => Ok([a, b, c]),
        _ => Err(whole(format!("has {} columns", line.split(',').count()))),
    }
}

fn row(line: &[u8]) -> Result<Row, Problem> {
    let [at, context, generated] = cells(line)?;
    let at_ns = timestamp(at).filter(|at_ns| *at_ns <= AT_NS_MAX).ok_or_else(|| Problem {
        field: HEADER[0].into(),
        found: format!("is \"{}\"", super::excerpt(at)),
        expected: "a time like 2023-11-16 18:15:46.680590".into(),
    })?;
    let count = |field: &str, text: &str| {
        let count = text.parse::<u64>().map_err(|_| Problem {
            field: field.into(),
            found: format!("is \"{}\"", super::excerpt(text)),
            expected: "a count of tokens".into(),
        })?;
        tokens_in(field, count, u32::from(field == HEADER[1]))
    };
    Ok(Row {
        at_ns,
        prompt_tokens: count(HEADER[1], context)?,
        output_tokens: count(HEADER[2], generated)?,
        content: Content::Opaque,
    })
}

/// Nanoseconds since 1970 of "YYYY-MM-DD hh:mm:ss[.fraction]", the fraction of up to nine digits.
fn timestamp(text: &str) -> Option<u64> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    let in_range = (1970..=2100).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !in_range || fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let fraction = digits(fraction)? * 10_u64.pow(9 - fraction.len() as u32);
    // Days since 1970 (Hinnant, "chrono-compatible low-level date algorithms"): years begin in March.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468;
    Some((days * 86_400 + hour * 3_600 + minute * 60 + second) * 1_000_000_000 + fraction)
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let numbers = [digits(parts.next()?)?, digits(parts.next()?)?, digits(parts.next()?)?];
    parts.next().is_none().then_some(numbers)
}

fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

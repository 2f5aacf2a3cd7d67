//! Traces in CSV whose columns are told by their names, without content: Vidur's and BurstGPT's.

use super::{AT_NS_MAX, Content, Problem, Row, Rows, excerpt, lines, tokens_in};

/// The columns of a format: arrival in seconds, tokens of the prompt, tokens of the answer.
pub(super) struct Columns(pub(super) [&'static str; 3]);

/// Vidur (MLSys'24): lengths and arrivals as its simulator reads them.
pub(super) const VIDUR: Columns = Columns(["arrived_at", "num_prefill_tokens", "num_decode_tokens"]);
/// BurstGPT (HPMLL/BurstGPT). Requests that failed have no answer and stay in: they were asked for.
pub(super) const BURSTGPT: Columns = Columns(["Timestamp", "Request tokens", "Response tokens"]);

impl Columns {
    pub(super) fn rows(&self, text: &[u8]) -> Rows {
        let mut lines = lines(text);
        let Some((number, header)) = lines.next() else { return Ok(Vec::new()) };
        let header = cells(header).map_err(|problem| (number, problem))?;
        let mut places = [0; 3];
        for (place, name) in places.iter_mut().zip(self.0) {
            *place = header.iter().position(|cell| cell == name).ok_or_else(|| {
                let found = format!("has \"{}\"", excerpt(&header.join(",")));
                (number, Problem { field: "header".into(), found, expected: format!("a column \"{name}\"") })
            })?;
        }
        let rows = lines.map(|(number, line)| self.row(line, places).map_err(|problem| (number, problem)));
        let mut rows = rows.collect::<Result<Vec<_>, _>>()?;
        let first = rows.iter().map(|row| row.at_ns).min().unwrap_or(0);
        for row in &mut rows {
            row.at_ns -= first;
        }
        Ok(rows)
    }

    fn row(&self, line: &[u8], places: [usize; 3]) -> Result<Row, Problem> {
        let cells = cells(line)?;
        let wrong = |column: usize, expected: &str| Problem {
            field: self.0[column].into(),
            found: cells.get(places[column]).map_or("missing".into(), |cell| format!("is \"{}\"", excerpt(cell))),
            expected: expected.into(),
        };
        let cell = |column: usize| cells.get(places[column]).map_or("", String::as_str);
        let count = |column: usize, least: u32| {
            let count = cell(column).parse().map_err(|_| wrong(column, "a count of tokens"))?;
            tokens_in(self.0[column], count, least)
        };
        let at_ns = seconds(cell(0)).filter(|at_ns| *at_ns <= AT_NS_MAX);
        Ok(Row {
            at_ns: at_ns.ok_or_else(|| wrong(0, "seconds, such as 12.5, of at most 100 years"))?,
            prompt_tokens: count(1, 1)?,
            output_tokens: count(2, 0)?,
            content: Content::Opaque,
        })
    }
}

/// The cells of one line; a cell in quotes may hold commas.
fn cells(line: &[u8]) -> Result<Vec<String>, Problem> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_reader(line);
    let record = reader.records().next().and_then(Result::ok).ok_or_else(|| Problem {
        field: String::new(),
        found: format!("is \"{}\"", excerpt(&String::from_utf8_lossy(line))),
        expected: "comma-separated values in UTF-8".into(),
    })?;
    Ok(record.iter().map(str::to_owned).collect())
}

/// Nanoseconds of decimal seconds; digits behind the ninth are dropped.
fn seconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_plain = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_plain(whole) || !is_plain(fraction) {
        return None;
    }
    let nanos: u64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)
}

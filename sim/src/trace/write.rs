//! Writes a trace in another format, and says what is lost on the way.

use std::io::{self, Write};

use serde_json::json;

use super::{Content, Format, Row, Trace, mooncake};

/// What a format cannot say of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Loss {
    /// Rows whose content is known here and not there.
    pub contents: u64,
    /// Rows whose arrival was rounded.
    pub arrivals: u64,
}

impl Trace {
    /// Writes all rows. Rows without content get block ids of their own where the format wants some: they share nothing.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, format: Format, out: &mut dyn Write) -> io::Result<Loss> {
        let mut loss = Loss::default();
        match format {
            Format::Azure => writeln!(out, "TIMESTAMP,ContextTokens,GeneratedTokens")?,
            Format::Vidur => writeln!(out, "arrived_at,num_prefill_tokens,num_decode_tokens")?,
            Format::Burstgpt => {
                writeln!(out, "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type")?;
            }
            Format::Mooncake | Format::Bailian | Format::Tokens => {}
        }
        let mut fresh = self.ids_max().wrapping_add(1);
        for row in &self.rows {
            let (input, output) = (row.prompt_tokens, row.output_tokens);
            let seconds = format!("{}.{:09}", row.at_ns / 1_000_000_000, row.at_ns % 1_000_000_000);
            match format {
                Format::Mooncake | Format::Bailian => {
                    let block = self.block(format);
                    let ids = row.ids(block, &mut fresh, &mut loss);
                    let line = if format == Format::Mooncake {
                        loss.arrivals += u64::from(row.at_ns % 1_000_000 > 0);
                        json!({"timestamp": row.at_ns / 1_000_000, "input_length": input, "output_length": output, "hash_ids": ids})
                    } else {
                        json!({"timestamp": row.at_ns as f64 / 1e9, "input_length": input, "output_length": output, "hash_ids": ids})
                    };
                    writeln!(out, "{line}")?;
                    continue;
                }
                Format::Tokens => {
                    let mut line = json!({"input_toks": input, "output_toks": output, "arrival_time_ns": row.at_ns});
                    if let Content::Tokens { prompt, output } = &row.content {
                        line["input_tok_ids"] = json!(prompt);
                        line["output_tok_ids"] = json!(output);
                    }
                    loss.contents += u64::from(matches!(row.content, Content::Blocks { .. }));
                    writeln!(out, "{line}")?;
                    continue;
                }
                Format::Azure => {
                    let (second, fraction) = (row.at_ns / 1_000_000_000, row.at_ns % 1_000_000_000);
                    let (hour, minute) = (second / 3600 % 24, second / 60 % 60);
                    let day = 1 + second / 86_400;
                    if day > 31 {
                        return Err(io::Error::other(
                            "the trace is longer than the month that this format is written in",
                        ));
                    }
                    let second = second % 60;
                    writeln!(out, "2000-01-{day:02} {hour:02}:{minute:02}:{second:02}.{fraction:09},{input},{output}")?;
                }
                Format::Vidur => writeln!(out, "{seconds},{input},{output}")?,
                Format::Burstgpt => {
                    writeln!(
                        out,
                        "{seconds},unknown,{input},{output},{},API log",
                        u64::from(input) + u64::from(output)
                    )?;
                }
            }
            loss.contents += u64::from(row.content != Content::Opaque);
        }
        Ok(loss)
    }

    /// The block size that rows are written with: that of the rows if they have one.
    fn block(&self, format: Format) -> u32 {
        let own = self.rows.iter().find_map(|row| match row.content {
            Content::Blocks { block, .. } => Some(block),
            Content::Tokens { .. } | Content::Opaque => None,
        });
        own.unwrap_or(if format == Format::Bailian { super::bailian::BLOCK_TOKENS } else { mooncake::BLOCK_TOKENS })
    }

    fn ids_max(&self) -> u64 {
        let ids = |row: &Row| match &row.content {
            Content::Blocks { ids, .. } => ids.iter().copied().max(),
            Content::Tokens { .. } | Content::Opaque => None,
        };
        self.rows.iter().filter_map(ids).max().unwrap_or_default()
    }
}

impl Row {
    fn ids(&self, block: u32, fresh: &mut u64, loss: &mut Loss) -> Vec<u64> {
        if let Content::Blocks { block: own, ids } = &self.content
            && *own == block
        {
            return ids.clone();
        }
        loss.contents += u64::from(self.content != Content::Opaque);
        let count = u64::from(self.prompt_tokens.div_ceil(block));
        let first = *fresh;
        *fresh = fresh.wrapping_add(count);
        (first..first + count).collect()
    }
}

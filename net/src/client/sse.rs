//! Server-sent events, parsed as the bytes come: however a stream is cut into chunks, the events are the same.
//!
//! Only `data` is of interest to clients of language models; names, ids, retries and comments are skipped. Lines end
//! with LF, CR LF or CR.

use thiserror::Error;

/// An event larger than any that makes sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("an event of the stream is larger than {EVENT_BYTES_MAX} bytes")]
pub(crate) struct EventTooLong;

/// What has come of a stream and is not yet a whole event.
#[derive(Debug, Default)]
pub(crate) struct SseParser {
    /// The line that has not ended.
    line: Vec<u8>,
    /// The data of the event that has not ended, each line followed by LF.
    data: Vec<u8>,
    /// The last byte was CR: an LF that follows belongs to it.
    after_cr: bool,
}

impl SseParser {
    /// Takes the next bytes and calls `on_data` with the data of each event that they complete.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut on_data: impl FnMut(&[u8])) -> Result<(), EventTooLong> {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|&byte| byte == b'\n' || byte == b'\r');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if self.line.len() + self.data.len() + part.len() > EVENT_BYTES_MAX {
                return Err(EventTooLong);
            }
            let Some(end) = end else {
                self.line.extend_from_slice(part);
                return Ok(());
            };
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if self.line.is_empty() {
                Self::on_line(&mut self.data, part, &mut on_data);
            } else {
                self.line.extend_from_slice(part);
                Self::on_line(&mut self.data, &self.line, &mut on_data);
                self.line.clear();
            }
        }
        Ok(())
    }

    /// True between events: nothing of another one has come.
    pub(crate) fn is_between_events(&self) -> bool {
        self.line.is_empty() && self.data.is_empty()
    }

    fn on_line(data: &mut Vec<u8>, line: &[u8], on_data: &mut impl FnMut(&[u8])) {
        if line.is_empty() {
            if data.pop().is_some() {
                on_data(data);
                data.clear();
            }
            return;
        }
        let (name, value) = match line.iter().position(|&byte| byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        if name == b"data" {
            data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            data.push(b'\n');
        }
    }
}

/// Largest event. Whole answers of `/generate` with log-probabilities of long prompts come as one.
const EVENT_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for chunk in chunks {
            parser.push(chunk, |data| events.push(data.to_vec())).expect("small");
        }
        events
    }

    /// The whole text at once, by splitting it: no state between lines to get wrong.
    fn naive(text: &str) -> Vec<Vec<u8>> {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let mut events = Vec::new();
        let mut data: Option<String> = None;
        let mut lines: Vec<&str> = text.split('\n').collect();
        lines.pop();
        for line in lines {
            if line.is_empty() {
                events.extend(data.take().map(String::into_bytes));
            } else if line == "data" || line.starts_with("data:") {
                let value = line.strip_prefix("data:").unwrap_or("");
                let value = value.strip_prefix(' ').unwrap_or(value);
                data = Some(data.map_or_else(|| value.to_owned(), |data| format!("{data}\n{value}")));
            }
        }
        events
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_events(
            parts in prop::collection::vec(prop::sample::select(vec![
                "data: {\"a\":1}", "data:x", "data", "data: ", ": comment", "event: e", "\n", "\n\n", "\r\n", "\r\n\r\n",
                "\r", "é", "a", "data: [DONE]\n\n", "id:", ":",
            ]), 0..40),
            cuts in prop::collection::vec(0_usize..200, 0..20),
        ) {
            let text: String = parts.concat();
            let expected = naive(&text);
            prop_assert_eq!(&parse([text.as_bytes()]), &expected);
            prop_assert_eq!(&parse(text.as_bytes().chunks(1)), &expected);
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut <= text.len()).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            prop_assert_eq!(&parse(cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]])), &expected);
        }
    }

    #[test]
    fn an_event_without_end_is_refused_before_it_fills_memory() {
        let mut parser = SseParser::default();
        let block = vec![b'x'; 1 << 20];
        let refused = (0..=EVENT_BYTES_MAX >> 20).any(|_| parser.push(&block, |_| ()).is_err());
        assert!(refused);
        assert!(parser.line.len() <= EVENT_BYTES_MAX);
    }

    #[test]
    fn it_knows_when_an_event_is_cut_short() {
        let mut parser = SseParser::default();
        for (bytes, is_between) in [("", true), ("data: x", false), ("\n", false), ("\n", true), (": c\n", true)] {
            parser.push(bytes.as_bytes(), |_| ()).expect("small");
            assert_eq!(parser.is_between_events(), is_between, "{bytes:?}");
        }
    }
}

//! Stop strings, wherever tokens happen to cut them.
//!
//! An answer ends at the first character with which a stop string is complete; of several that end there, the longest
//! counts. Text is held back only while it is the start of a stop string:
//!
//! ```text
//!   stop "</end>"    text  abc<   /e   nd!   ...
//!                    out   abc    -    </end!
//! ```

/// The stop strings of one answer, and what of its text is held back for them.
#[derive(Clone, Debug)]
pub struct StopStrings {
    /// Longest first, so that the first that fits is the longest.
    stops: Vec<String>,
    is_included: bool,
    held: String,
}

/// What [`StopStrings::push`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Passed {
    /// The answer goes on.
    On,
    /// This stop string is complete; the answer ends before it (or behind it, where it is included).
    Stopped(String),
}

/// Whether the text of a stop string is part of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It is cut off.
    Excluded,
    /// It stays.
    Included,
}

impl StopStrings {
    /// Empty strings are ignored: they would end every answer before it began.
    #[must_use]
    pub fn new(mut stops: Vec<String>, ending: Ending) -> Self {
        stops.retain(|stop| !stop.is_empty());
        stops.sort_by_key(|stop| std::cmp::Reverse(stop.len()));
        Self { stops, is_included: ending == Ending::Included, held: String::new() }
    }

    /// Takes text in, and appends to `out` what can be handed out.
    pub fn push(&mut self, text: &str, out: &mut String) -> Passed {
        if self.stops.is_empty() {
            out.push_str(text);
            return Passed::On;
        }
        let before = self.held.len();
        self.held.push_str(text);
        let ends = text.char_indices().map(|(at, character)| before + at + character.len_utf8());
        for end in ends {
            let seen = &self.held[..end];
            if let Some(stop) = self.stops.iter().find(|stop| seen.ends_with(stop.as_str())) {
                let keep = if self.is_included { end } else { end - stop.len() };
                out.push_str(&self.held[..keep]);
                let stop = stop.clone();
                self.held.clear();
                return Passed::Stopped(stop);
            }
        }
        let hold = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let keep = self.held.len() - hold;
        out.push_str(&self.held[..keep]);
        self.held.drain(..keep);
        Passed::On
    }

    /// Ends the answer: what was held back is text after all.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }
}

/// Bytes of the longest end of `text` with which `stop` begins, short of all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest)
        .rev()
        .find(|&length| stop.is_char_boundary(length) && text.as_bytes().ends_with(&stop.as_bytes()[..length]))
        .unwrap_or(0)
}

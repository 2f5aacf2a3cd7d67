//! What a run did that it must never do, and when two failures are the same one.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

/// Who noticed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Noticed {
    /// The scenario loader: what was drawn is no scenario.
    Loader,
    /// A panic, at this file.
    Panic(String),
    /// The swarm: events without end.
    Hang,
    /// A checker, by name.
    Checker(String),
    /// The swarm: a request that did not end though everything was well again.
    Liveness,
    /// The swarm: two runs of a seed differ.
    Twice,
}

/// Something that must never happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Who noticed.
    pub noticed: Noticed,
    /// What is wrong.
    pub what: String,
}

/// What failures that are the same have in common: who noticed, and the first words, numbers left out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Symptom {
    noticed: Noticed,
    words: String,
}

/// Words that tell failures apart.
const WORDS: usize = 8;

impl Failure {
    /// What it has in common with others of its kind.
    #[must_use]
    pub fn symptom(&self) -> Symptom {
        let mut words = String::new();
        for word in self.what.split_whitespace().take(WORDS) {
            if !words.is_empty() {
                words.push(' ');
            }
            let is_number = |letter: char| letter.is_ascii_digit();
            if word.contains(is_number) {
                words.push('#');
            } else {
                words.push_str(word);
            }
        }
        Symptom { noticed: self.noticed.clone(), words }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.noticed, self.what)
    }
}

impl fmt::Display for Noticed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loader => f.write_str("loader"),
            Self::Panic(place) => write!(f, "panic in {place}"),
            Self::Hang => f.write_str("hang"),
            Self::Checker(name) => f.write_str(name),
            Self::Liveness => f.write_str("liveness"),
            Self::Twice => f.write_str("determinism"),
        }
    }
}

impl Symptom {
    /// A name for files: letters, digits and `_`.
    #[must_use]
    pub fn slug(&self) -> String {
        let mut slug = String::new();
        let is_panic = matches!(self.noticed, Noticed::Panic(_));
        let noticed = if is_panic { "panic".to_owned() } else { self.noticed.to_string() };
        for letter in format!("{noticed} {}", self.words).chars() {
            if letter.is_ascii_alphanumeric() {
                slug.push(letter.to_ascii_lowercase());
            } else if !slug.is_empty() && !slug.ends_with('_') {
                slug.push('_');
            }
            if slug.len() >= 48 {
                break;
            }
        }
        slug.trim_end_matches('_').to_owned()
    }
}

impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.noticed, self.words)
    }
}

thread_local! {
    /// True while a panic of this thread is a finding and not an accident.
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
    /// The file of the last such panic.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs something; a panic in it is a failure.
///
/// # Errors
/// The panic.
pub(super) fn catch<T>(body: impl FnOnce() -> T) -> Result<T, Failure> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if IS_CAUGHT.get() {
                let place = info.location().map_or_else(String::new, |place| short(place.file()).to_owned());
                PLACE.set(place);
            } else {
                before(info);
            }
        }));
    });
    let was_caught = IS_CAUGHT.replace(true);
    // What a panic leaves half done is dropped with the world.
    let result = panic::catch_unwind(AssertUnwindSafe(body));
    IS_CAUGHT.set(was_caught);
    result.map_err(|payload| {
        let what = match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (None, Some(text)) => (*text).to_owned(),
            (None, None) => "a panic without words".to_owned(),
        };
        Failure { noticed: Noticed::Panic(PLACE.take()), what }
    })
}

/// A source file from its crate on, however the crate was built.
fn short(file: &str) -> &str {
    ["core/src", "sim/src"].iter().find_map(|root| file.find(root).map(|at| &file[at..])).unwrap_or(file)
}

//! What commands can be told, and by what: flags first, then `PD_*` variables, then a TOML file, then defaults.
//!
//! [`options!`] declares an option once, as a flag, a variable and a key; [`File`] is the file, and names line and column
//! of what is wrong with it. In the file, a key is the flag's name with underscores.

use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use pd_sim::scenario::error::{nearest, with_nearest};
use serde::Deserialize;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};
use toml::Spanned;
use toml::de::{DeTable, Deserializer};

/// Declares each option once: as a flag, as a variable and as a key of the file. `None` where nothing was said.
macro_rules! options {
    (
        $(#[doc = $about:literal])+
        $Name:ident {
            $($(#[doc = $doc:literal])+ #[arg($($arg:tt)*)] $name:ident: $type:ty,)*
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default, clap::Args, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct $Name {
            $($(#[doc = $doc])+ #[arg(long, $($arg)*)] pub(crate) $name: Option<$type>,)*
        }

        impl $crate::settings::Part for $Name {
            const KEYS: &'static [&'static str] = &[$(stringify!($name)),*];

            fn given(&self) -> Vec<&'static str> {
                let said = [$(self.$name.is_some()),*];
                Self::KEYS.iter().zip(said).filter_map(|(key, said)| said.then_some(*key)).collect()
            }

            fn over(self, below: Self) -> Self {
                Self { $($name: self.$name.or(below.$name),)* }
            }
        }
    };
}

/// Lets what was said on the command line go before a configuration of the same names: `set` into values, `some` into
/// options, `list` into lists.
macro_rules! overlay {
    ($from:expr => $into:expr; set $($set:ident),*; some $($some:ident),*; list $($list:ident),* $(,)?) => {
        $(if let Some(value) = $from.$set { $into.$set = value; })*
        $(if $from.$some.is_some() { $into.$some = $from.$some; })*
        $(if !$from.$list.is_empty() { $into.$list = $from.$list; })*
    };
}

pub(crate) use {options, overlay};

/// Some of the options of a command, made by [`options!`].
pub(crate) trait Part: DeserializeOwned {
    /// The keys of the file.
    const KEYS: &'static [&'static str];

    /// The keys under which something was said.
    fn given(&self) -> Vec<&'static str>;

    /// What `self` says, and what `below` says where it says nothing.
    #[must_use]
    fn over(self, below: Self) -> Self;
}

options! {
    /// What is logged, and how.
    Logs {
        /// Least important messages to log: error, warn, info (the default), debug, trace, or a filter like
        /// `warn,pd_net=debug`.
        #[arg(env = "PD_LOG_LEVEL", value_name = "LEVEL", help_heading = "Observing")]
        log_level: String,
        /// How log lines look; text by default.
        #[arg(env = "PD_LOG_FORMAT", value_parser = choice::<LogFormat>, value_name = "text|json", help_heading = "Observing")]
        log_format: LogFormat,
    }
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

impl Logs {
    /// Logs go to standard error from here on.
    ///
    /// # Errors
    /// What is wrong with the level.
    pub(crate) fn start(&self) -> Result<(), String> {
        let level = self.log_level.as_deref().unwrap_or("info");
        let filter = tracing_subscriber::EnvFilter::try_new(level)
            .map_err(|error| format!("--log-level {level}: {error}; error, warn, info, debug and trace are levels"))?;
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let started = match self.log_format.unwrap_or_default() {
            LogFormat::Text => logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
            LogFormat::Json => logs.json().try_init(),
        };
        started.map_err(|error| error.to_string())
    }
}

/// A TOML file with settings of a command; several parts of the command take their keys from it.
#[derive(Debug, Default)]
pub(crate) struct File {
    path: PathBuf,
    text: String,
}

impl File {
    /// Reads a file; without one, nothing is set.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), text })
    }

    /// A file with this text.
    #[cfg(test)]
    pub(crate) fn of(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.to_owned() }
    }

    /// What it says under the keys of a part.
    ///
    /// # Errors
    /// What is wrong with that, with line and column.
    pub(crate) fn part<T: Part>(&self) -> Result<T, String> {
        self.take(|key| T::KEYS.contains(&key), &[])
    }

    /// What it says under all keys but those of its parts.
    ///
    /// # Errors
    /// What is wrong with that, with line and column, and the nearest name for one that is unknown.
    pub(crate) fn rest<T: DeserializeOwned>(&self, parts: &[&[&str]]) -> Result<T, String> {
        let keys = parts.concat();
        self.take(|key| !keys.contains(&key), &keys)
    }

    fn take<T: DeserializeOwned>(&self, is_wanted: impl Fn(&str) -> bool, others: &[&str]) -> Result<T, String> {
        let read = DeTable::parse(&self.text).and_then(|table| {
            let span = table.span();
            let wanted = table.into_inner().into_iter().filter(|(key, _)| is_wanted(key.get_ref()));
            T::deserialize(Deserializer::from(Spanned::new(span, wanted.collect::<DeTable<'_>>())))
        });
        read.map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(self.text.len()));
            let before = &self.text.as_bytes()[..at];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            let column = 1 + before.iter().rev().take_while(|byte| **byte != b'\n').count();
            // Of a value that is wrong, only its own text is said.
            let key = self.text.lines().nth(line - 1).and_then(|text| Some(text.split_once('=')?.0.trim()));
            let key = key.filter(|key| !error.message().contains(&format!("`{key}`")));
            let key = key.map_or_else(String::new, |key| format!("{key}: "));
            format!("{}:{line}:{column}: {key}{}", self.path.display(), with_nearest(error.message(), others))
        })
    }
}

/// Which of these keys was said where, for a banner: `port, mode (flags); page_size (PD_*); threads (pd.toml)`.
pub(crate) fn origins(given: &[&'static str], told: &ArgMatches, file: Option<&Path>) -> String {
    let file = file.map_or_else(String::new, |file| file.display().to_string());
    let by = |key: &&'static str| match told.value_source(key) {
        Some(ValueSource::CommandLine) => Some("flags"),
        Some(ValueSource::EnvVariable) => Some("PD_*"),
        // All that is neither is from the file.
        _ => None,
    };
    let groups = [(Some("flags"), "flags"), (Some("PD_*"), "PD_*"), (None, file.as_str())].map(|(origin, name)| {
        let keys: Vec<&str> = given.iter().filter(|key| by(key) == origin).copied().collect();
        (!keys.is_empty()).then(|| format!("{} ({name})", keys.join(", ")))
    });
    let text = groups.into_iter().flatten().collect::<Vec<_>>().join("; ");
    if text.is_empty() { "all defaults".to_owned() } else { text }
}

/// The `PD_*` variables of this process that no command reads although one has nearly that name: who meant what.
pub(crate) fn misspelt(command: &Command) -> Vec<String> {
    let all = command.get_subcommands().flat_map(Command::get_arguments);
    let flags = all.filter_map(|argument| argument.get_env()?.to_str());
    let known: Vec<&str> = flags.chain(pd_gpu::cuda::VARIABLES).collect();
    let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    set.filter(|name| name.starts_with("PD_") && !known.contains(&name.as_str()))
        .filter_map(|name| {
            let near = nearest(&name["PD_".len()..], known.iter().map(|known| &known["PD_".len()..]))?;
            Some(format!("{name} is no variable of pd and has no effect; did you mean PD_{near}?"))
        })
        .collect()
}

/// One of a few words, as the file takes them.
pub(crate) fn choice<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    let words: StrDeserializer<'_, ValueError> = text.into_deserializer();
    T::deserialize(words).map_err(|error| with_nearest(&error.to_string(), &[]))
}

/// A number with a unit, as the file takes them.
pub(crate) fn quantity<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    choice(text)
}

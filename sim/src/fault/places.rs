//! What there is for an action to name, and what is wrong with one that names something else.

use std::time::Duration;

use crate::fault::Peer;
use crate::scenario::error::nearest;

/// The names and counts of a deployment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Places {
    /// How many workers.
    pub workers: u32,
    /// How many stores.
    pub stores: u32,
    /// The links.
    pub links: Vec<String>,
    /// There is a router.
    pub has_router: bool,
    /// Some workers hand over to others.
    pub has_pairs: bool,
}

/// What is wrong with an action, and the key that says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// The key.
    pub key: &'static str,
    /// In words.
    pub message: String,
}

impl Wrong {
    pub(crate) fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into() }
    }
}

impl Places {
    pub(crate) fn worker(&self, worker: u32) -> Result<(), Wrong> {
        self.index("worker", "worker", worker, self.workers)
    }

    pub(crate) fn store(&self, store: u32) -> Result<(), Wrong> {
        self.index("store", "store", store, self.stores)
    }

    /// Both ends of a fault of messages.
    pub(crate) fn ends(&self, worker: u32, peer: Option<Peer>) -> Result<(), Wrong> {
        self.worker(worker)?;
        match peer {
            Some(Peer::Worker(peer)) if peer == worker => {
                Err(Wrong::new("peer", format!("worker {worker} is no peer of itself")))
            }
            Some(Peer::Worker(peer)) => self.index("peer", "worker", peer, self.workers),
            Some(Peer::Router) | None => Ok(()),
        }
    }

    /// The links whose names these are: one, or those that begin with `prefix` and a dot.
    pub(crate) fn links(&self, key: &'static str, wanted: &str) -> Result<(), Wrong> {
        if self.links.iter().any(|link| is_link(link, wanted)) {
            return Ok(());
        }
        let near = nearest(wanted, self.links.iter().map(String::as_str));
        let hint = match near {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("there are {}", self.links.join(", ")),
        };
        Err(Wrong::new(key, format!("there is no link \"{wanted}\"; {hint}")))
    }

    pub(crate) fn router(&self, what: &str) -> Result<(), Wrong> {
        if self.has_router { Ok(()) } else { Err(Wrong::new("do", format!("{what} needs a [router]; there is none"))) }
    }

    pub(crate) fn pairs(&self, what: &str) -> Result<(), Wrong> {
        if self.has_pairs {
            Ok(())
        } else {
            let need = "workers of mode \"prefill\" and \"decode\"; others have no peers";
            Err(Wrong::new("do", format!("{what} needs {need}")))
        }
    }

    fn index(&self, key: &'static str, noun: &str, index: u32, count: u32) -> Result<(), Wrong> {
        if index < count {
            return Ok(());
        }
        let message = match count {
            0 => format!("there is no {noun}"),
            1 => format!("there is no {noun} {index}; there is one, {noun} 0"),
            count => format!("there is no {noun} {index}; there are {count}, {noun} 0 to {}", count - 1),
        };
        Err(Wrong::new(key, message))
    }
}

/// True if the link is the wanted one, or a part of it ("w0.nic" has the parts "w0.nic.in" and "w0.nic.out").
pub(crate) fn is_link(link: &str, wanted: &str) -> bool {
    link.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// A duration that must be more than none.
pub(crate) fn some_time(key: &'static str, span: Duration) -> Result<(), Wrong> {
    if span.is_zero() { Err(Wrong::new(key, format!("{key} is 0; it must be longer"))) } else { Ok(()) }
}

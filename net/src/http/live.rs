//! The requests being served: so that they can be aborted by name, told apart, and looked at.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pd_core::id::{RequestId, Room};
use serde_json::{Value, json};

use super::backend::Backend;

/// Requests that are remembered after their end, for the status page.
const RECENT_MAX: usize = 64;
/// Live requests that the status page lists.
const LISTED_MAX: usize = 200;

/// All sequences between submission and end.
#[derive(Debug, Default)]
pub(super) struct Live {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// By the client's name, then ours.
    entries: BTreeMap<(String, RequestId), Arc<Entry>>,
    recent: VecDeque<Value>,
    finished: u64,
    aborted: u64,
    failed: u64,
}

/// One sequence.
#[derive(Debug)]
struct Entry {
    /// The name of the request that it belongs to.
    family: String,
    route: &'static str,
    room: Option<Room>,
    started: Instant,
    prompt_tokens: u32,
    output_tokens: AtomicU32,
    is_admitted: AtomicBool,
}

/// A sequence in the table. Dropping it before the end cancels the sequence: its client has gone.
pub(super) struct Guard {
    live: Arc<Live>,
    backend: Arc<dyn Backend>,
    key: (String, RequestId),
    entry: Arc<Entry>,
    ended: Option<&'static str>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Live {
    /// Enters a sequence that is to be submitted.
    pub(super) fn enter(
        self: &Arc<Self>,
        backend: &Arc<dyn Backend>,
        (rid, family): (&str, &str),
        request: RequestId,
        room: Option<Room>,
        prompt_tokens: u32,
        route: &'static str,
    ) -> Guard {
        let entry = Arc::new(Entry {
            family: family.to_owned(),
            route,
            room,
            started: Instant::now(),
            prompt_tokens,
            output_tokens: AtomicU32::new(0),
            is_admitted: AtomicBool::new(false),
        });
        let key = (rid.to_owned(), request);
        self.lock().entries.insert(key.clone(), Arc::clone(&entry));
        Guard { live: Arc::clone(self), backend: Arc::clone(backend), key, entry, ended: None }
    }

    /// Sequences of this name, each with its room.
    pub(super) fn named(&self, rid: &str) -> Vec<(RequestId, Option<Room>)> {
        let table = self.lock();
        let from = (rid.to_owned(), RequestId(0));
        table
            .entries
            .range(from..)
            .take_while(|((name, _), _)| name == rid)
            .map(|((_, id), entry)| (*id, entry.room))
            .collect()
    }

    /// Sequences of the request of this name, or of this name themselves. Names are compared whole: `req-1` is not
    /// `req-10`.
    pub(super) fn of(&self, rid: &str) -> Vec<RequestId> {
        let table = self.lock();
        let is_of = |name: &str, entry: &Entry| name == rid || entry.family == rid;
        table.entries.iter().filter(|((name, _), entry)| is_of(name, entry)).map(|((_, id), _)| *id).collect()
    }

    /// All sequences.
    pub(super) fn all(&self) -> Vec<RequestId> {
        self.lock().entries.keys().map(|(_, id)| *id).collect()
    }

    /// How many sequences there are.
    pub(super) fn count(&self) -> usize {
        self.lock().entries.len()
    }

    /// What the status page shows.
    pub(super) fn status(&self) -> Value {
        let table = self.lock();
        let row = |((rid, _), entry): (&(String, RequestId), &Arc<Entry>)| {
            json!({
                "rid": rid, "route": entry.route, "room": entry.room.map(|room| room.0.to_string()),
                "age_ms": millis(entry.started), "prompt_tokens": entry.prompt_tokens,
                "output_tokens": entry.output_tokens.load(Ordering::Relaxed),
                "state": if entry.is_admitted.load(Ordering::Relaxed) { "running" } else { "waiting" },
            })
        };
        json!({
            "count": table.entries.len(),
            "requests": table.entries.iter().take(LISTED_MAX).map(row).collect::<Vec<_>>(),
            "recent": table.recent.iter().rev().collect::<Vec<_>>(),
            "finished": table.finished, "aborted": table.aborted, "failed": table.failed,
        })
    }

    /// Nothing in the table can be torn by a panic elsewhere, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    pub(super) fn admitted(&self) {
        self.entry.is_admitted.store(true, Ordering::Relaxed);
    }

    pub(super) fn produced(&self, tokens: u32) {
        self.entry.output_tokens.store(tokens, Ordering::Relaxed);
    }

    /// The worker has ended the sequence by itself; there is nothing to cancel.
    pub(super) const fn ended(&mut self, how: &'static str) {
        self.ended = Some(how);
    }

    /// The client has all it wants while the worker goes on: ends the sequence at the worker.
    pub(super) fn stop(&mut self) {
        self.backend.cancel(self.key.1);
        self.ended = Some("stop");
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.backend.cancel(self.key.1);
            tracing::info!(request = %self.key.1, rid = %self.key.0, "client has gone; its request is cancelled");
        }
        let how = self.ended.unwrap_or("disconnected");
        let entry = &self.entry;
        let row = json!({
            "rid": self.key.0, "route": entry.route, "how": how, "ms": millis(entry.started),
            "prompt_tokens": entry.prompt_tokens, "output_tokens": entry.output_tokens.load(Ordering::Relaxed),
        });
        let mut table = self.live.lock();
        table.entries.remove(&self.key);
        match how {
            "stop" | "length" => table.finished += 1,
            "abort" | "disconnected" => table.aborted += 1,
            _ => table.failed += 1,
        }
        if table.recent.len() == RECENT_MAX {
            table.recent.pop_front();
        }
        table.recent.push_back(row);
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

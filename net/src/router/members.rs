//! The workers: who they are, who named them, and how they are.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde_json::{Map, Value, json};
use tokio::task::AbortHandle;

use pd_core::config::Mode;
use pd_core::id::{PageKey, WorkerId};

use super::config::Spec;

/// Who has named a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Config,
    File,
    Api,
}

/// How a worker is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Health {
    /// Not seen healthy yet.
    Joining,
    Up,
    Down,
    /// It gets no new requests, and is forgotten when those it has are over.
    Leaving,
}

/// A worker.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: WorkerId,
    pub(super) spec: Spec,
    pub(super) origin: Origin,
    /// Requests of this router that are under way there.
    pub(super) active: AtomicU32,
    pub(super) served: AtomicU64,
    pub(super) checks_ok: AtomicU64,
    pub(super) checks_bad: AtomicU64,
    /// Lives of it that the machine was told of.
    pub(super) lives: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    health: Health,
    /// As the worker's `/v1/models` lists them.
    models: Vec<Value>,
    metadata: Map<String, Value>,
    error: Option<String>,
    /// What is less than well, and keeps it from nothing.
    warning: Option<String>,
    /// What its page keys are chained from, as its KV events say.
    root: Option<PageKey>,
    task: Option<AbortHandle>,
}

/// Why a worker was not added.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Duplicate(pub(super) WorkerId);

impl fmt::Display for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a worker of this address is there already, with id {}; remove it first", self.0)
    }
}

/// All workers, by id.
#[derive(Debug, Default)]
pub(super) struct Members {
    all: RwLock<BTreeMap<WorkerId, Arc<Member>>>,
    next: AtomicU32,
    turn: AtomicU32,
}

impl Member {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn health(&self) -> Health {
        self.state().health.clone()
    }

    pub(super) fn is_up(&self) -> bool {
        self.state().health == Health::Up
    }

    /// Changes its health, unless it is leaving; true if that changed it.
    pub(super) fn set_health(&self, health: Health, error: Option<String>) -> bool {
        let mut state = self.state();
        if state.health == Health::Leaving {
            return false;
        }
        state.error = error;
        let is_new = state.health != health;
        state.health = health;
        is_new
    }

    pub(super) fn describe(&self, models: Vec<Value>, metadata: Map<String, Value>, warning: Option<String>) {
        let mut state = self.state();
        state.models = models;
        state.metadata = metadata;
        state.warning = warning;
    }

    pub(super) fn set_root(&self, root: PageKey) {
        self.state().root = Some(root);
    }

    pub(super) fn root(&self) -> Option<PageKey> {
        self.state().root
    }

    pub(super) fn set_task(&self, task: AbortHandle) {
        self.state().task = Some(task);
    }

    pub(super) fn stop_task(&self) {
        if let Some(task) = self.state().task.take() {
            task.abort();
        }
    }

    pub(super) fn models(&self) -> Vec<Value> {
        self.state().models.clone()
    }

    /// As `/workers` shows it.
    pub(super) fn to_json(&self) -> Value {
        let state = self.state();
        let mut value = json!({
            "id": self.id.to_string(),
            "url": self.spec.target.to_string(),
            "model_id": state.models.first().and_then(|model| model["id"].as_str()).unwrap_or("unknown"),
            "priority": 50,
            "cost": 1.0,
            "worker_type": mode_name(self.spec.mode),
            "is_healthy": state.health == Health::Up,
            "status": match state.health {
                Health::Joining => "joining",
                Health::Up => "up",
                Health::Down => "down",
                Health::Leaving => "draining",
            },
            "load": self.active.load(Ordering::Relaxed),
            "requests_total": self.served.load(Ordering::Relaxed),
            "connection_mode": "HTTP",
            "origin": match self.origin {
                Origin::Config => "config",
                Origin::File => "file",
                Origin::Api => "api",
            },
            "metadata": state.metadata,
            "error": state.error,
            "warning": state.warning,
        });
        if self.spec.mode == Mode::Prefill {
            value["bootstrap_port"] = json!(self.spec.bootstrap_port);
        }
        value
    }
}

impl Members {
    pub(super) fn all(&self) -> Vec<Arc<Member>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn find(&self, id: WorkerId) -> Option<Arc<Member>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The worker of an address, unless it is leaving.
    pub(super) fn by_url(&self, url: &str) -> Option<Arc<Member>> {
        self.all()
            .into_iter()
            .find(|member| member.health() != Health::Leaving && member.spec.target.to_string() == url)
    }

    /// Adds a worker; one that leaves may come back under the same address.
    pub(super) fn add(&self, spec: Spec, origin: Origin) -> Result<Arc<Member>, Duplicate> {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let is_same = |member: &&Arc<Member>| member.spec.target == spec.target && member.health() != Health::Leaving;
        if let Some(member) = all.values().find(is_same) {
            return Err(Duplicate(member.id));
        }
        let id = WorkerId(self.next.fetch_add(1, Ordering::Relaxed));
        let state = State {
            health: Health::Joining,
            models: Vec::new(),
            metadata: Map::new(),
            error: None,
            warning: None,
            root: None,
            task: None,
        };
        let member = Arc::new(Member {
            id,
            spec,
            origin,
            active: AtomicU32::new(0),
            served: AtomicU64::new(0),
            checks_ok: AtomicU64::new(0),
            checks_bad: AtomicU64::new(0),
            lives: AtomicU32::new(0),
            state: Mutex::new(state),
        });
        all.insert(id, Arc::clone(&member));
        Ok(member)
    }

    pub(super) fn forget(&self, id: WorkerId) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// A worker that is up, in turn; of the wanted modes, in order of preference.
    pub(super) fn any_up(&self, modes: &[Mode]) -> Option<Arc<Member>> {
        let all = self.all();
        modes.iter().find_map(|&mode| {
            let up: Vec<_> = all.iter().filter(|member| member.spec.mode == mode && member.is_up()).collect();
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
            up.get(turn.checked_rem(up.len())?).map(|member| Arc::clone(member))
        })
    }

    /// What is missing before requests can be served; `None` if nothing is.
    pub(super) fn missing(&self) -> Option<String> {
        let up: Vec<Mode> = self.all().iter().filter(|member| member.is_up()).map(|member| member.spec.mode).collect();
        if up.contains(&Mode::Unified) || (up.contains(&Mode::Prefill) && up.contains(&Mode::Decode)) {
            return None;
        }
        Some(match (up.contains(&Mode::Prefill), up.contains(&Mode::Decode)) {
            (true, _) => "no decode worker is up".into(),
            (_, true) => "no prefill worker is up".into(),
            (false, false) => "no worker is up".into(),
        })
    }
}

pub(super) const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Unified => "regular",
        Mode::Prefill => "prefill",
        Mode::Decode => "decode",
    }
}

//! L3 of a worker: opened at the start, or attached and changed while it serves.
//!
//! The worker's machine decides when L3 is used; this says which folder that is. A folder that is left keeps its pages.
//!
//! ```text
//!   attach ── open ──▶ lane ── Told::Attach ──▶ worker's thread: idle? ──▶ forget, swap, use ── the old lane is closed
//!                                                             └ busy ────▶ nothing changes; the new lane is closed
//! ```

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pd_core::config::KvConfig;
use pd_core::event::Control;
use pd_core::id::{OpId, PageKey};
use pd_core::op::{Command, Input};
use pd_net::http::backend::{Attach, ControlError, StorageInfo};
use pd_net::store::{StorageLane, Store, StoreConfig};
use pd_sim::units::Bytes;
use pd_sync::Arena;
use serde::Deserialize;

use super::backend::unheard;
use super::shell::{Mailbox, StorageChange, Told};

/// What carries out storage commands, as the worker's thread sees it.
pub(crate) type StartStorage = Box<dyn Fn(OpId, Command) + Send>;

/// Which L3. As JSON in `hicache_storage_backend_extra_config_json`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Its folder.
    pub(crate) path: PathBuf,
    /// Most bytes.
    #[serde(default = "default_size")]
    pub(crate) size: Bytes,
}

/// L3 of one worker.
pub(crate) struct Storage {
    host_memory: Arc<Arena>,
    root: PageKey,
    has_host: bool,
    inbox: Mailbox,
    prefetch_policy: String,
    write_policy: String,
    opened: Mutex<Option<Opened>>,
    is_attached: AtomicBool,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Opened {
    settings: Settings,
    lane: Arc<StorageLane>,
}

impl Storage {
    /// No L3 yet, for a worker whose L2 is `host_memory`.
    pub(crate) fn new(kv: &KvConfig, host_memory: &Arc<Arena>, inbox: &Mailbox) -> Self {
        Self {
            host_memory: Arc::clone(host_memory),
            root: kv.root,
            has_host: kv.host_pages > 0,
            inbox: Arc::clone(inbox),
            prefetch_policy: word(&kv.prefetch_policy),
            write_policy: word(&kv.write_policy),
            opened: Mutex::new(None),
            is_attached: AtomicBool::new(false),
            changing: tokio::sync::Mutex::new(()),
        }
    }

    /// Opens the L3 that a worker starts with; the text says what it holds.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn begin(&self, settings: Settings) -> Result<(StartStorage, String), String> {
        let (opened, report) = self.open(settings)?;
        let start = starter(&opened.lane);
        *self.opened() = Some(opened);
        self.is_attached.store(true, Ordering::Relaxed);
        Ok((start, report))
    }

    /// Which L3 is in use, if any.
    pub(crate) fn info(&self) -> StorageInfo {
        let opened = self.opened();
        let used = opened.as_ref().filter(|_| self.is_attached.load(Ordering::Relaxed));
        StorageInfo {
            backend: used.map(|_| "file".to_owned()),
            settings: used.map(|opened| {
                let Settings { path, size } = &opened.settings;
                serde_json::json!({ "path": path, "size": size.0 }).to_string()
            }),
            prefetch_policy: self.prefetch_policy.clone(),
            write_policy: self.write_policy.clone(),
        }
    }

    /// Uses another L3 from here on, or the last one again.
    ///
    /// # Errors
    /// Why not; then nothing has changed.
    pub(crate) async fn attach(self: &Arc<Self>, attach: Attach) -> Result<String, ControlError> {
        let _one = self.changing.lock().await;
        let last = self.opened().clone();
        let settings = self.wanted(&attach, last.as_ref())?;
        let path = settings.path.display().to_string();
        let (opened, held) = match last.clone().filter(|last| last.settings == settings) {
            Some(last) => (last, None),
            None => {
                let storage = Arc::clone(self);
                let open = tokio::task::spawn_blocking(move || storage.open(settings));
                let (opened, report) = open
                    .await
                    .map_err(|error| ControlError::Failed(error.to_string()))?
                    .map_err(ControlError::Invalid)?;
                (opened, Some(report))
            }
        };
        let (reply, answered) = tokio::sync::oneshot::channel();
        let change = StorageChange {
            start: held.is_some().then(|| starter(&opened.lane)),
            reply: Box::new(move |requests| {
                // Whoever asked may have gone: the change stands.
                let _ = reply.send(requests);
            }),
        };
        let requests = match self.inbox.try_send(Told::Attach(Box::new(change))) {
            Ok(()) => answered.await.map_err(|_| ControlError::Failed("the worker has stopped".into())),
            Err(unsent) => Err(unheard(&unsent)),
        };
        let is_done = matches!(requests, Ok(0));
        let left = match (is_done, held.is_some()) {
            (true, true) => self.opened().replace(opened),
            (false, true) => Some(opened),
            (_, false) => None,
        };
        if let Some(left) = left {
            // What was begun ends; it may take a while.
            let closed = tokio::task::spawn_blocking(move || left.lane.close());
            closed.await.map_err(|error| ControlError::Failed(error.to_string()))?;
        }
        match requests? {
            0 => {
                self.is_attached.store(true, Ordering::Relaxed);
                let holds = held.map_or_else(String::new, |report| format!(", which holds {report}"));
                Ok(format!("HiCache storage backend attached: L3 is {path}{holds}"))
            }
            count => {
                let requests = if count == 1 { "1 request is".to_owned() } else { format!("{count} requests are") };
                Err(ControlError::Busy(format!(
                    "{requests} being served; L3 is attached only while there is none: wait, or send /abort_request"
                )))
            }
        }
    }

    /// Uses no L3 from here on.
    ///
    /// # Errors
    /// If there is none, or the worker does not hear of it.
    pub(crate) fn detach(&self) -> Result<(), ControlError> {
        if !self.is_attached.swap(false, Ordering::Relaxed) {
            return Err(ControlError::Invalid("no L3 is attached".into()));
        }
        self.inbox.try_send(Told::Input(Input::Control(Control::DetachStorage))).map_err(|unsent| {
            self.is_attached.store(true, Ordering::Relaxed);
            unheard(&unsent)
        })
    }

    /// True if there is one to order something of.
    pub(crate) fn is_attached(&self) -> bool {
        self.is_attached.load(Ordering::Relaxed)
    }

    /// Lets what was begun end. The worker's thread has to have ended: a closed lane answers at once, and the thread must not
    /// send to itself.
    pub(crate) fn close(&self) {
        if let Some(opened) = self.opened().take() {
            opened.lane.close();
        }
    }

    fn wanted(&self, attach: &Attach, last: Option<&Opened>) -> Result<Settings, ControlError> {
        let invalid = |why: String| Err(ControlError::Invalid(why));
        if attach.backend != "file" {
            return invalid(format!("storage backend {:?} is not known; pd has \"file\"", attach.backend));
        }
        if !self.has_host {
            return invalid(
                "L3 is reached through L2, and this worker has none: start it with --hicache-ratio or --hicache-size"
                    .into(),
            );
        }
        for (name, wanted, ours) in [
            ("hicache_storage_prefetch_policy", &attach.prefetch_policy, &self.prefetch_policy),
            ("hicache_write_policy", &attach.write_policy, &self.write_policy),
        ] {
            if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != ours) {
                return invalid(format!(
                    "{name} is {ours} for the life of this worker and cannot become {wanted}: restart it for that"
                ));
            }
        }
        match (&attach.settings, last) {
            (Some(json), _) => serde_json::from_str(json).or_else(|error| {
                invalid(format!(
                    "hicache_storage_backend_extra_config_json: {error}; it takes {{\"path\": FOLDER, \"size\": BYTES}}"
                ))
            }),
            (None, Some(last)) => Ok(last.settings.clone()),
            (None, None) => invalid(
                "this worker has had no L3 yet: name a folder, as hicache_storage_backend_extra_config_json {\"path\": FOLDER}"
                    .into(),
            ),
        }
    }

    fn open(&self, settings: Settings) -> Result<(Opened, String), String> {
        let mut config = StoreConfig::new(&settings.path);
        config.bytes_max = Some(settings.size.0);
        let (store, report) = Store::open(config).map_err(|error| error.to_string())?;
        let answers = Arc::clone(&self.inbox);
        let lane = StorageLane::start(store, Arc::clone(&self.host_memory), self.root, THREADS, move |op, outcome| {
            let _ = answers.send(Told::Done { op, outcome, samples: Vec::new() });
        });
        let lane = lane.map_err(|error| format!("no thread for L3: {error}"))?;
        Ok((Opened { settings, lane: Arc::new(lane) }, report.to_string()))
    }

    fn opened(&self) -> MutexGuard<'_, Option<Opened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageChange {
    /// What the machine is told where nothing stands in the way: it forgets the L3 before, then uses this one.
    pub(crate) fn inputs(is_other: bool) -> impl Iterator<Item = Input> {
        let detach = is_other.then_some(Control::DetachStorage);
        detach.into_iter().chain([Control::AttachStorage]).map(Input::Control)
    }
}

fn starter(lane: &Arc<StorageLane>) -> StartStorage {
    let lane = Arc::clone(lane);
    Box::new(move |op, command| lane.submit(op, command))
}

/// A setting as files and flags name it.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Most bytes of L3 where nobody says.
pub(crate) const fn default_size() -> Bytes {
    Bytes(64 << 30)
}

const THREADS: u32 = 4;

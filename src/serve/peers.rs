//! A worker's peers: connections for messages, a wire for KV, and the fence between the two.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use pd_core::config::{Mode, TransferBackend, WorkerConfig};
use pd_core::id::{OpId, WorkerId};
use pd_core::message::{Layout, Message, Mismatch};
use pd_core::op::{Fault, Input, Outcome, Push};
use pd_core::transfer::layout;
use pd_net::ctrl::bootstrap::client::{AskError, Client};
use pd_net::ctrl::bootstrap::{self, Announcement, Bootstrap, BootstrapConfig};
use pd_net::ctrl::{Events, Life, Peers as Connections, PeersConfig, address};
use pd_net::wire::{Done, Endpoint, Fake, Receiver, ReceiverConfig, Transport, Wire as Carrier, WireConfig};
use pd_sync::Arena;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::backend::Resolve;
use super::options::{Backend, Options};
use super::shell::{Mailbox, Told, Wire};

/// The peers of a worker that hands over or takes over.
pub(crate) struct Peers {
    connections: Arc<Connections>,
    ends: Arc<Ends>,
    bootstrap: Option<(Bootstrap, JoinHandle<()>)>,
    bootstrap_port: u16,
    kv: Kv,
    patience: Duration,
}

/// What the KV of a worker looks like, as bootstrap servers are told.
#[derive(Clone)]
struct Kv {
    root: String,
    layout: Layout,
}

impl Kv {
    /// Why a worker's KV cannot be used here, with both values.
    fn unlike(&self, theirs: &Announcement) -> Option<String> {
        match layout::mismatch(&self.layout, &theirs.layout) {
            Some(Mismatch::Shape) => {
                let shape = |it: &Layout| {
                    let Layout { layers, kv_heads, head_dim, page_bytes, .. } = it;
                    format!("{layers} layers of {kv_heads} KV heads of {head_dim}, {page_bytes} bytes a page")
                };
                Some(format!("{}; ours has {}", shape(&theirs.layout), shape(&self.layout)))
            }
            Some(mismatch) => Some(mismatch.to_string()),
            None if self.root != theirs.root => {
                Some(format!("weights differ: those of namespace {} do not fit ours, {}", theirs.root, self.root))
            }
            None => None,
        }
    }
}

/// Both ends of the wire, and the messages beside it.
struct Ends {
    connections: Arc<Connections>,
    transport: Arc<dyn Transport>,
    receiver: Receiver,
}

/// Tells the wire and the worker's thread what becomes of connections.
struct Ear {
    transport: Arc<dyn Transport>,
    inbox: Mailbox,
}

impl Ear {
    fn tell(&self, input: Input) {
        // Fails only when the worker has ended.
        let _ = self.inbox.send(Told::Input(input));
    }
}

impl Events for Ear {
    fn up(&self, peer: &Life) {
        self.transport.up(&Endpoint { id: peer.id, epoch: peer.epoch, address: peer.wire.clone() });
        self.tell(Input::Peer { id: peer.id, up: Some(peer.epoch) });
    }

    fn down(&self, peer: &Life) {
        self.transport.down(peer.id);
        self.tell(Input::Peer { id: peer.id, up: None });
    }

    fn recv(&self, from: WorkerId, message: Message) {
        self.tell(Input::Recv { from, message });
    }
}

/// Makes L1 where peers can write it.
///
/// # Errors
/// If there is no memory.
pub(crate) fn memory(options: &Options, config: &WorkerConfig, page_bytes: usize) -> Result<Arc<Arena>, String> {
    let (pages, epoch) = (config.kv.gpu_pages, config.epoch.0);
    let arena = match options.disaggregation_transfer_backend.unwrap_or_default() {
        Backend::Tcp | Backend::Fake => Arena::new(page_bytes, pages),
        Backend::Shm => Arena::shared(page_bytes, pages, epoch),
        // Where there is no room for shared memory, TCP does.
        Backend::Auto => Arena::shared(page_bytes, pages, epoch).or_else(|error| {
            tracing::warn!("no shared memory for L1 ({error}): peers on this host use TCP");
            Arena::new(page_bytes, pages)
        }),
    };
    arena.map(Arc::new).map_err(|error| format!("no memory for L1: {error}"))
}

/// Listens for peers, and (a prefill worker) opens the bootstrap server.
///
/// # Errors
/// Which address cannot be had.
pub(crate) async fn start(
    options: &Options,
    config: &WorkerConfig,
    arena: &Arc<Arena>,
    inbox: &Mailbox,
    runtime: &Handle,
) -> Result<Peers, String> {
    let host = options.host.clone().unwrap_or_else(|| "127.0.0.1".to_owned());
    let backend = options.disaggregation_transfer_backend.unwrap_or_default();
    let (worker, epoch) = (config.worker, config.epoch);
    let answers = Arc::clone(inbox);
    let done: Done = Arc::new(move |op: OpId, outcome: Outcome| {
        let _ = answers.send(Told::Done { op, outcome, samples: Vec::new() });
    });
    let wire = WireConfig::new(worker, epoch);
    let transport: Arc<dyn Transport> = match (config.transfer.backend, backend) {
        (TransferBackend::Fake, _) => Arc::new(Fake::new(wire, arena.page_bytes() as u64, done)),
        (TransferBackend::Wire, Backend::Tcp) => Arc::new(Carrier::tcp(wire, Arc::clone(arena), done)),
        (TransferBackend::Wire, Backend::Auto | Backend::Shm | Backend::Fake) => {
            Arc::new(Carrier::shared(wire, Arc::clone(arena), done))
        }
    };
    let listen = ReceiverConfig {
        listen: address(&host, 0),
        // The worker's thread waits for it, so not for long: what cannot be revoked yet is tried again.
        revoke_timeout: Duration::from_millis(20),
        ..ReceiverConfig::new(worker, epoch)
    };
    let receiver = match config.transfer.backend {
        TransferBackend::Fake => Receiver::fake(listen),
        TransferBackend::Wire => Receiver::listen(listen, Arc::clone(arena)),
    };
    let receiver = receiver.map_err(|error| format!("the wire cannot listen at {host}: {error}"))?;
    let wire_address = receiver.address().to_string();
    let ear = Ear { transport: Arc::clone(&transport), inbox: Arc::clone(inbox) };
    let listen = PeersConfig { listen: address(&host, 0), ..PeersConfig::new(worker, epoch, wire_address.clone()) };
    let connections = Connections::listen(listen, Arc::new(ear));
    let connections =
        connections.map(Arc::new).map_err(|error| format!("no control connections at {host}: {error}"))?;
    let bootstrap_port = options.disaggregation_bootstrap_port.unwrap_or(bootstrap::PORT);
    let kv = Kv { root: format!("{:032x}", config.kv.root.0), layout: config.transfer.layout.clone() };
    let bootstrap = match config.mode {
        Mode::Prefill => {
            let settings = BootstrapConfig { listen: address(&host, bootstrap_port), ..BootstrapConfig::new(worker) };
            let server = Bootstrap::start(settings).await.map_err(|error| {
                format!(
                    "the bootstrap server cannot listen at {host}:{bootstrap_port}: {error}; \
                     --disaggregation-bootstrap-port takes another port, 0 a free one"
                )
            })?;
            let me = Announcement {
                worker,
                epoch,
                mode: config.mode,
                root: kv.root.clone(),
                layout: kv.layout.clone(),
                control: connections.address().to_string(),
                wire: wire_address,
            };
            let at = server.address().to_string();
            let client = Client::new(None, ASK_TIMEOUT);
            // Nobody is told of a worker that is not there yet.
            client.register(&at, &me).await.map_err(|error| error.to_string())?;
            let keeping = runtime.spawn(async move {
                let told = |told: Result<_, &AskError>| {
                    if let Err(error) = told {
                        tracing::warn!("the lease at the bootstrap server is not renewed: {error}");
                    }
                };
                let Err(error) = client.keep(&at, &me, told).await;
                tracing::error!("the lease at the bootstrap server has ended: {error}");
            });
            Some((server, keeping))
        }
        Mode::Decode | Mode::Unified => None,
    };
    let ends = Arc::new(Ends { connections: Arc::clone(&connections), transport, receiver });
    let patience = config.transfer.bootstrap_timeout;
    Ok(Peers { connections, ends, bootstrap, bootstrap_port, kv, patience })
}

impl Peers {
    /// What the worker's thread uses.
    pub(crate) fn wire(&self) -> Arc<dyn Wire> {
        Arc::clone(&self.ends) as Arc<dyn Wire>
    }

    /// What finds prefill workers.
    pub(crate) fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(Finder {
            connections: Arc::clone(&self.connections),
            client: Client::new(None, ASK_TIMEOUT),
            known: Arc::default(),
            port: self.bootstrap_port,
            kv: self.kv.clone(),
            patience: self.patience,
        })
    }

    /// Port of the bootstrap server, if there is one.
    pub(crate) fn bootstrap(&self) -> Option<u16> {
        self.bootstrap.as_ref().map(|(server, _)| server.address().port())
    }

    /// Takes no new hand-offs and lets pushes end. Connections end when this is dropped; the inbox is to be closed by then.
    pub(crate) async fn stop(&mut self) {
        if let Some((server, keeping)) = self.bootstrap.take() {
            keeping.abort();
            server.stop().await;
        }
        let transport = Arc::clone(&self.ends.transport);
        let drained = tokio::task::spawn_blocking(move || transport.drain(Instant::now() + DRAIN));
        if !matches!(drained.await, Ok(true)) {
            tracing::warn!("pushes are cut off");
        }
    }
}

impl Wire for Ends {
    fn push(&self, op: OpId, push: Push) {
        self.transport.push(op, push);
    }

    fn send(&self, to: WorkerId, message: &Message) {
        match self.receiver.on_send(to, message) {
            Ok(()) => drop(self.connections.send(to, message)),
            // The attempt ends by its deadline; pages that peers may write in other attempts stay theirs.
            Err(error) => tracing::error!(%to, "pages cannot be leased: {error}"),
        }
    }

    fn may_hear(&self, input: &Input) -> bool {
        let fenced = match input {
            Input::Peer { id, .. } => self.receiver.fence_peer(*id),
            Input::Recv { from, message } => self.receiver.on_recv(*from, message),
            Input::Tick | Input::Submit(_) | Input::Cancel { .. } | Input::Done { .. } | Input::Control(_) => Ok(()),
        };
        fenced.is_ok()
    }
}

struct Finder {
    connections: Arc<Connections>,
    client: Client,
    /// Who was found where, as long as the connection to that life stands.
    known: Arc<Mutex<BTreeMap<(String, u16), Announcement>>>,
    /// Where a request names no port.
    port: u16,
    /// What must fit.
    kv: Kv,
    patience: Duration,
}

impl Resolve for Finder {
    fn resolve(&self, host: String, port: Option<u16>) -> BoxFuture<'static, Result<WorkerId, String>> {
        let at = (host, port.unwrap_or(self.port));
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&at).cloned();
        if let Some(known) = &known
            && self.connections.connected().iter().any(|life| (life.id, life.epoch) == (known.worker, known.epoch))
        {
            return futures_util::future::ready(Ok(known.worker)).boxed();
        }
        let (connections, client) = (Arc::clone(&self.connections), self.client.clone());
        let (all, until) = (Arc::clone(&self.known), Instant::now() + self.patience);
        let kv = self.kv.clone();
        async move {
            let mut pause = Duration::from_millis(20);
            let found = loop {
                match client.resolve(&at.0, at.1).await {
                    Ok(found) => break found,
                    // It may be on its way.
                    Err(error) if Instant::now() + pause < until && error.is_passing() => {
                        tracing::debug!("{error}");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_secs(1));
                    }
                    Err(error) => return Err(error.to_string()),
                }
            };
            if found.mode != Mode::Prefill {
                return Err(format!("the worker at {}:{} serves in mode {:?}, not prefill", at.0, at.1, found.mode));
            }
            if let Some(why) = kv.unlike(&found) {
                let why = format!("the KV of the prefill worker at {}:{} cannot be used here: {why}", at.0, at.1);
                tracing::error!("{why}");
                return Err(why);
            }
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(former) = all.insert(at, found.clone())
                && former.control != found.control
            {
                connections.forget(&former.control);
            }
            connections.connect(&found.control).map_err(|error| format!("no thread for a connection: {error}"))?;
            Ok(found.worker)
        }
        .boxed()
    }
}

/// No peers: a worker that serves whole requests.
pub(crate) fn none() -> Arc<dyn Wire> {
    struct None;
    impl Wire for None {
        fn push(&self, op: OpId, _: Push) {
            // A unified worker plans no pushes.
            tracing::error!(?op, "a push without a wire ({:?})", Fault::Unreachable);
        }
        fn send(&self, _: WorkerId, _: &Message) {}
        fn may_hear(&self, _: &Input) -> bool {
            true
        }
    }
    Arc::new(None)
}

/// Longest wait for one answer of a bootstrap server.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for pushes at the end.
const DRAIN: Duration = Duration::from_secs(5);

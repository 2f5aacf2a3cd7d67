//! A worker's peers: connections for messages, a wire for KV, and the fence between the two.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use pd_core::config::{Mode, TransferBackend, WorkerConfig};
use pd_core::id::{OpId, WorkerId};
use pd_core::message::Message;
use pd_core::op::{Fault, Input, Outcome, Push};
use pd_net::ctrl::bootstrap::{self, Card};
use pd_net::ctrl::frame::Greeting;
use pd_net::ctrl::{Ctrl, CtrlConfig, Hear, Heard};
use pd_net::wire::{Done, Endpoint, Fake, Receiver, ReceiverConfig, Transport, Wire as Carrier, WireConfig};
use pd_sync::Arena;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::backend::Resolve;
use super::options::{Backend, Options};
use super::shell::{Told, Wire};

/// The peers of a worker that hands over or takes over.
pub(crate) struct Peers {
    ctrl: Ctrl,
    ends: Arc<Ends>,
    bootstrap: Option<(u16, JoinHandle<()>)>,
    bootstrap_port: u16,
}

/// Both ends of the wire, and the messages beside it.
struct Ends {
    ctrl: Ctrl,
    transport: Arc<dyn Transport>,
    receiver: Receiver,
}

/// Makes L1 where peers can write it, listens, and (a prefill worker) opens the bootstrap server.
///
/// # Errors
/// Which address or memory cannot be had.
pub(crate) async fn start(
    options: &Options,
    config: &WorkerConfig,
    page_bytes: usize,
    inbox: &Sender<Told>,
    runtime: &Handle,
) -> Result<(Arc<Arena>, Peers), String> {
    let host = options.host.clone().unwrap_or_else(|| "127.0.0.1".to_owned());
    let backend = options.disaggregation_transfer_backend.unwrap_or_default();
    let (worker, epoch) = (config.worker, config.epoch);
    let pages = config.kv.gpu_pages;
    let arena = match backend {
        Backend::Tcp | Backend::Fake => Arena::new(page_bytes, pages),
        Backend::Shm => Arena::shared(page_bytes, pages, epoch.0),
        // Where there is no room for shared memory, TCP does.
        Backend::Auto => Arena::shared(page_bytes, pages, epoch.0).or_else(|error| {
            tracing::warn!("no shared memory for L1 ({error}): peers on this host use TCP");
            Arena::new(page_bytes, pages)
        }),
    };
    let arena = arena.map(Arc::new).map_err(|error| format!("no memory for L1: {error}"))?;
    let answers = inbox.clone();
    let done: Done = Arc::new(move |op: OpId, outcome: Outcome| {
        let _ = answers.send(Told::Done { op, outcome, samples: Vec::new() });
    });
    let wire = WireConfig::new(worker, epoch);
    let transport: Arc<dyn Transport> = match (config.transfer.backend, backend) {
        (TransferBackend::Fake, _) => Arc::new(Fake::new(wire, page_bytes as u64, done)),
        (TransferBackend::Wire, Backend::Tcp) => Arc::new(Carrier::tcp(wire, Arc::clone(&arena), done)),
        (TransferBackend::Wire, Backend::Auto | Backend::Shm | Backend::Fake) => {
            Arc::new(Carrier::shared(wire, Arc::clone(&arena), done))
        }
    };
    let listen = ReceiverConfig {
        listen: join(&host, 0),
        // The worker's thread waits for it, so not for long: what cannot be revoked yet is tried again.
        revoke_timeout: Duration::from_millis(20),
        ..ReceiverConfig::new(worker, epoch)
    };
    let receiver = match config.transfer.backend {
        TransferBackend::Fake => Receiver::fake(listen),
        TransferBackend::Wire => Receiver::listen(listen, Arc::clone(&arena)),
    };
    let receiver = receiver.map_err(|error| format!("the wire cannot listen at {host}: {error}"))?;
    let wire_address = receiver.address().to_string();
    let greeting = Greeting { worker, epoch, wire: wire_address.clone() };
    let (heard, up_and_down) = (inbox.clone(), Arc::clone(&transport));
    let hear: Hear = Arc::new(move |news: Heard| {
        let input = match news {
            Heard::Up(Greeting { worker, epoch, wire }) => {
                up_and_down.up(&Endpoint { id: worker, epoch, address: wire });
                Input::Peer { id: worker, up: Some(epoch) }
            }
            Heard::Down(worker) => {
                up_and_down.down(worker);
                Input::Peer { id: worker, up: None }
            }
            Heard::Message(from, message) => Input::Recv { from, message: *message },
        };
        let _ = heard.send(Told::Input(input));
    });
    let lookup = CtrlConfig { lookup_timeout: config.transfer.bootstrap_timeout, ..CtrlConfig::new(greeting) };
    let ctrl = Ctrl::new(lookup, hear);
    let control = ctrl.listen(&join(&host, 0)).await;
    let control = control.map_err(|error| format!("no control connections at {host}: {error}"))?;
    let bootstrap_port = options.disaggregation_bootstrap_port.unwrap_or(BOOTSTRAP_PORT);
    let bootstrap = match config.mode {
        Mode::Prefill => {
            let listener = TcpListener::bind(join(&host, bootstrap_port)).await.map_err(|error| {
                format!(
                    "the bootstrap server cannot listen at {host}:{bootstrap_port}: {error}; \
                     --disaggregation-bootstrap-port takes another port, 0 a free one"
                )
            })?;
            let port = listener.local_addr().map_err(|error| error.to_string())?.port();
            let card = Card {
                worker,
                epoch,
                mode: config.mode,
                control: control.to_string(),
                wire: wire_address,
                page_size: config.kv.page_size,
                kv_cache_dtype: config.transfer.layout.dtype.clone(),
            };
            let serving = runtime.spawn(async move {
                if let Err(error) = bootstrap::serve(listener, card).await {
                    tracing::error!("the bootstrap server has ended: {error}");
                }
            });
            Some((port, serving))
        }
        Mode::Decode | Mode::Unified => None,
    };
    let ends = Arc::new(Ends { ctrl: ctrl.clone(), transport, receiver });
    Ok((arena, Peers { ctrl, ends, bootstrap, bootstrap_port }))
}

impl Peers {
    /// What the worker's thread uses.
    pub(crate) fn wire(&self) -> Arc<dyn Wire> {
        Arc::clone(&self.ends) as Arc<dyn Wire>
    }

    /// What finds prefill workers.
    pub(crate) fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(Finder { ctrl: self.ctrl.clone(), port: self.bootstrap_port })
    }

    /// Port of the bootstrap server, if there is one.
    pub(crate) fn bootstrap(&self) -> Option<u16> {
        self.bootstrap.as_ref().map(|(port, _)| *port)
    }

    /// Lets pushes end, then closes everything.
    pub(crate) async fn stop(self) {
        if let Some((_, serving)) = self.bootstrap {
            serving.abort();
        }
        let transport = Arc::clone(&self.ends.transport);
        let drained = tokio::task::spawn_blocking(move || transport.drain(Instant::now() + DRAIN));
        if !matches!(drained.await, Ok(true)) {
            tracing::warn!("pushes are cut off");
        }
        self.ctrl.close();
    }
}

impl Wire for Ends {
    fn push(&self, op: OpId, push: Push) {
        self.transport.push(op, push);
    }

    fn send(&self, to: WorkerId, message: &Message) {
        match self.receiver.on_send(to, message) {
            Ok(()) => self.ctrl.send(to, message),
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
    ctrl: Ctrl,
    /// Where a request names no port.
    port: u16,
}

impl Resolve for Finder {
    fn resolve(&self, host: String, port: Option<u16>) -> BoxFuture<'static, Result<WorkerId, String>> {
        let (ctrl, port) = (self.ctrl.clone(), port.unwrap_or(self.port));
        async move { ctrl.resolve(&host, port).await }.boxed()
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

fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// SGLang's.
const BOOTSTRAP_PORT: u16 = 8998;
/// Longest wait for pushes at the end.
const DRAIN: Duration = Duration::from_secs(5);

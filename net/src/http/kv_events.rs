//! `GET /kv_events`: what comes into the cache of a worker and what leaves it, for routers that place requests by that.
//!
//! Server-sent events, numbered without gaps in the life of a worker. Names inside are vLLM's; a page is a block, and its
//! key is the hash of all tokens up to its end, 32 hexadecimal digits.
//!
//! ```text
//!   data: {"seq":0,"epoch":7,"reset":true,"is_complete":true,"namespace":{"model":...,"page_size":16,...}}
//!   data: {"seq":0,"events":[{"type":"BlockStored","block_hashes":["9f.."],"parent_block_hash":"03..","medium":"GPU"}]}
//!   data: {"seq":1,"events":[{"type":"BlockRemoved","block_hashes":["9f.."],"medium":"CPU"}]}
//!   data: {"seq":2,"events":[{"type":"AllBlocksCleared","medium":"GPU"}]}
//! ```
//! 1. A reset says: forget what you know of this worker, and go on with `seq`. If it `is_complete`, what follows is all
//!    that ever happened. It comes first, and again to whoever falls so far behind that events are gone.
//! 2. `?epoch=E&after=SEQ` goes on where a connection was lost; if that is not possible any more, with a reset.
//! 3. The worker's thread never waits: it puts events into a ring of bounded size, and readers take them from there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use pd_core::event::{KvChange, Tier};
use pd_core::id::PageKey;
use pd_core::key::Namespace;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Edge;
use super::error::ApiError;

/// The events of one life of a worker.
#[derive(Debug)]
pub struct KvEvents {
    epoch: u32,
    namespace: Namespace,
    bytes_max: usize,
    ring: Mutex<Ring>,
    /// The number of the next event, for those who wait for it.
    next: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    /// Number of the oldest event that is kept.
    first: u64,
    events: VecDeque<Bytes>,
    bytes: usize,
}

impl KvEvents {
    /// No events yet. At most about `bytes_max` bytes of them are kept.
    #[must_use]
    pub fn new(epoch: u32, namespace: Namespace, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { epoch, namespace, bytes_max, ring: Mutex::default(), next: watch::Sender::new(0) })
    }

    /// Tells all readers. Never waits for them.
    pub fn publish(&self, changes: &[KvChange]) {
        if changes.is_empty() {
            return;
        }
        let events: Vec<Value> = changes.iter().map(wording).collect();
        let mut ring = self.ring();
        let seq = ring.first + ring.events.len() as u64;
        let event = data(&json!({ "seq": seq, "events": events }));
        ring.bytes += event.len();
        ring.events.push_back(event);
        while ring.bytes > self.bytes_max
            && let Some(oldest) = ring.events.pop_front()
        {
            ring.bytes -= oldest.len();
            ring.first += 1;
        }
        drop(ring);
        self.next.send_replace(seq + 1);
    }

    /// Everything from an event on, or from the oldest one that is kept.
    fn read(
        self: &Arc<Self>,
        from: Option<u64>,
    ) -> impl futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> + use<> {
        let reader = Reader { events: Arc::clone(self), next: from, news: self.next.subscribe() };
        futures_util::stream::unfold(reader, |mut reader| async move {
            let bytes = reader.take().await;
            Some((Ok(bytes), reader))
        })
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Reader {
    events: Arc<KvEvents>,
    /// Which event comes next; `None` before a reset.
    next: Option<u64>,
    news: watch::Receiver<u64>,
}

impl Reader {
    async fn take(&mut self) -> Bytes {
        loop {
            self.news.borrow_and_update();
            if let Some(bytes) = self.look() {
                return bytes;
            }
            // A client that has gone is noticed when something is written.
            match tokio::time::timeout(KEEP_ALIVE, self.news.changed()).await {
                Ok(_) => {}
                Err(_) => return Bytes::from_static(b":\n\n"),
            }
        }
    }

    /// What can be sent now.
    fn look(&mut self) -> Option<Bytes> {
        let ring = self.events.ring();
        let end = ring.first + ring.events.len() as u64;
        match self.next {
            Some(next) if (ring.first..=end).contains(&next) => {
                let at = usize::try_from(next - ring.first).ok()?;
                let mut bytes = Vec::new();
                for event in ring.events.iter().skip(at) {
                    if !bytes.is_empty() && bytes.len() + event.len() > CHUNK_BYTES {
                        break;
                    }
                    bytes.extend_from_slice(event);
                    self.next = self.next.map(|next| next + 1);
                }
                (!bytes.is_empty()).then(|| bytes.into())
            }
            Some(_) | None => {
                self.next = Some(ring.first);
                let KvEvents { epoch, namespace, .. } = &*self.events;
                Some(data(&json!({
                    "seq": ring.first, "epoch": epoch, "reset": true, "is_complete": ring.first == 0,
                    "namespace": namespace,
                })))
            }
        }
    }
}

/// Where to go on.
#[derive(Debug, Deserialize)]
pub(super) struct From {
    epoch: Option<u32>,
    after: Option<u64>,
}

/// The stream.
pub(super) async fn get(State(edge): State<Arc<Edge>>, Query(from): Query<From>) -> Result<Response, ApiError> {
    let Some(events) = edge.backend().kv_events() else {
        let message = "this worker publishes no KV events; start it with --enable-kv-events";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "no_kv_events", message));
    };
    let after = from.after.filter(|_| from.epoch == Some(events.epoch));
    let body = Body::from_stream(events.read(after.map(|after| after.saturating_add(1))));
    Ok(([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")], body).into_response())
}

fn wording(change: &KvChange) -> Value {
    let hex = |key: PageKey| format!("{:032x}", key.0);
    match *change {
        KvChange::Stored { key, parent, tier } => json!({
            "type": "BlockStored", "block_hashes": [hex(key)], "parent_block_hash": hex(parent), "medium": medium(tier),
        }),
        KvChange::Removed { key, tier } => {
            json!({ "type": "BlockRemoved", "block_hashes": [hex(key)], "medium": medium(tier) })
        }
        KvChange::Cleared { tier } => json!({ "type": "AllBlocksCleared", "medium": medium(tier) }),
    }
}

const fn medium(tier: Tier) -> &'static str {
    match tier {
        Tier::Device => "GPU",
        Tier::Host => "CPU",
        Tier::Storage => "DISK",
    }
}

fn data(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

/// Longest silence.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// About the most bytes that are handed to a connection at once.
const CHUNK_BYTES: usize = 64 << 10;
